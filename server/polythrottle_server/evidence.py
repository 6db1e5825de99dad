"""What a study's trials taught: windows combined per configuration, drift divided out. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from polythrottle.configuration import Configuration, Level
from polythrottle.measurement import EnergyReading, LatencyReading, Measurement, Provenance, combined
from polythrottle.objective import LatencySlo
from polythrottle.optimizer.problem import Evidence, FailedTrial, Observation
from polythrottle.study import Estimate, Study
from polythrottle.trial import STOCK, Purpose, Trial, TrialState
from polythrottle_server.drift import ERROR_FLOOR, Correction, checking_only, corrections

MAX_ATTEMPTS = 3
"""A trial whose run was lost this often has failed, and its configuration is not tried again."""

SURE_SD = 2.0
"""Standard errors beyond the limit from which a configuration clearly misses the SLO."""

FEASIBLE_SD = 1.645
"""Standard errors within the limit for 95 % confidence (one-sided) that the SLO is met."""


@dataclass(frozen=True)
class Window:
    """One measured window: J per query and seconds with standard errors, divided by the drift in force.

    `latency_reach_s` is how far its upper confidence bound lies above, over `FEASIBLE_SD`: the error that
    counts where it is judged whether the SLO is met.
    """

    trial: Trial
    energy_j: float
    energy_error_j: float
    latency_s: float
    latency_error_s: float
    latency_reach_s: float
    observed: Configuration


def energy_of(measurement: Measurement | None) -> EnergyReading | None:
    reading = None if measurement is None else measurement.energy
    return reading if isinstance(reading, EnergyReading) else None


def latency_of(measurement: Measurement | None) -> LatencyReading | None:
    reading = None if measurement is None else measurement.latency
    return reading if isinstance(reading, LatencyReading) else None


def window_of(trial: Trial, correction: Correction | None = None) -> Window | None:
    """The trial's window; None unless energy and latency were both measured in full."""
    energy, latency = energy_of(trial.measurement), latency_of(trial.measurement)
    if not trial.state.measured or energy is None or latency is None or trial.measurement is None:
        return None
    by = correction or Correction()
    energy_j, latency_s = energy.energy_j / by.energy, latency.latency_s / by.latency
    return Window(
        trial,
        energy_j,
        energy.relative_error * energy_j,
        latency_s,
        latency.relative_error * latency_s,
        _reach_s(latency) / by.latency,
        trial.measurement.observed,
    )


def _reach_s(latency: LatencyReading) -> float:
    error_s = latency.relative_error * latency.latency_s
    if latency.upper_s is None:
        return error_s
    return max(error_s, (latency.upper_s - latency.latency_s) / FEASIBLE_SD)


def windows(study: Study) -> tuple[Window, ...]:
    """Every measured window, in order.

    A check of max clocks that found drift, or that seemed to and was repeated, only measures the drift.
    """
    by_number, checks = corrections(study), checking_only(study)
    found = []
    for trial in study.trials:
        correction = by_number.get(trial.number)
        if trial.purpose is Purpose.STAGE:  # of a part of the workload only
            continue
        if trial.number in checks or (correction is not None and trial.configuration == study.spec.anchor):
            continue
        window = window_of(trial, correction)
        if window is not None:
            found.append(window)
    return tuple(found)


def independent(group: Iterable[Window]) -> tuple[Window, ...]:
    """The windows that tell something new: of a recorded row read again and again only the first."""
    group = tuple(group)
    live = tuple(window for window in group if not _as_recorded(window))
    return live or group[:1]


def _as_recorded(window: Window) -> bool:
    energy = energy_of(window.trial.measurement)
    return energy is not None and energy.provenance is Provenance.AS_RECORDED


def estimate_of(group: Iterable[Window]) -> Estimate | None:
    """All windows of one configuration combined; None where there is none."""
    group = independent(group)
    if not group:
        return None
    energy, energy_error = combined([(w.energy_j, w.energy_error_j) for w in group])
    latency, latency_error = combined([(w.latency_s, w.latency_error_s) for w in group])
    bound, reach = combined([(w.latency_s, w.latency_reach_s) for w in group])
    return Estimate(
        group[0].trial.configuration,
        energy,
        max(energy_error, ERROR_FLOOR * energy),
        latency,
        max(latency_error, ERROR_FLOOR * latency),
        len(group),
        max(latency, bound) + FEASIBLE_SD * max(reach, ERROR_FLOOR * latency),
    )


def estimate(study: Study, configuration: Configuration) -> Estimate | None:
    """What was measured of one configuration in the whole study; STOCK gives the baseline."""
    return estimate_of(w for w in windows(study) if w.trial.configuration == configuration)


