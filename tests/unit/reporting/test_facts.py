from __future__ import annotations

from dataclasses import replace

import pytest

from polythrottle.measurement import LatencyReading, Measurement, Unavailable
from polythrottle.objective import EnergyObjective, LatencySlo
from polythrottle.reporting.facts import (
    Outcome,
    configuration_facts,
    pareto_front,
    slo_limit_s,
    trial_facts,
)
from polythrottle.study import Study
from polythrottle.suggestion import Candidate
from polythrottle.trial import TrialState


def _measurement(study: Study, number: int) -> Measurement:
    measurement = study.trials[number - 1].measurement
    assert measurement is not None
    return measurement


def test_every_rejected_trial_says_why(study: Study) -> None:
    why = {facts.trial.number: facts.why for facts in trial_facts(study)}
    assert why[4] == "over the SLO by 7.8 %"
    assert why[5] == "aborted: p99 above 75 ms after 50 queries"
    assert why[8] == "failed: mem_freq_mhz read back 2133 after 665.6 was written"
    assert why[6] is None


def test_the_best_so_far_ignores_stock_and_what_misses_the_slo(study: Study) -> None:
    best = [facts.best for facts in trial_facts(study)]
    assert [None if b is None else b.trials[0] for b in best][:7] == [None, 2, 3, 3, 3, 6, 6]


def test_the_best_so_far_is_a_mean_and_not_the_luckiest_window(study: Study) -> None:
    best = trial_facts(study)[-1].best
    assert best is not None
    assert best.trials == (6, 11, 14)
    assert best.energy_j == pytest.approx(0.6120, abs=0.0005)


def test_the_best_follows_the_objective(study: Study) -> None:
    edp = replace(study, spec=replace(study.spec, objective=EnergyObjective.ENERGY_DELAY_PRODUCT))
    best = trial_facts(edp)[6].best
    assert best is not None
    assert best.trials == (2,)


def test_a_repeat_is_held_against_what_the_model_said_of_it(study: Study) -> None:
    search, confirm = study.trials[6], study.trials[10]
    assert search.suggestion is not None
    assert search.suggestion.prediction is not None
    candidate = Candidate(confirm.configuration, replace(search.suggestion.prediction, energy_j=0.61))
    round_began = replace(search.suggestion, ranking=(candidate,))
    repeated = replace(confirm, suggestion=round_began)
    other = replace(study.trials[11], suggestion=round_began)
    facts = trial_facts(replace(study, trials=(search, repeated, other)))
    assert [f.prediction.energy_j if f.prediction else None for f in facts] == [0.622, 0.61, None]
    assert facts[1].expected_gain is None, "the gain was expected of the search, not of a repeat"


def test_an_aborted_trial_has_no_energy_but_a_lower_bound(study: Study) -> None:
    facts = trial_facts(study)[4]
    assert facts.outcome is Outcome.ABORTED
    assert facts.energy_j is None
    assert facts.latency_s == pytest.approx(0.0972)


def test_an_unavailable_energy_is_never_zero(study: Study) -> None:
    measurement = replace(_measurement(study, 6), energy=Unavailable("the meter gave no reading"))
    trial = replace(study.trials[5], measurement=measurement)
    (facts,) = trial_facts(replace(study, trials=(trial,)))
    assert facts.energy_j is None
    assert facts.best is None
    assert facts.why == "energy unavailable: the meter gave no reading"


def test_windows_of_one_configuration_become_one_point(study: Study) -> None:
    points = {point.trials: point for point in configuration_facts(trial_facts(study))}
    chosen = points[6, 11, 14]
    assert chosen.energy_j == pytest.approx(0.6120, abs=0.0005)
    assert chosen.energy_error_j < 0.0068
    assert points[2, 12].configuration == study.spec.anchor
    assert not any(1 in trials for trials in points), "stock is not a configuration of the space"


def test_a_relative_slo_takes_its_limit_from_max_clocks(active: Study) -> None:
    relative = replace(active, spec=replace(active.spec, slo=LatencySlo("p99", factor=1.5)))
    assert slo_limit_s(relative) == pytest.approx(1.5 * 0.0241)
    assert slo_limit_s(replace(relative, trials=relative.trials[:1])) is None


def test_the_pareto_front_holds_what_nothing_beats() -> None:
    assert pareto_front([(1, 9), (2, 5), (3, 7), (4, 5), (5, 1)]) == ((1, 9), (2, 5), (5, 1))
    assert pareto_front([]) == ()


def test_unfinished_and_cancelled_trials_are_told_apart(study: Study) -> None:
    trial = replace(study.trials[5], measurement=None)
    running = replace(trial, state=TrialState.RUNNING)
    cancelled = replace(trial, number=7, state=TrialState.CANCELLED, reason="the user stopped it")
    facts = trial_facts(replace(study, trials=(running, cancelled)))
    assert [one.outcome for one in facts] == [Outcome.UNFINISHED, Outcome.CANCELLED]
    assert facts[1].why == "cancelled: the user stopped it"


def test_too_few_queries_leave_the_statistic_unbounded(study: Study) -> None:
    measurement = _measurement(study, 6)
    assert isinstance(measurement.latency, LatencyReading)
    short = replace(measurement, latency=replace(measurement.latency, n_queries=400, bounded=False))
    (facts,) = trial_facts(replace(study, trials=(replace(study.trials[5], measurement=short),)))
    assert not facts.bounded
