"""From readings of power to energy and its standard error. Pure: no clock, no file.

A power sensor averages in hardware: one reading covers the `averaging_s` before it. Read more often than
that, it repeats itself, and readings closer than that share what they saw. Counting them all as independent
is how a window gets an error that is several times too small.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from polythrottle.measurement import Unavailable

MIN_INDEPENDENT = 2
"""Fewer independent readings than this say nothing about their scatter."""

MAX_AUTOCORRELATION = 0.9
MIN_FOR_AUTOCORRELATION = 8
"""With fewer independent readings a correlation between neighbours cannot be told from chance."""

MAX_GAP_SHARE = 0.2
MAX_GAP_PERIODS = 2.5
"""A window with a longer stretch without a reading, in both respects, has not been measured."""

_SMALL_SAMPLE = (1.84, 1.32, 1.20, 1.14, 1.11, 1.09, 1.08, 1.07, 1.06)
"""Student's t over the normal deviate at one standard deviation, for 2, 3, … readings."""


@dataclass(frozen=True)
class PowerEstimate:
    """Mean power over a window in W, its standard error (None: not known), and of how many readings."""

    mean_w: float
    standard_error_w: float | None
    n_independent: int


def mean_power(
    times_s: Sequence[float],
    watts: Sequence[float],
    began_s: float,
    ended_s: float,
    averaging_s: float,
    resolution_w: float,
) -> PowerEstimate | Unavailable:
    """Mean power between two moments.

    Only readings that lie wholly inside count: the first `averaging_s` of a window still shows what was
    before. The mean is the trapezoid rule over those; its error comes from the scatter of independent
    readings, from neighbours that still resemble one another (a slow drift), from the part that was left
    out, and from the sensor's resolution. A constant factor of the sensor is not in it: every window has it.

    Args:
        averaging_s: what one reading averages over; 0 for an instantaneous one.
        resolution_w: the step of a reading; 0 where it is not known.
    """
    window_s = ended_s - began_s
    inside = [(t, w) for t, w in zip(times_s, watts, strict=True) if began_s + averaging_s <= t <= ended_s]
    if len(inside) < MIN_INDEPENDENT or window_s < MIN_INDEPENDENT * averaging_s:
        return Unavailable(
            f"a window of {window_s:.2g} s holds {len(inside)} whole readings of a sensor that averages "
            f"over {averaging_s:.2g} s; measure for longer"
        )
    times = [t for t, _ in inside]
    gap_s = max(
        times[0] - began_s - averaging_s,
        ended_s - times[-1],
        *(after - before for before, after in pairwise(times)),
    )
    usual_s = statistics.median(after - before for before, after in pairwise(times))
    if gap_s > max(MAX_GAP_SHARE * window_s, 2.0 * averaging_s, MAX_GAP_PERIODS * usual_s):
        return Unavailable(f"the sensor gave no reading for {gap_s:.2g} s of a window of {window_s:.2g} s")
    mean = _trapezoid_mean(inside)
    blocks = _independent(inside, averaging_s)
    scatter = _standard_deviation(blocks)
    n = len(blocks)
    if n < MIN_INDEPENDENT:
        return PowerEstimate(mean, None, n)
    effective = n * _fewer_by_autocorrelation(blocks)
    error = math.hypot(
        scatter / math.sqrt(effective) * _SMALL_SAMPLE[min(n - 2, len(_SMALL_SAMPLE) - 1)],
        scatter * averaging_s / window_s,
        resolution_w / math.sqrt(12.0),
    )
    return PowerEstimate(mean, error if error > 0 else None, n)


def _trapezoid_mean(readings: Sequence[tuple[float, float]]) -> float:
    length = readings[-1][0] - readings[0][0]
    area = math.fsum(0.5 * (w0 + w1) * (t1 - t0) for (t0, w0), (t1, w1) in pairwise(readings))
    return area / length


def _independent(readings: Sequence[tuple[float, float]], averaging_s: float) -> list[float]:
    """Means of stretches of `averaging_s`: what was seen in one does not reach into the one after next."""
    if averaging_s <= 0:
        return [w for _, w in readings]
    stretches: dict[int, list[float]] = {}
    for t, w in readings:
        stretches.setdefault(int((t - readings[0][0]) / averaging_s), []).append(w)
    return [math.fsum(stretch) / len(stretch) for stretch in stretches.values()]


def _standard_deviation(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1))


def _fewer_by_autocorrelation(values: Sequence[float]) -> float:
    """(1 - ρ) / (1 + ρ) for a correlation ρ ≥ 0 of neighbours: by how much n readings count for less."""
    if len(values) < MIN_FOR_AUTOCORRELATION:
        return 1.0
    mean = math.fsum(values) / len(values)
    deviations = [v - mean for v in values]
    square = math.fsum(d * d for d in deviations)
    if square <= 0:
        return 1.0
    rho = math.fsum(a * b for a, b in pairwise(deviations)) / square
    rho = min(max(rho, 0.0), MAX_AUTOCORRELATION)
    return (1.0 - rho) / (1.0 + rho)
