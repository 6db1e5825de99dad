from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from polythrottle.clock import RealClock
from polythrottle.configuration import Level
from polythrottle_agent import throttle
from polythrottle_agent.ports import ControlError, Seen
from polythrottle_agent.sysfs import Sysfs
from polythrottle_agent.throttle import ThrottleWitness, Together


def put(root: Path, path: str, text: object) -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")
    return file


class Clocked:
    knob = "gpu_freq_mhz"
    levels: tuple[Level, ...] = (306.0, 918.0)

    def __init__(self) -> None:
        self.limit: Level = 918.0
        self.runs: Level = 900.0
        self.broken = False

    def save(self) -> Mapping[str, str]:
        return {}

    def apply(self, level: Level) -> None:
        self.limit = level

    def restore(self, saved: Mapping[str, str]) -> None: ...

    def accepted(self) -> Level:
        return self.limit

    def observed(self) -> Level:
        if self.broken:
            raise ControlError("not now")
        return self.runs


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "PERIOD_S", 0.01)


@pytest.fixture
def board(tmp_path: Path) -> Path:
    put(tmp_path, "sys/class/hwmon/hwmon3/name", "soctherm_oc")
    put(tmp_path, "sys/class/hwmon/hwmon3/oc1_event_cnt", 5)
    put(tmp_path, "sys/class/hwmon/hwmon3/oc3_event_cnt", 27000)
    put(tmp_path, "sys/class/hwmon/hwmon3/oc3_throt_en", 1)
    put(tmp_path, "sys/class/hwmon/hwmon0/name", "ina3221")
    put(tmp_path, "sys/class/hwmon/hwmon0/oc1_event_cnt", 9)
    zone = "sys/class/thermal/thermal_zone0"
    put(tmp_path, f"{zone}/type", "gpu-thermal")
    put(tmp_path, f"{zone}/temp", 50000)
    put(tmp_path, f"{zone}/trip_point_0_type", "active")
    put(tmp_path, f"{zone}/trip_point_0_temp", 35000)
    put(tmp_path, f"{zone}/trip_point_1_type", "passive")
    put(tmp_path, f"{zone}/trip_point_1_temp", 99500)
    put(tmp_path, "sys/class/thermal/cooling_device0/type", "devfreq-17000000.gpu")
    put(tmp_path, "sys/class/thermal/cooling_device0/cur_state", 0)
    put(tmp_path, "sys/class/thermal/cooling_device1/type", "pwm-fan")
    put(tmp_path, "sys/class/thermal/cooling_device1/cur_state", 3)
    return tmp_path


def watch(root: Path, control: Clocked, during: object = None) -> Seen:
    witness = ThrottleWitness(Sysfs(root), {"gpu_freq_mhz": control}, RealClock())
    witness.begin()
    time.sleep(0.05)
    if callable(during):
        during()
    time.sleep(0.08)
    return witness.end()


def test_a_cool_board_leaves_no_note_and_its_clock_is_the_median(board: Path) -> None:
    control = Clocked()
    seen = watch(board, control, lambda: setattr(control, "runs", 918.0))
    assert seen.notes == ()
    assert seen.observed["gpu_freq_mhz"] in (900.0, 909.0, 918.0)


def test_over_current_events_are_counted_from_the_window_s_start(board: Path) -> None:
    seen = watch(board, Clocked(), lambda: put(board, "sys/class/hwmon/hwmon3/oc3_event_cnt", 27042))
    assert seen.notes == ("throttled: 42 instantaneous over-current events",)


def test_a_zone_at_its_passive_trip_is_hot_and_a_fan_s_trip_is_not(board: Path) -> None:
    seen = watch(board, Clocked(), lambda: put(board, "sys/class/thermal/thermal_zone0/temp", 99500))
    assert seen.notes == ("throttled: hot: gpu-thermal at or above 99.5 °C",)


def test_a_zone_that_is_powered_off_is_no_temperature(board: Path) -> None:
    (board / "sys/class/thermal/thermal_zone0/temp").unlink()
    assert watch(board, Clocked()).notes == ()


def test_cooling_that_slows_a_clock_is_noted_and_a_fan_is_not(board: Path) -> None:
    seen = watch(board, Clocked(), lambda: put(board, "sys/class/thermal/cooling_device0/cur_state", 2))
    assert seen.notes == ("throttled: cooling at work: devfreq-17000000.gpu",)


def test_a_limit_that_falls_in_the_window_is_noted(board: Path) -> None:
    control = Clocked()
    seen = watch(board, control, lambda: control.apply(714.0))
    assert seen.notes == ("throttled: the GPU limit fell from 918 to 714 MHz",)


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    control = Clocked()
    control.broken = True
    seen = watch(tmp_path, control)
    assert seen == Seen({})


def test_the_first_of_several_witnesses_is_believed() -> None:
    class Fixed:
        def __init__(self, mhz: float, note: str) -> None:
            self.seen = Seen({"gpu_freq_mhz": mhz}, (note,))
            self.opened = False

        def begin(self) -> None:
            self.opened = True

        def end(self) -> Seen:
            return self.seen

    one, two = Fixed(1.0, "a"), Fixed(2.0, "b")
    both = Together((one, two))
    both.begin()
    assert one.opened
    assert two.opened
    assert both.end() == Seen({"gpu_freq_mhz": 1.0}, ("a", "b"))
