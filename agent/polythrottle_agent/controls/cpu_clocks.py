"""The CPU clock: one knob over every cpufreq policy, pinned by minimum = maximum.

Up to 5.2 a minimum above the maximum is EINVAL; later kernels take both as requests and put them into force
a little later, so a read-back is only final once it stopped changing.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from polythrottle.clock import Clock
from polythrottle.configuration import Level
from polythrottle_agent.bounds import Bounds
from polythrottle_agent.cooling import CPU_COOLING, refuse_while_hot
from polythrottle_agent.ports import ControlError
from polythrottle_agent.sysfs import Sysfs, SysfsError

CPU_KNOB = "cpu_freq_mhz"
CPUFREQ = "/sys/devices/system/cpu/cpufreq"

STEP_KHZ = 100_000
"""Levels of a driver without a table (intel_pstate, amd-pstate): the bus multiple of x86."""

READ_BACK_S = 1.0
READ_BACK_STEP_S = 0.005


class Policy:
    """CPUs that share one clock. `cap_mhz` gives the power mode's cap of this clock, inf for none."""

    def __init__(self, sysfs: Sysfs, directory: Path, cap_mhz: Callable[[Iterable[int]], float]) -> None:
        """
        Raises:
            ControlError: its range cannot be read.
        """
        self.sysfs = sysfs
        self.directory = directory
        self.name = directory.name
        self.cpus = sysfs.numbers(directory / "related_cpus")
        self._cap_mhz = cap_mhz
        self.low_khz = sysfs.number(directory / "cpuinfo_min_freq")
        self.high_khz = sysfs.number(directory / "cpuinfo_max_freq")
        self.table = _table(sysfs, directory, self.low_khz, self.high_khz)

    @property
    def is_online(self) -> bool:
        """A policy whose CPUs are all offline answers EBUSY to everything."""
        try:
            return bool(self.sysfs.numbers(self.directory / "affected_cpus"))
        except SysfsError:
            return False

    @property
    def cap_mhz(self) -> float:
        """What the power mode allows this clock now."""
        return self._cap_mhz(self.cpus)

    def level_khz(self, wanted_khz: int) -> int:
        """The highest level of this policy that is neither above the wanted clock nor above its cap."""
        cap_khz = self.cap_mhz * 1e3
        below = [khz for khz in self.table if khz <= wanted_khz and khz <= cap_khz * (1 + 1e-6)]
        return below[-1] if below else self.table[0]

    def limits_khz(self) -> tuple[int, int]:
        return (
            self.sysfs.number(self.directory / "scaling_min_freq"),
            self.sysfs.number(self.directory / "scaling_max_freq"),
        )

    def write_limits(self, low_khz: int, high_khz: int) -> None:
        """Both limits, in the order that keeps them ordered after each write."""
        ends = [("scaling_max_freq", high_khz), ("scaling_min_freq", low_khz)]
        if high_khz < self.limits_khz()[0]:
            ends.reverse()
        for name, khz in ends:
            self.sysfs.write(self.directory / name, khz)

    def clock_khz(self) -> int:
        """Measured where the driver does that and we may read it, else what the driver asked for last."""
        measured = self.sysfs.number_or_none(self.directory / "cpuinfo_cur_freq")
        return measured if measured is not None else self.sysfs.number(self.directory / "scaling_cur_freq")


