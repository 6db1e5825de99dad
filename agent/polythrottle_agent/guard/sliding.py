"""A sliding window over live queries, with bounds that hold for bursts. Cheap: a few additions a query.

The percentile's bounds come from how many queries lie above the SLO's limit. Were they independent, that
number would be Poisson's. Queries that queue are late together, so the window counts for fewer: by the index
of dispersion of the late ones over stretches of a second, learned from what was served before the window.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from polythrottle.measurement import Unavailable
from polythrottle.objective import LatencySlo
from polythrottle_agent.guard.samples import Group, Idle, LatencyView, Rate, Recent, Traffic

SLICE_S = 0.25
STRETCH_S = 5.0
"""Late queries of one stretch may have one cause."""
GROUP_S = 30.0
LEAST_IN_GROUP = 20
MEMORY_S = 600.0
"""From so far back the dispersion of late queries is learned."""

LEVEL = 1e-3
"""Chance that a bound is wrong in one window: the guard looks at many."""
Z = 3.09
"""The normal deviate of that."""
PRIOR_DISPERSION, PRIOR_WEIGHT = 4.0, 20.0
"""What is taken before anything was seen, and for how many stretches it counts."""
LEAST_MEAN_STRETCHES = 5
LOST_SHARE = 0.01
"""Above it a mean is infinite: a query that never came has no latency to average."""

_STEP = math.log(1.005)


@dataclass
class _Slice:
    """Queries answered, or given up, in one quarter of a second."""

    index: int
    n: int = 0
    lost: int = 0
    over: int = 0
    squares: int = 0
    """Of how many queries share one latency."""
    total_s: float = 0.0
    buckets: Counter[int] = field(default_factory=Counter)

    def add(self, latency_s: float, n: int, limit_s: float) -> None:
        self.n += n
        self.over += n * (latency_s > limit_s)
        self.squares += n * n
        if math.isinf(latency_s):
            self.lost += n
        else:
            self.total_s += n * latency_s
            self.buckets[_bucket(latency_s)] += n

    @classmethod
    def together(cls, slices: Iterable[_Slice]) -> _Slice:
        whole = cls(0)
        for one in slices:
            whole.n, whole.lost, whole.over = whole.n + one.n, whole.lost + one.lost, whole.over + one.over
            whole.squares += one.squares
            whole.total_s += one.total_s
            whole.buckets.update(one.buckets)
        return whole


def _bucket(latency_s: float) -> int:
    return math.ceil(math.log(max(latency_s, 1e-9)) / _STEP)


def _edge(bucket: int) -> float:
    """The middle of a bucket, by its logarithm: within 0.25 % of what was measured."""
    return math.exp((bucket - 0.5) * _STEP)


class SlidingWindow:
    """The queries of the last `window_s`, fed in the order of time. Not for several threads at once."""

    def __init__(self, slo: LatencySlo, window_s: float, recent_s: float, now_s: float) -> None:
        if slo.limit_s is None:
            raise ValueError("the SLO must be resolved to seconds")
        self._limit_s, self._quantile = slo.limit_s, slo.quantile
        self._window_s, self._recent_s = window_s, recent_s
        self._slices: deque[_Slice] = deque()
        self._late: deque[tuple[int, int, int]] = deque()
        """(stretch, queries, late ones) of what has left the window."""
        self.clear(now_s)

    def clear(self, now_s: float) -> None:
        """Begin anew, as after a switch: what was served before says nothing of what is served now."""
        self._began_s = now_s
        self._slices.clear()
        self._late.clear()
        self._dispersion: float | None = None
        self._group_ends_s = now_s + GROUP_S
        self._group: _Slice = _Slice(0)
        self._groups: list[Group] = []

    def add(self, now_s: float, latency_s: float, n_queries: int = 1) -> None:
        """Queries that share one latency; infinity for ones that were lost."""
        self._close_group(now_s)
        index = math.floor(now_s / SLICE_S)
        if not self._slices or self._slices[-1].index < index:
            self._slices.append(_Slice(index))
        self._slices[-1].add(latency_s, n_queries, self._limit_s)
        self._group.add(latency_s, n_queries, self._limit_s)

    def look(self, now_s: float) -> Traffic:
        """What the window shows now."""
        self._close_group(now_s)
        self._forget(now_s)
        groups, self._groups = tuple(self._groups), []
        whole = _Slice.together(self._slices)
        n = whole.n
        passed_s = min(now_s - self._began_s, self._window_s)
        rate = None
        if passed_s > 0:
            error = math.sqrt(max(n, 1) * self._arrival_dispersion()) / passed_s
            rate = Rate(n / passed_s, error)
        if n == 0:
            return Traffic(Idle(), None, rate, groups)
        recent = [s for s in self._slices if s.index >= math.floor((now_s - self._recent_s) / SLICE_S)]
        return Traffic(self._view(whole), self._recent(_Slice.together(recent)), rate, groups)

    # The statistic and its bounds

    def _view(self, whole: _Slice) -> LatencyView:
        n = whole.n
        if self._quantile is None:
            return self._mean_view(whole)
        above = (1.0 - self._quantile) * n
        # Queries of one batch are late together whatever else happens.
        surely, hardly = late_bounds(above, max(self._dispersion_of_late(), whole.squares / n))
        return LatencyView(
            _exceeded_by(whole, math.floor(above) + 1),
            _exceeded_by(whole, surely) if surely <= n else 0.0,
            math.inf if hardly is None else _exceeded_by(whole, hardly + 1),
            n,
        )

    def _mean_view(self, whole: _Slice) -> LatencyView:
        value_s = _mean(whole)
        means = [_mean(_Slice.together(stretch)) for stretch in _stretches(self._slices)]
        if len(means) < LEAST_MEAN_STRETCHES or math.isinf(value_s):
            return LatencyView(value_s, value_s if math.isinf(value_s) else 0.0, math.inf, whole.n)
        finite = [mean for mean in means if math.isfinite(mean)]
        error_s = Z * statistics.stdev(finite) / math.sqrt(len(finite)) if len(finite) > 1 else math.inf
        return LatencyView(value_s, max(value_s - error_s, 0.0), value_s + error_s, whole.n)

    def _recent(self, recent: _Slice) -> Recent | None:
        n = recent.n
        if n == 0:
            return None
        if self._quantile is None:
            return Recent(_mean(recent), recent.over / n, n)
        count = math.floor((1.0 - self._quantile) * n) + 1
        return Recent(_exceeded_by(recent, count), recent.over / n, n)

    # How much late queries come together

    def _dispersion_of_late(self) -> float:
        """Index of dispersion of the late queries in a stretch; 1 where they are independent."""
        if self._dispersion is None:
            self._dispersion = self._learn_dispersion()
        return self._dispersion

    def _learn_dispersion(self) -> float:
        n, late = sum(d[1] for d in self._late), sum(d[2] for d in self._late)
        squares, weight = PRIOR_DISPERSION * PRIOR_WEIGHT, PRIOR_WEIGHT
        if 0 < late < n:
            share = late / n
            for _, queries, found in self._late:
                squares += (found - queries * share) ** 2 / (queries * share * (1.0 - share))
                weight += 1.0
        return max(squares / weight, 1.0)

    def _arrival_dispersion(self) -> float:
        """The same of the number of queries in a stretch of the window."""
        counts = [sum(s.n for s in stretch) for stretch in _stretches(self._slices)]
        if len(counts) < LEAST_MEAN_STRETCHES:
            return PRIOR_DISPERSION
        mean = statistics.fmean(counts)
        return max(statistics.variance(counts) / mean, 1.0) if mean else 1.0

    def _forget(self, now_s: float) -> None:
        """Let slices leave the window; their late queries are remembered a while."""
        oldest = math.floor((now_s - self._window_s) / SLICE_S)
        while self._slices and self._slices[0].index < oldest:
            gone = self._slices.popleft()
            stretch = _stretch_of(gone)
            n, late = gone.n, gone.over
            if self._late and self._late[-1][0] == stretch:
                _, more, more_late = self._late.pop()
                n, late = n + more, late + more_late
            self._late.append((stretch, n, late))
            self._dispersion = None
        too_old = math.floor((now_s - MEMORY_S) / STRETCH_S)
        while self._late and self._late[0][0] < too_old:
            self._late.popleft()

    def _close_group(self, now_s: float) -> None:
        if now_s < self._group_ends_s:
            return
        group, self._group = self._group, _Slice(0)
        if group.n >= LEAST_IN_GROUP:
            half = (group.n + 1) // 2
            median_s = _exceeded_by(group, group.n - half + 1)
            self._groups.append(Group(self._group_ends_s, median_s, group.n))
        missed = math.floor((now_s - self._group_ends_s) / GROUP_S)
        self._group_ends_s += (missed + 1) * GROUP_S


def late_bounds(expected: float, dispersion: float) -> tuple[int, int | None]:
    """How many late queries prove that more than `expected` is their mean, and how few that it is less.

    With so many, the k-th largest latency is a lower bound of the percentile; with the few, one more gives
    the upper bound. It is None where not even none at all would prove anything.
    """
    effective = expected / dispersion
    surely = 1
    while _poisson_from(effective, surely) > LEVEL:
        surely += 1
    hardly = -1
    while 1.0 - _poisson_from(effective, hardly + 2) <= LEVEL:
        hardly += 1
    return max(math.ceil(surely * dispersion), 1), (math.floor(hardly * dispersion) if hardly >= 0 else None)


def _poisson_from(mean: float, count: int) -> float:
    """P(X ≥ count) of Poisson's distribution. Normal with continuity correction for large means."""
    if count <= 0:
        return 1.0
    if mean > 400.0:
        return 0.5 * math.erfc((count - 0.5 - mean) / math.sqrt(2.0 * mean))
    term = total = math.exp(-mean)
    for k in range(1, count):
        term *= mean / k
        total += term
    return max(1.0 - total, 0.0)


def _exceeded_by(slice_: _Slice, count: int) -> float:
    """The `count`-th largest latency, lost queries being the largest."""
    left = count - slice_.lost
    if left <= 0:
        return math.inf
    for bucket in sorted(slice_.buckets, reverse=True):
        left -= slice_.buckets[bucket]
        if left <= 0:
            return _edge(bucket)
    return 0.0


def _mean(slice_: _Slice) -> float:
    n, lost = slice_.n, slice_.lost
    if n == lost or lost > LOST_SHARE * n:
        return math.inf
    return slice_.total_s / (n - lost)


def _stretch_of(slice_: _Slice) -> int:
    return math.floor(slice_.index * SLICE_S / STRETCH_S)


def _stretches(slices: Iterable[_Slice]) -> Iterator[list[_Slice]]:
    found: dict[int, list[_Slice]] = {}
    for one in slices:
        found.setdefault(_stretch_of(one), []).append(one)
    yield from found.values()


def unseen(reason: str) -> Traffic:
    """What a source shows that cannot look."""
    return Traffic(Unavailable(reason))
