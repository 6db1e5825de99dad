"""The helper as a process of its own, over a board of files."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from polythrottle_agent.privileged.client import HelperClient, HelperError
from polythrottle_agent.privileged.protocol import SOCKET_VARIABLE
from tests.fakes.file_board import FileBoard

REPOSITORY = Path(__file__).parents[3]
START_S = 20.0

HELPER = """
import sys
from polythrottle_agent.privileged.main import main
from tests.fakes.file_board import discover_file_board
sys.exit(main(sys.argv[1:], discovering=discover_file_board))
"""


class Helper:
    """Starts, kills and restarts polythrottle-helper, as systemd would."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root / "state"
        # The kernel takes 107 bytes of path, and pytest's directories are long.
        self._short = tempfile.TemporaryDirectory(prefix="pt-")
        self.socket = Path(self._short.name) / "helper.sock"
        self.board = FileBoard.as_found(root / "board")
        self.process: subprocess.Popen[bytes] | None = None
        self.options: tuple[str, ...] = ("--lease-s", "3")

    def arguments(self, *more: str) -> list[str]:
        return [
            sys.executable, "-c", HELPER,
            "--root", str(self.root), "--state-dir", str(self.state), "--socket", str(self.socket),
            *self.options, *more,
        ]  # fmt: skip

    def start(self, **environment: str) -> None:
        env = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
        self.process = subprocess.Popen(self.arguments(), env=env, cwd=REPOSITORY)
        self.until(self._listens, START_S)

    def restore(self) -> subprocess.CompletedProcess[str]:
        """What ExecStopPost runs."""
        env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        return subprocess.run(
            self.arguments("--restore"), env=env, cwd=REPOSITORY, capture_output=True, text=True, check=False
        )

    def kill(self, number: int = signal.SIGKILL) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(30)

    def client(self) -> HelperClient:
        return HelperClient(self.socket, answer_s=20)

    def raw(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(10)
        connection.connect(str(self.socket))
        return connection

    def _listens(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, "the helper ended"
        try:
            self.client().close()
        except HelperError:
            return False
        return True

    def until(self, condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
        ends = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < ends, "it did not happen in time"
            time.sleep(0.02)


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Helper]:
    helper = Helper(tmp_path)
    monkeypatch.setenv(SOCKET_VARIABLE, str(helper.socket))
    yield helper
    if helper.process is not None and helper.process.poll() is None:
        helper.kill(signal.SIGTERM)
