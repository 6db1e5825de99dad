"""Queueing in virtual time: against theory where there is one, and against the board's own energy."""

from __future__ import annotations

from dataclasses import replace

import pytest

from polythrottle.clock import VirtualClock
from polythrottle.errors import InvalidInputError
from polythrottle.measurement import LatencyReading, Provenance, Unavailable
from polythrottle.studies import MeasurementPlan
from polythrottle_agent.devices import open_device
from polythrottle_agent.emulation.behaviour import Behaviour
from polythrottle_agent.emulation.board import EmulatedBoard
from polythrottle_agent.load.arrivals import Arrivals, Kind
from polythrottle_agent.load.options import Load
from polythrottle_agent.ports import EnergyWindow, Served
from polythrottle_agent.workloads.emulated_queue import QueuedEmulatedWorkload

LONG = MeasurementPlan(min_queries=30_000, max_window_s=1e6)


def _board(*, batch: int = 1, quiet: bool = True, seed: int = 0) -> EmulatedBoard:
    """A TX2 at max clocks that serves a query of B4 in about 80 ms; quiet: every batch takes its mean."""
    behaviour = Behaviour.of("tx2", "efficientnet-b4")
    if quiet:
        noise = replace(
            behaviour.calibration.noise, scatter_one=0.0, scatter_many=0.0, jitter=0.0, tail_share=0.0
        )
        behaviour = replace(behaviour, calibration=replace(behaviour.calibration, noise=noise))
    board = EmulatedBoard(behaviour, VirtualClock(), seed)
    board.lock_gpu(1300.5)
    board.pin_cpu(2035.2)
    board.set_batch(batch)
    return board


def _service_s(board: EmulatedBoard) -> float:
    return board.behaviour.latency_and_power(board.point_under_load())[0]


def _load(board: EmulatedBoard, utilisation: float, arrivals: str = "poisson") -> Load:
    """Arrivals that keep the board busy for that share of the time, batch by batch of one."""
    stream = Arrivals.parse(arrivals, utilisation / _service_s(board))
    return Load(stream, time_out_s=1e9, connections=100_000)


def _served(
    board: EmulatedBoard, load: Load, statistic: str = "mean", plan: MeasurementPlan = LONG
) -> Served:
    workload = QueuedEmulatedWorkload(board, load)
    workload.warm_up(500)
    return workload.serve(plan, statistic)


def _latency_s(served: Served) -> float:
    assert isinstance(served.latency, LatencyReading)
    return served.latency.latency_s


@pytest.mark.parametrize("utilisation", [0.3, 0.6])
def test_the_mean_under_poisson_arrivals_is_that_of_m_d_1(utilisation: float) -> None:
    """Pollaczek and Khinchine: a mean wait of ρ s / 2 (1 − ρ)."""
    board = _board()
    service_s = _service_s(board)
    theory_s = service_s * (1.0 + utilisation / (2.0 * (1.0 - utilisation)))
    assert _latency_s(_served(board, _load(board, utilisation))) == pytest.approx(theory_s, rel=0.02)


def test_nothing_waits_where_arrivals_keep_a_distance() -> None:
    board = _board()
    served = _served(board, _load(board, 0.95, "constant"), "p99.9")
    assert _latency_s(served) == pytest.approx(_service_s(board))


def test_bursts_wait_longer_than_poisson_arrivals() -> None:
    board = _board()
    poisson = _latency_s(_served(_board(), _load(board, 0.5), "p95"))
    bursts = _latency_s(_served(_board(), _load(board, 0.5, "burst:5/3"), "p95"))
    assert bursts > 2.0 * poisson


def test_energy_is_of_busy_and_idle_time() -> None:
    """At rest the board draws its idle power: fewer queries a second cost more energy each."""
    board = _board()
    point = board.point_under_load()
    service_s, busy_w = board.behaviour.latency_and_power(point)
    idle_w = board.behaviour.idle_power_w(
        board.behaviour.point(cpu_mhz=2035.2, gpu_mhz=1300.5, mem_mhz=40.8, batch=1)
    )
    each = []
    for utilisation in (0.1, 0.5):
        board = _board()
        workload = QueuedEmulatedWorkload(board, _load(board, utilisation))
        before_j, before_s = board.energy_counter_j(), board.clock.now()
        served = workload.serve(LONG, "mean")
        spent_j, took_s = board.energy_counter_j() - before_j, board.clock.now() - before_s
        assert served.duration_s == took_s
        busy_s = served.n_queries * service_s
        assert spent_j == pytest.approx(busy_w * busy_s + idle_w * (took_s - busy_s), rel=1e-6)
        each.append(spent_j / served.n_queries)
    assert each[0] > 2.0 * each[1]