def _table(sysfs: Sysfs, directory: Path, low_khz: int, high_khz: int) -> tuple[int, ...]:
    try:
        listed = set(sysfs.numbers(directory / "scaling_available_frequencies"))
    except SysfsError:
        listed = set()
    if listed:
        boost = sysfs.text_or_none(directory / "scaling_boost_frequencies") or ""
        listed |= {int(word) for word in boost.split() if word.isdigit()}
        # The driver's range leaves boost out while boost is off.
        return tuple(khz for khz in sorted(listed) if low_khz <= khz <= high_khz) or (high_khz,)
    first = -(-low_khz // STEP_KHZ) * STEP_KHZ
    return tuple(sorted({low_khz, *range(first, high_khz, STEP_KHZ), high_khz}))


def find_policies(sysfs: Sysfs, cap_mhz: Callable[[Iterable[int]], float]) -> list[Policy]:
    """Every cpufreq policy that can be read, offline ones included where their files still answer."""
    found = []
    for directory in sysfs.entries(sysfs.at(CPUFREQ)):
        if directory.name.startswith("policy"):
            try:
                found.append(Policy(sysfs, directory, cap_mhz))
            except ControlError:
                continue  # its CPUs were offline when we looked: nothing of it can be read or written
    return sorted(found, key=lambda policy: int(policy.name.removeprefix("policy") or 0))


def present_maxima(sysfs: Sysfs, kept: Mapping[str, str]) -> Mapping[int, float]:
    """The maximum in force of each CPU's clock, in MHz; CPUs that are offline are left out.

    `kept` is a saved state of `CpuClocks`, which goes before what holds now.
    """
    found: dict[int, float] = {}
    for directory in sysfs.entries(sysfs.at(CPUFREQ)):
        khz = sysfs.number_or_none(directory / "scaling_max_freq")
        original = kept.get(f"{directory.name}.scaling_max_freq", "")
        if original.isdigit():
            khz = int(original)
        cpus = sysfs.text_or_none(directory / "related_cpus") or ""
        if khz is not None:
            found.update(dict.fromkeys((int(cpu) for cpu in cpus.split() if cpu.isdigit()), khz / 1e3))
    return found


class CpuClocks:
    """`cpu_freq_mhz`: every policy pinned at a level, or at its next lower one.

    The levels are those of the policy with the highest clock. Policies whose CPUs are offline are left out.
    """

    def __init__(self, policies: list[Policy], bounds: Bounds, clock: Clock) -> None:
        """
        Raises:
            ControlError: there is no policy.
        """
        if not policies:
            raise ControlError("no CPU clock can be set here")
        self._policies = policies
        self._bounds = bounds
        self._clock = clock
        self._lead = max(policies, key=lambda policy: policy.high_khz)
        self._held: float | None = None

    @property
    def knob(self) -> str:
        return CPU_KNOB

    @property
    def _table(self) -> Mapping[float, int]:
        return {khz / 1e3: khz for khz in self._lead.table}

    @property
    def levels(self) -> tuple[Level, ...]:
        return self._bounds.allowed(self._table)

    def save(self) -> Mapping[str, str]:
        """Limits and governor of each policy. A policy that is offline has none to keep."""
        state: dict[str, str] = {}
        for policy in self._online():
            low, high = policy.limits_khz()
            if high < policy.high_khz:
                # Since 5.10 the maximum reads as heat's where that is lower.
                refuse_while_hot(policy.sysfs, CPU_COOLING, "the CPU's clock")
            governor = policy.sysfs.text(policy.directory / "scaling_governor")
            state.update(
                {
                    f"{policy.name}.scaling_min_freq": str(low),
                    f"{policy.name}.scaling_max_freq": str(high),
                    f"{policy.name}.scaling_governor": governor,
                }
            )
        return state

    def apply(self, level: Level) -> None:
        self._bounds.check(level, self._table)
        self._held = float(level)
        self._pin(self._table[float(level)])

    def reassert(self) -> None:
        """Pin again what was last applied, for CPUs that came online since."""
        if self._held is not None:
            self._pin(self._table[self._held])

    def accepted(self) -> Level:
        """The level at which every policy's maximum stands; else the reading of one that stands elsewhere."""
        online = self._online()
        readings = {policy: policy.limits_khz()[1] for policy in online}
        lead_khz = readings.get(self._lead)
        if lead_khz is None:  # offline: the highest level that explains the others
            first = online[0]
            lead_khz = max(
                (khz for khz in self._lead.table if first.level_khz(khz) == readings[first]),
                default=readings[first],
            )
        for policy, khz in readings.items():
            if policy is not self._lead and khz not in (policy.level_khz(lead_khz), lead_khz):
                return khz / 1e3
        return lead_khz / 1e3

    def observed(self) -> Level:
        """Mean clock over the CPUs that are online, at this moment."""
        clocks = [policy.clock_khz() for policy in self._online()]
        return round(math.fsum(clocks) / len(clocks) / 1e3, 3)

    def within_caps(self, saved: Mapping[str, str]) -> Mapping[str, str]:
        held = dict(saved)
        for policy in self._policies:
            for end in ("scaling_max_freq", "scaling_min_freq"):
                khz = saved.get(f"{policy.name}.{end}", "")
                if khz.isdigit() and int(khz) > policy.cap_mhz * 1e3 * (1 + 1e-6):
                    held[f"{policy.name}.{end}"] = str(policy.level_khz(int(khz)))
        return held

    def restore(self, saved: Mapping[str, str]) -> None:
        self._held = None
        wanted: list[tuple[Policy, int, int, str]] = []
        for policy in self._policies:
            low, high, governor = (
                saved.get(f"{policy.name}.scaling_{what}") for what in ("min_freq", "max_freq", "governor")
            )
            if low is None and high is None:
                continue  # it was offline when the state was saved
            if not (low or "").isdigit() or not (high or "").isdigit():
                raise ControlError(f"the saved state of {CPU_KNOB} has no usable limits of {policy.name}")
            wanted.append((policy, int(low or 0), int(high or 0), governor or ""))
        if not wanted:
            raise ControlError(f"the saved state of {CPU_KNOB} names no CPU clock of this machine")
        problems = [problem for entry in wanted if (problem := self._restore_one(*entry)) is not None]
        self._settle({policy: (low, high) for policy, low, high, _ in wanted if policy.is_online})
        if problems:
            raise ControlError("; ".join(problems))

    def _restore_one(self, policy: Policy, low: int, high: int, governor: str) -> str | None:
        """One policy that fails must not keep the others from their originals."""
        problems = []
        try:
            policy.write_limits(low, high)
        except ControlError as error:
            problems.append(str(error))
        try:
            path = policy.directory / "scaling_governor"
            if governor and policy.sysfs.text(path) != governor:
                policy.sysfs.write(path, governor)
        except ControlError as error:
            problems.append(str(error))
        return f"{policy.name}: {'; '.join(problems)}" if problems else None

    def _pin(self, wanted_khz: int) -> None:
        pinned = {}
        for policy in self._online():
            khz = policy.level_khz(wanted_khz)
            try:
                policy.write_limits(khz, khz)
            except SysfsError as error:
                if error.code == errno.EBUSY and not policy.is_online:
                    continue  # its CPUs went offline since we looked
                raise
            pinned[policy] = (khz, khz)
        self._settle(pinned)

    def _settle(self, wanted: Mapping[Policy, tuple[int, int]]) -> None:
        """Wait until the limits are in force. Where they never are, `accepted` tells."""
        deadline_s = self._clock.now() + READ_BACK_S
        while self._clock.now() < deadline_s:
            if all(policy.limits_khz() == limits for policy, limits in wanted.items() if policy.is_online):
                return
            self._clock.sleep(READ_BACK_STEP_S)

    def _online(self) -> list[Policy]:
        online = [policy for policy in self._policies if policy.is_online]
        if not online:
            raise ControlError("no CPU clock answers")
        return online
