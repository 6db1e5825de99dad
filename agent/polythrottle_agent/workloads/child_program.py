"""A program in a process group of its own, whose output is read line by line without waiting."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import weakref
from collections.abc import Sequence
from typing import IO

from polythrottle.clock import Clock
from polythrottle_agent.ports import ControlError

PATIENCE_S = 2.0
"""How long a program may take to end when it is asked to, before it is killed."""

_CHUNK = 1 << 16
_STDERR_KEPT = 300


class ChildProgram:
    """One run of a program. It is killed with all that it started, at the latest when this process ends.

    Should this process be killed itself, the program finds its output closed with the next line it prints.
    """

    def __init__(self, words: Sequence[str], clock: Clock) -> None:
        """
        Raises:
            ControlError: it cannot be started.
        """
        self._clock = clock
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop
        try:
            self._process = subprocess.Popen(
                list(words),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                start_new_session=True,
            )
        except OSError as error:
            self._stderr.close()
            raise ControlError(f"{words[0]} cannot be started ({error.strerror})") from error
        assert self._process.stdout is not None
        self._output = self._process.stdout
        os.set_blocking(self._output.fileno(), False)
        self._rest = b""
        self._has_closed_output = False
        self._finalizer = weakref.finalize(self, _kill_group, self._process)

    def lines(self) -> list[bytes]:
        """What it has printed since the last call, by whole lines; empty when there is nothing."""
        read = []
        while not self._has_closed_output:
            chunk = self._output.read(_CHUNK)
            if chunk is None:
                break
            self._has_closed_output = not chunk
            read.append(chunk)
        *lines, self._rest = (self._rest + b"".join(read)).split(b"\n")
        if self._has_closed_output and self._rest:
            lines, self._rest = [*lines, self._rest], b""
        return lines

    @property
    def ended(self) -> str | None:
        """How it ended, once it has and its output is read: `ended with 3: …`. None while it runs."""
        if not self._has_closed_output or self._process.poll() is None:
            return None
        code = self._process.returncode
        how = f"ended with {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
        said = self._said()
        return f"{how}: {said}" if said else how

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    def stop(self) -> None:
        """Ask the whole group to end, then kill it. Idempotent."""
        if self._finalizer.alive:
            _signal_group(self._process, signal.SIGTERM)
            give_up_s = self._clock.now() + PATIENCE_S
            while self._process.poll() is None and self._clock.now() < give_up_s:
                self._clock.sleep(0.01)
            self._finalizer()
        self._output.close()
        self._stderr.close()

    def _said(self) -> str:
        """The end of what it wrote to stderr, on one line."""
        self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(self._stderr.tell() - 4 * _STDERR_KEPT, 0))
        lines = self._stderr.read().decode("utf-8", "replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return last[:_STDERR_KEPT]


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    # The group's number stays taken as long as one of it lives, or its leader was not waited for.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    _signal_group(process, signal.SIGKILL)
    process.wait()
