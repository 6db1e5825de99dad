from __future__ import annotations

from pathlib import Path

import pytest

from polythrottle.clock import RealClock
from polythrottle.measurement import Provenance, Scope
from polythrottle.profiles import load_profile
from polythrottle_agent.meters.ina import averaging_s, find_chips, ina_meter, total_rails
from polythrottle_agent.ports import ControlError
from polythrottle_agent.sysfs import Sysfs


def put(root: Path, directory: str, files: dict[str, object]) -> None:
    (root / directory).mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (root / directory / name).write_text(f"{value}\n")


def hwmon(
    root: Path, chip: str, number: int, rails: dict[str, tuple[int, int]], driver: str = "ina3221"
) -> str:
    directory = f"sys/bus/i2c/drivers/{driver}/{chip}/hwmon/hwmon{number}"
    files: dict[str, object] = {"name": driver, "update_interval": 430}
    for channel, (label, (millivolts, milliamps)) in enumerate(rails.items(), start=1):
        files |= {f"in{channel}_label": label, f"in{channel}_input": millivolts}
        files[f"curr{channel}_input"] = milliamps
    put(root, directory, files)
    return directory


def read_w(root: Path, board: str) -> float:
    return sum(rail.read().watts for rail in total_rails(Sysfs(root), load_profile(board)))


def test_the_total_is_found_by_address_and_label_whatever_its_channel_and_number(tmp_path: Path) -> None:
    rails = {"VDD_SOC": (5000, 200), "VDD_CPU_GPU_CV": (5000, 900), "VDD_IN": (5000, 1500)}
    hwmon(tmp_path, "1-0040", 7, rails)
    assert read_w(tmp_path, "orin-nano-8gb") == pytest.approx(7.5)


def test_a_chip_at_another_address_with_the_same_label_is_not_taken(tmp_path: Path) -> None:
    hwmon(tmp_path, "1-0041", 0, {"VDD_IN": (5000, 9999)})
    with pytest.raises(ControlError, match="no sensor shows rail VDD_IN at I²C address 0x40"):
        total_rails(Sysfs(tmp_path), load_profile("orin-nano-8gb"))


def test_two_rails_that_both_fit_are_refused(tmp_path: Path) -> None:
    hwmon(tmp_path, "0-0040", 0, {"VDD_IN": (5000, 1)})
    hwmon(tmp_path, "3-0040", 1, {"VDD_IN": (5000, 2)})
    with pytest.raises(ControlError, match="2 sensors show rail VDD_IN"):
        total_rails(Sysfs(tmp_path), load_profile("tx2-nx"))  # its profile does not know the bus


def test_a_board_without_one_total_is_the_sum_of_its_rails(tmp_path: Path) -> None:
    hwmon(
        tmp_path,
        "1-0040",
        0,
        {"VDD_GPU_SOC": (20000, 400), "VDD_CPU_CV": (20000, 200), "VIN_SYS_5V0": (5000, 1000)},
    )
    hwmon(tmp_path, "1-0041", 1, {"": (0, 0), "VDDQ_VDD2_1V8AO": (5000, 300)})
    assert read_w(tmp_path, "agx-orin-64gb") == pytest.approx(8.0 + 4.0 + 5.0 + 1.5)


def test_a_rail_of_the_sum_that_is_missing_makes_no_total(tmp_path: Path) -> None:
    hwmon(tmp_path, "1-0040", 0, {"VDD_GPU_SOC": (20000, 400), "VDD_CPU_CV": (20000, 200)})
    with pytest.raises(ControlError, match="VIN_SYS_5V0"):
        total_rails(Sysfs(tmp_path), load_profile("agx-orin-64gb"))


def test_the_old_iio_driver_gives_milliwatts(tmp_path: Path) -> None:
    directory = "sys/bus/i2c/drivers/ina3221x/0-0041/iio:device1"
    put(tmp_path, directory, {"rail_name_0": "VDD_IN", "in_power0_input": 4321, "rail_name_1": "VDD_SYS_CPU"})
    assert read_w(tmp_path, "tx2") == pytest.approx(4.321)
    sysfs = Sysfs(tmp_path)
    (chip,) = find_chips(sysfs)
    # 64 averages of two conversions of 1.1 ms, three channels.
    assert averaging_s(sysfs, chip, load_profile("tx2")) == pytest.approx(0.4224)


def test_thor_s_input_is_the_ina238_which_has_no_label_and_may_read_below_zero(tmp_path: Path) -> None:
    hwmon(tmp_path, "2-0040", 0, {"VDD_GPU": (12000, 100)})
    put(tmp_path, "sys/bus/i2c/drivers/ina238/2-0044/hwmon/hwmon3", {"power1_input": -392000})
    assert read_w(tmp_path, "agx-thor") == pytest.approx(-0.392)


def test_the_averaging_time_is_the_driver_s_own_word_at_that_moment(tmp_path: Path) -> None:
    directory = hwmon(tmp_path, "1-0040", 0, {"VDD_IN": (5000, 1500)})
    sysfs, profile = Sysfs(tmp_path), load_profile("orin-nano-8gb")
    (chip,) = find_chips(sysfs)
    assert averaging_s(sysfs, chip, profile) == 0.43
    (tmp_path / directory / "update_interval").write_text("54\n")
    assert averaging_s(sysfs, chip, profile) == 0.054
    (tmp_path / directory / "update_interval").unlink()
    assert averaging_s(sysfs, chip, profile) == 0.43  # the profile's


def test_a_step_of_the_reading_grows_with_voltage_and_current(tmp_path: Path) -> None:
    hwmon(tmp_path, "1-0040", 0, {"VDD_IN": (5000, 1500)})
    (rail,) = total_rails(Sysfs(tmp_path), load_profile("orin-nano-8gb"))
    # 8 mA at 5 V and 8 mV at 1.5 A.
    assert rail.read().resolution_w == pytest.approx((0.04**2 + 0.012**2) ** 0.5)


@pytest.mark.parametrize("text", ["", "12 W", "<unknown>"])
def test_a_reading_that_is_no_number_is_an_error(tmp_path: Path, text: str) -> None:
    directory = hwmon(tmp_path, "1-0040", 0, {"VDD_IN": (5000, 1500)})
    (rail,) = total_rails(Sysfs(tmp_path), load_profile("orin-nano-8gb"))
    (tmp_path / directory / "curr1_input").write_text(text)
    with pytest.raises(ControlError, match="no number"):
        rail.read()


def test_the_meter_says_which_rails_it_reads(tmp_path: Path) -> None:
    hwmon(tmp_path, "1-0040", 0, {"VDD_IN": (5000, 1500)})
    meter = ina_meter(Sysfs(tmp_path), load_profile("orin-nano-8gb"), RealClock(), Provenance.MEASURED)
    assert meter.name == "INA3221 VDD_IN (1-0040)"
    assert meter.scope is Scope.MODULE
