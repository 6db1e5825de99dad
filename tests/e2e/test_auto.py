"""`tune --device auto` over a mounted board: discovery, real controls and meter, journal, and back again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from polythrottle_agent import hardware
from polythrottle_agent.discovery import discover
from polythrottle_agent.emulation.machine import Options
from polythrottle_agent.emulation.mount import MountedBoard, mounted
from tests.e2e.conftest import Command
from tests.fakes.scaled_clock import ScaledClock

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        not Path("/dev/fuse").exists() or shutil.which("fusermount3") is None,
        reason="NO FUSE: /dev/fuse or fusermount3 is missing",
    ),
]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ScaledClock:
    clock = ScaledClock(10.0)
    monkeypatch.setattr(hardware, "RealClock", lambda: clock)
    return clock


@pytest.fixture(params=["orin-nano-8gb", "tx2"])
def board(
    request: pytest.FixtureRequest, clock: ScaledClock, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MountedBoard]:
    with mounted(request.param, workload="efficientnet-b4", clock=clock) as found:
        monkeypatch.setenv("POLYTHROTTLE_SYSROOT", str(found.root))
        yield found


def state(board: MountedBoard) -> dict[str, dict[str, str]]:
    return {name: dict(control.save()) for name, control in discover(board.root).controls.items()}


def test_a_board_is_tuned_and_left_as_it_was_found(
    board: MountedBoard, polythrottle: Command, state_dir: Path
) -> None:
    before = state(board)
    controls = discover(board.root).controls
    gpu, memory = (controls[knob].levels for knob in ("gpu_freq_mhz", "mem_freq_mhz"))
    knobs = f"gpu_freq_mhz={gpu[-3]:g}/{gpu[-1]:g},mem_freq_mhz={memory[-3]:g}/{memory[-2]:g}/unlocked"
    ran = polythrottle(
        *("tune", "--latency-slo", "p95<1s", "--strategy", "random", "--max-trials", "2"),
        *("--knobs", knobs, "--fix", "batch_size=16", "--json"),
    )
    assert ran.code == 0, ran.err
    result = ran.json
    assert result["provenance"] == "emulated"
    assert result["chosen"]["energy_j"] > 0
    assert result["chosen"]["energy_error_j"] > 0
    assert state(board) == before
    assert not list(state_dir.glob("device/originals-*.json"))
    assert (state_dir / "device/audit.jsonl").read_text().count('"event": "apply"') >= 6


def test_a_dry_run_writes_nothing(
    clock: ScaledClock, polythrottle: Command, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mounted("orin-nano-8gb", clock=clock, options=Options(mode="15W")) as board:
        monkeypatch.setenv("POLYTHROTTLE_SYSROOT", str(board.root))
        ran = polythrottle("tune", "--latency-slo", "p95<1s", "--strategy", "random", "--dry-run", "--json")
        assert ran.code == 0, ran.err
        plan = ran.json
        assert plan["knobs"]["gpu_freq_mhz"][-1] == "612"
        assert any("Power mode 15W" in note for note in plan["notes"])
        assert not state_dir.exists()


def test_a_board_without_a_meter_is_refused_with_a_way_out(
    clock: ScaledClock, polythrottle: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with mounted("orin-nano-8gb", clock=clock) as board:
        monkeypatch.setenv("POLYTHROTTLE_SYSROOT", str(board.root))
        sensor = next(board.root.glob("sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon*/in1_label"))
        board.inject(f"/{sensor.relative_to(board.root)}", "ENOENT")
        ran = polythrottle("tune", "--latency-slo", "p95<1s", "--strategy", "random", "--dry-run")
        assert ran.code == 3
        assert "Name one with --meter file:PATH" in ran.err
        (tmp_path / "power").write_text("7.5 W\n")
        ran = polythrottle(
            *("tune", "--latency-slo", "p95<1s", "--strategy", "random", "--dry-run"),
            *("--meter", f"file:{tmp_path / 'power'}"),
        )
        assert ran.code == 0, ran.err
