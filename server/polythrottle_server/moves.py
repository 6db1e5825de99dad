"""How studies and trials move: what an outcome makes of a trial, and which moves are refused. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from polythrottle.errors import InvalidInputError
from polythrottle.measurement import Unavailable
from polythrottle.studies import Aborted, Failed, Measured, Outcome
from polythrottle.study import STUDY_TRANSITIONS, Study, StudySpec, StudyState
from polythrottle.trial import Purpose, Trial, TrialState
from polythrottle_server import two_phase
from polythrottle_server.budget import device_time_s, search_configurations
from polythrottle_server.evidence import latency_of, resolved_slo

RESUME_TRIALS = 10
"""By how much `resume` raises a used-up budget of trials where no other number is given."""


def unfinished(study: Study) -> tuple[Trial, ...]:
    return tuple(trial for trial in study.trials if not trial.state.finished)


def trial_of(study: Study, number: int) -> Trial:
    """
    Raises:
        InvalidInputError: the study has no trial of that number.
    """
    for trial in study.trials:
        if trial.number == number:
            return trial
    raise InvalidInputError(f"Study {study.id} has no trial {number}; it has {len(study.trials)}.")


def settled(study: Study, trial: Trial, outcome: Outcome) -> Trial:
    """The running trial as its outcome leaves it.

    A window without energy or latency teaches nothing: the trial has failed, and keeps what was read.

    Raises:
        InvalidInputError: what a failed trial cost is not a finite number from 0 up.
    """
    if isinstance(outcome, Failed):
        costs = (outcome.duration_s, outcome.total_energy_j or 0.0)
        if any(not math.isfinite(cost) or cost < 0 for cost in costs):
            raise InvalidInputError(
                f"The cost of trial {trial.number} cannot be stored: its seconds and joules must be "
                "finite and not below zero."
            )
        failed = trial.moved(TrialState.FAILED, reason=outcome.reason)
        return replace(failed, spent_s=float(outcome.duration_s), spent_j=outcome.total_energy_j)
    measurement = outcome.measurement
    unusable = _unusable(outcome)
    if unusable is not None:
        return trial.moved(TrialState.FAILED, measurement=measurement, reason=unusable)
    if isinstance(outcome, Aborted):
        return trial.moved(TrialState.ABORTED, measurement=measurement, reason=outcome.reason)
    of_stage = trial.purpose is Purpose.STAGE
    limit_s = two_phase.limit_s(study) if of_stage else resolved_slo(study).limit_s
    latency = latency_of(measurement)
    over = limit_s is not None and latency is not None and latency.latency_s > limit_s
    return trial.moved(TrialState.INFEASIBLE if over else TrialState.COMPLETED, measurement=measurement)


def same_outcome(trial: Trial, outcome: Outcome) -> bool:
    """Whether a finished trial ended by this very outcome."""
    if trial.state is TrialState.CANCELLED:
        return False
    if isinstance(outcome, Failed):
        ended = trial.state is TrialState.FAILED and trial.measurement is None
        told = (outcome.reason, outcome.duration_s, outcome.total_energy_j)
        return ended and (trial.reason, trial.spent_s, trial.spent_j) == told
    if trial.measurement != outcome.measurement:
        return False
    if _unusable(outcome) is not None:
        return trial.state is TrialState.FAILED
    if isinstance(outcome, Aborted):
        return trial.state is TrialState.ABORTED and trial.reason == outcome.reason
    return trial.state.measured


def _unusable(outcome: Measured | Aborted) -> str | None:
    latency, energy = outcome.measurement.latency, outcome.measurement.energy
    if isinstance(latency, Unavailable):
        return f"No latency: {latency.reason}"
    if isinstance(energy, Unavailable) and isinstance(outcome, Measured):
        return f"No energy: {energy.reason}"
    return None


def check_move(study: Study, to: StudyState) -> None:
    """
    Raises:
        InvalidInputError: `STUDY_TRANSITIONS` does not hold that move.
    """
    if to not in STUDY_TRANSITIONS[study.state]:
        remedy = "create a new one" if to is StudyState.ACTIVE else "nothing is left to do"
        raise InvalidInputError(
            f"Study {study.id} is {study.state.value} and cannot become {to.value}; {remedy}."
        )


def raised(study: Study, max_trials: int | None, max_time_s: float | None) -> StudySpec:
    """The spec with the budget to go on with: the given one, or a used-up one made larger."""
    spec, ended = study.spec, study.state is StudyState.EXHAUSTED
    tried, spent_s = len(search_configurations(study)), device_time_s(study)
    if max_trials is None:
        used_up = ended and tried >= spec.max_trials
        max_trials = spec.max_trials + RESUME_TRIALS if used_up else spec.max_trials
    if max_time_s is None and spec.max_time_s is not None:
        # The search ends a little before the budget does, to have time for the confirmation.
        used_up = ended and tried < spec.max_trials
        max_time_s = max(spec.max_time_s, spent_s) + spec.max_time_s if used_up else spec.max_time_s
    if max_trials < 1 or (max_time_s is not None and max_time_s <= 0):
        raise InvalidInputError("A budget of trials or time must be above zero.")
    return replace(spec, max_trials=max_trials, max_time_s=max_time_s)


def leftover(trials: Sequence[Trial]) -> Trial | None:
    """The last trial that was not cancelled."""
    return next((t for t in reversed(trials) if t.state is not TrialState.CANCELLED), None)
