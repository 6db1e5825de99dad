"""Opening a database: created, checked, migrated and safe to share; or one sentence why not."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect
from sqlalchemy.exc import DatabaseError
from sqlmodel import Session

from polythrottle.errors import StateError

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_S = 30.0
"""How long a writer waits for another one."""


@dataclass(frozen=True)
class Database:
    """A database at the newest revision. Sessions come from `reading` and `writing` only."""

    engine: Engine
    path: Path

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session on one snapshot.

        Raises:
            StateError: the file cannot be read.
        """
        with _explained(self.path), self.engine.connect() as connection, Session(connection) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session in one transaction that nobody else writes beside; committed at the end, or undone.

        Raises:
            StateError: the file cannot be written.
        """
        with (
            _explained(self.path),
            _write_transaction(self.engine) as connection,
            Session(connection) as session,
        ):
            yield session
            session.flush()

    def close(self) -> None:
        self.engine.dispose()


def open_database(path: Path) -> Database:
    """The database in the file `path`, which is created with its directory where missing.

    One that may not be written is opened to read, and writing to it raises a `StateError`.

    Raises:
        StateError: it cannot be read or written, is no polythrottle database, is a newer release's, or
            would have to be migrated and cannot be written.
    """
    if _only_readable(path):
        return _open_to_read(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _sentence(path, error.strerror or str(error), error.errno) from error
    engine = _engine(path)
    try:
        with _explained(path), _write_transaction(engine) as connection:
            _migrate(connection, path)
    except BaseException:
        engine.dispose()
        raise
    return Database(engine, path)


def _only_readable(path: Path) -> bool:
    """Whether the file is there and SQLite could not write it: that takes its directory too."""
    try:
        return path.is_file() and not (
            os.access(path, os.W_OK, effective_ids=True)
            and os.access(path.parent, os.W_OK | os.X_OK, effective_ids=True)
        )
    except OSError as error:
        raise _sentence(path, error.strerror or str(error), error.errno) from error


def _open_to_read(path: Path) -> Database:
    engine = _engine(path, read_only=True)
    try:
        with _explained(path), engine.connect() as connection:
            if _outdated(connection, path):
                raise StateError(
                    f"{path} is read-only and must first be brought up to date by this release: "
                    "make it and its directory writable, or name another state directory."
                )
    except BaseException:
        engine.dispose()
        raise
    return Database(engine, path)


def migrations_config() -> Config:
    """Alembic's configuration, without a file: the migrations are part of the package."""
    config = Config()
    # Alembic interpolates this option, and a percent sign may well be part of a path.
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def _engine(path: Path, *, read_only: bool = False) -> Engine:
    url = URL.create("sqlite", database=str(path))
    if read_only:
        engine = create_engine(url, creator=lambda: _connect_to_read(path))
    else:
        engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        # The driver would begin transactions by itself, and too late: at the first write.
        connection.isolation_level = None
        if read_only:
            return
        connection.execute("PRAGMA journal_mode = WAL")
        # A trial costs minutes of a device: a power cut must not lose one that was acknowledged.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:
        # A transaction that reads and then writes is refused at once if another wrote in between,
        # whatever the busy timeout. So writers take the lock first.
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _connect_to_read(path: Path) -> sqlite3.Connection:
    """A connection that cannot write.

    SQLite reads a database in WAL mode with the help of a file beside it. Where it may not make that one,
    and nothing waits in a log, the file is read as it stands: nobody here can change it meanwhile.
    """

    def connect(mode: str) -> sqlite3.Connection:
        uri = f"{path.absolute().as_uri()}?{mode}"
        connection = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
        try:
            connection.execute("SELECT count(*) FROM sqlite_master")
        except BaseException:
            connection.close()
            raise
        return connection

    log = path.with_name(f"{path.name}-wal")
    try:
        return connect("mode=ro")
    except sqlite3.OperationalError as error:
        refused = any(sign in str(error) for sign in ("unable to open", "readonly"))
        if not refused or (log.exists() and log.stat().st_size > 0):
            raise
        return connect("mode=ro&immutable=1")


@contextmanager
def _write_transaction(engine: Engine) -> Iterator[Connection]:
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        yield connection


def _migrate(connection: Connection, path: Path) -> None:
    """To the newest revision, in the transaction that is open: all of it or nothing."""
    if _outdated(connection, path):
        config = migrations_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _outdated(connection: Connection, path: Path) -> bool:
    """Whether the database is of an older revision, or still empty.

    Raises:
        StateError: it is another program's, or a newer release's.
    """
    script = ScriptDirectory.from_config(migrations_config())
    known = {revision.revision for revision in script.walk_revisions()}
    present = MigrationContext.configure(connection).get_current_heads()
    newer = [revision for revision in present if revision not in known]
    if newer:
        raise StateError(
            f"{path} was written by a newer polythrottle (revision {', '.join(newer)}): "
            "update polythrottle, or name another state directory."
        )
    tables = [name for name in inspect(connection).get_table_names() if name != "alembic_version"]
    if tables and not present:
        raise StateError(
            f"{path} is a database of another program (it holds {', '.join(sorted(tables)[:3])}): "
            "name another state directory."
        )
    return set(present) != set(script.get_heads())


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except DatabaseError as error:
        # A broken constraint is a fault of the program and keeps its traceback.
        reason = str(error.orig).lower()
        if not any(sign in reason for sign in _SIGNS):
            raise
        raise _sentence(path, reason) from error
    except OSError as error:
        raise _sentence(path, error.strerror or str(error), error.errno) from error


_MAKE_ROOM = "make room there, or name another state directory; what was finished before is kept"
_ALLOW = "make it writable, or name another state directory"
_SIGNS = {
    "disk is full": ("cannot be written, the disk is full", _MAKE_ROOM),
    "disk i/o error": (
        "cannot be read or written (disk I/O error)",
        "check the disk, or name another state directory",
    ),
    "readonly database": ("is read-only", _ALLOW),
    "unable to open": ("cannot be opened or created", _ALLOW),
    "not a database": (
        "is not a database",
        "move it away and run again to begin a new one, or restore a copy",
    ),
    "could not decode": (
        "is a corrupt database",
        "move it away and run again to begin a new one, or restore a copy",
    ),
    "malformed": (
        "is a corrupt database",
        "move it away and run again to begin a new one, or restore a copy",
    ),
    **dict.fromkeys(
        ("no such column", "no such table", "has no column"),
        (
            "has other tables than this release makes, as a development build may have left it",
            "move it away and run again to begin a new one, or name another state directory",
        ),
    ),
    "locked": (
        f"was held by another process for more than {BUSY_TIMEOUT_S:g} s",
        "end that process, or try again",
    ),
}


def _sentence(path: Path, reason: str, code: int | None = None) -> StateError:
    if code in (errno.ENOSPC, errno.EDQUOT):
        what, remedy = "cannot be written, the disk is full", _MAKE_ROOM
    else:
        what, remedy = next(
            (found for sign, found in _SIGNS.items() if sign in reason.lower()),
            (f"cannot be created ({reason})", _ALLOW),
        )
    return StateError(f"{path} {what}: {remedy}.")
