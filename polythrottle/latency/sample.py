"""The latencies of a window, kept in sorted batches: what percentiles and their autocorrelation need.

A window at 2,000 queries a second must not stop the load generator to sort a million numbers. So latencies
are kept in between 64 and 128 batches in order of arrival, each sorted by itself: how many of a batch lie
above a level, and any order statistic of the whole, then take a fraction of a millisecond.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from operator import itemgetter

MAX_BATCHES = 128
"""At so many, batches are merged in pairs."""


class LatencySample:
    """Latencies in seconds, in order of arrival; infinite ones are lost queries."""

    def __init__(self) -> None:
        self._batches: list[array[float]] = []
        self._sums: list[float] = []
        self._open: list[float] = []
        self._batch_size = 1
        self._squares = 0.0
        self._largest_s = 0.0

    def __len__(self) -> int:
        return len(self._batches) * self._batch_size + len(self._open)

    @property
    def batch_size(self) -> int:
        """Latencies in each whole batch."""
        return self._batch_size

    @property
    def largest_s(self) -> float:
        """The largest finite latency; 0 before there is one."""
        return self._largest_s

    @property
    def sums_s(self) -> Sequence[float]:
        """The sum of each whole batch, in order of arrival."""
        return self._sums

    def add(self, latency_s: float) -> None:
        self._open.append(latency_s)
        self._squares += latency_s * latency_s
        if self._largest_s < latency_s < math.inf:
            self._largest_s = latency_s
        if len(self._open) == self._batch_size:
            self._open.sort()
            self._batches.append(array("d", self._open))
            self._sums.append(math.fsum(self._open))
            self._open = []
            if len(self._batches) == MAX_BATCHES:
                self._merge()

    def mean_s(self) -> float:
        """
        Raises:
            ValueError: the sample is empty.
        """
        if not len(self):
            raise ValueError("an empty sample has no mean")
        return math.fsum((*self._sums, *self._open)) / len(self)

    def variance_s2(self) -> float:
        """Of single latencies, as if they were independent, in s².

        Raises:
            ValueError: the sample is empty.
        """
        n = len(self)
        return max(self._squares / n - self.mean_s() ** 2, 0.0) * n / max(n - 1, 1)

    def batch_counts_above(self, level_s: float) -> list[int]:
        """How many latencies of each whole batch lie above a level, in order of arrival."""
        size = self._batch_size
        return [size - bisect_right(batch, level_s) for batch in self._batches]

    def count_above(self, level_s: float) -> int:
        """How many latencies lie above a level."""
        return sum(self.batch_counts_above(level_s)) + sum(latency > level_s for latency in self._open)

    def at_rank(self, rank: float) -> float:
        """The value at a rank from 0 to n - 1, clipped to that, interpolated between order statistics.

        Raises:
            ValueError: the sample is empty.
        """
        n = len(self)
        if not n:
            raise ValueError("an empty sample has no order statistics")
        rank = min(max(rank, 0.0), n - 1.0)
        low = int(rank)
        below, above = self._pair(low)
        if rank == low or above == below:
            return below
        return below + (above - below) * (rank - low)

    def mean_beyond(self, level_s: float) -> float:
        """Mean distance by which the finite latencies above a level exceed it; 0 where none does."""
        total, count = 0.0, 0
        for run in (*self._batches, sorted(self._open)):
            beyond = run[bisect_right(run, level_s) : bisect_left(run, math.inf)]
            total += math.fsum(beyond) - level_s * len(beyond)
            count += len(beyond)
        return total / count if count else 0.0

    def _pair(self, k: int) -> tuple[float, float]:
        """The k-th smallest latency, from 0, and the next one (the same again for the last)."""
        runs: list[Sequence[float]] = [*self._batches, sorted(self._open)]
        low, high = [0] * len(runs), [len(run) for run in runs]
        while True:
            pivot = _weighted_median(
                [(run[(a + b) // 2], b - a) for run, a, b in zip(runs, low, high, strict=True) if a < b]
            )
            below = [bisect_left(r, pivot, a, b) for r, a, b in zip(runs, low, high, strict=True)]
            upto = [bisect_right(r, pivot, a, b) for r, a, b in zip(runs, low, high, strict=True)]
            if k < sum(below):
                high = below
            elif k >= sum(upto):
                low = upto
            elif k + 1 < sum(upto):
                return pivot, pivot
            else:
                rest = [run[a] for run, a in zip(runs, upto, strict=True) if a < len(run)]
                return pivot, min(rest, default=pivot)

    def _merge(self) -> None:
        pairs = range(0, len(self._batches), 2)
        # Two sorted runs in a row: the sort only merges them.
        self._batches = [array("d", sorted(self._batches[i] + self._batches[i + 1])) for i in pairs]
        self._sums = [self._sums[i] + self._sums[i + 1] for i in pairs]
        self._batch_size *= 2


def _weighted_median(values: list[tuple[float, int]]) -> float:
    values.sort(key=itemgetter(0))
    half = sum(weight for _, weight in values) / 2
    seen = 0
    for value, weight in values:
        seen += weight
        if seen >= half:
            return value
    raise ValueError("no values")
