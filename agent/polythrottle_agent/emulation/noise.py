"""Scatter of the emulated board: from window to window and from query to query.

The paper's surfaces repeat each setting many times: energy scatters by 1.4 to 5.5 % (standard deviation
over mean), and robustly by only 0.4 to 1.2 %. So most of the variance comes from rare, large outliers.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from polythrottle_agent.emulation.calibration import Noise

OUTLIER_RATE = 0.03
"""Share of windows in which something else on the board draws power too."""
_OUTLIER_VARIANCE = 0.7
"""Share of the energy's variance that outliers make."""
_LATENCY_SD = 0.25
"""Window-to-window standard deviation of latency, over that of energy."""
_POWER_SD = math.sqrt(1.0 - _OUTLIER_VARIANCE - _LATENCY_SD**2)
_OUTLIER_SIZE = math.sqrt(_OUTLIER_VARIANCE / (OUTLIER_RATE * (1.0 + 1.0 / 12.0)))
"""Mean extra power of an outlier, over the standard deviation of energy; uniform within ± half of it."""


@dataclass(frozen=True)
class Conditions:
    """What one window multiplies latency and power by."""

    latency: float
    power: float


def latency_scatter(energy_scatter: float) -> float:
    """Relative window-to-window standard deviation of latency."""
    return _LATENCY_SD * energy_scatter


def draw_conditions(scatter: float, rng: random.Random) -> Conditions:
    """One window's conditions, of mean 1; `scatter` is the relative standard deviation of energy."""
    power = math.exp(rng.gauss(0.0, _POWER_SD * scatter))
    if rng.random() < OUTLIER_RATE:
        power *= 1.0 + _OUTLIER_SIZE * scatter * rng.uniform(0.5, 1.5)
    return Conditions(
        latency=math.exp(rng.gauss(0.0, latency_scatter(scatter))),
        power=power / (1.0 + OUTLIER_RATE * _OUTLIER_SIZE * scatter),
    )


def draw_latency(mean_s: float, noise: Noise, rng: random.Random) -> float:
    """Latency of one batch in seconds: log-normal around its mean, with a small tail."""
    latency_s = mean_s * math.exp(rng.gauss(-0.5 * noise.jitter * noise.jitter, noise.jitter))
    if rng.random() < noise.tail_share:
        latency_s *= 1.0 + noise.tail_stretch * rng.random()
    return latency_s / (1.0 + 0.5 * noise.tail_share * noise.tail_stretch)
