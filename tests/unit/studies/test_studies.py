"""Studies over a database: nothing is lost, nothing is taken twice, nothing moves against the tables."""

from __future__ import annotations

from dataclasses import replace

import pytest

from polythrottle.clock import VirtualClock
from polythrottle.configuration import Configuration
from polythrottle.errors import InvalidInputError
from polythrottle.measurement import Unavailable
from polythrottle.studies import Aborted, Assignment, Failed, Finished, Measured
from polythrottle.study import Study, StudyState, Verdict
from polythrottle.trial import TRANSITIONS, Purpose, TrialState
from polythrottle_server import codec
from polythrottle_server.database import open_database
from polythrottle_server.studies import EmbeddedStudies


def steps(study):
    return [(t.purpose, t.configuration, t.measurement) for t in study.trials if t.state.finished]


def test_killed_at_any_point_a_study_goes_on_with_nothing_lost(lab, tmp_path):
    whole = lab.whole(slo="40ms")
    other = tmp_path / "other.sqlite3"
    device = lab.Device()
    study_id = lab.open(path=other).create(lab.spec("40ms")).id
    for _ in range(60):
        # A new process each time: it asks, half of the time it dies before it tells.
        studies = lab.open(path=other)
        answer = studies.ask(study_id)
        if isinstance(answer, Finished):
            break
        ran = device.ran.copy()
        outcome = device.run(answer)
        if answer.trial.attempt == 1 and answer.trial.number % 2:
            device.ran = ran  # the killed run's reading is lost with it
            continue
        studies.tell(study_id, answer.trial.number, answer.trial.attempt, outcome)
    resumed = lab.open(path=other).get(study_id)
    assert resumed.state is StudyState.CONVERGED
    assert [s[:2] for s in steps(resumed)] == [s[:2] for s in steps(whole)]
    assert resumed.result.chosen == whole.result.chosen
    assert {t.attempt for t in resumed.trials} == {1, 2}


def test_ask_gives_the_same_unfinished_trial_again(lab):
    studies = lab.open()
    study = studies.create(lab.spec())
    first = studies.ask(study.id)
    assert isinstance(first, Assignment)
    assert first.trial.state is TrialState.LEASED
    assert studies.ask(study.id) == first
    assert len(studies.get(study.id).trials) == 1


def test_a_trial_of_a_run_that_died_is_queued_with_the_next_attempt(lab):
    study = lab.open().create(lab.spec())
    dead = lab.open()
    lost = dead.ask(study.id).trial
    dead.heartbeat(study.id, lost.number, lost.attempt)

    studies = lab.open()
    again = studies.ask(study.id).trial
    assert (again.number, again.attempt) == (lost.number, lost.attempt + 1)
    moves = [(m.from_state, m.to_state) for m in studies.history(study.id)]
    assert moves == [
        (None, TrialState.QUEUED),
        (TrialState.QUEUED, TrialState.LEASED),
        (TrialState.LEASED, TrialState.RUNNING),
        (TrialState.RUNNING, TrialState.EXPIRED),
        (TrialState.EXPIRED, TrialState.QUEUED),
        (TrialState.QUEUED, TrialState.LEASED),
    ]
    assert not dead.heartbeat(study.id, lost.number, lost.attempt)
    with pytest.raises(InvalidInputError, match=r"Attempt 1 of trial 1 .* is stale"):
        dead.tell(study.id, lost.number, lost.attempt, Failed("late"))


def test_a_trial_that_kills_three_runs_has_failed_and_is_not_tried_again(lab):
    study = lab.open().create(lab.spec(baseline=False))
    device = lab.Device()
    lab.drive(lab.open(), study, device, trials=2)
    deadly = None
    for _ in range(12):
        studies = lab.open()
        answer = studies.ask(study.id)
        if deadly is None:
            deadly = answer.trial.configuration
        if answer.trial.configuration != deadly:
            break
    done = lab.drive(studies, study, device)
    mine = [t for t in done.trials if t.configuration == deadly]
    assert [(t.state, t.attempt) for t in mine] == [(TrialState.FAILED, 3)]
    assert "3 runs ended" in mine[0].reason
    assert done.result.verdict is Verdict.OPTIMAL


def outcomes(lab, assignment):
    measurement = lab.Device().measure(assignment.trial.configuration)
    return [
        Measured(measurement),
        Aborted(replace(measurement, energy=Unavailable("cut short")), "too slow"),
        Failed("the clock was refused"),
        Measured(replace(measurement, energy=Unavailable("the rail is off"))),
    ]


