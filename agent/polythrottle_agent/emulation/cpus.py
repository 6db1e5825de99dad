"""CPU clocks as cpufreq holds them, one policy a cluster, and CPUs going on and off line. In kHz."""

from __future__ import annotations

import errno
import math
import random

from polythrottle_agent.emulation.agenda import Agenda
from polythrottle_agent.emulation.board import EmulatedBoard, round_down, round_up
from polythrottle_agent.emulation.kernels import Kernel, refused

GOVERNORS = ("conservative", "ondemand", "userspace", "powersave", "performance", "schedutil")
DEFAULT_GOVERNOR = "schedutil"
UPDATE_S = (0.001, 0.050)
"""When the worker applies a new request, from PM-QoS on."""

KHZ_PER_MHZ = 1e3


class Policy:
    """One clock domain. `low` and `high` are in force; requests are kept beside them."""

    def __init__(self, cpus: tuple[int, ...], table_khz: tuple[int, ...]) -> None:
        self.cpus = cpus
        self.table_khz = table_khz
        self.governor = DEFAULT_GOVERNOR
        self.asked_low = 0
        self.asked_high: float = math.inf
        self.low, self.high = table_khz[0], table_khz[-1]
        self.setspeed_khz = table_khz[0]

    @property
    def bounds(self) -> tuple[int, int]:
        """Between what the governor moves."""
        if self.governor == "performance":
            return self.high, self.high
        if self.governor == "powersave":
            return self.low, self.low
        if self.governor == "userspace":
            khz = min(max(round(round_up(self.setspeed_khz, self.table_khz)), self.low), self.high)
            return khz, khz
        return self.low, self.high


class Cpus:
    """All policies, and which CPUs are online."""

    def __init__(
        self,
        kernel: Kernel,
        board: EmulatedBoard,
        agenda: Agenda,
        clusters: tuple[tuple[int, ...], ...],
        table_mhz: tuple[float, ...],
        rng: random.Random,
    ) -> None:
        self.kernel, self.board, self._agenda, self._random = kernel, board, agenda, rng
        table_khz = tuple(round(mhz * KHZ_PER_MHZ) for mhz in table_mhz)
        self.policies = tuple(Policy(cpus, table_khz) for cpus in clusters)
        self.count = sum(len(cpus) for cpus in clusters)
        self.online = set(range(self.count))
        self.changed()

    # The files.

    def is_active(self, policy: Policy) -> bool:
        return bool(self.online.intersection(policy.cpus))

    def check_active(self, policy: Policy) -> None:
        """
        Raises:
            OSError: all of the policy's CPUs are offline.
        """
        if not self.is_active(policy):
            raise refused(errno.EBUSY if self.kernel.newer_cpufreq else errno.EINVAL)

    def store_min(self, policy: Policy, wanted_khz: int) -> None:
        """
        Raises:
            OSError: EINVAL above the maximum before PM-QoS; EBUSY or EINVAL on an offline policy.
        """
        self.check_active(policy)
        if not self.kernel.qos and wanted_khz > policy.high:
            raise refused(errno.EINVAL)
        policy.asked_low = wanted_khz
        self._request(policy)

    def store_max(self, policy: Policy, wanted_khz: int) -> None:
        """
        Raises:
            OSError: EINVAL below the minimum before PM-QoS; EBUSY or EINVAL on an offline policy.
        """
        self.check_active(policy)
        if not self.kernel.qos and wanted_khz < policy.low:
            raise refused(errno.EINVAL)
        policy.asked_high = wanted_khz
        self._request(policy)

    def store_governor(self, policy: Policy, name: str) -> None:
        """
        Raises:
            OSError: EINVAL, no such governor; EBUSY or EINVAL on an offline policy.
        """
        self.check_active(policy)
        if name not in GOVERNORS:
            raise refused(errno.EINVAL)
        policy.governor = name
        self.changed()

    def store_setspeed(self, policy: Policy, wanted_khz: int) -> None:
        """
        Raises:
            OSError: EINVAL unless the governor is `userspace`; EBUSY or EINVAL on an offline policy.
        """
        self.check_active(policy)
        if policy.governor != "userspace":
            raise refused(errno.EINVAL)
        policy.setspeed_khz = wanted_khz
        self.changed()

    def store_online(self, cpu: int, wanted: bool) -> None:
        """
        Raises:
            OSError: EPERM for CPU 0, EBUSY for the last one.
        """
        if wanted:
            self.online.add(cpu)
        elif cpu == 0:
            raise refused(errno.EPERM)
        elif self.online == {cpu}:
            raise refused(errno.EBUSY)
        else:
            self.online.discard(cpu)
        self.changed()

    def cur_khz(self, policy: Policy) -> int:
        """The clock last asked for: under load the governor's choice, at rest the lowest allowed."""
        low, high = policy.bounds
        high = round(min(high, self._limit_khz(policy)))
        if not self.board.looks_busy:
            return min(low, high)
        wanted = self.board.behaviour.calibration.stock_cpu * high
        return min(max(round(round_up(wanted, policy.table_khz)), low), high)

    def measured_khz(self, policy: Policy) -> int:
        """What counters say: near the request, not on a level."""
        return round(self.cur_khz(policy) * (1.0 + self._random.uniform(-0.004, 0.001)))

    # What happens behind them.

    def limits_changed(self) -> None:
        """The thermal framework asks for less, or no longer does."""
        for policy in self.policies:
            self._request(policy)

    def _request(self, policy: Policy) -> None:
        if self.kernel.qos:
            self._agenda.after(self._random.uniform(*UPDATE_S), lambda: self._apply(policy))
        else:
            self._apply(policy)

    def _apply(self, policy: Policy) -> None:
        """Clamp to the table's ends, the maximum down to a level and the minimum up; the maximum wins."""
        table = policy.table_khz
        high = round(min(max(min(policy.asked_high, self._limit_khz(policy)), table[0]), table[-1]))
        low = min(max(policy.asked_low, table[0]), table[-1])
        policy.high = round(round_down(high, table))
        policy.low = min(round(round_up(low, table)), policy.high)
        self.changed()

    def _limit_khz(self, policy: Policy) -> float:
        limit = self.board.nodes.cpu_limit_mhz
        return math.inf if math.isinf(limit) else round_down(limit * KHZ_PER_MHZ, policy.table_khz)

    def changed(self) -> None:
        """The model has one CPU clock: the mean over CPUs that are online."""
        nodes = self.board.nodes
        lows, highs = [], []
        for policy in self.policies:
            low, high = policy.bounds
            online = len(self.online.intersection(policy.cpus))
            lows += [low] * online
            highs += [high] * online
        nodes.cpu_min_mhz = sum(lows) / len(lows) / KHZ_PER_MHZ
        nodes.cpu_max_mhz = sum(highs) / len(highs) / KHZ_PER_MHZ
        nodes.cpu_pinned = lows == highs
        nodes.cores = (len(self.online), self.count)
        self.board.clocks_changed()
