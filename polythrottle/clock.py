"""Time is injected: nothing else in polythrottle calls the `time` module's clock or sleeps."""

from __future__ import annotations

import time
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


class VirtualClock:
    """A clock that only moves when somebody sleeps: an emulated hour takes no time."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now(self) -> float:
        return self._now_s

    def sleep(self, duration_s: float) -> None:
        self._now_s += max(duration_s, 0.0)
