"""Power sensors of an emulated board: INA3221 and INA238, which average in hardware and round.

A reading is the mean over one conversion cycle (430 ms as boards are set up), changes only when a cycle
ends, lags behind the board by a first-order filter (supply and sense capacitors; assumed), and is rounded to
the chip's steps: 8 mV of bus voltage, 40 µV over the shunt.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from polythrottle_agent.emulation.behaviour import Shares
from polythrottle_agent.emulation.kernels import refused

LAG_S = 0.04
VOLTAGE_STEP_MV = 8
SHUNT_STEP_UV = 40
HIGHEST_LIMIT_MA = 32760
SAMPLES = (1, 4, 16, 64, 128, 256, 512, 1024)
CONVERSION_US = (140, 204, 332, 588, 1100, 2116, 4156, 8244)
"""What the chip can average over, and how long one conversion takes (INA3221 data sheet, kernel driver)."""


@dataclass(frozen=True)
class Rail:
    """One channel. `watts` gives its power from the board's and its shares; None where nothing is wired.

    `volts` is the rail's nominal voltage and `shunt_uohm` its shunt; `offset_w` an offset of the reading.
    """

    index: int
    label: str | None
    volts: float
    shunt_uohm: int
    watts: Callable[[float, Shares], float] | None
    offset_w: float = 0.0


class PowerSensor:
    """One chip. An observer of its board."""

    def __init__(self, rails: Sequence[Rail], samples: int, conversion_us: int, started_s: float) -> None:
        self.rails = {rail.index: rail for rail in rails}
        self.enabled = {rail.index: rail.watts is not None for rail in rails}
        self.limits_ma: dict[tuple[int, str], int] = {}
        self._samples, self._conversion_us = samples, conversion_us
        self._lagged: dict[int, float] = {}
        self._summed_j = dict.fromkeys(self.rails, 0.0)
        self._mean_w: dict[int, float] = {}
        self._cycle_s = self.interval_s
        self._cycle_ends_s = started_s + self._cycle_s

    # What its driver does.

    @property
    def samples(self) -> int:
        return self._samples

    @property
    def interval_s(self) -> float:
        channels = max(sum(self.enabled.values()), 1)
        return channels * self._samples * 2 * self._conversion_us / 1e6

    def store_samples(self, wanted: int) -> None:
        """The nearest number of samples that the chip knows."""
        self._samples = min(SAMPLES, key=lambda known: abs(known - wanted))

    def store_interval_ms(self, wanted_ms: int) -> None:
        """The nearest conversion time that gives about this cycle with the present samples."""
        channels = max(sum(self.enabled.values()), 1)
        wanted_us = wanted_ms * 1000 / 2 / (channels * self._samples)
        self._conversion_us = min(CONVERSION_US, key=lambda known: abs(known - wanted_us))

    def millivolts(self, index: int) -> int:
        """
        Raises:
            OSError: ENODATA, the channel is off.
        """
        rail = self._rail(index)
        return round(rail.volts * 1000 / VOLTAGE_STEP_MV) * VOLTAGE_STEP_MV

    def milliamps(self, index: int) -> int:
        """
        Raises:
            OSError: ENODATA, the channel is off.
        """
        rail = self._rail(index)
        return round(self.shunt_microvolts(index) * 1000 / rail.shunt_uohm)

    def shunt_microvolts(self, index: int) -> int:
        """
        Raises:
            OSError: ENODATA, the channel is off.
        """
        rail = self._rail(index)
        amps = self._watts(index) / rail.volts
        return round(amps * rail.shunt_uohm / SHUNT_STEP_UV) * SHUNT_STEP_UV

    def microwatts(self, index: int) -> int:
        """
        Raises:
            OSError: ENODATA, the channel is off.
        """
        self._rail(index)
        return round(self._watts(index) * 1e6)

    def milliwatts(self, index: int) -> int:
        """As the old driver multiplies them out.

        Raises:
            OSError: ENODATA, the channel is off.
        """
        return self.millivolts(index) * self.milliamps(index) // 1000

    def limit_ma(self, index: int, limit: str) -> int:
        """The `max` or `crit` limit of a channel."""
        return self.limits_ma.get((index, limit), HIGHEST_LIMIT_MA)

    def alarm(self, index: int, limit: str) -> int:
        """1 while the current is above that limit."""
        return int(self.milliamps(index) > self.limit_ma(index, limit))

    def _rail(self, index: int) -> Rail:
        if not self.enabled.get(index, False):
            raise refused(errno.ENODATA)
        return self.rails[index]

    def _watts(self, index: int) -> float:
        """Of the last whole cycle; of the filter while none has ended yet."""
        watts = self._mean_w.get(index, self._lagged.get(index, 0.0))
        return watts + self.rails[index].offset_w

    # What it sees.

    def passed(self, began_s: float, lasted_s: float, power_w: float, shares: Shares, /) -> None:
        ends_s = began_s + lasted_s
        while began_s < ends_s:
            until_s = min(ends_s, self._cycle_ends_s)
            span_s = max(until_s - began_s, 0.0)
            for index, rail in self.rails.items():
                if rail.watts is not None:
                    self._summed_j[index] += self._filter(index, rail.watts(power_w, shares), span_s)
            if until_s >= self._cycle_ends_s:
                self._mean_w = {index: joules / self._cycle_s for index, joules in self._summed_j.items()}
                self._summed_j = dict.fromkeys(self.rails, 0.0)
                self._cycle_s = self.interval_s
                self._cycle_ends_s += self._cycle_s
            began_s = max(until_s, began_s)

    def _filter(self, index: int, watts: float, span_s: float) -> float:
        """Joules that the filter lets through while the rail draws `watts`."""
        before = self._lagged.get(index, watts)
        decay = math.exp(-span_s / LAG_S)
        self._lagged[index] = watts + (before - watts) * decay
        return watts * span_s + (before - watts) * LAG_S * (1.0 - decay)
