import dataclasses
import math

import pytest

from polythrottle.errors import InvalidInputError
from polythrottle.physics import OperatingPoint, ScalarOps, latency_and_power
from polythrottle_agent.emulation.behaviour import Behaviour
from polythrottle_agent.emulation.boards import BATCH_SIZES, BOARDS, board_named
from polythrottle_agent.emulation.calibration import (
    ANCHOR,
    WORKLOADS,
    Resizing,
    extrapolated,
)
from polythrottle_agent.emulation.fitted import FITTED

ALL = [(board, workload) for board in BOARDS for workload in WORKLOADS]


def _at(behaviour: Behaviour, batch: int = 1, **levels: float) -> tuple[float, float]:
    tables = behaviour.board
    highest = {"cpu_mhz": tables.cpu_mhz[-1], "gpu_mhz": tables.gpu_mhz[-1], "mem_mhz": tables.mem_mhz[-1]}
    at = highest | levels
    point = behaviour.point(cpu_mhz=at["cpu_mhz"], gpu_mhz=at["gpu_mhz"], mem_mhz=at["mem_mhz"], batch=batch)
    return behaviour.latency_and_power(point)


def test_level_tables_have_the_published_sizes_and_ends() -> None:
    tx2, orin, nano = board_named("tx2"), board_named("agx-orin"), board_named("orin-nano-8gb")
    assert [len(t) for t in (tx2.gpu_mhz, tx2.mem_mhz, tx2.cpu_mhz)] == [13, 11, 12]
    assert [len(t) for t in (orin.gpu_mhz, orin.mem_mhz, orin.cpu_mhz)] == [13, 4, 29]
    assert [len(t) for t in (nano.gpu_mhz, nano.mem_mhz, nano.cpu_mhz)] == [8, 4, 22]
    assert orin.gpu_mhz[-3:] == (1134.75, 1236.75, 1300.5)
    assert (tx2.cpu_mhz[0], tx2.cpu_mhz[-1]) == (345.6, 2035.2)
    assert orin.cpu_mhz[-2:] == (2188.8, 2201.6)
    assert nano.cpu_mhz[-1] == 1728.0


@pytest.mark.parametrize(("board", "workload"), ALL)
def test_physics_is_finite_and_monotone_where_it_must_be(board: str, workload: str) -> None:
    behaviour = Behaviour.of(board, workload)
    for knob, table in (("gpu_mhz", behaviour.board.gpu_mhz), ("mem_mhz", behaviour.board.mem_mhz)):
        outcomes = [_at(behaviour, 1, **{knob: level}) for level in table]
        assert all(math.isfinite(x) and x > 0 for pair in outcomes for x in pair)
        latencies = [seconds for seconds, _ in outcomes]
        powers = [watts for _, watts in outcomes]
        assert latencies == sorted(latencies, reverse=True)
        assert powers == sorted(powers)
    by_batch = [_at(behaviour, batch=batch)[0] for batch in BATCH_SIZES]
    assert by_batch == sorted(by_batch)
    assert by_batch[-1] < BATCH_SIZES[-1] * by_batch[0]


@pytest.mark.parametrize(("board", "workload"), ALL)
def test_stock_costs_more_than_the_optimum(board: str, workload: str) -> None:
    behaviour = Behaviour.of(board, workload)
    tables = behaviour.board
    as_found = behaviour.energy_per_query_j(
        behaviour.point(
            cpu_mhz=behaviour.calibration.stock_cpu * tables.cpu_mhz[-1],
            gpu_mhz=tables.gpu_mhz[-1],
            gpu_min_mhz=tables.gpu_mhz[0],
            mem_mhz=tables.mem_mhz[-1],
            batch=1,
        )
    )
    best = min(
        behaviour.energy_per_query_j(behaviour.point(cpu_mhz=cpu, gpu_mhz=gpu, mem_mhz=mem, batch=1))
        for cpu in tables.cpu_mhz[::3]
        for gpu in tables.gpu_mhz
        for mem in tables.mem_mhz
    )
    assert best < 0.98 * as_found


