"""Whose page it is, what of it is watched, and what happened between two scrapes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from polythrottle.clock import VirtualClock
from polythrottle.errors import InvalidInputError
from polythrottle_agent.workloads.live_metrics import Between, Kind, LiveMetrics
from polythrottle_agent.workloads.prometheus import Implausible, Restarted
from polythrottle_agent.workloads.stacks import STACKS, TGI, TRITON, VLLM, unit_of
from tests.fakes.metrics_service import MetricsService, listening

TRITON_COUNTERS = """\
# TYPE nv_inference_request_success counter
nv_inference_request_success{{model="cat",version="1"}} {done}
nv_inference_request_success{{model="dog",version="1"}} 9000
# TYPE nv_inference_request_failure counter
nv_inference_request_failure{{model="cat",reason="OTHER",version="1"}} {failed}
nv_inference_request_failure{{model="cat",reason="REJECTED",version="1"}} 0
# TYPE nv_inference_count counter
nv_inference_count{{model="cat",version="1"}} {queries}
nv_inference_count{{model="dog",version="1"}} 9000
# TYPE nv_inference_request_duration_us counter
nv_inference_request_duration_us{{model="cat",version="1"}} {busy_us}
nv_inference_request_duration_us{{model="dog",version="1"}} 1
"""

TRITON_SUMMARY = """\
# TYPE nv_inference_request_summary_us summary
nv_inference_request_summary_us_count{{model="cat",version="1"}} {done}
nv_inference_request_summary_us_sum{{model="cat",version="1"}} {busy_us}
nv_inference_request_summary_us{{model="cat",version="1",quantile="0.5"}} {p50}
nv_inference_request_summary_us{{model="cat",version="1",quantile="0.99"}} {p99}
"""

TGI_PAGE = """\
# TYPE tgi_request_success counter
tgi_request_success {done}
# TYPE tgi_request_failure counter
tgi_request_failure{{err="overloaded"}} {failed}
# TYPE tgi_request_duration histogram
tgi_request_duration_bucket{{le="0.5"}} {fast}
tgi_request_duration_bucket{{le="1"}} {done}
tgi_request_duration_bucket{{le="+Inf"}} {done}
tgi_request_duration_sum {busy}
tgi_request_duration_count {done}
# TYPE tgi_request_mean_time_per_token_duration histogram
tgi_request_mean_time_per_token_duration_bucket{{le="0.02"}} {done}
tgi_request_mean_time_per_token_duration_bucket{{le="+Inf"}} {done}
tgi_request_mean_time_per_token_duration_sum {token_s}
tgi_request_mean_time_per_token_duration_count {done}
"""

TORCHSERVE_PAGE = """\
# TYPE ts_inference_requests_total counter
ts_inference_requests_total{{model_name="cat",model_version="1.0",hostname="h"}} {done}
# TYPE ts_inference_latency_microseconds counter
ts_inference_latency_microseconds{{model_name="cat",model_version="1.0",hostname="h"}} {busy_us}
# TYPE ts_queue_latency_microseconds counter
ts_queue_latency_microseconds{{model_name="cat",model_version="1.0",hostname="h"}} 0
"""

OWN_PAGE = """\
# TYPE shop_wait histogram
shop_wait_bucket{{path="/a",le="50"}} {done}
shop_wait_bucket{{path="/a",le="+Inf"}} {done}
shop_wait_sum{{path="/a"}} {busy_ms}
shop_wait_count{{path="/a"}} {done}
shop_wait_bucket{{path="/b",le="50"}} 0
shop_wait_bucket{{path="/b",le="+Inf"}} 0
shop_wait_sum{{path="/b"}} 0
shop_wait_count{{path="/b"}} 0
"""


class Pages:
    """A page whose text is set."""

    def __init__(self, url: str, service: MetricsService, clock: VirtualClock) -> None:
        self.url, self._service, self.clock = url, service, clock

    def show(self, text: str) -> None:
        self._service.page = text.encode


@contextmanager
def pages(text: str) -> Iterator[Pages]:
    clock = VirtualClock()
    service = MetricsService(clock, 1.0, lambda: 0.01)
    with listening(service) as url:
        found = Pages(url, service, clock)
        found.show(text)
        yield found


def between(shown: Pages, metrics: LiveMetrics, later: str) -> Between:
    before = metrics.scrape()
    shown.clock.sleep(10.0)
    shown.show(later)
    return metrics.between(before, metrics.scrape())


def test_triton_by_its_counters_gives_a_mean_of_one_model() -> None:
    before = TRITON_COUNTERS.format(done=100, failed=1, queries=400, busy_us=1_000_000)
    later = TRITON_COUNTERS.format(done=150, failed=3, queries=600, busy_us=2_000_000)
    with pages(before) as shown:
        metrics = LiveMetrics(shown.url, shown.clock, model="cat")
        seen = between(shown, metrics, later)
    assert metrics.stack is TRITON
    assert metrics.kind is Kind.MEAN
    assert metrics.model == "cat"
    # A client's own batches hide queries from the count of requests.
    assert (seen.n_good, seen.n_lost, seen.n_latencies, seen.duration_s) == (200, 2, 50, 10.0)
    assert seen.sum_s == pytest.approx(1.0)
    assert seen.buckets is None


def test_triton_with_summaries_gives_its_quantiles() -> None:
    text = TRITON_COUNTERS + TRITON_SUMMARY
    before = text.format(done=0, failed=0, queries=0, busy_us=0, p50="Nan", p99="Nan")
    later = text.format(done=50, failed=0, queries=50, busy_us=500_000, p50=9000, p99=20000)
    with pages(before) as shown:
        metrics = LiveMetrics(shown.url, shown.clock, stack=TRITON, model="cat")
        assert metrics.kind is Kind.SUMMARY
        assert all(math.isnan(x) for x in metrics.quantiles(metrics.scrape()).values())
        seen = between(shown, metrics, later)
        assert metrics.quantiles(metrics.scrape()) == {0.5: pytest.approx(0.009), 0.99: pytest.approx(0.02)}
    assert (seen.n_good, seen.n_latencies) == (50, 50)


def test_a_summary_that_falls_with_the_quantile_is_not_believed() -> None:
    text = (TRITON_COUNTERS + TRITON_SUMMARY).format(
        done=50, failed=0, queries=50, busy_us=500_000, p50=9000, p99=8000
    )
    with pages(text) as shown:
        metrics = LiveMetrics(shown.url, shown.clock, model="cat")
        with pytest.raises(Implausible, match="lower latency"):
            metrics.quantiles(metrics.scrape())


def test_tgi_counts_failures_apart() -> None:
    before = TGI_PAGE.format(done=10, failed=0, fast=5, busy=6.0, token_s=0.15)
    later = TGI_PAGE.format(done=30, failed=4, fast=15, busy=18.0, token_s=0.45)
    with pages(before) as shown:
        metrics = LiveMetrics(shown.url, shown.clock)
        seen = between(shown, metrics, later)
    assert metrics.stack is TGI
    assert (seen.n_good, seen.n_lost) == (20, 4)
    assert seen.buckets is not None
    assert seen.buckets.edges_s == (0.5, 1.0, math.inf)
    assert seen.buckets.counts == (10, 10, 0)
    assert seen.sum_s == pytest.approx(12.0)


def test_what_a_stack_does_not_publish_is_refused_with_what_it_does() -> None:
    with pages(TGI_PAGE.format(done=1, failed=0, fast=1, busy=0.1, token_s=0.01)) as shown:
        assert LiveMetrics(shown.url, shown.clock, metric="tpot").kind is Kind.HISTOGRAM
        with pytest.raises(InvalidInputError, match=r"publishes no ttft.*e2e, tpot, queue"):
            LiveMetrics(shown.url, shown.clock, metric="ttft")


def test_torchserve_gives_a_mean() -> None:
    with pages(TORCHSERVE_PAGE.format(done=5, busy_us=50_000.5)) as shown:
        metrics = LiveMetrics(shown.url, shown.clock)
        seen = between(shown, metrics, TORCHSERVE_PAGE.format(done=25, busy_us=250_000.5))
    assert metrics.stack.name == "TorchServe"
    assert metrics.kind is Kind.MEAN
    assert (seen.n_good, seen.n_latencies) == (20, 20)
    assert seen.sum_s == pytest.approx(0.2)


@pytest.mark.parametrize(("metric", "share"), [("e2e", 1.0), ("ttft", 0.25), ("itl", 0.125)])
def test_each_latency_of_vllm_can_be_watched(metric: str, share: float) -> None:
    clock = VirtualClock()
    service = MetricsService(clock, 20.0, lambda: 0.08)
    with listening(service) as url:
        metrics = LiveMetrics(url, clock, metric=metric)
        before = metrics.scrape()
        clock.sleep(10.0)
        seen = metrics.between(before, metrics.scrape())
    assert metrics.stack is VLLM
    assert metrics.model == "llama"
    # Queries are requests, whatever the latency is of.
    assert seen.n_good == pytest.approx(200, abs=1)
    assert seen.n_latencies == seen.n_good * (3 if metric == "itl" else 1)
    assert seen.sum_s == pytest.approx(seen.n_latencies * 0.08 * share)


def test_requests_that_were_aborted_are_lost() -> None:
    clock = VirtualClock()
    answers = iter([0.01, None] * 1000)
    service = MetricsService(clock, 20.0, lambda: next(answers))
    with listening(service) as url:
        metrics = LiveMetrics(url, clock)
        before = metrics.scrape()
        clock.sleep(10.0)
        seen = metrics.between(before, metrics.scrape())
    assert seen.n_good == pytest.approx(100, abs=1)
    assert seen.n_lost == pytest.approx(100, abs=1)


def test_one_model_of_several_is_watched() -> None:
    clock = VirtualClock()
    service = MetricsService(clock, 10.0, lambda: 0.01, models=("big", "small"))
    with listening(service) as url:
        both, one = LiveMetrics(url, clock), LiveMetrics(url, clock, model="small")
        assert (both.model, one.model) == ("big, small", "small")
        before = both.scrape()
        clock.sleep(10.0)
        after = both.scrape()
        assert both.between(before, after).n_good == 2 * one.between(before, after).n_good
        with pytest.raises(InvalidInputError, match=r"no metrics of a model 'smal'.*small"):
            LiveMetrics(url, clock, model="smal")


def test_a_restart_between_two_scrapes_is_seen() -> None:
    clock = VirtualClock()
    service = MetricsService(clock, 10.0, lambda: 0.01)
    with listening(service) as url:
        metrics = LiveMetrics(url, clock)
        clock.sleep(60.0)
        before = metrics.scrape()
        service.restart()
        clock.sleep(5.0)
        with pytest.raises(Restarted, match="fell from"):
            metrics.between(before, metrics.scrape())


def test_a_metric_of_ones_own_is_watched_in_its_unit() -> None:
    with pages(OWN_PAGE.format(done=2, busy_ms=20)) as shown:
        metrics = LiveMetrics(shown.url, shown.clock, metric="shop_wait:ms")
        seen = between(shown, metrics, OWN_PAGE.format(done=12, busy_ms=320))
        assert seen.buckets is not None
        assert seen.buckets.edges_s == (0.05, math.inf)
        assert (seen.n_good, seen.n_lost) == (10, 0)
        assert seen.sum_s == pytest.approx(0.3)
        with pytest.raises(InvalidInputError, match="unit of 'shop_wait' is not known"):
            LiveMetrics(shown.url, shown.clock, metric="shop_wait")
        with pytest.raises(InvalidInputError, match=r"no histogram or summary 'shop_wit'.*shop_wait"):
            LiveMetrics(shown.url, shown.clock, metric="shop_wit")
        with pytest.raises(InvalidInputError, match="no serving stack that is known"):
            LiveMetrics(shown.url, shown.clock)


def test_a_page_without_latencies_is_refused() -> None:
    with pages("# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 0\n") as shown:
        with pytest.raises(InvalidInputError, match="no latency metrics of vLLM"):
            LiveMetrics(shown.url, shown.clock)
        with pytest.raises(InvalidInputError, match="no latency metrics of TGI"):
            LiveMetrics(shown.url, shown.clock, stack=TGI)
    with pages("<html>") as shown, pytest.raises(InvalidInputError, match=r"cannot be read.*no metrics page"):
        LiveMetrics(shown.url, shown.clock)


def test_names_of_stacks_do_not_overlap() -> None:
    for stack in STACKS:
        assert all(name.startswith(stack.mark) for name in stack.names())
        others = [other for other in STACKS if other is not stack]
        assert not any(stack.mark.startswith(other.mark) for other in others)


@pytest.mark.parametrize(
    ("name", "unit_s"),
    [
        ("a_seconds", 1.0),
        ("b_ms", 1e-3),
        ("c_us", 1e-6),
        ("d_microseconds", 1e-6),
        ("bus", None),
        ("e", None),
    ],
)
def test_a_unit_is_read_off_a_name(name: str, unit_s: float | None) -> None:
    assert unit_of(name) == unit_s
