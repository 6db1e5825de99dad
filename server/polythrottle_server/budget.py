"""How much of a study's budget is used, and why its search ended. Pure."""

from __future__ import annotations

from polythrottle.configuration import Configuration
from polythrottle.study import Study, StudySpec
from polythrottle.suggestion import StopAdvice
from polythrottle.trial import Purpose, TrialState

TRIAL_BUDGET = "budget of trials"
TIME_BUDGET = "budget of time"
NOTHING_LEFT = "nothing left to try"
NOTHING_SAFE = "nothing safe enough is left"
"""What the optimiser says of a suggestion without a configuration where only safe mode keeps it from one."""


def search_configurations(study: Study) -> tuple[Configuration, ...]:
    """The distinct configurations that count against `max_trials`: the anchor, and each one searched."""
    trials = [t for t in study.trials if t.state is not TrialState.CANCELLED]
    anchored = any(t.purpose is Purpose.ANCHOR for t in trials)
    searched = [t.configuration for t in trials if t.purpose is Purpose.SEARCH]
    return tuple(dict.fromkeys([study.spec.anchor] * anchored + searched))


def device_time_s(study: Study) -> float:
    """How long the device was busy with this study's trials, failed ones included."""
    return sum(trial.cost_s for trial in study.trials)


def budget_stop(study: Study, windows_to_come: int) -> StopAdvice | None:
    """Whether the search must end for want of budget, time to confirm its answer kept back."""
    spec = study.spec
    tried = len(search_configurations(study))
    if tried >= spec.max_trials:
        return StopAdvice(True, TRIAL_BUDGET, tried, spec.max_trials)
    if spec.max_time_s is None:
        return None
    spent_s = device_time_s(study)
    measured_s = [t.measurement.duration_s for t in study.trials if t.measurement is not None]
    ahead_s = windows_to_come * sum(measured_s) / len(measured_s) if measured_s else 0.0
    if spent_s + ahead_s >= spec.max_time_s:
        return StopAdvice(True, TIME_BUDGET, spent_s + ahead_s, spec.max_time_s)
    return None


def ended_by_budget(stop: StopAdvice) -> bool:
    return stop.rule in (TRIAL_BUDGET, TIME_BUDGET)


def budget_was_raised(spec: StudySpec, stop: StopAdvice) -> bool:
    """Whether the budget that ended the search has been made larger since."""
    if stop.rule == TRIAL_BUDGET:
        return spec.max_trials > stop.threshold
    if stop.rule == TIME_BUDGET:
        return spec.max_time_s is None or spec.max_time_s > stop.threshold
    return False
