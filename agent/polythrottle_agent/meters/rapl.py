"""Energy counters of x86 CPUs (RAPL) under /sys/class/powercap.

Zones overlap: a package contains its core and uncore zones, and psys contains packages. `intel-rapl-mmio`
shows packages a second time. Counted here are packages, each once, and DRAM, which no package contains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from polythrottle.clock import Clock
from polythrottle.measurement import Provenance, Scope
from polythrottle_agent.meters.power import About, Counter, CounterMeter
from polythrottle_agent.ports import ControlError
from polythrottle_agent.sysfs import Sysfs

POWERCAP = "/sys/class/powercap"

TICK_S = 0.001
"""RAPL updates its counters about once a millisecond (Intel's manual)."""

STEP_J = 61e-6
"""The usual energy unit, 2⁻¹⁴ J."""

MOST_W = 2000.0
"""No socket draws more: a counter is read often enough that it cannot wrap unseen below that."""


def find_zones(sysfs: Sysfs) -> list[tuple[str, Path]]:
    """Zones to sum, each with a name that tells sockets apart."""
    packages: dict[str, Path] = {}
    memory: dict[str, Path] = {}
    twins: dict[str, Path] = {}
    for zone in sysfs.entries(sysfs.at(POWERCAP)):
        name = sysfs.text_or_none(zone / "name")
        if name is None or ":" not in zone.name:
            continue
        if name.startswith("package"):
            (twins if zone.name.startswith("intel-rapl-mmio") else packages).setdefault(name, zone)
        elif name == "dram" and not zone.name.startswith("intel-rapl-mmio"):
            memory[f"dram of {zone.name.rpartition(':')[0]}"] = zone
    # The MMIO twin stands in only where the MSR zone is missing.
    return [*({**twins, **packages}).items(), *memory.items()]


def rapl_meter(sysfs: Sysfs, clock: Clock, provenance: Provenance) -> CounterMeter:
    """A meter of all CPU packages and their DRAM.

    Raises:
        ControlError: there is no zone, or it is closed to this process (root only since CVE-2020-8694).
    """
    counters = rapl_counters(sysfs)
    if not counters:
        raise ControlError("no CPU package with an energy counter is listed in /sys/class/powercap")
    return meter_of(counters, clock, provenance)


def rapl_counters(sysfs: Sysfs) -> list[Counter]:
    """The zones' counters; none where there is no zone.

    Raises:
        ControlError: one is closed to this process.
    """
    counters = []
    for name, zone in find_zones(sysfs):
        sysfs.number(zone / "energy_uj")
        range_uj = sysfs.number(zone / "max_energy_range_uj")
        counters.append(Counter(name, _reader(sysfs, zone / "energy_uj"), range_uj / 1e6, STEP_J, TICK_S))
    return counters


def meter_of(counters: Sequence[Counter], clock: Clock, provenance: Provenance) -> CounterMeter:
    """A meter over counters of the CPU, read in between often enough that none wraps unseen."""
    ranges_j = [counter.range_j for counter in counters if counter.range_j is not None]
    period_s = min(1.0, *(0.5 * range_j / MOST_W for range_j in ranges_j))
    names = ", ".join(counter.name for counter in counters)
    return CounterMeter(About(f"RAPL {names}", Scope.CPU, provenance), counters, clock, period_s)


def _reader(sysfs: Sysfs, path: Path) -> Callable[[], float]:
    return lambda: sysfs.number(path) / 1e6
