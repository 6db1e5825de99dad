from __future__ import annotations

import math
import statistics

import pytest

from polythrottle.benchmarking.task import (
    BATCH_CAP,
    DEGRADED,
    ONE_KNOB,
    OTHER,
    THREE_KNOB,
    TWO_KNOB,
    BlackBox,
    Condition,
    Goal,
    Reading,
    Task,
    family_of,
    observation,
)
from polythrottle.configuration import Configuration, Knob, SearchSpace
from polythrottle.errors import InvalidInputError


def line(latencies: list[float], energies: list[float]) -> Task:
    """One knob with as many levels as there are values, the last one the anchor."""
    levels = [float(i + 1) for i in range(len(latencies))]
    return Task(
        name="line",
        family=ONE_KNOB,
        source="test",
        emulated=True,
        space=SearchSpace((Knob.of("gpu_freq_mhz", levels),)),
        anchor=Configuration.of({"gpu_freq_mhz": levels[-1]}),
        latency_s=tuple(latencies),
        energy_j=tuple(energies),
    )


@pytest.mark.parametrize(
    ("knobs", "family"),
    [
        (("cpu_freq_mhz", "gpu_freq_mhz", "mem_freq_mhz"), THREE_KNOB),
        (("cpu_cores", "cpu_freq_mhz", "gpu_freq_mhz", "mem_freq_mhz"), THREE_KNOB),
        (("power_limit_w", "batch_size"), BATCH_CAP),
        (("gpu_freq_mhz", "mem_freq_mhz"), TWO_KNOB),
        (("power_limit_w",), ONE_KNOB),
        (("gpu_freq_mhz", "batch_size", "power_limit_w"), OTHER),
    ],
)
def test_family(knobs: tuple[str, ...], family: str) -> None:
    assert family_of(knobs) == family


def test_goal_knows_the_constrained_optimum_and_what_a_recommendation_costs() -> None:
    # Limit 1.15 s. Level 1 is cheapest but 4 % over, level 2 is 2 % over, level 3 the optimum.
    goal = Goal(line([1.2, 1.17, 1.1, 1.04, 1.0], [3.0, 4.0, 5.0, 5.2, 6.0]), 1.15)
    assert goal.limit_s == pytest.approx(1.15)
    assert goal.best_energy_j == 5.0
    assert [goal.violates(cell) for cell in range(5)] == [True, True, False, False, False]
    assert [goal.within(cell, 0.05) for cell in range(5)] == [False, False, True, True, False]
    assert goal.within(3, 0.02) is False
    assert goal.regret(0) == pytest.approx(0.25)  # the anchor's 20 % is less than the least charge
    assert goal.regret(1) == 0.0  # cheaper than the optimum, and not 3 % over: no gain is counted
    assert goal.regret(3) == pytest.approx(0.04)
    assert goal.regret(4) == pytest.approx(0.2)
    assert goal.excess(1) == pytest.approx(1.17 / 1.15 - 1)


def test_a_far_violation_is_charged_the_anchor() -> None:
    goal = Goal(line([2.0, 1.0, 1.0], [1.0, 2.0, 5.0]), 1.15)
    assert goal.regret(0) == pytest.approx(1.5)


def test_readings_repeat_for_a_seed_and_have_the_noise_they_claim() -> None:
    task = line([1.0] * 400, [2.0] * 400)
    first, second = (BlackBox(task, Condition("normal"), seed=3) for _ in range(2))
    readings = [first.measure(cell) for cell in range(400)]
    assert readings == [second.measure(cell) for cell in range(400)]
    assert first.measure(0) != readings[0]
    assert BlackBox(task, Condition("normal"), seed=4).measure(0) != readings[0]
    logs = [math.log(reading.energy_j / 2.0) for reading in readings]
    assert statistics.stdev(logs) == pytest.approx(0.02, rel=0.15)
    assert {reading.error for reading in readings} == {0.02}


def test_outliers_hit_about_two_in_a_hundred_trials_and_one_reading_of_them() -> None:
    task = line([1.0] * 4000, [1.0] * 4000)
    box = BlackBox(task, DEGRADED, seed=0)
    readings = [box.measure(cell) for cell in range(3999)]
    late = sum(reading.latency_s > 3 for reading in readings)
    costly = sum(reading.energy_j > 3 for reading in readings)
    assert not any(reading.latency_s > 3 and reading.energy_j > 3 for reading in readings)
    assert 50 < late + costly < 115
    assert late > 15
    assert costly > 15


def test_the_anchor_has_more_windows_where_the_condition_says_so() -> None:
    task = line([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    assert len(BlackBox(task, Condition("normal"), 0).trial(2)) == 1
    counts = {len(BlackBox(task, DEGRADED, seed).trial(2)) for seed in range(100)}
    assert counts == {2, 3}
    assert len(BlackBox(task, DEGRADED, 0).trial(0)) == 1


def test_lost_rows_spare_the_anchor() -> None:
    task = line([float(i) for i in range(1, 41)], [float(i) for i in range(1, 41)])
    smaller = task.without_cells(0.1, seed=1)
    assert len(smaller.configurations) == 36
    assert smaller.anchor in smaller.cells
    assert smaller.without_cells(0.0, seed=1).latency_s == smaller.latency_s
    for cell, configuration in enumerate(smaller.configurations):
        assert smaller.latency_s[cell] == configuration["gpu_freq_mhz"]
    assert task.without_cells(0.1, seed=2).latency_s != smaller.latency_s


def test_renamed_keeps_the_values() -> None:
    task = line([2.0, 1.0], [1.0, 2.0])
    other = task.renamed({"gpu_freq_mhz": "queue_depth"})
    assert other.space.names == ("queue_depth",)
    assert other.anchor == Configuration.of({"queue_depth": 2.0})
    assert (other.latency_s, other.anchor_cell) == (task.latency_s, task.anchor_cell)


def test_windows_are_pooled_with_their_scatter() -> None:
    task = line([1.0, 1.0], [1.0, 1.0])
    calm = observation(task, 0, [Reading(1.0, 2.0, 0.02), Reading(1.0, 2.0, 0.02)])
    assert calm.energy_j == pytest.approx(2.0)
    assert calm.latency_error == pytest.approx(0.02 / math.sqrt(2))
    apart = observation(task, 0, [Reading(1.0, 2.0, 0.02), Reading(5.0, 2.0, 0.02)])
    assert apart.latency_error > 0.5


def test_a_table_without_its_anchor_is_refused() -> None:
    task = line([2.0, 1.0], [1.0, 2.0])
    with pytest.raises(InvalidInputError, match="no row for its anchor"):
        Task(
            name="x",
            family=ONE_KNOB,
            source="x",
            emulated=True,
            space=SearchSpace(task.space.knobs, cells=frozenset({(0,)})),
            anchor=task.anchor,
            latency_s=(2.0,),
            energy_j=(1.0,),
        )
