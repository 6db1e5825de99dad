"""A cheaper trial within the SLO that was not chosen says why. In `cheaper` that is trial 7."""

from __future__ import annotations

from dataclasses import replace

import pytest

from polythrottle.configuration import Configuration
from polythrottle.measurement import EnergyReading, LatencyReading
from polythrottle.objective import EnergyObjective
from polythrottle.reporting.facts import trial_facts
from polythrottle.reporting.result_json import result_json
from polythrottle.study import Strategy, Study, StudyState, Verdict
from polythrottle.suggestion import Candidate
from polythrottle.trial import Purpose, Trial, TrialState

MODEL = "cheaper by its own readings; the model, which uses every trial, ranks it behind the chosen one"


def _why(study: Study) -> str | None:
    return trial_facts(study)[6].why


def _at(study: Study) -> Configuration:
    return study.trials[6].configuration


def _reranked(study: Study, p: float | None) -> Study:
    """With this P(feasible) of the cheaper configuration in the last ranking; None leaves it out."""

    def changed(trial: Trial) -> Trial:
        if trial.suggestion is None or not trial.suggestion.ranking:
            return trial
        ranking = [
            Candidate(c.configuration, replace(c.prediction, p_feasible=p or 0.0))
            if c.configuration == _at(study)
            else c
            for c in trial.suggestion.ranking
            if p is not None or c.configuration != _at(study)
        ]
        return replace(trial, suggestion=replace(trial.suggestion, ranking=tuple(ranking)))

    return replace(study, trials=tuple(map(changed, study.trials)))


def _with_energy(study: Study, number: int, energy_j: float) -> Study:
    trial = study.trials[number - 1]
    assert trial.measurement is not None
    assert isinstance(trial.measurement.energy, EnergyReading)
    energy = replace(trial.measurement.energy, energy_j=energy_j)
    changed = replace(trial, measurement=replace(trial.measurement, energy=energy))
    return replace(study, trials=(*study.trials[: number - 1], changed, *study.trials[number:]))


def _repeated(study: Study, energy_j: float, state: TrialState = TrialState.COMPLETED) -> Study:
    """With one more window of the cheaper configuration."""
    repeat = replace(
        study.trials[6], number=len(study.trials) + 1, purpose=Purpose.CONFIRM, suggestion=None, state=state
    )
    more = replace(study, trials=(*study.trials, repeat))
    return _with_energy(more, repeat.number, energy_j)


def test_it_is_too_likely_to_miss_the_slo(cheaper: Study) -> None:
    assert _why(cheaper) == "P(feasible) 0.75 is below 0.95"
    assert cheaper.result is not None
    assert result_json(cheaper.result, cheaper)["trials"][6]["reason"] == _why(cheaper)


@pytest.mark.parametrize(("p", "text"), [(0.9497, "0.949"), (0.94999, "0.949"), (0.944, "0.94")])
def test_a_probability_just_below_does_not_read_like_the_bar(cheaper: Study, p: float, text: str) -> None:
    assert _why(_reranked(cheaper, p)) == f"P(feasible) {text} is below 0.95"


def test_one_that_the_ranking_left_out_was_unlikely(cheaper: Study) -> None:
    assert _why(_reranked(cheaper, None)) == "P(feasible) is below 0.95"


def test_a_stopped_search_asks_for_less(cheaper: Study) -> None:
    assert cheaper.result is not None
    result = replace(cheaper.result, state=StudyState.CANCELLED, p_feasible=0.8)
    stopped = replace(cheaper, result=result)
    assert _why(_reranked(stopped, 0.62)) == "P(feasible) 0.62 is below 0.7"
    assert _why(_reranked(stopped, 0.75)) == f"{MODEL} (within the error)"


def test_the_model_ranked_it_behind(cheaper: Study) -> None:
    assert _why(_reranked(cheaper, 0.97)) == f"{MODEL} (within the error)"
    assert _why(_with_energy(_reranked(cheaper, 0.97), 7, 0.500)) == MODEL


def test_a_strategy_without_a_model_has_no_model_to_blame(cheaper: Study) -> None:
    random = replace(_reranked(cheaper, 0.97), spec=replace(cheaper.spec, strategy=Strategy.RANDOM))
    assert _why(random) == "cheaper by its own readings, which were not confirmed (within the error)"
    assert (
        _why(_repeated(random, 0.601))
        == "cheaper by its own readings, but ranked behind the chosen one (within the error)"
    )


def test_a_lucky_window_is_not_the_mean(cheaper: Study) -> None:
    repeated = _repeated(cheaper, 0.690)
    assert _why(repeated) == "cheaper in this window, but not on average over its 2 windows"
    assert trial_facts(repeated)[-1].why is None, "the dearer window explains itself"


def test_a_repeat_that_went_wrong_is_the_reason(cheaper: Study) -> None:
    assert _why(_repeated(cheaper, 0.601, TrialState.ABORTED)) == "another trial of it was cut short"
    failed = _repeated(cheaper, 0.601, TrialState.FAILED)
    assert _why(failed) == "it failed when it was to be confirmed"
    over = _repeated(_repeated(cheaper, 0.601, TrialState.INFEASIBLE), 0.601, TrialState.INFEASIBLE)
    assert _why(over) == "over the SLO in its other windows"


def test_stock_is_kept_where_the_difference_may_be_chance(cheaper: Study) -> None:
    assert cheaper.result is not None
    assert cheaper.result.stock is not None
    stock = replace(cheaper.result.stock, energy_j=0.605)
    result = replace(cheaper.result, verdict=Verdict.KEEP_STOCK, chosen=stock, stock=stock, p_feasible=1.0)
    kept = replace(_reranked(cheaper, 0.97), result=result)
    assert _why(kept) == "cheaper than stock by no more than the error, so stock is kept"


def test_where_nothing_was_chosen_every_trial_within_the_slo_says_why(cheaper: Study) -> None:
    assert cheaper.result is not None
    result = replace(
        cheaper.result, verdict=Verdict.NO_FEASIBLE_FOUND, state=StudyState.INFEASIBLE, chosen=None
    )
    assert _why(replace(cheaper, result=replace(result, p_feasible=None))) == "P(feasible) 0.75 is below 0.95"


def test_nothing_is_passed_over_before_there_is_an_answer(cheaper: Study) -> None:
    assert _why(replace(cheaper, result=None)) is None


def test_the_chosen_and_the_dearer_ones_need_no_reason(cheaper: Study) -> None:
    why = {f.trial.number: f.why for f in trial_facts(cheaper)}
    assert [why[number] for number in (1, 2, 3, 6, 11, 12, 13, 14)] == [None] * 8


def test_the_objective_decides_what_is_cheaper(cheaper: Study) -> None:
    edp = replace(cheaper, spec=replace(cheaper.spec, objective=EnergyObjective.ENERGY_DELAY_PRODUCT))
    trial = cheaper.trials[6]
    assert trial.measurement is not None
    assert isinstance(trial.measurement.latency, LatencyReading)
    assert 0.601 * trial.measurement.latency.latency_s > 0.6120 * 0.0453
    assert _why(edp) is None
