"""doctor, apply, restore, audit and snapshot as a user runs them, over an emulated board's files."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from polythrottle_agent.discovery import discover
from polythrottle_agent.emulation.faults import Fault, FaultKind
from polythrottle_agent.emulation.mount import MountedBoard, mounted
from polythrottle_agent.privileged.client import HelperClient, HelperError

pytestmark = pytest.mark.skipif(
    not Path("/dev/fuse").exists()
    or shutil.which("fusermount3") is None
    or importlib.util.find_spec("mfusepy") is None,
    reason="NO FUSE: /dev/fuse, fusermount3 or mfusepy is missing",
)


@dataclass
class Machine:
    """An emulated board, and everything that runs on it."""

    board: MountedBoard
    directory: Path
    helper: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "POLYTHROTTLE_SYSROOT": str(self.board.root),
            "POLYTHROTTLE_STATE_DIR": str(self.directory),
            "POLYTHROTTLE_HELPER_SOCKET": str(self.directory / "helper.sock"),
            "COLUMNS": "200",
        }

    @property
    def state(self) -> Path:
        return self.directory / "device"

    def run(self, *arguments: str, input_: str = "") -> subprocess.CompletedProcess[str]:
        script = "from polythrottle.cli.main import main; main()"
        return subprocess.run(
            [sys.executable, "-c", script, *arguments],
            env=self.environment, input=input_, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def start_helper(self) -> None:
        self.helper = subprocess.Popen(
            [
                sys.executable, "-m", "polythrottle_agent.privileged.main", "--no-probe",
                "--root", str(self.board.root), "--state-dir", str(self.state),
                "--socket", str(self.directory / "helper.sock"),
            ],
            env=self.environment,
        )  # fmt: skip
        ends = time.monotonic() + 20
        while True:
            try:
                HelperClient(self.directory / "helper.sock").close()
                return
            except HelperError:
                assert time.monotonic() < ends
                time.sleep(0.05)

    @property
    def gpu_max(self) -> str:
        return self.board.path("gpu/max_freq").read_text().strip()

    def file(self, **settings: Any) -> str:
        path = self.directory / "settings.json"
        path.write_text(json.dumps(settings))
        return str(path)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with mounted("orin-nano-8gb") as board:
        machine = Machine(board, tmp_path)
        yield machine
        if machine.helper is not None:
            machine.helper.send_signal(signal.SIGTERM)
            machine.helper.wait(20)


def test_doctor_says_what_works(machine: Machine) -> None:
    done = machine.run("doctor", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    assert found["schema"] == "polythrottle-doctor/1"
    assert found["usable"] is True
    states = {check["subject"]: check["state"] for check in found["checks"]}
    assert states["gpu_freq_mhz"] == states["mem_freq_mhz"] == states["meter"] == "ok"
    assert states["helper"] == "note"
    machine.start_helper()
    checks = json.loads(machine.run("doctor", "--json").stdout)["checks"]
    assert {"polythrottle-helper 0"} == {c["found"][:21] for c in checks if c["subject"] == "helper"}


def test_doctor_on_a_machine_with_nothing_says_so(machine: Machine, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    machine.board = MountedBoard(machine.board.machine, empty)
    done = machine.run("doctor")
    assert done.returncode == 1
    assert "missing" in done.stdout
    assert "Traceback" not in done.stderr


def test_doctor_survives_a_sensor_that_lies(machine: Machine) -> None:
    machine.board.inject("gpu/max_freq", "garbage")
    done = machine.run("doctor")
    assert "Traceback" not in done.stderr
    assert "garbage" in done.stdout or "gpu_freq_mhz" in done.stdout


def test_through_the_helper_a_configuration_is_kept_until_restore(machine: Machine) -> None:
    machine.start_helper()
    before = machine.gpu_max
    done = machine.run(
        "apply", machine.file(gpu_freq_mhz=510), "--keep", "--yes", "--latency-slo", "mean<10s"
    )
    assert done.returncode == 0, done.stderr
    assert "kept" in done.stdout
    assert "is met" in done.stdout
    assert machine.gpu_max == "510000000"
    dry = machine.run("restore", "--dry-run")
    assert "max_freq = 510000000" in dry.stdout
    assert machine.gpu_max == "510000000"
    assert machine.run("restore").returncode == 0
    assert machine.gpu_max == before
    assert "Nothing to put back" in machine.run("restore").stdout


def test_a_configuration_that_misses_the_slo_reverts(machine: Machine) -> None:
    machine.start_helper()
    before = machine.gpu_max
    done = machine.run("apply", machine.file(gpu_freq_mhz=306), "--keep", "--latency-slo", "1ms")
    assert done.returncode == 1
    assert "reverted" in done.stdout
    assert machine.gpu_max == before


def test_as_root_without_a_helper_it_is_kept_and_restored_too(machine: Machine) -> None:
    before = machine.gpu_max
    done = machine.run("apply", machine.file(gpu_freq_mhz=510), "--keep", "--yes")
    assert done.returncode == 0, done.stderr
    assert machine.gpu_max == "510000000"
    refused = machine.run("apply", machine.file(gpu_freq_mhz=612), "--for", "1s", "--yes")
    assert refused.returncode == 1
    assert "polythrottle restore first" in " ".join(refused.stderr.split())
    assert machine.run("restore").returncode == 0
    assert machine.gpu_max == before


def test_a_killed_run_is_put_back_by_restore(machine: Machine) -> None:
    before = machine.gpu_max
    script = "from polythrottle.cli.main import main; main()"
    arguments = ["apply", machine.file(gpu_freq_mhz=510), "--for", "10m", "--yes"]
    run = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], env=machine.environment, stdin=subprocess.DEVNULL
    )
    ends = time.monotonic() + 30
    while machine.gpu_max == before:
        assert time.monotonic() < ends
        time.sleep(0.05)
    run.kill()
    run.wait()
    assert machine.gpu_max == "510000000"
    done = machine.run("restore")
    assert done.returncode == 0, done.stderr
    assert machine.gpu_max == before


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: only root can restore without the helper")
def test_restore_needs_no_helper_when_it_was_killed(machine: Machine) -> None:
    machine.start_helper()
    before = machine.gpu_max
    machine.run("apply", machine.file(gpu_freq_mhz=510), "--keep", "--yes")
    assert machine.gpu_max == "510000000"
    assert machine.helper is not None
    machine.helper.kill()
    machine.helper.wait()
    machine.helper = None
    done = machine.run("restore")
    assert done.returncode == 0, done.stderr
    assert machine.gpu_max == before


def test_what_cannot_be_restored_is_named_and_not_forgotten(machine: Machine) -> None:
    machine.run("apply", machine.file(gpu_freq_mhz=510), "--keep", "--yes")
    machine.board.inject("gpu/max_freq", "eio")
    done = machine.run("restore")
    assert done.returncode == 1
    assert "gpu_freq_mhz was not restored" in " ".join(done.stderr.split())
    machine.board.clear()
    assert machine.run("restore").returncode == 0
    assert machine.gpu_max != "510000000"


def test_the_audit_log_tells_who_wrote_what(machine: Machine) -> None:
    machine.run("apply", machine.file(gpu_freq_mhz=510), "--for", "1s", "--yes")
    lines = machine.run("audit", "--json", "--knob", "gpu_freq_mhz").stdout.splitlines()
    records = [json.loads(line) for line in lines]
    assert records[0]["event"] == "apply"
    assert records[0]["new"] == 510.0
    assert records[0]["reason"] == "polythrottle apply"
    assert records[-1]["event"] == "restore"
    text = machine.run("audit", "--last", "1").stdout
    assert "restore" in text


def test_a_snapshot_is_a_machine_that_discovery_understands(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "picture.tar.gz"
    done = machine.run("snapshot", "-o", str(path))
    assert done.returncode == 0, done.stderr
    copy = tmp_path / "copy"
    with tarfile.open(path) as archive:
        names = archive.getnames()
        archive.extractall(copy)
    assert not any("serial" in name for name in names)
    about = json.loads((copy / "snapshot.json").read_text())
    assert about["schema"] == "polythrottle-snapshot/1"
    found, original = discover(copy), discover(machine.board.root)
    assert found.controls["gpu_freq_mhz"].levels == original.controls["gpu_freq_mhz"].levels
    assert found.identity.board == original.identity.board


def test_a_sensor_that_hangs_does_not_keep_the_snapshot(machine: Machine, tmp_path: Path) -> None:
    # Not for ever: a process whose thread hangs in the kernel cannot even end.
    machine.board.inject("gpu/max_freq", Fault(FaultKind.HANG, seconds=6.0))
    path = tmp_path / "picture.tar.gz"
    done = machine.run("snapshot", "-o", str(path))
    assert done.returncode == 0, done.stderr
    with tarfile.open(path) as archive:
        about = json.loads(archive.extractfile("snapshot.json").read())  # type: ignore[union-attr]
    assert any("no answer" in reason for reason in about["unread"].values())
    machine.board.clear()