def test_batches_form_from_what_waits_and_raise_the_capacity() -> None:
    """A rate that one at a time cannot keep up with is served in batches."""
    board = _board(batch=8)
    rate_per_s = 1.15 / _service_s(_board())
    load = Load(Arrivals(Kind.POISSON, rate_per_s), time_out_s=30.0)
    together = _served(board, load, "p95", replace(LONG, min_queries=5000))
    assert together.lost.total == 0
    alone = _served(_board(), load, "p95", replace(LONG, min_queries=5000))
    assert alone.lost.total > 0
    assert _latency_s(alone) > 5.0 * _latency_s(together)


def test_an_overload_times_out_and_drops_and_counts_only_good_queries() -> None:
    board = _board()
    load = Load(Arrivals(Kind.POISSON, 3.0 / _service_s(board)), connections=4, time_out_s=1.0)
    served = QueuedEmulatedWorkload(board, load).serve(replace(LONG, min_queries=3000), "p95")
    assert served.lost.dropped > 0
    assert served.n_queries + served.lost.total >= 3000
    assert served.lost.total > 1.5 * served.n_queries
    assert served.aborted_reason is not None
    assert isinstance(served.latency, LatencyReading)
    assert served.latency.latency_s == pytest.approx(1.0)
    assert served.latency.n_queries == served.n_queries


def test_where_nothing_is_answered_in_time_there_is_no_latency() -> None:
    board = _board()
    load = Load(Arrivals(Kind.CONSTANT, 1.0), time_out_s=0.01)
    served = QueuedEmulatedWorkload(board, load).serve(MeasurementPlan(min_queries=20), "p95")
    assert served.n_queries == 0
    assert served.lost.timeouts == 20
    assert isinstance(served.latency, Unavailable)


def test_a_hopeless_configuration_is_cut_short() -> None:
    board = _board()
    plan = replace(LONG, abort_latency_s=1.5 * _service_s(board), abort_after_queries=50)
    served = _served(board, _load(board, 1.3), "p95", plan)
    assert served.aborted_reason is not None
    assert served.n_queries < 1000


def test_the_window_begins_with_the_queue_under_load_and_not_after_a_pause() -> None:
    """Overloaded: after warming up the first latencies are long, and after a pause they are not."""
    first_s = []
    for pause_s in (0.0, 5.0):
        board = _board()
        workload = QueuedEmulatedWorkload(board, _load(board, 3.0))
        workload.warm_up(200)
        board.clock.sleep(pause_s)
        first_s.append(_latency_s(workload.serve(MeasurementPlan(min_queries=1, min_window_s=0.0), "mean")))
    assert first_s[0] > 20.0 * first_s[1]


def test_the_same_seed_gives_the_same_window_and_another_seed_another() -> None:
    def window(seed: int) -> tuple[float, float]:
        board = _board(quiet=False)
        served = _served(board, replace(_load(board, 0.5), seed=seed), "p95", MeasurementPlan())
        return _latency_s(served), board.energy_counter_j()

    assert window(1) == window(1)
    assert window(1) != window(2)


def test_two_windows_of_one_workload_see_other_arrivals() -> None:
    board = _board()
    workload = QueuedEmulatedWorkload(board, _load(board, 0.5))
    windows = []
    for _ in range(2):
        windows.append(_latency_s(workload.serve(MeasurementPlan(), "mean")))
        board.clock.sleep(1.0)
    assert windows[0] != windows[1]


def test_a_device_is_opened_with_a_load_and_its_meter_sees_idle_time() -> None:
    load = Load(Arrivals.parse("poisson", 5.0), seed=4)
    device = open_device("emulated:orin-nano-8gb", "efficientnet-b0", 1, load=load)
    assert isinstance(device.workload, QueuedEmulatedWorkload)
    device.workload.warm_up(20)
    device.meter.begin()
    served = device.workload.serve(MeasurementPlan(min_queries=500), "p95")
    energy = device.meter.end()
    assert isinstance(energy, EnergyWindow)
    assert energy.window_s == pytest.approx(served.duration_s)
    assert served.duration_s == pytest.approx(100.0, rel=0.2)
    closed = open_device("emulated:orin-nano-8gb", "efficientnet-b0", 1)
    closed.meter.begin()
    back_to_back = closed.workload.serve(MeasurementPlan(min_queries=500), "p95")
    alone = closed.meter.end()
    assert isinstance(alone, EnergyWindow)
    assert energy.energy_j / served.n_queries > 2.0 * alone.energy_j / back_to_back.n_queries
    assert isinstance(served.latency, LatencyReading)
    assert served.latency.provenance is Provenance.EMULATED


def test_a_load_without_arrivals_is_back_to_back() -> None:
    device = open_device("emulated:tx2", None, 1, load=Load(None))
    assert not isinstance(device.workload, QueuedEmulatedWorkload)
    with pytest.raises(ValueError, match="arrivals"):
        QueuedEmulatedWorkload(_board(), Load(None))


def test_a_recorded_table_takes_no_rate() -> None:
    with pytest.raises(InvalidInputError, match="leave --rate out"):
        open_device("replay:table.csv", None, 1, load=Load(Arrivals(Kind.POISSON, 1.0)))
