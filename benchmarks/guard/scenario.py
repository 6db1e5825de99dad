"""One emulated board behind FUSE, an HTTP service on it, the root helper, the guard, and too much load.

Every part is a process of its own, as on a machine: the board with its service, the helper, the guard. This
process floods the service with a load generator and looks at the clock files behind everybody's back.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from polythrottle.clock import RealClock
from polythrottle_agent.emulation.machine import Machine
from polythrottle_agent.guard.sources import TellsQueries
from polythrottle_agent.privileged.client import HelperClient, HelperError
from polythrottle_agent.workloads.opening import WorkloadOptions, open_workload

BOARD = "orin-nano-8gb"
KEPT = {"gpu_freq_mhz": 408.0, "mem_freq_mhz": 2133.0}
SLO = "p99<400ms"
BATCH = 4
RATE, FLOOD = 12.0, 120.0
"""Queries a second that the guard sends, and that come on top: more than the kept clocks can serve."""
CLOCK_FILES = ("gpu/max_freq", "emc/mrq_rate_locked")
START_S, BREACH_S = 30.0, 60.0
LOOK_S = 0.005


def why_not() -> str | None:
    """Why the scenario cannot be played here; None where it can."""
    if not Path("/dev/fuse").exists():
        return "there is no /dev/fuse here"
    if shutil.which("fusermount3") is None:
        return "fusermount3 is missing (apt install fuse3)"
    if find_spec("mfusepy") is None:
        return "mfusepy is missing (pip install 'polythrottle[emulator]')"
    return None


def _go_first() -> None:
    """Before whatever else runs here: a board's kernel does not share a processor with other users' work."""
    with contextlib.suppress(PermissionError):
        os.nice(-15)


@dataclass(frozen=True)
class Breach:
    """One breach. All times in seconds after the guard detected it.

    clocks_s: until the clock files read as they did before anything was kept, seen from outside.
    confirmed_s: until every control was put back and read back, as the guard says.
    """

    clocks_s: float
    confirmed_s: float
    reason: str


@dataclass
class Scene:
    """A board with its service, and a helper."""

    directory: Path
    root: Path
    url: str
    files: tuple[Path, ...]

    @property
    def environment(self) -> dict[str, str]:
        return environment(self.directory, self.root)

    @property
    def clocks(self) -> tuple[str, ...]:
        """The files that the kept configuration is set through, as a program reads them."""
        return tuple(file.read_text().strip() for file in self.files)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """A command of polythrottle, as a process."""
        script = "from polythrottle.cli.main import main; main()"
        return subprocess.Popen(
            [sys.executable, "-u", "-c", script, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
        )

    def client(self) -> HelperClient:
        return HelperClient(self.directory / "helper.sock")

    def keep(self) -> None:
        """What `polythrottle apply --keep` leaves behind."""
        with self.client() as client:
            client.request("lease", owner="benchmark")
            client.request("apply", settings=KEPT, reason="benchmark")
            client.request("keep", for_s=None, reason="benchmark")

    def put_back(self) -> None:
        with self.client() as client:
            client.request("put_back", force=True)


def environment(directory: Path, root: Path) -> dict[str, str]:
    return {
        **os.environ,
        "POLYTHROTTLE_SYSROOT": str(root),
        "POLYTHROTTLE_STATE_DIR": str(directory),
        "POLYTHROTTLE_HELPER_SOCKET": str(directory / "helper.sock"),
        "COLUMNS": "200",
    }


@contextmanager
def scene() -> Iterator[Scene]:
    """
    Raises:
        RuntimeError: a process did not start.
    """
    with tempfile.TemporaryDirectory(prefix="pt-") as name:
        directory, root = Path(name), Path(name) / "board"
        root.mkdir()
        script = "from polythrottle.cli.main import main; main()"
        arguments = (
            "emulate",
            "serve",
            BOARD,
            "--mount",
            str(root),
            "--port",
            "0",
            "--batch-size",
            str(BATCH),
        )
        board = subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env=environment(directory, root),
            preexec_fn=_go_first,
        )
        helper = None
        try:
            url = _url(board)
            helper = subprocess.Popen(
                [
                    sys.executable, "-m", "polythrottle_agent.privileged.main", "--no-probe",
                    "--root", str(root), "--state-dir", str(directory / "device"),
                    "--socket", str(directory / "helper.sock"),
                ],
                env=environment(directory, root),
                stderr=subprocess.DEVNULL,
                preexec_fn=_go_first,
            )  # fmt: skip
            names = Machine(BOARD, clock=RealClock())
            found = Scene(directory, root, url, tuple(root / names.node(n).lstrip("/") for n in CLOCK_FILES))
            _until(lambda: _answers(found), START_S, "the helper does not answer")
            yield found
        finally:
            for process in (helper, board):
                if process is not None:
                    process.send_signal(signal.SIGTERM)
                    process.wait(START_S)


def breach(scene: Scene, calm_s: float = 6.0) -> Breach:
    """Keep a configuration, guard it, flood the service, and watch the clocks come back.

    Raises:
        RuntimeError: the guard does not fall back in time, or the clocks do not come back.
    """
    before = scene.clocks
    scene.keep()
    if scene.clocks == before:
        raise RuntimeError("the kept configuration did not change the clocks")
    guard = _Guard(scene)
    flood = _Flood(scene.url)
    try:
        guard.wait_for("started", START_S)
        time.sleep(calm_s)
        if guard.seen("fell_back"):
            raise RuntimeError("the guard fell back before anything was wrong")
        flood.start()
        restored_s = _when(lambda: scene.clocks == before, BREACH_S)
        event = guard.wait_for("fell_back", BREACH_S)
    finally:
        flood.stop()
        guard.stop()
        scene.put_back()
    return Breach(restored_s - event["detected_s"], event["took_s"], event["reason"])


class _Guard:
    """`polythrottle guard --json` as a process; its lines are read by a thread."""

    def __init__(self, scene: Scene) -> None:
        settings = scene.directory / "kept.json"
        settings.write_text(json.dumps(KEPT))
        script = "from polythrottle.cli.main import main; main()"
        self._process = subprocess.Popen(
            [
                sys.executable, "-c", script, "guard", str(settings), "--json",
                "--watch", f"http:{scene.url}", "--rate", f"{RATE:g}", "--latency-slo", SLO,
                "--rate-band", "none", "--state-dir", str(scene.directory / "guard"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=scene.environment,
            preexec_fn=_go_first,
        )  # fmt: skip
        self._events: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._events.append(json.loads(line))

    def seen(self, kind: str) -> dict[str, Any] | None:
        return next((e for e in self._events if e["event"] == kind), None)

    def wait_for(self, kind: str, within_s: float) -> dict[str, Any]:
        _until(
            lambda: self.seen(kind) is not None or self._process.poll() is not None,
            within_s,
            f"the guard did not say {kind}",
        )
        event = self.seen(kind)
        if event is None:
            raise RuntimeError(f"the guard ended before it said {kind}")
        return event

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)
        self._process.wait(START_S)
        self._reader.join(START_S)


class _Flood:
    """More queries than the kept clocks can serve."""

    def __init__(self, url: str) -> None:
        opened = open_workload(f"http:{url}", WorkloadOptions(rate_per_s=FLOOD), RealClock())
        assert isinstance(opened.workload, TellsQueries)
        self._workload = opened.workload
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        self._workload.tell_queries(lambda *_: None, self._stopped.is_set)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(START_S)


def _url(board: subprocess.Popen[str]) -> str:
    assert board.stdout is not None
    for line in board.stdout:
        words = [word.rstrip(",") for word in line.split() if word.startswith("http://")]
        if words:
            threading.Thread(target=board.stdout.read, daemon=True).start()
            return words[0]
    raise RuntimeError("the emulated board did not start")


def _answers(scene: Scene) -> bool:
    try:
        scene.client().close()
    except HelperError:
        return False
    return True


def _when(condition: Any, within_s: float) -> float:
    """The moment at which a condition was first seen to hold."""
    ends_s = time.monotonic() + within_s
    while time.monotonic() < ends_s:
        if condition():
            return time.monotonic()
        time.sleep(LOOK_S)
    raise RuntimeError("the clocks did not come back in time")


def _until(condition: Any, within_s: float, problem: str) -> None:
    ends_s = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > ends_s:
            raise RuntimeError(problem)
        time.sleep(0.02)
