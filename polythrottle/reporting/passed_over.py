"""Why a configuration that meets the SLO by its readings, and takes less, is nevertheless not the answer."""

from __future__ import annotations

import math

from polythrottle.configuration import Configuration
from polythrottle.optimizer.problem import OptimizerSettings
from polythrottle.study import Estimate, Result, Strategy, Study, StudyState, Verdict
from polythrottle.trial import Purpose, TrialState

INSTALL = OptimizerSettings().install_p_feasible
PROGRESS = OptimizerSettings().progress_p_feasible
WITHIN_SD = 2.0
"""Combined standard errors up to which a difference is called one within the error."""


def why_passed_over(study: Study, mean: Estimate, own_value: float, *, misses: bool) -> str | None:
    """Why `mean`'s configuration was not chosen; None where its cost explains that, or nothing is known.

    Args:
        study: with its result; without one nothing was passed over yet.
        mean: all full windows of the configuration together.
        own_value: the objective of the one window that is asked about, in the objective's unit.
        misses: whether most of its windows are over the SLO, unlike this one.
    """
    result = study.result
    if result is None:
        return None
    chosen = result.chosen
    if chosen is not None:
        if chosen.configuration == mean.configuration or own_value >= _value(study, chosen):
            return None
        if mean.n_windows > 1 and _value(study, mean) >= _value(study, chosen):
            return f"cheaper in this window, but not on average over its {mean.n_windows} windows"
    reason = _spoilt(study, mean.configuration, misses) or _unlikely(study, result, mean.configuration)
    if reason is not None or chosen is None:
        return reason
    return _ranked_behind(study, result, mean, chosen)


def _spoilt(study: Study, configuration: Configuration, misses: bool) -> str | None:
    mine = [trial for trial in study.trials if trial.configuration == configuration]
    if any(trial.state is TrialState.ABORTED for trial in mine):
        return "another trial of it was cut short"
    if misses:
        return "over the SLO in its other windows"
    repeats = [trial for trial in mine if trial.purpose is Purpose.CONFIRM]
    if repeats and all(trial.state is TrialState.FAILED for trial in repeats):
        return "it failed when it was to be confirmed"
    return None


def _unlikely(study: Study, result: Result, configuration: Configuration) -> str | None:
    """By the last ranking that was kept: the likeliest to meet the SLO are in it, with their probability."""
    of_the_whole = [t for t in study.trials if t.purpose is not Purpose.STAGE]
    ranked = next((t for t in reversed(of_the_whole) if t.suggestion and t.suggestion.ranking), None)
    if ranked is None or ranked.suggestion is None:
        return None
    bar = _bar(result)
    for candidate in ranked.suggestion.ranking:
        if candidate.configuration == configuration:
            p = candidate.prediction.p_feasible
            return f"P(feasible) {_below(p, bar)} is below {bar:g}" if p < bar else None
    made_before = min(t.number for t in study.trials if t.suggestion == ranked.suggestion)
    known = any(
        t.number < made_before and t.state.measured and t.configuration == configuration for t in study.trials
    )
    if not known:
        return None
    # A ranking made for a later round of confirmations leaves out more than one made for the search.
    left_out_below = PROGRESS if ranked.purpose is Purpose.SEARCH else INSTALL
    return f"P(feasible) is below {max(bar, left_out_below):g}"


def _bar(result: Result) -> float:
    """The least P(feasible) of an answer, which is lower while the search is not over."""
    unfinished = result.state in (StudyState.ACTIVE, StudyState.CANCELLED)
    below = result.p_feasible is not None and result.p_feasible < INSTALL
    lower = unfinished or (below and result.verdict is not Verdict.KEEP_STOCK)
    return PROGRESS if lower else INSTALL


def _below(p: float, bar: float) -> str:
    """Two decimals, or three rounded down where two would read like the bar itself."""
    text = f"{p:.2f}"
    return text if float(text) < bar else f"{math.floor(p * 1000) / 1000:.3f}"


def _ranked_behind(study: Study, result: Result, mean: Estimate, chosen: Estimate) -> str:
    difference = abs(_value(study, chosen) - _value(study, mean))
    within = difference <= WITHIN_SD * math.hypot(_error(study, chosen), _error(study, mean))
    error = " (within the error)" if within else ""
    if result.verdict is Verdict.KEEP_STOCK:
        if within:
            return "cheaper than stock by no more than the error, so stock is kept"
        return "cheaper than stock by its own readings, which were not confirmed"
    if study.spec.strategy not in (Strategy.RANDOM, Strategy.GRID):
        return (
            "cheaper by its own readings; the model, which uses every trial, ranks it behind the chosen "
            f"one{error}"
        )
    confirms = study.of(Purpose.CONFIRM)
    if any(t.configuration == mean.configuration and t.state.measured for t in confirms):
        return f"cheaper by its own readings, but ranked behind the chosen one{error}"
    return f"cheaper by its own readings, which were not confirmed{error}"


def _value(study: Study, estimate: Estimate) -> float:
    return study.spec.objective.of(estimate.energy_j, estimate.latency_s)


def _error(study: Study, estimate: Estimate) -> float:
    """Standard error of the objective, in its unit."""
    weight = study.spec.objective.latency_weight
    relative = math.hypot(
        estimate.energy_error_j / estimate.energy_j, weight * estimate.latency_error_s / estimate.latency_s
    )
    return relative * _value(study, estimate)
