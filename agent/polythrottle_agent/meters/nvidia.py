"""Energy of an NVIDIA GPU: its counter in step with the counter's refresh, else its power, sampled.

The window begins at a refresh. It ends when it is closed, between two refreshes: the last part is the mean
power of the window times what has passed since the last refresh, within what the next one shows.

The standard error has three parts: how late a refresh is noticed at each end, the doubt in the last part, and
how far the counter and the power that was sampled beside it are apart, beyond what sampling explains. That
last one does not average out over windows; where the two agree it is zero.
"""

from __future__ import annotations

import math

from polythrottle.clock import Clock
from polythrottle.measurement import Provenance, Scope, Unavailable
from polythrottle_agent.meters.self_check import SelfCheck, judge
from polythrottle_agent.nvml.energy_ticks import WENT_BACK, EnergyTicks, Tick
from polythrottle_agent.nvml.gpu import MODULE_COUNTERS, Gpu
from polythrottle_agent.nvml.session import NvmlError, NvmlSession
from polythrottle_agent.nvml.watch import GpuWatch, Watched
from polythrottle_agent.ports import EnergyWindow

UNIFORM = math.sqrt(12.0)
"""A value somewhere in an interval has the interval over this as its standard deviation."""

SELF_CHECK_S = 3.0


class _NvidiaMeter:
    """What both meters share: the watch that runs beside every window, and what it saw in the last one."""

    def __init__(self, gpu: Gpu, clock: Clock, watch: GpuWatch) -> None:
        self._gpu, self._clock, self._watch = gpu, clock, watch
        self.watched: Watched | None = None
        """The last window's clocks, event reasons and power."""

    @property
    def scope(self) -> Scope:
        return Scope.MODULE if MODULE_COUNTERS.search(self._gpu.facts.name) else Scope.GPU

    @property
    def provenance(self) -> Provenance:
        return Provenance.MEASURED

    def _close_watch(self) -> None:
        self.watched = self._watch.end() or self.watched


class NvidiaPowerMeter(_NvidiaMeter):
    """Energy from power sampled at 10 Hz, where there is no counter.

    A constant factor of the sensor (±5 % by nvml.h, where it says so) is not in the standard error.
    """

    _began_s: float | None = None
    _problem: str | None = None

    @property
    def name(self) -> str:
        source = self._watch.source
        return "NVML power" if source is None else f"NVML {source.name}, sampled"

    def begin(self) -> None:
        """Open a window. What went wrong is said by `end`."""
        self._problem = None
        self._began_s = self._clock.now()
        try:
            if self._watch.source is None:
                self._problem = f"{self._gpu.facts.name} has neither an energy counter nor a power reading"
            self._watch.begin()
        except NvmlError as error:
            self._problem = str(error)

    def so_far(self) -> EnergyWindow | Unavailable:
        if self._began_s is None:
            return Unavailable("the meter's window was never opened")
        if self._problem is not None:
            return Unavailable(self._problem)
        return sampled_energy(self._watch.so_far(), self._began_s, self._clock.now())

    def end(self) -> EnergyWindow | Unavailable:
        began_s, self._began_s = self._began_s, None
        ended_s = self._clock.now()
        self._close_watch()
        if began_s is None:
            return Unavailable("the meter's window was never opened")
        if self._problem is not None:
            return Unavailable(self._problem)
        return sampled_energy(self.watched, began_s, ended_s)


def sampled_energy(watched: Watched | None, began_s: float, ended_s: float) -> EnergyWindow | Unavailable:
    """Energy of a window from the power that was sampled in it."""
    estimate = Unavailable("nothing was sampled") if watched is None else watched.mean_power(ended_s)
    if isinstance(estimate, Unavailable):
        return estimate
    window_s, error_w = ended_s - began_s, estimate.standard_error_w
    return EnergyWindow(estimate.mean_w * window_s, None if error_w is None else error_w * window_s, window_s)


