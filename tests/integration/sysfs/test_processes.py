"""The board in a process of its own: it outlives its users, serves their workloads, and leaves no mount."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from polythrottle.clock import RealClock, VirtualClock
from polythrottle.errors import InvalidInputError
from polythrottle.measurement import LatencyReading, Provenance, Unavailable
from polythrottle.studies import MeasurementPlan
from polythrottle_agent.emulation.behaviour import Behaviour
from polythrottle_agent.emulation.machine import Options
from polythrottle_agent.emulation.mount import MountedBoard, MountError, is_mounted, mounted
from polythrottle_agent.emulation.surroundings import Environment
from polythrottle_agent.ports import ControlError
from polythrottle_agent.workloads.emulated_remote import (
    RemoteBatchControl,
    RemoteBoard,
    RemoteEmulatedWorkload,
)

from .conftest import eventually, read, write


@pytest.fixture
def process(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    root = tmp_path / "board"
    command = [
        sys.executable,
        "-m",
        "polythrottle",
        "emulate",
        "board",
        "orin-nano-8gb",
        "--mount",
        str(root),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as board:
        assert board.stdout is not None
        assert board.stdout.readline() == f"emulated orin-nano-8gb, kernel 5.15, mode 25W, at {root}\n"
        yield board, root
        if board.poll() is None:
            board.terminate()
    assert not is_mounted(root)


def gpu(root: Path) -> Path:
    return root / "sys/class/devfreq/17000000.gpu"


def test_the_board_survives_kill_9_of_its_user(process: tuple[subprocess.Popen[str], Path]) -> None:
    _, root = process
    script = f"echo 408000000 > {gpu(root)}/max_freq; exec 3< {gpu(root)}/cur_freq; echo ready; sleep 60"
    with subprocess.Popen(["/bin/sh", "-c", script], stdout=subprocess.PIPE, text=True) as user:
        assert user.stdout is not None
        assert user.stdout.readline() == "ready\n"
        user.kill()
    assert read(gpu(root) / "max_freq") == "408000000"
    RemoteBoard(root).command("reboot")
    assert read(gpu(root) / "max_freq") == "918000000"


def test_it_ends_on_sigterm_and_unmounts(process: tuple[subprocess.Popen[str], Path]) -> None:
    board, root = process
    board.terminate()
    assert board.wait(10.0) == 0
    assert board.stderr is not None
    assert board.stderr.read() == ""
    assert not is_mounted(root)


def test_it_leaves_no_mount_when_it_is_killed(process: tuple[subprocess.Popen[str], Path]) -> None:
    board, root = process
    board.kill()
    board.wait(10.0)
    assert eventually(lambda: not is_mounted(root), 5.0)
    assert list(root.iterdir()) == []


def test_a_test_process_that_is_killed_leaves_no_mount(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from polythrottle_agent.emulation.mount import mounted\n"
        "with mounted('tx2', mountpoint=Path(sys.argv[1])): print('mounted', flush=True); time.sleep(60)"
    )
    for number in (signal.SIGKILL, signal.SIGTERM):
        with subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "mounted\n"
            assert is_mounted(tmp_path)
            process.send_signal(number)
            assert process.wait(10.0) == -number
        assert eventually(lambda: not is_mounted(tmp_path), 5.0)


def test_mounting_leaves_the_working_directory_alone(tmp_path: Path) -> None:
    here = os.getcwd()
    with mounted("tx2") as board:
        assert os.getcwd() == here
        root = board.root
        with pytest.raises(MountError, match="is mounted at"), mounted("tx2", mountpoint=root):
            pytest.fail("mounted twice")
    assert not root.exists()
    with pytest.raises(MountError, match="no directory"), mounted("tx2", mountpoint=tmp_path / "none"):
        pytest.fail("mounted on nothing")


def test_commands_reach_the_board_from_a_shell(process: tuple[subprocess.Popen[str], Path]) -> None:
    _, root = process

    def polythrottle(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "polythrottle", "emulate", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert polythrottle("control", str(root), "inject", "gpu/max_freq", "eio", "on=write").returncode == 0
    done = subprocess.run(
        ["/bin/sh", "-c", f"echo 1 > {gpu(root)}/max_freq"], capture_output=True, check=False
    )
    assert done.returncode != 0
    assert read(gpu(root) / "max_freq") == "918000000"
    refused = polythrottle("control", str(root), "inject", "gpu/max_freq", "nonsense")
    assert refused.returncode == 1
    assert "refused 'inject gpu/max_freq nonsense'" in " ".join(refused.stderr.split())
    assert '"mode": "25W"' in polythrottle("state", str(root)).stdout
    board = RemoteBoard(root)
    board.command("clear")
    board.command("write gpu/max_freq 510000000 after=0.05")
    assert eventually(lambda: read(gpu(root) / "max_freq") == "510000000", 0.5)
    board.command("mode MAXN_SUPER")
    assert read(gpu(root) / "max_freq") == "1020000000"
    board.command("heat 100 ambient=100")
    assert read(gpu(root) / "max_freq") == "918000000"
    wrong = ["warp 9", "heat", "heat warm", "heat nan", "mode 99", "emc sings on", 'inject "gpu']
    for line in [*wrong, "write gpu/max_freq 1 every=0"]:
        with pytest.raises(ControlError, match="refused"):
            board.command(line)


def test_a_workload_serves_from_another_process(process: tuple[subprocess.Popen[str], Path]) -> None:
    _, root = process
    workload, batch = RemoteEmulatedWorkload(root, RealClock()), RemoteBatchControl(root)
    assert workload.name == "efficientnet-b4"
    saved = batch.save()
    batch.apply(4.0)
    assert batch.accepted() == 4.0
    workload.warm_up(8)
    began_s = time.monotonic()
    served = workload.serve(MeasurementPlan(min_queries=40, min_window_s=0.5), "mean")
    took_s = time.monotonic() - began_s
    assert isinstance(served.latency, LatencyReading)
    assert served.latency.provenance is Provenance.EMULATED
    assert served.n_queries >= 40
    assert served.n_queries % 4 == 0
    assert served.duration_s == pytest.approx(took_s, rel=0.2)
    batch.restore(saved)
    assert batch.accepted() == 1.0
    with pytest.raises(InvalidInputError, match="no level 3"):
        batch.apply(3.0)
    with pytest.raises(ControlError):
        batch.restore({})


def test_latency_over_the_files_is_that_of_the_model_in_process() -> None:
    model = Behaviour.of("orin-nano-8gb", "efficientnet-b4")
    point = model.point(cpu_mhz=1344.0, gpu_mhz=816.0, mem_mhz=3199.0, batch=1)
    expected_s, expected_w = model.latency_and_power(point)
    calm = Options(mode="MAXN_SUPER", environment=Environment(drift=0.0))
    with mounted("orin-nano-8gb", clock=VirtualClock(), options=calm) as board:
        clock = board.machine.board.clock
        write(board.path("gpu/max_freq"), "816000000")
        write(board.path("gpu/min_freq"), "816000000")
        for policy in (0, 4):
            for limit in ("max", "min"):
                write(board.path(f"cpu/policy{policy}/scaling_{limit}_freq"), "1344000")
        clock.sleep(1.0)
        began_j = board.machine.energy_j()
        plan = MeasurementPlan(min_queries=60, min_window_s=0.1)
        served = RemoteEmulatedWorkload(board.root, clock).serve(plan, "mean")
        joules = board.machine.energy_j() - began_j
    assert isinstance(served.latency, LatencyReading)
    # One window scatters: 0.7 % of latency, 2.9 % of energy, and rare outliers beyond.
    assert served.latency.latency_s == pytest.approx(expected_s, rel=0.03)
    assert joules / served.duration_s == pytest.approx(expected_w, rel=0.09)


def test_a_client_that_dies_leaves_no_load(orin: MountedBoard) -> None:
    latency_s = RemoteBoard(orin.root).begin_batch()
    assert RemoteBoard(orin.root).state()["busy"] is True
    time.sleep(latency_s + 0.1)
    state = RemoteBoard(orin.root).state()
    assert state["busy"] is False


def test_a_board_that_goes_away_is_no_latency_but_a_reason() -> None:
    with mounted("tx2") as board:
        workload = RemoteEmulatedWorkload(board.root, RealClock())
    served = workload.serve(MeasurementPlan(), "p99")
    assert isinstance(served.latency, Unavailable)
    assert "does not answer" in served.latency.reason or "refused" in served.latency.reason
    with pytest.raises(InvalidInputError, match="polythrottle emulate board"):
        RemoteEmulatedWorkload(Path("/nonexistent"), RealClock())
