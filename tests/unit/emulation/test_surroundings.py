"""The same model in process: surroundings are off unless asked for, and change nothing while off."""

from __future__ import annotations

import pytest

from polythrottle.clock import VirtualClock
from polythrottle.measurement import LatencyReading
from polythrottle.studies import MeasurementPlan
from polythrottle_agent.emulation.behaviour import Behaviour, Shares
from polythrottle_agent.emulation.board import EmulatedBoard
from polythrottle_agent.emulation.boards import SYSFS_BOARDS
from polythrottle_agent.emulation.device import open_emulated
from polythrottle_agent.emulation.surroundings import Environment
from polythrottle_agent.ports import EnergyWindow

PLAN = MeasurementPlan(min_queries=300, min_window_s=5.0)


class Ledger:
    """Adds up what an observer is shown."""

    def __init__(self) -> None:
        self.joules = self.seconds = 0.0

    def passed(self, _began_s: float, lasted_s: float, power_w: float, shares: Shares, /) -> None:
        assert lasted_s >= 0.0
        assert shares.gpu > 0
        assert shares.mem > 0
        assert shares.cpu > 0
        assert shares.static > 0
        self.joules += power_w * lasted_s
        self.seconds += lasted_s


@pytest.mark.parametrize("board", SYSFS_BOARDS)
def test_observers_see_all_energy_and_all_time(board: str) -> None:
    emulated = EmulatedBoard(Behaviour.of(board, "efficientnet-b4"), VirtualClock(), seed=0)
    ledger = Ledger()
    emulated.observers.append(ledger)
    emulated.begin_window()
    for _ in range(20):
        emulated.clock.sleep(emulated.begin_batch())
    emulated.clock.sleep(10.0)
    emulated.run(2.0, 9.0)
    assert ledger.joules == pytest.approx(emulated.energy_counter_j())
    assert ledger.seconds == pytest.approx(emulated.clock.now())


def test_a_batch_ends_by_itself_and_the_board_rests() -> None:
    board = EmulatedBoard(Behaviour.of("tx2", "efficientnet-b4"), VirtualClock(), seed=0)
    latency_s = board.begin_batch()
    _, watts = board.behaviour.latency_and_power(board.point_under_load())
    board.clock.sleep(latency_s)
    assert board.energy_counter_j() == pytest.approx(latency_s * watts)
    board.clock.sleep(1.0)
    before = board.energy_counter_j()
    board.clock.sleep(1.0)
    assert board.energy_counter_j() - before < 0.8 * watts


def test_a_clock_changed_within_a_batch_changes_its_power_from_there() -> None:
    board = EmulatedBoard(Behaviour.of("tx2", "efficientnet-b4"), VirtualClock(), seed=0)
    board.lock_gpu(1300.5)
    latency_s = board.begin_batch()
    board.clock.sleep(latency_s / 2)
    first_j = board.energy_counter_j()
    board.nodes.gpu_max_mhz = board.nodes.gpu_min_mhz = 318.75
    board.clocks_changed()
    board.clock.sleep(latency_s / 2)
    started_j = first_j - 0.0
    assert board.energy_counter_j() - first_j < 0.8 * started_j


def window(environment: Environment | None, seed: int = 3) -> tuple[LatencyReading, float]:
    device = open_emulated("orin-nano-8gb", None, VirtualClock(), seed, environment)
    device.meter.begin()
    served = device.workload.serve(PLAN, "mean")
    energy = device.meter.end()
    assert isinstance(served.latency, LatencyReading)
    assert isinstance(energy, EnergyWindow)
    return served.latency, energy.energy_j / served.n_queries


def test_cool_surroundings_without_drift_measure_what_the_bare_board_does() -> None:
    for seed in range(4):
        bare, surrounded = window(None, seed), window(Environment(drift=0.0), seed)
        assert surrounded[0].latency_s == bare[0].latency_s
        assert surrounded[1] == pytest.approx(bare[1], rel=1e-9)


def test_heat_throttles_within_a_window_in_process() -> None:
    cool, _ = window(Environment(drift=0.0))
    hot, _ = window(Environment(drift=0.0, ambient_c=110.0))
    assert hot.latency_s > 1.1 * cool.latency_s


def test_the_shares_of_power_move_with_their_clock() -> None:
    behaviour = Behaviour.of("agx-orin", "efficientnet-b4")
    tables = behaviour.board

    def shares(gpu_mhz: float) -> Shares:
        point = behaviour.point(
            cpu_mhz=tables.cpu_mhz[-1], gpu_mhz=gpu_mhz, mem_mhz=tables.mem_mhz[-1], batch=1
        )
        return behaviour.shares(point, busy=True)

    assert shares(tables.gpu_mhz[-1]).gpu > 1.5 * shares(tables.gpu_mhz[3]).gpu
    assert shares(tables.gpu_mhz[-1]).static < shares(tables.gpu_mhz[3]).static
