"""The process that owns ONNX Runtime: `python -m polythrottle_agent.workloads.onnx_child CONTROL LOAD`.

Two inherited sockets carry messages (see `frames`). Over CONTROL the parent asks and waits: `open`,
`threads`, `load`, `warm_up`. LOAD carries queries: `{"q": id, "n": 1}` is answered `{"q": [ids], "s": 0.01}`
or `{"q": [ids], "error": …}`, for all of a batch together; `{"x": id}` withdraws one that nobody waits for.

Batching is dynamic and never waits: as soon as the model is free, the oldest queries that fit into one batch
are served together. Pre-processing, where there is any, runs beside the model, one query ahead of it.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polythrottle_agent.workloads.frames import BadFrame, FrameSocket, Message
from polythrottle_agent.workloads.onnx_inputs import Array, Input, Samples, Unusable

PREPROCESSING = "preprocessing"
"""The stage that runs on the CPU before the model."""

_PREFERRED = ("CUDAExecutionProvider", "CPUExecutionProvider")
_PREFIX = re.compile(r"^\[ONNXRuntimeError\]\s*:\s*\d+\s*:\s*(\w+)\s*:\s*")
_OUT_OF_MEMORY = re.compile(
    r"bad_alloc|failed to allocate memory|out of memory|unable to allocate", re.IGNORECASE
)
_MOST_TEXT = 240


class Refused(Exception):
    """What was asked cannot be done; the text is the part of a sentence that says why."""


@dataclass
class _Query:
    id: int
    n: int
    prepared: list[Array]


class _Session:
    """ONNX Runtime with one model."""

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime  # type: ignore[import-untyped]

        self._runtime: Any = onnxruntime
        onnxruntime.set_default_logger_severity(4)  # what goes wrong is said once, in a sentence
        self.version = str(onnxruntime.__version__)
        self.path = path
        self.threads = threads
        self.session: Any = self._load(threads)

    def _load(self, threads: int) -> Any:
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # By default idle threads spin for the next query, which costs energy at every load but the highest.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        there = self._runtime.get_available_providers()
        providers = [name for name in _PREFERRED if name in there]
        return self._runtime.InferenceSession(str(self.path), options, providers=providers)

    def use(self, threads: int) -> None:
        """The number of threads is fixed when a model is loaded, so it is loaded again."""
        if threads != self.threads:
            self.session = None  # not two of them at a time: a large model may fit only once
            self.session = self._load(threads)
            self.threads = threads

    @property
    def inputs(self) -> tuple[Input, ...]:
        return tuple(
            Input(i.name, i.type, tuple(d if isinstance(d, (int, str)) else None for d in i.shape))
            for i in self.session.get_inputs()
        )

    @property
    def provider(self) -> str:
        return str(self.session.get_providers()[0])

    def run(self, feed: Mapping[str, Array]) -> None:
        self.session.run(None, feed)


class Child:
    """Serves until its parent has gone."""

    def __init__(self, control: socket.socket, load: socket.socket) -> None:
        self._control = FrameSocket(control)
        self._load = FrameSocket(load)
        self._session: _Session | None = None
        self._samples: Samples | None = None
        self._batch = 1
        self._stage: str | None = None
        self._is_free = threading.Condition()
        self._arrived: deque[_Query] = deque()
        self._ready: deque[_Query] = deque()
        self._at_work = threading.Lock()
        self._writing = threading.Lock()
        self._prepared = 0

    def run(self) -> None:
        for work in (self._receive, self._prepare, self._serve):
            threading.Thread(target=_until_the_end, args=(work,), daemon=True).start()
        while True:
            message = self._control.read()
            if message is None:
                return
            try:
                with self._at_work:
                    answer = self._do(message)
            except Refused as refused:
                answer = {"error": str(refused)}
            self._control.write(answer)

    # What is asked

    def _do(self, message: Message) -> Message:
        asked = message.get("do")
        if asked == "open":
            return self._open(message)
        if self._session is None or self._samples is None:
            raise Refused("no model is open")
        if asked == "threads":
            return self._use_threads(self._session, int(message["n"]))
        if asked == "load":
            self._batch = self._samples.fixed_batch or int(message["batch"])
            self._stage = message.get("stage")
            with self._is_free:
                self._arrived.clear()
                self._ready.clear()
            return {}
        if asked == "warm_up":
            for _ in range(int(message["batches"])):
                self._run_batch(self._batch, [])
            return {}
        raise Refused(f"{asked!r} is not known")

    def _open(self, message: Message) -> Message:
        limit = message.get("memory_limit")
        if limit is not None:
            import resource

            resource.setrlimit(resource.RLIMIT_AS, (int(limit), int(limit)))
        path = Path(message["model"])
        data = None if message.get("data") is None else Path(message["data"])
        try:
            self._session = _Session(path, int(message["threads"]))
            self._samples = Samples(self._session.inputs, data, int(message["seed"]))
        except Unusable as unusable:
            raise Refused(str(unusable)) from unusable
        except Exception as error:
            raise Refused(reason(error)) from error
        return {
            "fixed_batch": self._samples.fixed_batch,
            "stages": [PREPROCESSING] if self._samples.images is not None else [],
            "version": self._session.version,
            "provider": self._session.provider,
        }

    def _use_threads(self, session: _Session, n: int) -> Message:
        try:
            session.use(n)
        except Exception as error:
            raise Refused(reason(error)) from error
        return {"threads": session.threads}

    # What is served

    def _receive(self) -> None:
        while True:
            message = self._load.read()
            if message is None:
                return
            with self._is_free:
                if "x" in message:
                    for waiting in (self._arrived, self._ready):
                        for query in [q for q in waiting if q.id == message["x"]]:
                            waiting.remove(query)
                    continue
                query = _Query(int(message["q"]), int(message["n"]), [])
                (self._arrived if self._has_images else self._ready).append(query)
                self._is_free.notify_all()

    @property
    def _has_images(self) -> bool:
        return self._samples is not None and self._samples.images is not None

    def _prepare(self) -> None:
        """Pre-process one query after the other, not further ahead of the model than one batch."""
        while True:
            with self._is_free:
                self._is_free.wait_for(lambda: self._arrived and self._n_ready < max(self._batch, 1))
                query = self._arrived.popleft()
            began = time.perf_counter()
            try:
                assert self._samples is not None
                query.prepared = [self._samples.prepare(self._prepared + i) for i in range(query.n)]
                self._prepared += query.n
            except Exception as error:
                self._tell({"q": [query.id], "error": reason(error)})
                continue
            if self._stage == PREPROCESSING:
                self._tell({"q": [query.id], "s": time.perf_counter() - began})
                continue
            with self._is_free:
                self._ready.append(query)
                self._is_free.notify_all()

    @property
    def _n_ready(self) -> int:
        return sum(query.n for query in self._ready)

    def _serve(self) -> None:
        while True:
            with self._is_free:
                self._is_free.wait_for(lambda: self._ready)
                queries = self._take()
                self._is_free.notify_all()
            ids = [query.id for query in queries]
            began = time.perf_counter()
            try:
                with self._at_work:
                    prepared = [picture for query in queries for picture in query.prepared]
                    self._run_batch(sum(query.n for query in queries), prepared)
            except Refused as refused:
                self._tell({"q": ids, "error": str(refused)})
            else:
                self._tell({"q": ids, "s": time.perf_counter() - began})

    def _take(self) -> list[_Query]:
        """The oldest queries that fit into one batch; at least one."""
        taken = [self._ready.popleft()]
        n = taken[0].n
        while self._ready and n + self._ready[0].n <= self._batch:
            taken.append(self._ready.popleft())
            n += taken[-1].n
        return taken

    def _run_batch(self, n: int, prepared: list[Array]) -> None:
        samples, session = self._samples, self._session
        assert samples is not None
        assert session is not None
        try:
            if samples.images is not None and not prepared:
                prepared = [samples.prepare(i) for i in range(n)]
            session.run(samples.batch(n, prepared))
        except Exception as error:
            raise Refused(reason(error)) from error

    def _tell(self, message: Message) -> None:
        try:
            with self._writing:
                self._load.write(message)
        except OSError:
            os._exit(0)  # nobody is left to serve


def reason(error: BaseException) -> str:
    """What ONNX Runtime or numpy could not do, as part of a sentence: one line, without their prefixes."""
    text = str(error).strip()
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(text):
        return "there is not enough memory"
    match = _PREFIX.match(text)
    code, said = (match[1], text[match.end() :]) if match else ("", text)
    line = (said.splitlines() or [type(error).__name__])[0].strip().rstrip(".")
    line = line if len(line) <= _MOST_TEXT else line[:_MOST_TEXT].rstrip() + " …"
    if code in ("INVALID_PROTOBUF", "NO_MODEL"):
        return "it is not an ONNX model, or it is damaged"
    if code == "NO_SUCHFILE":
        return f"a file is missing ({line})"
    if code in ("NOT_IMPLEMENTED", "INVALID_GRAPH"):
        return f"ONNX Runtime does not know what it asks for ({line})"
    return f"ONNX Runtime refused it ({line})"


def _until_the_end(work: Callable[[], None]) -> None:
    """A thread that ends takes the process with it: half a server is worse than none."""
    try:
        work()
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def _die_first() -> None:
    """Where memory runs out, the kernel is to take this process and not the one that tunes."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    except OSError:  # not Linux, or not allowed: then the kernel decides by size
        return


def main(arguments: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes the sockets
    _die_first()
    control, load = (socket.socket(fileno=int(number)) for number in arguments)
    try:
        Child(control, load).run()
    except (BadFrame, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
