"""A clock that passes faster than the machine's, for boards that are mounted and sensors that average."""

from __future__ import annotations

import time


class ScaledClock:
    """Monotonic, `factor` seconds a second, in every thread and process alike."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def now(self) -> float:
        return time.monotonic() * self.factor

    def sleep(self, duration_s: float) -> None:
        time.sleep(max(duration_s, 0.0) / self.factor)
