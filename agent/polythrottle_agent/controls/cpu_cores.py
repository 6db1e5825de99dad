"""How many CPUs are online. cpu0 is never switched off: kernels refuse it, or should."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from polythrottle.configuration import Level
from polythrottle_agent.bounds import Bounds
from polythrottle_agent.ports import ControlError
from polythrottle_agent.sysfs import Sysfs

CORES_KNOB = "cpu_cores"
CPU = "/sys/devices/system/cpu"


class CpuCores:
    """`cpu_cores`: a number of CPUs, taken cluster by cluster from cpu0's on.

    Args:
        usable: the CPUs that may be online; others are never switched on.
        allowed_now: the CPUs that the power mode allows now; None where no mode says.
        after_change: called when CPUs came online, whose clocks then have to be set again.
    """

    def __init__(
        self,
        sysfs: Sysfs,
        usable: frozenset[int],
        bounds: Bounds,
        after_change: Callable[[], None] = lambda: None,
        allowed_now: Callable[[], frozenset[int] | None] = lambda: None,
    ) -> None:
        """
        Raises:
            ControlError: there is nothing to switch.
        """
        self._sysfs = sysfs
        self._bounds = bounds
        self._after_change = after_change
        self._allowed_now = allowed_now
        self._switchable = [cpu for cpu in present_cpus(sysfs) if cpu != 0 and self._has_switch(cpu)]
        fixed = [cpu for cpu in usable if cpu not in self._switchable]
        self._order = [*sorted(fixed), *self._by_cluster([c for c in self._switchable if c in usable])]
        self._n_fixed = max(len(fixed), 1)
        if len(self._order) <= self._n_fixed:
            raise ControlError("no CPU can be switched off here")

    @property
    def knob(self) -> str:
        return CORES_KNOB

    @property
    def _table(self) -> tuple[Level, ...]:
        return tuple(float(n) for n in range(self._n_fixed, len(self._order) + 1))

    @property
    def levels(self) -> tuple[Level, ...]:
        return self._bounds.allowed(self._table)

    def save(self) -> Mapping[str, str]:
        return {f"cpu{cpu}": str(self._sysfs.number(self._switch(cpu))) for cpu in self._switchable}

    def apply(self, level: Level) -> None:
        self._bounds.check(level, self._table)
        online = set(self._order[: int(level)])
        self._set({cpu: cpu in online for cpu in self._switchable})

    def accepted(self) -> Level:
        return float(len(online_cpus(self._sysfs)))

    def observed(self) -> Level:
        return self.accepted()

    def within_caps(self, saved: Mapping[str, str]) -> Mapping[str, str]:
        allowed = self._allowed_now()
        if allowed is None:
            return saved
        off = {f"cpu{cpu}": "0" for cpu in self._switchable if cpu not in allowed}
        return {name: off.get(name, state) for name, state in saved.items()}

    def restore(self, saved: Mapping[str, str]) -> None:
        missing = [cpu for cpu in self._switchable if saved.get(f"cpu{cpu}") not in ("0", "1")]
        if missing:
            raise ControlError(f"the saved state of {CORES_KNOB} lacks cpu{missing[0]}")
        self._set({cpu: saved[f"cpu{cpu}"] == "1" for cpu in self._switchable})

    def _set(self, wanted: Mapping[int, bool]) -> None:
        """On before off, so that there are never fewer than both states have. Each is tried by itself."""
        problems, brought_up = [], False
        for cpu, is_on in sorted(wanted.items(), key=lambda item: not item[1]):
            try:
                if (self._sysfs.number(self._switch(cpu)) == 1) == is_on:
                    continue
                self._sysfs.write(self._switch(cpu), int(is_on))
                brought_up |= is_on
            except ControlError as error:
                problems.append(str(error))
        if problems:
            raise ControlError("; ".join(problems))
        if brought_up:
            self._after_change()

    def _switch(self, cpu: int) -> Path:
        return self._sysfs.at(CPU) / f"cpu{cpu}/online"

    def _has_switch(self, cpu: int) -> bool:
        return self._sysfs.number_or_none(self._switch(cpu)) is not None

    def _by_cluster(self, cpus: list[int]) -> list[int]:
        """cpu0's own cluster first, then cluster by cluster: a clock domain that is all off saves most."""
        clusters: dict[int, int] = {}
        for policy in self._sysfs.entries(self._sysfs.at(CPU) / "cpufreq"):
            members = self._sysfs.text_or_none(policy / "related_cpus") or ""
            numbers = [int(word) for word in members.split() if word.isdigit()]
            clusters.update(dict.fromkeys(numbers, min(numbers, default=0)))
        return sorted(cpus, key=lambda cpu: (clusters.get(cpu, cpu), cpu))


def present_cpus(sysfs: Sysfs) -> tuple[int, ...]:
    """Every CPU that the kernel knows, by its directory."""
    names = (entry.name.removeprefix("cpu") for entry in sysfs.entries(sysfs.at(CPU)))
    return tuple(sorted(int(name) for name in names if name.isdigit()))


def online_cpus(sysfs: Sysfs) -> frozenset[int]:
    """CPUs that run now. One without a switch always does."""
    return frozenset(
        cpu
        for cpu in present_cpus(sysfs)
        if sysfs.number_or_none(sysfs.at(CPU) / f"cpu{cpu}/online") in (None, 1)
    )
