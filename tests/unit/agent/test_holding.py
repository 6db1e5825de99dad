from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from polythrottle.errors import DeviceBusyError, InvalidInputError, StateError
from polythrottle_agent.holding import DeviceLock, HeldDevice
from polythrottle_agent.ports import ControlError

if TYPE_CHECKING:
    from tests.unit.agent.conftest import Scripted


def test_everything_written_is_put_back(scripted: Scripted) -> None:
    with HeldDevice(scripted.device) as held:
        held.apply({"gpu_freq_mhz": 500.0, "mem_freq_mhz": 400.0})
        assert scripted.controls["gpu_freq_mhz"].value == 500.0
    assert dict(scripted.device.accepted()) == {
        "gpu_min_freq_mhz": 900.0,
        "gpu_freq_mhz": 900.0,
        "mem_freq_mhz": "unlocked",
    }
    assert held.not_restored == ()


def test_originals_are_saved_before_the_first_write(scripted: Scripted) -> None:
    with HeldDevice(scripted.device) as held:
        assert scripted.journal == []
        assert held.originals["mem_freq_mhz"] == {"value": "unlocked"}
        assert set(held.originals) == set(scripted.controls)


def test_an_original_that_cannot_be_read_stops_before_any_write(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch, refusal: ControlError
) -> None:
    def fail() -> dict[str, str]:
        raise refusal

    monkeypatch.setattr(scripted.controls["mem_freq_mhz"], "save", fail)
    with pytest.raises(ControlError), HeldDevice(scripted.device):
        pytest.fail("entered")
    assert scripted.journal == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("bug"), SystemExit(1)])
def test_the_device_is_restored_whatever_happens(scripted: Scripted, error: BaseException) -> None:
    def write_and_fail() -> None:
        with HeldDevice(scripted.device) as held:
            held.apply({"mem_freq_mhz": 400.0})
            raise error

    with pytest.raises(type(error)):
        write_and_fail()
    assert scripted.controls["mem_freq_mhz"].value == "unlocked"


def test_one_control_that_fails_does_not_keep_the_others(
    scripted: Scripted, refusal: ControlError, caplog: pytest.LogCaptureFixture
) -> None:
    scripted.controls["gpu_freq_mhz"].restore_errors = [refusal, OSError("gone")]
    with caplog.at_level(logging.ERROR), HeldDevice(scripted.device) as held:
        held.apply({"gpu_freq_mhz": 100.0, "mem_freq_mhz": 400.0})
    assert scripted.controls["mem_freq_mhz"].value == "unlocked"
    assert [str(problem) for problem in held.not_restored] == [
        "gpu_freq_mhz was not restored (value = 900.0): OSError: gone"
    ]
    assert "gpu_freq_mhz was not restored" in caplog.text


def test_a_control_that_fails_once_is_tried_again(scripted: Scripted, refusal: ControlError) -> None:
    scripted.controls["gpu_freq_mhz"].restore_errors = [refusal]
    with HeldDevice(scripted.device) as held:
        held.apply({"gpu_freq_mhz": 100.0})
    assert held.not_restored == ()
    assert scripted.controls["gpu_freq_mhz"].value == 900.0


def test_a_restore_that_did_not_take_is_noticed(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripted.controls["mem_freq_mhz"], "restore", lambda _: None)
    with HeldDevice(scripted.device) as held:
        held.apply({"mem_freq_mhz": 400.0})
    assert [problem.reason for problem in held.not_restored] == ["it reads back value = 400.0"]


def test_restore_may_be_called_any_number_of_times(scripted: Scripted) -> None:
    with HeldDevice(scripted.device) as held:
        held.apply({"mem_freq_mhz": 400.0})
        assert held.restore() == ()
        assert held.restore() == ()
        held.apply({"mem_freq_mhz": 800.0})
    assert scripted.controls["mem_freq_mhz"].value == "unlocked"