@pytest.mark.parametrize("which", range(4))
def test_the_same_outcome_twice_changes_nothing_and_another_one_is_refused(lab, which):
    studies = lab.open()
    study = studies.create(lab.spec())
    assignment = studies.ask(study.id)
    possible = outcomes(lab, assignment)
    once = studies.tell(study.id, 1, 1, possible[which])
    moves = studies.history(study.id)
    assert studies.tell(study.id, 1, 1, possible[which]) == once
    assert studies.history(study.id) == moves
    for other in possible[:which] + possible[which + 1 :]:
        with pytest.raises(InvalidInputError, match="already ended as"):
            studies.tell(study.id, 1, 1, other)
    # And a new process agrees.
    assert lab.open().tell(study.id, 1, 1, possible[which]) == once


def test_a_repeated_tell_is_accepted_after_the_study_has_ended(lab):
    study = lab.whole(slo="40ms")
    first = study.trials[0]
    assert lab.open().tell(study.id, 1, 1, Measured(first.measurement)) == study


def test_a_window_without_energy_or_latency_has_failed_with_the_reason(lab):
    studies = lab.open()
    study = studies.create(lab.spec())
    measurement = lab.Device().measure(studies.ask(study.id).trial.configuration)
    told = studies.tell(study.id, 1, 1, Measured(replace(measurement, energy=Unavailable("rail is off"))))
    assert told.trials[0].state is TrialState.FAILED
    assert told.trials[0].reason == "No energy: rail is off"
    studies.ask(study.id)
    told = studies.tell(study.id, 2, 1, Aborted(replace(measurement, latency=Unavailable("none")), "slow"))
    assert told.trials[1].state is TrialState.FAILED


def test_over_the_slo_is_infeasible(lab):
    study = lab.whole(suggester=lab.Suggester(stop_after=None), max_trials=99)
    for trial in study.trials:
        if trial.state.measured:
            over = trial.measurement.latency.latency_s > 0.03
            assert trial.state is (TrialState.INFEASIBLE if over else TrialState.COMPLETED)


def test_a_measurement_that_is_not_finite_is_refused_and_the_trial_stays(lab):
    studies = lab.open()
    study = studies.create(lab.spec())
    measurement = lab.Device().measure(studies.ask(study.id).trial.configuration)
    with pytest.raises(InvalidInputError, match="cannot be stored"):
        studies.tell(study.id, 1, 1, Measured(replace(measurement, duration_s=float("nan"))))
    assert studies.get(study.id).trials[0].state is TrialState.LEASED


@pytest.mark.parametrize(("number", "attempt"), [(2, 1), (1, 2), (0, 1)])
def test_a_trial_that_does_not_exist_is_refused(lab, number, attempt):
    studies = lab.open()
    study = studies.create(lab.spec())
    studies.ask(study.id)
    with pytest.raises(InvalidInputError):
        studies.tell(study.id, number, attempt, Failed("x"))


def test_create_gives_the_active_study_of_an_equal_spec(lab):
    studies = lab.open()
    study = studies.create(lab.spec(seed=1))
    assert lab.open().create(lab.spec(seed=1)) == study
    assert studies.create(lab.spec(seed=2)).id != study.id
    studies.cancel(study.id, "enough")
    assert studies.create(lab.spec(seed=1)).id != study.id


def test_whole_numbers_are_the_same_levels(lab):
    spec = lab.spec()
    whole = replace(spec, anchor=Configuration.of({k: int(v) for k, v in spec.anchor.items()}))
    studies = lab.open()
    assert studies.create(spec).id == studies.create(whole).id


def test_an_anchor_outside_the_space_is_refused(lab):
    spec = replace(lab.spec(), anchor=Configuration.of({"gpu_freq_mhz": 901.0, "mem_freq_mhz": 1600.0}))
    with pytest.raises(InvalidInputError, match="not in the search space"):
        lab.open().create(spec)


def test_cancel_keeps_the_best_so_far_and_resume_goes_on(lab):
    studies, device = lab.open(), lab.Device()
    study = lab.drive(studies, studies.create(lab.spec("40ms")), device, trials=7)
    asked = studies.ask(study.id)
    cancelled = studies.cancel(study.id, "Ctrl-C")
    assert cancelled.state is StudyState.CANCELLED
    assert cancelled.trials[-1].state is TrialState.CANCELLED
    assert not studies.heartbeat(study.id, asked.trial.number, 1)
    assert cancelled.result.verdict is Verdict.BEST_FEASIBLE
    assert cancelled.result.reason == "Ctrl-C"
    feasible = [c for c in set(device.ran) if c and device.latency_s(c) <= 0.04]
    assert cancelled.result.chosen.configuration == min(feasible, key=device.energy_j)
    assert studies.cancel(study.id, "again") == cancelled
    assert studies.ask(study.id) == Finished(cancelled.result)

    resumed = studies.resume(study.id)
    assert resumed.state is StudyState.ACTIVE
    assert resumed.result is None
    assert resumed.trials == cancelled.trials
    done = lab.drive(studies, resumed, device)
    assert done.result.verdict is Verdict.OPTIMAL
    # The trial that was cancelled is proposed and counted anew.
    assert done.result.n_search_trials == 6


