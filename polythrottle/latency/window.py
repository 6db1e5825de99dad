"""One window of one trial: latencies come in, it says when it is over and what they tell."""

from __future__ import annotations

import math
from collections.abc import Callable

from polythrottle.latency.percentile import MISS, ONE_SIDED_95, Estimate, estimate
from polythrottle.latency.sample import LatencySample
from polythrottle.latency.sequential import SlowTest
from polythrottle.latency.statistic import quantile_of
from polythrottle.measurement import LatencyReading, Provenance, Unavailable
from polythrottle.objective import format_latency
from polythrottle.studies import MeasurementPlan

GROWTH = 1.35
"""A window whose bound is not tight enough is looked at again when it has grown by this."""
GROWN_MISS = 0.03
"""A window that ends as soon as its bound is tight ends a little too often when it is too low: its bound is
taken further out, so that it covers the truth in 95 % of windows all the same."""
ASK_AGAIN = 1.02
"""`may_end` reads a meter: it is asked again when the window has grown by this."""
LARGEST_ERROR = 0.95
"""Of the value: a relative standard error beyond that says no more."""
LOST_AS = 10.0
"""What a lost query counts for where infinity cannot be used: so many times the longest latency known."""


class LatencyWindow:
    """Whoever serves adds latencies and asks `is_over` after each. Latencies are in seconds."""

    def __init__(self, plan: MeasurementPlan, statistic: str) -> None:
        """
        Raises:
            InvalidInputError: neither a percentile nor `mean`.
        """
        self._plan, self._statistic = plan, statistic
        self._quantile = quantile_of(statistic)
        self._sample = LatencySample()
        self._n_good = self._n_lost = 0
        self._waited_s = 0.0
        self._unplaced = 0
        self._next_look = max(plan.min_queries, 1)
        self._aborted_reason: str | None = None
        self._slow = None
        if plan.abort_latency_s is not None:
            self._slow = SlowTest(self._quantile, plan.abort_latency_s, plan.abort_after_queries)

    @property
    def n_good(self) -> int:
        """Queries answered well."""
        return self._n_good

    @property
    def n_lost(self) -> int:
        """Queries that were not."""
        return self._n_lost

    @property
    def aborted_reason(self) -> str | None:
        """Why the window was cut short, or lost too many queries; None otherwise. Final after `reading`."""
        return self._aborted_reason

    def add(self, latency_s: float, n_queries: int = 1) -> None:
        """A good answer. Queries of one batch share its latency, which counts once for a percentile."""
        self._n_good += n_queries
        self._sample.add(latency_s)
        if self._unplaced:
            self._place()

    def lose(self, n_queries: int = 1, waited_s: float = 0.0) -> None:
        """No good answer: infinitely late.

        Args:
            waited_s: the time-out, where it ran out; 0 where an error came back.
        """
        self._n_lost += n_queries
        self._waited_s = max(self._waited_s, waited_s)
        if self._quantile is not None:
            self._sample.add(math.inf)
        else:
            # A mean with an infinite latency is infinite; the stand-in needs a latency to be a multiple of.
            self._unplaced += 1
            self._place()

    def is_over(self, elapsed_s: float, may_end: Callable[[], bool] | None = None) -> bool:
        """Whether the window ends here. Cheap enough to be asked after every query.

        Args:
            elapsed_s: since the window began.
            may_end: asked, now and then, once the window has all that the plan wants.
        """
        if self._aborted_reason is not None:
            return True
        if self._slow is not None and self._slow.is_slow(
            self._sample, self._n_good + self._n_lost, elapsed_s
        ):
            self._abort_as_slow()
            return True
        plan, n = self._plan, len(self._sample)
        if elapsed_s >= plan.max_window_s:
            return True
        if n < self._next_look or elapsed_s < plan.min_window_s:
            return False
        if plan.precision is not None and not self._is_precise(plan.precision):
            self._next_look = math.ceil(n * GROWTH)
            return False
        if may_end is None or may_end():
            return True
        self._next_look = math.ceil(n * ASK_AGAIN)
        return False

    def reading(self, provenance: Provenance, scatter: float = 0.0) -> LatencyReading | Unavailable:
        """What the window tells.

        Of one that was cut short the latency is what was seen so far, and at least the limit: a lower bound,
        as a high percentile of few latencies errs low. Where lost queries reach the percentile that is an
        abort too, and the bound is how long they were waited for.

        Args:
            scatter: relative standard deviation between windows, which counts as error of this one.
        """
        if not self._n_good:
            return Unavailable(self._nothing_good())
        found = self._estimate()
        if math.isinf(found.value_s):
            self._abort_as_lost()
        value_s, sampling_s = found.value_s, found.standard_error_s
        if self._aborted_reason is not None:
            value_s = max(value_s, self._plan.abort_latency_s or 0.0)
        if math.isinf(value_s):
            value_s = self._certain_s()
        if math.isinf(sampling_s):
            sampling_s = 0.0
        upper_s = self._lost_as_s() if math.isinf(found.upper_s) else max(found.upper_s, value_s)
        error_s = math.hypot(sampling_s, scatter * value_s)
        return LatencyReading(
            latency_s=value_s,
            standard_error_s=min(error_s, LARGEST_ERROR * value_s),
            statistic=self._statistic,
            n_queries=self._n_good,
            bounded=self._aborted_reason is None and found.bounded,
            provenance=provenance,
            # Both parts are above the value alone: their distances add like independent errors.
            upper_s=value_s + math.hypot(upper_s - value_s, ONE_SIDED_95 * scatter * value_s),
        )

    def _estimate(self) -> Estimate:
        miss = MISS if self._plan.precision is None else GROWN_MISS
        return estimate(self._sample, self._quantile, miss)

    def _is_precise(self, precision: float) -> bool:
        found = self._estimate()
        return found.bounded and found.upper_s - found.value_s <= precision * found.value_s

    def _abort_as_slow(self) -> None:
        n, limit_s = self._n_good + self._n_lost, self._plan.abort_latency_s or 0.0
        seen_s = estimate(self._sample, self._quantile).value_s
        seen = format_latency(seen_s) if math.isfinite(seen_s) else f"beyond {self._n_lost:,} lost queries"
        self._aborted_reason = (
            f"{self._statistic} {seen} after {n} queries is above {format_latency(limit_s)}"
        )

    def _abort_as_lost(self) -> None:
        if self._aborted_reason is None:
            n = self._n_good + self._n_lost
            self._aborted_reason = (
                f"{self._n_lost:,} of {n:,} queries got no good answer: more than "
                f"{self._statistic} leaves room for"
            )

    def _certain_s(self) -> float:
        """What a percentile that lost queries reach is surely above."""
        return max(self._waited_s, self._sample.largest_s, self._plan.abort_latency_s or 0.0)

    def _lost_as_s(self) -> float:
        return LOST_AS * self._certain_s()

    def _place(self) -> None:
        """Give lost queries their latency in a mean, as soon as one can be given."""
        latency_s = self._lost_as_s()
        while self._unplaced and latency_s > 0.0:
            self._sample.add(latency_s)
            self._unplaced -= 1

    def _nothing_good(self) -> str:
        if not self._n_lost:
            return "no query was answered in the window"
        return f"none of {self._n_lost:,} queries got a good answer"
