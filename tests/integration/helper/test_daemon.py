"""The unprivileged agent as a process, over a real helper."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.helper.conftest import REPOSITORY, Helper


class Agent:
    def __init__(self, helper: Helper, hold: str | None, **environment: str) -> None:
        file = helper.root / "hold.yaml"
        if hold is not None:
            file.write_text(hold)
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "polythrottle_agent.daemon",
                "--hold", str(file), "--socket", str(helper.socket), "--root", str(helper.root),
            ],
            env={**os.environ, **environment},
            cwd=REPOSITORY,
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors


@pytest.fixture
def manager(tmp_path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(tmp_path / "notify"))
    listener.settimeout(20)
    return listener


def test_it_holds_and_lets_go(helper: Helper, manager: socket.socket) -> None:
    helper.start()
    agent = Agent(
        helper, "gpu_freq_mhz: 408\nmem_freq_mhz: unlocked\n", NOTIFY_SOCKET=str(helper.root / "notify")
    )
    assert manager.recv(1000).startswith(b"READY=1\nSTATUS=holding gpu_freq_mhz 408")
    assert helper.board.state()["gpu_freq_mhz"] == "408"
    code, _ = agent.end()
    assert code == 0
    assert helper.board.is_as_found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT])
def test_however_it_dies_the_board_is_put_back(helper: Helper, number: int) -> None:
    helper.start()
    agent = Agent(helper, "gpu_freq_mhz: 408")
    helper.until(lambda: not helper.board.is_as_found)
    agent.end(number)
    helper.until(lambda: helper.board.is_as_found)


def test_it_writes_again_what_another_moved_and_says_so(helper: Helper) -> None:
    helper.start()
    agent = Agent(helper, "gpu_freq_mhz: 408")
    helper.until(lambda: helper.board.state()["gpu_freq_mhz"] == "408")
    (helper.board.directory / "gpu_freq_mhz").write_text("510")
    helper.until(lambda: helper.board.state()["gpu_freq_mhz"] == "408", 15)
    _, errors = agent.end()
    assert "drift: gpu_freq_mhz is 510 MHz, not 408: another tool" in errors
    assert helper.board.is_as_found


def test_with_nothing_to_hold_it_waits(helper: Helper, manager: socket.socket) -> None:
    agent = Agent(helper, None, NOTIFY_SOCKET=str(helper.root / "notify"), WATCHDOG_USEC="4000000")
    assert b"nothing to hold" in manager.recv(1000)
    # systemd sets WATCHDOG_PID too; without it the variable is meant for whoever finds it.
    assert manager.recv(1000) == b"WATCHDOG=1"
    assert agent.end()[0] == 0


def test_a_helper_that_goes_ends_it(helper: Helper) -> None:
    helper.start()
    agent = Agent(helper, "gpu_freq_mhz: 408")
    helper.until(lambda: not helper.board.is_as_found)
    helper.kill()
    _, errors = agent.process.communicate(timeout=30)
    assert agent.process.returncode == 1
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("hold", "word"),
    [
        ("gpu_freq_mhz: 407", "no level 407"),
        ("gpu: 408", "no knob 'gpu'"),
        ("- 1", "must map knobs to levels"),
        ("gpu_freq_mhz: true", "must map knobs to levels"),
        ("{", "is not YAML at line 1; write"),
    ],
)
def test_what_cannot_be_held_is_one_sentence(helper: Helper, hold: str, word: str) -> None:
    helper.start()
    agent = Agent(helper, hold)
    _, errors = agent.process.communicate(timeout=30)
    assert agent.process.returncode == 1
    assert word in errors
    assert len([line for line in errors.splitlines() if line.strip()]) == 1
    assert "Traceback" not in errors
    assert helper.board.is_as_found
