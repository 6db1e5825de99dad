"""What a guard did and asks for, one JSON object a line: for people, and for whoever searches again.

`polythrottle-agent` and a server find in it what calls for another search: `pending_requests`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from polythrottle.configuration import Level
from polythrottle.errors import StateError
from polythrottle_agent.privileged.files import Files

SCHEMA = "polythrottle-guard/1"
FILE_NAME = "guard.jsonl"
ROTATE_BYTES = 4 * 2**20


class Kind(str, Enum):
    """What happened."""

    STARTED = "started"
    STATE = "state"
    """Only a move of the state, such as to suspicious and back."""
    FELL_BACK = "fell_back"
    NOT_SWITCHED = "not_switched"
    """A configuration could not be put in force; a fall back is tried again."""
    RETURNED = "returned"
    NOTHING_SAFER = "nothing_safer"
    SEARCH_WANTED = "search_wanted"
    """The request for another search. Stands until a line says that it was answered."""
    SEARCH_ANSWERED = "search_answered"
    STOPPED = "stopped"


@dataclass(frozen=True)
class GuardEvent:
    """One line. `at` is UTC; `detected_s` and `took_s` are seconds of the machine's monotonic clock.

    settings: the levels that are now in force, {} for the device as found; None where that did not change.
    took_s: from the detection until the levels were read back. evidence: what was seen, by name, in SI units.
    """

    at: str
    event: Kind
    state: str
    device: str
    cause: str | None = None
    reason: str = ""
    study: str | None = None
    settings: Mapping[str, Level] | None = None
    detected_s: float | None = None
    took_s: float | None = None
    evidence: Mapping[str, float | str] = field(default_factory=dict)

    def as_json(self) -> str:
        plain = replace(self, settings=None if self.settings is None else dict(self.settings))
        content = {"schema": SCHEMA, **asdict(plain), "event": self.event.value}
        return json.dumps(content, ensure_ascii=False, allow_nan=False)


def now_utc() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


class Listener(Protocol):
    """Hears what a guard does, as it does it."""

    def told(self, event: GuardEvent) -> None: ...


class GuardLog:
    """Append-only, each line on disk before `told` returns; the older half goes to `guard.jsonl.1`."""

    def __init__(self, directory: Path, files: Files | None = None) -> None:
        self.path = directory / FILE_NAME
        self._files = files if files is not None else Files()

    def told(self, event: GuardEvent) -> None:
        """
        Raises:
            StateError: the line could not be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and self.path.stat().st_size >= ROTATE_BYTES:
                self.path.replace(self.path.with_name(f"{FILE_NAME}.1"))
            line = event.as_json().encode() + b"\n"
            self._files.append(self.path, line if _ends_a_line(self.path) else b"\n" + line)
        except OSError as error:
            raise StateError(f"The guard's log {self.path} cannot be written ({error.strerror}).") from error


def _ends_a_line(path: Path) -> bool:
    """A crash may have cut the last line short; the next one must not be lost with it."""
    if not path.exists() or path.stat().st_size == 0:
        return True
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def read_events(directory: Path) -> Iterator[GuardEvent]:
    """Every event that can be understood, oldest first; a line that a crash cut short is skipped.

    Raises:
        StateError: the log is there but cannot be read.
    """
    for name in (f"{FILE_NAME}.1", FILE_NAME):
        try:
            lines = (directory / name).read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StateError(
                f"The guard's log {directory / name} cannot be read ({error.strerror})."
            ) from error
        for line in lines:
            event = _event(line)
            if event is not None:
                yield event


def pending_requests(directory: Path, device: str | None = None) -> tuple[GuardEvent, ...]:
    """Requests for another search that nobody has answered: the newest of each device.

    Args:
        device: only this one's.
    """
    waiting: dict[str, GuardEvent] = {}
    for event in read_events(directory):
        if event.event is Kind.SEARCH_WANTED:
            waiting[event.device] = event
        elif event.event is Kind.SEARCH_ANSWERED:
            waiting.pop(event.device, None)
    return tuple(e for d, e in waiting.items() if device in (None, d))


def _event(line: str) -> GuardEvent | None:
    try:
        found: Any = json.loads(line)
        if found.pop("schema") != SCHEMA:
            return None
        known = {f.name for f in fields(GuardEvent)}
        content = {name: value for name, value in found.items() if name in known}
        return GuardEvent(**{**content, "event": Kind(content["event"])})
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
