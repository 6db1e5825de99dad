from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from polythrottle_agent.privileged.notify import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(tmp_path / "notify"))
    listener.settimeout(2)
    return listener


def test_systemd_hears_that_we_are_ready_alive_and_stopping(manager: socket.socket, tmp_path: Path) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "60000000"})
    assert notifier.watchdog_s == 60.0
    notifier.ready("a board\nREADY=0")
    notifier.alive()
    notifier.stopping()
    heard = [manager.recv(1000) for _ in range(3)]
    assert heard == [b"READY=1\nSTATUS=a board READY=0", b"WATCHDOG=1", b"STOPPING=1"]


def test_an_abstract_socket_too() -> None:
    name = f"polythrottle-test-{os.getpid()}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind("\0" + name)
    listener.settimeout(2)
    Notifier({"NOTIFY_SOCKET": f"@{name}"}).ready("x")
    assert listener.recv(1000).startswith(b"READY=1")


@pytest.mark.parametrize("environ", [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}])
def test_without_systemd_nothing_happens(environ: dict[str, str]) -> None:
    notifier = Notifier(environ)
    assert notifier.watchdog_s is None
    notifier.ready("x")
    notifier.alive()


def test_a_manager_that_is_gone_is_logged_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready("x")
    assert "READY=1" in caplog.text
