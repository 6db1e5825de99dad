"""Options that say what is served and how it is loaded: the same for every command that measures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from polythrottle.cli.durations import seconds
from polythrottle.errors import InvalidInputError

if TYPE_CHECKING:
    from polythrottle_agent.workloads.opening import WorkloadOptions

_PANEL = "What is served, and its load"

WorkloadOption = Annotated[
    str | None,
    typer.Option(
        "--workload",
        help="http:URL, triton:URL/MODEL, onnx:FILE, command:'PROGRAM', vllm:URL, tgi:URL, watch:URL; "
        "or the name of an emulated or recorded one.",
        rich_help_panel=_PANEL,
    ),
]
RateOption = Annotated[
    float | None,
    typer.Option("--rate", help="Queries a second that arrive, open loop.", rich_help_panel=_PANEL),
]
ArrivalsOption = Annotated[
    str,
    typer.Option(
        "--arrivals",
        help="poisson, constant, burst:ON_S/OFF_S or trace:FILE.csv.",
        rich_help_panel=_PANEL,
    ),
]
ClosedLoopOption = Annotated[
    bool,
    typer.Option(
        "--closed-loop", help="Back to back instead of a rate: peak throughput.", rich_help_panel=_PANEL
    ),
]
ConnectionsOption = Annotated[
    int, typer.Option("--connections", min=1, help="Requests in flight at most.", rich_help_panel=_PANEL)
]
TimeOutOption = Annotated[
    str,
    typer.Option("--time-out", help="A query not answered by then is lost.", rich_help_panel=_PANEL),
]
MethodOption = Annotated[str | None, typer.Option("--method", help="HTTP method.", rich_help_panel=_PANEL)]
HeaderOption = Annotated[
    list[str],
    typer.Option("--header", help="HTTP header, 'Name: value'. May be repeated.", rich_help_panel=_PANEL),
]
BodyOption = Annotated[
    str | None,
    typer.Option("--body", help="HTTP body, or @FILE; {batch_size} is filled in.", rich_help_panel=_PANEL),
]
SuccessOption = Annotated[
    str | None,
    typer.Option("--success", help="What a good HTTP answer is; see the docs.", rich_help_panel=_PANEL),
]
DataOption = Annotated[
    str | None, typer.Option("--data", help="A file of input data.", rich_help_panel=_PANEL)
]
WatchOption = Annotated[
    bool,
    typer.Option(
        "--watch",
        help="Generate no load: watch live traffic through the service's metrics. Implies --safe.",
        rich_help_panel=_PANEL,
    ),
]

LatencyMetricOption = Annotated[
    str | None,
    typer.Option(
        "--latency-metric",
        help="What is watched: e2e, ttft, itl, tpot, queue, or a histogram's name.",
        rich_help_panel=_PANEL,
    ),
]
MetricsUrlOption = Annotated[
    str | None,
    typer.Option(
        "--metrics-url", help="Where Triton shows its metrics, if not at port 8002.", rich_help_panel=_PANEL
    ),
]
RateFromOption = Annotated[
    str | None,
    typer.Option(
        "--rate-from",
        help="Learn the rate from live traffic: watch:URL, vllm:URL, tgi:URL or triton:URL/MODEL.",
        rich_help_panel=_PANEL,
    ),
]

DEFAULT_TIME_OUT = "10s"
DEFAULT_CONNECTIONS = 64


def workload_options(
    *,
    rate: float | None = None,
    arrivals: str = "poisson",
    closed_loop: bool = False,
    connections: int = DEFAULT_CONNECTIONS,
    time_out: str = DEFAULT_TIME_OUT,
    batch_sizes: tuple[int, ...] | None = None,
    method: str | None = None,
    headers: list[str] | None = None,
    body: str | None = None,
    success: str | None = None,
    data: str | None = None,
    watch: bool = False,
    latency_metric: str | None = None,
    metrics_url: str | None = None,
    rate_from: str | None = None,
    seed: int = 0,
) -> WorkloadOptions:
    """
    Raises:
        InvalidInputError: two of them contradict one another, or a time cannot be read.
    """
    from polythrottle_agent.workloads.opening import WorkloadOptions

    if closed_loop and rate is not None:
        raise InvalidInputError("--closed-loop has no --rate: it sends as fast as it is answered; use one.")
    if watch and (rate is not None or closed_loop):
        raise InvalidInputError("--watch generates no load; leave --rate and --closed-loop out.")
    if rate_from is not None:
        if rate is not None or closed_loop or watch:
            raise InvalidInputError("--rate-from stands alone; leave --rate, --closed-loop and --watch out.")
        rate = _learned(rate_from)
    return WorkloadOptions(
        rate_per_s=rate,
        arrivals=arrivals,
        closed_loop=closed_loop,
        connections=connections,
        time_out_s=seconds("--time-out", time_out),
        batch_sizes=batch_sizes,
        method=method,
        headers=tuple(headers or ()),
        body=body,
        success=success,
        data=data,
        seed=seed,
        watch=watch,
        latency_metric=latency_metric,
        metrics_url=metrics_url,
    )


def _learned(text: str) -> float:
    from polythrottle.clock import RealClock
    from polythrottle_agent.workloads.watching import learned_rate_per_s

    # Three digits: the rate is part of what is asked, and --resume has to ask the same.
    return float(f"{learned_rate_per_s(text, RealClock()):.3g}")
