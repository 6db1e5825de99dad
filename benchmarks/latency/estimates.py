"""Percentiles of queues through `LatencyWindow`, against theory: their error, and how often bounds cover."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.latency.queues import Queue
from polythrottle.latency.window import LatencyWindow
from polythrottle.measurement import LatencyReading, Provenance
from polythrottle.studies import MeasurementPlan

LONG = MeasurementPlan(min_window_s=0.0, max_window_s=math.inf)


@dataclass(frozen=True)
class Window:
    """What one window told, and how many queries it held."""

    reading: LatencyReading
    n_queries: int


def serve(latencies: Iterator[float], plan: MeasurementPlan, statistic: str) -> Window:
    """One window as any workload serves it: an arrival a second, as far as the plan's times go."""
    window, n = LatencyWindow(plan, statistic), 0
    for latency in latencies:
        window.add(latency)
        n += 1
        if window.is_over(float(n)):
            break
    reading = window.reading(Provenance.EMULATED)
    assert isinstance(reading, LatencyReading)
    return Window(reading, n)


def one_by_one(queue: Queue, rng: np.random.Generator) -> Iterator[float]:
    for chunk in queue.latencies(rng):
        yield from chunk.tolist()


def relative_error(queue: Queue, quantile: float, n_queries: int, seed: int) -> float:
    """Of the estimate from one long window."""
    plan = replace(LONG, min_queries=n_queries)
    stream = one_by_one(queue, np.random.default_rng(seed))
    found = serve(stream, plan, statistic_of(quantile)).reading
    return found.latency_s / queue.quantile(quantile) - 1.0


@dataclass(frozen=True)
class Coverage:
    """Of windows of one kind: how many, whose bound was not below the truth, how many of all were bounded.

    `median_queries` and `median_width` (bound over estimate, less 1) say what the bounds cost and are worth.
    """

    n: int
    n_covered: int
    n_bounded: int
    n_bounded_covered: int
    median_queries: float
    median_width: float


def coverage(queue: Queue, quantile: float, plan: MeasurementPlan, n_runs: int, seed: int) -> Coverage:
    """Of `n_runs` windows, each of its own stream."""
    truth = queue.quantile(quantile)
    windows = [
        serve(one_by_one(queue, np.random.default_rng((seed, run))), plan, statistic_of(quantile))
        for run in range(n_runs)
    ]
    uppers = [window.reading.upper_s or 0.0 for window in windows]
    # As theory is worked out on a lattice, an atom's bound may lie a hair below it.
    covered = [upper >= truth * (1.0 - 1e-6) for upper in uppers]
    bounded = [window.reading.bounded for window in windows]
    widths = [u / w.reading.latency_s - 1.0 for u, w in zip(uppers, windows, strict=True)]
    return Coverage(
        n_runs,
        sum(covered),
        sum(bounded),
        sum(c and b for c, b in zip(covered, bounded, strict=True)),
        float(np.median([window.n_queries for window in windows])),
        float(np.median(widths)),
    )


def statistic_of(quantile: float) -> str:
    return f"p{100 * quantile:g}"
