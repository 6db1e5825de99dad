"""Opens the workload that a user names: `http:URL`, `triton:URL/MODEL`, `command:PROGRAM` and others.

A new kind is one line in `OPENERS`; its module is imported when it is asked for.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields

from polythrottle.clock import Clock
from polythrottle.errors import InvalidInputError, did_you_mean
from polythrottle.measurement import Provenance
from polythrottle_agent.load.arrivals import Arrivals, Kind
from polythrottle_agent.load.batching import DEFAULT_BATCH_SIZES, BatchSize
from polythrottle_agent.load.options import DEFAULT_CONNECTIONS, DEFAULT_TIME_OUT_S, Load
from polythrottle_agent.ports import Control, Workload

OPENERS: Mapping[str, str] = {
    "command": "polythrottle_agent.workloads.command:open_command",
    "http": "polythrottle_agent.workloads.http:open_http",
    "onnx": "polythrottle_agent.workloads.onnx_runtime:open_onnx",
    "tgi": "polythrottle_agent.workloads.watching:open_watched",
    "triton": "polythrottle_agent.workloads.triton:open_triton",
    "vllm": "polythrottle_agent.workloads.watching:open_watched",
    "watch": "polythrottle_agent.workloads.watching:open_watched",
}
"""Scheme → `module:function`, an `Opener`."""

ALWAYS_WATCHED = ("tgi", "vllm", "watch")
"""Schemes that never generate load, whatever the options say."""

EXTRAS: Mapping[str, str] = {"tgi": "http", "vllm": "http", "watch": "http"}
"""The extra that a kind needs, where it is not called like the kind."""

OPTION_NAMES: Mapping[str, str] = {"rate_per_s": "rate", "time_out_s": "time-out", "headers": "header"}
"""What the command line calls a field, where it is not the field's own name."""

LOAD_OPTIONS = ("rate_per_s", "arrivals", "closed_loop", "connections", "time_out_s")
"""What every workload takes that generates load."""

_FORM = "Write for example http:http://localhost:8000/infer, triton:localhost:8001/MODEL or onnx:model.onnx."


@dataclass(frozen=True)
class WorkloadOptions:
    """What a user may say about a workload; each kind takes what it knows and ignores nothing in silence.

    Args:
        rate_per_s: mean queries a second; None where it is learned, recorded, or for a closed loop.
        arrivals: as `Arrivals.parse` reads them.
        closed_loop: back to back on each connection, for peak throughput.
        connections: requests in flight at most.
        time_out_s: a query not answered this long after it was due is lost.
        batch_sizes: levels of the knob `batch_size`; None for the kind's own.
        method, headers, body, success: of HTTP; see docs/workloads.md.
        data: path of input data.
        seed: of arrivals.
        watch: only watch live traffic through the service's metrics; generate none.
        latency_metric: which latency is watched, as `LiveMetrics` takes it; None for whole requests.
        metrics_url: where a Triton shows its metrics; None for port 8002 of its host.
    """

    rate_per_s: float | None = None
    arrivals: str = "poisson"
    closed_loop: bool = False
    connections: int = DEFAULT_CONNECTIONS
    time_out_s: float = DEFAULT_TIME_OUT_S
    batch_sizes: tuple[int, ...] | None = None
    method: str | None = None
    headers: tuple[str, ...] = ()
    body: str | None = None
    success: str | None = None
    data: str | None = None
    seed: int = 0
    watch: bool = False
    latency_metric: str | None = None
    metrics_url: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.time_out_s < math.inf:
            raise InvalidInputError(
                f"A time-out of {self.time_out_s:g} s cannot be used; name one above zero."
            )
        if self.connections < 1:
            raise InvalidInputError(f"{self.connections} connections cannot be used; name one or more.")
        if self.batch_sizes is not None and (not self.batch_sizes or min(self.batch_sizes) < 1):
            raise InvalidInputError("Batch sizes must be whole numbers from 1, as in 1,2,4.")

    def load(self) -> Load:
        """How the service is loaded.

        Raises:
            InvalidInputError: no rate, or arrivals that cannot be read.
        """
        if self.closed_loop:
            if self.rate_per_s is not None:
                raise InvalidInputError("A closed loop has no rate; leave out --rate or --closed-loop.")
            return Load(None, self.connections, self.time_out_s, self.seed)
        if self.rate_per_s is None and not self.arrivals.startswith(Kind.TRACE.value):
            raise InvalidInputError(
                "How many queries arrive? Add --rate with queries per second, or --closed-loop for peak "
                "throughput."
            )
        arrivals = Arrivals.parse(self.arrivals, self.rate_per_s)
        return Load(arrivals, self.connections, self.time_out_s, self.seed)

    def batch(self, default: int = 1, sizes: tuple[int, ...] = DEFAULT_BATCH_SIZES) -> BatchSize:
        """The knob `batch_size` of a sender that sets it itself; `sizes` where the user names none."""
        chosen = sizes if self.batch_sizes is None else self.batch_sizes
        return BatchSize(chosen, default if default in chosen else min(chosen))


