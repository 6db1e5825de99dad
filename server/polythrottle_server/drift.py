"""Whether the device changed during the search, told by measuring max clocks again. Pure.

Later readings are divided by what max clocks moved, so that they compare with the earlier ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from polythrottle.measurement import EnergyReading, LatencyReading, combined
from polythrottle.study import Study
from polythrottle.suggestion import Suggestion
from polythrottle.trial import Purpose, Trial, TrialState

MOVED = 0.02
"""Relative change from which drift is divided out."""
MOVED_SD = 3.0
"""And how many standard errors it must stand out."""
ERROR_FLOOR = 0.003
"""Least relative standard error of a combined reading: meters and clocks are no better than this."""


@dataclass(frozen=True)
class Correction:
    """What max clocks measure now over what they measured at the start; 1 where they did not move."""

    latency: float = 1.0
    energy: float = 1.0

    @property
    def moved(self) -> bool:
        return self != Correction()


def corrections(study: Study) -> dict[int, Correction]:
    """The correction of each trial number that needs one.

    A check (the drift trials between two search trials) holds for itself and what follows, until the next
    one. The repeats of a confirmation round have their own: max clocks measured between them. One window
    alone never counts: a rare outlier in it would be divided out of everything that follows.
    """
    found: dict[int, Correction] = {}
    for trials, correction, _ in _walk(study):
        if correction.moved:
            found.update(
                (t.number, correction) for t in trials if t.purpose not in (Purpose.BASELINE, Purpose.ANCHOR)
            )
    return found


def checking_only(study: Study) -> frozenset[int]:
    """Numbers of the drift trials that say nothing of max clocks as they were at the start.

    That is a check whose first window seemed to have moved, whether or not the next ones agreed.
    """
    return frozenset(t.number for trials, _, doubted in _walk(study) if doubted for t in trials)


def another_window(study: Study) -> bool:
    """Whether the check at the end of the study needs one more window to be believed.

    A second one where the first seems to have moved, and a third where those two differ.
    """
    groups = list(_walk(study))
    if not groups or not groups[-1][2]:
        return False
    seen = _readings(groups[-1][0])
    return len(seen) < 2 or (len(seen) == 2 and _differ(*seen))


def drift_notes(study: Study) -> tuple[str, ...]:
    """A sentence for each time that max clocks moved."""
    notes: list[str] = []
    previous = Correction()
    by_number = corrections(study)
    for trial in study.trials:
        correction = by_number.get(trial.number, Correction())
        if correction.moved and correction != previous:
            notes.append(
                f"From trial {trial.number} on, max clocks measured {correction.latency - 1:+.1%} latency "
                f"and {correction.energy - 1:+.1%} energy against the start; readings are divided by that."
            )
        previous = correction
    return tuple(notes)


_Pair = tuple[float, float]
_Reading = tuple[_Pair, _Pair]
"""Latency and energy of one window, each as (mean, standard error)."""


def _walk(study: Study) -> Iterator[tuple[list[Trial], Correction, bool]]:
    """The trials in groups with the correction that holds for each, and whether it is a doubted check."""
    start = _combined(_readings(study.of(Purpose.ANCHOR)))
    current = Correction()
    done = [t for t in study.trials if t.state is not TrialState.CANCELLED]
    for (purpose, _), group in groupby(done, key=_kind):
        trials, doubted = list(group), False
        if start is not None and purpose is not None:
            seen = _readings([t for t in trials if t.configuration == study.spec.anchor])
            doubted = purpose is Purpose.DRIFT and bool(seen) and _stirred(start, current, seen[0])
            now = _agreed(seen)
            if now is not None and _stirred(start, current, now):
                current = Correction(*map(_moved, start, now))
        yield trials, current, doubted


def _kind(trial: Trial) -> tuple[Purpose | None, Suggestion | None]:
    """Equal for the trials of one check, of one confirmation round, and for all between them."""
    if trial.purpose is Purpose.CONFIRM:
        return trial.purpose, trial.suggestion
    return (Purpose.DRIFT if trial.purpose is Purpose.DRIFT else None), None


def _readings(trials: Iterable[Trial]) -> list[_Reading]:
    """Those of the trials that were measured."""
    found: list[_Reading] = []
    for trial in trials:
        if trial.measurement is None or not trial.state.measured:
            continue
        took, used = trial.measurement.latency, trial.measurement.energy
        if isinstance(took, LatencyReading) and isinstance(used, EnergyReading):
            latency = (took.latency_s, took.relative_error * took.latency_s)
            found.append((latency, (used.energy_j, used.relative_error * used.energy_j)))
    return found


def _agreed(seen: list[_Reading]) -> _Reading | None:
    """What several windows say together; None where they cannot be believed.

    Two must agree. Of three, where the first two did not, the middle one is taken: one may be an outlier.
    """
    if len(seen) < 2 or (len(seen) == 2 and _differ(*seen)):
        return None
    if len(seen) == 2:
        return _combined(seen)
    latency, energy = (sorted(pairs)[len(seen) // 2] for pairs in zip(*seen, strict=True))
    return latency, energy


def _combined(seen: list[_Reading]) -> _Reading | None:
    if not seen:
        return None
    latency, energy = (combined(list(pairs)) for pairs in zip(*seen, strict=True))
    return latency, energy


def _differ(one: _Reading, other: _Reading) -> bool:
    return any(abs(a[0] - b[0]) > MOVED_SD * _error(a, b) for a, b in zip(one, other, strict=True))


def _stirred(start: _Reading, current: Correction, now: _Reading) -> bool:
    """Whether max clocks seem to be elsewhere than the correction in force has them."""
    expected = [
        (value * by, error * by)
        for (value, error), by in zip(start, (current.latency, current.energy), strict=True)
    ]
    return any(_moved(before, after) != 1.0 for before, after in zip(expected, now, strict=True))


def _moved(before: _Pair, after: _Pair) -> float:
    """The ratio after / before where it is both large and certain, else 1."""
    ratio = after[0] / before[0]
    certain = abs(after[0] - before[0]) > MOVED_SD * _error(before, after)
    return ratio if abs(ratio - 1.0) > MOVED and certain else 1.0


def _error(one: _Pair, other: _Pair) -> float:
    """Standard error of the difference; neither is believed beyond `ERROR_FLOOR`."""
    return math.hypot(*(max(error, ERROR_FLOOR * value) for value, error in (one, other)))