class NvidiaCounterMeter(_NvidiaMeter):
    """Energy from the GPU's counter (Volta and later).

    The first window takes some refreshes longer to open, because the refresh period is measured then.
    """

    def __init__(self, gpu: Gpu, clock: Clock, watch: GpuWatch) -> None:
        super().__init__(gpu, clock, watch)
        self._ticks = EnergyTicks(gpu, clock)
        self._began: Tick | Unavailable | None = None

    @property
    def name(self) -> str:
        return "NVML energy counter"

    def refresh_s(self) -> float | Unavailable:
        """The counter's refresh period, measured on the first call."""
        try:
            return self._ticks.period_s()
        except NvmlError as error:
            return Unavailable(str(error))

    def begin(self) -> None:
        """Open a window, at a refresh of the counter. What went wrong is said by `end`."""
        try:
            period = self._ticks.period_s()
            self._began = period if isinstance(period, Unavailable) else self._ticks.next_tick()
            self._watch.begin()
        except NvmlError as error:
            self._began = Unavailable(str(error))

    def so_far(self) -> EnergyWindow | Unavailable:
        """The counter as it stands, up to one refresh old: `end` waits for the next one and knows better."""
        began = self._began
        if not isinstance(began, Tick):
            return began or Unavailable("the meter's window was never opened")
        try:
            last, period_s = self._ticks.read(), self._ticks.period_s()
        except NvmlError as error:
            return Unavailable(str(error))
        if isinstance(last, Unavailable):
            return last
        if isinstance(period_s, Unavailable):
            return period_s
        window_s = last.at_s - began.at_s
        if last.energy_mj <= began.energy_mj or window_s <= period_s:
            return Unavailable("the energy counter has not moved in this window yet")
        energy_j = (last.energy_mj - began.energy_mj) / 1e3
        return EnergyWindow(energy_j, energy_j * period_s / window_s / UNIFORM, window_s)

    def end(self) -> EnergyWindow | Unavailable:
        began, self._began = self._began, None
        if began is None:
            return Unavailable("the meter's window was never opened")
        try:
            last = self._ticks.read()
            self._close_watch()
            if isinstance(began, Unavailable):
                return began
            if isinstance(last, Unavailable):
                return last
            return self._energy(began, last)
        except NvmlError as error:
            self._close_watch()
            return Unavailable(str(error))

    def self_check(self, duration_s: float = SELF_CHECK_S) -> SelfCheck:
        """Compare the counter with sampled power, under whatever load there is; takes `duration_s`."""
        began_s = self._clock.now()
        self.begin()
        if isinstance(self._began, Tick):
            began_s = self._began.at_s
            self._clock.sleep(duration_s)
        counted = self.end()
        ended_s = began_s + (counted.window_s if isinstance(counted, EnergyWindow) else duration_s)
        polled = NvidiaPowerMeter(self._gpu, self._clock, self._watch)
        return judge(self, counted, polled, sampled_energy(self.watched, began_s, ended_s))

    def _energy(self, began: Tick, last: Tick) -> EnergyWindow | Unavailable:
        """The window from one refresh to `last`, a reading made between two."""
        window_s = last.at_s - began.at_s
        period_s = self._ticks.period_s()
        if isinstance(period_s, Unavailable):
            return period_s
        if last.energy_mj < began.energy_mj:
            return Unavailable(WENT_BACK)
        if window_s < period_s:
            return Unavailable(
                f"a window of {window_s * 1e3:.0f} ms is shorter than the counter's refresh "
                f"of {period_s * 1e3:.0f} ms; measure for longer"
            )
        following = self._ticks.next_tick(last)
        if isinstance(following, Unavailable):
            return following
        refreshed_s = following.at_s - period_s
        open_s = min(max(last.at_s - refreshed_s, 0.0), period_s)
        counted_j = (last.energy_mj - began.energy_mj) / 1e3
        if counted_j <= 0:
            return Unavailable(f"the energy counter did not move in {window_s:.2f} s")
        shown_j = (following.energy_mj - last.energy_mj) / 1e3
        mean_w = counted_j / max(refreshed_s - began.at_s, period_s)
        last_j = min(mean_w * open_s, shown_j)
        energy_j = counted_j + last_j
        edges_j = mean_w * math.hypot(began.late_s, following.late_s) / UNIFORM
        doubt_j = abs(last_j - shown_j * open_s / period_s) / math.sqrt(3.0)
        apart_j = self._apart(energy_j / window_s, last.at_s) * window_s
        return EnergyWindow(energy_j, math.hypot(edges_j, doubt_j, apart_j), window_s)

    def _apart(self, counter_w: float, ended_s: float) -> float:
        """How far sampled power is from the counter's, in W, beyond the standard error of the sampling."""
        sampled = Unavailable("") if self.watched is None else self.watched.mean_power(ended_s)
        if isinstance(sampled, Unavailable) or sampled.standard_error_w is None:
            return 0.0
        return max(abs(counter_w - sampled.mean_w) - sampled.standard_error_w, 0.0)


def nvidia_meter(session: NvmlSession, uuid: str, clock: Clock) -> NvidiaCounterMeter | NvidiaPowerMeter:
    """The best meter of a GPU: its energy counter, else its power. Asks only whether there is a counter.

    Raises:
        NvmlError: the GPU cannot be read at all.
    """
    gpu = Gpu(session, uuid)
    watch = GpuWatch(gpu, clock)
    if EnergyTicks(gpu, clock).exists():
        return NvidiaCounterMeter(gpu, clock, watch)
    return NvidiaPowerMeter(gpu, clock, watch)
