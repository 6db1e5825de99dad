"""The memory clock (EMC) as BPMP holds it: lock, rounding, caps, and demand that moves it. In Hz."""

from __future__ import annotations

import errno

from polythrottle_agent.emulation.board import EmulatedBoard, round_up
from polythrottle_agent.emulation.kernels import Kernel, refused

HZ_PER_MHZ = 1e6


class Emc:
    """A lock holds while `mrq_rate_locked` is 1 and, from JetPack 6 on, `bwmgr_halt` as well.

    rejects: BPMP refuses every write in silence, as seen where firmware says no.
    stuck_hz: a ceiling that no file shows (boards were seen that stop at 2133 MHz).
    """

    def __init__(
        self, kernel: Kernel, board: EmulatedBoard, table_mhz: tuple[float, ...], stuck_mhz: float | None
    ) -> None:
        self.kernel, self.board = kernel, board
        self.rates_hz = tuple(round(mhz * HZ_PER_MHZ) for mhz in table_mhz)
        self.stuck_hz = None if stuck_mhz is None else round(stuck_mhz * HZ_PER_MHZ)
        self.rejects = False
        self.drifts = False
        """Something below the bandwidth manager moves the clock anyway, as Thor's osp-controller may."""
        self.locked = False
        self.halted = False
        self.state = 1
        self.iso_cap_hz = 0
        self._clk_cap_hz = self.rates_hz[-1]
        self._held_hz: int | None = None
        self._floor_hz = self.rates_hz[0]
        self.changed()

    # The files.

    def store_locked(self, wanted: int) -> None:
        if self.rejects:
            return
        locked = wanted != 0
        if locked and not self.locked:
            self._held_hz = self.rate_hz
        self.locked = locked
        self.changed()

    def store_rate(self, wanted_hz: int) -> None:
        """Rounded up to a rate that can be locked. Without the lock, demand overrides it at once."""
        if self.rejects or not self.locked:
            return
        self._held_hz = min(round(round_up(wanted_hz, self.rates_hz)), self.ceiling_hz)
        self.changed()

    def store_state(self, wanted: int) -> None:
        if not self.rejects:
            self.state = int(wanted != 0)

    def store_halted(self, wanted: int) -> None:
        if not self.rejects:
            self.halted = wanted != 0
            self.changed()

    def store_iso_cap(self, wanted_hz: int) -> None:
        """nvpmodel's cap up to JetPack 5: 0 lifts it. Reading gives the last value written."""
        self.iso_cap_hz = wanted_hz
        self.changed()

    def store_clk_cap(self, wanted_hz: int) -> None:
        """nvpmodel's cap from JetPack 6 on: rounded up; 0 does not lift it.

        Raises:
            OSError: EINVAL, BPMP refused.
        """
        if self.rejects:
            raise refused(errno.EINVAL)
        self._clk_cap_hz = round(round_up(wanted_hz, self.rates_hz))
        self.changed()

    @property
    def clk_cap_hz(self) -> int:
        return self._clk_cap_hz

    @property
    def max_rate_hz(self) -> int:
        """What BPMP says is its highest rate, whether or not it can be reached."""
        return self.rates_hz[-1]

    @property
    def ceiling_hz(self) -> int:
        """The highest rate that can be reached now."""
        cap_hz = self._clk_cap_hz if self.kernel.clk_cap else self.iso_cap_hz or self.rates_hz[-1]
        ceiling = min(self.rates_hz[-1], max(cap_hz, self.rates_hz[0]), self.stuck_hz or self.rates_hz[-1])
        return max(rate for rate in self.rates_hz if rate <= ceiling)

    @property
    def holds(self) -> bool:
        """Whether a lock fixes the clock now."""
        return self.locked and not self.drifts and (self.halted or not self.kernel.halts_bwmgr)

    @property
    def rate_hz(self) -> int:
        """The rate now: the lock's, else what demand makes of it."""
        if self.holds and self._held_hz is not None:
            return min(self._held_hz, self.ceiling_hz)
        return self.ceiling_hz if self.board.looks_busy else min(self._floor_hz, self.ceiling_hz)

    @property
    def utilisation(self) -> int:
        """Per cent, times the rate in kHz, as the activity monitor counts."""
        return (60 if self.board.looks_busy else 1) * (self.rate_hz // 1000)

    # What happens behind them.

    def vote(self, gpu_share: float) -> None:
        """The GPU's floor on memory: a clock above half its highest asks for the middle of the range."""
        self._floor_hz = self.rates_hz[0]
        if gpu_share > 0.5:
            self._floor_hz = round(round_up(0.2 * self.rates_hz[-1], self.rates_hz))
        self.changed()

    def changed(self) -> None:
        nodes = self.board.nodes
        held = self._held_hz if self.holds else None
        nodes.mem_locked_mhz = None if held is None else min(held, self.ceiling_hz) / HZ_PER_MHZ
        nodes.mem_ceiling_mhz = self.ceiling_hz / HZ_PER_MHZ
        nodes.mem_floor_mhz = min(self._floor_hz, self.ceiling_hz) / HZ_PER_MHZ
        self.board.clocks_changed()
