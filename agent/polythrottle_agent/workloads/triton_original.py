"""A model's own configuration on disk, while another one is loaded in its place: for when nobody lives to put
it back."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from polythrottle.errors import StateError
from polythrottle_agent.ports import ControlError
from polythrottle_agent.privileged.files import Files
from polythrottle_agent.workloads.triton_config import (
    Config,
    apart_from_batching,
    batch_size_of,
    text_of,
)
from polythrottle_agent.workloads.triton_server import Address, TritonError, TritonServer

SCHEMA = "polythrottle-triton/1"
STATE_DIR_VARIABLE = "POLYTHROTTLE_STATE_DIR"


def state_directory() -> Path:
    """Where what workloads must not forget is kept."""
    named = os.environ.get(STATE_DIR_VARIABLE)
    return (Path(named) if named else platformdirs.user_state_path("polythrottle")) / "workloads"


class KeptOriginal:
    """The original of one model, and the batch sizes that were loaded in its place.

    A Triton that was started again has its repository's configuration: then nothing is left to put back.
    """

    def __init__(self, directory: Path, address: Address) -> None:
        self._target = address.target
        digest = hashlib.sha256(self._target.encode()).hexdigest()[:12]
        self.path = directory / f"triton-{digest}.json"
        self._files = Files()
        self._original: dict[str, Any] | None = None
        self._ours: set[int] = set()

    def left_behind(self, now: Config) -> dict[str, Any] | None:
        """The original, where what is loaded now was loaded by an interrupted run; else None, and forgotten.

        Raises:
            StateError: there is a file, and it cannot be used.
        """
        try:
            body = json.loads(self.path.read_text(encoding="utf-8"))
            if body["schema"] != SCHEMA:
                raise ValueError(f"schema {body['schema']!r}")
            original: dict[str, Any] = dict(body["original"])
            ours = {int(size) for size in body["ours"]}
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StateError(
                f"{self.path} cannot be used ({error}), so the original configuration of {self._target} is "
                "not known; restart Triton, which loads the repository's, and delete the file."
            ) from error
        self._original, self._ours = original, ours
        same = text_of(apart_from_batching(now)) == text_of(apart_from_batching(original))
        if same and text_of(now) != text_of(original) and batch_size_of(now) in ours:
            return original
        self.forget()
        return None

    def keep(self, original: Config, size: int) -> None:
        """Said before the model is loaded with another batch size.

        Raises:
            ControlError: it cannot be written, so nothing may be changed.
        """
        if self._original is not None and size in self._ours:
            return
        self._original = dict(original) if self._original is None else self._original
        self._ours.add(size)
        body = {
            "schema": SCHEMA,
            "target": self._target,
            "original": self._original,
            "ours": sorted(self._ours),
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._files.replace(self.path, json.dumps(body, indent=1).encode() + b"\n", 0o600)
        except OSError as error:
            raise ControlError(
                f"{self.path} cannot be written ({error.strerror or error}), so nothing is changed in Triton"
            ) from error

    def forget(self) -> None:
        """The original is back.

        Raises:
            ControlError: the file cannot be removed.
        """
        self._original, self._ours = None, set()
        if not self.path.exists():
            return
        try:
            self._files.remove(self.path)
        except OSError as error:
            raise ControlError(f"{self.path} cannot be removed ({error.strerror or error})") from error


@dataclass(frozen=True)
class PutBack:
    """What became of one model's original; `problem` None: it is back, or holds anyway."""

    target: str
    problem: str | None


def put_back_all(directory: Path | None = None) -> Iterator[PutBack]:
    """Put back what interrupted runs left in any Triton, as `polythrottle restore` does.

    Raises:
        StateError: a file cannot be used.
    """
    for path in sorted((directory or state_directory()).glob("triton-*.json")):
        try:
            target = str(json.loads(path.read_text(encoding="utf-8"))["target"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StateError(
                f"{path} cannot be used ({error}); restart Triton and delete the file."
            ) from error
        yield PutBack(target, _put_back(path.parent, target))


def _put_back(directory: Path, target: str) -> str | None:
    server = TritonServer(Address.parse(target))
    kept = KeptOriginal(directory, server.address)
    try:
        original = kept.left_behind(server.config())
        if original is not None:
            server.load(original)
            if text_of(server.config()) != text_of(original):
                return "it holds another configuration than was sent back"
            kept.forget()
    except (TritonError, ControlError) as error:
        return str(error)
    return None
