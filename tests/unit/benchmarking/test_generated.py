from __future__ import annotations

import math
import statistics

import pytest

from polythrottle.benchmarking.generated import batch_cap, generated_tasks, three_knob
from polythrottle.benchmarking.task import BATCH_CAP, SLO_FACTORS, THREE_KNOB, Goal, Task


def test_a_number_is_always_the_same_table() -> None:
    assert three_knob(2).digest == three_knob(2).digest
    assert batch_cap(2).digest == batch_cap(2).digest
    assert len({task.digest for task in generated_tasks(4, 4)}) == 8


@pytest.mark.parametrize("task", generated_tasks(6, 6), ids=lambda task: task.name)
def test_tables_have_the_promised_size_and_finite_values(task: Task) -> None:
    low, high = {THREE_KNOB: (900, 1150), BATCH_CAP: (56, 96)}[task.family]
    assert low <= len(task.configurations) <= high
    assert task.emulated
    assert all(math.isfinite(value) and value > 0 for value in (*task.latency_s, *task.energy_j))
    for factor in SLO_FACTORS:
        goal = Goal(task, factor)
        feasible = sum(not goal.violates(cell) for cell in range(len(task.configurations)))
        assert 1 <= feasible < len(task.configurations)


def test_clocks_matter_as_they_should() -> None:
    """On average over tables: a lower GPU clock is slower and draws less power."""
    slower, weaker = [], []
    for number in range(12):
        task = three_knob(number)
        lowest = {**task.anchor, "gpu_freq_mhz": task.space.knob("gpu_freq_mhz").levels[0]}
        cell = task.cells[type(task.anchor).of(lowest)]
        slower.append(task.latency_s[cell] / task.latency_s[task.anchor_cell])
        ratio = task.energy_j[cell] / task.energy_j[task.anchor_cell]
        weaker.append(ratio / slower[-1])
    assert statistics.median(slower) > 1.3
    assert statistics.median(weaker) < 0.8


def test_tables_are_not_exactly_of_the_model_family() -> None:
    """In the family latency never falls when one clock is lowered; here the field and the steps do that."""
    task = three_knob(0)
    shape = [len(knob.levels) for knob in task.space.knobs]
    falls = 0
    for index in task.space.indices():
        for axis in range(3):
            if index[axis] + 1 < shape[axis]:
                higher = tuple(i + (a == axis) for a, i in enumerate(index))
                falls += (
                    task.latency_s[task.cells[task.space.at(index)]]
                    < task.latency_s[task.cells[task.space.at(higher)]]
                )
    assert falls > 10
