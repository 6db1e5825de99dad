"""The first of two phases: a stage alone, its knob held from then on, and everything else as ever."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from polythrottle.configuration import Configuration, Knob, SearchSpace
from polythrottle.measurement import EnergyReading, LatencyReading, Measurement, Provenance, Scope
from polythrottle.objective import LatencySlo
from polythrottle.optimizer.problem import Observation
from polythrottle.studies import Aborted, Assignment, Failed, Measured, Outcome
from polythrottle.study import FirstStage, Strategy, Study, StudySpec, StudyState
from polythrottle.suggestion import StopAdvice, Suggestion
from polythrottle.trial import Purpose, TrialState
from polythrottle_server import two_phase
from polythrottle_server.codec import decode, encode, spec_digest
from polythrottle_server.database import open_database
from polythrottle_server.plan import plan_for
from polythrottle_server.suggesting import InProcessSuggester
from tests.unit.studies.conftest import Laboratory, WalkingSuggester

CPU = Knob.of("cpu_freq_mhz", [500, 800, 1100, 1400, 1700, 2000])
GPU = Knob.of("gpu_freq_mhz", [300, 450, 600, 750, 900])
BATCH = Knob.of("batch_size", [1, 2, 4])
STAGE = FirstStage("preprocessing", "cpu_freq_mhz")
ERROR = 0.004


@dataclass
class StagedDevice:
    """At max clocks and batch 1 a CPU stage of 2 ms and a model of 18 ms; it is cheapest at 800 MHz."""

    share: float = 0.1
    fails_at: float | None = None
    fails_alone: bool = False
    error: float = ERROR

    def __post_init__(self) -> None:
        self.ran: list[Assignment] = []

    def stage(self, cpu: float) -> tuple[float, float]:
        """Seconds and joules."""
        clock = cpu / 2000.0
        seconds = 0.02 * self.share * (0.8 / clock + 0.2)
        return seconds, seconds * (2.0 + 10.0 * clock**2.6)

    def model(self, gpu: float, batch: float) -> tuple[float, float]:
        clock = gpu / 900.0
        seconds = 0.02 * (1.0 - self.share) * (0.4 + 0.6 * batch) / clock
        return seconds, seconds * (2.0 + 8.0 * clock**3) / batch

    def run(self, assignment: Assignment) -> Outcome:
        self.ran.append(assignment)
        c, plan = assignment.trial.configuration, assignment.plan
        cpu = float(c.get("cpu_freq_mhz", 2000.0))
        if self.fails_at == cpu or (self.fails_alone and plan.stage is not None):
            return Failed("the stage cannot be served alone", 1.0)
        seconds, joules = self.stage(cpu)
        if plan.stage is None:
            more_s, more_j = self.model(float(c.get("gpu_freq_mhz", 900.0)), float(c.get("batch_size", 1.0)))
            seconds, joules = seconds + more_s, joules + more_j
        measurement = Measurement(
            requested=c,
            accepted=c,
            observed=c,
            energy=EnergyReading(
                joules, self.error * joules, "formula", Scope.BOARD, Provenance.EMULATED, 10.0
            ),
            latency=LatencyReading(seconds, self.error * seconds, "p99", 1000, True, Provenance.EMULATED),
            started_s=10.0 * len(self.ran),
            duration_s=10.0,
            total_energy_j=1000 * joules,
        )
        limit_s = plan.abort_latency_s
        if limit_s is not None and seconds > limit_s:
            return Aborted(replace(measurement, aborted_reason="too slow"), "too slow")
        return Measured(measurement)


def spec(slo: str = "30ms", **changes) -> StudySpec:
    space = SearchSpace((GPU, CPU, BATCH))
    values = {
        "space": space,
        "anchor": Configuration.of({**space.highest(), "batch_size": 1.0}),
        "first_stage": STAGE,
        "slo": LatencySlo.parse(slo),
        **changes,
    }
    return replace(Laboratory.spec(Laboratory.__new__(Laboratory)), **values)


class Walking(WalkingSuggester):
    """Walks each space it is asked about; stops a stage after `stage_stop` levels."""

    def __init__(self, stage_stop: int | None = None, stop_after: int | None = 6) -> None:
        super().__init__(stop_after)
        self.stage_stop = stage_stop

    def suggest(self, question):
        found = super().suggest(question)
        if len(question.problem.space.knobs) > 1:
            return found
        known = [o for o in question.observations if isinstance(o, Observation)]
        stop = self.stage_stop is not None and len(known) >= self.stage_stop
        return replace(found, stop=StopAdvice(stop, "stage", len(known), self.stage_stop or 0))


@pytest.fixture
def suggester() -> Walking:
    return Walking()


def run(lab, device: StagedDevice, suggester, trials: int = 200, **changes) -> Study:
    studies = lab.open(suggester)
    return lab.drive(studies, studies.create(spec(**changes)), device, trials)


def stage_trials(study: Study):
    return study.of(Purpose.STAGE)


def levels(study: Study) -> list[float]:
    return [t.configuration["cpu_freq_mhz"] for t in stage_trials(study)]


def test_the_stage_comes_after_max_clocks_and_before_the_search(lab, suggester):
    study = run(lab, StagedDevice(), suggester)
    purposes = list(dict.fromkeys(t.purpose for t in study.trials))
    assert purposes[:4] == [Purpose.BASELINE, Purpose.ANCHOR, Purpose.STAGE, Purpose.SEARCH]
    assert study.state in (StudyState.CONVERGED, StudyState.EXHAUSTED)


def test_its_trials_set_nothing_but_its_knob_and_say_what_to_serve(lab, suggester):
    device = StagedDevice()
    run(lab, device, suggester)
    staged = [a for a in device.ran if a.trial.purpose is Purpose.STAGE]
    assert staged
    assert all(set(a.trial.configuration) == {"cpu_freq_mhz"} for a in staged)
    assert all(a.plan.stage == "preprocessing" for a in staged)
    assert all(a.plan.stage is None for a in device.ran if a.trial.purpose is not Purpose.STAGE)


def test_the_highest_level_is_first_and_the_best_is_measured_once_more(lab, suggester):
    study = run(lab, StagedDevice(), suggester)
    assert levels(study)[0] == 2000.0
    assert sorted(levels(study)[:-1], reverse=True) == [2000.0, 1700.0, 1400.0, 1100.0, 800.0, 500.0]
    assert levels(study)[-1] == 800.0
    assert two_phase.held_level(study) == 800.0


def test_from_then_on_its_knob_is_held_except_at_max_clocks(lab, suggester):
    study = run(lab, StagedDevice(), suggester)
    searched = {t.configuration for t in study.of(Purpose.SEARCH, Purpose.CONFIRM)} - {study.spec.anchor}
    assert searched
    assert {c["cpu_freq_mhz"] for c in searched} == {800.0}
    assert study.result is not None
    assert study.result.chosen is not None
    assert study.result.chosen.configuration["cpu_freq_mhz"] == 800.0
    assert "cpu" in str(study.result.chosen.configuration).lower()


def test_the_optimiser_is_asked_for_one_knob_and_then_for_the_rest(lab, suggester):
    study = run(lab, StagedDevice(), suggester)
    first = [q for q in suggester.questions if q.problem.space.names == ("cpu_freq_mhz",)]
    rest = [q for q in suggester.questions if q.problem.space.names != ("cpu_freq_mhz",)]
    assert first
    assert rest
    whole = study.spec.space
    for question in rest:
        space = question.problem.space
        assert space.names == whole.names
        assert len(space) == 5 * 3 + 1  # 5 GPU levels × 3 batches, and max clocks
        for observation in question.observations:
            assert observation.configuration in space


def test_max_clocks_stay_in_what_is_searched_at_the_smallest_batch_too(lab, suggester):
    anchor = Configuration.of({**spec().anchor, "batch_size": 2.0})
    study = run(lab, StagedDevice(), suggester, anchor=anchor, slo="60ms")
    assert two_phase.held_level(study) == 800.0
    space = two_phase.space_of(study)
    assert anchor in space
    assert Configuration.of({**anchor, "batch_size": 1.0}) in space
    assert len(space) == 5 * 3 + 2


def test_what_the_stage_measured_teaches_nothing_about_the_workload(lab, suggester):
    study = run(lab, StagedDevice(), suggester)
    rest = [q for q in suggester.questions if len(q.problem.space.names) > 1]
    assert all(set(o.configuration) == set(study.spec.space.names) for q in rest for o in q.observations)
    anchor = next(o for o in rest[-1].observations if o.configuration == study.spec.anchor)
    assert anchor.latency_s == pytest.approx(0.02, rel=0.02)
    assert study.result is not None
    assert study.result.max_clocks is not None
    assert study.result.max_clocks.latency_s == pytest.approx(0.02, rel=0.02)


def test_its_cost_counts_but_not_against_the_budget_of_trials(lab, suggester):
    study = run(lab, StagedDevice(), suggester, max_trials=4)
    assert study.result is not None
    assert study.result.n_search_trials == 4
    assert study.result.search_time_s == pytest.approx(10.0 * len(study.trials))
    assert study.result.search_energy_j == pytest.approx(
        sum(t.measurement.total_energy_j for t in study.trials)
    )


def test_the_answer_says_what_the_first_phase_did(lab, suggester):
    study = run(lab, StagedDevice(), suggester)
    assert study.result is not None
    text = study.result.reason
    assert "The first phase held CPU 800 MHz: preprocessing alone takes" in text
    assert "at 2000." in text


# Its part of the SLO


def test_it_may_use_half_of_the_slack(lab, suggester):
    study = run(lab, StagedDevice(), suggester, slo="24ms")
    limit_s = two_phase.limit_s(study)
    # 20 ms at max clocks, 2 of them the stage's: half of the other 4 is its own.
    assert limit_s == pytest.approx(0.004, rel=0.02)
    # 800 MHz takes 4.4 ms: over; 1100 takes 3.3 ms.
    assert two_phase.held_level(study) == 1100.0
    states = {t.configuration["cpu_freq_mhz"]: t.state for t in stage_trials(study)[:-1]}
    assert states[800.0] is TrialState.INFEASIBLE
    assert states[1100.0] is TrialState.COMPLETED


def test_without_slack_the_highest_level_is_held_and_the_whole_space_is_not_lost(lab, suggester):
    study = run(lab, StagedDevice(), suggester, slo="20.05ms")
    assert two_phase.held_level(study) == 2000.0
    space = two_phase.space_of(study)
    assert space.knob("cpu_freq_mhz").levels == (2000.0,)
    assert len(space) == 5 * 3
    assert study.spec.anchor in space


def test_a_relative_slo_is_shared_in_the_same_way(lab, suggester):
    study = run(lab, StagedDevice(), suggester, slo="1.2x")
    assert two_phase.limit_s(study) == pytest.approx(0.004, rel=0.02)


def test_a_window_far_beyond_its_part_is_cut_short(lab, suggester):
    study = run(lab, StagedDevice(share=0.5), suggester, slo="23ms")
    # 10 ms at the highest level, 11.5 allowed: twice that is less than the 34 ms of 500 MHz alone.
    cut = [t.configuration["cpu_freq_mhz"] for t in stage_trials(study) if t.state is TrialState.ABORTED]
    assert cut == [500.0]
    assert study.result is not None
    assert study.result.chosen is not None


# What may go wrong


def test_a_level_that_fails_is_tried_twice_and_then_left(lab, suggester):
    study = run(lab, StagedDevice(fails_at=1100.0), suggester)
    assert levels(study).count(1100.0) == 2
    assert two_phase.held_level(study) == 800.0


def test_a_stage_that_cannot_be_measured_is_given_up_and_said(lab, suggester):
    study = run(lab, StagedDevice(fails_alone=True), suggester)
    assert len(stage_trials(study)) == 2
    assert two_phase.held_level(study) is None
    assert not two_phase.is_open(study)
    assert two_phase.space_of(study) == study.spec.space
    assert study.result is not None
    assert study.result.chosen is not None
    assert "preprocessing stage could not be measured alone (the stage cannot be served alone)" in (
        study.result.reason
    )


def test_it_ends_when_the_optimiser_says_so(lab):
    study = run(lab, StagedDevice(), Walking(stage_stop=3))
    assert levels(study)[:-1] == [2000.0, 1700.0, 1400.0]
    assert two_phase.held_level(study) == 1400.0


def many_levels() -> SearchSpace:
    return SearchSpace((GPU, Knob.of("cpu_freq_mhz", [100.0 * i for i in range(1, 21)]), BATCH))


@pytest.mark.parametrize(("strategy", "tried"), [(Strategy.FLAT, two_phase.MOST_LEVELS), (Strategy.GRID, 20)])
def test_it_tries_so_many_levels_at_most_unless_every_one_is_wanted(lab, suggester, strategy, tried):
    study = run(lab, StagedDevice(), suggester, space=many_levels(), strategy=strategy, slo="100ms")
    assert len(set(levels(study))) == tried


def test_it_ends_with_the_budget_of_time(lab, suggester):
    study = run(lab, StagedDevice(), suggester, max_time_s=65.0)
    # 40 s for stock and max clocks: three levels, and the one that is held.
    assert 2 <= len(levels(study)) <= 4
    assert study.state is StudyState.EXHAUSTED


def test_a_study_that_was_killed_goes_on_with_the_same_decision(lab):
    device = StagedDevice()
    whole = run(lab, device, Walking())
    for stopped_after in range(2, len(whole.trials), 6):
        path = lab.path.with_name(f"{stopped_after}.sqlite3")
        studies = lab.open(Walking(), path)
        study = lab.drive(studies, studies.create(spec()), StagedDevice(), stopped_after)
        again = lab.open(Walking(), path)
        done = lab.drive(again, again.get(study.id), StagedDevice())
        assert two_phase.held_level(done) == two_phase.held_level(whole)
        assert [t.configuration for t in done.trials] == [t.configuration for t in whole.trials]


def test_a_cancelled_study_is_resumed_within_the_first_phase(lab):
    studies = lab.open(Walking())
    study = lab.drive(studies, studies.create(spec()), StagedDevice(), 6)
    assert two_phase.is_open(study)
    studies.cancel(study.id, "by the user")
    assert studies.get(study.id).result is not None
    studies.resume(study.id)
    done = lab.drive(studies, studies.get(study.id), StagedDevice())
    assert two_phase.held_level(done) == 800.0


def test_no_prior_is_built_before_it_is_known_what_is_searched(lab):
    suggester = Walking()
    prepared = []
    suggester.prepare = lambda problem, _: prepared.append(problem)
    run(lab, StagedDevice(), suggester)
    assert prepared
    assert all(len(problem.space) == 16 for problem in prepared)


def test_a_study_in_one_phase_has_no_stage(lab, suggester):
    study = run(lab, StagedDevice(), suggester, first_stage=None)
    assert stage_trials(study) == ()
    assert two_phase.notes(study) == ()
    assert "first phase" not in (study.state_reason or "")


# What is stored


def test_a_spec_keeps_its_first_stage_and_an_older_one_has_none():
    tree = encode(StudySpec, spec())
    assert decode(StudySpec, tree) == spec()
    del tree["first_stage"]
    assert decode(StudySpec, tree) == spec(first_stage=None)
    assert spec_digest(spec()) != spec_digest(spec(first_stage=None))


def test_everything_reads_back_from_the_database(lab, suggester):
    study = run(lab, StagedDevice(), suggester)
    database = open_database(lab.path)
    assert lab.open().get(study.id) == study
    database.close()


def test_the_plan_of_the_first_stage_trial_is_never_cut_short(lab, suggester):
    study = run(lab, StagedDevice(), suggester, trials=5)
    first = stage_trials(study)[0]
    fresh = replace(study, trials=tuple(t for t in study.trials if t.number < first.number))
    assert plan_for(fresh, first).abort_latency_s is None
    assert plan_for(study, first).stage == "preprocessing"


# With the real optimiser


@pytest.mark.parametrize(
    "strategy", [Strategy.INFORMED, Strategy.POLYTHROTTLE, Strategy.FLAT, Strategy.RANDOM]
)
def test_every_strategy_can_take_two_phases(lab, strategy):
    study = run(lab, StagedDevice(), InProcessSuggester(), strategy=strategy, max_trials=8)
    level = two_phase.held_level(study)
    assert level is not None
    device = StagedDevice()
    least = min(device.stage(float(level))[1] for level in CPU.levels)
    assert device.stage(float(level))[1] <= 1.1 * least
    assert study.result is not None
    assert study.result.chosen is not None


def test_suggestions_of_the_first_phase_know_their_predictions(lab):
    study = run(lab, StagedDevice(), InProcessSuggester(), max_trials=6)
    chosen = stage_trials(study)[-1]
    assert isinstance(chosen.suggestion, Suggestion)
    assert chosen.suggestion.provenance == two_phase.CHOSEN
    assert chosen.configuration in [c.configuration for c in chosen.suggestion.ranking]
