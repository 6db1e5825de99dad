"""The audit log: one line for each write to a device, put there before the write."""

from __future__ import annotations

import grp
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from polythrottle.configuration import Level
from polythrottle.errors import StateError
from polythrottle_agent.privileged.files import Files
from polythrottle_agent.privileged.journal import Owner

FILE_NAME = "audit.jsonl"
GROUP = "polythrottle"
ROTATE_BYTES = 8 * 2**20
KEPT_ROTATIONS = 4
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f]")
LONGEST_TEXT = 400


@dataclass(frozen=True)
class Record:
    """One write, or what became of it.

    `event` is `apply` or `restore` before a write; `refused` or `not_restored` after one that failed;
    `lease`, `kept`, `drift` and the like where nothing is written. `old` and `new` are levels or states.
    """

    at: str
    event: str
    owner: str
    uid: int
    pid: int
    knob: str | None
    old: Level | None
    new: Level | None
    reason: str


class AuditLog:
    """Append-only, one JSON object a line, each on disk before `write` returns.

    Rotated by size: `audit.jsonl.1` is the newest of the old ones. The members of `group` may read it, where
    there is such a group.
    """

    def __init__(
        self,
        directory: Path,
        files: Files | None = None,
        rotate_bytes: int = ROTATE_BYTES,
        group: str = GROUP,
    ) -> None:
        self.path = directory / FILE_NAME
        self._files = files if files is not None else Files()
        self._rotate_bytes = rotate_bytes
        self._group = group

    def write(
        self,
        event: str,
        owner: Owner,
        reason: str,
        knob: str | None = None,
        old: Level | None = None,
        new: Level | None = None,
    ) -> None:
        """
        Raises:
            OSError: the line could not be written.
        """
        record = Record(
            at=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            event=event,
            owner=_one_line(owner.name),
            uid=owner.uid,
            pid=owner.pid,
            knob=knob,
            old=old,
            new=new,
            reason=_one_line(reason),
        )
        self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._rotate()
        line = json.dumps(asdict(record), ensure_ascii=False).encode() + b"\n"
        content = line if self._ends_a_line() else b"\n" + line
        gid = None if self.path.exists() else _gid(self._group)
        self._files.append(self.path, content, gid=gid)

    def _ends_a_line(self) -> bool:
        """A crash may have cut the last line short; the next one must not be lost with it."""
        if not self.path.exists() or self.path.stat().st_size == 0:
            return True
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

    def _rotate(self) -> None:
        if not self.path.exists() or self.path.stat().st_size < self._rotate_bytes:
            return
        for number in range(KEPT_ROTATIONS - 1, 0, -1):
            older = _rotated(self.path, number)
            if older.exists():
                older.replace(_rotated(self.path, number + 1))
        self.path.replace(_rotated(self.path, 1))


@dataclass(frozen=True)
class Damaged:
    """A line that is not a record: a crash cut it short, or somebody edited the file."""

    file: str
    line: int


def read_audit(directory: Path) -> Iterator[Record | Damaged]:
    """Every record, oldest first.

    Raises:
        StateError: the log is there but cannot be read.
    """
    path = directory / FILE_NAME
    for number in range(KEPT_ROTATIONS, -1, -1):
        file = path if number == 0 else _rotated(path, number)
        try:
            lines = file.read_bytes().splitlines()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StateError(
                f"The audit log {file} cannot be read ({error.strerror}); read it as root or as a member of "
                "its group."
            ) from error
        for index, line in enumerate(lines, start=1):
            record = _record(line)
            yield record if record is not None else Damaged(file.name, index)


def _record(line: bytes) -> Record | None:
    try:
        found: Any = json.loads(line)
        return Record(**{field.name: found[field.name] for field in fields(Record)})
    except (ValueError, TypeError, KeyError):
        return None


def _gid(group: str) -> int | None:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:  # the service was not installed here
        return None


def _rotated(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _one_line(text: str) -> str:
    """A client chooses these words: they may not forge a second line or fill the disk."""
    return _CONTROL_CHARACTERS.sub(" ", text)[:LONGEST_TEXT]
