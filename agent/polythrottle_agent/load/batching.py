"""The batch size of whoever sends: a number in this process that a knob sets."""

from __future__ import annotations

from collections.abc import Mapping

from polythrottle.configuration import Level, format_level
from polythrottle.errors import InvalidInputError
from polythrottle_agent.ports import ControlError

BATCH_KNOB = "batch_size"
DEFAULT_BATCH_SIZES = (1, 2, 4, 8, 16)


class BatchSize:
    """Holds the batch size; a sender reads `value`, `BatchControl` writes it."""

    def __init__(self, sizes: tuple[int, ...] = (), default: int = 1) -> None:
        self.sizes = tuple(sorted(set(sizes)))
        self.default = default
        self.value = default


class BatchControl:
    """The knob `batch_size` over a `BatchSize`."""

    def __init__(self, batch: BatchSize) -> None:
        self._batch = batch

    @property
    def knob(self) -> str:
        return BATCH_KNOB

    @property
    def levels(self) -> tuple[Level, ...]:
        return tuple(float(size) for size in self._batch.sizes)

    def save(self) -> Mapping[str, str]:
        return {"batch": str(self._batch.value)}

    def apply(self, level: Level) -> None:
        if level not in self.levels:
            raise InvalidInputError(f"{BATCH_KNOB} has no level {format_level(level)}.")
        self._batch.value = int(level)

    def accepted(self) -> Level:
        return float(self._batch.value)

    def observed(self) -> Level:
        return self.accepted()

    def restore(self, saved: Mapping[str, str]) -> None:
        """Nothing outside this process changed: what another process saved only sets the number."""
        text = saved.get("batch", "")
        if not text.isdecimal() or int(text) < 1:
            raise ControlError(f"the saved state of {BATCH_KNOB} lacks a batch")
        self._batch.value = int(text)
