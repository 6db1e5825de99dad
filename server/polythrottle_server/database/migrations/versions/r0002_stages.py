"""Trials of one stage of a workload alone: the purpose `stage`."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_BEFORE = "purpose IN ('baseline', 'anchor', 'search', 'confirm', 'drift')"
_AFTER = "purpose IN ('baseline', 'anchor', 'stage', 'search', 'confirm', 'drift')"


def upgrade() -> None:
    _replace(_BEFORE, _AFTER)


def downgrade() -> None:
    """Refused by the database where it holds trials of stages."""
    held = sa.text("SELECT count(*) FROM trial WHERE purpose = 'stage'")
    if op.get_bind().execute(held).scalar():
        raise RuntimeError("there are trials of stages, which an older release does not know")
    _replace(_AFTER, _BEFORE)


def _replace(old: str, new: str) -> None:
    """Another CHECK of the same name on `trial.purpose`."""
    if op.get_bind().dialect.name != "sqlite":
        op.drop_constraint("ck_trial_purpose", "trial", type_="check")
        op.create_check_constraint(op.f("ck_trial_purpose"), "trial", new)
        return
    # SQLite cannot alter a constraint, and rebuilding the table would take its events with it. This way is
    # its documentation for changes that leave the stored rows as they are (lang_altertable, section 7).
    connection = op.get_bind()
    version = connection.exec_driver_sql("PRAGMA schema_version").scalar_one()
    connection.exec_driver_sql("PRAGMA writable_schema = ON")
    changed = connection.execute(
        sa.text(
            "UPDATE sqlite_master SET sql = replace(sql, :old, :new) "
            "WHERE type = 'table' AND name = 'trial' AND instr(sql, :old) > 0"
        ),
        {"old": old, "new": new},
    )
    connection.exec_driver_sql(f"PRAGMA schema_version = {version + 1}")
    connection.exec_driver_sql("PRAGMA writable_schema = OFF")
    if changed.rowcount != 1:
        raise RuntimeError("the table of trials is not what this migration expects")
