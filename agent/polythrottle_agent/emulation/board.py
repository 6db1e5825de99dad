"""An emulated board: the clocks that hold, its rounding, and an energy counter that time drives."""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from polythrottle.clock import Clock
from polythrottle.physics import OperatingPoint
from polythrottle_agent.emulation.behaviour import Behaviour, Shares
from polythrottle_agent.emulation.boards import DEFAULT_BATCH_SIZE
from polythrottle_agent.emulation.noise import Conditions, draw_conditions, draw_latency

WRITE_S = 0.017
"""One write to a node, as the paper measured on its boards."""

STEP_S = 0.05
IDLE_STEP_S = 1.0
"""Longest stretch shown to observers at once, while serving and at rest: clocks can throttle between."""


LOOK_BACK_S = 0.05
"""For so long after a load ends, clocks stay where it put them: two polls of the GPU's governor."""

MOST_COSTS = 256
"""Operating points whose latency and power are kept at hand."""


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

    The rest only moves where the board's sysfs or its surroundings are emulated: `mem_ceiling_mhz` and
    `mem_floor_mhz` bound unlocked memory, `cpu_min_mhz` the CPU's governor; `cores` is how many CPUs, of how
    many, are online (None: all); `gpu_limit_mhz` and `cpu_limit_mhz` are what throttling leaves.
    """

    gpu_min_mhz: float
    gpu_max_mhz: float
    floor_held: bool
    mem_locked_mhz: float | None
    cpu_max_mhz: float
    cpu_pinned: bool
    batch: int
    mem_ceiling_mhz: float | None = None
    mem_floor_mhz: float | None = None
    cpu_min_mhz: float | None = None
    cores: tuple[int, int] | None = None
    gpu_limit_mhz: float = math.inf
    cpu_limit_mhz: float = math.inf


class Observer(Protocol):
    """Sees time pass on a board: a power sensor, the board's temperature."""

    def passed(self, began_s: float, lasted_s: float, power_w: float, shares: Shares, /) -> None:
        """The board drew `power_w`, divided into `shares`, for `lasted_s` from `began_s` on the clock."""


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
        self.observers: list[Observer] = []
        self.power_drift = 1.0
        """Multiplies the power of batches from `begin_batch`; surroundings let it wander."""
        self._energy_j = 0.0
        self._counted_until_s = clock.now()
        self._power_w = self._idle_power_w()
        self._busy_until_s: float | None = None
        self._last_busy_s = -math.inf
        self._conditions = Conditions(1.0, 1.0)
        self._shares: Shares | None = None
        self._in_service: int | None = None
        """Queries of the batch in service; None under `run`, which serves full ones."""
        self._costs: dict[OperatingPoint, tuple[float, float]] = {}

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
        return min(max(sagged, min(nodes.gpu_min_mhz, nodes.gpu_max_mhz)), nodes.gpu_limit_mhz)

    @property
    def mem_under_load_mhz(self) -> float:
        """Memory clock while the workload is served; unlocked memory runs at its highest level."""
        nodes = self.nodes
        if nodes.mem_locked_mhz is not None:
            return nodes.mem_locked_mhz
        return nodes.mem_ceiling_mhz or self.behaviour.board.mem_mhz[-1]

    @property
    def cpu_under_load_mhz(self) -> float:
        """Mean CPU clock while the workload is served."""
        nodes = self.nodes
        mhz = nodes.cpu_max_mhz * (1.0 if nodes.cpu_pinned else self.behaviour.calibration.stock_cpu)
        return min(max(mhz, nodes.cpu_min_mhz or 0.0), nodes.cpu_limit_mhz)

    @property
    def last_busy_s(self) -> float:
        """When a batch was last being served, on the board's clock; now, while one is."""
        if self._busy_until_s is None:
            return self._last_busy_s
        return min(self.clock.now(), self._busy_until_s)

    @property
    def looks_busy(self) -> bool:
        """Whether governors and monitors still see the load: they look back a little."""
        return self.clock.now() - self.last_busy_s < LOOK_BACK_S

    def point_under_load(self) -> OperatingPoint:
        return self._point(self.cpu_under_load_mhz, self.gpu_under_load_mhz, self.mem_under_load_mhz)

    @property
    def energy_scatter(self) -> float:
        """Relative standard deviation of a window's energy at the present batch."""
        return self.behaviour.calibration.noise.scatter(self.nodes.batch)

    def energy_counter_j(self) -> float:
        """Energy since the board was made. Rises with the clock, never falls."""
        self.count_until(self.clock.now())
        return self._energy_j

    # What takes time.

    def run(self, duration_s: float, power_w: float) -> None:
        """Be busy for a time, in seconds, at a mean power in watts."""
        self.energy_counter_j()
        self._power_w = power_w
        self._busy_until_s = math.inf
        self._in_service = None
        self._shares = None
        try:
            self.clock.sleep(duration_s)
        finally:
            self.energy_counter_j()
            self._last_busy_s = self.clock.now()
            self._rest()

    def begin_window(self) -> None:
        """Draw the conditions that the batches from here on share."""
        self._conditions = draw_conditions(self.energy_scatter, self.random)

    def begin_batch(self, n_queries: int | None = None) -> float:
        """Start serving one batch at the clocks that hold now; its latency in seconds.

        The caller lets that time pass. The board goes to rest by itself when it is over, so a caller that
        dies leaves no load behind.

        Args:
            n_queries: how many are in it; None: a full one. A batch that is not full costs what one of its
                size does.
        """
        now_s = self.clock.now()
        self.count_until(now_s)
        self._in_service = n_queries
        seconds, _ = self._cost()
        latency_s = draw_latency(
            seconds * self._conditions.latency, self.behaviour.calibration.noise, self.random
        )
        self._busy_until_s = now_s + latency_s
        self.clocks_changed()
        return latency_s

    def clocks_changed(self) -> None:
        """Draw from now on what the present nodes cost."""
        self._shares = None
        if self._busy_until_s is None:
            self._power_w = self._idle_power_w()
        else:
            _, watts = self._cost()
            self._power_w = watts * self._conditions.power * self.power_drift

    def _cost(self) -> tuple[float, float]:
        """Mean seconds and watts of the batch in service, at the present clocks."""
        point = self._point_in_service()
        cost = self._costs.get(point)
        if cost is None:
            if len(self._costs) >= MOST_COSTS:
                self._costs.clear()
            cost = self._costs[point] = self.behaviour.latency_and_power(point)
        return cost

    def count_until(self, now_s: float) -> None:
        """Count energy up to a moment that has come, and show observers what passed."""
        while self._counted_until_s < now_s:
            until_s = now_s
            if self._busy_until_s is not None:
                until_s = min(until_s, self._busy_until_s)
            if self.observers:
                step_s = IDLE_STEP_S if self._busy_until_s is None else STEP_S
                until_s = min(until_s, self._counted_until_s + step_s)
            until_s = max(until_s, self._counted_until_s)
            began_s, self._counted_until_s = self._counted_until_s, until_s
            self._energy_j += self._power_w * (until_s - began_s)
            self._show(began_s, until_s - began_s)
            if self._busy_until_s is not None and until_s >= self._busy_until_s:
                self._last_busy_s = self._busy_until_s
                self._rest()

    def _show(self, began_s: float, lasted_s: float) -> None:
        if not self.observers or lasted_s <= 0.0:
            return
        if self._shares is None:
            busy = self._busy_until_s is not None
            point = self._point_in_service() if busy else self._point_at_rest()
            self._shares = self.behaviour.shares(point, busy=busy)
        power_w, shares = self._power_w, self._shares
        for observer in self.observers:
            observer.passed(began_s, lasted_s, power_w, shares)

    def _rest(self) -> None:
        self._busy_until_s = None
        self._shares = None
        self._power_w = self._idle_power_w()

    def _written(self) -> None:
        self.clock.sleep(WRITE_S)
        self.energy_counter_j()
        self.clocks_changed()

    def _point_in_service(self) -> OperatingPoint:
        point = self.point_under_load()
        return point if self._in_service is None else replace(point, batch=float(self._in_service))

    def _point(self, cpu_mhz: float, gpu_mhz: float, mem_mhz: float) -> OperatingPoint:
        point = self.behaviour.point(
            cpu_mhz=cpu_mhz, gpu_mhz=gpu_mhz, mem_mhz=mem_mhz, batch=self.nodes.batch
        )
        if self.nodes.cores is None:
            return point
        online, fitted = self.nodes.cores
        return replace(point, cores=float(online), cores_max=float(fitted))

    def _idle_power_w(self) -> float:
        return self.behaviour.idle_power_w(self._point_at_rest())

    def _point_at_rest(self) -> OperatingPoint:
        """At rest a clock falls as far as it is allowed to."""
        nodes, tables = self.nodes, self.behaviour.board
        cpu_mhz = nodes.cpu_max_mhz if nodes.cpu_pinned else nodes.cpu_min_mhz or tables.cpu_mhz[0]
        mem_mhz = nodes.mem_locked_mhz
        if mem_mhz is None:
            mem_mhz = nodes.mem_floor_mhz or tables.mem_mhz[0]
        return self._point(
            cpu_mhz=min(cpu_mhz, nodes.cpu_limit_mhz),
            gpu_mhz=min(nodes.gpu_min_mhz, nodes.gpu_max_mhz, nodes.gpu_limit_mhz),
            mem_mhz=mem_mhz,
        )
