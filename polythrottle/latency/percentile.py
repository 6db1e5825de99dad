"""A percentile, or the mean, of latencies that follow one another: value, standard error and bounds.

Queued latencies come in bursts: of 1,000 in a row, 30 above the 99th percentile may be one bad moment. So
the bounds are those of a sample with fewer, independent latencies. By how much the count is inflated is
told by batch means: the scatter of how many of each batch lie above a level, over what independent ones
would scatter. That number is itself uncertain, and low just when the percentile is; hence it is taken at
several batch sizes and levels, the largest counts, and it is widened by what it may err.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from polythrottle.latency.bounds import beta_upper_tail, student_quantile
from polythrottle.latency.sample import LatencySample

ONE_SIDED_95 = 1.645
MISS = 0.05
"""How often a one-sided bound may miss the truth."""
EXPECTED_BEYOND = 10.0
"""Latencies expected beyond a percentile for a window to bound it: 1,000 for p99."""

COARSER = (1, 2, 4)
"""Batches are looked at one by one, in pairs and in fours."""
FEWEST_BATCHES = 8
FURTHER_IN = (1.0, 3.0, 10.0)
"""The tail's share at which clustering is looked for, over the percentile's own: rarer is harder to see."""
NOISE = 1.0
"""Standard deviations of a variance of independent batches by which it has to exceed 1 to count."""
ALLOWANCE = 2.0
"""Standard deviations by which inflation may be underestimated, over the root of independent events."""
MEAN_ALLOWANCE = 4.0
SKEWNESS = 2.0
"""The same for a mean, and by how much the skewness of its batches counts: both err low in a short window."""
INDEPENDENT_FOR_MEAN = 30
"""Independent latencies for a window to bound the mean."""
INSIDE_RANKS = 1.5
"""A bound must lie so many ranks below the largest latency, or it is extrapolated."""


@dataclass(frozen=True)
class Estimate:
    """In seconds; each bound alone holds at the confidence asked for.

    `n_independent` is how many independent latencies would tell as much. `bounded`: they were enough, and
    `upper_s` lies inside the sample; where not, it is extrapolated from the tail.
    """

    value_s: float
    standard_error_s: float
    lower_s: float
    upper_s: float
    n_independent: float
    bounded: bool


def estimate(sample: LatencySample, quantile: float | None, miss: float = MISS) -> Estimate:
    """The statistic of a sample that is not empty.

    Args:
        quantile: 0.99 for p99; None for the mean.
        miss: probability that the truth lies beyond one of the bounds.
    """
    if quantile is None:
        return _mean(sample, miss)
    n = len(sample)
    value_s = sample.at_rank(quantile * (n - 1))
    if n < 2:
        return Estimate(value_s, value_s, 0.0, 2.0 * value_s, 1.0, False)
    tail = 1.0 - quantile
    levels = [sample.at_rank((1.0 - share) * (n - 1)) for share in _shares(tail)]
    n_independent = n / allowed(inflation(sample, levels), n * min(quantile, tail))
    beyond = n_independent * tail
    upper_tail = beta_upper_tail(1.0 - miss, n_independent - beyond + 1.0, beyond)
    lower_tail = beta_upper_tail(miss, n_independent - beyond, beyond + 1.0)
    upper_s = sample.at_rank((1.0 - upper_tail) * n - 0.5)
    inside = upper_tail * n >= INSIDE_RANKS
    if not inside:
        upper_s = max(upper_s, _extrapolated(sample, upper_tail))
    return Estimate(
        value_s,
        _standard_error(sample, quantile, n_independent, value_s),
        min(sample.at_rank((1.0 - lower_tail) * n - 0.5), value_s),
        max(upper_s, value_s),
        n_independent,
        inside and is_bounded(n, quantile),
    )


def is_bounded(n_latencies: int, quantile: float | None) -> bool:
    """Whether that many independent latencies bound the statistic."""
    if quantile is None:
        return n_latencies >= INDEPENDENT_FOR_MEAN
    return n_latencies * min(quantile, 1.0 - quantile) >= EXPECTED_BEYOND * (1.0 - 1e-9)


def inflation(
    sample: LatencySample,
    levels_s: Sequence[float],
    coarser: Sequence[int] = COARSER,
    fewest_batches: int = FEWEST_BATCHES,
) -> float:
    """By how much dependence widens the variance of how many latencies lie above a level; at least 1."""
    largest = 1.0
    for level_s in levels_s:
        counts = sample.batch_counts_above(level_s)
        above = sum(counts)
        n = len(counts) * sample.batch_size
        if not 0 < above < n:
            continue
        share = above / n
        for together in coarser:
            if len(counts) // together < fewest_batches and together > 1:
                break
            grouped = _summed(counts, together)
            ratio = _variance(grouped) / (sample.batch_size * together * share * (1.0 - share))
            largest = max(largest, ratio - NOISE * math.sqrt(2.0 / max(len(grouped) - 1, 1)))
    return largest


def allowed(inflated: float, events: float, allowance: float = ALLOWANCE) -> float:
    """An inflation that was estimated from so many events, widened by what it may err."""
    return 1.0 + (inflated - 1.0) * (1.0 + allowance / math.sqrt(max(events / inflated, 1.0)))


@dataclass(frozen=True)
class MeanError:
    """Standard error of a mean in seconds, of how many batches it is, and how skewed those are."""

    error_s: float
    n_independent: float
    n_batches: int
    skewness: float


def mean_error(
    sample: LatencySample,
    coarser: Sequence[int] = COARSER,
    fewest_batches: int = FEWEST_BATCHES,
) -> MeanError:
    """By batch means, of a sample of at least two latencies."""
    n, variance = len(sample), sample.variance_s2()
    largest, batches = -1.0, sample.sums_s
    for together in coarser:
        if len(sample.sums_s) // together < fewest_batches and together > 1:
            break
        grouped = _summed(sample.sums_s, together)
        error = math.sqrt(_variance(grouped) / len(grouped)) / (sample.batch_size * together)
        if error > largest:
            largest, batches = error, grouped
    if variance <= 0.0:
        return MeanError(0.0, n, len(batches), 0.0)
    inflated = allowed(max(largest * largest * n / variance, 1.0), n, MEAN_ALLOWANCE)
    return MeanError(math.sqrt(inflated * variance / n), n / inflated, len(batches), _skewness(batches))


def _mean(sample: LatencySample, miss: float) -> Estimate:
    mean_s, n = sample.mean_s(), len(sample)
    if n < 2:
        return Estimate(mean_s, mean_s, 0.0, 2.0 * mean_s, 1.0, False)
    found = mean_error(sample)
    reach = student_quantile(1.0 - miss, max(found.n_batches - 1, 3))
    # Latencies have a long right tail: a mean that missed it is low, and looks exact (Johnson 1978).
    skewed = SKEWNESS * max(found.skewness, 0.0) * (1.0 + 2.0 * reach**2) / (6.0 * math.sqrt(found.n_batches))
    return Estimate(
        mean_s,
        found.error_s,
        mean_s - reach * found.error_s,
        mean_s + (reach + skewed) * found.error_s,
        found.n_independent,
        found.n_independent >= INDEPENDENT_FOR_MEAN,
    )


def _shares(tail: float) -> list[float]:
    return sorted({min(tail * further, max(tail, 0.5)) for further in FURTHER_IN})


def _standard_error(sample: LatencySample, quantile: float, n_independent: float, value_s: float) -> float:
    """Half the distance between one standard deviation of ranks either side.

    Where the sample ends before the upper rank its largest value lies below the percentile more often than
    not: the error is then twice the larger distance.
    """
    if math.isinf(value_s):
        return math.inf
    n = len(sample)
    rank = quantile * (n - 1)
    spread = n * math.sqrt(quantile * (1.0 - quantile) / n_independent)
    above = sample.at_rank(rank + spread) - value_s
    below = value_s - sample.at_rank(rank - spread)
    if rank + spread > n - 1:
        return 2.0 * max(above, below)
    return 0.5 * (above + below)


def _extrapolated(sample: LatencySample, tail: float) -> float:
    """The level above which a share `tail` lies, by an exponential tail fitted to the top tenth."""
    n = len(sample)
    top = min(max(n // 10, 5), n - 1)
    level_s = sample.at_rank(n - 1 - top)
    steps = math.log(top / n / tail) if tail > 0.0 else math.inf
    return level_s + sample.mean_beyond(level_s) * min(max(steps, 0.0), MOST_STEPS)


MOST_STEPS = 20.0
"""Beyond e^-20 of the tail nothing is known."""


def _summed(values: Sequence[float], together: int) -> Sequence[float]:
    if together == 1:
        return values
    whole = len(values) - len(values) % together
    return [sum(values[i : i + together]) for i in range(0, whole, together)]


def _variance(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)


def _skewness(values: Sequence[float]) -> float:
    deviation = math.sqrt(_variance(values))
    if deviation <= 0.0:
        return 0.0
    mean = sum(values) / len(values)
    return sum(((value - mean) / deviation) ** 3 for value in values) / len(values)
