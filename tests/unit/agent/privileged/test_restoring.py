"""Putting back from the journals: one device, several of one machine, and journals that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from polythrottle.clock import VirtualClock
from polythrottle.errors import DeviceBusyError
from polythrottle_agent.audit import AuditLog
from polythrottle_agent.discovery import Discovered
from polythrottle_agent.ports import ControlError
from polythrottle_agent.privileged.files import Files
from polythrottle_agent.privileged.journal import Journal, Owner, kept_entries
from polythrottle_agent.privileged.keeper import Keeper
from polythrottle_agent.privileged.on_disk import OnDisk, writer_lock
from polythrottle_agent.privileged.restoring import Restored, Restoring
from tests.fakes.file_board import AS_FOUND, FileBoard, discover_file_board

OWNER = Owner("a run", 0, 1)
GPUS = ("GPU-1", "GPU-2")
OF_A_GPU = {knob: level for knob, level in AS_FOUND.items() if knob != "cpu_freq_mhz"}


@pytest.fixture(autouse=True)
def boot(tmp_path: Path) -> None:
    set_boot(tmp_path, "this-boot")


def set_boot(root: Path, name: str) -> None:
    file = root / "proc/sys/kernel/random/boot_id"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(name)


@pytest.fixture
def board(tmp_path: Path) -> FileBoard:
    return FileBoard.as_found(tmp_path / "board")


@pytest.fixture
def gpus(tmp_path: Path, board: FileBoard) -> tuple[FileBoard, FileBoard]:  # noqa: ARG001 - of the machine
    first, second = (FileBoard.as_found(tmp_path / gpu) for gpu in GPUS)
    # So that the originals of one are none of the other.
    (second.directory / "gpu_freq_mhz").write_text("510")
    (second.directory / "power_limit_w").write_text("25")
    return first, second


def keeper_of(root: Path, gpu: str | None, *, with_cpu: bool = False) -> Keeper:
    """A process that will be killed: it holds no lock."""
    found = discover_file_board(root, gpu=gpu)
    controls = {k: c for k, c in found.controls.items() if with_cpu or gpu is None or k != "cpu_freq_mhz"}
    journal = Journal(root, "this-boot", found.identity.id)
    return Keeper(controls, VirtualClock(), OnDisk(journal, AuditLog(root), OWNER, exclusive=False))


def died(root: Path, gpu: str | None, *, with_cpu: bool = False, **settings: float) -> Keeper:
    keeper = keeper_of(root, gpu, with_cpu=with_cpu)
    keeper.take()
    keeper.apply(settings)
    return keeper


def restoring(root: Path) -> Restoring:
    return Restoring(root, root, discover_file_board, VirtualClock(), Files())


def problems(done: tuple[Restored, ...]) -> str:
    return " ".join(problem for device in done for problem in device.problems)


def test_what_is_kept_is_put_back_too_and_said_before(board: FileBoard, tmp_path: Path) -> None:
    died(tmp_path, None, gpu_freq_mhz=408.0).safekeeping.keep(None, "the SLO is met")
    (preview,) = restoring(tmp_path).preview()
    changes = [(one.knob, one.now) for one in preview.pending if one.differs]
    assert changes == [("gpu_freq_mhz", {"level": "408"})]
    assert not board.is_as_found
    (done,) = restoring(tmp_path).put_back("test")
    assert set(done.knobs) == set(board.state())
    assert board.is_as_found
    assert restoring(tmp_path).put_back("test") == ()


def test_a_control_that_is_gone_is_reported_and_its_original_stays(board: FileBoard, tmp_path: Path) -> None:
    died(tmp_path, None, gpu_freq_mhz=408.0, mem_freq_mhz=204.0)

    def without_a_gpu(root: Path, **_: object) -> Discovered:
        found = discover_file_board(root)
        controls = {k: c for k, c in found.controls.items() if k != "gpu_freq_mhz"}
        return Discovered(**{**vars(found), "controls": controls})

    done = Restoring(tmp_path, tmp_path, without_a_gpu, VirtualClock(), Files()).put_back("test")
    assert "gpu_freq_mhz was not restored" in problems(done)
    assert board.state()["mem_freq_mhz"] == "unlocked"
    (again,) = restoring(tmp_path).put_back("test")
    assert again.knobs == ("gpu_freq_mhz",)
    assert board.is_as_found


def test_another_boot_puts_nothing_back(board: FileBoard, tmp_path: Path) -> None:
    died(tmp_path, None, gpu_freq_mhz=408.0)
    set_boot(tmp_path, "after-a-reboot")
    assert restoring(tmp_path).put_back("test") == ()
    assert board.state()["gpu_freq_mhz"] == "408"


# Several GPUs


def test_each_gpu_gets_its_own_originals_back(gpus: tuple[FileBoard, FileBoard], tmp_path: Path) -> None:
    before = [gpu.state() for gpu in gpus]
    died(tmp_path, "GPU-1", gpu_freq_mhz=306.0, power_limit_w=10.0)
    died(tmp_path, "GPU-2", gpu_freq_mhz=408.0, power_limit_w=15.0)
    done = restoring(tmp_path).put_back("test")
    assert len(done) == 2
    assert problems(done) == ""
    assert [gpu.state() for gpu in gpus] == before


def test_a_run_on_one_gpu_writes_nothing_that_a_dead_run_kept_of_another(
    gpus: tuple[FileBoard, FileBoard], tmp_path: Path
) -> None:
    first, second = gpus
    before = second.state()
    died(tmp_path, "GPU-1", gpu_freq_mhz=306.0, power_limit_w=10.0)
    keeper = keeper_of(tmp_path, "GPU-2")
    keeper.take()
    assert second.state() == before, "the originals of GPU-1 were written to GPU-2"
    keeper.apply({"gpu_freq_mhz": 306.0})
    assert keeper.release() == ()
    assert second.state() == before
    (done,) = restoring(tmp_path).put_back("test")
    assert done.device == "GPU-1, a GPU of files"
    assert {k: first.state()[k] for k in OF_A_GPU} == {
        k: str(v).removesuffix(".0") for k, v in OF_A_GPU.items()
    }


def test_one_gpu_can_be_named_and_the_others_are_left_in_peace(
    gpus: tuple[FileBoard, FileBoard], tmp_path: Path
) -> None:
    first, second = gpus
    before = first.state()
    died(tmp_path, "GPU-1", gpu_freq_mhz=306.0)
    died(tmp_path, "GPU-2", gpu_freq_mhz=306.0)
    (done,) = restoring(tmp_path).put_back("test", "GPU-1")
    assert done.device.startswith("GPU-1")
    assert first.state() == before
    assert second.state()["gpu_freq_mhz"] == "306"
    with pytest.raises(ControlError, match="names no GPU"):
        restoring(tmp_path).put_back("test", "GPU-3")


def test_one_that_is_in_use_keeps_no_other_from_its_originals(
    gpus: tuple[FileBoard, FileBoard], tmp_path: Path
) -> None:
    first, second = gpus
    before = second.state()
    died(tmp_path, "GPU-1", gpu_freq_mhz=306.0)
    died(tmp_path, "GPU-2", gpu_freq_mhz=306.0)
    with writer_lock(tmp_path, "nvidia:GPU-1"):
        done = restoring(tmp_path).put_back("test")
    assert "nvidia:GPU-1 is in use by process" in problems(done)
    assert first.state()["gpu_freq_mhz"] == "306"
    assert second.state() == before


def test_a_gpu_that_is_gone_is_named_and_the_machine_is_put_back(
    gpus: tuple[FileBoard, FileBoard], board: FileBoard, tmp_path: Path
) -> None:
    second_before = gpus[1].state()
    died(tmp_path, "GPU-1", with_cpu=True, gpu_freq_mhz=306.0, cpu_freq_mhz=729.6)
    assert board.state()["cpu_freq_mhz"] == "729.6"
    gpus[0].directory.rename(tmp_path / "elsewhere")
    done = restoring(tmp_path).put_back("test")
    assert board.is_as_found
    assert "nvidia:GPU-1 is not found here now" in problems(done)
    assert "gpu_freq_mhz was not restored" in problems(done)
    assert gpus[1].state() == second_before
    (entry,) = kept_entries(tmp_path, "this-boot")[0]
    assert "gpu_freq_mhz" in entry.originals
    assert "cpu_freq_mhz" not in entry.originals


def test_what_two_gpus_share_is_held_for_one_of_them(
    gpus: tuple[FileBoard, FileBoard],  # noqa: ARG001 - they are there
    board: FileBoard,
    tmp_path: Path,
) -> None:
    """Else the second would take the first one's CPU clock for original, and leave it behind."""
    died(tmp_path, "GPU-1", with_cpu=True, cpu_freq_mhz=729.6)
    second = keeper_of(tmp_path, "GPU-2", with_cpu=True)
    with pytest.raises(DeviceBusyError, match=r"a run .* holds cpu_freq_mhz, .*polythrottle restore"):
        second.take()
    keeper_of(tmp_path, "GPU-2").take()
    restoring(tmp_path).put_back("test")
    assert board.is_as_found
    second.take()
    assert second.originals["cpu_freq_mhz"] == {"level": "1510.4"}


