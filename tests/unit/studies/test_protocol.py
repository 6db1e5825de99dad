"""The protocol, run to each of its ends on a device that is a formula."""

from __future__ import annotations

from dataclasses import replace

import pytest

from polythrottle.configuration import Configuration
from polythrottle.measurement import ASSUMED_RELATIVE_ERROR, Provenance
from polythrottle.optimizer.problem import FailedTrial, Observation
from polythrottle.reporting.wording import verdict_text
from polythrottle.study import Study, StudyState, Verdict
from polythrottle.trial import STOCK, Purpose, Trial, TrialState
from polythrottle_server.budget import NOTHING_SAFE
from polythrottle_server.evidence import estimate
from polythrottle_server.protocol import (
    SMALLEST_BATCH,
    Conclude,
    RunTrial,
    evidence,
    next_step,
    trial_seed,
)


def purposes(study: Study) -> str:
    return "".join(trial.purpose.value[0] for trial in study.trials)


def refuse(question):  # noqa: ARG001
    raise AssertionError("the optimiser was asked too early")


def test_baseline_then_max_clocks_then_search_then_confirmation(lab):
    suggester = lab.Suggester(stop_after=6)
    device = lab.Device()
    study = lab.whole(device, suggester, slo="40ms")

    # 2 × stock, 2 × max clocks, 5 more configurations, then (max clocks, winner, runner-up) twice.
    assert purposes(study) == "bbaa" + "sssss" + "cccccc"
    confirms = [t.configuration for t in study.of(Purpose.CONFIRM)]
    assert confirms[:3] == confirms[3:]
    assert confirms[0] == study.spec.anchor
    assert study.state is StudyState.CONVERGED
    result = study.result
    assert result.verdict is Verdict.OPTIMAL
    feasible = [c for c in set(device.ran) - {STOCK} if device.latency_s(c) <= 0.04]
    assert result.chosen.configuration == min(feasible, key=device.energy_j)
    assert result.chosen.n_windows == 3
    assert result.n_search_trials == 6
    assert result.n_trials == len(study.trials) == 15
    assert result.search_time_s == pytest.approx(150.0)
    spent = sum(t.measurement.total_energy_j for t in study.trials)
    assert result.search_energy_j == pytest.approx(spent)
    saved = result.stock.energy_j - result.chosen.energy_j
    assert result.payback_queries == pytest.approx(spent / saved, abs=1.0)
    assert "enough seen" in result.reason


def test_the_optimiser_is_not_asked_before_max_clocks_are_known(lab):
    spec = lab.spec()
    study = Study("x", spec, StudyState.ACTIVE, "now")
    assert next_step(study, refuse) == RunTrial(Purpose.BASELINE, STOCK)
    without = Study("x", lab.spec(baseline=False), StudyState.ACTIVE, "now")
    assert next_step(without, refuse) == RunTrial(Purpose.ANCHOR, spec.anchor)


def test_a_third_window_decides_between_two_that_differ(lab):
    class Unsteady(lab.Device):
        def measure(self, c):
            first = self.ran.count(c) == 1 and c != STOCK
            self.slower_after, self.slower_by = (0, 1.1) if first else (None, 1.0)
            return super().measure(c)

    study = lab.whole(Unsteady(), baseline=False, slo="40ms")
    assert len(study.of(Purpose.ANCHOR)) == 3


def test_a_relative_slo_is_fixed_by_the_anchor_trials_alone(lab):
    device = lab.Device(slower_after=6, slower_by=1.5)
    study = lab.whole(device, slo="1.2x")
    assert study.result.slo.limit_s == pytest.approx(1.2 * 0.02, rel=1e-6)


def test_infeasible_without_a_batch_knob_is_measured_once_more(lab):
    study = lab.whole(slo="10ms")
    assert purposes(study) == "bbaaa"
    assert study.state is StudyState.INFEASIBLE
    assert study.result.verdict is Verdict.NO_FEASIBLE_FOUND
    assert study.result.chosen is None
    assert study.result.closest.configuration == study.spec.anchor
    assert study.result.closest.latency_s == pytest.approx(0.02)
    assert "20 ms" in study.result.reason


