"""Levels of the power limit."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polythrottle_agent.controls.nvidia import MOST_POWER_LEVELS, STEPS_W, power_levels_w


@pytest.mark.parametrize(
    ("lowest", "highest", "expected"),
    [
        (200, 700, tuple(range(200, 701, 50))),
        (100, 400, tuple(range(100, 401, 25))),
        (150, 300, (150, 170, 190, 210, 230, 250, 270, 290, 300)),
        (100, 100, (100,)),
    ],
)
def test_published_ranges(lowest: int, highest: int, expected: tuple[int, ...]) -> None:
    assert power_levels_w(lowest, highest) == tuple(float(x) for x in expected)


@given(st.integers(10, 1000), st.integers(0, 1100))
def test_both_ends_are_levels_and_steps_are_even(lowest: int, width: int) -> None:
    levels = power_levels_w(float(lowest), float(lowest + width))
    assert levels[0] == lowest
    assert levels[-1] == lowest + width
    assert len(levels) <= MOST_POWER_LEVELS
    gaps = {round(b - a, 9) for a, b in itertools.pairwise(levels[:-1])}
    assert len(gaps) <= 1
    assert gaps <= set(STEPS_W)
