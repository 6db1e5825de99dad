"""How the device is: its temperature, and whether anything holds its clocks down. A thread looks.

A sensor that hangs must not keep a guard from falling back, so it never waits for one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Protocol

from polythrottle.clock import Clock
from polythrottle.measurement import Unavailable
from polythrottle_agent.cooling import THERMAL
from polythrottle_agent.guard.samples import Health
from polythrottle_agent.ports import ControlError, Witness
from polythrottle_agent.sysfs import Sysfs

log = logging.getLogger(__name__)

LOOK_S = 1.0
STALE_S = 10.0
"""A look older than that says nothing of now."""
THROTTLED = "throttled"
"""What every note of a witness on throttling begins with."""
COLDEST_MC, HOTTEST_MC = -40_000, 200_000
"""What lies beyond is no temperature: some drivers answer so for a domain that is off."""

NOBODY = Health(Unavailable("nobody looks at temperatures here"), None)


class HealthSource(Protocol):
    """Looks at the device. `look` never raises and never waits."""

    def start(self) -> None: ...

    def look(self) -> Health: ...

    def stop(self) -> None: ...


class NoHealth:
    """For a device that nobody can look at."""

    def start(self) -> None: ...

    def look(self) -> Health:
        return NOBODY

    def stop(self) -> None: ...


def hottest_c(sysfs: Sysfs) -> float | Unavailable:
    """The hottest thermal zone of the kernel, in °C. A zone that is powered off is left out."""
    found = [
        number
        for entry in sysfs.entries(sysfs.at(THERMAL))
        if entry.name.startswith("thermal_zone")
        for number in [sysfs.number_or_none(entry / "temp")]
        if number is not None and COLDEST_MC < number < HOTTEST_MC
    ]
    return max(found) / 1e3 if found else Unavailable("no thermal zone can be read")


class WatchedHealth:
    """Temperature by `read_temperature`, throttling by a witness whose windows follow one another."""

    def __init__(
        self,
        read_temperature: Callable[[], float | Unavailable],
        witness: Witness | None,
        clock: Clock,
        *,
        every_s: float = LOOK_S,
    ) -> None:
        self._read_temperature = read_temperature
        self._witness = witness
        self._clock = clock
        self._every_s = every_s
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._last: tuple[float, Health] | None = None
        self._problem: str | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._watch, name="guarded health", daemon=True)
        self._thread.start()

    def look(self) -> Health:
        last = self._last
        if last is None:
            return Health(Unavailable("the first look is not over"), None)
        at_s, health = last
        age_s = self._clock.now() - at_s
        if age_s > STALE_S:
            return Health(Unavailable(f"the sensors have not answered for {age_s:.0f} s"), None)
        return health

    def stop(self) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(self._every_s + LOOK_S)

    def _watch(self) -> None:
        while not self._stopped.is_set():
            throttling = self._watch_clocks()
            self._last = self._clock.now(), Health(self._read_temperature(), throttling)

    def _watch_clocks(self) -> tuple[str, ...] | None:
        """What held clocks down in one window; None where that cannot be told."""
        witness = self._witness
        try:
            if witness is not None:
                witness.begin()
            self._stopped.wait(self._every_s)
            if witness is None:
                return None
            return tuple(note for note in witness.end().notes if note.startswith(THROTTLED))
        except ControlError as error:
            if str(error) != self._problem:
                log.warning("throttling cannot be seen: %s", error)
            self._problem = str(error)
            self._stopped.wait(self._every_s)
            return None
