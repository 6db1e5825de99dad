"""Domain values to rows and back: the only code that reads or writes rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from sqlmodel import Session, col, select

from polythrottle.configuration import Configuration
from polythrottle.measurement import Measurement
from polythrottle.study import Result, Study, StudySpec, StudyState
from polythrottle.suggestion import Suggestion
from polythrottle.trial import TRANSITIONS, IllegalTransitionError, Purpose, Trial, TrialState
from polythrottle_server.codec import Json, T, decode, encode, spec_digest
from polythrottle_server.database.tables import StudyRow, TrialEventRow, TrialRow


@dataclass(frozen=True)
class Move:
    """One move of a trial, as it stands in the history. `from_state` is None where it was created."""

    number: int
    attempt: int
    from_state: TrialState | None
    to_state: TrialState
    reason: str | None
    clock_s: float
    at: str


def insert_study(session: Session, study_id: str, spec: StudySpec) -> Study:
    row = StudyRow(
        id=study_id,
        spec=encode(StudySpec, spec),
        spec_digest=spec_digest(spec),
        device_id=spec.device.id,
        state=StudyState.ACTIVE.value,
    )
    session.add(row)
    session.flush()
    session.refresh(row)
    return _study(row, ())


def save_study(session: Session, study: Study) -> None:
    """Write the state, the reason, the result and the budget. Trials have their own functions."""
    row = session.exec(select(StudyRow).where(StudyRow.id == study.id)).one()
    row.spec, row.spec_digest = encode(StudySpec, study.spec), spec_digest(study.spec)
    row.state, row.state_reason = study.state.value, study.state_reason
    row.result = _encoded(Result, study.result)
    session.add(row)
    session.flush()


def load_study(session: Session, study_id: str) -> Study | None:
    row = session.exec(select(StudyRow).where(StudyRow.id == study_id)).first()
    if row is None:
        return None
    trials = session.exec(
        select(TrialRow).where(TrialRow.study_id == study_id).order_by(col(TrialRow.number))
    ).all()
    return _study(row, trials)


def active_study_id(session: Session, spec: StudySpec) -> str | None:
    """The id of the one active study of an equal spec."""
    found = session.exec(
        select(StudyRow.id).where(
            StudyRow.spec_digest == spec_digest(spec), StudyRow.state == StudyState.ACTIVE.value
        )
    ).first()
    return None if found is None else str(found)


def study_ids(session: Session, prefix: str = "") -> tuple[str, ...]:
    """Ids that begin with `prefix`, oldest study first."""
    query = select(StudyRow.id).order_by(col(StudyRow.number))
    if prefix:
        query = query.where(col(StudyRow.id).startswith(prefix, autoescape=True))
    return tuple(session.exec(query).all())


def insert_trial(session: Session, study_id: str, trial: Trial, clock_s: float) -> None:
    row = TrialRow(
        study_id=study_id,
        number=trial.number,
        purpose=trial.purpose.value,
        configuration=encode(Configuration, trial.configuration),
        state=trial.state.value,
        attempt=trial.attempt,
        suggestion=_encoded(Suggestion, trial.suggestion),
    )
    session.add(row)
    session.flush()
    _record(session, row, None, trial, clock_s)


def save_move(session: Session, study_id: str, before: Trial, after: Trial, clock_s: float) -> None:
    """Write a trial in its next state, and the move into its history.

    Raises:
        IllegalTransitionError: the trial does not stand where it was taken to, or may not go there.
    """
    row = session.exec(
        select(TrialRow).where(TrialRow.study_id == study_id, TrialRow.number == after.number)
    ).one()
    stored = TrialState(row.state)
    if (stored, row.attempt) != (before.state, before.attempt) or after.state not in TRANSITIONS[stored]:
        raise IllegalTransitionError(
            f"trial {after.number} is {stored.value} in attempt {row.attempt} "
            f"and cannot go from {before.state.value} to {after.state.value}"
        )
    row.state, row.attempt, row.reason = after.state.value, after.attempt, after.reason
    row.measurement = _encoded(Measurement, after.measurement)
    row.spent_s, row.spent_j = after.spent_s, after.spent_j
    session.add(row)
    session.flush()
    _record(session, row, before, after, clock_s)


def moves(session: Session, study_id: str) -> tuple[Move, ...]:
    """The history of a study's trials, in the order it happened."""
    found = session.exec(
        select(TrialEventRow, TrialRow)
        .join(TrialRow, col(TrialEventRow.trial_id) == col(TrialRow.id))
        .where(TrialRow.study_id == study_id)
        .order_by(col(TrialEventRow.id))
    ).all()
    return tuple(
        Move(
            trial.number,
            move.attempt,
            None if move.from_state is None else TrialState(move.from_state),
            TrialState(move.to_state),
            move.reason,
            move.clock_s,
            _utc(move.at),
        )
        for move, trial in found
    )


def _record(session: Session, row: TrialRow, before: Trial | None, after: Trial, clock_s: float) -> None:
    assert row.id is not None
    session.add(
        TrialEventRow(
            trial_id=row.id,
            from_state=None if before is None else before.state.value,
            to_state=after.state.value,
            attempt=after.attempt,
            reason=after.reason,
            clock_s=clock_s,
        )
    )
    session.flush()


def _study(row: StudyRow, trials: Sequence[TrialRow]) -> Study:
    return Study(
        id=row.id,
        spec=decode(StudySpec, row.spec),
        state=StudyState(row.state),
        created_at=_utc(row.created_at),
        trials=tuple(_trial(trial) for trial in trials),
        state_reason=row.state_reason,
        result=_decoded(Result, row.result),
    )


def _trial(row: TrialRow) -> Trial:
    return Trial(
        number=row.number,
        purpose=Purpose(row.purpose),
        configuration=decode(Configuration, row.configuration),
        state=TrialState(row.state),
        attempt=row.attempt,
        suggestion=_decoded(Suggestion, row.suggestion),
        measurement=_decoded(Measurement, row.measurement),
        reason=row.reason,
        spent_s=row.spent_s,
        spent_j=row.spent_j,
    )


def _encoded(kind: type[T], value: T | None) -> Json:
    return None if value is None else encode(kind, value)


def _decoded(kind: type[T], tree: Json) -> T | None:
    return None if tree is None else decode(kind, tree)


def _utc(at: datetime | None) -> str:
    """ISO 8601 in UTC, to the second; SQLite gives the time without its zone."""
    assert at is not None
    aware = at if at.tzinfo is not None else at.replace(tzinfo=timezone.utc)
    return aware.astimezone(timezone.utc).isoformat(timespec="seconds")
