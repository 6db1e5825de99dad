"""Opening a database: made and migrated by itself, or one sentence that names the file and a remedy."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import sqlite3
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.exc import IntegrityError

from polythrottle.errors import StateError
from polythrottle.study import StudyState, Verdict
from polythrottle_server.database import open_database
from polythrottle_server.database.opening import MIGRATIONS, migrations_config
from polythrottle_server.database.tables import Base

RELEASED = sorted((Path(__file__).parent / "released").glob("*.sql"))


def one_sentence(raised: pytest.ExceptionInfo, path: Path) -> str:
    message = str(raised.value)
    assert str(path) in message
    assert message.endswith(".")
    assert "\n" not in message
    return message


def head() -> str:
    revision = ScriptDirectory.from_config(migrations_config()).get_current_head()
    assert revision is not None
    return revision


def revision_of(path: Path) -> str:
    with sqlite3.connect(path) as connection:
        return connection.execute("SELECT version_num FROM alembic_version").fetchone()[0]


# --- migrations ----------------------------------------------------------------------------------


def test_a_new_database_is_made_with_its_directory_and_is_at_the_newest_revision(tmp_path):
    path = tmp_path / "a" / "100% new" / "studies.sqlite3"
    database = open_database(path)
    assert revision_of(path) == head()
    with database.reading() as session:
        for pragma, expected in [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1)]:
            assert session.connection().execute(text(f"PRAGMA {pragma}")).scalar() == expected


def test_opening_again_keeps_everything(lab):
    study = lab.whole(slo="40ms")
    assert lab.open().list() == (study,)


def test_the_models_and_the_migrations_agree(tmp_path):
    database = open_database(tmp_path / "s.sqlite3")
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_the_models_and_the_migrations_have_the_same_constraints(tmp_path):
    """Alembic's comparison does not see CHECK constraints."""
    migrated = open_database(tmp_path / "migrated.sqlite3").engine
    declared = create_engine(f"sqlite:///{tmp_path / 'declared.sqlite3'}")
    Base.metadata.create_all(declared)
    for table in Base.metadata.tables:
        expected = inspect(declared).get_check_constraints(table)
        assert expected
        assert inspect(migrated).get_check_constraints(table) == expected


@pytest.mark.parametrize("dump", RELEASED, ids=lambda p: p.stem)
def test_a_database_of_every_released_revision_is_brought_up_to_date(dump, lab):
    lab.path.parent.mkdir(parents=True)
    with sqlite3.connect(lab.path) as connection:
        connection.executescript(dump.read_text(encoding="utf-8"))
    assert revision_of(lab.path) == dump.stem
    studies = lab.open()
    assert revision_of(lab.path) == head()
    ended, interrupted = studies.list()
    assert ended.result.verdict is Verdict.OPTIMAL
    done = lab.drive(studies, interrupted, lab.Device())
    assert done.state is StudyState.CONVERGED


def test_there_is_a_database_of_every_revision():
    revisions = {r.revision for r in ScriptDirectory.from_config(migrations_config()).walk_revisions()}
    assert {dump.stem for dump in RELEASED} == revisions


def test_a_migration_that_fails_leaves_the_database_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "s.sqlite3"

    def half(config, _revision):
        config.attributes["connection"].exec_driver_sql("CREATE TABLE half (id INTEGER)")
        raise RuntimeError("power cut")

    monkeypatch.setattr(command, "upgrade", half)
    with pytest.raises(RuntimeError, match="power cut"):
        open_database(path)
    monkeypatch.undo()
    open_database(path)
    with sqlite3.connect(path) as connection:
        names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
    assert "half" not in names
    assert "study" in names


def test_many_may_open_a_new_database_at_once(tmp_path):
    path, faults = tmp_path / "s.sqlite3", []

    def go():
        try:
            open_database(path)
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=go) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert revision_of(path) == head()


def test_the_migrations_travel_with_the_package():
    assert (MIGRATIONS / "env.py").is_file()
    assert (MIGRATIONS / "script.py.mako").is_file()


def test_down_and_up_again(tmp_path):
    database = open_database(tmp_path / "s.sqlite3")
    config = migrations_config()
    with database.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        command.upgrade(config, "head")
    assert revision_of(tmp_path / "s.sqlite3") == head()


# --- writing -------------------------------------------------------------------------------------


