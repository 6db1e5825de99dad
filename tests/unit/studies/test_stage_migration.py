"""The migration to trials of a stage: nothing is lost, nothing else is let in, and there is a way back."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from alembic import command

from polythrottle_server.database import open_database
from polythrottle_server.database.opening import migrations_config

RELEASED = Path(__file__).parent / "released"
INSERT = (
    "INSERT INTO trial (study_id, number, purpose, configuration, state, attempt, spent_s) "
    "VALUES ((SELECT id FROM study LIMIT 1), 999, ?, '[]', 'queued', 1, 0.0)"
)


def restored(path: Path, revision: str) -> Path:
    with sqlite3.connect(path) as connection:
        connection.executescript((RELEASED / f"{revision}.sql").read_text(encoding="utf-8"))
    connection.close()
    return path


def rows(path: Path) -> dict[str, list]:
    with sqlite3.connect(path) as connection:
        tables = ("study", "trial", "trial_event")
        found = {name: connection.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall() for name in tables}
    connection.close()
    return found


def test_every_row_survives_and_the_file_is_sound(tmp_path):
    path = restored(tmp_path / "s.sqlite3", "0001")
    before = rows(path)
    assert before["trial_event"]
    open_database(path).close()
    assert rows(path) == before
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        assert connection.execute("PRAGMA writable_schema").fetchone() == (0,)
    connection.close()


def test_the_new_purpose_is_let_in_and_no_other(tmp_path):
    path = restored(tmp_path / "s.sqlite3", "0001")
    with sqlite3.connect(path) as old, pytest.raises(sqlite3.IntegrityError):
        old.execute(INSERT, ("stage",))
    old.close()
    open_database(path).close()
    with sqlite3.connect(path) as new:
        new.execute(INSERT, ("stage",))
        with pytest.raises(sqlite3.IntegrityError):
            new.execute(INSERT.replace("999", "998"), ("stages",))
    new.close()


def downgraded(path: Path) -> None:
    database = open_database(path)
    try:
        with database.engine.connect().execution_options(writes=True) as connection, connection.begin():
            config = migrations_config()
            config.attributes["connection"] = connection
            command.downgrade(config, "0001")
    finally:
        database.close()


def test_there_is_a_way_back_while_no_stage_was_tried(tmp_path):
    path = restored(tmp_path / "s.sqlite3", "0001")
    downgraded(path)
    with sqlite3.connect(path) as connection, pytest.raises(sqlite3.IntegrityError):
        connection.execute(INSERT, ("stage",))
    connection.close()
    tried = restored(tmp_path / "tried.sqlite3", "0002")
    with pytest.raises(RuntimeError, match="stages"):
        downgraded(tried)