def test_infeasible_at_the_smallest_batch_too(lab):
    study = lab.whole(slo="5ms", batch=True)
    assert purposes(study) == "bbaasc"
    smallest = study.trials[4]
    assert smallest.suggestion.provenance == SMALLEST_BATCH
    assert smallest.configuration["batch_size"] == 1.0
    # Measured in full, though it misses the SLO by far more than a search trial may.
    assert smallest.state is TrialState.INFEASIBLE
    assert study.result.closest.configuration == smallest.configuration
    assert study.result.closest.n_windows == 2


def test_the_smallest_batch_opens_the_search_where_max_clocks_miss(lab):
    study = lab.whole(slo="15ms", batch=True)
    assert purposes(study).startswith("bbaass")
    assert study.result.chosen.configuration["batch_size"] == 1.0
    assert study.result.chosen.latency_s <= 0.015


def test_keep_searching_goes_on_where_max_clocks_miss(lab):
    study = lab.whole(slo="10ms", keep_searching=True, max_trials=4)
    assert purposes(study) == "bbaasss"
    assert study.state is StudyState.EXHAUSTED
    assert study.result.verdict is Verdict.NO_FEASIBLE_FOUND
    assert study.result.closest is not None


def test_keep_stock_where_nothing_is_cheaper_beyond_the_error(lab):
    study = lab.whole(lab.Device(stock_energy=0.3))
    assert study.result.verdict is Verdict.KEEP_STOCK
    assert study.result.chosen.configuration == STOCK
    assert study.result.saving == 0.0
    assert study.result.payback_queries is None


def test_stock_that_misses_the_slo_is_not_kept(lab):
    study = lab.whole(lab.Device(stock_energy=0.3, stock_latency=2.0))
    assert study.result.verdict is Verdict.OPTIMAL
    assert study.of(Purpose.BASELINE)[0].state is TrialState.INFEASIBLE


def test_the_budget_counts_distinct_search_configurations_with_max_clocks(lab):
    study = lab.whole(suggester=lab.Suggester(stop_after=None), max_trials=4, slo="40ms")
    assert len(study.of(Purpose.SEARCH)) == 3
    assert study.state is StudyState.EXHAUSTED
    assert study.result.verdict is Verdict.BEST_FEASIBLE
    assert study.result.n_search_trials == 4
    assert "budget of trials" in study.result.reason


def test_the_time_budget_leaves_time_to_confirm(lab):
    study = lab.whole(suggester=lab.Suggester(stop_after=None), max_time_s=150.0, slo="40ms")
    assert "budget of time" in study.result.reason
    assert study.result.search_time_s <= 150.0
    assert study.of(Purpose.SEARCH)
    assert study.of(Purpose.CONFIRM)


def test_every_configuration_tried_ends_the_search(lab):
    study = lab.whole(suggester=lab.Suggester(stop_after=None), max_trials=99, slo="40ms")
    assert study.state is StudyState.EXHAUSTED
    assert study.result.n_search_trials == 10
    assert "Every configuration" in study.result.reason


def test_a_failed_trial_is_tried_once_more_and_then_left_alone(lab):
    spec = lab.spec()
    once = Configuration.of({**spec.anchor, "gpu_freq_mhz": 750.0})
    twice = Configuration.of({**spec.anchor, "mem_freq_mhz": 800.0})
    device = lab.Device()
    device.failing.update({once: 1, twice: 5})
    suggester = lab.Suggester()
    study = lab.whole(device, suggester)
    tried = [t.configuration for t in study.of(Purpose.SEARCH)]
    assert (tried.count(once), tried.count(twice)) == (2, 2)
    assert any(t.state.measured for t in study.trials if t.configuration == once)
    told = suggester.questions[-1].observations
    assert [o for o in told if isinstance(o, FailedTrial)] == [FailedTrial(twice)] * 2
    assert study.result.verdict is Verdict.OPTIMAL


def test_stock_that_cannot_be_measured_does_not_end_the_study(lab):
    device = lab.Device()
    device.failing[STOCK] = 9
    study = lab.whole(device)
    assert len(study.of(Purpose.BASELINE)) == 2
    assert study.result.stock is None
    assert study.result.payback_queries is None
    assert study.result.verdict is Verdict.OPTIMAL