def test_writers_queue_and_no_update_is_lost(tmp_path):
    database = open_database(tmp_path / "s.sqlite3")
    with database.writing() as session:
        session.connection().execute(text("CREATE TABLE counter (n INTEGER)"))
        session.connection().execute(text("INSERT INTO counter VALUES (0)"))

    def count():
        mine = open_database(tmp_path / "s.sqlite3")
        for _ in range(10):
            with mine.writing() as session:
                n = session.connection().execute(text("SELECT n FROM counter")).scalar()
                session.connection().execute(text("UPDATE counter SET n = :n"), {"n": n + 1})

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.reading() as session:
        assert session.connection().execute(text("SELECT n FROM counter")).scalar() == 40


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE study SET state = 'asleep'",
        "UPDATE trial SET state = 'lost'",
        "UPDATE trial SET purpose = 'fun'",
        "UPDATE trial SET number = 0",
        "UPDATE trial SET attempt = 0",
        "UPDATE trial SET measurement = NULL WHERE state = 'completed'",
        "UPDATE trial SET number = 1",
        "UPDATE trial SET study_id = 'nobody'",
        "UPDATE trial_event SET to_state = 'lost'",
        "UPDATE trial_event SET from_state = 'lost'",
        "INSERT INTO study (id, spec, spec_digest, device_id, state) "
        "SELECT 'twin', spec, spec_digest, device_id, state FROM study",
    ],
)
def test_the_database_guards_itself(lab, statement):
    studies = lab.open()
    lab.drive(studies, studies.create(lab.spec()), lab.Device(), trials=3)
    database = open_database(lab.path)
    with pytest.raises(IntegrityError), database.writing() as session:
        session.connection().execute(text(statement))


# --- what a user can meet ------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"not a database at all, " * 99, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_corrupt_database(tmp_path, content):
    path = tmp_path / "s.sqlite3"
    path.write_bytes(content)
    with pytest.raises(StateError) as raised:
        open_database(path)
    assert "move it away" in one_sentence(raised, path)
    assert path.read_bytes() == content


def test_a_database_that_is_corrupt_in_the_middle(lab):
    lab.whole(slo="40ms")
    database = open_database(lab.path)
    with database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    content = bytearray(lab.path.read_bytes())
    content[3 * 4096 :] = b"\x5a" * (len(content) - 3 * 4096)
    lab.path.write_bytes(content)
    for stale in lab.path.parent.glob("*-*"):
        stale.unlink()
    with pytest.raises(StateError) as raised:
        lab.open().list()
    assert "corrupt" in one_sentence(raised, lab.path)


def test_a_database_of_a_newer_release(lab):
    lab.open()
    with sqlite3.connect(lab.path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StateError) as raised:
        lab.open()
    assert "newer polythrottle (revision 9999)" in one_sentence(raised, lab.path)
    assert revision_of(lab.path) == "9999"


def test_a_database_that_a_development_build_left(lab):
    """At the newest revision by its name, and of other tables: one sentence, and no stack."""
    lab.whole(slo="40ms")
    studies = lab.open()
    with sqlite3.connect(lab.path) as connection:
        connection.execute("ALTER TABLE study RENAME COLUMN spec TO question")
    with pytest.raises(StateError, match=r"other tables than this release makes.*move it away") as raised:
        studies.list()
    one_sentence(raised, lab.path)


def test_a_database_of_another_program(tmp_path):
    path = tmp_path / "s.sqlite3"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    with pytest.raises(StateError) as raised:
        open_database(path)
    assert "another program (it holds bookmarks)" in one_sentence(raised, path)


def test_a_state_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / "file" / "state" / "s.sqlite3"
    with pytest.raises(StateError) as raised:
        open_database(path)
    assert "cannot be created" in one_sentence(raised, path)


@pytest.mark.parametrize(
    ("code", "says"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "ead-only"), (errno.EACCES, "ermission")]
)
def test_a_disk_that_refuses_the_directory(tmp_path, monkeypatch, code, says):
    def refuse(*_args, **_kwargs):
        raise OSError(code, {errno.ENOSPC: "No space left", errno.EROFS: "Read-only"}.get(code, "Permission"))

    monkeypatch.setattr(Path, "mkdir", refuse)
    path = tmp_path / "state" / "s.sqlite3"
    with pytest.raises(StateError) as raised:
        open_database(path)
    assert says in one_sentence(raised, path)


def test_a_directory_in_the_place_of_the_file(tmp_path):
    path = tmp_path / "s.sqlite3"
    path.mkdir()
    with pytest.raises(StateError) as raised:
        open_database(path)
    assert "cannot be opened or created" in one_sentence(raised, path)


def test_a_read_only_database(lab):
    """The driver's own read-only mode: file permissions do not bind root."""
    study = lab.whole(slo="40ms")
    studies = lab.open()
    with studies._database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only = ON")
    with pytest.raises(StateError) as raised:
        studies.resume(studies.create(lab.spec(seed=3)).id)
    assert "is read-only" in one_sentence(raised, lab.path)
    assert lab.open().list() == (study,)


def test_a_full_disk_loses_nothing_that_was_finished(lab):
    studies = lab.open()
    study = lab.drive(studies, studies.create(lab.spec("40ms")), lab.Device(), trials=4)
    with studies._database.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        # The pool hands the same connection out again, with its limit.
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StateError) as raised:
        lab.drive(studies, study, lab.Device())
    assert "the disk is full" in one_sentence(raised, lab.path)
    after = lab.open()
    kept = after.get(study.id)
    assert kept.trials[:4] == study.trials[:4]
    assert lab.drive(after, kept, lab.Device()).state is StudyState.CONVERGED


