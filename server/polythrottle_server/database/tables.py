"""The tables. SQLModel's table classes do not validate: rows are built from domain values only, by
`rows.py`, and CHECK constraints guard the database against everything else.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import Enum
from typing import Any

from sqlalchemy import JSON, CheckConstraint, Column, DateTime, Index, MetaData, UniqueConstraint, func, text
from sqlmodel import Field, SQLModel

from polythrottle.study import StudyState
from polythrottle.trial import Purpose, TrialState

_NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(SQLModel):
    """Tables of polythrottle only, whatever else the process declares with SQLModel."""

    metadata = MetaData(naming_convention=_NAMES)


def _among(column: str, values: Iterable[Enum]) -> str:
    return f"{column} IN ({', '.join(repr(v.value) for v in values)})"


def _json(*, nullable: bool = True) -> Any:
    # None is SQL's NULL, not the JSON text `null`, so that constraints and queries can see it.
    return Column(JSON(none_as_null=True), nullable=nullable)


def _now() -> Any:
    return Column(DateTime(timezone=True), nullable=False, server_default=func.now())


class StudyRow(Base, table=True):
    """One study. `number` orders studies, `id` names them to people. `spec_digest` tells equal specs;
    only one of them is active at a time.
    """

    __tablename__ = "study"
    __table_args__ = (
        CheckConstraint(_among("state", StudyState), name="state"),
        Index(
            "uq_study_active_spec_digest",
            "spec_digest",
            unique=True,
            sqlite_where=text("state = 'active'"),
            postgresql_where=text("state = 'active'"),
        ),
    )

    number: int | None = Field(default=None, primary_key=True)
    id: str = Field(unique=True)
    spec: Any = Field(sa_column=_json(nullable=False))
    spec_digest: str
    device_id: str = Field(index=True)
    state: str = Field(index=True)
    state_reason: str | None = None
    result: Any = Field(default=None, sa_column=_json())
    created_at: datetime | None = Field(default=None, sa_column=_now())


class TrialRow(Base, table=True):
    """One trial of a study. A measured one has a measurement, or the database refuses it."""

    __tablename__ = "trial"
    __table_args__ = (
        UniqueConstraint("study_id", "number"),
        CheckConstraint(_among("state", TrialState), name="state"),
        CheckConstraint(_among("purpose", Purpose), name="purpose"),
        CheckConstraint("number >= 1", name="number"),
        CheckConstraint("attempt >= 1", name="attempt"),
        CheckConstraint("spent_s >= 0", name="spent_s"),
        CheckConstraint(
            "state NOT IN ('completed', 'infeasible', 'aborted') OR measurement IS NOT NULL",
            name="measured",
        ),
        Index("ix_trial_study_id_state", "study_id", "state"),
    )

    id: int | None = Field(default=None, primary_key=True)
    study_id: str = Field(foreign_key="study.id")
    number: int
    purpose: str
    configuration: Any = Field(sa_column=_json(nullable=False))
    state: str
    attempt: int
    suggestion: Any = Field(default=None, sa_column=_json())
    measurement: Any = Field(default=None, sa_column=_json())
    reason: str | None = None
    spent_s: float = 0.0
    spent_j: float | None = None
    created_at: datetime | None = Field(default=None, sa_column=_now())


class TrialEventRow(Base, table=True):
    """One move of a trial, written with it. `clock_s` is the device's clock, `at` the database's."""

    __tablename__ = "trial_event"
    __table_args__ = (
        CheckConstraint(f"from_state IS NULL OR {_among('from_state', TrialState)}", name="from_state"),
        CheckConstraint(_among("to_state", TrialState), name="to_state"),
    )

    id: int | None = Field(default=None, primary_key=True)
    trial_id: int = Field(foreign_key="trial.id", index=True)
    from_state: str | None = None
    to_state: str
    attempt: int
    reason: str | None = None
    clock_s: float
    at: datetime | None = Field(default=None, sa_column=_now())
