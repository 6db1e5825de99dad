"""The emulated sysfs without a mount, on a virtual clock: what takes minutes on a board takes none here."""

from __future__ import annotations

import errno
import itertools
import statistics

import pytest

from polythrottle.clock import VirtualClock
from polythrottle.errors import InvalidInputError
from polythrottle_agent.emulation.boards import SYSFS_BOARDS
from polythrottle_agent.emulation.layouts import kernels_of
from polythrottle_agent.emulation.machine import Machine, Options
from polythrottle_agent.emulation.surroundings import Environment

CALM = Environment(drift=0.0)


def machine(
    board: str = "orin-nano-8gb", kernel: str | None = None, seed: int = 0, options: Options | None = None
) -> Machine:
    return Machine(
        board, kernel=kernel, clock=VirtualClock(), seed=seed, options=options or Options(environment=CALM)
    )


def read(of: Machine, node: str) -> str:
    return of.tree.read(of.node(node)).decode().strip()


def write(of: Machine, node: str, text: str) -> None:
    of.tree.write(of.node(node), text.encode())


def serve(of: Machine, duration_s: float) -> list[float]:
    clock, latencies = of.board.clock, []
    ends_s = clock.now() + duration_s
    while clock.now() < ends_s:
        latencies.append(of.begin_batch())
        clock.sleep(latencies[-1])
    return latencies


def hwmon(of: Machine) -> str:
    chip = of.tree.resolve("/sys/bus/i2c/drivers/ina3221/1-0040")
    (name,) = of.tree.names(f"{chip}/hwmon")
    return f"{chip}/hwmon/{name}"


def _errno_of(of: Machine, path: str) -> int | None:
    try:
        of.tree.read(path)
    except OSError as error:
        return error.errno
    return None


@pytest.mark.parametrize("board", SYSFS_BOARDS)
def test_every_file_of_every_board_reads_or_says_why_not(board: str) -> None:
    for kernel in kernels_of(board):
        of = machine(board, kernel)
        for cpu in range(of.cpus.count):
            of.cpus.store_online(cpu, True)
        seen = 0
        pending = ["/"]
        while pending:
            path = pending.pop()
            for name in of.tree.names(path):
                child = f"{path.rstrip('/')}/{name}"
                attributes = of.tree.attributes(child)
                if attributes["st_mode"] & 0o170000 == 0o040000:
                    pending.append(child)
                elif attributes["st_mode"] & 0o170000 == 0o100000 and attributes["st_mode"] & 0o444:
                    assert _errno_of(of, child) in (None, errno.EAGAIN, errno.ENODATA), child
                    seen += 1
        assert seen > 100


def test_the_same_seed_is_the_same_board_and_another_is_not() -> None:
    def numbers(seed: int) -> list[float]:
        of = machine(seed=seed)
        return [*serve(of, 2.0), of.energy_j()]

    assert numbers(1) == numbers(1)
    assert numbers(1) != numbers(2)


def test_energy_of_the_files_boards_is_that_of_the_rails() -> None:
    """Readings of one cycle are means over it: their sum over time is the counter's energy."""
    of = machine()
    base, clock = hwmon(of), of.board.clock
    serve(of, 2.0)
    began_j, began_s, readings = of.energy_j(), clock.now(), []
    while clock.now() - began_s < 120.0:
        serve(of, 0.4)
        volts, amps = int(read(of, f"{base}/in1_input")) / 1e3, int(read(of, f"{base}/curr1_input")) / 1e3
        readings.append(volts * amps)
    mean_w = (of.energy_j() - began_j) / (clock.now() - began_s)
    assert statistics.fmean(readings) == pytest.approx(mean_w, rel=0.01)


def test_a_reading_changes_once_in_430_ms() -> None:
    of = machine()
    base, clock = hwmon(of), of.board.clock
    times, last = [], None
    serve(of, 1.0)
    for step in range(4000):
        if step // 300 % 2:
            of.begin_batch()
        clock.sleep(0.001)
        shown = read(of, f"{base}/curr1_input")
        if last is not None and shown != last:
            times.append(clock.now())
        last = shown
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert gaps
    for gap in gaps:  # a cycle may round to the same value as the one before
        assert gap / 0.43008 == pytest.approx(round(gap / 0.43008), abs=0.02)
        assert round(gap / 0.43008) >= 1