def test_a_damaged_journal_keeps_no_other_device_from_its_originals(
    gpus: tuple[FileBoard, FileBoard], tmp_path: Path
) -> None:
    before = gpus[1].state()
    died(tmp_path, "GPU-1", gpu_freq_mhz=306.0)
    died(tmp_path, "GPU-2", gpu_freq_mhz=306.0)
    Journal(tmp_path, "this-boot", "nvidia:GPU-1").path.write_text("{")
    done = restoring(tmp_path).put_back("test")
    assert "is damaged" in problems(done)
    assert gpus[1].state() == before


def test_a_journal_under_another_devices_name_is_not_believed(
    gpus: tuple[FileBoard, FileBoard], tmp_path: Path
) -> None:
    before = gpus[1].state()
    died(tmp_path, "GPU-1", gpu_freq_mhz=306.0)
    one, other = (Journal(tmp_path, "this-boot", f"nvidia:{gpu}") for gpu in GPUS)
    one.path.rename(other.path)
    assert "is damaged" in problems(restoring(tmp_path).put_back("test"))
    assert gpus[1].state() == before


def test_it_says_so_where_the_journal_cannot_be_told(board: FileBoard, tmp_path: Path) -> None:
    died(tmp_path, None, gpu_freq_mhz=408.0)

    def full(step: str) -> None:
        if step == "before remove originals":
            raise OSError(30, "Read-only file system")

    (done,) = Restoring(tmp_path, tmp_path, discover_file_board, VirtualClock(), Files(full)).put_back("test")
    assert board.is_as_found
    assert "gpu_freq_mhz" in done.knobs
    assert "still holds originals that are back already" in problems((done,))
