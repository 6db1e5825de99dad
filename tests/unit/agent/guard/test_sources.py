"""Where latencies come from: a workload's own queries, and a metrics page over a real socket."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from polythrottle.clock import RealClock, VirtualClock
from polythrottle.errors import InvalidInputError
from polythrottle.measurement import Unavailable
from polythrottle.objective import LatencySlo
from polythrottle_agent.devices import open_device
from polythrottle_agent.guard.rules import GuardRules
from polythrottle_agent.guard.samples import Idle, LatencyView
from polythrottle_agent.guard.sources import InlineSource, MetricsSource, QuerySource, source_of
from polythrottle_agent.ports import ControlError
from polythrottle_agent.workloads.live_metrics import LiveMetrics
from polythrottle_agent.workloads.prometheus import Implausible, Restarted
from polythrottle_agent.workloads.watching import WatchedWorkload

RULES = GuardRules(LatencySlo("p99", limit_s=0.1))


def until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    ends_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < ends_s
        time.sleep(0.01)


class Tells:
    """A workload that tells the same latency over and over; it may refuse at first."""

    def __init__(self, latency_s: float, refuses: int = 0) -> None:
        self.latency_s, self.refuses = latency_s, refuses

    def tell_queries(self, on_query: Callable[[float, int], None], should_stop: Callable[[], bool]) -> None:
        if self.refuses:
            self.refuses -= 1
            raise ControlError("nobody listens")
        while not should_stop():
            on_query(self.latency_s, 2)
            time.sleep(0.001)


def test_queries_are_told_by_a_thread_and_forgotten_when_asked() -> None:
    source = QuerySource(Tells(0.02), RULES, RealClock())
    source.start()
    until(lambda: isinstance(source.look().latency, LatencyView) and source.look().latency.n_queries > 100)
    assert source.look().latency.value_s == pytest.approx(0.02, rel=0.01)
    source.stop()
    source.forget()
    assert isinstance(source.look().latency, Idle)


def test_a_service_that_cannot_be_asked_is_out_of_sight_until_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polythrottle_agent.guard.sources.AGAIN_S", 0.2)
    source = QuerySource(Tells(0.02, refuses=1), RULES, RealClock())
    source.start()
    until(lambda: isinstance(source.look().latency, Unavailable))
    assert source.look().latency.reason == "nobody listens"
    until(lambda: isinstance(source.look().latency, LatencyView))
    source.stop()


def test_an_emulated_workload_serves_within_the_look() -> None:
    device = open_device("emulated:orin-nano-8gb", None, 0)
    source = source_of(device.workload, RULES, device.clock, 0.5)
    assert isinstance(source, InlineSource)
    assert source.passes_time
    before_s = device.clock.now()
    seen = source.look()
    assert isinstance(seen.latency, LatencyView)
    assert 0.5 <= device.clock.now() - before_s < 1.0


def test_a_workload_that_tells_of_no_single_query_is_refused() -> None:
    class Silent:
        name = "silent"

        def check_statistic(self, statistic: str) -> None: ...

    with pytest.raises(InvalidInputError, match="does not tell of its single queries"):
        source_of(Silent(), RULES, VirtualClock(), 0.2)


# A metrics page


class Page:
    """A vLLM-like page whose counters a test moves."""

    def __init__(self) -> None:
        self.edges = (0.01, 0.05, 0.1, 0.2, 0.5)
        self.counts = [0.0] * (len(self.edges) + 1)
        self.sum_s = 0.0
        self.failed = 0
        self.status = 200
        self.extra = ""
        self.scrapes = 0

    def serve(self, latency_s: float, n: int) -> None:
        index = next((i for i, edge in enumerate(self.edges) if latency_s <= edge), len(self.edges))
        self.counts[index] += n
        self.sum_s += latency_s * n

    def text(self) -> str:
        lines, total = [], 0.0
        for edge, count in zip((*self.edges, "+Inf"), self.counts, strict=True):
            total += count
            lines.append(f'vllm:e2e_request_latency_seconds_bucket{{model_name="m",le="{edge}"}} {total}')
        lines.append(f'vllm:e2e_request_latency_seconds_sum{{model_name="m"}} {self.sum_s}')
        lines.append(f'vllm:e2e_request_latency_seconds_count{{model_name="m"}} {total}')
        for reason, n in (("stop", total), ("abort", self.failed)):
            lines.append(f'vllm:request_success_total{{model_name="m",finished_reason="{reason}"}} {n}')
        return "\n".join([*lines, self.extra, ""])


@pytest.fixture
def page() -> Iterator[tuple[Page, str]]:
    shown = Page()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shown.scrapes += 1
            body = shown.text().encode()
            self.send_response(shown.status)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield shown, f"http://127.0.0.1:{server.server_port}/metrics"
    server.shutdown()
    server.server_close()


def source(page: tuple[Page, str]) -> MetricsSource:
    shown, url = page
    shown.serve(0.03, 10)
    clock = RealClock()
    found = MetricsSource(LiveMetrics(url, clock), RULES, clock, poll_s=0.05)
    found.scrape()
    return found


def test_a_histogram_is_spread_over_its_buckets(page) -> None:
    found = source(page)
    page[0].serve(0.03, 980)
    page[0].serve(0.15, 20)
    found.scrape()
    view = found.look().latency
    assert view.n_queries == 1000
    assert 0.1 < view.value_s < 0.2  # the bucket that p99 lies in
    assert found.look().recent.share_over == pytest.approx(0.02)


def test_failures_are_infinitely_late(page) -> None:
    found = source(page)
    page[0].serve(0.03, 100)
    page[0].failed += 50
    found.scrape()
    assert found.look().latency.value_s == math.inf


def test_counters_that_begin_anew_are_no_queries(page) -> None:
    found = source(page)
    page[0].serve(0.03, 100)
    found.scrape()
    page[0].counts, page[0].sum_s = [0.0] * 6, 0.0
    with pytest.raises(Restarted):
        found.scrape()


def test_a_page_that_lies_or_is_gone_is_out_of_sight_and_comes_back(page) -> None:
    shown, _ = page
    found = source(page)
    found.start()
    shown.serve(0.03, 100)
    until(lambda: isinstance(found.look().latency, LatencyView))
    shown.status = 500
    until(lambda: isinstance(found.look().latency, Unavailable))
    shown.status = 200
    until(lambda: not isinstance(found.look().latency, Unavailable))
    shown.sum_s = 1e9  # a mean that no bucket allows
    shown.serve(0.03, 100)
    until(lambda: isinstance(found.look().latency, Unavailable))
    found.stop()


def test_a_lie_says_which(page) -> None:
    found = source(page)
    page[0].serve(0.03, 100)
    page[0].sum_s = 1e9
    with pytest.raises(Implausible, match="mean"):
        found.scrape()


def test_live_traffic_is_watched_by_its_metrics(page) -> None:
    shown, url = page
    shown.serve(0.03, 10)
    clock = RealClock()
    workload = WatchedWorkload(LiveMetrics(url, clock), clock)
    assert isinstance(source_of(workload, RULES, clock, 0.2), MetricsSource)
