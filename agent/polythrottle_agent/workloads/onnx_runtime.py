"""`onnx:FILE`: a model served by ONNX Runtime in a child process of this one.

The child takes queries over a socket and batches what waits, so it is a service like any other: load,
queueing and time-outs are those of the load generator. Nothing here imports numpy or onnxruntime.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from polythrottle.configuration import Level, format_level
from polythrottle.errors import InvalidInputError
from polythrottle.measurement import Unavailable
from polythrottle.objective import format_latency
from polythrottle.studies import MeasurementPlan
from polythrottle_agent.load.batching import DEFAULT_BATCH_SIZES, BatchControl, BatchSize
from polythrottle_agent.load.options import DEFAULT_CONNECTIONS
from polythrottle_agent.load.sender import GOOD, Answer, ServiceError
from polythrottle_agent.ports import Control, ControlError, MayEnd, Served, Workload
from polythrottle_agent.workloads.driven import DrivenWorkload
from polythrottle_agent.workloads.frames import BadFrame, Frames, Message, frame
from polythrottle_agent.workloads.onnx_process import Model, ModelError, OnnxProcess

if TYPE_CHECKING:
    from polythrottle_agent.workloads.opening import Asked, Opened

THREADS_KNOB = "intra_op_threads"
"""CPU threads that share the work of one operator."""

_OPTIONS = (
    "rate_per_s",
    "arrivals",
    "closed_loop",
    "connections",
    "time_out_s",
    "batch_sizes",
    "data",
)

ON_CPU = "CPUExecutionProvider"

MOSTLY_WAITING = 4.0
"""Times the mean service time from which a latency is said to be mostly queueing."""

HUNG_UP = "the ONNX Runtime process died"


class ServiceTimes:
    """What the child says its batches took, over one window."""

    def __init__(self) -> None:
        self.n_batches = 0
        self.n_queries = 0
        self.seconds = 0.0

    def add(self, n_queries: int, seconds: float) -> None:
        self.n_batches += 1
        self.n_queries += n_queries
        self.seconds += seconds

    @property
    def mean_s(self) -> float | None:
        """Of a batch; None before the first."""
        return self.seconds / self.n_batches if self.n_batches else None

    @property
    def mean_batch(self) -> float | None:
        """Queries in a batch; None before the first."""
        return self.n_queries / self.n_batches if self.n_batches else None


class OnnxSender:
    """Carries queries to the child. In a closed loop one request is one full batch."""

    def __init__(
        self, process: OnnxProcess, batch: BatchSize, *, whole_batches: bool = False, stage: str | None = None
    ) -> None:
        """
        Args:
            whole_batches: a request carries a full batch; else one query, and the child batches what waits.
            stage: serve this stage alone, query by query; None for all of them.
        """
        self._process = process
        self._batch = batch
        self._whole_batches = whole_batches
        self._stage = stage
        self._ids = itertools.count(1)
        self._transport: asyncio.WriteTransport | None = None
        self._flying: dict[int, tuple[asyncio.Future[Answer], int]] = {}
        self.times = ServiceTimes()

    @property
    def queries_per_request(self) -> int:
        return self._batch.value if self._whole_batches else 1

    async def open(self, connections: int) -> None:  # noqa: ARG002 - one socket carries them all
        """
        Raises:
            ServiceError: the model cannot be served with these settings.
        """
        self.times = ServiceTimes()
        try:
            sock, answers = self._process.begin(self._batch.value, self._stage)
        except ModelError as error:
            raise ServiceError(str(error)) from error
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_unix_connection(lambda: _Answers(self, answers), sock=sock)
        self._transport = transport

    async def send(self, n_queries: int) -> Answer:
        """
        Raises:
            ServiceError: the child has died. It does not come back within a window, so that one ends here.
        """
        transport = self._transport
        if transport is None or transport.is_closing():
            raise ServiceError(HUNG_UP)
        number = next(self._ids)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._flying[number] = (answer, n_queries)
        transport.write(frame({"q": number, "n": n_queries}))
        try:
            return await answer
        finally:
            if self._flying.pop(number, None) is not None and not transport.is_closing():
                transport.write(frame({"x": number}))

    async def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
            self._transport = None
        self.hung_up()

    def answered(self, message: Message) -> None:
        """What the child says of the queries of one batch. Those of an earlier window are not waited for."""
        known = [self._flying.pop(number) for number in message["q"] if number in self._flying]
        if not known:
            return
        if "error" not in message:
            self.times.add(sum(n for _, n in known), float(message["s"]))
        answer = Answer.error(str(message["error"])) if "error" in message else GOOD
        for future, _ in known:
            if not future.done():
                future.set_result(answer)

    def hung_up(self) -> None:
        """The child has gone, or nobody waits for it any more."""
        flying, self._flying = self._flying, {}
        for future, _ in flying.values():
            if not future.done():
                future.set_result(Answer.error(HUNG_UP))


class _Answers(asyncio.Protocol):
    """Reads the child's answers."""

    def __init__(self, sender: OnnxSender, answers: Frames) -> None:
        self._sender = sender
        self._answers = answers
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._answers.feed(data):
                self._sender.answered(message)
        except BadFrame:
            if self._transport is not None:
                self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - how it ended is asked of the process
        self._sender.hung_up()


