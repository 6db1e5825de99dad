from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from polythrottle.clock import VirtualClock
from polythrottle.configuration import Level
from polythrottle.errors import DeviceBusyError, InvalidInputError, StateError
from polythrottle_agent.audit import AuditLog
from polythrottle_agent.ports import ControlError
from polythrottle_agent.privileged.files import Files
from polythrottle_agent.privileged.journal import Journal, Owner
from polythrottle_agent.privileged.keeper import Keeper, restore_order
from polythrottle_agent.privileged.on_disk import OnDisk
from polythrottle_agent.privileged.patient import PatientControl
from tests.fakes.file_board import FileBoard, FileControl

OWNER = Owner("a run", 0, 1)
BOOT = "boot"


def journal_in(state: Path, boot: str = BOOT, files: Files | None = None) -> Journal:
    return Journal(state, boot, "file:board", files)


def keeper_over(board: FileBoard, state: Path, files: Files | None = None, *, dies: bool = False) -> Keeper:
    """`dies`: it holds no lock, as a process that was killed."""
    on_disk = OnDisk(journal_in(state, files=files), AuditLog(state, files), OWNER, exclusive=not dies)
    return Keeper(board.controls(), VirtualClock(), on_disk)


@pytest.fixture
def board(tmp_path: Path) -> FileBoard:
    return FileBoard.as_found(tmp_path / "board")


def test_a_run_that_died_is_put_back_by_the_next_one(board: FileBoard, tmp_path: Path) -> None:
    dead = keeper_over(board, tmp_path, dies=True)
    dead.take()
    dead.apply({"gpu_freq_mhz": 408.0, "mem_freq_mhz": 204.0})
    keeper = keeper_over(board, tmp_path)
    keeper.take()
    assert board.is_as_found
    assert keeper.originals["gpu_freq_mhz"] == {"level": "612"}


def test_originals_survive_a_recovery_that_fails(board: FileBoard, tmp_path: Path) -> None:
    dead = keeper_over(board, tmp_path, dies=True)
    dead.take()
    dead.apply({"gpu_freq_mhz": 408.0})
    board.fail_writes("gpu_freq_mhz", 100)
    keeper = keeper_over(board, tmp_path)
    keeper.take()
    assert keeper.originals["gpu_freq_mhz"] == {"level": "612"}
    board.clear_faults()
    assert keeper.release() == ()
    assert board.is_as_found


def test_two_cannot_write_the_same_device(board: FileBoard, tmp_path: Path) -> None:
    first = keeper_over(board, tmp_path)
    first.take()
    with pytest.raises(DeviceBusyError, match=f"in use by process {os.getpid()}"):
        keeper_over(board, tmp_path).take()
    first.release()
    keeper_over(board, tmp_path).take()


def test_who_is_refused_holds_no_lock(board: FileBoard, tmp_path: Path) -> None:
    kept = keeper_over(board, tmp_path, dies=True)
    kept.take()
    kept.safekeeping.keep(None, "the SLO is met")
    refused = keeper_over(board, tmp_path)
    with pytest.raises(DeviceBusyError, match="keeps a configuration"):
        refused.take()
    kept.release()
    keeper_over(board, tmp_path).take()


def test_nothing_is_written_where_the_journal_cannot_be(board: FileBoard, tmp_path: Path) -> None:
    def full(step: str) -> None:
        if step == "before write originals":
            raise OSError(28, "No space left on device")

    keeper = keeper_over(board, tmp_path, Files(full))
    with pytest.raises(StateError, match="No space left"):
        keeper.take()
    with pytest.raises(RuntimeError):
        keeper.apply({"gpu_freq_mhz": 408.0})
    assert board.is_as_found


def test_nothing_is_written_that_cannot_be_logged_but_everything_is_put_back(
    board: FileBoard, tmp_path: Path
) -> None:
    is_full = False

    def full(step: str) -> None:
        if is_full and step == "before append audit":
            raise OSError(28, "No space left on device")

    keeper = keeper_over(board, tmp_path, Files(full))
    keeper.take()
    keeper.apply({"gpu_freq_mhz": 408.0})
    is_full = True
    with pytest.raises(ControlError, match="audit log"):
        keeper.apply({"gpu_freq_mhz": 510.0})
    assert board.state()["gpu_freq_mhz"] == "408"
    assert keeper.release() == ()
    assert board.is_as_found


