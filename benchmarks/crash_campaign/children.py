"""Real processes, made by fork so that a thousand of them take minutes and not hours."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

CRASHED = 70
"""Exit status of a child that failed by itself: a bug, not a kill."""


class KillAt:
    """Kills this process without warning at the `step`-th thing it is told. None: only counts."""

    def __init__(self, step: int | None = None) -> None:
        self._left = step
        self.seen: list[str] = []

    def __call__(self, what: str) -> None:
        self.seen.append(what)
        if self._left is None:
            return
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1


def spawn(action: Callable[[], int], log: Path) -> int:
    """Run `action` in a child of its own; its output goes to `log`. Returns the process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = CRASHED
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        code = action()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def ask(action: Callable[[], Any], log: Path) -> Any:
    """What `action` answers, run in a child: this process stays clean of drivers and threads.

    Raises:
        RuntimeError: the child failed; the log says how.
    """
    reader, writer = os.pipe()

    def answer() -> int:
        os.write(writer, json.dumps(action()).encode())
        return 0

    pid = spawn(answer, log)
    os.close(writer)
    content = b""
    while block := os.read(reader, 65536):
        content += block
    os.close(reader)
    if ended(pid) != 0:
        raise RuntimeError(f"a child failed; see {log}:\n{log.read_text()[-3000:]}")
    return json.loads(content)


def ended(pid: int) -> int:
    """Wait for a child. Its exit status, or minus the signal that ended it."""
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def kill(pid: int) -> int:
    """kill -9, and wait."""
    os.kill(pid, signal.SIGKILL)
    return ended(pid)


def wait_until(condition: Callable[[], bool], timeout_s: float, step_s: float = 0.01) -> bool:
    """Whether it came true in time."""
    ends_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > ends_s:
            return False
        time.sleep(step_s)
    return True
