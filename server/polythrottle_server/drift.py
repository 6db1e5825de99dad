"""Whether the device changed during the search, told by measuring max clocks again. Pure.

Later readings are divided by what max clocks moved, so that they compare with the earlier ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from polythrottle.measurement import EnergyReading, LatencyReading, combined
from polythrottle.study import Study
from polythrottle.trial import Purpose, Trial

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

    A drift trial holds for itself and what follows, until the next one. The repeats of a confirmation
    round have their own: max clocks measured between them.
    """
    start = _readings([t for t in study.of(Purpose.ANCHOR) if t.state.measured])
    if start is None:
        return {}
    found: dict[int, Correction] = {}
    current = Correction()
    for round_of, group in groupby(study.trials, key=lambda t: (t.purpose is Purpose.CONFIRM, t.suggestion)):
        trials = list(group)
        if round_of[0]:
            now = _readings([t for t in trials if t.configuration == study.spec.anchor and t.state.measured])
            if now is not None:
                current = _ratio(start, now)
        for trial in trials:
            if trial.purpose is Purpose.DRIFT and trial.state.measured:
                now = _readings([trial])
                current = current if now is None else _ratio(start, now)
            if current.moved and trial.purpose not in (Purpose.BASELINE, Purpose.ANCHOR):
                found[trial.number] = current
    return found


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


def _readings(trials: list[Trial]) -> tuple[_Pair, _Pair] | None:
    """Latency and energy of measured trials, each as (mean, standard error)."""
    latency: list[_Pair] = []
    energy: list[_Pair] = []
    for trial in trials:
        if trial.measurement is None:
            continue
        took, used = trial.measurement.latency, trial.measurement.energy
        if isinstance(took, LatencyReading) and isinstance(used, EnergyReading):
            latency.append((took.latency_s, took.relative_error * took.latency_s))
            energy.append((used.energy_j, used.relative_error * used.energy_j))
    return (combined(latency), combined(energy)) if latency else None


def _ratio(start: tuple[_Pair, _Pair], now: tuple[_Pair, _Pair]) -> Correction:
    return Correction(*(_moved(before, after) for before, after in zip(start, now, strict=True)))


def _moved(before: _Pair, after: _Pair) -> float:
    """The ratio after / before where it is both large and certain, else 1."""
    error = sum(max(e, ERROR_FLOOR * v) ** 2 for v, e in (before, after)) ** 0.5
    ratio = after[0] / before[0]
    return ratio if abs(ratio - 1.0) > MOVED and abs(after[0] - before[0]) > MOVED_SD * error else 1.0
