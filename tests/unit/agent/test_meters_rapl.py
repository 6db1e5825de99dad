from __future__ import annotations

import time
from pathlib import Path

import pytest

from polythrottle.clock import RealClock
from polythrottle.measurement import Provenance, Scope
from polythrottle_agent.meters.rapl import find_zones, rapl_meter
from polythrottle_agent.ports import ControlError, EnergyWindow
from polythrottle_agent.sysfs import Sysfs


def zone(root: Path, name: str, title: str, energy_uj: int = 0, range_uj: int = 262_143_328_850) -> Path:
    directory = root / "sys/class/powercap" / name
    directory.mkdir(parents=True)
    for file, value in (("name", title), ("energy_uj", energy_uj), ("max_energy_range_uj", range_uj)):
        (directory / file).write_text(f"{value}\n")
    return directory


@pytest.fixture
def host(tmp_path: Path) -> Path:
    (tmp_path / "sys/class/powercap/intel-rapl").mkdir(parents=True)
    zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    zone(tmp_path, "intel-rapl:0:0", "core")
    zone(tmp_path, "intel-rapl:0:1", "uncore")
    zone(tmp_path, "intel-rapl:0:2", "dram", 500_000)
    zone(tmp_path, "intel-rapl:1", "package-1", 2_000_000)
    zone(tmp_path, "intel-rapl:1:2", "dram", 600_000)
    zone(tmp_path, "intel-rapl:2", "psys")
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 1_000_001)
    return tmp_path


def names(root: Path) -> list[str]:
    return [path.name for _, path in find_zones(Sysfs(root))]


def test_packages_and_dram_count_once_and_what_they_contain_does_not(host: Path) -> None:
    assert names(host) == ["intel-rapl:0", "intel-rapl:1", "intel-rapl:0:2", "intel-rapl:1:2"]


def test_an_mmio_zone_stands_in_where_its_twin_is_missing(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl-mmio:0", "package-0")
    assert names(tmp_path) == ["intel-rapl-mmio:0"]


def test_energy_is_the_sum_of_the_zones(host: Path) -> None:
    meter = rapl_meter(Sysfs(host), RealClock(), Provenance.MEASURED)
    assert meter.scope is Scope.CPU
    meter.begin()
    time.sleep(0.02)
    (host / "sys/class/powercap/intel-rapl:0/energy_uj").write_text("4000000\n")
    (host / "sys/class/powercap/intel-rapl:1:2/energy_uj").write_text("700000\n")
    (host / "sys/class/powercap/intel-rapl:0:0/energy_uj").write_text("9900000\n")
    (host / "sys/class/powercap/intel-rapl-mmio:0/energy_uj").write_text("4000001\n")
    read = meter.end()
    assert isinstance(read, EnergyWindow)
    assert read.energy_j == pytest.approx(3.0 + 0.1)
    assert read.standard_error_j is not None
    assert 0 < read.standard_error_j < read.energy_j


def test_a_wrap_adds_the_zone_s_own_range(tmp_path: Path) -> None:
    directory = zone(tmp_path, "intel-rapl:0", "package-0", 9_000_000, range_uj=10_000_000)
    meter = rapl_meter(Sysfs(tmp_path), RealClock(), Provenance.MEASURED)
    meter.begin()
    time.sleep(0.02)
    (directory / "energy_uj").write_text("500000\n")
    read = meter.end()
    assert isinstance(read, EnergyWindow)
    assert read.energy_j == pytest.approx(1.5)


def test_a_machine_without_zones_says_so(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="no CPU package with an energy counter"):
        rapl_meter(Sysfs(tmp_path), RealClock(), Provenance.MEASURED)


def test_a_counter_that_is_closed_says_so(tmp_path: Path) -> None:
    directory = zone(tmp_path, "intel-rapl:0", "package-0")
    (directory / "energy_uj").unlink()
    with pytest.raises(ControlError, match="energy_uj: it is not there"):
        rapl_meter(Sysfs(tmp_path), RealClock(), Provenance.MEASURED)