def test_max_clocks_that_fail_twice_end_the_study_and_resume_tries_again(lab):
    device = lab.Device()
    anchor = lab.spec().anchor
    device.failing[anchor] = 2
    studies = lab.open()
    study = lab.drive(studies, studies.create(lab.spec()), device)
    assert study.state is StudyState.EXHAUSTED
    assert "the clock was refused" in study.result.reason
    study = lab.drive(studies, studies.resume(study.id), device)
    assert study.result.verdict is Verdict.OPTIMAL


def test_a_device_that_fails_at_everything_ends_the_study(lab):
    device = lab.Device()
    spec = lab.spec()
    for index in spec.space.indices():
        device.failing[spec.space.at(index)] = 9
    device.failing[spec.anchor] = 0
    study = lab.whole(device)
    assert study.state is StudyState.EXHAUSTED
    assert "6 trials in a row failed" in study.result.reason


def test_an_aborted_trial_is_a_censored_observation(lab):
    study = lab.whole(suggester=lab.Suggester(stop_after=None), max_trials=99, slo="22ms")
    aborted = [t for t in study.trials if t.state is TrialState.ABORTED]
    assert aborted
    by_configuration = {o.configuration: o for o in evidence(study)}
    for trial in aborted:
        observation = by_configuration[trial.configuration]
        assert isinstance(observation, Observation)
        assert observation.censored
        assert observation.latency_s > 2 * 0.022


def test_evidence_combines_the_windows_of_one_configuration_and_leaves_stock_out(lab):
    study = lab.whole(lab.Device(error=1e-5), slo="40ms")
    found = evidence(study)
    assert len({o.configuration for o in found}) == len(found) == 6
    assert STOCK not in {o.configuration for o in found}
    # No combined reading is believed beyond 0.3 %.
    assert all(o.latency_error == o.energy_error == pytest.approx(0.003) for o in found)


def test_observed_clocks_are_what_the_optimiser_learns_from(lab):
    class Sagging(lab.Device):
        def measure(self, c):
            measurement = super().measure(c)
            if c.get("gpu_freq_mhz") == 750.0:
                return replace(measurement, observed=Configuration.of({**c, "gpu_freq_mhz": 720.0}))
            return measurement

    study = lab.whole(Sagging(), slo="40ms")
    for observation in evidence(study):
        if observation.configuration["gpu_freq_mhz"] == 750.0:
            assert observation.achieved["gpu_freq_mhz"] == 720.0
        else:
            assert observation.achieved is None


def test_a_new_leader_is_confirmed_before_it_is_chosen(lab):
    class Flattered(lab.Device):
        """The first winner looks cheap once, and dear whenever it is measured again."""

        def energy_j(self, c):
            dear = c.get("gpu_freq_mhz") == 600.0 and c.get("mem_freq_mhz") == 1600.0
            again = self.ran.count(c) > 1
            return super().energy_j(c) * (3.0 if dear and again else 1.0)

    class Steady(lab.Suggester):
        """Believes the last windows: the flattered one falls to the end of the ranking."""

        def suggest(self, question):
            suggestion = super().suggest(question)
            if question.settings.progress_p_feasible < 0.9:
                return suggestion
            third = next(
                c
                for c in suggestion.ranking
                if c.configuration["gpu_freq_mhz"] == 750.0 and c.configuration["mem_freq_mhz"] == 800.0
            )
            rest = tuple(c for c in suggestion.ranking if c is not third)
            return replace(suggestion, ranking=(third, *rest))

    study = lab.whole(Flattered(), Steady(), slo="40ms")
    third = study.result.chosen.configuration
    assert third["gpu_freq_mhz"] == 750.0
    assert third["mem_freq_mhz"] == 800.0
    last = [t.configuration for t in study.of(Purpose.CONFIRM)][-4:]
    assert last == [study.spec.anchor, third] * 2