@dataclass(frozen=True)
class Asked:
    """What an opener gets.

    Args:
        scheme: the word before the first colon, such as `vllm`.
        target: the text after it.
        text: the whole, for messages.
        controls: the device's own, by knob, for a program that wants to know the levels that hold.
        provenance: of what is measured: EMULATED on an emulated board.
    """

    scheme: str
    target: str
    text: str
    options: WorkloadOptions
    clock: Clock
    controls: Mapping[str, Control] = field(default_factory=dict)
    provenance: Provenance = Provenance.MEASURED

    def refuse_other_options(self, *taken: str) -> None:
        """
        Args:
            taken: names of the fields of `WorkloadOptions` that this kind takes; `seed` always is.

        Raises:
            InvalidInputError: another one was set; what is ignored in silence is believed to hold.
        """
        default = WorkloadOptions()
        for option in fields(WorkloadOptions):
            name = option.name
            if name not in (*taken, "seed") and getattr(self.options, name) != getattr(default, name):
                raise InvalidInputError(
                    f"Workload {self.text!r} takes no --{OPTION_NAMES.get(name, name.replace('_', '-'))}; "
                    "leave it out."
                )


@dataclass(frozen=True)
class Opened:
    """A workload, the controls it brings (such as `batch_size`), and sentences for the user.

    `load` says in words how it is loaded; a study at another load is another study.
    """

    workload: Workload
    controls: Mapping[str, Control] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    load: str = ""


Opener = Callable[[Asked], Opened]


def is_workload(text: str) -> bool:
    """Whether a text names a workload by its scheme."""
    return text.partition(":")[0].strip().lower() in OPENERS and ":" in text


def open_workload(
    text: str,
    options: WorkloadOptions,
    clock: Clock,
    *,
    controls: Mapping[str, Control] | None = None,
    provenance: Provenance = Provenance.MEASURED,
) -> Opened:
    """Open the workload that `text` names.

    Args:
        text: `http:URL`, `triton:URL/MODEL`, `onnx:FILE`, `vllm:URL`, `tgi:URL`, `watch:URL` or
            `command:PROGRAM ARGUMENTS`.
        controls: the device's own controls, by knob.
        provenance: of what is measured.

    Raises:
        InvalidInputError: no such kind, an option that it does not take or cannot be used, or a service
            that is not there.
    """
    scheme, colon, target = text.strip().partition(":")
    scheme = scheme.lower()
    if scheme not in OPENERS or not colon or not target.strip():
        raise InvalidInputError(f"Workload {text!r} cannot be read; {did_you_mean(scheme, OPENERS)} {_FORM}")
    module, _, function = OPENERS[scheme].partition(":")
    try:
        opener: Opener = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package.startswith("polythrottle"):
            raise  # ours: a bug, not something that was left out of an installation
        raise InvalidInputError(
            f"Workload {text!r} needs {package}, which is not installed; "
            f"run pip install 'polythrottle[{EXTRAS.get(scheme, scheme)}]'."
        ) from error
    return opener(
        Asked(scheme, target.strip(), text.strip(), options, clock, dict(controls or {}), provenance)
    )
