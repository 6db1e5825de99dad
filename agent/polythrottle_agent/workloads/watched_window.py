"""One window of watched traffic: pieces come in, it says when it is over and what they tell.

The counterpart of `polythrottle.latency.window.LatencyWindow` for those who see no single latency.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

from polythrottle.latency.percentile import ONE_SIDED_95
from polythrottle.measurement import ASSUMED_RELATIVE_ERROR, LatencyReading, Provenance, Unavailable
from polythrottle.objective import format_latency
from polythrottle.studies import MeasurementPlan
from polythrottle_agent.ports import MayEnd
from polythrottle_agent.workloads.buckets import (
    BY_CHANCE,
    EXPECTED_BEYOND,
    LEAST_BATCHES,
    ONE_SIDED_1,
    ONE_SIDED_5,
    Bounds,
    Buckets,
    Piece,
    is_surely_above,
    joined,
    percentile,
)
from polythrottle_agent.workloads.live_metrics import Between

NO_BUCKETS = Buckets((math.inf,), (0.0,), None)

SUMMARY_RANK_ERROR = 0.1
"""By how much of 1 − q the q-quantile of a summary may be another one: what Triton allows by default."""
CLUSTERING = 2.0
"""How much wider than for independent latencies a quantile's rank is taken to scatter, since a summary shows
nothing of how alike neighbours are: as if only every fourth counted."""


@dataclass(frozen=True)
class Found:
    """The statistic in seconds, as far as it is known. `lower_only`: it is no more than a lower bound."""

    value_s: float
    upper_s: float
    bounded: bool
    is_tight: bool
    lower_only: bool = False
    note: str | None = None


class WatchedWindow:
    """Whoever watches adds what happened between scrapes and asks `is_over` after each."""

    def __init__(self, plan: MeasurementPlan, statistic: str, quantile: float | None, least_s: float) -> None:
        """
        Args:
            quantile: of the statistic; None for the mean.
            least_s: a window that is shorter tells nothing, whatever the plan wants.
        """
        self._plan, self._statistic, self._quantile = plan, statistic, quantile
        self._least_s = max(plan.min_window_s, least_s)
        self._seen: list[Between] = []
        self._summary: Mapping[float, float] = {}
        self.aborted_reason: str | None = None

    @property
    def duration_s(self) -> float:
        return sum(seen.duration_s for seen in self._seen)

    @property
    def n_good(self) -> int:
        return round(sum(seen.n_good for seen in self._seen))

    @property
    def n_lost(self) -> int:
        return round(sum(seen.n_lost for seen in self._seen))

    def add(self, seen: Between, summary: Mapping[float, float]) -> None:
        """What happened since the last scrape; `summary` are the quantiles that a summary shows now."""
        self._seen.append(seen)
        self._summary = summary

    def is_over(self, may_end: MayEnd | None) -> bool:
        """Whether the window ends here."""
        plan, n, elapsed_s = self._plan, self.n_good + self.n_lost, self.duration_s
        if plan.abort_latency_s is not None and n >= plan.abort_after_queries:
            self._look_for_abort(plan.abort_latency_s, n)
        if self.aborted_reason is not None or elapsed_s >= max(plan.max_window_s, self._least_s):
            return True
        if n < max(plan.min_queries, 1) or elapsed_s < self._least_s:
            return False
        if plan.precision is not None:
            found = self._found(ONE_SIDED_1)
            if found is None or not (
                found.is_tight or found.upper_s - found.value_s <= plan.precision * found.value_s
            ):
                return False
        return may_end is None or may_end()

    def reading(self, provenance: Provenance) -> tuple[LatencyReading | Unavailable, tuple[str, ...]]:
        """What the window tells, and sentences on it."""
        if not self.n_good and not self.n_lost:
            return Unavailable(
                f"no query was counted in {self.duration_s:.3g} s; is there live traffic, and is it counted?"
            ), ()
        if not self.n_good:
            return Unavailable(f"all {self.n_lost:,} queries of the window failed"), ()
        found = self._found(ONE_SIDED_5)
        if found is None:
            return Unavailable(self._why_nothing()), ()
        if found.lower_only:
            self.aborted_reason = self.aborted_reason or self._is_above(found.value_s)
        upper_s = found.upper_s if math.isfinite(found.upper_s) else None
        if found.lower_only:
            error_s = ASSUMED_RELATIVE_ERROR * found.value_s
        else:
            error_s = found.value_s if upper_s is None else (upper_s - found.value_s) / ONE_SIDED_95
        reading = LatencyReading(
            latency_s=found.value_s,
            standard_error_s=error_s,
            statistic=self._statistic,
            n_queries=self.n_good,
            bounded=self.aborted_reason is None and found.bounded and upper_s is not None,
            provenance=provenance,
            upper_s=upper_s,
        )
        return reading, () if found.note is None else (found.note,)

    def _is_above(self, value_s: float) -> str:
        n = self.n_good + self.n_lost
        if self.n_lost:
            share = self.n_lost / n
            return (
                f"{share:.1%} of {n:,} queries failed: {self._statistic} is above {format_latency(value_s)}"
            )
        return f"{self._statistic} is above the last edge of the histogram, {format_latency(value_s)}"

    def _look_for_abort(self, limit_s: float, n: int) -> None:
        above_s: float | None = None
        if self._has_buckets:
            above_s = is_surely_above(self._pieces(), self._quantile, limit_s)
        elif self._quantile is None:
            mean = self._mean(BY_CHANCE)
            low_s = -math.inf if mean is None else 2 * mean.value_s - mean.upper_s
            above_s = low_s if low_s > limit_s else None
        else:
            shown = self._from_summary(self._quantile)
            above_s = shown.value_s if shown is not None and shown.value_s > limit_s else None
        if above_s is not None:
            self.aborted_reason = (
                f"{self._statistic} is above {format_latency(above_s)} after {n:,} queries, "
                f"and so above {format_latency(limit_s)}"
            )

    @property
    def _has_buckets(self) -> bool:
        return any(seen.buckets is not None for seen in self._seen)

    def _pieces(self) -> list[Piece]:
        return [
            Piece(seen.buckets, self._lost_latencies(seen)) for seen in self._seen if seen.buckets is not None
        ]

    def _lost_latencies(self, seen: Between) -> float:
        """A lost query weighs as much as an answered one: of tokens it lost as many as an answer has."""
        answered = sum(s.n_good for s in self._seen)
        latencies = sum(s.n_latencies for s in self._seen)
        return seen.n_lost * (latencies / answered if answered and latencies else 1.0)

    def _found(self, doubt: float) -> Found | None:
        if self._quantile is None:
            return self._mean(doubt)
        if self._has_buckets:
            return self._from_buckets(self._quantile, doubt)
        return self._from_summary(self._quantile)

    def _from_buckets(self, quantile: float, doubt: float) -> Found | None:
        pieces = self._pieces()
        if sum(piece.n for piece in pieces) <= 0:
            return None
        bounds: Bounds = percentile(pieces, quantile, doubt)
        edges = f"{format_latency(bounds.low_s)} to {format_latency(bounds.high_s)}"
        return Found(
            bounds.value_s,
            bounds.upper_s,
            bounds.bounded,
            bounds.is_tight,
            lower_only=math.isinf(bounds.high_s),
            note=None
            if math.isinf(bounds.high_s)
            else f"{self._statistic} lies in the histogram's bucket {edges}, and is judged by its upper edge",
        )

    def _from_summary(self, quantile: float) -> Found | None:
        """The quantile that the service worked out over its last minute, bounded by the ones above it."""
        value_s = next((s for q, s in self._summary.items() if math.isclose(q, quantile)), math.nan)
        if not math.isfinite(value_s) or self.duration_s < self._least_s:
            return None
        n_good, n_lost = self.n_good, self.n_lost
        n = n_good + n_lost
        if n_lost > (1.0 - quantile) * n:
            return Found(value_s, math.inf, False, False, lower_only=True)
        spread = ONE_SIDED_95 * CLUSTERING * math.sqrt(quantile * (1.0 - quantile) / n)
        rank = quantile + SUMMARY_RANK_ERROR * (1.0 - quantile) + spread
        # Lost queries are later than any that the summary knows of.
        upper_s = _at_rank(self._summary, rank * n / n_good)
        bounded = n * min(quantile, 1 - quantile) >= EXPECTED_BEYOND * (1 - 1e-9)
        return Found(value_s, upper_s, bounded, is_tight=True)

    def _mean(self, doubt: float) -> Found | None:
        """The mean over all latencies; its error from how the pieces scatter."""
        known = [(s.sum_s, s.n_latencies) for s in self._seen if s.sum_s is not None and s.n_latencies > 0]
        n = sum(count for _, count in known)
        if n <= 0:
            return None
        mean_s = sum(total for total, _ in known) / n
        if mean_s <= 0:
            return None
        if self.n_lost:
            return Found(mean_s, math.inf, False, False, lower_only=True)
        batches = joined([total for total, _ in known], [count for _, count in known])
        k = len(batches)
        if k < LEAST_BATCHES:
            return Found(mean_s, math.inf, False, False)
        variance = k / (k - 1) * sum((total - mean_s * count) ** 2 for total, count in batches) / n**2
        errors = NormalDist().inv_cdf(1.0 - doubt)
        stretched = errors * (1.0 + (errors**2 + 1.0) / (4.0 * (k - 1)))  # few batches: Student's quantile
        upper_s = mean_s + stretched * math.sqrt(variance)
        return Found(mean_s, upper_s, n >= EXPECTED_BEYOND, False)

    def _why_nothing(self) -> str:
        if self._quantile is not None and not self._has_buckets and self.duration_s < self._least_s:
            return (
                f"the service's summary covers its last {self._least_s:g} s, and the window ended after "
                f"{self.duration_s:.3g} s"
            )
        return f"the service counted queries and showed no {self._statistic} of their latency"


def _at_rank(quantiles: Mapping[float, float], rank: float) -> float:
    """The latency at a rank between those that are known; infinite above them.

    Linear in −ln(1 − q), which is exact for an exponential tail and errs high for a heavier one.
    """
    known = sorted((q, s) for q, s in quantiles.items() if math.isfinite(s))
    for (low, low_s), (high, high_s) in itertools.pairwise(known):
        if low <= rank <= high:
            span = math.log((1.0 - low) / (1.0 - high)) if high < 1.0 else math.inf
            share = math.log((1.0 - low) / (1.0 - rank)) / span if math.isfinite(span) else 1.0
            return low_s + share * (high_s - low_s)
    return math.inf
