"""What the screens and the report need to know of each trial, worked out once from the study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from polythrottle.configuration import Configuration
from polythrottle.measurement import EnergyReading, LatencyReading, Unavailable, combined
from polythrottle.reporting.passed_over import why_passed_over
from polythrottle.reporting.wording import percent
from polythrottle.study import Estimate, Study
from polythrottle.suggestion import Prediction
from polythrottle.trial import Purpose, Trial, TrialState


class Outcome(str, Enum):
    """How a trial ended, as a reader cares for it."""

    FEASIBLE = "meets the SLO"
    OVER = "over the SLO"
    ABORTED = "aborted"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNFINISHED = "unfinished"


_OUTCOMES: Mapping[TrialState, Outcome] = {
    TrialState.COMPLETED: Outcome.FEASIBLE,
    TrialState.INFEASIBLE: Outcome.OVER,
    TrialState.ABORTED: Outcome.ABORTED,
    TrialState.FAILED: Outcome.FAILED,
    TrialState.CANCELLED: Outcome.CANCELLED,
}


@dataclass(frozen=True)
class ConfigurationFacts:
    """All full measurements of one configuration as one point, with standard errors."""

    configuration: Configuration
    outcome: Outcome
    trials: tuple[int, ...]
    energy_j: float
    energy_error_j: float
    latency_s: float
    latency_error_s: float


@dataclass(frozen=True)
class TrialFacts:
    """One trial with its readings unpacked; what could not be read is None.

    `latency_s` of an aborted trial is a lower bound. `why` says why a trial cannot be chosen, or why a
    cheaper one within the SLO was not. `best` is
    the best configuration so far: least objective that meets the SLO, stock apart.
    """

    trial: Trial
    outcome: Outcome
    energy_j: float | None
    energy_error_j: float | None
    latency_s: float | None
    latency_error_s: float | None
    bounded: bool
    why: str | None
    best: ConfigurationFacts | None
    latency_upper_s: float | None = None

    @property
    def expected_gain(self) -> float | None:
        """The relative saving the model still expected when it chose this trial."""
        suggestion = self.trial.suggestion
        if suggestion is None or self.trial.purpose is not Purpose.SEARCH:
            return None
        if suggestion.stop is not None and suggestion.stop.remaining_gain is not None:
            return suggestion.stop.remaining_gain
        return suggestion.expected_gain

    @property
    def prediction(self) -> Prediction | None:
        """What the model expected of this trial; of a repeat, what it knew when the round began."""
        suggestion = self.trial.suggestion
        if suggestion is None:
            return None
        if suggestion.configuration == self.trial.configuration:
            return suggestion.prediction
        for candidate in suggestion.ranking:
            if candidate.configuration == self.trial.configuration:
                return candidate.prediction
        return None


def slo_limit_s(study: Study) -> float | None:
    """The SLO in seconds; None for a relative one before max clocks were measured."""
    if study.result is not None and study.result.slo.limit_s is not None:
        return study.result.slo.limit_s
    if study.spec.slo.limit_s is not None:
        return study.spec.slo.limit_s
    for trial in study.of(Purpose.ANCHOR):
        reading = trial.measurement.latency if trial.measurement is not None else None
        if trial.state.measured and isinstance(reading, LatencyReading):
            return study.spec.slo.resolved(reading.latency_s).limit_s
    return None


def assumes_errors(study: Study) -> bool:
    """Whether a reading came without an error of its own, so that one was assumed."""
    for trial in study.trials:
        if trial.measurement is None:
            continue
        energy, latency = trial.measurement.energy, trial.measurement.latency
        if isinstance(energy, EnergyReading) and energy.standard_error_j is None:
            return True
        if isinstance(latency, LatencyReading) and latency.standard_error_s is None:
            return True
    return False


def metered_by(study: Study) -> EnergyReading | None:
    """A reading that says which meter the energies come from, and what it covers; None before the first."""
    readings = (t.measurement.energy for t in study.trials if t.measurement is not None)
    return next((energy for energy in readings if isinstance(energy, EnergyReading)), None)


def trial_facts(study: Study) -> tuple[TrialFacts, ...]:
    """The facts of every trial, in order."""
    limit_s = slo_limit_s(study)
    all_facts: list[TrialFacts] = []
    for trial in study.trials:
        facts = _facts(trial, limit_s)
        known = configuration_facts([*all_facts, facts])
        options = [point for point in known if point.outcome is Outcome.FEASIBLE]
        best = min(options, key=lambda p: study.spec.objective.of(p.energy_j, p.latency_s), default=None)
        all_facts.append(replace(facts, best=best))
    means = {point.configuration: point for point in configuration_facts(all_facts)}
    return tuple(replace(facts, why=facts.why or _passed_over(study, facts, means)) for facts in all_facts)


def _passed_over(
    study: Study, facts: TrialFacts, means: Mapping[Configuration, ConfigurationFacts]
) -> str | None:
    """Why a trial within the SLO was not chosen, where its cost does not say so."""
    mean = means.get(facts.trial.configuration)
    if facts.outcome is not Outcome.FEASIBLE or mean is None:
        return None
    if facts.energy_j is None or facts.latency_s is None:
        return None
    return why_passed_over(
        study,
        Estimate(
            configuration=mean.configuration,
            energy_j=mean.energy_j,
            energy_error_j=mean.energy_error_j,
            latency_s=mean.latency_s,
            latency_error_s=mean.latency_error_s,
            n_windows=len(mean.trials),
        ),
        study.spec.objective.of(facts.energy_j, facts.latency_s),
        misses=mean.outcome is Outcome.OVER,
    )


def _facts(trial: Trial, limit_s: float | None) -> TrialFacts:
    measurement = trial.measurement
    energy = measurement.energy if measurement is not None else None
    latency = measurement.latency if measurement is not None else None
    facts = TrialFacts(
        trial=trial,
        outcome=_OUTCOMES.get(trial.state, Outcome.UNFINISHED),
        energy_j=None,
        energy_error_j=None,
        latency_s=None,
        latency_error_s=None,
        bounded=True,
        why=None,
        best=None,
    )
    if isinstance(energy, EnergyReading):
        facts = replace(facts, energy_j=energy.energy_j, energy_error_j=energy.standard_error_j)
    if isinstance(latency, LatencyReading):
        facts = replace(
            facts,
            latency_s=latency.latency_s,
            latency_error_s=latency.standard_error_s,
            bounded=latency.bounded,
            latency_upper_s=latency.upper_s,
        )
    return replace(facts, why=_why(facts, limit_s))


def _why(facts: TrialFacts, limit_s: float | None) -> str | None:
    trial = facts.trial
    reason = trial.reason
    if reason is None and trial.measurement is not None:
        reason = trial.measurement.aborted_reason
    if facts.outcome is Outcome.OVER and trial.purpose is Purpose.STAGE:
        return "over its part of the SLO"
    if facts.outcome is Outcome.OVER:
        if facts.latency_s is not None and limit_s is not None and facts.latency_s > limit_s:
            return f"over the SLO by {percent(facts.latency_s / limit_s - 1.0)}"
        return reason or "over the SLO"
    if facts.outcome in (Outcome.ABORTED, Outcome.FAILED, Outcome.CANCELLED):
        return f"{facts.outcome.value}: {reason}" if reason else facts.outcome.value
    unavailable = _unavailable(trial)
    return unavailable if unavailable is not None else reason


def _unavailable(trial: Trial) -> str | None:
    if trial.measurement is None:
        return None
    for word, reading in (("energy", trial.measurement.energy), ("latency", trial.measurement.latency)):
        if isinstance(reading, Unavailable):
            return f"{word} unavailable: {reading.reason}"
    return None


_OF_THE_SPACE = tuple(p for p in Purpose if p not in (Purpose.BASELINE, Purpose.STAGE))


def configuration_facts(facts: Iterable[TrialFacts], *purposes: Purpose) -> tuple[ConfigurationFacts, ...]:
    """One point for each configuration that was measured in full, in order of first trial.

    `purposes` defaults to all but the baseline and stages: stock is not a configuration of the space, and a
    stage is not the workload.
    """
    groups: dict[Configuration, list[TrialFacts]] = {}
    for one in facts:
        measured = one.trial.state.measured and one.energy_j is not None and one.latency_s is not None
        if measured and one.trial.purpose in (purposes or _OF_THE_SPACE):
            groups.setdefault(one.trial.configuration, []).append(one)
    return tuple(_averaged(configuration, group) for configuration, group in groups.items())


def _averaged(configuration: Configuration, group: list[TrialFacts]) -> ConfigurationFacts:
    energy, energy_error = combined([(f.energy_j or 0.0, f.energy_error_j or 0.0) for f in group])
    latency, latency_error = combined([(f.latency_s or 0.0, f.latency_error_s or 0.0) for f in group])
    over = sum(f.outcome is Outcome.OVER for f in group)
    return ConfigurationFacts(
        configuration=configuration,
        outcome=Outcome.OVER if 2 * over > len(group) else Outcome.FEASIBLE,
        trials=tuple(f.trial.number for f in group),
        energy_j=energy,
        energy_error_j=energy_error,
        latency_s=latency,
        latency_error_s=latency_error,
    )


def pareto_front(points: Iterable[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """The (latency, energy) points that no other beats in both, by ascending latency."""
    front: list[tuple[float, float]] = []
    for latency_s, energy_j in sorted(points):
        if not front or energy_j < front[-1][1]:
            front.append((latency_s, energy_j))
    return tuple(front)
