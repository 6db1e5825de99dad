"""What the service counts, and how Prometheus reads it (text format 0.0.4)."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

LATENCY_BUCKETS_S = tuple(round(0.0005 * 10 ** (i / 24), 7) for i in range(24 * 4 + 17))
"""0.5 ms to 25 s, 10 % apart: a percentile read from them is wrong by at most that."""

BATCH_BUCKETS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)

OK, REFUSED, BAD, GIVEN_UP = "ok", "refused", "bad_request", "client_gone"
OUTCOMES = (OK, REFUSED, BAD, GIVEN_UP)


class Histogram:
    """Counts by upper bound, with sum and total."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str, labels: str) -> Iterable[str]:
        running = list(itertools.accumulate(self.counts))
        for bound, count in zip((*map(_number, self.bounds), "+Inf"), running, strict=True):
            yield f'{name}_bucket{{{labels},le="{bound}"}} {count}'
        yield f"{name}_sum{{{labels}}} {_number(self.sum)}"
        yield f"{name}_count{{{labels}}} {running[-1]}"


class ServiceMetrics:
    """Counters of one service since its start. Use from one thread."""

    def __init__(self, model: str, board: str) -> None:
        self._labels = f'model="{model}",board="{board}",emulated="true"'
        self.requests = dict.fromkeys(OUTCOMES, 0)
        self.queries = 0
        self.batches = 0
        self.latency = Histogram(LATENCY_BUCKETS_S)
        self.queued = Histogram(LATENCY_BUCKETS_S)
        self.served = Histogram(LATENCY_BUCKETS_S)
        self.batch = Histogram(BATCH_BUCKETS)

    def text(self, gauges: Mapping[str, tuple[str, float]], counters: Mapping[str, tuple[str, float]]) -> str:
        """Everything, with further gauges and counters: name → (help, value)."""
        lines = []

        def family(name: str, kind: str, help_text: str, samples: Iterable[str]) -> None:
            lines.append(f"# HELP {name} {help_text}")
            lines.append(f"# TYPE {name} {kind}")
            lines.extend(samples)

        labels = self._labels
        family(
            "inference_requests_total",
            "counter",
            "Requests by outcome.",
            (
                f'inference_requests_total{{{labels},outcome="{name}"}} {count}'
                for name, count in self.requests.items()
            ),
        )
        for name, help_text, count in (
            ("inference_queries_total", "Queries answered well.", self.queries),
            ("inference_batches_total", "Batches served.", self.batches),
        ):
            family(name, "counter", help_text, [f"{name}{{{labels}}} {count}"])
        for name, help_text, histogram in (
            ("inference_request_duration_seconds", "From arrival to answer, good requests.", self.latency),
            ("inference_queue_duration_seconds", "From arrival to the batch's begin.", self.queued),
            ("inference_compute_duration_seconds", "From the batch's begin to its end.", self.served),
            ("inference_batch_queries", "Queries served together, by batch.", self.batch),
        ):
            family(name, "histogram", help_text, histogram.lines(name, labels))
        for kind, more in (("gauge", gauges), ("counter", counters)):
            for name, (help_text, value) in more.items():
                family(name, kind, help_text, [f"{name}{{{labels}}} {_number(value)}"])
        return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return f"{value:.12g}"
