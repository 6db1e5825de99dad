from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from polythrottle.clock import RealClock
from polythrottle.errors import InvalidInputError
from polythrottle.measurement import Provenance, Scope, Unavailable
from polythrottle_agent.meters.external import open_external
from polythrottle_agent.meters.power import CounterMeter, PowerMeter
from polythrottle_agent.ports import EnergyWindow


def test_a_file_with_watts_is_polled(tmp_path: Path) -> None:
    file = tmp_path / "power"
    file.write_text("old line\n 12.5 W \n")
    meter = open_external(f"file:{file}", RealClock())
    assert isinstance(meter, PowerMeter)
    assert (meter.scope, meter.provenance) == (Scope.BOARD, Provenance.MEASURED)
    meter.begin()
    time.sleep(0.5)
    read = meter.end()
    assert isinstance(read, EnergyWindow)
    assert read.energy_j == pytest.approx(12.5 * read.window_s)
    assert read.standard_error_j == pytest.approx(0.1 / 12**0.5 * read.window_s)


@pytest.mark.parametrize(
    ("before", "after", "joules"),
    [
        ("100 J", "103.5 J", 3.5),
        ("5000 mJ", "7000 mJ", 2.0),
        ("1 kJ", "2 kJ", 1000.0),
        ("0.1 Wh", "0.2 Wh", 360.0),
    ],
)
def test_a_file_with_joules_is_a_counter(tmp_path: Path, before: str, after: str, joules: float) -> None:
    file = tmp_path / "energy"
    file.write_text(before)
    meter = open_external(f"file:{file}", RealClock())
    assert isinstance(meter, CounterMeter)
    meter.begin()
    time.sleep(0.02)
    file.write_text(after)
    read = meter.end()
    assert isinstance(read, EnergyWindow)
    assert read.energy_j == pytest.approx(joules)


def test_a_command_is_run_without_a_shell(tmp_path: Path) -> None:
    script = tmp_path / "meter.py"
    script.write_text(
        "import sys; print('starting'); print('8000 mW' if sys.argv[1] == '$HOME' else '1 W')\n"
    )
    meter = open_external(f"command:{sys.executable} {script} '$HOME'", RealClock())
    meter.begin()
    time.sleep(1.3)
    read = meter.end()
    assert isinstance(read, EnergyWindow), read
    assert read.energy_j == pytest.approx(8.0 * read.window_s)


def test_a_meter_that_changes_its_unit_is_not_believed(tmp_path: Path) -> None:
    file = tmp_path / "power"
    file.write_text("12 W")
    meter = open_external(f"file:{file}", RealClock())
    file.write_text("12 J")
    meter.begin()
    time.sleep(0.3)
    read = meter.end()
    assert isinstance(read, Unavailable)
    assert "12 W at first and now 12 J" in read.reason


def test_a_file_that_goes_away_is_no_measurement(tmp_path: Path) -> None:
    file = tmp_path / "power"
    file.write_text("12 W")
    meter = open_external(f"file:{file}", RealClock())
    file.unlink()
    meter.begin()
    time.sleep(0.3)
    read = meter.end()
    assert isinstance(read, Unavailable)
    assert "No such file" in read.reason


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fil:x", r"did you mean file\?"),
        ("file:", "write file:PATH|Write file:PATH"),
        ("file:/no/such/file", "No such file"),
        ("command:", "Write file:PATH"),
        ("command:no-such-program", "names no program that is installed"),
        ("command:echo 'a", "cannot be read"),
        ("command:echo 12", "number and its unit"),
        ("command:echo 12 V", "number and its unit"),
        ("command:false", "ended with 1"),
    ],
)
def test_a_meter_that_cannot_be_used_is_refused_in_one_sentence(text: str, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words) as error:
        open_external(text, RealClock())
    assert "\n" not in str(error.value)