def test_a_kept_configuration_is_not_touched_by_the_next_run(board: FileBoard, tmp_path: Path) -> None:
    keeper = keeper_over(board, tmp_path, dies=True)
    keeper.take()
    keeper.apply({"gpu_freq_mhz": 408.0})
    assert keeper.safekeeping.keep(None, "the SLO is met")
    with pytest.raises(DeviceBusyError, match=r"keeps a configuration .*polythrottle restore"):
        keeper_over(board, tmp_path).take()
    assert board.state()["gpu_freq_mhz"] == "408"


def test_a_kept_configuration_that_was_put_back_in_part_keeps_nobody_out(
    board: FileBoard, tmp_path: Path
) -> None:
    keeper = keeper_over(board, tmp_path, dies=True)
    keeper.take()
    keeper.apply({"gpu_freq_mhz": 408.0, "mem_freq_mhz": 204.0})
    keeper.safekeeping.keep(None, "the SLO is met")
    board.fail_writes("gpu_freq_mhz", 100)
    keeper.release()
    board.clear_faults()
    following = keeper_over(board, tmp_path)
    following.take()
    assert following.originals["gpu_freq_mhz"] == {"level": "612"}
    assert board.is_as_found


@pytest.mark.parametrize("level", [307.0, "unlocked", "nonsense"])
def test_a_level_off_the_table_is_refused_before_anything_is_written(
    board: FileBoard, tmp_path: Path, level: Level
) -> None:
    keeper = keeper_over(board, tmp_path)
    keeper.take()
    with pytest.raises(InvalidInputError, match="gpu_freq_mhz has no level"):
        keeper.apply({"mem_freq_mhz": 204.0, "gpu_freq_mhz": level})
    assert board.is_as_found


def test_memory_comes_before_the_gpu_and_cores_before_all() -> None:
    order = restore_order(
        ["power_limit_w", "cpu_freq_mhz", "other", "gpu_freq_mhz", "mem_freq_mhz", "cpu_cores"]
    )
    assert order == ["cpu_cores", "mem_freq_mhz", "gpu_freq_mhz", "cpu_freq_mhz", "power_limit_w", "other"]


class HangingControl(FileControl):
    """A driver that hangs until it is let go."""

    def __init__(self, directory: Path, knob: str) -> None:
        super().__init__(directory, knob)
        self.let_go = threading.Event()
        self.hangs = False

    def restore(self, saved: Mapping[str, str]) -> None:
        if self.hangs:
            self.let_go.wait(30)
        super().restore(saved)


def test_a_driver_that_hangs_keeps_no_other_from_its_original(board: FileBoard, tmp_path: Path) -> None:
    hanging = HangingControl(board.directory, "mem_freq_mhz")
    controls = {**board.controls(), "mem_freq_mhz": hanging}
    on_disk = OnDisk(journal_in(tmp_path), AuditLog(tmp_path), OWNER)
    patient = {name: PatientControl(control, patience_s=0.1) for name, control in controls.items()}
    keeper = Keeper(patient, VirtualClock(), on_disk)
    keeper.take()
    keeper.apply({"mem_freq_mhz": 204.0, "gpu_freq_mhz": 408.0})
    hanging.hangs = True
    problems = keeper.release()
    assert [problem.knob for problem in problems] == ["mem_freq_mhz"]
    assert "hangs" in problems[0].reason
    assert board.state()["gpu_freq_mhz"] == "612"
    hanging.hangs = False
    hanging.let_go.set()
    entry = on_disk.journal.read()
    assert entry is not None
    for thread in threading.enumerate():
        if thread.name == "control mem_freq_mhz":
            thread.join()
    assert keeper.put_back(entry.originals, "again") == ()
    assert board.is_as_found


class PushyControl(FileControl):
    """Restoring it moves another node, as a power limit that pulls a clock along."""

    pushes = 1

    def restore(self, saved: Mapping[str, str]) -> None:
        super().restore(saved)
        if self.pushes > 0:
            self.pushes -= 1
            (self._directory / "mem_freq_mhz").write_text("2133", encoding="ascii")


@pytest.mark.parametrize("pushes", [1, 100])
def test_a_restore_that_moves_another_control_is_noticed(
    board: FileBoard, tmp_path: Path, pushes: int
) -> None:
    pushy = PushyControl(board.directory, "power_limit_w")
    pushy.pushes = pushes
    on_disk = OnDisk(journal_in(tmp_path), AuditLog(tmp_path), OWNER)
    keeper = Keeper({**board.controls(), "power_limit_w": pushy}, VirtualClock(), on_disk)
    keeper.take()
    keeper.apply({"power_limit_w": 10.0})
    assert keeper.release() == ()
    assert board.is_as_found
