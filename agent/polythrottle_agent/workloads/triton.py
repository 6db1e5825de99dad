"""`triton:URL/MODEL`: a model of a Triton Inference Server, under generated load or with its live traffic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from polythrottle.clock import Clock
from polythrottle.errors import InvalidInputError
from polythrottle.measurement import Unavailable
from polythrottle.studies import MeasurementPlan
from polythrottle_agent.load.batching import BatchSize
from polythrottle_agent.load.options import Load
from polythrottle_agent.ports import Control, MayEnd, Served
from polythrottle_agent.workloads.driven import DrivenWorkload
from polythrottle_agent.workloads.live_metrics import LiveMetrics
from polythrottle_agent.workloads.opening import LOAD_OPTIONS, Asked, Opened, WorkloadOptions
from polythrottle_agent.workloads.stacks import TRITON
from polythrottle_agent.workloads.triton_config import (
    Config,
    model_digest,
    usual_sizes,
    why_no_knob,
)
from polythrottle_agent.workloads.triton_control import TritonBatchControl
from polythrottle_agent.workloads.triton_inputs import make_queries
from polythrottle_agent.workloads.triton_original import KeptOriginal, state_directory
from polythrottle_agent.workloads.triton_senders import sender
from polythrottle_agent.workloads.triton_server import Address, Executed, TritonError, TritonServer
from polythrottle_agent.workloads.watching import WatchedWorkload, headers_of, live_rate_per_s

LIVE_RATE_WINDOW_S = 5.0
LAGGING, LAGGING_SHARE = 5, 0.01
"""Triton counts a request a moment after it answered it."""
UNSEEN_FAILURES = (
    "Triton counts an error that a Python model answers with as a success: such failures are not seen here."
)


class DrivenTriton(DrivenWorkload):
    """Generated load; Triton also says how large the batches were that it made."""

    server: TritonServer

    def serve(self, plan: MeasurementPlan, statistic: str, may_end: MayEnd | None = None) -> Served:
        return _counted(self.server, lambda: super(DrivenTriton, self).serve(plan, statistic, may_end), True)


class WatchedTriton(WatchedWorkload):
    """Live traffic; Triton also says how large the batches were that it made."""

    server: TritonServer

    def serve(self, plan: MeasurementPlan, statistic: str, may_end: MayEnd | None = None) -> Served:
        return _counted(
            self.server, lambda: super(WatchedTriton, self).serve(plan, statistic, may_end), False
        )


def _counted(server: TritonServer, serve: Callable[[], Served], sends_all: bool) -> Served:
    """A window, beside what Triton counts of it.

    Args:
        sends_all: every query that the window counts was sent by it, one a request.
    """
    before = _executed(server)
    served = serve()
    after = _executed(server)
    if before is None or after is None or isinstance(served.latency, Unavailable):
        return served
    n_requests = after.n_requests - before.n_requests
    if n_requests < (served.n_queries * (1.0 - LAGGING_SHARE) - LAGGING if sends_all else 0):
        reason = (
            f"Triton counts {max(n_requests, 0):,} of the {served.n_queries:,} queries that it answered: "
            "it was started again, or the model was loaded anew, in the window"
        )
        return replace(served, latency=Unavailable(reason), void_reason=served.void_reason or reason)
    n_queries, n_batches = after.n_queries - before.n_queries, after.n_batches - before.n_batches
    if n_queries < 1 or n_batches < 1:
        return served
    note = f"Triton made batches of {n_queries / n_batches:.3g} in the mean"
    return replace(served, notes=(*served.notes, note))


def _executed(server: TritonServer) -> Executed | None:
    try:
        return server.executed()
    except TritonError:  # the window itself says that Triton is gone; else there is only no such note
        return None


def open_triton(asked: Asked) -> Opened:
    """
    Raises:
        InvalidInputError: an option cannot be used, or Triton does not answer a query for the model well.
        StateError: what an interrupted run kept of the model cannot be used.
    """
    options = asked.options
    if options.watch:
        asked.refuse_other_options("watch", "latency_metric", "metrics_url", "batch_sizes", "headers", "seed")
    else:
        asked.refuse_other_options(*LOAD_OPTIONS, "data", "batch_sizes", "metrics_url")
    server = TritonServer(Address.parse(asked.target))
    address = server.address
    try:
        metadata, config = server.metadata(), server.config()
        why_not = why_no_knob(config) or server.why_no_loading()
    except TritonError as error:
        raise InvalidInputError(
            f"Model {address.model} of {address} cannot be used: {error}; start Triton with it, or correct "
            "the address."
        ) from error
    control, batch, notes = _batch_knob(server, config, why_not, options)
    version = "+".join(map(str, metadata.get("versions") or ["1"]))
    model_version = f"triton-{version}-{model_digest(config)[:12]}"
    controls: dict[str, Control] = {} if control is None else {control.knob: control}
    if options.watch:
        if config.get("backend") == "python":
            notes = (*notes, UNSEEN_FAILURES)
        return Opened(_watched(asked, server, model_version, batch), controls, notes, "live traffic")
    load = _load(options, address, asked.clock)
    queries = make_queries(metadata, address.model, options.data, options.seed)
    workload = DrivenTriton(
        name=f"triton {address.model}",
        model_version=model_version,
        sender=sender(address, queries),
        load=load,
        clock=asked.clock,
        batch=batch,
        provenance=asked.provenance,
    )
    workload.server = server
    workload.check_service()
    return Opened(workload, controls, notes, str(load))


def _watched(asked: Asked, server: TritonServer, model_version: str, batch: BatchSize) -> WatchedTriton:
    options, address = asked.options, server.address
    metrics = LiveMetrics(
        options.metrics_url or address.metrics_url,
        asked.clock,
        stack=TRITON,
        metric=options.latency_metric,
        model=address.model,
        headers=headers_of(options.headers),
    )
    workload = WatchedTriton(
        metrics, asked.clock, model_version=model_version, batch=batch, provenance=asked.provenance
    )
    workload.server = server
    return workload


def _batch_knob(
    server: TritonServer, config: Config, why_not: str | None, options: WorkloadOptions
) -> tuple[TritonBatchControl | None, BatchSize, tuple[str, ...]]:
    """The control, the sizes for the workload, and what to say."""
    model = server.address.model
    if why_not is not None:
        if options.batch_sizes is not None:
            raise InvalidInputError(
                f"--batch-sizes cannot be set for model {model} of {server.address}: {why_not}."
            )
        return None, BatchSize(), (f"The batch size of {model} cannot be set: {why_not}.",)
    kept = KeptOriginal(state_directory(), server.address)
    left_behind = kept.left_behind(config)
    original = config if left_behind is None else left_behind
    control = TritonBatchControl(server, config, options.batch_sizes or usual_sizes(original), kept)
    sizes = tuple(int(float(level)) for level in control.levels)
    default = control.original_size if control.original_size in sizes else max(sizes)
    notes: tuple[str, ...] = ()
    if left_behind is not None:
        notes = (f"An interrupted run left a batch size in {model}; its original is known and is put back.",)
    return control, BatchSize(sizes, default), notes


def _load(options: WorkloadOptions, address: Address, clock: Clock) -> Load:
    """The load as the user says it; where they do not, whether live traffic says it for them.

    Raises:
        InvalidInputError: no rate.
    """
    try:
        return options.load()
    except InvalidInputError as no_rate:
        if options.rate_per_s is not None or options.closed_loop:
            raise
        try:
            metrics = LiveMetrics(
                options.metrics_url or address.metrics_url, clock, stack=TRITON, model=address.model
            )
            rate = live_rate_per_s(metrics, clock, LIVE_RATE_WINDOW_S)
        except InvalidInputError:  # no live traffic, or nobody tells of it: the first sentence says it all
            raise no_rate from None
        raise InvalidInputError(
            f"Model {address.model} of {address} has live traffic of {rate:.3g} queries/s. Add --watch to "
            "tune with it, or --rate N to send N queries/s more."
        ) from None
