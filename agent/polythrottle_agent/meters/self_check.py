"""Two meters of one thing must agree: checked at the start, over one window of both."""

from __future__ import annotations

import math
from dataclasses import dataclass

from polythrottle.clock import Clock
from polythrottle.measurement import Unavailable
from polythrottle_agent.ports import EnergyWindow, Meter

WINDOW_S = 10.0
TOLERANCE = 0.05
"""Counters and polled power of healthy hardware agree to about a per cent under steady load."""


@dataclass(frozen=True)
class SelfCheck:
    """What one window gave by both meters.

    `ratio` is polled power over counter, None where one could not be read. `agrees` is None then too.
    """

    ratio: float | None
    ratio_error: float | None
    agrees: bool | None
    note: str


def compare(
    counter: Meter, polled: Meter, clock: Clock, window_s: float = WINDOW_S, tolerance: float = TOLERANCE
) -> SelfCheck:
    """Open a window on both, wait, and compare. They agree within `tolerance` and three standard errors."""
    counter.begin()
    polled.begin()
    clock.sleep(window_s)
    polled_read = polled.end()
    return judge(counter, counter.end(), polled, polled_read, tolerance)


def judge(
    counter: Meter,
    counted: EnergyWindow | Unavailable,
    polled: Meter,
    polled_read: EnergyWindow | Unavailable,
    tolerance: float = TOLERANCE,
) -> SelfCheck:
    """Compare what two meters read over the same window."""
    if isinstance(counted, Unavailable):
        return SelfCheck(None, None, None, f"not compared: {counter.name}: {counted.reason}")
    if isinstance(polled_read, Unavailable):
        return SelfCheck(None, None, None, f"not compared: {polled.name}: {polled_read.reason}")
    counter_w = counted.energy_j / counted.window_s
    polled_w = polled_read.energy_j / polled_read.window_s
    if counter_w <= 0:
        return SelfCheck(None, None, False, f"{counter.name} counted nothing in {counted.window_s:.1f} s")
    ratio = polled_w / counter_w
    error = abs(ratio) * math.hypot(
        (counted.standard_error_j or 0.0) / counted.energy_j,
        (polled_read.standard_error_j or 0.0) / max(abs(polled_read.energy_j), 1e-12),
    )
    agrees = abs(ratio - 1.0) <= tolerance + 3.0 * error
    verdict = "agree" if agrees else "do not agree: trust the counter, and look for what the other one reads"
    return SelfCheck(
        ratio,
        error,
        agrees,
        f"{polled.name} reads {polled_w:.2f} W where {counter.name} counts {counter_w:.2f} W "
        f"(ratio {ratio:.3f} ± {error:.3f}): they {verdict}",
    )