def test_a_disk_that_fails(lab, monkeypatch):
    studies = lab.open()
    study = studies.create(lab.spec())

    def broken(*_args):
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(studies._database.engine.dialect, "do_commit", broken)
    with pytest.raises(StateError) as raised:
        studies.ask(study.id)
    assert "disk I/O error" in one_sentence(raised, lab.path)


def test_a_database_that_another_process_holds(lab, monkeypatch):
    monkeypatch.setattr("polythrottle_server.database.opening.BUSY_TIMEOUT_S", 0.05)
    studies = lab.open()
    other = sqlite3.connect(lab.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StateError) as raised:
        studies.create(lab.spec())
    assert "held by another process" in one_sentence(raised, lab.path)
    other.execute("ROLLBACK")
    assert studies.create(lab.spec()).state is StudyState.ACTIVE


# --- a database that may only be read -------------------------------------------------------------


@pytest.fixture
def shelf(lab):
    """A state directory that anybody can reach; made read-only by `seal`, and by nobody else's rights."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    lab.path = folder / "state" / "s.sqlite3"
    yield lab
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    shutil.rmtree(folder)


def at_rest(lab):
    """A finished study in a file without a log beside it, as a process that ended leaves it."""
    study = lab.whole(slo="40ms")
    database = open_database(lab.path)
    with database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    gc.collect()
    for left in lab.path.parent.glob("*-*"):
        left.unlink()
    return study


@contextmanager
def sealed(path: Path, *, directory: bool):
    """Neither the file nor (where asked) its directory can be written, not even by root."""
    for part in path.parent.iterdir():
        part.chmod(0o444)
    path.parent.chmod(0o555 if directory else 0o777)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("directory", [True, False])
def test_a_database_that_cannot_be_written_is_read(shelf, directory):
    study = at_rest(shelf)
    content = shelf.path.read_bytes()
    with sealed(shelf.path, directory=directory):
        studies = shelf.open()
        assert studies.list() == (study,)
        assert studies.get(study.id[:4]) == study
        assert studies.result(study.id) == study.result
        assert studies.export(study.id)["id"] == study.id
        with pytest.raises(StateError) as raised:
            studies.create(shelf.spec(seed=5))
        assert "is read-only" in one_sentence(raised, shelf.path)
    assert shelf.path.read_bytes() == content


def test_a_log_beside_a_database_that_cannot_be_written_is_read_too(shelf):
    studies = shelf.open()
    study = shelf.drive(studies, studies.create(shelf.spec("40ms")), shelf.Device())
    assert shelf.path.with_name("s.sqlite3-wal").stat().st_size > 0
    with sealed(shelf.path, directory=True):
        assert shelf.open().list() == (study,)


def test_an_old_database_that_cannot_be_written_is_not_migrated(shelf, monkeypatch):
    at_rest(shelf)
    monkeypatch.setattr(ScriptDirectory, "get_heads", lambda _: ["the next one"])
    with sealed(shelf.path, directory=True), pytest.raises(StateError) as raised:
        shelf.open()
    assert "must first be brought up to date" in one_sentence(raised, shelf.path)


def test_a_newer_database_that_cannot_be_written_says_so(shelf):
    at_rest(shelf)
    with sqlite3.connect(shelf.path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with sealed(shelf.path, directory=True), pytest.raises(StateError) as raised:
        shelf.open()
    assert "newer polythrottle (revision 9999)" in one_sentence(raised, shelf.path)


# --- a cell that is damaged -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("UPDATE study SET spec = '{bad'", "damaged"),
        ("UPDATE study SET spec = '{}'", "cannot be read"),
        ("UPDATE study SET result = '{\"verdict\": 1}'", "Result cannot be read"),
        ("UPDATE trial SET configuration = '[1,' WHERE number = 2", "damaged"),
        ("UPDATE trial SET measurement = '5' WHERE number = 2", "Measurement cannot be read"),
    ],
)
def test_a_damaged_cell_is_named_with_its_file_and_study(lab, statement, says):
    study = lab.whole(slo="40ms")
    with sqlite3.connect(lab.path) as connection:
        connection.execute(statement)
    connection.close()
    studies = lab.open()
    for read in (studies.list, lambda: studies.get(study.id), lambda: studies.ask(study.id)):
        with pytest.raises(StateError) as raised:
            read()
        message = one_sentence(raised, lab.path)
        assert study.id in message
        assert says in message


def test_a_damaged_history_is_named_with_its_file_and_study(lab):
    study = lab.whole(slo="40ms")
    with sqlite3.connect(lab.path) as connection:
        connection.execute("UPDATE trial SET configuration = '[1,'")
    connection.close()
    with pytest.raises(StateError) as raised:
        lab.open().history(study.id)
    assert study.id in one_sentence(raised, lab.path)
