"""Evidence of throttling during one window: over-current events, hot zones, cooling, and limits that fell.

It only reads. A node that cannot be read is left out: a zone whose domain is powered off answers EAGAIN, and
that is no temperature.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from polythrottle.clock import Clock
from polythrottle.configuration import SHORT_NAMES, UNITS, Level
from polythrottle_agent.cooling import THERMAL, at_work, cooling_devices
from polythrottle_agent.meters.sampler import Sampler
from polythrottle_agent.ports import Control, ControlError, Seen, Witness
from polythrottle_agent.sysfs import Sysfs

HWMON = "/sys/class/hwmon"
OVERCURRENT_CHIP = "soctherm_oc"
OVERCURRENT = {1: "under-voltage", 2: "average over-current", 3: "instantaneous over-current"}

PERIOD_S = 0.2
"""Five looks a second: a look reads some ten files, and a throttled clock stays down for longer."""

LIMIT_TOLERANCE = 0.005
MOST_TRIPS = 16

_EVENTS = re.compile(r"^oc(\d+)_event_cnt$")


@dataclass(frozen=True)
class _Look:
    """One look: clocks under load, the limits in force, and what is hot or cooling."""

    observed: Mapping[str, Level]
    limits: Mapping[str, Level]
    hot: tuple[str, ...]
    cooling: tuple[str, ...]
    reasons: tuple[str, ...]


class ThrottleWitness:
    """Looks at a device from a thread of its own while a window is open.

    Args:
        controls: those whose clock and limit can be read while the device works.
        reasons: sentences about why clocks are down now, from whoever knows more (NVML's event reasons).
    """

    def __init__(
        self,
        sysfs: Sysfs,
        controls: Mapping[str, Control],
        clock: Clock,
        reasons: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        self._sysfs = sysfs
        self._controls = dict(controls)
        self._reasons = reasons
        self._counters = overcurrent_counters(sysfs)
        self._zones = _Zones(sysfs)
        self._sampler: Sampler[_Look] = Sampler(self._look, clock, PERIOD_S, "throttling")
        self._events: Mapping[int, int] = {}
        self._limits: Mapping[str, Level] = {}

    def begin(self) -> None:
        self._events = self._count()
        self._limits = self._read(lambda control: control.accepted())
        self._sampler.begin()

    def end(self) -> Seen:
        samples = self._sampler.end()
        looks = [] if samples is None else samples.values
        now = self._count()
        notes = [
            f"throttled: {now[n] - before} {OVERCURRENT.get(n, f'oc{n}')} events"
            for n, before in self._events.items()
            if now.get(n, before) > before
        ]
        notes += self._fallen(looks)
        for words, found in (
            ("hot", [name for look in looks for name in look.hot]),
            ("cooling at work", [name for look in looks for name in look.cooling]),
            ("clocks held down", [name for look in looks for name in look.reasons]),
        ):
            if found:
                notes.append(f"throttled: {words}: {', '.join(dict.fromkeys(found))}")
        return Seen(_medians([look.observed for look in looks]), tuple(notes))

    def _look(self) -> _Look:
        hot, cooling = self._zones.look()
        return _Look(
            self._read(lambda control: control.observed()),
            self._read(lambda control: control.accepted()),
            hot,
            cooling,
            tuple(self._reasons()),
        )

    def _read(self, what: Callable[[Control], Level]) -> Mapping[str, Level]:
        found: dict[str, Level] = {}
        for name, control in self._controls.items():
            try:
                found[name] = what(control)
            except ControlError:
                continue  # not readable right now: the other knobs still are
        return found

    def _count(self) -> Mapping[int, int]:
        counts = {n: self._sysfs.number_or_none(path) for n, path in self._counters.items()}
        return {n: count for n, count in counts.items() if count is not None}

    def _fallen(self, looks: Iterable[_Look]) -> list[str]:
        """Limits that read lower in the window than at its start: another request holds the clock down."""
        lowest: dict[str, float] = {}
        for look in looks:
            for name, level in look.limits.items():
                if not isinstance(level, str):
                    lowest[name] = min(lowest.get(name, level), level)
        notes = []
        for name, before in self._limits.items():
            if isinstance(before, str) or name not in lowest:
                continue
            if lowest[name] < before * (1.0 - LIMIT_TOLERANCE):
                unit = UNITS.get(name, "")
                notes.append(
                    f"throttled: the {SHORT_NAMES.get(name, name)} limit fell from {before:g} to "
                    f"{lowest[name]:g} {unit}".rstrip()
                )
        return notes


def _medians(looks: Iterable[Mapping[str, Level]]) -> Mapping[str, Level]:
    values: dict[str, list[float]] = {}
    for look in looks:
        for name, level in look.items():
            if not isinstance(level, str):
                values.setdefault(name, []).append(level)
    return {name: statistics.median(seen) for name, seen in values.items()}


def overcurrent_counters(sysfs: Sysfs) -> Mapping[int, Path]:
    """soctherm's event counters, cumulative since boot, by number."""
    for chip in sysfs.entries(sysfs.at(HWMON)):
        if sysfs.text_or_none(chip / "name") == OVERCURRENT_CHIP:
            found = {entry: _EVENTS.match(entry.name) for entry in sysfs.entries(chip)}
            return {int(match[1]): path for path, match in found.items() if match is not None}
    return {}


def _passive_trip(sysfs: Sysfs, zone: Path) -> int | None:
    """The lowest temperature, in m°C, at which the kernel slows clocks down; None where it never does."""
    trips = []
    for n in range(MOST_TRIPS):
        kind = sysfs.text_or_none(zone / f"trip_point_{n}_type")
        if kind is None:
            break
        temperature = sysfs.number_or_none(zone / f"trip_point_{n}_temp")
        if kind == "passive" and temperature is not None:
            trips.append(temperature)
    return min(trips, default=None)


class _Zones:
    """Thermal zones with a passive trip, and cooling devices that slow a clock."""

    def __init__(self, sysfs: Sysfs) -> None:
        self._sysfs = sysfs
        self._trips: dict[Path, tuple[str, int]] = {}
        self._cooling = cooling_devices(sysfs)
        for entry in sysfs.entries(sysfs.at(THERMAL)):
            kind = sysfs.text_or_none(entry / "type") or entry.name
            if entry.name.startswith("thermal_zone"):
                trip = _passive_trip(sysfs, entry)
                if trip is not None:
                    self._trips[entry] = (kind, trip)

    def look(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Zones at or above their passive trip, and cooling devices that are at work."""
        hot = []
        for zone, (kind, trip) in self._trips.items():
            temperature = self._sysfs.number_or_none(zone / "temp")
            if temperature is not None and temperature >= trip:
                hot.append(f"{kind} at or above {trip / 1e3:g} °C")
        return tuple(hot), at_work(self._sysfs, self._cooling)


class Together:
    """Several witnesses of one window. Where two saw the same clock, the first is believed."""

    def __init__(self, witnesses: Iterable[Witness]) -> None:
        self._witnesses = tuple(witnesses)

    def begin(self) -> None:
        for witness in self._witnesses:
            witness.begin()

    def end(self) -> Seen:
        seen = [witness.end() for witness in self._witnesses]
        observed: dict[str, Level] = {}
        for one in reversed(seen):
            observed.update(one.observed)
        return Seen(observed, tuple(note for one in seen for note in one.notes))
