"""The GPU's clock as devfreq holds it: requests, effective limits, governor, rail gating. In Hz."""

from __future__ import annotations

import errno
import math
import random
from collections.abc import Callable

from polythrottle_agent.emulation.agenda import Agenda
from polythrottle_agent.emulation.board import EmulatedBoard, round_up
from polythrottle_agent.emulation.kernels import Kernel, refused

POLL_S = 0.025
"""nvgpu's devfreq profile polls this often: a new limit waits for the next poll."""

TRANSITION_S = 0.004
"""The change of clock after that; assumed."""

DEFAULT_GOVERNOR = "nvhost_podgov"
GOVERNORS = (DEFAULT_GOVERNOR, "wmark_simple", "userspace", "performance", "simple_ondemand")

RAILGATE_DELAY_MS = 500
HZ_PER_MHZ = 1e6


class Gpu:
    """Limits are requests: of whoever writes the files, and of the thermal framework.

    A new limit is in force one governor poll and one transition later.
    """

    def __init__(
        self,
        kernel: Kernel,
        board: EmulatedBoard,
        agenda: Agenda,
        table_mhz: tuple[float, ...],
        rng: random.Random,
    ) -> None:
        self.kernel, self.board, self._agenda, self._random = kernel, board, agenda, rng
        self.table_hz = tuple(round(mhz * HZ_PER_MHZ) for mhz in table_mhz)
        self.governor = DEFAULT_GOVERNOR
        self.set_freq_hz = self.table_hz[0]
        self.railgate_enabled = True
        self.railgate_delay_ms = RAILGATE_DELAY_MS
        self.power_control = "auto"
        self.arbiter_holds = False
        """While an nvgpu clock-arbiter session is active, devfreq's target changes nothing."""
        self.on_change: Callable[[], None] = lambda: None
        self.thermal_limit_mhz: Callable[[], float] = lambda: math.inf
        """The cooling device's request. Over-current acts below devfreq, which does not see it."""
        self._user_min = 0
        self._user_max = math.inf
        if not kernel.qos:
            self._user_min, self._user_max = self.table_hz[0], self.table_hz[-1]
        self._enforce()

    # The files.

    @property
    def min_hz(self) -> int:
        return self._limits()[0]

    @property
    def max_hz(self) -> int:
        return self._limits()[1]

    def store_min(self, wanted_hz: int) -> None:
        """
        Raises:
            OSError: EINVAL above the maximum, before PM-QoS.
        """
        if self.kernel.qos:
            self._user_min = wanted_hz // 1000 * 1000
        else:
            if wanted_hz > self._user_max:
                raise refused(errno.EINVAL)
            self._user_min = wanted_hz or self.table_hz[0]
        self.limits_changed()

    def store_max(self, wanted_hz: int) -> None:
        """
        Raises:
            OSError: EINVAL below the minimum, before PM-QoS.
        """
        if self.kernel.qos:
            self._user_max = -(-wanted_hz // 1000) * 1000 if wanted_hz else math.inf
        else:
            if wanted_hz and wanted_hz < self._user_min:
                raise refused(errno.EINVAL)
            self._user_max = wanted_hz or self.table_hz[-1]
        self.limits_changed()

    def store_governor(self, name: str) -> None:
        """
        Raises:
            OSError: EINVAL, no such governor.
        """
        if name not in GOVERNORS:
            raise refused(errno.EINVAL)
        if name != self.governor:
            self.governor = name
            self.limits_changed()

    def store_set_freq(self, wanted_hz: int) -> None:
        self.set_freq_hz = wanted_hz
        self.limits_changed()

    @property
    def is_gated(self) -> bool:
        """Whether the GPU's rail is off: allowed, and nothing served for the delay."""
        if not self.railgate_enabled or self.power_control == "on":
            return False
        return self.board.clock.now() - self.board.last_busy_s > self.railgate_delay_ms / 1e3

    @property
    def cur_hz(self) -> int:
        """The clock now: the governor's choice under load, the lowest allowed at rest, the table's lowest
        with the rail off (assumed)."""
        if self.is_gated:
            return self.table_hz[0]
        nodes = self.board.nodes
        limit_hz = min(nodes.gpu_limit_mhz, nodes.gpu_max_mhz) * HZ_PER_MHZ
        if not self.board.looks_busy:
            return round(min(nodes.gpu_min_mhz * HZ_PER_MHZ, limit_hz))
        if nodes.gpu_min_mhz >= nodes.gpu_max_mhz or self.board.gpu_under_load_mhz * HZ_PER_MHZ >= limit_hz:
            return round(limit_hz)
        # The governor hunts: neighbouring levels, whose mean is the model's clock.
        mean_hz = self.board.gpu_under_load_mhz * HZ_PER_MHZ
        above = round(min(round_up(mean_hz, self.table_hz), limit_hz))
        below = max((hz for hz in self.table_hz if hz <= mean_hz), default=above)
        if above == below:
            return above
        return above if self._random.random() < (mean_hz - below) / (above - below) else below

    @property
    def load_permille(self) -> int:
        if self.is_gated or not self.board.looks_busy:
            return 0
        return self._random.randint(930, 1000)

    # What happens behind them.

    def limits_changed(self) -> None:
        """Take new limits into force at the governor's next poll."""
        if not self.arbiter_holds:
            self._agenda.after(self._random.uniform(0.0, POLL_S) + TRANSITION_S, self._enforce)

    def _limits(self) -> tuple[int, int]:
        if not self.kernel.qos:
            return self._user_min, round(self._user_max)
        low, high = max(self.table_hz[0], self._user_min), min(self.table_hz[-1], self._user_max)
        high = min(high, self.thermal_limit_mhz() * HZ_PER_MHZ)
        return round(min(low, high)), round(high)

    def _enforce(self) -> None:
        lowest, highest = self._limits()
        high = round_up(highest, self.table_hz)
        low = min(round_up(lowest, self.table_hz), high)
        if self.governor == "performance":
            low = high
        elif self.governor == "userspace":
            low = high = min(max(round_up(self.set_freq_hz, self.table_hz), low), high)
        self.board.nodes.gpu_min_mhz, self.board.nodes.gpu_max_mhz = low / HZ_PER_MHZ, high / HZ_PER_MHZ
        self.board.nodes.floor_held = True
        self.board.clocks_changed()
        self.on_change()