def test_confirmation_ends_even_if_the_leader_changes_for_ever(lab):
    class Fickle(lab.Suggester):
        """Each final answer puts another one first."""

        finals = 0

        def suggest(self, question):
            suggestion = super().suggest(question)
            if question.settings.progress_p_feasible < 0.9:
                return suggestion
            self.finals += 1
            turn = self.finals + 2
            return replace(suggestion, ranking=suggestion.ranking[turn:] + suggestion.ranking[:turn])

    suggester = Fickle(stop_after=14)
    study = lab.whole(suggester=suggester, slo="80ms", batch=True)
    assert study.state is StudyState.CONVERGED
    assert len(study.of(Purpose.CONFIRM)) == 6 + 4 + 4
    chosen = study.result.chosen.configuration
    repeats = [t for t in study.of(Purpose.CONFIRM) if t.configuration == chosen]
    assert chosen == study.spec.anchor or len(repeats) == 2


def test_seeds_differ_between_trials_and_not_between_runs(lab):
    spec = lab.spec(seed=7)
    seeds = [trial_seed(spec, n) for n in range(1, 50)]
    assert len(set(seeds)) == 49
    assert seeds == [trial_seed(lab.spec(seed=7), n) for n in range(1, 50)]
    assert seeds[0] != trial_seed(lab.spec(seed=8), 1)
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_the_same_study_gives_the_same_step(lab):
    suggester = lab.Suggester()
    studies = lab.open(suggester)
    study = lab.drive(studies, studies.create(lab.spec()), lab.Device(), trials=6)
    first = next_step(study, suggester.suggest)
    assert not isinstance(first, Conclude)
    assert first == next_step(study, suggester.suggest)
    assert suggester.questions[-1] == suggester.questions[-2]


# --- ends that are told as they are --------------------------------------------------------------


class Cautious:
    """A suggester that safe mode leaves nothing to try after so many observations."""

    def __new__(cls, lab, after):
        class Suggester(lab.Suggester):
            def suggest(self, question):
                suggestion = super().suggest(question)
                if len([o for o in question.observations if isinstance(o, Observation)]) < after:
                    return suggestion
                return replace(suggestion, configuration=None, provenance=NOTHING_SAFE, stop=None)

        return Suggester(stop_after=None)


def test_safe_mode_with_nothing_safe_left_does_not_say_that_everything_was_tried(lab):
    study = lab.whole(suggester=Cautious(lab, 5), slo="40ms", safe=True)
    assert study.state is StudyState.EXHAUSTED
    assert study.result.verdict is Verdict.BEST_FEASIBLE
    assert study.result.reason == (
        "Safe mode found nothing more that is safe enough to try after 5 search trials."
    )


def test_safe_mode_with_nothing_safe_left_and_no_answer_is_not_proof_that_there_is_none(lab):
    study = lab.whole(suggester=Cautious(lab, 1), slo="10ms", safe=True, keep_searching=True)
    assert study.result.verdict is Verdict.NO_FEASIBLE_FOUND
    assert study.state is StudyState.EXHAUSTED
    assert "Every configuration" not in study.result.reason


def test_the_optimiser_and_the_protocol_mean_the_same_words():
    pytest.importorskip("torch")
    from polythrottle.optimizer import informed

    assert informed.NOTHING_SAFE == NOTHING_SAFE


@pytest.mark.parametrize(("trials", "words"), [(1, "after 1 search trial."), (2, "after 2 search trials.")])
def test_one_trial_is_no_plural(lab, trials, words):
    study = lab.whole(suggester=lab.Suggester(stop_after=None), max_trials=trials, slo="40ms")
    assert study.result.reason.endswith(words)


def test_an_unreachable_relative_slo_is_infeasible_at_once(lab):
    study = lab.whole(slo="0.5x")
    assert purposes(study) == "bbaa"
    assert study.state is StudyState.INFEASIBLE
    assert study.result.verdict is Verdict.NO_FEASIBLE_FOUND
    assert "0.5x (10 ms)" in study.result.reason
    assert lab.whole(slo="0.5x", keep_searching=True, max_trials=4).result.n_search_trials == 4


def test_a_relative_slo_that_the_smallest_batch_meets_is_searched(lab):
    study = lab.whole(slo="0.75x", batch=True)
    assert purposes(study).startswith("bbaass")
    assert study.trials[4].suggestion.provenance == SMALLEST_BATCH
    assert study.result.chosen.latency_s <= 0.015


