"""A workload on an emulated board: batches served back to back, every batch's latency drawn.

A percentile is that of a real sample, and its error comes from the sample's order statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from polythrottle.errors import InvalidInputError
from polythrottle.measurement import LatencyReading, Provenance
from polythrottle.objective import LatencySlo, format_latency
from polythrottle.studies import MeasurementPlan
from polythrottle_agent.emulation.board import EmulatedBoard
from polythrottle_agent.emulation.boards import BATCH_SIZES, DEFAULT_BATCH_SIZE
from polythrottle_agent.emulation.noise import draw_conditions, draw_latency, latency_scatter
from polythrottle_agent.ports import MayEnd, Served

EXPECTED_BEYOND = 10.0
"""Queries expected beyond a percentile for a window to bound it: 1,000 queries for p99."""


class EmulatedWorkload:
    """Closed loop, one batch in flight; each query's latency is its batch's."""

    def __init__(self, board: EmulatedBoard) -> None:
        self._board = board

    @property
    def name(self) -> str:
        return self._board.behaviour.calibration.workload

    @property
    def model_version(self) -> str:
        return f"{self.name}-fp16-emulated"

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        return BATCH_SIZES

    @property
    def default_batch_size(self) -> int:
        return DEFAULT_BATCH_SIZE

    def check_statistic(self, statistic: str) -> None:
        quantile_of(statistic)

    def warm_up(self, n_queries: int) -> None:
        if n_queries > 0:
            batch = self._board.nodes.batch
            seconds, watts = self._board.behaviour.latency_and_power(self._board.point_under_load())
            self._board.run(math.ceil(n_queries / batch) * seconds, watts)

    def serve(self, plan: MeasurementPlan, statistic: str, may_end: MayEnd | None = None) -> Served:
        board = self._board
        if board.observers:
            return self._serve_in_surroundings(plan, statistic, may_end)
        noise, rng = board.behaviour.calibration.noise, board.random
        mean_s, watts = board.behaviour.latency_and_power(board.point_under_load())
        conditions = draw_conditions(board.energy_scatter, rng)
        served = closed_loop(
            plan,
            statistic,
            board.nodes.batch,
            lambda: draw_latency(mean_s * conditions.latency, noise, rng),
            board.energy_scatter,
            may_end,
        )
        board.run(served.duration_s, watts * conditions.power)
        return served

    def _serve_in_surroundings(self, plan: MeasurementPlan, statistic: str, may_end: MayEnd | None) -> Served:
        """Batch by batch: what surrounds the board may throttle its clocks within a window."""
        board = self._board
        board.begin_window()

        def serve_batch() -> float:
            latency_s = board.begin_batch()
            board.clock.sleep(latency_s)
            board.energy_counter_j()
            return latency_s

        return closed_loop(plan, statistic, board.nodes.batch, serve_batch, board.energy_scatter, may_end)


def closed_loop(
    plan: MeasurementPlan,
    statistic: str,
    batch: int,
    serve_batch: Callable[[], float],
    scatter: float,
    may_end: MayEnd | None = None,
) -> Served:
    """One window of batches back to back, cut short by the plan's abort rule.

    Args:
        serve_batch: serves one batch and gives its latency in seconds.
        scatter: relative standard deviation of a window's energy, from which that of its latency follows.
        may_end: asked whenever the window has what the plan wants.
    """
    quantile = quantile_of(statistic)
    latencies_s: list[float] = []
    elapsed_s, n_queries = 0.0, 0
    check_at = plan.abort_after_queries
    aborted = None
    # Queries of one batch share their latency, so a batch counts once towards the percentile.
    while not (
        len(latencies_s) >= plan.min_queries
        and elapsed_s >= plan.min_window_s
        and (may_end is None or may_end())
    ):
        latencies_s.append(serve_batch())
        elapsed_s += latencies_s[-1]
        n_queries += batch
        if plan.abort_latency_s is not None and n_queries >= check_at:
            check_at = n_queries + max(plan.abort_after_queries, 1)
            seen_s = statistic_of(latencies_s, quantile)
            if seen_s > plan.abort_latency_s:
                aborted = (
                    f"{statistic} {format_latency(seen_s)} after {n_queries} queries is above "
                    f"{format_latency(plan.abort_latency_s)}"
                )
                break
        if elapsed_s >= plan.max_window_s:
            break
    value_s = statistic_of(latencies_s, quantile)
    reading = LatencyReading(
        latency_s=value_s,
        standard_error_s=math.hypot(
            sampling_error(latencies_s, quantile), latency_scatter(scatter) * value_s
        ),
        statistic=statistic,
        n_queries=n_queries,
        bounded=aborted is None and is_bounded(len(latencies_s), quantile),
        provenance=Provenance.EMULATED,
    )
    return Served(n_queries, elapsed_s, reading, aborted)


def quantile_of(statistic: str) -> float | None:
    """0.99 for `p99`, None for `mean`.

    Raises:
        InvalidInputError: neither a percentile nor `mean`.
    """
    if statistic == "mean":
        return None
    try:
        quantile = LatencySlo(statistic, limit_s=1.0).quantile
    except ValueError:
        quantile = None
    if quantile is None or not 0.0 < quantile < 1.0:
        raise InvalidInputError(f"An emulated workload gives p50 to p99.9 or mean, not {statistic!r}.")
    return quantile


def is_bounded(n_latencies: int, quantile: float | None) -> bool:
    """Whether that many independent latencies bound the statistic."""
    if quantile is None:
        return n_latencies >= EXPECTED_BEYOND
    return n_latencies * min(quantile, 1.0 - quantile) >= EXPECTED_BEYOND * (1.0 - 1e-9)


def statistic_of(latencies_s: Sequence[float], quantile: float | None) -> float:
    """The mean, or the percentile interpolated between order statistics."""
    if quantile is None:
        return sum(latencies_s) / len(latencies_s)
    return _at_rank(sorted(latencies_s), quantile * (len(latencies_s) - 1))


def sampling_error(latencies_s: Sequence[float], quantile: float | None) -> float:
    """Standard error of the statistic of this sample.

    For a percentile the number of draws below it is binomial: one standard deviation of ranks either
    side. Where the sample ends before the upper rank its largest value lies below the percentile more
    often than not: the error is then twice the larger distance.
    """
    n = len(latencies_s)
    if quantile is None:
        mean = sum(latencies_s) / n
        return math.sqrt(sum((x - mean) ** 2 for x in latencies_s) / max(n - 1, 1) / n)
    ordered = sorted(latencies_s)
    rank = quantile * (n - 1)
    spread = math.sqrt(n * quantile * (1.0 - quantile))
    middle = _at_rank(ordered, rank)
    above = _at_rank(ordered, rank + spread) - middle
    below = middle - _at_rank(ordered, rank - spread)
    if rank + spread > n - 1:
        return 2.0 * max(above, below)
    return 0.5 * (above + below)


def _at_rank(ordered: Sequence[float], rank: float) -> float:
    rank = min(max(rank, 0.0), len(ordered) - 1.0)
    low = int(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)
