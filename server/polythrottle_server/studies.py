"""Studies over a database: the state machine that `polythrottle tune` embeds and a server serves.

What the optimiser has to say is worked out outside any transaction; then the study is read again under
the write lock and the move is written, with its history, in that one transaction.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from sqlmodel import Session

from polythrottle.clock import Clock
from polythrottle.errors import InvalidInputError, StateError, did_you_mean
from polythrottle.studies import Assignment, Finished, Outcome, Studies
from polythrottle.study import Result, Study, StudySpec, StudyState
from polythrottle.trial import Trial, TrialState
from polythrottle_server import protocol, two_phase
from polythrottle_server.codec import Json, encode
from polythrottle_server.database import rows
from polythrottle_server.database.opening import Database
from polythrottle_server.database.rows import Move
from polythrottle_server.evidence import MAX_ATTEMPTS
from polythrottle_server.moves import (
    check_move,
    leftover,
    raised,
    same_outcome,
    settled,
    trial_of,
    unfinished,
)
from polythrottle_server.plan import plan_for
from polythrottle_server.suggesting import Suggester
from polythrottle_server.verdict import conclude, concluded


@dataclass(frozen=True)
class StudyEvent:
    """Something that was written: a move of a trial, or of the study where `trial` is None."""

    study: Study
    trial: Trial | None = None


_Events = list[StudyEvent]


class EmbeddedStudies(Studies):
    """The `Studies` interface in this process.

    One process at a time runs the trials of a device; whoever holds the device makes sure of that. So an
    unfinished trial that this object has not handed out belongs to a run that died: `ask` puts it back
    in the queue with the next attempt and hands it out again (`recover` does only the first). Lost
    `MAX_ATTEMPTS` times, it has failed.

    `on_event` is called after each commit, in the order of the moves.
    """

    def __init__(
        self,
        database: Database,
        suggester: Suggester,
        clock: Clock,
        on_event: Callable[[StudyEvent], None] | None = None,
    ) -> None:
        self._database = database
        self._suggester = suggester
        self._clock = clock
        self._on_event = on_event
        self._handed_out: set[tuple[str, int, int]] = set()

    # --- the interface -----------------------------------------------------------------------

    def create(self, spec: StudySpec) -> Study:
        """A new study, or the active one of an equal spec.

        Raises:
            InvalidInputError: the anchor is not in the space, or a number is not finite.
        """
        if spec.anchor not in spec.space:
            raise InvalidInputError(f"Max clocks ({spec.anchor}) are not in the search space.")
        if spec.max_trials < 1:
            raise InvalidInputError(f"A study needs at least 1 trial, not {spec.max_trials}.")
        with self._database.writing() as session:
            existing = rows.active_study_id(session, spec)
            study = (
                self._load(session, existing)
                if existing is not None
                else rows.insert_study(session, _new_id(session), spec)
            )
        if existing is None:
            self._tell_listener(StudyEvent(study))
        self._prepare(study)
        return study

    def ask(self, study_id: str) -> Assignment | Finished:
        """The next trial; the same one again while it is unfinished."""
        study = self.get(study_id)
        if study.state is StudyState.ACTIVE:
            self._prepare(study)
            study = self.recover(study.id)
        while True:
            if study.state is not StudyState.ACTIVE:
                assert study.result is not None
                return Finished(study.result)
            waiting = unfinished(study)
            if waiting:
                return self._hand_out(study, waiting[0])
            step = protocol.next_step(study, self._suggester.suggest)
            study = self._take(study, step)

    def tell(self, study_id: str, number: int, attempt: int, outcome: Outcome) -> Study:
        """Report a trial. Telling the same outcome twice changes nothing.

        Raises:
            InvalidInputError: there is no such trial, the attempt was given to another run, or the trial
                has already ended otherwise.
        """
        study_id = self._full_id(study_id)
        events: _Events = []
        with self._database.writing() as session:
            study = self._load(session, study_id)
            trial = trial_of(study, number)
            if trial.state.finished and trial.attempt == attempt:
                if not same_outcome(trial, outcome):
                    raise InvalidInputError(
                        f"Trial {number} of study {study_id} has already ended as {trial.state.value}; "
                        "another outcome for it is refused."
                    )
                return study
            if trial.attempt != attempt or trial.state not in (TrialState.LEASED, TrialState.RUNNING):
                raise InvalidInputError(
                    f"Attempt {attempt} of trial {number} of study {study_id} is stale (it is "
                    f"{trial.state.value} in attempt {trial.attempt}); its outcome is refused."
                )
            if trial.state is TrialState.LEASED:
                study, trial = self._move(session, study, trial, trial.moved(TrialState.RUNNING), events)
            study, _ = self._move(session, study, trial, settled(study, trial, outcome), events)
        self._tell_listener(*events)
        return study

    def heartbeat(self, study_id: str, number: int, attempt: int) -> bool:
        """Say that the trial runs. False: stop, it was taken away or cancelled."""
        study_id = self._full_id(study_id)
        events: _Events = []
        with self._database.writing() as session:
            study = self._load(session, study_id)
            trial = trial_of(study, number)
            if trial.attempt != attempt:
                return False
            if trial.state is TrialState.LEASED:
                study, trial = self._move(session, study, trial, trial.moved(TrialState.RUNNING), events)
        self._tell_listener(*events)
        return trial.state is TrialState.RUNNING

    def result(self, study_id: str) -> Result:
        """The answer so far, or the final one."""
        study = self.get(study_id)
        return study.result if study.result is not None else conclude(study)

    def get(self, study_id: str) -> Study:
        """The study with this id, or the only one whose id begins so.

        Raises:
            InvalidInputError: there is none, or more than one; those are named.
        """
        with self._database.reading() as session:
            return self._load(session, self._resolve(session, study_id))

    def list(self) -> tuple[Study, ...]:
        """Every study, oldest first."""
        with self._database.reading() as session:
            return tuple(self._load(session, study_id) for study_id in rows.study_ids(session))

    def cancel(self, study_id: str, reason: str) -> Study:
        """End the study with the best so far; unfinished trials are cancelled. Twice changes nothing.

        Raises:
            InvalidInputError: the study has already ended otherwise.
        """
        study_id = self._full_id(study_id)
        events: _Events = []
        with self._database.writing() as session:
            study = self._load(session, study_id)
            if study.state is StudyState.CANCELLED:
                return study
            check_move(study, StudyState.CANCELLED)
            for trial in unfinished(study):
                study, _ = self._move(
                    session, study, trial, trial.moved(TrialState.CANCELLED, reason=reason), events
                )
            study = concluded(study, StudyState.CANCELLED, reason)
            rows.save_study(session, study)
        self._tell_listener(*events, StudyEvent(study))
        return study

    def resume(
        self, study_id: str, *, max_trials: int | None = None, max_time_s: float | None = None
    ) -> Study:
        """Take a cancelled or exhausted study back to active, with everything it knows.

        A budget that is used up and not given here is raised: by `RESUME_TRIALS` trials, by the same
        time again. An active study is only given the budget. A device that could not be measured gets
        one more try.

        Raises:
            InvalidInputError: the study ended for good, or another of the same spec is active.
        """
        study_id = self._full_id(study_id)
        events: _Events = []
        with self._database.writing() as session:
            study = self._load(session, study_id)
            spec = raised(study, max_trials, max_time_s)
            if study.state is not StudyState.ACTIVE:
                check_move(study, StudyState.ACTIVE)
            other = rows.active_study_id(session, spec)
            if other not in (None, study.id):
                raise InvalidInputError(
                    f"Study {study.id} cannot be resumed: study {other} of the same spec is active; "
                    "cancel that one first."
                )
            failed = study.state is not StudyState.ACTIVE and protocol.gave_up(study) is not None
            study = replace(study, spec=spec, state=StudyState.ACTIVE, state_reason=None, result=None)
            rows.save_study(session, study)
            last = leftover(study.trials)
            if failed and last is not None:
                again = Trial(
                    len(study.trials) + 1, last.purpose, last.configuration, suggestion=last.suggestion
                )
                study = self._insert(session, study, again, events)
        self._tell_listener(StudyEvent(study), *events)
        self._prepare(study)
        return study

    # --- beyond the interface ----------------------------------------------------------------

    def recover(self, study_id: str) -> Study:
        """Put trials of a run that died back in the queue, with the next attempt."""
        study_id = self._full_id(study_id)
        events: _Events = []
        with self._database.writing() as session:
            study = self._load(session, study_id)
            for trial in unfinished(study):
                mine = (study.id, trial.number, trial.attempt) in self._handed_out
                if mine or trial.state is TrialState.QUEUED:
                    continue
                study = self._recover(session, study, trial, events)
        self._tell_listener(*events)
        return study

    def history(self, study_id: str) -> tuple[Move, ...]:
        """Every move of the study's trials, in order."""
        study_id = self._full_id(study_id)
        with self._database.reading() as session, self._readable(study_id):
            return rows.moves(session, study_id)

    def export(self, study_id: str) -> Json:
        """The whole study as a JSON tree, which `codec.decode(Study, …)` reads back."""
        return encode(Study, self.get(study_id))

    # --- inside ------------------------------------------------------------------------------

    def _take(self, seen: Study, step: protocol.Step) -> Study:
        """Write a step that was worked out from `seen`, unless the study has moved on since."""
        events: _Events = []
        with self._database.writing() as session:
            study = self._load(session, seen.id)
            if study != seen:
                return study
            if isinstance(step, protocol.Conclude):
                check_move(study, step.state)
                study = concluded(study, step.state, step.reason, step.suggestion)
                rows.save_study(session, study)
                events.append(StudyEvent(study))
            else:
                trial = Trial(
                    len(study.trials) + 1, step.purpose, step.configuration, suggestion=step.suggestion
                )
                study = self._insert(session, study, trial, events)
        self._tell_listener(*events)
        return study

    def _hand_out(self, study: Study, trial: Trial) -> Assignment | Finished:
        events: _Events = []
        if trial.state is TrialState.QUEUED:
            with self._database.writing() as session:
                study = self._load(session, study.id)
                trial = trial_of(study, trial.number)
                if trial.state is TrialState.QUEUED:
                    study, trial = self._move(session, study, trial, trial.moved(TrialState.LEASED), events)
            self._handed_out.add((study.id, trial.number, trial.attempt))
            self._tell_listener(*events)
            if trial.state.finished:  # cancelled meanwhile
                return self.ask(study.id)
        return Assignment(trial, plan_for(study, trial))

    def _recover(self, session: Session, study: Study, trial: Trial, events: _Events) -> Study:
        lost = "The run ended before this trial did."
        if trial.attempt >= MAX_ATTEMPTS and trial.state is not TrialState.EXPIRED:
            reason = f"{MAX_ATTEMPTS} runs ended during this trial."
            study, _ = self._move(
                session, study, trial, trial.moved(TrialState.FAILED, reason=reason), events
            )
            return study
        if trial.state is not TrialState.EXPIRED:
            expired = trial.moved(TrialState.EXPIRED, reason=lost)
            study, trial = self._move(session, study, trial, expired, events)
        queued = replace(trial.moved(TrialState.QUEUED), reason=None)
        study, _ = self._move(session, study, trial, queued, events)
        return study

    def _insert(self, session: Session, study: Study, trial: Trial, events: _Events) -> Study:
        rows.insert_trial(session, study.id, trial, self._clock.now())
        study = replace(study, trials=(*study.trials, trial))
        events.append(StudyEvent(study, trial))
        return study

    def _move(
        self, session: Session, study: Study, before: Trial, after: Trial, events: _Events
    ) -> tuple[Study, Trial]:
        rows.save_move(session, study.id, before, after, self._clock.now())
        trials = tuple(after if t.number == after.number else t for t in study.trials)
        study = replace(study, trials=trials)
        events.append(StudyEvent(study, after))
        return study, after

    def _prepare(self, study: Study) -> None:
        if two_phase.is_open(study):
            return  # what is to be searched is not known yet
        self._suggester.prepare(protocol.problem_of(study), protocol.settings_of(study.spec))

    def _tell_listener(self, *events: StudyEvent) -> None:
        if self._on_event is not None:
            for event in events:
                self._on_event(event)

    def _full_id(self, study_id: str) -> str:
        with self._database.reading() as session:
            return self._resolve(session, study_id)

    def _resolve(self, session: Session, study_id: str) -> str:
        found = rows.study_ids(session, study_id) if study_id else ()
        if study_id in found:
            return study_id
        if len(found) > 1:
            raise InvalidInputError(
                f"Study {study_id!r} is not clear: it could be {' or '.join(found)}; give more characters."
            )
        if not found:
            hint = did_you_mean(study_id, rows.study_ids(session))
            raise InvalidInputError(f"There is no study {study_id!r}; {hint}")
        return found[0]

    def _load(self, session: Session, study_id: str) -> Study:
        with self._readable(study_id):
            study = rows.load_study(session, study_id)
        if study is None:
            raise InvalidInputError(f"There is no study {study_id!r}.")
        return study

    @contextmanager
    def _readable(self, study_id: str) -> Iterator[None]:
        """A stored value that cannot be understood, as a sentence that says where it stands."""
        where = f"{self._database.path}: study {study_id} cannot be read"
        try:
            yield
        except StateError as error:
            raise StateError(f"{where}: {error}") from error
        except ValueError as error:  # a column of JSON that is none
            raise StateError(
                f"{where}, as what is stored there is damaged ({error}); "
                "restore a copy of the file, or move it away and run again to begin a new one."
            ) from error


def _new_id(session: Session) -> str:
    """Eight hexadecimal digits that no study has: short enough to read out."""
    while True:
        study_id = secrets.token_hex(4)
        if not rows.study_ids(session, study_id):
            return study_id
