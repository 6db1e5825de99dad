from __future__ import annotations

import math
import random
import statistics

import pytest

from polythrottle.measurement import Unavailable
from polythrottle_agent.meters.estimate import PowerEstimate, mean_power

AVERAGING_S = 0.43


def estimate(
    times: list[float],
    watts: list[float],
    window_s: float,
    averaging_s: float = 0.0,
    resolution_w: float = 0.0,
) -> PowerEstimate:
    found = mean_power(times, watts, 0.0, window_s, averaging_s, resolution_w)
    assert isinstance(found, PowerEstimate), found
    return found


def even(window_s: float, period_s: float = 0.1) -> list[float]:
    return [period_s * (i + 0.5) for i in range(int(window_s / period_s))]


def test_steady_power_is_its_mean_and_only_the_resolution_is_uncertain() -> None:
    times = even(5.0)
    found = estimate(times, [8.0] * len(times), 5.0, AVERAGING_S, resolution_w=0.04)
    assert found.mean_w == pytest.approx(8.0)
    assert found.standard_error_w == pytest.approx(0.04 / math.sqrt(12))


def test_an_error_that_cannot_be_known_is_none_and_never_zero() -> None:
    times = even(5.0)
    assert estimate(times, [8.0] * len(times), 5.0).standard_error_w is None


def test_a_ramp_read_at_uneven_times_is_integrated_by_the_trapezoid_rule() -> None:
    times = [0.0, 0.5, 2.0, 2.1, 3.5, 4.0]
    found = mean_power(times, [10.0 + t for t in times], 0.0, 4.0, 0.0, 0.0)
    assert isinstance(found, Unavailable)  # 1.5 s without a reading are more than a fifth of the window
    times = [0.0, 0.1, 0.5, 1.2, 1.3, 2.0, 2.6, 3.3, 4.0]
    assert estimate(times, [10.0 + t for t in times], 4.0).mean_w == pytest.approx(12.0)


def test_readings_that_reach_back_before_the_window_do_not_count() -> None:
    """The power stepped from 2 W to 8 W as the window began: its first readings still show a mixture."""
    times = even(4.0)
    watts = [8.0 if t >= AVERAGING_S else 2.0 + 6.0 * t / AVERAGING_S for t in times]
    assert estimate(times, watts, 4.0, AVERAGING_S).mean_w == pytest.approx(8.0)
    assert estimate(times, watts, 4.0, 0.0).mean_w < 7.9


def hardware(window_s: float, rng: random.Random, scatter_w: float) -> tuple[list[float], list[float]]:
    """A sensor that shows the mean over its last whole cycle, read ten times a second."""
    cycles = [rng.gauss(8.0, scatter_w) for _ in range(int(window_s / AVERAGING_S) + 2)]
    times = even(window_s)
    return times, [cycles[int(t / AVERAGING_S)] for t in times]


@pytest.mark.parametrize("window_s", [1.0, 2.2, 5.0, 20.0])
def test_the_standard_error_covers_the_truth_as_often_as_it_says(window_s: float) -> None:
    rng = random.Random(1)
    inside, errors, misses = 0, [], []
    for _ in range(400):
        times, watts = hardware(window_s, rng, 0.5)
        found = estimate(times, watts, window_s, AVERAGING_S)
        assert found.standard_error_w is not None
        inside += abs(found.mean_w - 8.0) <= found.standard_error_w
        errors.append(found.standard_error_w)
        misses.append(found.mean_w - 8.0)
    assert 0.62 <= inside / 400 <= 0.92
    # Never far too small, and for a long window not far too large either.
    assert statistics.fmean(errors) >= 0.8 * statistics.pstdev(misses)
    if window_s > 10:
        assert statistics.fmean(errors) <= 2.0 * statistics.pstdev(misses)


def test_reading_faster_than_the_hardware_averages_adds_no_certainty() -> None:
    rng = random.Random(3)
    cycles = [rng.gauss(8.0, 0.5) for _ in range(50)]

    def read(period_s: float) -> PowerEstimate:
        times = even(20.0, period_s)
        return estimate(times, [cycles[int(t / AVERAGING_S)] for t in times], 20.0, AVERAGING_S)

    slow, fast = read(0.2), read(0.02)
    assert slow.standard_error_w is not None
    assert fast.standard_error_w is not None
    assert fast.standard_error_w == pytest.approx(slow.standard_error_w, rel=0.35)
    assert fast.n_independent == pytest.approx(slow.n_independent, abs=1)


def test_a_slow_drift_is_more_uncertain_than_the_same_scatter_in_no_order() -> None:
    rng = random.Random(5)
    times = even(20.0)
    drifting = [8.0 + math.sin(t / 3.0) for t in times]
    shuffled = drifting[:]
    rng.shuffle(shuffled)
    first, second = estimate(times, drifting, 20.0), estimate(times, shuffled, 20.0)
    assert first.standard_error_w is not None
    assert second.standard_error_w is not None
    assert first.standard_error_w > 2.0 * second.standard_error_w


def test_a_window_of_less_than_five_averaging_times_has_a_larger_error() -> None:
    rng = random.Random(7)

    def typical(window_s: float) -> float:
        """Error times the root of the window: constant if only the number of readings mattered."""
        errors = []
        for _ in range(300):
            error = estimate(*hardware(window_s, rng, 0.5), window_s, AVERAGING_S).standard_error_w
            assert error is not None
            errors.append(error)
        return statistics.fmean(errors) * math.sqrt(window_s)

    assert typical(1.3) > 1.3 * typical(10.0)


@pytest.mark.parametrize("window_s", [0.2, 0.8])
def test_a_window_shorter_than_two_averaging_times_is_not_measured(window_s: float) -> None:
    times = even(window_s)
    found = mean_power(times, [8.0] * len(times), 0.0, window_s, AVERAGING_S, 0.0)
    assert isinstance(found, Unavailable)
    assert "measure for longer" in found.reason


@pytest.mark.parametrize("missing", [(0.0, 2.0), (3.0, 5.5), (8.0, 10.0)])
def test_a_stretch_without_readings_is_not_measured(missing: tuple[float, float]) -> None:
    times = [t for t in even(10.0) if not missing[0] <= t < missing[1] + 0.15]
    found = mean_power(times, [8.0] * len(times), 0.0, 10.0, 0.0, 0.0)
    assert isinstance(found, Unavailable)
    assert "no reading for" in found.reason


def test_negative_readings_are_taken_as_they_are() -> None:
    times = even(5.0)
    watts = [(-0.4 if i % 2 else 0.6) for i in range(len(times))]
    assert estimate(times, watts, 5.0).mean_w == pytest.approx(0.1, abs=0.05)
