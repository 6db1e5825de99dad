"""The sliding window: right values, bounds that hold under bursts, and quick where it counts."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import pytest

from polythrottle.objective import LatencySlo
from polythrottle_agent.guard.samples import Idle, LatencyView
from polythrottle_agent.guard.sliding import GROUP_S, LEVEL, SlidingWindow, late_bounds

P99 = LatencySlo("p99", limit_s=0.1)


def window(slo: LatencySlo = P99) -> SlidingWindow:
    return SlidingWindow(slo, 30.0, 2.0, 0.0)


def fill(found: SlidingWindow, latencies, per_s: float = 100.0, start_s: float = 0.0) -> float:
    now_s = start_s
    for latency_s in latencies:
        now_s += 1.0 / per_s
        found.add(now_s, latency_s)
    return now_s


def queue(per_s: float, service_s: float, seed: int, exponential: bool) -> Iterator[tuple[float, float]]:
    """When each query is answered and after how long: one server, first come, first served."""
    rng = random.Random(seed)
    arrived_s = free_s = 0.0
    while True:
        arrived_s += rng.expovariate(per_s)
        took_s = rng.expovariate(1 / service_s) if exponential else rng.gauss(1.0, 0.03) * service_s
        free_s = max(free_s, arrived_s) + took_s
        yield free_s, free_s - arrived_s


@pytest.mark.parametrize("statistic", ["p50", "p90", "p99", "mean"])
def test_the_value_is_that_of_the_window(statistic: str) -> None:
    found = window(LatencySlo(statistic, limit_s=0.1))
    rng = random.Random(1)
    latencies = [rng.lognormvariate(-4.0, 0.5) for _ in range(6000)]
    now_s = fill(found, latencies)
    view = found.look(now_s).latency
    assert isinstance(view, LatencyView)
    last = sorted(latencies[-view.n_queries :])
    quantile = found._quantile
    true_s = sum(last) / len(last) if quantile is None else last[math.ceil(quantile * len(last)) - 1]
    assert view.value_s == pytest.approx(true_s, rel=0.01)
    assert view.lower_s < view.value_s < view.upper_s
    assert 2900 <= view.n_queries <= 3100


def test_without_queries_it_is_idle_and_old_ones_are_forgotten() -> None:
    found = window()
    assert isinstance(found.look(1.0).latency, Idle)
    fill(found, [0.01] * 100)
    assert isinstance(found.look(40.0).latency, Idle)
    assert found.look(40.0).rate.per_s == 0.0


def test_after_a_switch_it_begins_anew() -> None:
    found = window()
    now_s = fill(found, [1.0] * 500)
    found.clear(now_s)
    assert isinstance(found.look(now_s + 0.1).latency, Idle)


def test_lost_queries_are_infinitely_late() -> None:
    found = window()
    now_s = fill(found, [0.01] * 95 + [math.inf] * 5)
    view = found.look(now_s).latency
    assert view.value_s == math.inf
    mean = window(LatencySlo("mean", limit_s=0.1))
    now_s = fill(mean, [0.01] * 999 + [math.inf])
    assert mean.look(now_s).latency.value_s == pytest.approx(0.01)
    fill(mean, [math.inf] * 20, start_s=now_s)
    assert mean.look(now_s + 0.2).latency.value_s == math.inf


def test_the_last_moments_are_shown_apart() -> None:
    found = window()
    now_s = fill(found, [0.01] * 2000)
    now_s = fill(found, [0.2] * 300, start_s=now_s)
    seen = found.look(now_s)
    assert seen.recent.share_over > 0.95
    assert seen.recent.n_queries < 250


@pytest.mark.parametrize("per_s", [5.0, 100.0])
def test_the_rate_has_an_error_that_covers_it(per_s: float) -> None:
    rng = random.Random(3)
    covered = 0
    for _ in range(40):
        found, now_s = window(), 0.0
        while now_s < 30.0:
            now_s += rng.expovariate(per_s)
            found.add(now_s, 0.01)
        rate = found.look(30.0).rate
        covered += abs(rate.per_s - per_s) < 3 * rate.error_per_s
    assert covered >= 38


def test_groups_tell_their_median_once() -> None:
    found = window()
    now_s = fill(found, [0.01] * 3000 + [0.02] * 3000)
    groups = found.look(now_s + 1.0).groups
    assert [g.median_s for g in groups] == pytest.approx([0.01, 0.02], rel=0.01)
    assert groups[0].ended_s == GROUP_S
    assert found.look(now_s + 2.0).groups == ()


def test_batches_count_as_what_they_are() -> None:
    """Six late batches of sixteen prove no more than six late queries would."""
    alone, together = window(), window()
    for k in range(300):
        late = 0.2 if k % 50 == 0 else 0.01
        together.add(k * 0.1, late, 16)
        for _ in range(16):
            alone.add(k * 0.1, late)
    assert together.look(30.0).latency.lower_s <= 0.1
    assert together.look(30.0).latency.n_queries == 4800


@pytest.mark.parametrize("expected", [0.3, 2.0, 30.0, 300.0])
def test_bounds_of_independent_queries_are_wrong_as_rarely_as_they_say(expected: float) -> None:
    """Many samples of Poisson's distribution: how often so many, or so few, come by chance."""
    surely, hardly = late_bounds(expected, 1.0)
    rng = random.Random(7)
    n = 20_000
    counts = [_poisson(expected, rng) for _ in range(n)]
    allowed = LEVEL * n + 4 * math.sqrt(LEVEL * n)
    assert sum(c >= surely for c in counts) <= allowed
    assert sum(c <= (hardly if hardly is not None else -1) for c in counts) <= allowed
    assert (hardly is None) == (math.exp(-expected) > LEVEL)