class OnnxWorkload:
    """A driven workload whose service is a child of ours: what became of that is known."""

    def __init__(
        self,
        driven: DrivenWorkload,
        sender: OnnxSender,
        process: OnnxProcess,
        batch: BatchSize,
        stages: Mapping[str, Workload] | None = None,
    ) -> None:
        self._driven = driven
        self._sender = sender
        self._process = process
        self._batch = batch
        self._stages = dict(stages or {})

    @property
    def name(self) -> str:
        return self._driven.name

    @property
    def model_version(self) -> str:
        return self._driven.model_version

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        return self._driven.batch_sizes

    @property
    def default_batch_size(self) -> int:
        return self._driven.default_batch_size

    @property
    def stages(self) -> Mapping[str, Workload]:
        """What can be served alone: `preprocessing`, where the data are raw images."""
        return self._stages

    def check_statistic(self, statistic: str) -> None:
        self._driven.check_statistic(statistic)

    def warm_up(self, n_queries: int) -> None:
        """Full batches straight into the model: each size has buffers of its own to make.

        Raises:
            ControlError: a batch of this size cannot be served.
        """
        if n_queries < 1:
            return
        batch = self._batch.value
        try:
            self._process.warm_up(batch, -(-n_queries // batch))
        except ModelError as error:
            raise ControlError(f"the model cannot be served in batches of {batch}: {error}") from error

    def serve(self, plan: MeasurementPlan, statistic: str, may_end: MayEnd | None = None) -> Served:
        served = self._driven.serve(plan, statistic, may_end)
        died = self._process.death()
        if died is not None:
            return replace(served, void_reason=died)
        times, latency = self._sender.times, served.latency
        if isinstance(latency, Unavailable) or times.mean_s is None:
            return served
        if latency.latency_s < MOSTLY_WAITING * times.mean_s:
            return served
        note = (
            f"most of the latency is waiting: the model takes {format_latency(times.mean_s)} for a batch, "
            f"with {times.mean_batch:.3g} queries in it in the mean"
        )
        return replace(served, notes=(*served.notes, note))

    @property
    def service_times(self) -> ServiceTimes:
        """What the model itself took in the last window."""
        return self._sender.times


class ThreadsControl:
    """The knob `intra_op_threads`: the model is loaded again with another number of threads."""

    def __init__(self, process: OnnxProcess, cores: int) -> None:
        self._process = process
        self._cores = cores

    @property
    def knob(self) -> str:
        return THREADS_KNOB

    @property
    def levels(self) -> tuple[Level, ...]:
        return tuple(float(n) for n in range(1, self._cores + 1))

    def save(self) -> Mapping[str, str]:
        return {"threads": str(self._process.threads)}

    def apply(self, level: Level) -> None:
        if level not in self.levels:
            raise InvalidInputError(f"{THREADS_KNOB} has no level {format_level(level)}.")
        self._use(int(level))

    def accepted(self) -> Level:
        return float(self._process.threads)

    def observed(self) -> Level:
        return self.accepted()

    def restore(self, saved: Mapping[str, str]) -> None:
        """Nothing outlives the child: what another process saved only sets the number."""
        text = saved.get("threads", "")
        if not text.isdecimal() or int(text) < 1:
            raise ControlError(f"the saved state of {THREADS_KNOB} lacks a number of threads")
        self._use(int(text))

    def _use(self, threads: int) -> None:
        if threads == self._process.threads:
            return
        try:
            self._process.use_threads(threads)
        except ModelError as error:
            raise ControlError(f"the model cannot be loaded with {threads} threads: {error}") from error


def open_onnx(asked: Asked) -> Opened:
    """Serve the file that `onnx:FILE` names.

    Raises:
        InvalidInputError: onnxruntime is missing, the file cannot be served, or no inputs can be made for it.
    """
    from polythrottle_agent.workloads.opening import Opened

    for package in ("onnxruntime", "numpy"):
        if find_spec(package) is None:
            raise InvalidInputError(
                f"Workload {asked.text} needs {package}, which is not installed; "
                "run pip install 'polythrottle[onnx]'."
            )
    options = asked.options
    asked.refuse_other_options(*_OPTIONS)
    load = options.load()
    path = _readable(asked, asked.target)
    data = None if options.data is None else Path(options.data).expanduser()
    cores = len(os.sched_getaffinity(0))
    process = OnnxProcess(Model(path, data, options.seed), threads=cores)
    try:
        known = process.known()
    except ModelError as error:
        raise InvalidInputError(f"Workload {asked.text} cannot be served: {error}.") from error
    if known.fixed_batch is None:
        batch = options.batch(1, DEFAULT_BATCH_SIZES)
    elif options.batch_sizes is not None:
        raise InvalidInputError(
            f"Workload {asked.text} takes batches of {known.fixed_batch} and no other size; "
            "leave --batch-sizes out, or export the model with a dynamic first dimension."
        )
    else:
        batch = BatchSize((), known.fixed_batch)
    closed = load.arrivals is None
    if closed and load.connections == DEFAULT_CONNECTIONS:
        load = replace(load, connections=1)  # one batch in flight, and none that waits behind it
    name, version = f"onnx:{path.name}", _digest(path)

    def driven(sender: OnnxSender, called: str, sizes: BatchSize) -> DrivenWorkload:
        return DrivenWorkload(
            called, version, sender, load, asked.clock, batch=sizes, provenance=asked.provenance
        )

    stages: dict[str, Workload] = {}
    for stage in known.stages:
        alone = OnnxSender(process, BatchSize((), 1), whole_batches=closed, stage=stage)
        called = f"{name}, {stage} alone"
        stages[stage] = OnnxWorkload(driven(alone, called, BatchSize()), alone, process, BatchSize((), 1))
    sender = OnnxSender(process, batch, whole_batches=closed)
    workload = OnnxWorkload(driven(sender, name, batch), sender, process, batch, stages)
    # Elsewhere than on the CPU the threads have next to nothing to do.
    has_threads = cores > 1 and known.provider == ON_CPU
    controls: list[Control] = [ThreadsControl(process, cores)] if has_threads else []
    if batch.sizes:
        controls.insert(0, BatchControl(batch))
    notes = (f"{path.name} is served by ONNX Runtime {known.version} ({known.provider}) in a child process.",)
    return Opened(workload, {control.knob: control for control in controls}, notes, load=str(load))


def _readable(asked: Asked, target: str) -> Path:
    path = Path(target).expanduser()
    try:
        if path.is_dir():
            raise InvalidInputError(f"Workload {asked.text}: {path} is a directory; name an .onnx file.")
        with path.open("rb"):
            return path.absolute()
    except OSError as error:
        raise InvalidInputError(
            f"Workload {asked.text}: {path} cannot be read ({error.strerror}); name an .onnx file, or make "
            "one with polythrottle models make efficientnet FILE."
        ) from error


def _digest(path: Path) -> str:
    """Names the model's content: another export is another study."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return f"sha256-{digest.hexdigest()[:12]}"
