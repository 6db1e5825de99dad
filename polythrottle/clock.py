"""Time is injected: nothing else in polythrottle calls the `time` module's clock or sleeps."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """A monotonic clock that can also wait, in seconds."""

    def now(self) -> float: ...

    def sleep(self, duration_s: float) -> None: ...


class RealClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        return time.monotonic()

    def sleep(self, duration_s: float) -> None:
        time.sleep(max(duration_s, 0.0))


class WallClock(Protocol):
    """The time of day."""

    def now(self) -> datetime:
        """Local time, aware of its zone."""


class MachineWallClock:
    """The machine's local time."""

    def now(self) -> datetime:
        return datetime.now().astimezone()


class WallClockOver:
    """A time of day that goes on as another clock does: with a virtual one a day takes no time."""

    def __init__(self, clock: Clock, began: datetime) -> None:
        self._clock = clock
        self._began = began
        self._began_s = clock.now()

    def now(self) -> datetime:
        return self._began + timedelta(seconds=self._clock.now() - self._began_s)


class VirtualClock:
    """A clock that only moves when somebody sleeps: an emulated hour takes no time."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now(self) -> float:
        return self._now_s

    def sleep(self, duration_s: float) -> None:
        self._now_s += max(duration_s, 0.0)