def test_the_result_is_there_from_the_beginning(lab):
    studies = lab.open()
    study = studies.create(lab.spec("1.2x"))
    result = studies.result(study.id)
    assert result.verdict is Verdict.NO_FEASIBLE_FOUND
    assert result.slo == study.spec.slo
    study = lab.drive(studies, study, lab.Device(), trials=3)
    result = studies.result(study.id)
    assert result.verdict is Verdict.BEST_FEASIBLE
    assert result.chosen.configuration == study.spec.anchor
    assert result.slo.limit_s == pytest.approx(0.024)


def test_resume_raises_a_used_up_budget_and_searches_on(lab):
    suggester = lab.Suggester(stop_after=None)
    studies, device = lab.open(suggester), lab.Device()
    spec = lab.spec("40ms", batch=True, max_trials=3)
    study = lab.drive(studies, studies.create(spec), device)
    assert study.state is StudyState.EXHAUSTED
    told = study.trials
    study = lab.drive(studies, studies.resume(study.id, max_trials=5), device)
    assert study.trials[: len(told)] == told
    assert study.result.n_search_trials == 5
    study = lab.drive(studies, studies.resume(study.id), device)
    assert study.result.n_search_trials == 15
    assert study.state is StudyState.EXHAUSTED


def test_resume_of_a_time_budget(lab):
    studies, device = lab.open(lab.Suggester(stop_after=None)), lab.Device()
    spec = lab.spec("40ms", batch=True, max_time_s=120.0, max_trials=99)
    study = lab.drive(studies, studies.create(spec), device)
    first = study.result.n_search_trials
    study = lab.drive(studies, studies.resume(study.id), device)
    assert study.spec.max_time_s == pytest.approx(240.0)
    assert study.result.n_search_trials > first


def test_resume_of_an_active_study_changes_nothing_but_the_budget(lab):
    studies = lab.open()
    study = studies.create(lab.spec())
    assert studies.resume(study.id) == study
    assert studies.resume(study.id, max_trials=33).spec.max_trials == 33


def test_a_study_that_ended_for_good_is_neither_resumed_nor_cancelled(lab):
    study = lab.whole(slo="40ms")
    with pytest.raises(InvalidInputError, match=r"is converged .* create a new one"):
        lab.open().resume(study.id)
    with pytest.raises(InvalidInputError, match="is converged"):
        lab.open().cancel(study.id, "late")
    assert lab.open().get(study.id) == study


def test_resume_beside_an_active_study_of_the_same_spec_is_refused(lab):
    studies = lab.open()
    first = studies.create(lab.spec())
    studies.cancel(first.id, "stop")
    second = studies.create(lab.spec())
    with pytest.raises(InvalidInputError, match=second.id):
        studies.resume(first.id)


def test_get_by_prefix_and_by_nothing_known(lab, monkeypatch):
    ids = iter(["abcd1111", "abcd2222", "beef3333"])
    monkeypatch.setattr("polythrottle_server.studies.secrets.token_hex", lambda _: next(ids))
    studies = lab.open()
    made = [studies.create(lab.spec(seed=n)) for n in range(3)]
    assert studies.get("be") == made[2]
    assert studies.get("abcd1") == made[0]
    assert studies.get("abcd2222") == made[1]
    with pytest.raises(InvalidInputError, match="abcd1111 or abcd2222"):
        studies.get("abcd")
    for unknown in ("beet3333", "", "%", "_"):
        with pytest.raises(InvalidInputError, match="There is no study"):
            studies.get(unknown)
    assert studies.list() == tuple(made)


def test_an_id_in_use_is_not_given_twice(lab, monkeypatch):
    ids = iter(["abcd1111", "abcd1111", "beef3333"])
    monkeypatch.setattr("polythrottle_server.studies.secrets.token_hex", lambda _: next(ids))
    studies = lab.open()
    assert [studies.create(lab.spec(seed=n)).id for n in range(2)] == ["abcd1111", "beef3333"]


def test_plans(lab):
    device = lab.Device()
    lab.whole(device, slo="40ms")
    assert all(p.min_queries == 1000 for p in device.plans)
    assert [p.abort_latency_s for p in device.plans[:5]] == [None] * 4 + [0.08]
    safe = lab.Device()
    lab.whole(safe, slo="p95<40ms", safe=True)
    assert safe.plans[4].abort_latency_s == pytest.approx(0.06)
    assert safe.plans[4].min_queries == 200


