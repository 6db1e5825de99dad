"""Whether the same configuration has become slower or faster: Page and Hinkley's test on log medians.

The first groups after a switch are the reference. Then two sums, one for each direction, add up what
each group's log median lies beyond the reference by more than an allowance; a sum above the threshold is a
change. Allowance and threshold grow with the reference's own scatter, lag-one correlation counted, and one
group alone cannot reach the threshold. How often it is wrong is measured in the tests.
"""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import dataclass, replace

REFERENCE_GROUPS = 20
LEAST_SHIFT = math.log(1.15)
"""A smaller change of the median is none worth another search."""
LEAST_SCATTER = 0.01
THRESHOLD_SD = 8.0
MOST_FROM_ONE = 0.34
"""Share of the threshold that a single group may add."""


@dataclass(frozen=True)
class Change:
    """The median moved by `ratio`: 1.2 is 20 % slower. `n_groups` after the reference."""

    ratio: float
    n_groups: int


@dataclass(frozen=True)
class ShiftTest:
    """The test's memory. Grows by `add`; begins anew with a new instance."""

    reference: tuple[float, ...] = ()
    slower: float = 0.0
    faster: float = 0.0
    since: tuple[float, ...] = ()
    """Log medians while a sum stands above zero: where the latency went, if that is a change."""
    n_groups: int = 0

    def add(self, median_s: float) -> tuple[ShiftTest, Change | None]:
        """One more group. After a change the test begins anew, with the next groups as its reference."""
        if not (math.isfinite(median_s) and median_s > 0):
            return self, None
        x = math.log(median_s)
        if len(self.reference) < REFERENCE_GROUPS:
            return replace(self, reference=(*self.reference, x)), None
        middle, scatter = statistics.fmean(self.reference), _scatter(self.reference)
        allowance = 0.5 * LEAST_SHIFT + scatter * (0.5 + math.sqrt(2.0 / REFERENCE_GROUPS))
        threshold = max(THRESHOLD_SD * scatter, 2.0 * LEAST_SHIFT)
        most = MOST_FROM_ONE * threshold
        slower = max(self.slower + min(x - middle - allowance, most), 0.0)
        faster = max(self.faster + min(middle - x - allowance, most), 0.0)
        since = (*self.since, x) if slower or faster else ()
        if max(slower, faster) < threshold:
            return replace(self, slower=slower, faster=faster, since=since, n_groups=self.n_groups + 1), None
        moved = statistics.median(since) - middle
        return ShiftTest(), Change(math.exp(moved), self.n_groups + 1)


def _scatter(values: tuple[float, ...]) -> float:
    """Standard deviation that counts for a sum: widened by the correlation of neighbours."""
    deviation = statistics.stdev(values)
    middle = statistics.fmean(values)
    squares = sum((x - middle) ** 2 for x in values)
    products = sum((a - middle) * (b - middle) for a, b in itertools.pairwise(values))
    correlation = min(max(products / squares, 0.0), 0.8) if squares else 0.0
    return max(deviation * math.sqrt((1.0 + correlation) / (1.0 - correlation)), LEAST_SCATTER)