def test_default_demo_has_a_meaningful_optimum_inside_the_space() -> None:
    behaviour = Behaviour.of("orin-nano-8gb", "efficientnet-b4")
    tables = behaviour.board
    p99_over_mean = 1.087
    at_max_s, at_max_w = _at(behaviour)
    assert 0.022 < p99_over_mean * at_max_s < 0.035
    feasible = []
    for batch in BATCH_SIZES:
        for cpu in tables.cpu_mhz:
            for gpu in tables.gpu_mhz:
                for mem in tables.mem_mhz:
                    seconds, watts = _at(behaviour, batch, cpu_mhz=cpu, gpu_mhz=gpu, mem_mhz=mem)
                    if p99_over_mean * seconds <= 0.050:
                        feasible.append((seconds * watts / batch, batch, cpu, gpu, mem))
    energy_j, batch, cpu, gpu, mem = min(feasible)
    assert 0.10 < 1.0 - energy_j / (at_max_s * at_max_w) < 0.32
    assert batch < BATCH_SIZES[-1]
    assert tables.cpu_mhz[0] < cpu < tables.cpu_mhz[-1]
    assert tables.gpu_mhz[0] < gpu < tables.gpu_mhz[-1]
    assert tables.mem_mhz[0] < mem < tables.mem_mhz[-1]


def test_scales_hold_at_max_clocks_and_batch_one() -> None:
    for calibration in FITTED:
        seconds, watts = _at(Behaviour(board_named(calibration.board), calibration))
        assert seconds == pytest.approx(calibration.latency_s)
        assert watts == pytest.approx(calibration.power_w)


def test_extrapolation_to_the_same_size_changes_nothing_but_the_sag() -> None:
    source = FITTED[0]
    same = extrapolated(source, "copy", Resizing(1.0, 1.0, 1.0, 1.0, 1.0, 1.0))
    point = OperatingPoint(cpu=0.5, gpu=0.6, mem=0.7, batch=4.0, has_batch=True, largest_batch=16.0)
    before = latency_and_power(source.model, point, ScalarOps())
    after = latency_and_power(same.model, point, ScalarOps())
    assert after == pytest.approx(before)
    assert same.latency_s == pytest.approx(source.latency_s)
    assert same.model.sag == pytest.approx(0.5 * (1.0 + source.model.sag))


def test_extrapolation_keeps_power_at_equal_clocks() -> None:
    """Cutting off the upper clocks must not change what a lower clock draws."""
    source = FITTED[4]
    top = 0.8
    gpu_only = dataclasses.replace(
        source.model,
        mem=dataclasses.replace(source.model.mem, amplitude=0.0),
        cpu=dataclasses.replace(source.model.cpu, amplitude=0.0),
        static=0.0,
        mem_share=1e-9,
        cpu_share=1e-9,
        const_share=1e-9,
    )
    cut = extrapolated(dataclasses.replace(source, model=gpu_only), "cut", Resizing(1.0, top, 1, 1, 1, 1))
    for clock in (0.3, 0.5, 0.8):
        _, full = latency_and_power(gpu_only, dataclasses.replace(ANCHOR, gpu=clock), ScalarOps())
        _, small = latency_and_power(cut.model, dataclasses.replace(ANCHOR, gpu=clock / top), ScalarOps())
        assert small == pytest.approx(full, rel=1e-6)


def test_smaller_board_is_slower_and_draws_less() -> None:
    orin = _at(Behaviour.of("agx-orin", "efficientnet-b4"))
    nano = _at(Behaviour.of("orin-nano-8gb", "efficientnet-b4"))
    assert 1.3 < nano[0] / orin[0] < 1.0 / (0.5 * 1020.0 / 1300.5)
    assert 0.35 < nano[1] / orin[1] < 0.6


@pytest.mark.parametrize(
    ("board", "workload", "hint"),
    [("tx3", "bert-base", "did you mean tx2"), ("tx2", "efficientnet-b5", "did you mean efficientnet-b")],
)
def test_unknown_names_are_refused_with_close_ones(board: str, workload: str, hint: str) -> None:
    with pytest.raises(InvalidInputError, match=hint):
        Behaviour.of(board, workload)
