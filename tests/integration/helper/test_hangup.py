"""A terminal that is closed, or a connection that is lost, in the middle of a run as root: real terminals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from polythrottle.clock import RealClock
from polythrottle_agent.privileged.client import Leased, helper_device
from polythrottle_agent.privileged.keeper import Keeper
from tests.integration.helper.gpus import Gpus, until, why_not

pytest.importorskip("pynvml", reason="NOT TESTED: nvidia-ml-py is not installed")
pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

HELD = {"gpu_freq_mhz": 1200, "power_limit_w": 400}


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpus]:
    for name in ("FAKE_NVML_STATE", "FAKE_NVML_GPUS", "LD_LIBRARY_PATH"):
        monkeypatch.setenv(name, "")  # so that they are undone
    gpu = Gpus.on(tmp_path, "H100")
    yield gpu
    gpu.close()


def test_a_closed_terminal_ends_a_hold_and_the_gpu_is_put_back(gpu: Gpus) -> None:
    before = gpu.states
    process, terminal = gpu.in_a_terminal("apply", gpu.file(**HELD), "--for", "10m", "--yes")
    until(lambda: gpu.states != before)
    time.sleep(0.5)
    os.close(terminal)
    process.wait(30)
    assert gpu.states == before
    assert gpu.journals == []


def test_a_closed_terminal_is_a_no_to_the_question(gpu: Gpus) -> None:
    before = gpu.states
    process, terminal = gpu.in_a_terminal("apply", gpu.file(**HELD), "--keep")
    said = b""
    while b"[y/N]" not in said:
        said += os.read(terminal, 4096)
    assert gpu.states != before
    os.close(terminal)
    process.wait(30)
    assert gpu.states == before
    assert gpu.journals == []


def test_more_signals_do_not_cut_the_restore_in_two(gpu: Gpus) -> None:
    """Each of them says something to a terminal that is gone."""
    before = gpu.states
    process, terminal = gpu.in_a_terminal("apply", gpu.file(**HELD), "--for", "10m", "--yes")
    until(lambda: gpu.states != before)
    time.sleep(0.5)
    os.close(terminal)
    ends_s = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < ends_s:
        process.send_signal(signal.SIGHUP if time.monotonic() % 0.1 < 0.05 else signal.SIGTERM)
        time.sleep(0.01)
    assert process.wait(30) is not None
    assert gpu.states == before
    assert gpu.journals == []


def test_a_restore_goes_on_when_its_terminal_is_closed(gpu: Gpus) -> None:
    before = gpu.states
    gpu.killed_while_it_holds(0, **HELD)
    # Each write of the restore takes a while.
    for setter in ("nvmlDeviceResetGpuLockedClocks", "nvmlDeviceSetPowerManagementLimit"):
        gpu.fake.inject(setter, 0, delay_ms=700)
    process, terminal = gpu.in_a_terminal("restore")
    until(lambda: b'"event": "restore"' in (gpu.directory / "device/audit.jsonl").read_bytes())
    os.close(terminal)
    process.wait(30)
    gpu.fake.clear_faults()
    assert gpu.states == before
    assert gpu.journals == []


def test_under_nohup_a_run_outlives_its_terminal(gpu: Gpus) -> None:
    before = gpu.states
    script = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
        "from polythrottle.cli.main import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, "apply", gpu.file(**HELD), "--for", "10m", "--yes"],
        env=gpu.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    gpu.running.append(process)
    until(lambda: gpu.states != before)
    process.send_signal(signal.SIGHUP)
    time.sleep(1.5)
    assert process.poll() is None
    assert gpu.states != before
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    assert gpu.states == before


def test_a_helper_in_a_terminal_puts_the_gpu_back_too(gpu: Gpus) -> None:
    before = gpu.states
    process = gpu.helper()
    with gpu.client() as client:
        keeper = Keeper(helper_device(client)[1], RealClock(), Leased(client, "a run"))
        keeper.take()
        keeper.apply({"gpu_freq_mhz": 1200.0})
        process.send_signal(signal.SIGHUP)
        assert process.wait(30) == 0
    assert gpu.states == before
    assert gpu.journals == []
