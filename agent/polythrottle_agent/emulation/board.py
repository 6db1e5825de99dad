"""An emulated board: the nodes a kernel offers, its rounding, and an energy counter that time drives."""

from __future__ import annotations

import bisect
import random
from collections.abc import Sequence
from dataclasses import dataclass

from polythrottle.clock import Clock
from polythrottle.physics import OperatingPoint
from polythrottle_agent.emulation.behaviour import Behaviour
from polythrottle_agent.emulation.boards import DEFAULT_BATCH_SIZE

WRITE_S = 0.017
"""One write to a node, as the paper measured on its boards."""


def round_up(wanted: float, table: Sequence[float]) -> float:
    """The lowest level not below `wanted`, or the highest: what a GPU or memory clock does off its table."""
    return table[min(bisect.bisect_left(table, wanted), len(table) - 1)]


def round_down(wanted: float, table: Sequence[float]) -> float:
    """The highest level not above `wanted`, or the lowest: what a maximum CPU clock does off its table."""
    return table[max(bisect.bisect_right(table, wanted) - 1, 0)]


@dataclass
class Nodes:
    """What the kernel holds. Clocks in MHz.

    `floor_held` is True while somebody sets the GPU floor itself; else locking the GPU moves it along.
    `mem_locked_mhz` is None while memory is unlocked. `cpu_pinned` is False under the CPU's governor.
    """

    gpu_min_mhz: float
    gpu_max_mhz: float
    floor_held: bool
    mem_locked_mhz: float | None
    cpu_max_mhz: float
    cpu_pinned: bool
    batch: int


class EmulatedBoard:
    """A board that runs one workload. Emulated seconds pass only through `clock`.

    It starts as found: GPU floor at its lowest and maximum at its highest level, so that the governor
    lets the clock sag; memory unlocked; CPU under its governor; batch 1.
    """

    def __init__(self, behaviour: Behaviour, clock: Clock, seed: int) -> None:
        self.behaviour = behaviour
        self.clock = clock
        self.random = random.Random(seed)
        tables = behaviour.board
        self.nodes = Nodes(
            gpu_min_mhz=tables.gpu_mhz[0],
            gpu_max_mhz=tables.gpu_mhz[-1],
            floor_held=False,
            mem_locked_mhz=None,
            cpu_max_mhz=tables.cpu_mhz[-1],
            cpu_pinned=False,
            batch=DEFAULT_BATCH_SIZE,
        )
        self._energy_j = 0.0
        self._counted_until_s = clock.now()
        self._power_w = self._idle_power_w()

    # What can be written. Each write takes WRITE_S.

    def lock_gpu(self, wanted_mhz: float) -> None:
        """Maximum GPU clock; the floor follows unless it is held."""
        level = round_up(wanted_mhz, self.behaviour.board.gpu_mhz)
        self.nodes.gpu_max_mhz = level
        if not self.nodes.floor_held:
            self.nodes.gpu_min_mhz = level
        self._written()

    def hold_gpu_floor(self, wanted_mhz: float) -> None:
        """Minimum GPU clock. Above the maximum it is accepted, and the maximum wins."""
        self.nodes.gpu_min_mhz = round_up(wanted_mhz, self.behaviour.board.gpu_mhz)
        self.nodes.floor_held = True
        self._written()

    def lock_memory(self, wanted_mhz: float | None) -> None:
        """Fix the memory clock; None unlocks it."""
        tables = self.behaviour.board
        self.nodes.mem_locked_mhz = None if wanted_mhz is None else round_up(wanted_mhz, tables.mem_mhz)
        self._written()

    def pin_cpu(self, wanted_mhz: float) -> None:
        """Fix the CPU clock."""
        self.nodes.cpu_max_mhz = round_down(wanted_mhz, self.behaviour.board.cpu_mhz)
        self.nodes.cpu_pinned = True
        self._written()

    def set_batch(self, batch: int) -> None:
        """Batch size of the workload, from the next batch on."""
        self.nodes.batch = batch
        self._written()

    def put_back(self, **nodes: float | bool | None) -> None:
        """Set nodes to saved values as they are, without rounding."""
        for name, value in nodes.items():
            setattr(self.nodes, name, value)
        self._written()

    # What can be read.

    @property
    def gpu_under_load_mhz(self) -> float:
        """Mean GPU clock while the workload is served: the governor's choice, not below the floor."""
        nodes = self.nodes
        sagged = nodes.gpu_max_mhz * float(self.behaviour.calibration.model.sag)
        return max(sagged, min(nodes.gpu_min_mhz, nodes.gpu_max_mhz))

    @property
    def mem_under_load_mhz(self) -> float:
        """Memory clock while the workload is served; unlocked memory runs at its highest level."""
        locked = self.nodes.mem_locked_mhz
        return self.behaviour.board.mem_mhz[-1] if locked is None else locked

    @property
    def cpu_under_load_mhz(self) -> float:
        """Mean CPU clock while the workload is served."""
        nodes = self.nodes
        return nodes.cpu_max_mhz * (1.0 if nodes.cpu_pinned else self.behaviour.calibration.stock_cpu)

    def point_under_load(self) -> OperatingPoint:
        return self.behaviour.point(
            cpu_mhz=self.cpu_under_load_mhz,
            gpu_mhz=self.gpu_under_load_mhz,
            mem_mhz=self.mem_under_load_mhz,
            batch=self.nodes.batch,
        )

    @property
    def energy_scatter(self) -> float:
        """Relative standard deviation of a window's energy at the present batch."""
        return self.behaviour.calibration.noise.scatter(self.nodes.batch)

    def energy_counter_j(self) -> float:
        """Energy since the board was made. Rises with the clock, never falls."""
        now_s = self.clock.now()
        self._energy_j += self._power_w * max(now_s - self._counted_until_s, 0.0)
        self._counted_until_s = now_s
        return self._energy_j

    def run(self, duration_s: float, power_w: float) -> None:
        """Be busy for a time, in seconds, at a mean power in watts."""
        self.energy_counter_j()
        self._power_w = power_w
        try:
            self.clock.sleep(duration_s)
        finally:
            self.energy_counter_j()
            self._power_w = self._idle_power_w()

    def _written(self) -> None:
        self.clock.sleep(WRITE_S)
        self.energy_counter_j()
        self._power_w = self._idle_power_w()

    def _idle_power_w(self) -> float:
        """At rest a clock falls as far as it is allowed to."""
        nodes, tables = self.nodes, self.behaviour.board
        return self.behaviour.idle_power_w(
            self.behaviour.point(
                cpu_mhz=nodes.cpu_max_mhz if nodes.cpu_pinned else tables.cpu_mhz[0],
                gpu_mhz=min(nodes.gpu_min_mhz, nodes.gpu_max_mhz),
                mem_mhz=tables.mem_mhz[0] if nodes.mem_locked_mhz is None else nodes.mem_locked_mhz,
                batch=nodes.batch,
            )
        )
