"""The names under which serving stacks publish their latencies and counts.

Triton: user guide, metrics. vLLM: design docs, metrics. TGI: reference, metrics. SGLang: production metrics.
TensorRT-LLM: its Prometheus collector. TorchServe: metrics, legacy mode.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

E2E, TTFT, ITL, TPOT, QUEUE = "e2e", "ttft", "itl", "tpot", "queue"
LATENCY_METRICS: Mapping[str, str] = {
    E2E: "a whole request",
    TTFT: "the time to the first token",
    ITL: "the time between two tokens",
    TPOT: "a request's mean time per token",
    QUEUE: "the time a request waits before it is worked on",
}
"""What of a request can be watched; each is a word for `--latency-metric`."""


@dataclass(frozen=True)
class Named:
    """A histogram or summary of latencies, in units of `unit_s` seconds. Which of both, the page says."""

    name: str
    unit_s: float


@dataclass(frozen=True)
class Sum:
    """Two counters: total time in units of `unit_s` seconds, and how many it is of. Good for a mean only."""

    name: str
    count: str
    unit_s: float


@dataclass(frozen=True)
class Stack:
    """One serving stack.

    Args:
        mark: beginning of the names of its metrics, by which its page is known.
        latencies: by latency metric, what to look for, the best first.
        sums: by latency metric, the counters that at least give a mean.
        good: counters of queries that were answered well; the largest counts, since a cache or a client's
            own batches may hide some from one of them. Empty: the count of whole requests' latencies.
        good_label, not_good: series of `good` whose label has one of these values are failures.
        failed: counters of queries that were not.
        model_label: tells the models of one server apart; "" where it serves one.
        for_percentiles: how to make it publish more than a mean.
    """

    name: str
    mark: str
    latencies: Mapping[str, tuple[Named, ...]]
    sums: Mapping[str, Sum] = field(default_factory=dict)
    good: tuple[str, ...] = ()
    good_label: str = ""
    not_good: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    model_label: str = ""
    for_percentiles: str = ""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The latency metrics it may publish."""
        return tuple(metric for metric in LATENCY_METRICS if metric in self.latencies or metric in self.sums)

    def names(self) -> Iterator[str]:
        """Every name that matters."""
        for found in self.latencies.values():
            yield from (named.name for named in found)
        for total in self.sums.values():
            yield from (total.name, total.count)
        yield from self.good
        yield from self.failed


def _seconds(prefix: str, **names: str | tuple[str, ...]) -> Mapping[str, tuple[Named, ...]]:
    listed = {metric: (x,) if isinstance(x, str) else x for metric, x in names.items()}
    return {metric: tuple(Named(prefix + name, 1.0) for name in x) for metric, x in listed.items()}


TRITON = Stack(
    "Triton",
    "nv_inference_",
    {
        E2E: (
            Named("nv_inference_request_summary_us", 1e-6),
            # The first response is the whole one unless a model streams. Four edges, by default, tell little.
            Named("nv_inference_first_response_histogram_ms", 1e-3),
        ),
        QUEUE: (Named("nv_inference_queue_summary_us", 1e-6),),
    },
    {
        E2E: Sum("nv_inference_request_duration_us", "nv_inference_request_success", 1e-6),
        QUEUE: Sum("nv_inference_queue_duration_us", "nv_inference_request_success", 1e-6),
    },
    good=("nv_inference_count", "nv_inference_request_success"),
    failed=("nv_inference_request_failure",),
    model_label="model",
    for_percentiles="start tritonserver with --metrics-config summary_latencies=true",
)

VLLM = Stack(
    "vLLM",
    "vllm:",
    _seconds(
        "vllm:",
        e2e="e2e_request_latency_seconds",
        ttft="time_to_first_token_seconds",
        # The second is what older releases called the same.
        itl=("inter_token_latency_seconds", "time_per_output_token_seconds"),
        tpot="request_time_per_output_token_seconds",
        queue="request_queue_time_seconds",
    ),
    good=("vllm:request_success",),
    good_label="finished_reason",
    not_good=("abort", "error"),
    model_label="model_name",
)

TGI = Stack(
    "TGI",
    "tgi_",
    # Its time per token counts the prefill in; it publishes no time to the first token.
    _seconds(
        "tgi_",
        e2e="request_duration",
        tpot="request_mean_time_per_token_duration",
        queue="request_queue_duration",
    ),
    good=("tgi_request_success",),
    failed=("tgi_request_failure",),
)

SGLANG = Stack(
    "SGLang",
    "sglang:",
    _seconds(
        "sglang:",
        e2e="e2e_request_latency_seconds",
        ttft="time_to_first_token_seconds",
        itl="inter_token_latency_seconds",
        tpot="time_per_output_token_seconds",
        queue="queue_time_seconds",
    ),
    failed=("sglang:num_aborted_requests",),
    model_label="model_name",
)

TENSORRT_LLM = Stack(
    "TensorRT-LLM",
    "trtllm",
    {
        metric: (Named(f"trtllm_{name}", 1.0), Named(f"trtllm:{name}", 1.0))
        for metric, name in {
            E2E: "e2e_request_latency_seconds",
            TTFT: "time_to_first_token_seconds",
            TPOT: "time_per_output_token_seconds",
            QUEUE: "request_queue_time_seconds",
        }.items()
    },
    good=("trtllm_request_success", "trtllm:request_success"),
    model_label="model_name",
)

TORCHSERVE = Stack(
    "TorchServe",
    "ts_",
    {},
    {
        E2E: Sum("ts_inference_latency_microseconds", "ts_inference_requests", 1e-6),
        QUEUE: Sum("ts_queue_latency_microseconds", "ts_inference_requests", 1e-6),
    },
    good=("ts_inference_requests",),
    model_label="model_name",
    for_percentiles="TorchServe publishes no more",
)

STACKS: tuple[Stack, ...] = (TRITON, VLLM, TGI, SGLANG, TENSORRT_LLM, TORCHSERVE)

_UNITS = {
    "_seconds": 1.0,
    "_s": 1.0,
    "_milliseconds": 1e-3,
    "_ms": 1e-3,
    "_microseconds": 1e-6,
    "_us": 1e-6,
}


def unit_of(name: str) -> float | None:
    """Seconds in the unit that a metric's name ends with; None where it says none."""
    return next((unit_s for ending, unit_s in _UNITS.items() if name.endswith(ending)), None)


def custom(name: str, unit_s: float) -> Stack:
    """Any histogram or summary of latencies that a user names, of a service of their own."""
    return Stack(
        name,
        name,
        {E2E: (Named(name, unit_s),)},
        for_percentiles="publish a histogram of this name",
    )
