import statistics

import pytest

from polythrottle.clock import VirtualClock
from polythrottle.configuration import UNLOCKED, Knob
from polythrottle.errors import InvalidInputError
from polythrottle.measurement import LatencyReading, Provenance, Scope, Unavailable
from polythrottle.physics import OperatingPoint
from polythrottle.studies import MeasurementPlan
from polythrottle_agent.emulation import BOARDS, WORKLOADS, open_emulated
from polythrottle_agent.emulation.behaviour import Behaviour
from polythrottle_agent.ports import Control, Device, EnergyWindow, Served

PLAN = MeasurementPlan()


def _device(board: str = "orin-nano-8gb", workload: str = "efficientnet-b4", seed: int = 0) -> Device:
    return open_emulated(board, workload, VirtualClock(), seed)


def _window(
    device: Device, plan: MeasurementPlan = PLAN, statistic: str = "p99"
) -> tuple[Served, EnergyWindow]:
    device.meter.begin()
    served = device.workload.serve(plan, statistic)
    energy = device.meter.end()
    assert isinstance(energy, EnergyWindow)
    return served, energy


def _latency(served: Served) -> LatencyReading:
    assert isinstance(served.latency, LatencyReading)
    return served.latency


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_every_board_opens_with_every_workload(board: str, workload: str) -> None:
    device = _device(board, workload)
    assert device.identity.id == f"emulated:{board}"
    assert "emulated" in device.identity.label
    assert device.identity.provenance is Provenance.EMULATED
    assert ("extrapolated" in device.identity.label) == (board == "orin-nano-8gb")
    assert device.workload.name == workload
    assert device.stock_note is not None


def test_boards_differ_in_their_tables_digest() -> None:
    assert len({_device(board).identity.tables_digest for board in BOARDS}) == len(BOARDS)


@pytest.mark.parametrize("board", BOARDS)
def test_controls_apply_read_back_save_and_restore(board: str) -> None:
    device = _device(board)
    originals = {name: dict(control.save()) for name, control in device.controls.items()}
    accepted = device.accepted()
    for name, control in device.controls.items():
        assert control.knob == name
        assert Knob(name, control.levels).levels == control.levels
        for level in control.levels:
            control.apply(level)
            assert control.accepted() == level
    assert device.accepted() != accepted
    for name in sorted(device.controls, reverse=True):
        device.controls[name].restore(originals[name])
        device.controls[name].restore(originals[name])
    assert device.accepted() == accepted
    assert {name: dict(control.save()) for name, control in device.controls.items()} == originals


def test_memory_has_unlocked_above_its_numbers_and_starts_there() -> None:
    memory = _device("tx2").controls["mem_freq_mhz"]
    assert memory.levels[-2:] == (1866.0, UNLOCKED)
    assert memory.accepted() == UNLOCKED
    assert memory.observed() == 1866.0


@pytest.mark.parametrize("knob", ["gpu_freq_mhz", "mem_freq_mhz", "cpu_freq_mhz", "batch_size"])
def test_a_level_off_the_table_is_refused_and_changes_nothing(knob: str) -> None:
    device = _device()
    before = device.accepted()
    with pytest.raises(InvalidInputError, match=knob):
        device.controls[knob].apply(333.3)
    assert device.accepted() == before


def test_observed_clock_sags_as_found_and_not_when_locked() -> None:
    device = _device()
    gpu: Control = device.controls["gpu_freq_mhz"]
    assert gpu.accepted() == 1020.0
    assert float(gpu.observed()) < 1000.0
    gpu.apply(1020.0)
    assert gpu.observed() == 1020.0


def test_same_seed_same_numbers_and_another_seed_others() -> None:
    def run(seed: int) -> list[float]:
        device = _device(seed=seed)
        results = []
        for level in (1020.0, 612.0):
            device.controls["gpu_freq_mhz"].apply(level)
            served, energy = _window(device)
            results += [_latency(served).latency_s, energy.energy_j]
        return results

    assert run(3) == run(3)
    assert run(3) != run(4)


def test_a_window_holds_what_the_plan_asks_for_and_takes_the_clocks_time() -> None:
    device = _device()
    started_s = device.clock.now()
    served, energy = _window(device)
    assert served.n_queries == 1000
    assert energy.window_s == pytest.approx(device.clock.now() - started_s)
    assert served.duration_s == pytest.approx(energy.window_s)
    assert device.meter.scope is Scope.MODULE
    assert device.meter.provenance is Provenance.EMULATED
    assert _latency(served).bounded
    assert served.aborted_reason is None


def test_a_window_is_at_least_as_long_as_the_plan_says() -> None:
    served, _ = _window(_device(), MeasurementPlan(min_queries=10, min_window_s=3.0))
    assert served.duration_s >= 3.0


def test_a_window_too_short_for_p99_says_so() -> None:
    served, _ = _window(_device("tx2", "efficientnet-b7"), MeasurementPlan(max_window_s=60.0))
    latency = _latency(served)
    assert served.n_queries < 1000
    assert not latency.bounded
    assert served.aborted_reason is None


