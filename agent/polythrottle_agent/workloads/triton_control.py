"""The batch size of a model in Triton: `max_batch_size` and dynamic batching, set by loading the model anew.

The repository API takes a configuration in place of the repository's own. It replaces the whole, so the whole
is sent. It stays in force until another one is sent or Triton ends: loading without one changes nothing. The
original is therefore sent back as it was read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from polythrottle.configuration import Level, format_level
from polythrottle.errors import InvalidInputError
from polythrottle_agent.load.batching import BATCH_KNOB
from polythrottle_agent.ports import ControlError
from polythrottle_agent.workloads.triton_config import (
    Config,
    apart_from_batching,
    batch_size_of,
    holds,
    text_of,
    with_batch_size,
)
from polythrottle_agent.workloads.triton_original import KeptOriginal
from polythrottle_agent.workloads.triton_server import TritonError, TritonServer

_STATE = "config"


class TritonBatchControl:
    """The knob `batch_size` over one model of one Triton."""

    def __init__(self, server: TritonServer, found: Config, sizes: Sequence[int], kept: KeptOriginal) -> None:
        """
        Args:
            found: the model's configuration as it is loaded now.
            sizes: the levels.
            kept: where the original outlives this process.

        Raises:
            StateError: what an interrupted run kept cannot be used.
        """
        self._server = server
        self._sizes = tuple(sorted(set(sizes)))
        self._kept = kept
        self._left_behind = kept.left_behind(found)
        self._original = found if self._left_behind is None else self._left_behind

    @property
    def knob(self) -> str:
        return BATCH_KNOB

    @property
    def levels(self) -> tuple[Level, ...]:
        return tuple(float(size) for size in self._sizes)

    @property
    def original_size(self) -> int:
        return batch_size_of(self._original)

    def save(self) -> Mapping[str, str]:
        """What an interrupted run left loaded is not the original: until it is overwritten, that is what it
        found."""
        now = self._config()
        if self._left_behind is not None:
            return {_STATE: text_of(self._left_behind)}
        return {_STATE: text_of(now)}

    def apply(self, level: Level) -> None:
        if level not in self.levels:
            raise InvalidInputError(f"{BATCH_KNOB} has no level {format_level(level)}.")
        now = self._config()
        self._refuse_stranger(now, self._original)
        self._left_behind = None
        wanted = with_batch_size(self._original, int(level))
        if not holds(now, wanted):
            self._kept.keep(self._original, int(level))
            self._load(wanted)

    def accepted(self) -> Level:
        return float(batch_size_of(self._config()))

    def observed(self) -> Level:
        """The limit that holds. How large batches were is a note of each window: that is the load's doing."""
        return self.accepted()

    def restore(self, saved: Mapping[str, str]) -> None:
        original = _read(saved)
        now = self._config()
        self._left_behind = None
        if text_of(now) != text_of(original):
            self._refuse_stranger(now, original)
            self._load(original)
            if text_of(self._config()) != text_of(original):
                raise ControlError(f"{self._server.address} holds another configuration than was sent back")
        if text_of(original) == text_of(self._original):
            self._kept.forget()

    def _refuse_stranger(self, now: Config, expected: Config) -> None:
        """Nobody else's model may be replaced by the one that was here before."""
        if text_of(apart_from_batching(now)) != text_of(apart_from_batching(expected)):
            raise ControlError(
                f"somebody loaded another configuration of {self._server.address.model} meanwhile; "
                "it is left as it is"
            )

    def _load(self, config: Config) -> None:
        address = self._server.address
        try:
            self._server.load(config)
        except TritonError as error:
            serves = "; what was loaded before still serves" if self._still_serves() else ""
            raise ControlError(f"{address} did not load {address.model}: {error}{serves}") from error

    def _still_serves(self) -> bool:
        try:
            return self._server.is_ready()
        except TritonError:  # then nothing is said of it
            return False

    def _config(self) -> dict[str, Any]:
        try:
            return self._server.config()
        except TritonError as error:
            raise ControlError(f"{self._server.address}: {error}") from error


def _read(saved: Mapping[str, str]) -> dict[str, Any]:
    try:
        config = json.loads(saved[_STATE])
        if not isinstance(config, dict) or "name" not in config:
            raise ValueError("not a configuration")
    except (KeyError, ValueError) as error:
        raise ControlError(f"the saved state of {BATCH_KNOB} holds no configuration of a model") from error
    return config
