"""Queueing in the ensemble: the table against theory, and the members against the emulator's own queue."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from polythrottle.clock import VirtualClock
from polythrottle.configuration import Configuration, Knob, SearchSpace
from polythrottle.measurement import LatencyReading
from polythrottle.optimizer.grid import Grid
from polythrottle.optimizer.prior import EnsemblePrior
from polythrottle.optimizer.queueing import Queueing, QueueTable
from polythrottle.physics import DeviceModel, DomainPower, OperatingPoint
from polythrottle.studies import MeasurementPlan
from polythrottle_agent.emulation.behaviour import Behaviour
from polythrottle_agent.emulation.board import EmulatedBoard
from polythrottle_agent.load.arrivals import Arrivals
from polythrottle_agent.load.options import Load
from polythrottle_agent.workloads.emulated_queue import QueuedEmulatedWorkload


def _one(table: QueueTable, batch: float, growth: float, load: float) -> tuple[float, float]:
    """Latency in units of a batch of one, and mean batch."""
    log_latency, log_batch = table(*(np.asarray([x], dtype=np.float32) for x in (batch, growth, load)))
    return math.exp(float(log_latency[0])), math.exp(float(log_batch[0]))


@pytest.mark.parametrize("load", [0.1, 0.35, 0.6, 0.8])
def test_one_at_a_time_is_m_d_1(load: float) -> None:
    """Pollaczek and Khinchine: 1 + ρ / 2 (1 - ρ)."""
    latency, batch = _one(QueueTable("mean"), 1.0, 0.0, load)
    assert latency == pytest.approx(1.0 + load / (2.0 * (1.0 - load)), rel=0.03)
    assert batch == pytest.approx(1.0)


def test_batches_that_save_nothing_do_not_help_and_free_ones_do() -> None:
    table = QueueTable("p95")
    alone, _ = _one(table, 1.0, 0.0, 0.7)
    # As many queries a second, in units of what one at a time can serve: 0.7 = 0.0875 of 8 free ones.
    together, mean = _one(table, 8.0, 0.0, 0.7 / 8.0)
    assert together < 0.8 * alone
    assert 1.2 < mean < 2.0
    in_vain, _ = _one(table, 8.0, 1.0, 0.7)
    assert in_vain > 0.9 * alone


@pytest.mark.parametrize("batch", [1.0, 3.0, 8.0, 32.0])
def test_latency_rises_with_load_and_with_the_percentile(batch: float) -> None:
    loads = np.linspace(0.01, 1.4, 60, dtype=np.float32)
    growth = np.full_like(loads, 0.3)
    before = np.zeros_like(loads)
    for statistic in ("p50", "p90", "p95", "p98", "p99", "p99.9"):
        log_latency, _ = QueueTable(statistic)(np.full_like(loads, batch), growth, loads)
        assert np.all(np.diff(log_latency) > -0.02)
        assert np.all(log_latency >= before - 0.01)
        before = log_latency
    assert before[-1] > before[30] + 2.0


def _arrays(model: DeviceModel, ndim: int) -> DeviceModel:
    """One member with its parameters on the first axis."""

    def placed(value: Any) -> Any:
        if isinstance(value, DomainPower):
            return DomainPower(**{f.name: placed(getattr(value, f.name)) for f in fields(value)})
        return np.full((1,) * ndim, value, dtype=np.float32)

    return replace(model, **{f.name: placed(getattr(model, f.name)) for f in fields(model)})


def test_a_member_that_is_the_emulator_shows_what_the_emulator_does() -> None:
    """p95 and energy per query of one configuration over another, at the same arrival rate."""
    behaviour = Behaviour.of("orin-nano-8gb", "efficientnet-b0")
    noise = replace(
        behaviour.calibration.noise, scatter_one=0.0, scatter_many=0.0, jitter=0.0, tail_share=0.0
    )
    behaviour = replace(behaviour, calibration=replace(behaviour.calibration, noise=noise))
    tables, rate_per_s = behaviour.board, 55.0

    def emulated(gpu_mhz: float, batch: int) -> tuple[float, float]:
        board = EmulatedBoard(behaviour, VirtualClock(), 0)
        nodes = board.nodes
        nodes.gpu_min_mhz = nodes.gpu_max_mhz = gpu_mhz
        nodes.mem_locked_mhz, nodes.cpu_pinned, nodes.batch = tables.mem_mhz[-1], True, batch
        board.clocks_changed()
        workload = QueuedEmulatedWorkload(board, Load(Arrivals.parse("poisson", rate_per_s)))
        workload.warm_up(500)
        began_j, began_s = board.energy_counter_j(), board.clock.now()
        served = workload.serve(MeasurementPlan(min_queries=40_000, max_window_s=1e6), "p95")
        assert isinstance(served.latency, LatencyReading)
        spent_w = (board.energy_counter_j() - began_j) / (board.clock.now() - began_s)
        return served.latency.latency_s, spent_w / rate_per_s

    queueing = Queueing(1, 0, "p95", anchor_batch=1.0)
    top_s, _ = behaviour.latency_and_power(
        behaviour.point(
            cpu_mhz=tables.cpu_mhz[-1], gpu_mhz=tables.gpu_mhz[-1], mem_mhz=tables.mem_mhz[-1], batch=1
        )
    )
    queueing._load = np.asarray([rate_per_s * top_s], dtype=np.float32)
    queueing._dynamic = np.asarray([True])
    anchor = OperatingPoint(batch=np.ones((1, 1), np.float32), has_batch=True, largest_batch=16.0)

    def member(gpu_mhz: float, batch: int) -> tuple[float, float]:
        point = replace(
            anchor,
            gpu=np.full((1, 1), gpu_mhz / tables.gpu_mhz[-1], np.float32),
            batch=np.full((1, 1), batch, np.float32),
        )
        model = _arrays(behaviour.calibration.model, 2)
        log_latency, log_energy = queueing.outputs(np.arange(1), 2, model, point, anchor)
        return math.exp(float(log_latency[0, 0])), math.exp(float(log_energy[0, 0]))

    reference, reference_member = emulated(tables.gpu_mhz[-1], 1), member(tables.gpu_mhz[-1], 1)
    for gpu_mhz, batch in ((tables.gpu_mhz[-1], 8), (714.0, 2), (510.0, 8), (408.0, 16)):
        seen, expected = emulated(gpu_mhz, batch), member(gpu_mhz, batch)
        assert expected[0] / reference_member[0] == pytest.approx(seen[0] / reference[0], rel=0.15)
        assert expected[1] / reference_member[1] == pytest.approx(seen[1] / reference[1], rel=0.03)


def _prior(queued: str | None) -> EnsemblePrior:
    space = SearchSpace((Knob("gpu_freq_mhz", (300.0, 600.0, 1200.0)), Knob("batch_size", (1.0, 2.0, 8.0))))
    anchor = Configuration.of({"gpu_freq_mhz": 1200.0, "batch_size": 1.0})
    return EnsemblePrior(Grid(space, anchor), 400, 0, queued)


def test_where_queries_arrive_a_larger_batch_limit_is_no_reason_to_be_slow() -> None:
    """Back to back a batch of 8 takes longer; from a queue it only forms where it helps."""
    larger = Configuration.of({"gpu_freq_mhz": 1200.0, "batch_size": 8.0})
    alone, queued = _prior(None), _prior("p95")
    row = alone.grid.row(larger)
    assert np.median(alone.surfaces(np.arange(400))[0, :, row]) > math.log(2.0)
    assert np.median(queued.surfaces(np.arange(400))[0, :, row]) < math.log(1.2)


def test_the_anchor_is_the_scale_and_everything_is_finite() -> None:
    prior = _prior("p99")
    surfaces = prior.surfaces(np.arange(400))
    assert np.all(np.isfinite(surfaces))
    assert np.allclose(surfaces[:, :, prior.grid.anchor_row], 0.0, atol=1e-5)
    columns = prior.columns([0], [{"gpu_freq_mhz": 300.0, "batch_size": 1.0}])
    assert np.allclose(columns[:, :, 0], surfaces[:, :, 0], atol=1e-4)


def test_a_space_without_a_batch_size_can_be_queued_too() -> None:
    space = SearchSpace((Knob("gpu_freq_mhz", (300.0, 600.0, 1200.0)),))
    prior = EnsemblePrior(Grid(space, Configuration.of({"gpu_freq_mhz": 1200.0})), 200, 0, "p95")
    latencies = prior.surfaces(np.arange(200))[0]
    assert np.all(latencies[:, 0] >= latencies[:, 2] - 1e-5)