@pytest.mark.parametrize("trials", [2, 4])
def test_stock_is_not_said_to_have_won_before_anything_was_searched(lab, trials):
    studies, device = lab.open(), lab.Device(stock_energy=0.3)
    study = lab.drive(studies, studies.create(lab.spec("40ms")), device, trials=trials)
    result = studies.result(study.id)
    assert result.verdict is Verdict.BEST_FEASIBLE
    assert result.chosen.configuration == STOCK


def test_a_budget_of_one_trial_searches_nothing_and_finds_nothing_better(lab):
    study = lab.whole(lab.Device(stock_energy=0.3), max_trials=1, slo="40ms")
    assert not study.of(Purpose.SEARCH)
    assert study.result.verdict is Verdict.BEST_FEASIBLE
    assert study.result.chosen.configuration == STOCK


class Brief:
    """A device whose windows are too short for the percentile wherever `where` says so."""

    def __new__(cls, lab, where):
        class Device(lab.Device):
            def measure(self, c):
                measurement = super().measure(c)
                return replace(measurement, latency=replace(measurement.latency, bounded=not where(c)))

        return Device()


def test_an_answer_that_rests_on_too_few_queries_says_so(lab):
    sentence = "The windows held too few queries to bound p99.9."
    study = lab.whole(Brief(lab, lambda c: True), slo="p99.9<40ms")  # noqa: ARG005
    assert study.result.reason.endswith(sentence)
    chosen = study.result.chosen.configuration
    other = lab.whole(Brief(lab, lambda c: c != chosen), slo="p99.9<40ms", seed=1)
    assert other.result.chosen.configuration == chosen
    assert sentence not in other.result.reason


# --- a recorded table ----------------------------------------------------------------------------


class Recorded:
    """The formula as a table: the same value whenever it is read, without an error of its own."""

    def __new__(cls, lab):
        class Device(lab.Device):
            def measure(self, c):
                measurement = super().measure(c)
                return replace(
                    measurement,
                    energy=replace(
                        measurement.energy, standard_error_j=None, provenance=Provenance.AS_RECORDED
                    ),
                    latency=replace(
                        measurement.latency, standard_error_s=None, provenance=Provenance.AS_RECORDED
                    ),
                    total_energy_j=None,
                )

        return Device()


def recorded_study(lab, slo, **changes):
    spec = lab.spec(slo, baseline=False, **changes)
    spec = replace(spec, device=replace(spec.device, id="replay:one", provenance=Provenance.AS_RECORDED))
    studies, device = lab.open(lab.Suggester(stop_after=9)), Recorded(lab)
    return lab.drive(studies, studies.create(spec), device), device


def test_a_recorded_row_is_read_once_and_stays_as_uncertain_as_one_reading(lab):
    study, device = recorded_study(lab, "40ms", batch=True)
    assert purposes(study) == "a" + "s" * 8
    assert len(set(device.ran)) == len(device.ran)
    assert study.result.verdict is Verdict.OPTIMAL
    for found in (study.result.chosen, study.result.max_clocks):
        assert found.n_windows == 1
        assert found.energy_error_j == pytest.approx(ASSUMED_RELATIVE_ERROR * found.energy_j)
        assert found.latency_error_s == pytest.approx(ASSUMED_RELATIVE_ERROR * found.latency_s)
    assert "confirm" not in verdict_text(study.result, study.spec).replace("could not confirm", "")


def test_a_recorded_table_that_misses_the_slo_is_not_read_again_before_giving_up(lab):
    study, _ = recorded_study(lab, "10ms")
    assert purposes(study) == "a"
    assert study.state is StudyState.INFEASIBLE


def test_reading_a_stored_value_again_makes_it_no_surer(lab):
    study, device = recorded_study(lab, "40ms")
    again = Trial(
        1,
        Purpose.CONFIRM,
        study.spec.anchor,
        TrialState.COMPLETED,
        measurement=device.measure(study.spec.anchor),
    )
    more = lab.told(study, again, again)
    assert estimate(more, study.spec.anchor) == estimate(study, study.spec.anchor)
    assert evidence(more) == evidence(study)
