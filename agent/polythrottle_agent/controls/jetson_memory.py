"""The memory clock (EMC) of a Jetson, locked through BPMP's debugfs files. Root only.

BPMP rounds a rate up to the next one it can lock, and a rate it rejects is not reported: the write returns
success and the clock stays. So a write proves nothing here, and what counts is read back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from polythrottle.clock import Clock
from polythrottle.configuration import UNLOCKED, Level
from polythrottle_agent.bounds import Bounds
from polythrottle_agent.controls.memory_rates import LockableRates
from polythrottle_agent.ports import ControlError
from polythrottle_agent.sysfs import Sysfs, SysfsError

MEM_KNOB = "mem_freq_mhz"

CLOCK = "/sys/kernel/debug/bpmp/debug/clk/emc"
POSSIBLE_RATES = "/sys/kernel/debug/bpmp/debug/emc/possible_rates"
"""kHz, where the firmware offers it; seen on TX2 to Orin."""

BWMGR_HALT = "/sys/kernel/debug/bpmp/debug/bwmgr/bwmgr_halt"
"""From JetPack 6 on demand moves a locked clock unless this is 1."""

READ_BACK_S = 0.1
READ_BACK_STEP_S = 0.01
PROBE_LIMIT = 64
"""No board has this many rates; a clock that keeps moving must not keep us for ever."""


class JetsonMemory:
    """`mem_freq_mhz`: locked at a rate, or `unlocked`, where the firmware follows demand."""

    def __init__(self, sysfs: Sysfs, rates: LockableRates, bounds: Bounds, clock: Clock) -> None:
        self._sysfs = sysfs
        self._rates = rates
        self._bounds = bounds
        self._clock = clock
        self._directory = sysfs.at(CLOCK)
        halt = sysfs.at(BWMGR_HALT)
        self._halt: Path | None = halt if sysfs.text_or_none(halt) is not None else None

    @classmethod
    def is_here(cls, sysfs: Sysfs) -> bool:
        """Whether this process can see the lock: debugfs is closed to everybody but root."""
        return sysfs.text_or_none(sysfs.at(CLOCK) / "mrq_rate_locked") is not None

    @property
    def knob(self) -> str:
        return MEM_KNOB

    @property
    def _table(self) -> Mapping[float, int]:
        return {hz / 1e6: hz for hz in self._rates.rates_hz()}

    @property
    def levels(self) -> tuple[Level, ...]:
        return self._bounds.allowed((*self._table, UNLOCKED))

    @property
    def is_probed(self) -> bool:
        """Whether the levels were tried on this device since it booted."""
        return self._rates.is_probed

    def save(self) -> Mapping[str, str]:
        """The rate matters only while it is locked: else demand moves it from one read to the next."""
        locked = self._number("mrq_rate_locked")
        state = {"mrq_rate_locked": str(locked), "rate": str(self._number("rate")) if locked else ""}
        enabled = self._sysfs.text_or_none(self._directory / "state")
        if enabled in ("0", "1"):
            state["state"] = enabled
        if self._halt is not None:
            state["bwmgr_halt"] = str(self._sysfs.number(self._halt))
        return state

    def apply(self, level: Level) -> None:
        table = self._table
        self._bounds.check(level, (*table, UNLOCKED))
        if isinstance(level, str):
            self._unlock(halt=0)
        else:
            self._lock(table[level])

    def accepted(self) -> Level:
        """The rate that is locked, after BPMP's rounding, or `unlocked`."""
        return self._number("rate") / 1e6 if self._number("mrq_rate_locked") else UNLOCKED

    def observed(self) -> Level:
        return self._number("rate") / 1e6

    def within_caps(self, saved: Mapping[str, str]) -> Mapping[str, str]:
        rate = saved.get("rate", "")
        if saved.get("mrq_rate_locked") != "1" or not rate.isdigit():
            return saved
        mhz = int(rate) / 1e6
        table = self._table
        held = self._bounds.highest_below_cap(mhz, table)
        return saved if held == mhz else {**saved, "rate": str(table[held])}

    def restore(self, saved: Mapping[str, str]) -> None:
        locked, rate, halt = (saved.get(x, "") for x in ("mrq_rate_locked", "rate", "bwmgr_halt"))
        if locked not in ("0", "1") or (locked == "1" and not rate.isdigit()):
            raise ControlError(f"the saved state of {MEM_KNOB} has no usable lock")
        if halt not in ("", "0", "1"):
            raise ControlError(f"the saved state of {MEM_KNOB} has no usable bwmgr_halt")
        if locked == "1":
            self._lock(int(rate))
            if halt:
                self._write_halt(int(halt))
        else:
            self._unlock(halt=int(halt) if halt else None)
        enabled = saved.get("state")
        if enabled in ("0", "1") and self._sysfs.text_or_none(self._directory / "state") != enabled:
            self._write("state", int(enabled))

    def probe(self, locking: Callable[[Level], None] = lambda _: None) -> tuple[float, ...]:
        """Find every rate that can be locked, by locking each, and remember them until the next boot.

        Starting at the lowest, each request of one hertz more is rounded up to the next rate. The lock is
        put back as it was. The caller has saved the originals: this writes, memory is slow meanwhile, and
        each rate takes about 0.1 s. Nothing above the operator's limit or the power mode's cap is asked for.

        Args:
            locking: told each rate in MHz before it is locked.

        Returns:
            The rates in MHz.

        Raises:
            ControlError: a file could not be written, or the clock did not follow.
        """
        saved = self.save()
        found: list[int] = []
        highest = self._highest_allowed()
        wanted = self._number("min_rate")
        try:
            while len(found) < PROBE_LIMIT and wanted <= highest:
                locking(wanted / 1e6)
                self._lock(wanted)
                rate = self._number("rate")
                if rate < wanted:
                    break  # rejected, or a board that stops below what max_rate says
                found.append(rate)
                wanted = rate + 1
        finally:
            self.restore(saved)
        if not found:
            raise ControlError(
                f"{self._sysfs.shown(self._directory)}/rate does not follow: no memory clock can be locked"
            )
        self._rates.remember(found)
        return tuple(hz / 1e6 for hz in found)

    def _highest_allowed(self) -> int:
        """The highest rate to ask for, in Hz: one that is known to exist, since requests are rounded up."""
        most = self._number("max_rate")
        bounded = self._bounds.allowed(hz / 1e6 for hz in (*self._rates.said_hz, most) if hz <= most)
        return max((round(float(mhz) * 1e6) for mhz in bounded), default=0)

    def _lock(self, hz: int) -> None:
        if self._halt is not None:
            self._write_halt(1)
        self._write("mrq_rate_locked", 1)
        self._write("rate", hz)
        state = self._sysfs.text_or_none(self._directory / "state")
        if state == "0":
            self._write("state", 1)
        self._await_rate(hz)

    def _await_rate(self, hz: int) -> None:
        """Wait a moment for the clock to arrive. Where it does not, `accepted` tells."""
        deadline_s = self._clock.now() + READ_BACK_S
        while self._number("rate") != hz and self._clock.now() < deadline_s:
            self._clock.sleep(READ_BACK_STEP_S)

    def _unlock(self, halt: int | None) -> None:
        self._write("mrq_rate_locked", 0)
        if self._halt is not None and halt is not None:
            self._write_halt(halt)

    def _write_halt(self, value: int) -> None:
        if self._halt is None:
            raise ControlError(f"{BWMGR_HALT} is not there")
        self._sysfs.write(self._halt, value)

    def _number(self, name: str) -> int:
        return self._sysfs.number(self._directory / name)

    def _write(self, name: str, value: int) -> None:
        try:
            self._sysfs.write(self._directory / name, value)
        except SysfsError as error:
            raise ControlError(f"the memory clock was not set: {error}") from error
