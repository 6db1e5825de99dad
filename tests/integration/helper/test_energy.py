"""Counters that only root may read, through the helper."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from polythrottle.clock import RealClock
from polythrottle.measurement import Provenance, Scope, Unavailable
from polythrottle_agent.ports import EnergyWindow
from polythrottle_agent.privileged.energy import REFRESH_S, helper_meter
from tests.integration.helper.conftest import Helper

RANGE_UJ = 262_143_328_850


def zone(root: Path, name: str, number: int, energy_uj: int) -> Path:
    directory = root / f"sys/class/powercap/intel-rapl:{number}"
    directory.mkdir(parents=True)
    (directory / "name").write_text(f"{name}\n")
    (directory / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    (directory / "energy_uj").write_text(f"{energy_uj}\n")
    return directory / "energy_uj"


@pytest.fixture
def package(helper: Helper) -> Path:
    counter = zone(helper.root, "package-0", 0, RANGE_UJ - 1_000_000)
    helper.start()
    return counter


def test_energy_over_a_window_and_over_a_wrap(helper: Helper, package: Path) -> None:
    with helper.client() as client:
        meter = helper_meter(client, RealClock(), Provenance.MEASURED)
        assert meter is not None
        assert meter.scope is Scope.CPU
        meter.begin()
        time.sleep(2 * REFRESH_S)
        package.write_text("2000000\n")
        time.sleep(2 * REFRESH_S)
        read = meter.end()
    assert isinstance(read, EnergyWindow)
    assert read.energy_j == pytest.approx(3.0)
    assert read.standard_error_j is not None
    assert read.standard_error_j > 0


def test_it_ticks_no_faster_than_it_says(helper: Helper, package: Path) -> None:
    with helper.client() as client:
        seen = []
        until_s = time.monotonic() + 10 * REFRESH_S
        written = 0
        while time.monotonic() < until_s:
            written += 1000
            package.write_text(f"{written}\n")
            seen.append(client.request("counters")["counters"][0]["energy_j"])
    assert len(seen) > 50
    assert len(set(seen)) <= 12


def test_a_counter_that_is_gone_is_unavailable_and_never_zero(helper: Helper, package: Path) -> None:
    with helper.client() as client:
        meter = helper_meter(client, RealClock(), Provenance.MEASURED)
        assert meter is not None
        meter.begin()
        package.unlink()
        time.sleep(2 * REFRESH_S)
        read = meter.end()
    assert isinstance(read, Unavailable)
    assert "energy_uj" in read.reason


def test_a_machine_without_counters_has_no_such_meter(helper: Helper) -> None:
    helper.start()
    with helper.client() as client:
        assert helper_meter(client, RealClock(), Provenance.MEASURED) is None
