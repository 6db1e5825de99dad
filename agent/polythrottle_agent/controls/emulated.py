"""Controls of an emulated board: one class, one instance a knob."""

from __future__ import annotations

import json
from collections.abc import Mapping

from polythrottle.configuration import UNLOCKED, Level, format_level
from polythrottle.errors import InvalidInputError
from polythrottle_agent.emulation.board import EmulatedBoard
from polythrottle_agent.emulation.boards import BATCH_SIZES, CPU_KNOB, GPU_KNOB, GPU_MIN_KNOB, MEM_KNOB
from polythrottle_agent.ports import ControlError

BATCH_KNOB = "batch_size"

# The nodes each knob moves: what `save` keeps.
_NODES: Mapping[str, tuple[str, ...]] = {
    GPU_KNOB: ("gpu_max_mhz", "gpu_min_mhz"),
    GPU_MIN_KNOB: ("gpu_min_mhz", "floor_held"),
    MEM_KNOB: ("mem_locked_mhz",),
    CPU_KNOB: ("cpu_max_mhz", "cpu_pinned"),
    BATCH_KNOB: ("batch",),
}

EMULATED_KNOBS: tuple[str, ...] = tuple(_NODES)


class EmulatedControl:
    """One knob of an emulated board.

    `gpu_freq_mhz` locks the GPU: its floor follows its maximum, unless `gpu_min_freq_mhz` holds the floor.
    """

    def __init__(self, board: EmulatedBoard, knob: str) -> None:
        self._board = board
        self._knob = knob

    @property
    def knob(self) -> str:
        return self._knob

    @property
    def levels(self) -> tuple[Level, ...]:
        if self._knob == BATCH_KNOB:
            return tuple(float(batch) for batch in BATCH_SIZES)
        return self._board.behaviour.board.knobs[self._knob].levels

    def save(self) -> Mapping[str, str]:
        return {name: json.dumps(getattr(self._board.nodes, name)) for name in _NODES[self._knob]}

    def apply(self, level: Level) -> None:
        if level not in self.levels:
            name = self._board.behaviour.board.name
            raise InvalidInputError(f"{self._knob} of emulated:{name} has no level {format_level(level)}.")
        if self._knob == MEM_KNOB:
            self._board.lock_memory(None if level == UNLOCKED else float(level))
        elif self._knob == GPU_KNOB:
            self._board.lock_gpu(float(level))
        elif self._knob == GPU_MIN_KNOB:
            self._board.hold_gpu_floor(float(level))
        elif self._knob == CPU_KNOB:
            self._board.pin_cpu(float(level))
        else:
            self._board.set_batch(int(level))

    def accepted(self) -> Level:
        nodes = self._board.nodes
        if self._knob == MEM_KNOB:
            return UNLOCKED if nodes.mem_locked_mhz is None else nodes.mem_locked_mhz
        return {
            GPU_KNOB: nodes.gpu_max_mhz,
            GPU_MIN_KNOB: nodes.gpu_min_mhz,
            CPU_KNOB: nodes.cpu_max_mhz,
            BATCH_KNOB: float(nodes.batch),
        }[self._knob]

    def observed(self) -> Level:
        """The mean clock under the workload's load. A floor is observed as it stands."""
        board = self._board
        return {
            GPU_KNOB: board.gpu_under_load_mhz,
            GPU_MIN_KNOB: board.nodes.gpu_min_mhz,
            MEM_KNOB: board.mem_under_load_mhz,
            CPU_KNOB: board.cpu_under_load_mhz,
            BATCH_KNOB: float(board.nodes.batch),
        }[self._knob]

    def restore(self, saved: Mapping[str, str]) -> None:
        names = _NODES[self._knob]
        missing = [name for name in names if name not in saved]
        if missing:
            raise ControlError(f"the saved state of {self._knob} lacks {missing[0]}")
        values = {name: json.loads(saved[name]) for name in names}
        self._board.put_back(**values)
