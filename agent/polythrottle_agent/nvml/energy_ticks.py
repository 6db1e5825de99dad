"""The energy counter's refresh: how often it moves, and waiting for the moment it does.

The counter stands still between refreshes, for 20 to 100 ms on the boards that were published about, so a
reading is up to one period old. Reading it at the moment it moves removes that age.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from itertools import pairwise

from polythrottle.clock import Clock
from polythrottle.measurement import Unavailable
from polythrottle_agent.nvml.gpu import Gpu

POLL_S = 0.001
"""How often the counter is looked at while a refresh is awaited, and so about how late one is noticed."""

SLOWEST_REFRESH_S = 2.0
"""A counter that stands still for this long is broken: even an idle GPU draws watts."""

TICKS_TO_TIME = 7

WENT_BACK = "the energy counter went back: the driver was reloaded"


@dataclass(frozen=True)
class Tick:
    """The counter in mJ when it was seen to have moved; it did so up to `late_s` before `at_s`."""

    at_s: float
    energy_mj: int
    late_s: float


class EnergyTicks:
    """Reads one GPU's energy counter in step with its refresh. NVML's errors pass through."""

    def __init__(self, gpu: Gpu, clock: Clock) -> None:
        self._gpu, self._clock = gpu, clock
        self._period_s: float | None = None

    def exists(self) -> bool:
        return self._gpu.energy_mj() is not None

    def read(self) -> Tick | Unavailable:
        """The counter as it stands: a tick of unknown age."""
        energy = self._gpu.energy_mj()
        if energy is None:
            return Unavailable(f"{self._gpu.facts.name} has no energy counter (it needs Volta or later)")
        return Tick(self._clock.now(), energy, 0.0)

    def next_tick(self, after: Tick | None = None) -> Tick | Unavailable:
        """Wait until the counter moves: from where it stands now, or from an earlier reading."""
        start = self.read() if after is None else after
        if isinstance(start, Unavailable):
            return start
        looked_s = start.at_s
        while looked_s - start.at_s < SLOWEST_REFRESH_S:
            now = self.read()
            if isinstance(now, Unavailable):
                return now
            if now.energy_mj < start.energy_mj:
                return Unavailable(WENT_BACK)
            if now.energy_mj > start.energy_mj:
                return Tick(now.at_s, now.energy_mj, now.at_s - looked_s)
            looked_s = now.at_s
            self._clock.sleep(POLL_S)
        return Unavailable(f"the energy counter stood still for {SLOWEST_REFRESH_S:g} s")

    def period_s(self) -> float | Unavailable:
        """The refresh period, measured once: the median of a few."""
        if self._period_s is not None:
            return self._period_s
        moments: list[float] = []
        tick: Tick | None = None
        for _ in range(TICKS_TO_TIME + 1):
            found = self.next_tick(tick)
            if isinstance(found, Unavailable):
                return found
            tick = found
            moments.append(tick.at_s)
        self._period_s = statistics.median(later - earlier for earlier, later in pairwise(moments))
        return self._period_s
