"""Percentiles from a histogram's buckets, with what the buckets and the sample leave open.

A bucket tells how many latencies lie between two edges and nothing more. The estimate is interpolated between
them, as everybody does; the bound is an edge: the lowest one that, by the counts seen, few enough lie above.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from polythrottle_agent.workloads.prometheus import Implausible

BATCHES, FEW_BATCHES, PIECES_A_BATCH = 16, 6, 2
"""Into how many parts a window is cut to see how much more than independent latencies its counts scatter.
Long ones, so that what is alike within one counts, and not too few."""
LEAST_BATCHES = 4
UNKNOWN_CLUMPING = 4.0
"""Taken where a window has too few parts to show it."""
CHANCE_SD = 1.5
"""Standard deviations above 1 from which scatter is not put down to chance."""
SEEN_OFTEN = 10.0
"""So many latencies above an edge show how they clump; fewer do not."""
EXPECTED_BEYOND = 10.0
"""Latencies expected beyond a percentile for a window to bound it: 1,000 for p99."""
ONE_SIDED_5, ONE_SIDED_1 = 0.05, 0.01
"""How probable a bound that is too low may be; the second for one that is looked at until it is tight, since
stopping at a lucky moment must not falsify it."""
BY_CHANCE = 5e-4
"""How probable as many late ones may be where the statistic holds, for it to be taken for proven that it does
not, on each of many looks."""

# Exporters do not stop the world: the lines of one histogram may be a few observations apart.
_TORN_SHARE, _TORN_COUNT = 0.01, 2.0


@dataclass(frozen=True)
class Buckets:
    """Latencies of one window.

    `edges_s` ascend and end with infinity; `counts[i]` lie above `edges_s[i-1]` and at or below `edges_s[i]`.
    `sum_s` is None where the service does not give it.
    """

    edges_s: tuple[float, ...]
    counts: tuple[float, ...]
    sum_s: float | None

    @property
    def n(self) -> float:
        return sum(self.counts)

    def lower_edge_s(self, index: int) -> float:
        return self.edges_s[index - 1] if index else 0.0

    def plus(self, other: Buckets) -> Buckets:
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        known = self.sum_s is not None and other.sum_s is not None
        return Buckets(self.edges_s, counts, (self.sum_s or 0.0) + (other.sum_s or 0.0) if known else None)


@dataclass(frozen=True)
class Piece:
    """A part of a window: its latencies, and how many queries were lost, which are later than any edge."""

    buckets: Buckets
    n_lost: float = 0.0

    @property
    def n(self) -> float:
        return self.buckets.n + self.n_lost

    def plus(self, other: Piece) -> Piece:
        return Piece(self.buckets.plus(other.buckets), self.n_lost + other.n_lost)


@dataclass(frozen=True)
class Bounds:
    """A percentile in seconds.

    `value_s` lies in the bucket from `low_s` to `high_s`. Where `high_s` is infinite it is the last edge, and
    the percentile is above it. `upper_s` is the one-sided 95 % bound, infinite where no edge bounds it.
    `bounded`: the window held enough latencies to tell.
    """

    value_s: float
    upper_s: float
    low_s: float
    high_s: float
    bounded: bool

    @property
    def is_tight(self) -> bool:
        """No more queries would bring the bound nearer: the bucket itself is all that is left open."""
        return self.upper_s <= self.high_s


def from_cumulative(grown: Mapping[float, float], sum_s: float | None, count: float | None) -> Buckets:
    """Buckets from how much each cumulative `le` series grew.

    Raises:
        Implausible: they contradict one another.
    """
    if math.inf not in grown:
        raise Implausible("a histogram has no bucket for +Inf")
    edges = tuple(sorted(grown))
    slack = max(_TORN_COUNT, _TORN_SHARE * grown[math.inf])
    if count is not None and abs(count - grown[math.inf]) > slack:
        raise Implausible(f"a histogram counts {count:g} latencies and its buckets {grown[math.inf]:g}")
    counts, below = [], 0.0
    for edge in edges:
        if grown[edge] < below - slack:
            raise Implausible(f"a histogram has fewer latencies up to {edge:g} than up to a lower edge")
        counts.append(max(grown[edge] - below, 0.0))
        below = max(below, grown[edge])
    found = Buckets(edges, tuple(counts), sum_s)
    _check_sum(found)
    return found


def _check_sum(found: Buckets) -> None:
    """The mean must lie where the buckets allow."""
    if found.sum_s is None or found.n < 1:
        return
    lowest = sum(found.lower_edge_s(i) * c for i, c in enumerate(found.counts))
    highest = sum(e * c for e, c in zip(found.edges_s, found.counts, strict=True) if c)
    slack = _TORN_SHARE + 2 * _TORN_COUNT / found.n
    mean_s, at_least_s, at_most_s = found.sum_s / found.n, lowest / found.n, highest / found.n
    if found.sum_s <= 0 or mean_s < at_least_s * (1 - slack) or mean_s > at_most_s * (1 + slack):
        raise Implausible(
            f"the mean latency is {mean_s:g} s, and its buckets allow {at_least_s:g} to {at_most_s:g} s"
        )


def percentile(pieces: Sequence[Piece], quantile: float, doubt: float = ONE_SIDED_5) -> Bounds:
    """The percentile over all pieces of a window, at least one of them not empty.

    Lost queries count as later than any edge. How the pieces scatter says how far the latencies are from
    independent: queues make neighbours alike. `doubt`: how probable it may be that the bound is too low.
    """
    whole = _merged(pieces)
    n, counts = whole.n, whole.buckets.counts
    index, below = 0, 0.0
    while index < len(counts) - 1 and below + counts[index] < quantile * n:
        below += counts[index]
        index += 1
    low_s, high_s = whole.buckets.lower_edge_s(index), whole.buckets.edges_s[index]
    if math.isinf(high_s):
        value_s = low_s
    else:
        share = (quantile * n - below) / counts[index] if counts[index] else 1.0
        value_s = low_s + (high_s - low_s) * min(max(share, 0.0), 1.0)
    return Bounds(
        value_s=value_s,
        upper_s=_upper_s(pieces, quantile, doubt),
        low_s=low_s,
        high_s=high_s,
        bounded=not math.isinf(high_s) and n * min(quantile, 1 - quantile) >= EXPECTED_BEYOND * (1 - 1e-9),
    )


def _upper_s(pieces: Sequence[Piece], quantile: float, doubt: float) -> float:
    """The lowest edge that surely no more than the share 1 − quantile lies above."""
    clump = clumping(pieces)
    for index, edge_s in enumerate(_merged(pieces).buckets.edges_s):
        if math.isinf(edge_s):
            break
        above, n = _independent(pieces, index, clump)
        if at_most(math.ceil(above), math.floor(n), 1.0 - quantile) <= doubt:
            return edge_s
    return math.inf


def is_surely_above(pieces: Sequence[Piece], quantile: float | None, limit_s: float) -> float | None:
    """The highest edge at or above the limit that the statistic surely exceeds; None where it is not sure."""
    found, clump = None, clumping(pieces)
    for index, edge_s in enumerate(_merged(pieces).buckets.edges_s):
        if edge_s < limit_s or math.isinf(edge_s):
            continue
        # The mean is at least the edge times the share above it.
        allowed = 1.0 - quantile if quantile is not None else limit_s / edge_s
        above, n = _independent(pieces, index, clump)
        if at_least(math.floor(above), math.ceil(n), allowed) <= BY_CHANCE:
            found = edge_s
    return found


def clumping(pieces: Sequence[Piece]) -> float:
    """How many latencies tell as much as one independent one: 1 where they are independent, more in queues.

    The scatter of batches over that of independent latencies, the largest over the edges: few latencies lie
    above the high ones, and those few do not show by themselves that they come in runs.
    """
    largest = 1.0
    for index in range(len(pieces[0].buckets.edges_s) - 1):
        above, totals = _above(pieces, index)
        n, seen = sum(totals), sum(above)
        if not SEEN_OFTEN <= seen < n:
            continue
        batches = joined(above, totals)
        k, share = len(batches), seen / n
        if k < LEAST_BATCHES:
            return UNKNOWN_CLUMPING
        variance = k / (k - 1) * sum((a - share * t) ** 2 for a, t in batches) / n**2
        clump = variance * n / (share * (1.0 - share))
        if clump > 1.0 + CHANCE_SD * math.sqrt(2.0 / (k - 1)):
            largest = max(largest, clump * (1.0 + 2.0 / (k - 1)))  # few batches know their scatter badly
    return largest


def joined(values: Sequence[float], totals: Sequence[float]) -> list[tuple[float, float]]:
    """Neighbouring pieces joined to batches of alike weight: (value, total) of each."""
    n_batches = min(BATCHES, max(FEW_BATCHES, len(values) // PIECES_A_BATCH))
    wanted = sum(totals) / n_batches
    found: list[tuple[float, float]] = []
    a = t = 0.0
    for more, total in zip(values, totals, strict=True):
        a, t = a + more, t + total
        if t >= wanted * (1.0 - 1e-9) and t > 0:
            found.append((a, t))
            a = t = 0.0
    if t > 0:
        last = found.pop() if found else (0.0, 0.0)
        found.append((last[0] + a, last[1] + t))
    return found


def at_least(k: int, n: int, p: float) -> float:
    """The probability of k or more of n, each with probability p."""
    if k <= 0:
        return 1.0
    if k > n or p <= 0.0:
        return 0.0
    if p >= 1.0:
        return 1.0
    if k <= n * p:
        return 1.0 - at_least(n - k + 1, n, 1.0 - p)
    log_term = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    term = math.exp(log_term + k * math.log(p) + (n - k) * math.log1p(-p))
    total = term
    while k < n and term > 1e-12 * total:
        term *= (n - k) / (k + 1) * p / (1.0 - p)
        k += 1
        total += term
    return min(total, 1.0)


def at_most(k: int, n: int, p: float) -> float:
    """The probability of k or fewer of n, each with probability p."""
    return at_least(n - k, n, 1.0 - p)


def _above(pieces: Sequence[Piece], index: int) -> tuple[list[float], list[float]]:
    """Of each piece: how many latencies lie above `edges_s[index]`, lost ones with them, and of how many."""
    return [sum(p.buckets.counts[index + 1 :]) + p.n_lost for p in pieces], [p.n for p in pieces]


def _independent(pieces: Sequence[Piece], index: int, clump: float) -> tuple[float, float]:
    """How many of how many independent latencies would lie above `edges_s[index]`."""
    above, totals = _above(pieces, index)
    return sum(above) / clump, sum(totals) / clump


def _merged(pieces: Sequence[Piece]) -> Piece:
    whole = pieces[0]
    for piece in pieces[1:]:
        whole = whole.plus(piece)
    return whole
