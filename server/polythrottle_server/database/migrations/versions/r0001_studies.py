"""Studies, trials and their history."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Spelt out and not taken from the domain: a migration describes the past and must never change.
_STUDY_STATES = "'active', 'converged', 'exhausted', 'infeasible', 'cancelled', 'superseded'"
_TRIAL_STATES = (
    "'queued', 'leased', 'running', 'completed', 'infeasible', 'aborted', 'failed', 'expired', 'cancelled'"
)
_PURPOSES = "'baseline', 'anchor', 'search', 'confirm', 'drift'"


def _json() -> sa.JSON:
    return sa.JSON(none_as_null=True)


def _now(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now())


def upgrade() -> None:
    op.create_table(
        "study",
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("spec", _json(), nullable=False),
        sa.Column("spec_digest", sa.String(), nullable=False),
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("state_reason", sa.String(), nullable=True),
        sa.Column("result", _json(), nullable=True),
        _now("created_at"),
        sa.PrimaryKeyConstraint("number", name="pk_study"),
        sa.UniqueConstraint("id", name="uq_study_id"),
        sa.CheckConstraint(f"state IN ({_STUDY_STATES})", name=op.f("ck_study_state")),
    )
    op.create_index("ix_study_device_id", "study", ["device_id"])
    op.create_index("ix_study_state", "study", ["state"])
    active = sa.text("state = 'active'")
    op.create_index(
        "uq_study_active_spec_digest",
        "study",
        ["spec_digest"],
        unique=True,
        sqlite_where=active,
        postgresql_where=active,
    )
    op.create_table(
        "trial",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("purpose", sa.String(), nullable=False),
        sa.Column("configuration", _json(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("suggestion", _json(), nullable=True),
        sa.Column("measurement", _json(), nullable=True),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("spent_s", sa.Float(), nullable=False),
        sa.Column("spent_j", sa.Float(), nullable=True),
        _now("created_at"),
        sa.PrimaryKeyConstraint("id", name="pk_trial"),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name="fk_trial_study_id"),
        sa.UniqueConstraint("study_id", "number", name="uq_trial_study_id_number"),
        sa.CheckConstraint(f"state IN ({_TRIAL_STATES})", name=op.f("ck_trial_state")),
        sa.CheckConstraint(f"purpose IN ({_PURPOSES})", name=op.f("ck_trial_purpose")),
        sa.CheckConstraint("number >= 1", name=op.f("ck_trial_number")),
        sa.CheckConstraint("attempt >= 1", name=op.f("ck_trial_attempt")),
        sa.CheckConstraint("spent_s >= 0", name=op.f("ck_trial_spent_s")),
        sa.CheckConstraint(
            "state NOT IN ('completed', 'infeasible', 'aborted') OR measurement IS NOT NULL",
            name=op.f("ck_trial_measured"),
        ),
    )
    op.create_index("ix_trial_study_id_state", "trial", ["study_id", "state"])
    op.create_table(
        "trial_event",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("trial_id", sa.Integer(), nullable=False),
        sa.Column("from_state", sa.String(), nullable=True),
        sa.Column("to_state", sa.String(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("clock_s", sa.Float(), nullable=False),
        _now("at"),
        sa.PrimaryKeyConstraint("id", name="pk_trial_event"),
        sa.ForeignKeyConstraint(["trial_id"], ["trial.id"], name="fk_trial_event_trial_id"),
        sa.CheckConstraint(
            f"from_state IS NULL OR from_state IN ({_TRIAL_STATES})", name=op.f("ck_trial_event_from_state")
        ),
        sa.CheckConstraint(f"to_state IN ({_TRIAL_STATES})", name=op.f("ck_trial_event_to_state")),
    )
    op.create_index("ix_trial_event_trial_id", "trial_event", ["trial_id"])


def downgrade() -> None:
    op.drop_table("trial_event")
    op.drop_table("trial")
    op.drop_table("study")
