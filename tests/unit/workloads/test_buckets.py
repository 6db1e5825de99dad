"""Percentiles from buckets: the value, and bounds that hold."""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Iterator, Sequence

import pytest

from polythrottle_agent.workloads.buckets import (
    Buckets,
    Piece,
    at_least,
    at_most,
    clumping,
    from_cumulative,
    is_surely_above,
    percentile,
)
from polythrottle_agent.workloads.prometheus import Implausible

EDGES_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, math.inf)


def piece(latencies_s: Sequence[float], n_lost: int = 0, edges_s: tuple[float, ...] = EDGES_S) -> Piece:
    counts = [0.0] * len(edges_s)
    for latency_s in latencies_s:
        counts[bisect.bisect_left(edges_s, latency_s)] += 1
    return Piece(Buckets(edges_s, tuple(counts), sum(latencies_s)), n_lost)


def spread(n: int, low_s: float, high_s: float) -> list[float]:
    return [low_s + (high_s - low_s) * (i + 0.5) / n for i in range(n)]


def test_the_percentile_lies_in_its_bucket_and_is_interpolated() -> None:
    found = percentile([piece(spread(1000, 0.0, 0.1))], 0.95)
    assert (found.low_s, found.high_s) == (0.05, 0.1)
    assert found.value_s == pytest.approx(0.095, rel=0.01)
    assert found.upper_s == 0.1
    assert found.is_tight
    assert found.bounded


def test_few_latencies_bound_nothing() -> None:
    found = percentile([piece([0.004] * 50)], 0.99)
    assert found.upper_s == math.inf
    assert not found.bounded
    # With none of n above an edge, up to 3/n may lie there: 300 are needed for 1 %.
    assert percentile([piece([0.004] * 280)], 0.99).upper_s == math.inf
    assert percentile([piece([0.004] * 310)], 0.99).upper_s == 0.005


def test_above_the_last_edge_only_a_lower_bound_is_known() -> None:
    found = percentile([piece([0.01] * 90 + [9.0] * 10)], 0.99)
    assert found.value_s == found.low_s == 0.25
    assert found.high_s == found.upper_s == math.inf
    assert not found.bounded


def test_lost_queries_are_later_than_every_edge() -> None:
    good = [piece([0.004] * 250) for _ in range(4)]
    assert percentile(good, 0.99).high_s == 0.005
    assert percentile([*good, piece([], n_lost=30)], 0.99).high_s == math.inf


def test_a_slow_service_is_seen_at_once_and_a_fast_one_never() -> None:
    assert is_surely_above([piece([0.2] * 50)], 0.99, 0.1) == 0.1
    assert is_surely_above([piece([0.2] * 50)], 0.99, 0.11) is None  # the next edge has all of them below it
    assert is_surely_above([piece([0.02] * 10_000)], 0.99, 0.1) is None
    assert is_surely_above([piece([0.2] * 200)], None, 0.05) == 0.1  # the mean: at least the edge × its share
    rng = random.Random(1)
    for _ in range(200):
        seen: list[Piece] = []
        for _ in range(30):  # looks
            seen.append(piece([0.2 if rng.random() < 0.008 else 0.02 for _ in range(40)]))
            assert is_surely_above(seen, 0.99, 0.1) is None


def independent(rng: random.Random, n_pieces: int, each: int) -> Iterator[list[float]]:
    for _ in range(n_pieces):
        yield [rng.expovariate(100.0) for _ in range(each)]


def queued(rng: random.Random, n_pieces: int, each: int) -> Iterator[list[float]]:
    """M/M/1 at 70 % load: whoever waits long waits behind others who do."""
    waited_s = rng.expovariate(30.0) if rng.random() < 0.7 else 0.0
    for _ in range(n_pieces):
        found = []
        for _ in range(each):
            service_s = rng.expovariate(100.0)
            found.append(waited_s + service_s)
            waited_s = max(waited_s + service_s - rng.expovariate(70.0), 0.0)
        yield found


# One edge sits just below the percentile: the hardest one to bound.
@pytest.mark.parametrize(("draw", "least"), [(independent, 0.92), (queued, 0.92)])
def test_the_bound_covers_the_truth(draw: object, least: float) -> None:
    assert callable(draw)
    rng = random.Random(7)
    everything = [x for part in draw(rng, 40_000, 50) for x in part]
    everything.sort()
    truth_s = everything[int(0.95 * len(everything))]
    fine = tuple(truth_s * factor for factor in (0.5, 0.7, 0.8, 0.9, 0.97, 1.03, 1.1, 1.2, 1.4, 2.0))
    edges_s = (*fine, math.inf)
    covered = 0
    for _ in range(300):
        pieces = [piece(part, edges_s=edges_s) for part in draw(rng, 60, 50)]
        covered += percentile(pieces, 0.95).upper_s >= truth_s
    assert covered / 300 >= least


def test_neighbours_that_are_alike_tell_less() -> None:
    apart = [piece([0.2] * 1 + [0.01] * 99) for _ in range(40)]
    together = [piece([0.2] * 20 + [0.01] * 80) for _ in range(2)] + [piece([0.01] * 100) for _ in range(38)]
    assert clumping(apart) == 1.0
    assert clumping(together) > 5.0
    assert percentile(apart, 0.98).upper_s < percentile(together, 0.98).upper_s


@pytest.mark.parametrize("n", [1, 7, 60, 900])
@pytest.mark.parametrize("p", [0.01, 0.3, 0.99])
def test_binomial_tails_are_exact(n: int, p: float) -> None:
    exact = [math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(n + 1)]
    for k in (0, 1, n // 3, n // 2, n):
        assert at_least(k, n, p) == pytest.approx(sum(exact[k:]), rel=1e-8, abs=1e-12)
        assert at_most(k, n, p) == pytest.approx(sum(exact[: k + 1]), rel=1e-8, abs=1e-12)


@pytest.mark.parametrize(
    ("grown", "sum_s", "count", "why"),
    [
        ({0.1: 5.0}, 0.2, 5.0, r"\+Inf"),
        ({0.1: 500.0, 0.2: 100.0, math.inf: 500.0}, 20.0, 500.0, "fewer latencies"),
        ({0.1: 5.0, math.inf: 5.0}, 0.2, 50.0, "counts 50"),
        ({0.1: 500.0, math.inf: 500.0}, 5000.0, 500.0, "mean"),
        ({0.1: 0.0, 1.0: 500.0, math.inf: 500.0}, 5.0, 500.0, "mean"),
        ({0.1: 500.0, math.inf: 500.0}, 0.0, 500.0, "mean"),
    ],
)
def test_a_histogram_that_contradicts_itself_is_not_believed(
    grown: dict[float, float], sum_s: float, count: float, why: str
) -> None:
    with pytest.raises(Implausible, match=why):
        from_cumulative(grown, sum_s, count)


def test_a_histogram_read_while_it_is_written_is_believed() -> None:
    found = from_cumulative({0.1: 501.0, 0.2: 500.0, math.inf: 500.0}, 20.0, 502.0)
    assert found.counts == (501.0, 0.0, 0.0)
