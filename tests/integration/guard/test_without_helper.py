"""As root without a helper: what apply --keep left in the journal is put back from it, or changed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.guard.scenario import why_not
from polythrottle.cli.main import invoke
from polythrottle.cli.wanted import matched
from polythrottle_agent.emulation.mount import MountedBoard, mounted
from polythrottle_agent.guard.opening import Guarded, open_guarded
from polythrottle_agent.guard.samples import Health
from polythrottle_agent.workloads.opening import WorkloadOptions

pytestmark = [
    pytest.mark.skipif(why_not() is not None, reason=f"NO FUSE: {why_not()}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: only root writes clocks without a helper"),
]


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MountedBoard]:
    with mounted("orin-nano-8gb") as found:
        monkeypatch.setenv("POLYTHROTTLE_SYSROOT", str(found.root))
        monkeypatch.setenv("POLYTHROTTLE_STATE_DIR", str(tmp_path / "state"))
        monkeypatch.setenv("POLYTHROTTLE_HELPER_SOCKET", str(tmp_path / "no.sock"))
        yield found


def gpu_max(board: MountedBoard) -> str:
    return board.path("gpu/max_freq").read_text().strip()


def opened(board: MountedBoard) -> Guarded:
    return open_guarded("auto", None, WorkloadOptions(), root=board.root)


def keep(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text('{"gpu_freq_mhz": 408}')
    assert invoke(["apply", str(file), "--keep", "--latency-slo", "mean<10s"]) == 0


def test_what_is_kept_is_found_and_put_back(board: MountedBoard, tmp_path: Path) -> None:
    before = gpu_max(board)
    assert opened(board).kept is None
    keep(tmp_path)
    assert gpu_max(board) == "408000000"
    guarded = opened(board)
    assert guarded.kept is not None
    assert guarded.kept.settings["gpu_freq_mhz"] == 408.0
    switch = guarded.kept.switch()
    switch.put(None, "the SLO is missed")
    assert gpu_max(board) == before
    assert opened(board).kept is None
    switch.put(None, "again")
    assert gpu_max(board) == before


def test_another_configuration_is_kept_in_its_place(board: MountedBoard, tmp_path: Path) -> None:
    before = gpu_max(board)
    keep(tmp_path)
    guarded = opened(board)
    assert guarded.kept is not None
    switch = guarded.kept.switch()
    safer = matched({"gpu_freq_mhz": 510.0}, guarded.controls, None)
    switch.put(safer, "safer")
    assert gpu_max(board) == "510000000"
    assert opened(board).kept is not None
    assert invoke(["restore"]) == 0
    assert gpu_max(board) == before


def test_heat_of_the_board_is_seen(board: MountedBoard) -> None:
    health = opened(board).health
    health.start()
    board.machine.heat(70.0, ambient_c=70.0)
    seen: list[Health] = []
    for _ in range(200):
        seen.append(health.look())
        if isinstance(seen[-1].temperature_c, float) and seen[-1].temperature_c > 65.0:
            break
        board.machine.board.clock.sleep(0.05)
    health.stop()
    assert isinstance(seen[-1].temperature_c, float)
    assert seen[-1].temperature_c > 65.0
    assert seen[-1].throttling == ()
