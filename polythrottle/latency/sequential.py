"""Early abort: whether it is already clear that a configuration misses the SLO.

A sequential test on how many latencies exceed the limit. A configuration that meets `p99 < limit` exceeds
it in 1 % of the queries; the chance that so many independent ones exceed it by luck is at most
exp(-n·KL), by Chernoff's bound. Bursts are what can mislead: one bad moment at the start looks like a bad
configuration. So n is what dependence leaves of the latencies, judged at the limit and at the sample's own
levels, and each look has its own share of the chance to be wrong.
"""

from __future__ import annotations

import math

from polythrottle.latency.bounds import normal_of_student
from polythrottle.latency.percentile import allowed, inflation, mean_error
from polythrottle.latency.sample import LatencySample

FALSE_ABORTS = 0.001
"""Share of configurations exactly at the limit that may be dropped, if inflation were known exactly."""
AFTER_S = 2.0
"""A look is also due after so long, for whoever serves fewer queries than the first look wants."""
FEWEST_LATENCIES = 4
ALLOWANCE = 4.0
COARSER = (1, 2, 4, 8, 16)
"""Coarser batches than for a bound: an abort has to tell the burst that it sees from the state it is in."""
FEWEST_BATCHES = 4
LOOK_EVERY = 0.1
"""Looks are this share of the latencies apart, once that is more than `after_queries`."""


class SlowTest:
    """Whether a statistic of latency is above a limit beyond reasonable doubt."""

    def __init__(self, quantile: float | None, limit_s: float, after_queries: int = 50) -> None:
        """
        Args:
            quantile: 0.99 for p99; None for the mean.
            after_queries: the first look, and the least distance between looks.
        """
        self._quantile, self._limit_s = quantile, limit_s
        self._after_queries = max(after_queries, 1)
        self._next_queries = self._after_queries
        self._next_latencies = FEWEST_LATENCIES
        self._next_s = AFTER_S
        self._looks = 0

    def is_slow(self, sample: LatencySample, n_queries: int, elapsed_s: float) -> bool:
        """Cheap unless a look is due. `n_queries` are those that the sample's latencies answered."""
        n = len(sample)
        early = n_queries < self._after_queries and elapsed_s >= self._next_s
        if n < self._next_latencies or not (early or n_queries >= self._next_queries):
            return False
        self._looks += 1
        self._next_s = elapsed_s + AFTER_S
        self._next_latencies = n + max(1, int(LOOK_EVERY * n))
        if not early:
            self._next_queries = n_queries + max(self._after_queries, int(LOOK_EVERY * n_queries))
        # The chances of all looks, α / (j · (j + 1)), add up to α.
        needed = math.log(self._looks * (self._looks + 1) / FALSE_ABORTS)
        if self._quantile is None:
            return self._mean_evidence(sample) > needed
        return self._evidence(sample, 1.0 - self._quantile, needed) > needed

    def _evidence(self, sample: LatencySample, may_exceed: float, needed: float) -> float:
        """-log of the chance that a configuration at the limit looks like this."""
        n = len(sample)
        share = sample.count_above(self._limit_s) / n
        if share <= may_exceed:
            return 0.0
        surprise = share * math.log(share / may_exceed)
        if share < 1.0:
            surprise += (1.0 - share) * math.log((1.0 - share) / (1.0 - may_exceed))
        if n * surprise <= needed:
            return 0.0  # not even if all were independent
        levels = [self._limit_s, sample.at_rank(0.5 * (n - 1)), sample.at_rank(0.9 * (n - 1))]
        inflated = inflation(sample, levels, COARSER, FEWEST_BATCHES)
        return n * surprise / allowed(inflated, n * share, ALLOWANCE)

    def _mean_evidence(self, sample: LatencySample) -> float:
        over_s = sample.mean_s() - self._limit_s
        if over_s <= 0.0:
            return 0.0
        found = mean_error(sample, COARSER, FEWEST_BATCHES)
        if found.error_s <= 0.0:
            return math.inf
        return 0.5 * normal_of_student(over_s / found.error_s, max(found.n_batches - 1, 1)) ** 2