def test_a_window_over_the_abort_limit_is_cut_short() -> None:
    device = _device()
    device.controls["gpu_freq_mhz"].apply(306.0)
    served, _ = _window(device, MeasurementPlan(abort_latency_s=0.050, abort_after_queries=50))
    assert 4 <= served.n_queries <= 50  # two seconds came before 50 queries
    assert served.duration_s == pytest.approx(2.0, abs=0.1)
    assert served.aborted_reason is not None
    assert "p99" in served.aborted_reason
    assert _latency(served).latency_s > 0.050
    assert not _latency(served).bounded


def test_a_window_under_the_abort_limit_is_not_cut_short() -> None:
    served, _ = _window(_device(), MeasurementPlan(abort_latency_s=0.100))
    assert served.aborted_reason is None
    assert served.n_queries == 1000


def test_percentiles_are_ordered_and_p99_lies_above_the_mean() -> None:
    def reading(statistic: str) -> float:
        return _latency(_window(_device(), statistic=statistic)[0]).latency_s

    mean, p50, p95, p99 = (reading(s) for s in ("mean", "p50", "p95", "p99"))
    assert p50 < p95 < p99
    assert 1.04 < p99 / mean < 1.25


@pytest.mark.parametrize("statistic", ["recorded", "p0", "p100", "pxx", "median"])
def test_a_statistic_it_cannot_give_is_refused(statistic: str) -> None:
    device = _device()
    with pytest.raises(InvalidInputError, match=r"p50 to p99\.9 or mean"):
        device.workload.check_statistic(statistic)
    with pytest.raises(InvalidInputError):
        device.workload.serve(PLAN, statistic)


def test_latency_error_covers_the_scatter_of_repeats() -> None:
    device = _device()
    readings = [_latency(_window(device)[0]) for _ in range(200)]
    scatter = statistics.stdev(r.latency_s for r in readings)
    reported = statistics.fmean(r.standard_error_s or 0.0 for r in readings)
    assert reported == pytest.approx(scatter, rel=0.3)


@pytest.mark.parametrize(
    ("board", "workload", "stated"),
    [("tx2", "efficientnet-b4", 0.029), ("tx2", "bert-base", 0.050), ("agx-orin", "efficientnet-b7", 0.039)],
)
def test_energy_scatters_between_windows_as_stated(board: str, workload: str, stated: float) -> None:
    device = _device(board, workload)
    plan = MeasurementPlan(min_queries=1, min_window_s=1.0)
    energies, errors = [], []
    for _ in range(1500):
        served, energy = _window(device, plan)
        energies.append(energy.energy_j / served.n_queries)
        errors.append((energy.standard_error_j or 0.0) / energy.energy_j)
    mean = statistics.fmean(energies)
    assert statistics.stdev(energies) / mean == pytest.approx(stated, rel=0.25)
    assert statistics.fmean(errors) == pytest.approx(stated, rel=1e-6)
    true_j = Behaviour.of(board, workload).energy_per_query_j(_as_found(board, workload))
    assert mean == pytest.approx(true_j, rel=0.01)
    # Rare outliers make most of that: the middle of the windows scatters by far less.
    quartiles = statistics.quantiles(energies, n=4)
    robust = (quartiles[2] - quartiles[0]) / 1.349 / mean
    assert robust < 0.75 * stated
    assert max(energies) / mean > 1.0 + 3.0 * stated


def _as_found(board: str, workload: str) -> OperatingPoint:
    behaviour = Behaviour.of(board, workload)
    tables = behaviour.board
    return behaviour.point(
        cpu_mhz=behaviour.calibration.stock_cpu * tables.cpu_mhz[-1],
        gpu_mhz=tables.gpu_mhz[-1],
        gpu_min_mhz=tables.gpu_mhz[0],
        mem_mhz=tables.mem_mhz[-1],
        batch=1,
    )


def test_warming_up_costs_time_and_energy_outside_the_window() -> None:
    device = _device()
    device.workload.warm_up(20)
    assert device.clock.now() > 0.3
    started_s = device.clock.now()
    _, energy = _window(device)
    assert energy.window_s == pytest.approx(device.clock.now() - started_s)


def test_idle_time_inside_a_window_is_charged() -> None:
    device = _device()
    device.meter.begin()
    device.workload.serve(PLAN, "p99")
    device.clock.sleep(100.0)
    with_idle = device.meter.end()
    assert isinstance(with_idle, EnergyWindow)
    assert with_idle.window_s > 100.0
    _, without = _window(device)
    assert with_idle.energy_j > 1.2 * without.energy_j


def test_a_meter_without_a_window_says_so_instead_of_zero() -> None:
    device = _device()
    assert isinstance(device.meter.end(), Unavailable)
    device.meter.begin()
    assert isinstance(device.meter.end(), Unavailable)
