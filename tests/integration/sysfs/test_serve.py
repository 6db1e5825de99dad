"""`polythrottle emulate serve` as a user runs it: its own process, FUSE, sockets, the agent beside it."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from polythrottle.clock import RealClock
from polythrottle.errors import InvalidInputError
from polythrottle.measurement import LatencyReading, Provenance
from polythrottle.studies import MeasurementPlan
from polythrottle_agent.devices import open_device
from polythrottle_agent.emulation.mount import is_mounted
from polythrottle_agent.holding import HeldDevice
from polythrottle_agent.ports import Device, EnergyWindow
from polythrottle_agent.workloads.emulated_remote import RemoteBoard
from polythrottle_agent.workloads.opening import WorkloadOptions

from .conftest import eventually, read, write

RATE_PER_S = 40.0


@dataclass(frozen=True)
class Serving:
    process: subprocess.Popen[str]
    root: Path
    url: str

    def ask(self, path: str = "/infer") -> tuple[int, str]:
        host = re.sub(r"^http://|/infer$", "", self.url)
        connection = http.client.HTTPConnection(host, timeout=30.0)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def served_ms(self) -> float:
        answer: dict[str, Any] = json.loads(self.ask()[1])
        return float(answer["served_ms"])

    @property
    def gpu(self) -> Path:
        return self.root / "sys/class/devfreq/17000000.gpu"


def command(root: Path, *more: str) -> list[str]:
    program = [sys.executable, "-m", "polythrottle", "emulate", "serve", "orin-nano-8gb"]
    return [*program, "--mount", str(root), "--workload", "efficientnet-b0", *more]


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    root = tmp_path / "board"
    arguments = command(root, "--port", "0", "--batch-size", "4")
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"emulated orin-nano-8gb, kernel 5.15, mode 25W, at {root}\n"
        line = process.stdout.readline()
        found = re.fullmatch(
            r"emulated efficientnet-b0 at (http://127\.0\.0\.1:\d+/infer), .* up to 4\n", line
        )
        assert found is not None
        yield Serving(process, root, found[1])
        if process.poll() is None:
            process.terminate()
    assert not is_mounted(root)


def test_service_times_follow_clocks_that_others_write(serving: Serving) -> None:
    fast_ms = sum(serving.served_ms() for _ in range(8))
    write(serving.gpu / "max_freq", "306000000")
    slow_ms = sum(serving.served_ms() for _ in range(8))
    assert slow_ms > 1.3 * fast_ms
    assert read(serving.gpu / "max_freq") == "306000000"


def test_load_shows_in_the_board_s_sensors_and_clocks(serving: Serving) -> None:
    board = RemoteBoard(serving.root)
    assert not board.state()["busy"]
    before_j = float(board.state()["energy_j"])
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(serving.ask) for _ in range(64)]
        assert eventually(lambda: bool(board.state()["busy"]))
        assert all(future.result()[0] == 200 for future in futures)
    assert float(board.state()["energy_j"]) > before_j
    assert eventually(lambda: not board.state()["busy"])


def test_the_batch_size_is_set_through_the_mount(serving: Serving) -> None:
    RemoteBoard(serving.root).write("batch_size", "8")
    with ThreadPoolExecutor(24) as pool:
        answers = [json.loads(body) for _, body in pool.map(lambda _: serving.ask(), range(48))]
    assert max(answer["batch"] for answer in answers) == 8


def test_nobody_serves_through_the_control_files_meanwhile(serving: Serving) -> None:
    with pytest.raises(OSError, match="busy"):
        read(serving.root / ".emulator/batch")
    with pytest.raises(InvalidInputError, match=f"--workload http:{serving.url}"):
        open_device("auto", None, 0, root=serving.root)


def test_sigterm_answers_what_waits_and_unmounts(serving: Serving) -> None:
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(serving.ask, "/infer?queries=4") for _ in range(8)]
        assert eventually(lambda: "inference_in_service_queries" in serving.ask("/metrics")[1])
        assert eventually(lambda: bool(RemoteBoard(serving.root).state()["busy"]))
        serving.process.send_signal(signal.SIGTERM)
        assert {future.result()[0] for future in futures} <= {200, 503}
    assert serving.process.wait(15.0) == 0
    assert serving.process.stderr is not None
    assert serving.process.stderr.read() == ""
    assert not is_mounted(serving.root)


def test_a_port_that_is_taken_is_one_sentence(serving: Serving, tmp_path: Path) -> None:
    port = re.findall(r":(\d+)/", serving.url)[0]
    other = tmp_path / "other"
    ended = subprocess.run(
        command(other, "--port", port), capture_output=True, text=True, timeout=60.0, check=False
    )
    assert ended.returncode == 1
    assert "Address already in use; choose another" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not is_mounted(other)


def test_a_batch_size_it_does_not_know_is_one_sentence(tmp_path: Path) -> None:
    ended = subprocess.run(
        command(tmp_path / "m", "--batch-size", "3"),
        capture_output=True,
        text=True,
        timeout=60.0,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: The emulated workload has no batch size 3.")


@pytest.fixture
def device(serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    monkeypatch.setenv("POLYTHROTTLE_STATE_DIR", str(tmp_path / "state"))
    options = WorkloadOptions(rate_per_s=RATE_PER_S, seed=3)
    return open_device("auto", f"http:{serving.url}", 0, RealClock(), root=serving.root, options=options)


def test_the_agent_sets_clocks_loads_the_service_and_meters_the_board(
    serving: Serving, device: Device
) -> None:
    """Files, sockets and sensors of one board: energy as its own counter says, latency as its queue."""
    assert device.identity.provenance is Provenance.EMULATED
    assert "batch_size" in device.controls
    board = RemoteBoard(serving.root)
    plan = MeasurementPlan(min_queries=250)
    spent = {}
    with HeldDevice(device) as held:
        for gpu_mhz in (918.0, 408.0):
            held.apply({"gpu_freq_mhz": gpu_mhz, "batch_size": 8.0})
            device.workload.warm_up(20)
            device.meter.begin()
            before_j = float(board.state()["energy_j"])
            served = device.workload.serve(plan, "p95")
            counted_j = float(board.state()["energy_j"]) - before_j
            window = device.meter.end()
            assert isinstance(window, EnergyWindow)
            assert served.void_reason is None
            assert served.lost.total == 0
            assert isinstance(served.latency, LatencyReading)
            assert served.latency.provenance is Provenance.EMULATED
            assert window.energy_j == pytest.approx(counted_j, rel=0.08)
            spent[gpu_mhz] = (served.latency.latency_s, window.energy_j / window.window_s)
    assert spent[408.0][0] > 1.3 * spent[918.0][0]
    assert spent[408.0][1] < 0.9 * spent[918.0][1]
    assert int(RemoteBoard(serving.root).state()["batch_size"]) == 4
