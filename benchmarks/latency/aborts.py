"""The sequential test: who is dropped how soon, and how often one that meets its SLO is."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.latency.estimates import one_by_one, statistic_of
from benchmarks.latency.queues import Queue
from polythrottle.latency.window import LatencyWindow
from polythrottle.studies import MeasurementPlan
from polythrottle_agent.emulation.fitted import FITTED
from polythrottle_agent.emulation.noise import draw_latency

NOISE = FITTED[0].noise


@dataclass(frozen=True)
class Dropped:
    """When a window was cut short: after so many queries and seconds; None, None where it was not."""

    n_queries: int | None
    after_s: float | None


def until_dropped(
    latencies: Iterator[float],
    statistic: str,
    limit_s: float,
    gap_s: float | None,
    most_queries: int,
    batch: int,
) -> Dropped:
    """Serve until the window is cut short, or is over.

    Args:
        gap_s: between arrivals; None for queries back to back.
        batch: queries that share a latency.
    """
    plan = MeasurementPlan(
        min_queries=most_queries, min_window_s=0.0, max_window_s=math.inf, abort_latency_s=limit_s
    )
    window, n, elapsed_s = LatencyWindow(plan, statistic), 0, 0.0
    for latency in latencies:
        window.add(latency, batch)
        n += batch
        elapsed_s += latency if gap_s is None else gap_s
        if window.is_over(elapsed_s):
            break
    if window.aborted_reason is None:
        return Dropped(None, None)
    return Dropped(n, elapsed_s)


def board_latencies(mean_s: float, seed: int) -> Iterator[float]:
    """Batches back to back, as an emulated board scatters them."""
    rng = random.Random(seed)
    while True:
        yield draw_latency(mean_s, NOISE, rng)


def board_quantile(quantile: float, n: int = 400_000) -> float:
    """Of the same, over the mean."""
    rng = random.Random(0)
    draws = sorted(draw_latency(1.0, NOISE, rng) for _ in range(n))
    return draws[int(quantile * (n - 1))]


def board_drops(
    quantile: float, over: float, mean_s: float, batch: int, n_runs: int, most_queries: int = 5000
) -> list[Dropped]:
    """Windows on a board whose true latency is `over` times the limit."""
    limit_s = mean_s * board_quantile(quantile) / over
    return [
        until_dropped(
            board_latencies(mean_s, seed), statistic_of(quantile), limit_s, None, most_queries, batch
        )
        for seed in range(n_runs)
    ]


def queue_drops(
    queue: Queue, quantile: float, over: float, n_runs: int, most_queries: int, seed: int
) -> list[Dropped]:
    """Windows of a queue whose true latency is `over` times the limit."""
    limit = queue.quantile(quantile) / over
    return [
        until_dropped(
            one_by_one(queue, np.random.default_rng((seed, run))),
            statistic_of(quantile),
            limit,
            1.0,
            most_queries,
            1,
        )
        for run in range(n_runs)
    ]
