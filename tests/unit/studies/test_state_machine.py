"""Whatever is asked, told, killed or cancelled in whatever order: only legal moves are ever stored."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from polythrottle.configuration import Configuration
from polythrottle.errors import InvalidInputError
from polythrottle.measurement import Unavailable
from polythrottle.studies import Aborted, Assignment, Failed, Measured
from polythrottle.study import STUDY_TRANSITIONS, StudyState, Verdict
from polythrottle.trial import TRANSITIONS, IllegalTransitionError, Purpose, Trial, TrialState
from polythrottle_server.database import open_database, rows
from polythrottle_server.protocol import Conclude, next_step


def test_no_trial_state_is_without_an_exit():
    """Every state that is not final leads to a final one, and every state can be reached."""
    final = {state for state in TrialState if state.finished}
    assert final == {
        TrialState.COMPLETED,
        TrialState.INFEASIBLE,
        TrialState.ABORTED,
        TrialState.FAILED,
        TrialState.CANCELLED,
    }
    for state in TrialState:
        assert reachable(TRANSITIONS, state) & final
    assert reachable(TRANSITIONS, TrialState.QUEUED) == set(TrialState)


def test_no_study_state_is_without_an_exit():
    for state in StudyState:
        assert StudyState.SUPERSEDED in reachable(STUDY_TRANSITIONS, state)
    assert reachable(STUDY_TRANSITIONS, StudyState.ACTIVE) == set(StudyState)


def reachable(table, start):
    seen, ahead = {start}, [start]
    while ahead:
        for state in table[ahead.pop()] - seen:
            seen.add(state)
            ahead.append(state)
    return seen


@pytest.mark.parametrize("state", list(TrialState))
def test_a_trial_refuses_every_move_that_is_not_in_the_table(state):
    trial = Trial(1, Purpose.SEARCH, Configuration(()), state=state)
    for to in TrialState:
        if to in TRANSITIONS[state]:
            assert trial.moved(to).state is to
        else:
            with pytest.raises(IllegalTransitionError):
                trial.moved(to)


class Studies(RuleBasedStateMachine):
    """One study, and processes that come and go."""

    laboratory = None

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.lab = self.laboratory(self.folder / "s.sqlite3")
        self.device = self.lab.Device()
        self.given: list[Trial] = []

    def teardown(self):
        shutil.rmtree(self.folder)

    @initialize(slo=st.sampled_from(["40ms", "22ms", "10ms", "1.3x"]), baseline=st.booleans())
    def begin(self, slo, baseline):
        self.studies = self.lab.open()
        self.id = self.studies.create(self.lab.spec(slo, baseline=baseline, max_trials=6)).id

    @property
    def study(self):
        return self.studies.get(self.id)

    @rule()
    def ask(self):
        answer = self.studies.ask(self.id)
        if isinstance(answer, Assignment):
            assert answer.trial.state in (TrialState.LEASED, TrialState.RUNNING)
            if answer.trial not in self.given:
                self.given.append(answer.trial)
        else:
            assert answer.result.verdict in Verdict

    @rule(times=st.integers(1, 8))
    def run(self, times):
        self.lab.drive(self.studies, self.study, self.device, trials=times)

    @rule(kind=st.sampled_from("mafu"), which=st.integers(0, 30))
    def tell(self, kind, which):
        """Any outcome for any attempt that was ever handed out: right, late, repeated or contrary."""
        if not self.given:
            return
        trial = self.given[-1 - which % len(self.given)]
        measurement = self.device.measure(trial.configuration)
        outcome = {
            "m": Measured(measurement),
            "a": Aborted(replace(measurement, energy=Unavailable("cut short")), "too slow"),
            "f": Failed("refused"),
            "u": Measured(replace(measurement, energy=Unavailable("no rail"))),
        }[kind]
        before = self.study
        stored = before.trials[trial.number - 1]
        current = stored.attempt == trial.attempt and stored.state in (TrialState.LEASED, TrialState.RUNNING)
        try:
            after = self.studies.tell(self.id, trial.number, trial.attempt, outcome)
        except InvalidInputError:
            assert not current
            assert self.study == before
        else:
            assert current or after == before
            assert after.trials[trial.number - 1].state.finished
            assert self.studies.tell(self.id, trial.number, trial.attempt, outcome) == after

    @rule(which=st.integers(0, 30))
    def heartbeat(self, which):
        if self.given:
            trial = self.given[-1 - which % len(self.given)]
            alive = self.studies.heartbeat(self.id, trial.number, trial.attempt)
            stored = self.study.trials[trial.number - 1]
            assert alive == (stored.attempt == trial.attempt and stored.state is TrialState.RUNNING)

    @rule()
    def kill(self):
        before = self.study
        self.studies = self.lab.open()
        assert self.study == before

    @rule()
    def recover(self):
        self.studies.recover(self.id)

    @rule()
    def cancel(self):
        state = self.study.state
        if state in (StudyState.ACTIVE, StudyState.CANCELLED):
            assert self.studies.cancel(self.id, "enough").state is StudyState.CANCELLED
        else:
            with pytest.raises(InvalidInputError):
                self.studies.cancel(self.id, "enough")

    @rule()
    def resume(self):
        before = self.study
        if before.state in (StudyState.ACTIVE, StudyState.CANCELLED, StudyState.EXHAUSTED):
            after = self.studies.resume(self.id)
            assert after.state is StudyState.ACTIVE
            assert after.trials[: len(before.trials)] == before.trials
        else:
            with pytest.raises(InvalidInputError):
                self.studies.resume(self.id)

    @invariant()
    def the_history_holds_legal_moves_only_and_ends_where_the_trials_are(self):
        if not hasattr(self, "id"):
            return
        study = self.study
        state = {}
        attempt = {}
        for move in self.studies.history(self.id):
            assert move.from_state is state.get(move.number)
            assert move.from_state is None or move.to_state in TRANSITIONS[move.from_state]
            assert move.attempt >= attempt.get(move.number, 1)
            state[move.number], attempt[move.number] = move.to_state, move.attempt
        assert state == {t.number: t.state for t in study.trials}
        assert attempt == {t.number: t.attempt for t in study.trials}
        assert [t.number for t in study.trials] == list(range(1, len(study.trials) + 1))

    @invariant()
    def an_ended_study_has_an_answer_and_nothing_that_runs(self):
        if not hasattr(self, "id"):
            return
        study = self.study
        unfinished = [t for t in study.trials if not t.state.finished]
        assert len(unfinished) <= 1
        assert all((t.measurement is not None) or not t.state.measured for t in study.trials)
        if study.state is StudyState.ACTIVE:
            assert study.result is None
            assert self.studies.result(self.id).verdict in Verdict
        else:
            assert unfinished == []
            assert study.result is not None
            assert study.result.state is study.state
            assert (study.result.chosen is None) == (study.result.verdict is Verdict.NO_FEASIBLE_FOUND)


def test_the_state_machine(lab):
    from hypothesis.stateful import run_state_machine_as_test

    Studies.laboratory = type(lab)
    run_state_machine_as_test(
        Studies,
        settings=settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_an_illegal_move_is_not_stored(lab):
    """Even a program that builds the next state by hand, past `Trial.moved`, gets no further."""
    studies = lab.open()
    study = studies.create(lab.spec())
    trial = studies.ask(study.id).trial
    database = open_database(lab.path)
    for to in set(TrialState) - TRANSITIONS[trial.state]:
        with pytest.raises(IllegalTransitionError), database.writing() as session:
            rows.save_move(session, study.id, trial, replace(trial, state=to), 0.0)
    stale = replace(trial, state=TrialState.RUNNING)
    with pytest.raises(IllegalTransitionError), database.writing() as session:
        rows.save_move(session, study.id, stale, stale.moved(TrialState.FAILED), 0.0)
    assert studies.get(study.id).trials == (trial,)
    assert len(studies.history(study.id)) == 2


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    luck=st.lists(st.sampled_from("mmmmmaf"), min_size=30, max_size=30),
    slo=st.sampled_from(["40ms", "21ms", "10ms", "1.5x"]),
    batch=st.booleans(),
    keep_searching=st.booleans(),
    stop_after=st.sampled_from([None, 1, 4]),
)
def test_the_protocol_always_ends(lab, luck, slo, batch, keep_searching, stop_after):
    """Whatever comes of the trials, pure and in a bounded number of steps."""
    from polythrottle.study import Study

    device, suggester = lab.Device(), lab.Suggester(stop_after=stop_after)
    spec = lab.spec(slo, batch=batch, keep_searching=keep_searching, max_trials=12)
    study = Study("x", spec, StudyState.ACTIVE, "now")
    for count in range(80):
        step = next_step(study, suggester.suggest)
        if isinstance(step, Conclude):
            assert step.state in STUDY_TRANSITIONS[StudyState.ACTIVE]
            assert step.reason
            return
        measurement = device.measure(step.configuration)
        state, measurement = {
            "m": (TrialState.COMPLETED, measurement),
            "a": (TrialState.ABORTED, replace(measurement, energy=Unavailable("cut short"))),
            "f": (TrialState.FAILED, None),
        }[luck[count % len(luck)]]
        trial = Trial(
            1, step.purpose, step.configuration, state, suggestion=step.suggestion, measurement=measurement
        )
        study = lab.told(study, trial)
    raise AssertionError(f"no end: {[t.purpose.value for t in study.trials]}")
