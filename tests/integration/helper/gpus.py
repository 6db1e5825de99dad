"""A machine with pretended GPUs, and `polythrottle` on it as processes of their own."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polythrottle_agent.privileged.client import HelperClient, HelperError

NVML_FAKE = Path(__file__).parents[2] / "fakes" / "nvml"
sys.path.insert(0, str(NVML_FAKE))

from nvml_fake import FakeNvml, build, compiler, environment  # noqa: E402 - found by the line above

POLYTHROTTLE = (sys.executable, "-c", "from polythrottle.cli.main import main; main()")
HELPER = (sys.executable, "-m", "polythrottle_agent.privileged.main", "--no-probe")


@dataclass
class Gpus:
    """`directory` holds everything; `uuids` are the GPUs in the driver's order."""

    directory: Path
    fake: FakeNvml
    environment: Mapping[str, str]
    uuids: tuple[str, ...]
    running: list[subprocess.Popen[Any]] = field(default_factory=list)

    @classmethod
    def on(cls, directory: Path, names: str) -> Gpus:
        library = build(directory)
        found = environment(library, directory / "gpus", names)
        os.environ.update(found)
        (directory / "root/dev").mkdir(parents=True)
        (directory / "root/dev/nvidiactl").touch()
        fake = FakeNvml(library)
        from polythrottle_agent.nvml.session import NvmlSession

        with NvmlSession() as session:
            uuids = session.gpus()
        for number in range(len(uuids)):
            # As on a server; and a limit that is nobody's default, so that a wrong one shows.
            limit_mw = fake.get("limit_mw", number) - 10_000 * (number + 1)
            fake.set(number, persistence=1, limit_mw=limit_mw)
        env = {
            **os.environ,
            **found,
            "POLYTHROTTLE_SYSROOT": str(directory / "root"),
            "POLYTHROTTLE_STATE_DIR": str(directory),
            "POLYTHROTTLE_HELPER_SOCKET": str(directory / "h"),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "300",
        }
        return cls(directory, fake, env, uuids)

    def state(self, gpu: int) -> Mapping[str, float]:
        return dict(self.fake.settings(gpu))

    @property
    def states(self) -> list[Mapping[str, float]]:
        return [self.state(gpu) for gpu in range(len(self.uuids))]

    @property
    def journals(self) -> list[Path]:
        return sorted((self.directory / "device").glob("originals-*.json"))

    def file(self, **settings: Any) -> str:
        path = self.directory / "settings.json"
        path.write_text(json.dumps(settings))
        return str(path)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*POLYTHROTTLE, *arguments],
            env=self.environment, input="", capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    def helper(self, *arguments: str) -> subprocess.Popen[str]:
        command = [
            *HELPER, *arguments, "--root", str(self.directory / "root"),
            "--state-dir", str(self.directory / "device"), "--socket", str(self.directory / "h"),
        ]  # fmt: skip
        process = subprocess.Popen(command, env=self.environment, stderr=subprocess.PIPE, text=True)
        self.running.append(process)
        return process

    def client(self) -> HelperClient:
        until(lambda: _answers(self.directory / "h"))
        return HelperClient(self.directory / "h", answer_s=20)

    def killed_while_it_holds(self, gpu: int, **settings: Any) -> None:
        """A run as root on one GPU that is killed with its settings in force."""
        before = self.state(gpu)
        process = subprocess.Popen(
            [
                *POLYTHROTTLE, "apply", self.file(**settings), "--for", "10m", "--yes",
                "--device", f"auto:{self.uuids[gpu]}",
            ],
            env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        self.running.append(process)
        until(lambda: self.state(gpu) != before)
        time.sleep(0.3)  # all of its settings
        process.kill()
        process.wait()

    def in_a_terminal(self, *arguments: str) -> tuple[subprocess.Popen[bytes], int]:
        """`polythrottle` as the foreground process of a terminal of its own; and our end of that terminal."""
        ours, theirs = pty.openpty()

        def take_the_terminal() -> None:
            fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

        process = subprocess.Popen(
            [*POLYTHROTTLE, *arguments],
            env=self.environment, stdin=theirs, stdout=theirs, stderr=theirs,
            start_new_session=True, preexec_fn=take_the_terminal,
        )  # fmt: skip
        os.close(theirs)
        self.running.append(process)
        return process, ours

    def close(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stderr is not None:
                process.stderr.close()


def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    ends_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends_s, "it did not happen in time"
        time.sleep(0.02)


def _answers(path: Path) -> bool:
    try:
        HelperClient(path).close()
    except HelperError:
        return False
    return True


def why_not() -> str | None:
    if os.geteuid() != 0:
        return "NOT TESTED: NVML's setters need root"
    if compiler() is None:
        return "NOT TESTED: no C compiler to build the pretended NVML with (apt install gcc)"
    return None