def test_a_step_in_power_shows_late_and_smoothed() -> None:
    of = machine()
    base, clock = hwmon(of), of.board.clock
    clock.sleep(5.0)
    idle_ma = int(read(of, f"{base}/curr1_input"))
    serve(of, 0.45)
    first_ma = int(read(of, f"{base}/curr1_input"))
    serve(of, 3.0)
    busy_ma = int(read(of, f"{base}/curr1_input"))
    assert idle_ma < first_ma < busy_ma


def test_thirty_minutes_of_load_warm_the_board_to_where_power_takes_it() -> None:
    of = machine(options=Options(mode="MAXN_SUPER", environment=Environment(drift=0.0, rise_c=40.0)))
    write(of, "gpu/min_freq", "1020000000")
    assert of.around.temperature_c == pytest.approx(25.0, abs=0.1)
    serve(of, 60.0)
    after_a_minute = of.around.temperature_c
    serve(of, 600.0)
    settled = of.around.temperature_c
    assert 25.0 + 0.55 * 40.0 < after_a_minute < settled
    assert settled == pytest.approx(62.0, abs=4.0)
    of.board.clock.sleep(600.0)
    of.agenda.settle()
    assert of.around.temperature_c < 55.0


def test_a_board_that_gets_too_hot_throttles_until_it_can_bear_it() -> None:
    hot = Environment(ambient_c=70.0, rise_c=45.0, drift=0.0)
    of = machine(options=Options(mode="MAXN_SUPER", environment=hot))
    write(of, "gpu/min_freq", "1020000000")
    of.board.clock.sleep(0.1)
    cool = statistics.fmean(serve(of, 5.0))
    serve(of, 900.0)
    throttled = statistics.fmean(serve(of, 30.0))
    assert of.around.cooling_state > 0
    assert int(read(of, "gpu/max_freq")) < 1020000000
    assert of.around.temperature_c < 103.0
    assert throttled > 1.05 * cool


def test_slow_drift_moves_power_by_what_the_environment_says() -> None:
    of = machine(options=Options(environment=Environment(drift=0.05, drift_period_s=100.0)))
    powers = []
    for _ in range(100):
        began_j, began_s = of.energy_j(), of.board.clock.now()
        serve(of, 1.0)
        powers.append((of.energy_j() - began_j) / (of.board.clock.now() - began_s))
    assert max(powers) / min(powers) == pytest.approx(1.10, abs=0.015)


def test_cpu_limits_take_1_to_50_ms_and_gpu_limits_a_poll() -> None:
    of = machine()
    clock, waits = of.board.clock, []
    for khz in ("960000", "883200") * 40:
        write(of, "cpu/policy0/scaling_max_freq", khz)
        began_s = clock.now()
        while read(of, "cpu/policy0/scaling_max_freq") != khz:
            clock.sleep(0.0005)
        waits.append(clock.now() - began_s)
    assert 0.0005 <= min(waits) < 0.01
    assert 0.04 < max(waits) <= 0.051


def test_fewer_cores_and_lower_cpu_clocks_draw_less() -> None:
    of = machine()

    def watts() -> float:
        of.board.clock.sleep(0.2)
        began_j, began_s = of.energy_j(), of.board.clock.now()
        serve(of, 3.0)
        return (of.energy_j() - began_j) / (of.board.clock.now() - began_s)

    everything = watts()
    write(of, "/sys/devices/system/cpu/cpu4/online", "0")
    write(of, "/sys/devices/system/cpu/cpu5/online", "0")
    fewer = watts()
    write(of, "cpu/policy0/scaling_max_freq", "729600")
    assert watts() < fewer < everything


def test_unlocked_memory_stays_under_the_cap_in_the_model_too() -> None:
    of = machine()
    fast = statistics.fmean(serve(of, 3.0))
    write(of, "/sys/kernel/nvpmodel_clk_cap/emc", "665600000")
    assert statistics.fmean(serve(of, 3.0)) > 1.2 * fast
    assert of.board.mem_under_load_mhz == 665.6


def test_what_is_not_emulated_is_said() -> None:
    with pytest.raises(InvalidInputError, match="did you mean tx2"):
        machine("tx3")
    with pytest.raises(InvalidInputError, match=r"kernel 4\.9, not 5\.15"):
        machine("tx2", "5.15")
    with pytest.raises(InvalidInputError, match="no power mode 'MAXM'; known: MAXN"):
        machine("tx2", options=Options(mode="MAXM"))
    with pytest.raises(InvalidInputError, match="no batch size 3"):
        machine().set_batch(3)