@pytest.mark.parametrize(
    ("statistic", "queries"),
    [("p50", 200), ("mean", 200), ("p90", 200), ("p95", 200), ("p97", 334), ("p98", 500), ("p99.9", 10_000)],
)
def test_a_window_holds_ten_queries_beyond_the_percentile_and_time_for_them(lab, statistic, queries):
    studies = lab.open()
    plan = studies.ask(studies.create(lab.spec(f"{statistic}<40ms")).id).plan
    assert plan.min_queries == queries
    assert plan.max_window_s >= queries * 0.04


def test_a_failed_trial_costs_time_and_energy(lab):
    studies = lab.open()
    study = studies.create(lab.spec(max_time_s=100.0))
    studies.ask(study.id)
    failed = Failed("the clock was refused", 12.5, 40.0)
    told = studies.tell(study.id, 1, 1, failed)
    assert studies.tell(study.id, 1, 1, failed) == told
    with pytest.raises(InvalidInputError, match="already ended"):
        studies.tell(study.id, 1, 1, Failed("the clock was refused", 99.0, 40.0))
    result = lab.open().result(study.id)
    assert (result.search_time_s, result.search_energy_j) == (12.5, 40.0)
    assert codec.decode(Study, lab.open().export(study.id)) == told

    studies.ask(study.id)
    studies.tell(study.id, 2, 1, Failed("again", 1.0))
    result = studies.result(study.id)
    assert result.search_time_s == 13.5
    assert result.search_energy_j is None, "a second of unknown energy is not 0 J"


def test_failed_trials_use_up_the_budget_of_time(lab):
    class Slow(lab.Device):
        """Every search trial fails, after a while."""

        def run(self, assignment):
            if assignment.trial.purpose is Purpose.SEARCH:
                self.ran.append(assignment.trial.configuration)
                return Failed("refused", 200.0, 1.0)
            return super().run(assignment)

    study = lab.whole(Slow(), slo="40ms", max_time_s=150.0)
    # 4 windows before the search, then one failure and its repetition.
    assert len(study.of(Purpose.SEARCH)) == 2
    assert study.state is StudyState.EXHAUSTED
    assert "budget of time" in study.result.reason
    assert study.result.search_time_s >= 440.0


@pytest.mark.parametrize("cost", [(float("nan"), 1.0), (-1.0, 1.0), (1.0, float("inf"))])
def test_a_cost_that_cannot_be_is_refused_and_the_trial_stays(lab, cost):
    studies = lab.open()
    study = studies.create(lab.spec())
    studies.ask(study.id)
    with pytest.raises(InvalidInputError, match="cost of trial 1"):
        studies.tell(study.id, 1, 1, Failed("refused", *cost))
    assert studies.get(study.id).trials[0].state is TrialState.LEASED


def test_max_clocks_are_never_cut_short(lab):
    device = lab.Device()
    study = lab.whole(device, slo="40ms")
    for configuration, plan in zip(device.ran, device.plans, strict=True):
        if configuration == study.spec.anchor:
            assert plan.abort_latency_s is None


def test_every_move_is_told_after_it_was_written(lab):
    seen = []
    studies = lab.open()

    def listen(event):
        stored = lab.open().get(event.study.id)
        seen.append((event, stored))

    studies = EmbeddedStudies(open_database(lab.path), lab.Suggester(), VirtualClock(), listen)
    study = lab.drive(studies, studies.create(lab.spec("40ms")), lab.Device())
    moves = studies.history(study.id)
    trial_events = [e for e, _ in seen if e.trial is not None]
    assert [(e.trial.number, e.trial.state) for e in trial_events] == [(m.number, m.to_state) for m in moves]
    assert seen[0][0].trial is None
    assert seen[-1][1].result == study.result
    for move in moves:
        assert move.from_state is None or move.to_state in TRANSITIONS[move.from_state]


def test_export_reads_back(lab):
    study = lab.whole(slo="40ms")
    assert codec.decode(Study, lab.open().export(study.id)) == study


def test_two_askers_get_one_trial(lab):
    """Both work out the next trial; the second to write finds it there."""
    first, second = lab.open(), lab.open()
    study = first.create(lab.spec(baseline=False))
    lab.drive(first, study, lab.Device(), trials=2)

    class Nested(lab.Suggester):
        def suggest(self, question):
            second.ask(study.id)
            return super().suggest(question)

    third = EmbeddedStudies(open_database(lab.path), Nested(), VirtualClock())
    third.ask(study.id)
    search = first.get(study.id).of(Purpose.SEARCH)
    assert len(search) == 1