def test_the_gpu_range_is_moved_from_the_end_that_keeps_it_ordered(scripted: Scripted) -> None:
    with HeldDevice(scripted.device) as held:
        held.apply({"gpu_min_freq_mhz": 100.0, "gpu_freq_mhz": 500.0})
        held.apply({"gpu_freq_mhz": 900.0, "gpu_min_freq_mhz": 900.0})
        assert scripted.journal == [
            "gpu_min_freq_mhz=100.0",
            "gpu_freq_mhz=500.0",
            "gpu_freq_mhz=900.0",
            "gpu_min_freq_mhz=900.0",
        ]


def test_an_unknown_knob_is_refused_before_anything_is_written(scripted: Scripted) -> None:
    with (
        HeldDevice(scripted.device) as held,
        pytest.raises(InvalidInputError, match=r"no knob 'gpu_freq'; did you mean gpu_freq_mhz"),
    ):
        held.apply({"mem_freq_mhz": 400.0, "gpu_freq": 1.0})
    assert "mem_freq_mhz=400.0" not in scripted.journal


def test_a_refusal_says_what_was_asked(scripted: Scripted, refusal: ControlError) -> None:
    scripted.controls["gpu_freq_mhz"].refuses[100.0] = refusal
    with (
        HeldDevice(scripted.device) as held,
        pytest.raises(ControlError, match="gpu_freq_mhz = 100: device or resource busy"),
    ):
        held.apply({"gpu_freq_mhz": 100.0})


def test_it_must_be_entered(scripted: Scripted) -> None:
    with pytest.raises(RuntimeError, match="entered"):
        HeldDevice(scripted.device).apply({"mem_freq_mhz": 400.0})


# The lock

HOLD = """
import sys, time
from pathlib import Path
from polythrottle_agent.holding import DeviceLock
with DeviceLock(Path(sys.argv[1]), sys.argv[2], command="polythrottle tune --latency-slo 50ms"):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold_elsewhere(state: Path, device: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(state), device],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_run_is_refused_and_told_by_whom(tmp_path: Path) -> None:
    process = hold_elsewhere(tmp_path, "emulated:tx2")
    try:
        with pytest.raises(DeviceBusyError) as error, DeviceLock(tmp_path, "emulated:tx2"):
            pytest.fail("entered")
    finally:
        process.communicate()
    message = str(error.value)
    assert f"emulated:tx2 is in use by process {process.pid} of " in message
    assert "(polythrottle tune --latency-slo 50ms) since 20" in message
    with DeviceLock(tmp_path, "emulated:tx2"):
        pass


def test_a_killed_run_leaves_nothing_locked(tmp_path: Path) -> None:
    process = hold_elsewhere(tmp_path, "emulated:tx2")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    with DeviceLock(tmp_path, "emulated:tx2") as lock:
        assert str(os.getpid()) in lock.path.read_text(encoding="utf-8")


def test_within_one_process_too(tmp_path: Path) -> None:
    with (
        DeviceLock(tmp_path, "a", command="first"),
        pytest.raises(DeviceBusyError, match=r"\(first\)"),
        DeviceLock(tmp_path, "a"),
    ):
        pytest.fail("entered")


def test_another_device_is_free(tmp_path: Path) -> None:
    with DeviceLock(tmp_path, "a/b"), DeviceLock(tmp_path, "a:b"):
        assert len(list((tmp_path / "locks").iterdir())) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": 1}', b"\xff"])
def test_a_holder_that_has_not_written_yet_is_still_respected(tmp_path: Path, content: bytes) -> None:
    with DeviceLock(tmp_path, "a") as lock:
        lock.path.write_bytes(content)
        with (
            pytest.raises(DeviceBusyError, match="in use by another process since"),
            DeviceLock(tmp_path, "a"),
        ):
            pytest.fail("entered")


def test_a_state_directory_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    with pytest.raises(StateError, match=r"lock file .* cannot be written .*state directory"):
        DeviceLock(blocked, "a").__enter__()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_state_directory_is_said_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StateError, match="Permission denied"):
            DeviceLock(tmp_path, "a").__enter__()
    finally:
        tmp_path.chmod(0o700)


def test_a_full_disk_is_said_so_and_leaves_the_device_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(StateError, match="No space left on device"):
            DeviceLock(tmp_path, "a").__enter__()
    with DeviceLock(tmp_path, "a"):
        pass