def estimates(study: Study) -> tuple[Estimate, ...]:
    """One for each measured configuration but stock, in the order they were first tried."""
    grouped: dict[Configuration, list[Window]] = {}
    for window in windows(study):
        if window.trial.configuration != STOCK:
            grouped.setdefault(window.trial.configuration, []).append(window)
    return tuple(e for e in map(estimate_of, grouped.values()) if e is not None)


def resolved_slo(study: Study) -> LatencySlo:
    """The SLO as an absolute limit.

    A relative one is fixed by the mean latency of the anchor trials alone, which are over before the
    search begins, and stays as it is where none was measured yet.
    """
    first = estimate_of(w for w in map(window_of, study.of(Purpose.ANCHOR)) if w is not None)
    return study.spec.slo if first is None else study.spec.slo.resolved(first.latency_s)


def clearly_misses(found: Estimate, limit_s: float) -> bool:
    """Over the limit by more than `SURE_SD` standard errors."""
    return found.latency_s - SURE_SD * found.latency_error_s > limit_s


def meets(found: Estimate, limit_s: float) -> bool:
    """Within the limit with 95 % confidence, by its own readings alone."""
    if found.latency_upper_s is not None:
        return found.latency_upper_s <= limit_s
    return found.latency_s + FEASIBLE_SD * found.latency_error_s <= limit_s


def failure_weight(trial: Trial) -> int:
    """How many failures a trial counts for: a run lost `MAX_ATTEMPTS` times is not worth another one."""
    if trial.state is not TrialState.FAILED:
        return 0
    return 2 if trial.attempt >= MAX_ATTEMPTS else 1


def failures(trials: Iterable[Trial], configuration: Configuration) -> int:
    return sum(failure_weight(trial) for trial in trials if trial.configuration == configuration)


def evidence(study: Study) -> list[Evidence]:
    """What the optimiser learns from: at most one observation a configuration, one entry a failure.

    The baseline is left out, as no configuration describes it. A configuration of which nothing but a
    lower bound is known is a censored observation. Failures of one that was measured are left out too.
    """
    by_number = corrections(study)
    measured: dict[Configuration, list[Window]] = {}
    for window in windows(study):
        measured.setdefault(window.trial.configuration, []).append(window)
    found: list[Evidence] = []
    for configuration in dict.fromkeys(
        t.configuration for t in study.trials if t.purpose is not Purpose.STAGE
    ):
        if configuration == STOCK:
            continue
        bounds = [
            _bound(trial, by_number.get(trial.number))
            for trial in study.trials
            if trial.configuration == configuration and trial.state is TrialState.ABORTED
        ]
        known = [bound for bound in bounds if bound is not None]
        group = measured.get(configuration, [])
        if group:
            found.append(_observation(configuration, group, known))
        elif known:
            latency_s, error_s = max(known)
            found.append(
                Observation(configuration, latency_s, max(error_s / latency_s, ERROR_FLOOR), None, None)
            )
        else:
            found += [FailedTrial(configuration)] * failures(study.trials, configuration)
    return found


def _bound(trial: Trial, correction: Correction | None) -> tuple[float, float] | None:
    reading = latency_of(trial.measurement)
    if reading is None:
        return None
    latency_s = reading.latency_s / (correction or Correction()).latency
    return latency_s, reading.relative_error * latency_s


def _observation(
    configuration: Configuration, group: list[Window], bounds: list[tuple[float, float]]
) -> Observation:
    group = list(independent(group))
    mean = estimate_of(group)
    assert mean is not None
    # A window that was cut short took at least that long: counted as a reading it still errs low.
    latency, error = combined([(w.latency_s, w.latency_error_s) for w in group] + bounds)
    return Observation(
        configuration,
        latency,
        max(error / latency, ERROR_FLOOR),
        mean.energy_j,
        mean.energy_error_j / mean.energy_j,
        _achieved(configuration, group),
    )


def _achieved(configuration: Configuration, group: list[Window]) -> Configuration | None:
    """The mean of the clocks that ran; None where they are the requested ones within 0.1 %."""
    settings = dict(_ran(configuration, group))
    same = all(
        ran == configuration[knob]
        or (
            not isinstance(ran, str)
            and not isinstance(configuration[knob], str)
            and math.isclose(ran, float(configuration[knob]), rel_tol=1e-3)
        )
        for knob, ran in settings.items()
    )
    return None if same else Configuration.of(settings)


def _ran(configuration: Configuration, group: list[Window]) -> Iterator[tuple[str, Level]]:
    for knob, requested in configuration.items():
        seen = [window.observed.get(knob, requested) for window in group]
        numbers = [level for level in seen if not isinstance(level, str)]
        yield knob, sum(numbers) / len(numbers) if len(numbers) == len(seen) else seen[-1]
