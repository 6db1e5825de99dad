import pytest

from polythrottle.clock import VirtualClock
from polythrottle_agent.emulation.behaviour import Behaviour
from polythrottle_agent.emulation.board import WRITE_S, EmulatedBoard, round_down, round_up


@pytest.fixture
def board() -> EmulatedBoard:
    return EmulatedBoard(Behaviour.of("tx2", "efficientnet-b4"), VirtualClock(), seed=0)


def test_rounding_at_on_and_off_the_table() -> None:
    table = (100.0, 200.0, 300.0)
    assert [round_up(x, table) for x in (1.0, 100.0, 100.1, 300.0, 999.0)] == [
        100.0,
        100.0,
        200.0,
        300.0,
        300.0,
    ]
    assert [round_down(x, table) for x in (1.0, 100.0, 199.9, 300.0, 999.0)] == [
        100.0,
        100.0,
        100.0,
        300.0,
        300.0,
    ]


def test_gpu_and_memory_round_up_and_cpu_rounds_down(board: EmulatedBoard) -> None:
    board.lock_gpu(850.0)
    board.lock_memory(1100.0)
    board.pin_cpu(1200.0)
    assert board.nodes.gpu_max_mhz == 854.25
    assert board.nodes.mem_locked_mhz == 1331.2
    assert board.nodes.cpu_max_mhz == 1113.6


def test_locking_the_gpu_moves_its_floor_unless_that_is_held(board: EmulatedBoard) -> None:
    board.lock_gpu(930.75)
    assert board.nodes.gpu_min_mhz == 930.75
    assert board.gpu_under_load_mhz == 930.75
    board.hold_gpu_floor(318.75)
    board.lock_gpu(1300.5)
    assert board.nodes.gpu_min_mhz == 318.75
    assert 318.75 < board.gpu_under_load_mhz < 1300.5


def test_maximum_wins_over_a_higher_floor(board: EmulatedBoard) -> None:
    board.hold_gpu_floor(1300.5)
    board.lock_gpu(624.75)
    assert board.gpu_under_load_mhz == 624.75


def test_as_found_the_gpu_sags_and_memory_is_unlocked(board: EmulatedBoard) -> None:
    assert board.nodes.mem_locked_mhz is None
    assert board.mem_under_load_mhz == 1866.0
    assert 114.75 < board.gpu_under_load_mhz < 1300.5
    assert board.cpu_under_load_mhz < 2035.2


def test_energy_counter_moves_only_with_the_clock(board: EmulatedBoard) -> None:
    before = board.energy_counter_j()
    assert board.energy_counter_j() == before
    board.clock.sleep(10.0)
    idle_j = board.energy_counter_j() - before
    assert idle_j > 0
    board.run(10.0, power_w=12.0)
    assert board.energy_counter_j() - before - idle_j == pytest.approx(120.0)


def test_energy_counter_never_falls(board: EmulatedBoard) -> None:
    last = board.energy_counter_j()
    for level in (114.75, 1300.5, 624.75):
        board.lock_gpu(level)
        board.clock.sleep(0.5)
        board.run(0.1, 9.0)
        now = board.energy_counter_j()
        assert now > last
        last = now


def test_idle_costs_less_than_work_and_low_clocks_idle_for_less(board: EmulatedBoard) -> None:
    def idle_w() -> float:
        before = board.energy_counter_j()
        board.clock.sleep(1.0)
        return board.energy_counter_j() - before

    as_found = idle_w()
    board.lock_gpu(1300.5)
    board.lock_memory(1866.0)
    board.pin_cpu(2035.2)
    locked = idle_w()
    _, busy_w = board.behaviour.latency_and_power(board.point_under_load())
    assert as_found < locked < busy_w


def test_a_write_takes_time(board: EmulatedBoard) -> None:
    board.lock_gpu(624.75)
    board.set_batch(4)
    assert board.clock.now() == pytest.approx(2 * WRITE_S)


def test_an_interrupted_run_is_counted_and_leaves_the_board_idle() -> None:
    class Interrupted(VirtualClock):
        def sleep(self, duration_s: float) -> None:
            super().sleep(min(duration_s, 1.0))
            if duration_s > 1.0:
                raise KeyboardInterrupt

    board = EmulatedBoard(Behaviour.of("tx2", "efficientnet-b4"), Interrupted(), seed=0)
    with pytest.raises(KeyboardInterrupt):
        board.run(5.0, power_w=100.0)
    assert board.energy_counter_j() == pytest.approx(100.0)
    board.clock.sleep(1.0)
    assert board.energy_counter_j() < 120.0


def test_a_batch_that_is_not_full_costs_what_one_of_its_size_costs() -> None:
    """Latency and energy of 3 queries on a board set to 8 are those of a board whose batch is 3."""
    spent = []
    for batch, n_queries in ((8, 3), (3, None), (8, None)):
        board = EmulatedBoard(Behaviour.of("tx2", "efficientnet-b4"), VirtualClock(), seed=5)
        board.set_batch(batch)
        before_j = board.energy_counter_j()
        latency_s = board.begin_batch(n_queries)
        board.clock.sleep(latency_s)
        spent.append((latency_s, board.energy_counter_j() - before_j))
    assert spent[0] == pytest.approx(spent[1])
    assert spent[2][0] > 1.5 * spent[0][0]
    assert spent[2][1] > 1.5 * spent[0][1]


def test_clocks_that_change_in_a_small_batch_charge_that_batch() -> None:
    board = EmulatedBoard(Behaviour.of("tx2", "efficientnet-b4"), VirtualClock(), seed=5)
    board.set_batch(16)
    latency_s = board.begin_batch(1)
    board.nodes.gpu_max_mhz = board.nodes.gpu_min_mhz = 624.75
    board.clocks_changed()
    before_j = board.energy_counter_j()
    board.clock.sleep(latency_s / 2)
    watts = (board.energy_counter_j() - before_j) / (latency_s / 2)
    alone = board.behaviour.point(
        cpu_mhz=board.cpu_under_load_mhz, gpu_mhz=624.75, mem_mhz=board.mem_under_load_mhz, batch=1
    )
    assert watts == pytest.approx(board.behaviour.latency_and_power(alone)[1])
