"""The child process that owns ONNX Runtime, as its parent sees it: started, asked, and found dead."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from polythrottle_agent.workloads.frames import BadFrame, Frames, FrameSocket, Message

MODULE = "polythrottle_agent.workloads.onnx_child"
PATIENCE_S = 600.0
"""For loading a model or one warm-up."""


class ModelError(Exception):
    """The model cannot be served so; the text is the part of a sentence that says why."""


@dataclass(frozen=True)
class Model:
    """What to serve: an .onnx file, samples for it (None: made from its signature), and a seed for those.

    `memory_limit` in bytes bounds the process; None leaves it to the machine.
    """

    path: Path
    data: Path | None = None
    seed: int = 0
    memory_limit: int | None = None


@dataclass(frozen=True)
class Known:
    """What the process found in the model.

    `fixed_batch` is how many queries a call must hold; None where any number will do.
    """

    fixed_batch: int | None
    stages: tuple[str, ...]
    version: str
    provider: str


class OnnxProcess:
    """Starts when it is needed, and again when it has died. It ends with its parent, however that ends."""

    def __init__(self, model: Model, threads: int) -> None:
        self.model = model
        self._threads = threads
        self._process: subprocess.Popen[bytes] | None = None
        self._control: FrameSocket | None = None
        self._load: socket.socket | None = None
        self._answers = Frames()
        self._said: IO[bytes] | None = None
        self._known: Known | None = None
        self._loaded: tuple[int, str | None] = (1, None)
        self._end: Callable[[], object] | None = None

    @property
    def threads(self) -> int:
        return self._threads

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def known(self) -> Known:
        """What is in the model.

        Raises:
            ModelError: it cannot be served.
        """
        self.start()
        assert self._known is not None
        return self._known

    def start(self) -> None:
        """Have it run.

        Raises:
            ModelError: the model cannot be opened.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self.stop()
        control, theirs = socket.socketpair()
        load, their_load = socket.socketpair()
        inherited = [theirs.fileno(), their_load.fileno()]
        try:
            self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `stop`
            self._process = subprocess.Popen(
                [sys.executable, "-m", MODULE, *map(str, inherited)],
                pass_fds=inherited,
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=self._said,
                start_new_session=True,
            )
        except OSError as error:
            control.close()
            load.close()
            raise ModelError(f"no process could be started for it ({error.strerror})") from error
        finally:
            theirs.close()
            their_load.close()
        self._answers = Frames()
        control.settimeout(PATIENCE_S)
        self._control, self._load = FrameSocket(control), load
        self._end = weakref.finalize(self, _put_an_end, self._process, control, load)
        try:
            found = self._ask(
                {
                    "do": "open",
                    "model": str(self.model.path),
                    "data": None if self.model.data is None else str(self.model.data),
                    "threads": self._threads,
                    "seed": self.model.seed,
                    "memory_limit": self.model.memory_limit,
                }
            )
            batch, stage = self._loaded
            self._ask({"do": "load", "batch": batch, "stage": stage})
        except ModelError:
            self.stop()
            raise
        self._known = Known(found["fixed_batch"], tuple(found["stages"]), found["version"], found["provider"])

    def use_threads(self, threads: int) -> None:
        """
        Raises:
            ModelError: the model cannot be loaded with so many.
        """
        before, self._threads = self._threads, threads
        try:
            self.start()
            self._ask({"do": "threads", "n": threads})
        except ModelError:
            self._threads = before
            self.stop()
            raise

    def begin(self, batch: int, stage: str | None = None) -> tuple[socket.socket, Frames]:
        """Serve from here on in batches of up to so many queries, or one stage alone.

        Returns a socket of the caller's own to the child's queue, which is empty, and what puts the answers
        together: one window may leave half a message behind for the next one.

        Raises:
            ModelError: it cannot be served so.
        """
        self._use(batch, stage)
        assert self._load is not None
        return self._load.dup(), self._answers

    def _use(self, batch: int, stage: str | None) -> None:
        self._loaded = (batch, stage)
        self.start()
        self._ask({"do": "load", "batch": batch, "stage": stage})

    def warm_up(self, batch: int, batches: int) -> None:
        """
        Raises:
            ModelError: a batch of that size cannot be served.
        """
        self._use(batch, None)
        self._ask({"do": "warm_up", "batches": batches})

    def death(self) -> str | None:
        """How it died, as part of a sentence; None while it lives or where it was never started."""
        if self._process is None:
            return None
        code = self._process.poll()
        return None if code is None else self._epitaph(code)

    def stop(self) -> None:
        """End it, if it runs."""
        if self._end is not None:
            self._end()
        if self._said is not None:
            self._said.close()
        self._process = self._control = self._load = self._said = self._end = None

    def _ask(self, message: Message) -> Message:
        assert self._control is not None
        assert self._process is not None
        try:
            self._control.write(message)
            answer = self._control.read()
        except TimeoutError:
            self.stop()
            raise ModelError(f"ONNX Runtime did not answer within {PATIENCE_S:g} s") from None
        except (OSError, BadFrame):
            answer = None
        if answer is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10.0)
            code = self._process.poll()
            raise ModelError(self._epitaph(code) if code is not None else "ONNX Runtime hung up")
        if "error" in answer:
            raise ModelError(str(answer["error"]))
        return answer

    def _epitaph(self, code: int) -> str:
        if code == -signal.SIGKILL:
            return "the ONNX Runtime process was killed, most likely for want of memory"
        if code < 0:
            return f"the ONNX Runtime process crashed ({signal.Signals(-code).name})"
        return f"the ONNX Runtime process ended ({self._last_words() or f'exit code {code}'})"

    def _last_words(self) -> str:
        if self._said is None:
            return ""
        size = os.fstat(self._said.fileno()).st_size
        self._said.seek(max(size - 2000, 0))
        lines = self._said.read().decode("utf-8", "replace").split("\n")
        return next((line.strip().rstrip(".") for line in reversed(lines) if line.strip()), "")


def _put_an_end(process: subprocess.Popen[bytes], *sockets: socket.socket) -> None:
    """It would end by itself when its sockets are closed, unless it is deep inside a model."""
    for sock in sockets:
        sock.close()
    if process.poll() is None:
        process.kill()
        process.wait()
