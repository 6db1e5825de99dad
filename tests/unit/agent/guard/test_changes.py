"""The change-point test: how often it is wrong, and how soon it sees what it is for."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from polythrottle_agent.guard.changes import REFERENCE_GROUPS, Change, ShiftTest

WEEK = 7 * 24 * 120
"""Groups of half a minute."""

Noise = Callable[[random.Random], float]


def independent(sd: float) -> Noise:
    return lambda rng: rng.gauss(0.0, sd)


def correlated(sd: float, rho: float) -> Noise:
    state = [0.0]

    def draw(rng: random.Random) -> float:
        state[0] = rho * state[0] + math.sqrt(1 - rho * rho) * rng.gauss(0.0, sd)
        return state[0]

    return draw


def with_outliers(sd: float) -> Noise:
    return lambda rng: rng.gauss(0.0, sd) * (6.0 if rng.random() < 0.05 else 1.0)


def changes(noise: Noise, n: int, seed: int, shift: float = 0.0, after: int = 0) -> list[tuple[int, Change]]:
    rng, test, found = random.Random(seed), ShiftTest(), []
    for i in range(n):
        level = math.log(0.05) + noise(rng) + (shift if i >= after else 0.0)
        test, change = test.add(math.exp(level))
        if change is not None:
            found.append((i, change))
    return found


@pytest.mark.parametrize(
    ("noise", "allowed"),
    [
        (lambda: independent(0.02), 0),
        (lambda: independent(0.1), 0),
        (lambda: correlated(0.05, 0.5), 1),
        (lambda: with_outliers(0.05), 1),
    ],
    ids=["independent 2 %", "independent 10 %", "correlated 5 %", "outliers"],
)
def test_false_alarms_are_rarer_than_one_a_month(noise: Callable[[], Noise], allowed: int) -> None:
    """Five runs of a week each, with references of their own."""
    wrong = sum(len(changes(noise(), WEEK, seed)) for seed in range(5))
    assert wrong <= allowed


@pytest.mark.parametrize("ratio", [1.25, 0.75])
@pytest.mark.parametrize("sd", [0.01, 0.05])
def test_a_change_by_a_quarter_is_seen_within_ten_minutes(ratio: float, sd: float) -> None:
    for seed in range(10):
        found = changes(independent(sd), 300, seed, math.log(ratio), after=100)
        assert found, seed
        seen, change = found[0]
        assert 100 <= seen < 120
        assert change.ratio == pytest.approx(ratio, abs=0.12)


def test_a_small_change_is_none_worth_another_search() -> None:
    assert changes(independent(0.01), 2000, 1, math.log(1.05), after=100) == []


def test_one_outlier_is_no_change() -> None:
    test = ShiftTest()
    for _ in range(REFERENCE_GROUPS + 5):
        test, _ = test.add(0.05)
    test, change = test.add(5.0)
    assert change is None
    for _ in range(50):
        test, change = test.add(0.05)
        assert change is None


def test_after_a_change_what_came_is_the_new_normal() -> None:
    found = changes(independent(0.02), 3000, 3, math.log(1.4), after=200)
    assert len(found) == 1


@pytest.mark.parametrize("odd", [math.inf, math.nan, 0.0, -1.0])
def test_what_is_no_latency_is_left_out(odd: float) -> None:
    assert ShiftTest().add(odd) == (ShiftTest(), None)
