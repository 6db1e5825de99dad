"""Power sensors, temperatures and throttling over the mounted files."""

from __future__ import annotations

import errno
import itertools
import time

import pytest

from polythrottle_agent.emulation.machine import Options
from polythrottle_agent.emulation.mount import MountedBoard, mounted
from polythrottle_agent.emulation.surroundings import Environment

from .conftest import errno_of, eventually, read, write


def serve_for(board: MountedBoard, duration_s: float) -> list[float]:
    """Serve back to back for a time; the latencies of the batches."""
    latencies, ends_s = [], time.monotonic() + duration_s
    while time.monotonic() < ends_s:
        latencies.append(board.machine.begin_batch())
        time.sleep(latencies[-1])
    return latencies


def watts(board: MountedBoard, rail: int = 1) -> float:
    (chip,) = (board.root / "sys/bus/i2c/drivers/ina3221").iterdir()
    (hwmon,) = (chip / "hwmon").iterdir()
    return int(read(hwmon / f"in{rail}_input")) * int(read(hwmon / f"curr{rail}_input")) / 1e6


def test_a_reading_is_rounded_and_stays_until_the_next_cycle(orin: MountedBoard) -> None:
    (hwmon,) = (orin.root / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon").iterdir()
    assert read(hwmon / "in1_label") == "VDD_IN"
    assert read(hwmon / "update_interval") == "430"
    time.sleep(0.5)
    assert int(read(hwmon / "in1_input")) % 8 == 0
    assert int(read(hwmon / "curr1_input")) % 8 == 0  # 40 µV over 5 mΩ
    assert int(read(hwmon / "in4_input")) % 40 == 0
    seen = []
    ends_s = time.monotonic() + 1.2
    while time.monotonic() < ends_s:
        orin.machine.begin_batch()
        seen.append(read(hwmon / "curr1_input"))
        time.sleep(0.01)
    changes = sum(a != b for a, b in itertools.pairwise(seen))
    assert 1 <= changes <= 3, seen


def test_a_lower_clock_draws_less_and_takes_longer(orin: MountedBoard) -> None:
    results = {}
    for level in ("918000000", "306000000"):
        write(orin.path("gpu/max_freq"), level)
        write(orin.path("gpu/min_freq"), level)
        time.sleep(0.05)
        latencies = serve_for(orin, 2.5)
        results[level] = (sum(latencies) / len(latencies), watts(orin), watts(orin, 2))
    fast, slow = results["918000000"], results["306000000"]
    assert slow[0] > 1.5 * fast[0]
    assert slow[1] < 0.8 * fast[1]
    assert slow[2] < slow[1]  # a rail behind the input draws less than the input


def test_power_over_a_window_agrees_with_the_boards_own_counter(orin: MountedBoard) -> None:
    write(orin.path("gpu/min_freq"), "714000000")
    serve_for(orin, 0.6)
    began_s, began_j = time.monotonic(), orin.machine.energy_j()
    readings: list[float] = []
    while time.monotonic() - began_s < 2.6:
        serve_for(orin, 0.1)
        readings.append(watts(orin))
    joules = orin.machine.energy_j() - began_j
    mean_w = joules / (time.monotonic() - began_s)
    assert sum(readings) / len(readings) == pytest.approx(mean_w, rel=0.05)


def test_samples_and_interval_take_the_nearest_the_chip_knows(orin: MountedBoard) -> None:
    (hwmon,) = (orin.root / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon").iterdir()
    write(hwmon / "samples", "100")
    assert read(hwmon / "samples") == "128"
    assert read(hwmon / "update_interval") == "108"
    write(hwmon / "update_interval", "250")
    assert read(hwmon / "update_interval") == "255"  # 3 × 128 × 2 × 332 µs
    assert errno_of(lambda: write(hwmon / "samples", "many")) == errno.EINVAL
    orin.reboot()
    (hwmon,) = (orin.root / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon").iterdir()
    assert read(hwmon / "update_interval") == "430"


def test_a_channel_that_is_off_has_no_data(agx: MountedBoard) -> None:
    (hwmon,) = (agx.root / "sys/bus/i2c/drivers/ina3221/1-0041/hwmon").iterdir()
    assert read(hwmon / "in2_label") == "VDDQ_VDD2_1V8AO"
    assert not (hwmon / "in1_label").exists()
    assert errno_of(lambda: read(hwmon / "curr1_input")) == errno.ENODATA
    int(read(hwmon / "curr2_input"))
    write(hwmon / "in2_enable", "0")
    assert errno_of(lambda: read(hwmon / "curr2_input")) == errno.ENODATA


def test_without_an_input_rail_the_rails_add_up_to_the_board(agx: MountedBoard) -> None:
    time.sleep(1.0)
    total = 0.0
    for chip in (agx.root / "sys/bus/i2c/drivers/ina3221").iterdir():
        (hwmon,) = (chip / "hwmon").iterdir()
        for label in hwmon.glob("in*_label"):
            index = label.name[2:-6]
            total += int(read(hwmon / f"in{index}_input")) * int(read(hwmon / f"curr{index}_input")) / 1e6
    began = agx.machine.energy_j()
    time.sleep(0.3)
    drawn = (agx.machine.energy_j() - began) / 0.3
    assert total == pytest.approx(drawn, rel=0.15)  # four rails, each rounded to 20 mA


def test_thors_input_is_an_ina238_that_can_read_low(thor: MountedBoard) -> None:
    (hwmon,) = (thor.root / "sys/bus/i2c/drivers/ina238/2-0044/hwmon").iterdir()
    time.sleep(0.5)
    assert read(hwmon / "name") == "ina238"
    began = thor.machine.energy_j()
    time.sleep(0.3)
    drawn_w = (thor.machine.energy_j() - began) / 0.3
    assert int(read(hwmon / "power1_input")) / 1e6 == pytest.approx(drawn_w - 0.4, abs=0.3)


def test_jetpack_4_has_the_old_driver(tx2: MountedBoard) -> None:
    time.sleep(0.6)
    device = tx2.root / "sys/bus/i2c/drivers/ina3221x/0-0041/iio:device1"
    assert read(device / "rail_name_0") == "VDD_IN"
    milliwatts, milliamps, millivolts = (
        int(read(device / f"in_{what}0_input")) for what in ("power", "current", "voltage")
    )
    assert milliwatts == milliamps * millivolts // 1000 > 0
    assert not (tx2.root / "sys/class/hwmon").exists()


def test_heat_lowers_what_max_freq_shows_and_comes_back(orin: MountedBoard) -> None:
    high = orin.path("gpu/max_freq")
    zones = {read(z / "type"): z for z in (orin.root / "sys/class/thermal").glob("thermal_zone*")}
    assert 20000 < int(read(zones["gpu-thermal"] / "temp")) < 40000
    assert errno_of(lambda: read(zones["cv0-thermal"] / "temp")) == errno.EAGAIN
    write(high, "1020000000")
    orin.machine.heat(100.0, ambient_c=100.0)
    assert int(read(high)) == 918000000  # below what was written
    cooling = orin.root / "sys/class/thermal/cooling_device0"
    assert read(cooling / "type") == "devfreq-17000000.gpu"
    assert read(cooling / "cur_state") == "1"
    assert eventually(lambda: read(orin.path("cpu/policy0/scaling_max_freq")) == "1344000")
    orin.machine.begin_batch()
    assert int(read(orin.path("gpu/cur_freq"))) <= 918000000
    orin.machine.heat(30.0, ambient_c=25.0)
    assert int(read(high)) == 1020000000
    assert read(cooling / "cur_state") == "0"


def test_throttling_steps_on_while_it_is_too_hot(orin: MountedBoard) -> None:
    orin.machine.heat(105.0, ambient_c=105.0)
    assert eventually(lambda: int(read(orin.path("gpu/max_freq"))) <= 816000000, 2.5)
    assert eventually(lambda: int(read(orin.path("cpu/policy0/scaling_max_freq"))) < 1728000)


def test_on_4_9_max_freq_keeps_what_was_written_but_the_clock_falls(tx2: MountedBoard) -> None:
    write(tx2.path("gpu/max_freq"), "1300500000")
    write(tx2.path("gpu/min_freq"), "1300500000")
    tx2.machine.heat(100.0, ambient_c=100.0)
    assert read(tx2.path("gpu/max_freq")) == "1300500000"
    tx2.machine.begin_batch()
    time.sleep(0.04)
    assert int(read(tx2.path("gpu/cur_freq"))) == 1236750000


def test_over_current_counts_events_and_slows_the_gpu() -> None:
    options = Options(environment=Environment(overcurrent_w=5.5))
    with mounted("orin-nano-8gb", options=options) as orin:
        (oc,) = (orin.root / "sys/devices/platform/soctherm-oc-event/hwmon").iterdir()
        assert read(oc / "name") == "soctherm_oc"
        before = int(read(oc / "oc3_event_cnt"))
        write(orin.path("gpu/min_freq"), "918000000")
        time.sleep(0.05)
        free = orin.machine.begin_batch()
        time.sleep(free)
        latencies = serve_for(orin, 0.5)
        assert int(read(oc / "oc3_event_cnt")) > before + 10
        assert int(read(oc / "oc1_event_cnt")) == 0
        assert read(orin.path("gpu/max_freq")) == "918000000"  # devfreq does not see it
        orin.machine.begin_batch()
        assert int(read(orin.path("gpu/cur_freq"))) < 918000000
        assert sum(latencies[3:]) / len(latencies[3:]) > 1.05 * free


def test_run_to_run_noise_is_there(orin: MountedBoard) -> None:
    latencies = [orin.machine.begin_batch() for _ in range(50)]
    mean = sum(latencies) / 50
    spread = (sum((x - mean) ** 2 for x in latencies) / 49) ** 0.5 / mean
    assert 0.02 < spread < 0.1
