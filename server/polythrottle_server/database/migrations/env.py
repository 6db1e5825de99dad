"""Alembic's entry: runs the migrations on the connection, and in the transaction, that `opening` gives."""

from __future__ import annotations

from alembic import context

from polythrottle_server.database.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