def test_dispersion_asks_for_more() -> None:
    assert late_bounds(30.0, 4.0)[0] > 1.3 * late_bounds(30.0, 1.0)[0]


def test_a_queue_at_the_limit_is_rarely_called_surely_over() -> None:
    """p99 of M/M/1 at load .5 lies 10 % below the limit: hardly a window says otherwise."""
    per_s, service_s = 30.0, 1 / 60
    p99_s = -math.log(0.01) / (1 / service_s - per_s)
    slo = LatencySlo("p99", limit_s=1.1 * p99_s)
    wrong = looks = 0
    for seed in range(3):
        found, next_s = window(slo), 30.0
        for done_s, latency_s in queue(per_s, service_s, seed, True):
            if done_s > 1800.0:
                break
            if done_s >= next_s:
                view = found.look(next_s).latency
                wrong += view.lower_s > slo.limit_s
                looks += 1
                next_s += 30.0
            found.add(done_s, latency_s)
    assert looks > 150
    assert wrong <= 0.02 * looks


def test_the_bound_of_independent_queries_would_be_wrong_there() -> None:
    """The same queue: without counting that late queries come together, windows would often be wrong."""
    per_s, service_s = 30.0, 1 / 60
    limit_s = 1.1 * -math.log(0.01) / (1 / service_s - per_s)
    wrong = windows = late = n = 0
    ends_s = 30.0
    for done_s, latency_s in queue(per_s, service_s, 0, True):
        if done_s > 5400.0:
            break
        if done_s >= ends_s:
            wrong += late >= late_bounds(0.01 * n, 1.0)[0]
            windows, late, n, ends_s = windows + 1, 0, 0, ends_s + 30.0
        late += latency_s > limit_s
        n += 1
    assert wrong > 0.03 * windows


@pytest.mark.parametrize("ratio", [1.5, 3.0])
def test_a_service_that_became_slower_is_surely_over_within_seconds(ratio: float) -> None:
    per_s, service_s = 40.0, 1 / 60
    slo = LatencySlo("p99", limit_s=0.12)
    found, changed_s, seen_s = window(slo), 120.0, None
    slower = queue(per_s, ratio * service_s, 1, False)
    for done_s, latency_s in queue(per_s, service_s, 0, False):
        if done_s > changed_s:
            break
        found.add(done_s, latency_s)
    for done_s, latency_s in slower:
        found.add(changed_s + done_s, latency_s)
        if found.look(changed_s + done_s).latency.lower_s > slo.limit_s:
            seen_s = done_s
            break
    assert seen_s is not None
    assert seen_s < 6.0


def _poisson(mean: float, rng: random.Random) -> int:
    if mean > 50:
        return max(0, round(rng.gauss(mean, math.sqrt(mean))))
    limit, product, count = math.exp(-mean), rng.random(), 0
    while product > limit:
        product *= rng.random()
        count += 1
    return count
