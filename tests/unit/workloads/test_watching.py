"""Watching live traffic, over a real socket, on a clock of its own."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from polythrottle.clock import RealClock, VirtualClock
from polythrottle.errors import InvalidInputError
from polythrottle.measurement import LatencyReading, Provenance, Unavailable
from polythrottle.studies import MeasurementPlan
from polythrottle_agent.ports import Served
from polythrottle_agent.workloads.live_metrics import LiveMetrics
from polythrottle_agent.workloads.opening import Opened, WorkloadOptions, open_workload
from polythrottle_agent.workloads.watching import WatchedWorkload, headers_of, learned_rate_per_s
from tests.fakes.metrics_service import MetricsService, listening
from tests.unit.workloads.test_live_metrics import TORCHSERVE_PAGE, TRITON_COUNTERS, TRITON_SUMMARY, pages

PLAN = MeasurementPlan(min_queries=1000, min_window_s=2.0, max_window_s=120.0)


class Watched:
    def __init__(self, clock: VirtualClock, service: MetricsService, url: str) -> None:
        self.clock, self.service, self.url = clock, service, url
        self.workload = WatchedWorkload(LiveMetrics(url, clock), clock)


@contextmanager
def watched(draw: Callable[[], float | None], rate_per_s: float = 50.0) -> Iterator[Watched]:
    clock = VirtualClock()
    service = MetricsService(clock, rate_per_s, draw)
    with listening(service) as url:
        yield Watched(clock, service, url)


def uniform(low_s: float, high_s: float, seed: int = 1) -> Callable[[], float]:
    rng = random.Random(seed)
    return lambda: rng.uniform(low_s, high_s)


def reading(served: Served) -> LatencyReading:
    assert isinstance(served.latency, LatencyReading), served.latency
    return served.latency


def test_a_percentile_is_judged_by_the_upper_edge_of_its_bucket() -> None:
    with watched(uniform(0.0, 0.048)) as w:
        served = w.workload.serve(PLAN, "p99")
    found = reading(served)
    assert served.n_queries == pytest.approx(1000, abs=60)
    assert 20.0 <= served.duration_s <= 22.0
    assert 0.04 < found.latency_s < 0.05
    assert found.upper_s == 0.05
    assert found.standard_error_s == pytest.approx((0.05 - found.latency_s) / 1.645, rel=1e-3)
    assert found.bounded
    assert found.provenance is Provenance.MEASURED
    assert found.n_queries == served.n_queries
    assert served.aborted_reason is None
    assert any("bucket 40 ms to 50 ms" in note for note in served.notes)


def test_the_mean_comes_with_its_error() -> None:
    with watched(uniform(0.01, 0.03)) as w:
        served = w.workload.serve(PLAN, "mean")
    found = reading(served)
    assert found.latency_s == pytest.approx(0.02, rel=0.05)
    assert found.standard_error_s is not None
    assert 0 < found.standard_error_s < 0.001
    assert found.upper_s is not None
    assert found.latency_s < found.upper_s < 0.022


def test_a_window_grows_until_the_bound_is_tight() -> None:
    # Just below an edge that few lie above: it takes many queries to be sure of it.
    answers = uniform(0.0, 1.0)
    with watched(lambda: 0.12 if answers() < 0.007 else 0.045) as w:
        short = w.workload.serve(PLAN, "p99")
        plan = MeasurementPlan(min_queries=1000, min_window_s=2.0, max_window_s=600.0, precision=0.05)
        long = w.workload.serve(plan, "p99")
    assert reading(long).upper_s == 0.05
    assert long.duration_s > 3 * short.duration_s


def test_may_end_is_asked_once_everything_else_is_known() -> None:
    asked: list[float] = []
    with watched(uniform(0.01, 0.02)) as w:

        def may_end() -> bool:
            asked.append(w.clock.now())
            return len(asked) > 5

        served = w.workload.serve(PLAN, "p99", may_end)
    assert len(asked) == 6
    assert asked[0] >= 20.0
    assert served.duration_s == pytest.approx(asked[-1], abs=0.01)


@pytest.mark.parametrize("statistic", ["p99", "p50", "mean"])
def test_a_configuration_at_twice_the_slo_is_dropped_at_once(statistic: str) -> None:
    plan = MeasurementPlan(min_queries=1000, abort_latency_s=0.1)
    with watched(uniform(0.18, 0.22)) as w:
        served = w.workload.serve(plan, statistic)
    assert served.aborted_reason is not None
    assert served.duration_s <= 2.1
    assert reading(served).latency_s > 0.1
    assert not reading(served).bounded


def test_one_that_meets_the_slo_is_not_dropped() -> None:
    plan = MeasurementPlan(min_queries=1000, abort_latency_s=0.1)
    for seed in range(10):
        answers = uniform(0.0, 1.0, seed)
        with watched(lambda draw=answers: 0.19 if draw() < 0.008 else 0.04) as w:  # type: ignore[misc]
            assert w.workload.serve(plan, "p99").aborted_reason is None


def test_failed_queries_are_counted_and_count_as_late() -> None:
    answers = uniform(0.0, 1.0)
    with watched(lambda: None if answers() < 0.05 else 0.01) as w:
        served = w.workload.serve(PLAN, "p99")
    assert served.lost.errors == pytest.approx(50, abs=25)
    assert served.n_queries + served.lost.total == pytest.approx(1000, abs=60)
    assert served.aborted_reason is not None
    assert "failed: p99 is above 1000 ms" in served.aborted_reason
    assert reading(served).latency_s == 1.0


def test_when_everything_fails_nothing_is_known() -> None:
    with watched(lambda: None) as w:
        served = w.workload.serve(PLAN, "p99")
    assert isinstance(served.latency, Unavailable)
    assert "failed" in served.latency.reason
    assert served.n_queries == 0
    assert served.lost.errors > 900


def test_without_traffic_nothing_is_known() -> None:
    with watched(uniform(0.01, 0.02), rate_per_s=1e-4) as w:
        served = w.workload.serve(MeasurementPlan(max_window_s=30.0), "p99")
    assert isinstance(served.latency, Unavailable)
    assert "no query was counted in 30" in served.latency.reason


def test_a_service_that_is_started_again_makes_the_window_void() -> None:
    with watched(uniform(0.01, 0.02)) as w:

        def may_end() -> bool:
            w.service.restart()
            return False

        served = w.workload.serve(PLAN, "p99", may_end)
        assert served.void_reason is not None
        assert "started again" in served.void_reason
        # The next one is sound again.
        assert w.workload.serve(PLAN, "p99").void_reason is None


def test_a_page_that_lies_is_not_believed() -> None:
    with watched(uniform(0.01, 0.02)) as w:
        true_page = w.service.text

        def lie() -> bytes:
            return true_page().replace(
                b'latency_seconds_bucket{le="0.02"', b'latency_seconds_bucket{le="0.002"'
            )

        def may_end() -> bool:
            w.service.page = lie
            return False

        served = w.workload.serve(PLAN, "p99", may_end)
    assert isinstance(served.latency, Unavailable) or served.void_reason
    assert served.aborted_reason is None


def test_a_page_that_is_gone_for_a_moment_is_waited_for_and_one_that_stays_away_is_not() -> None:
    with watched(uniform(0.01, 0.02)) as w:
        began_s: list[float] = []

        def broken_for(duration_s: float) -> Callable[[], bytes]:
            began_s.append(w.clock.now())

            def page() -> bytes:
                if w.clock.now() < began_s[-1] + duration_s:
                    return b"<html>busy</html>"
                return w.service.text()

            return page

        w.service.page = broken_for(3.0)
        assert reading(w.workload.serve(PLAN, "p99")).bounded
        w.service.page = broken_for(1e9)
        served = w.workload.serve(PLAN, "p99")
    assert isinstance(served.latency, Unavailable)
    assert "are gone" in served.latency.reason


def test_an_endpoint_that_hangs_ends_the_window() -> None:
    clock = RealClock()
    service = MetricsService(clock, 200.0, lambda: 0.01)
    with listening(service) as url:
        workload = WatchedWorkload(LiveMetrics(url, clock), clock)
        threading.Timer(0.6, service.hangs.set).start()
        started_s = clock.now()
        served = workload.serve(MeasurementPlan(min_queries=10**6, max_window_s=60.0), "p99")
    assert isinstance(served.latency, Unavailable)
    assert "did not answer within 5 s" in served.latency.reason
    assert clock.now() - started_s < 20.0


def test_warm_up_waits_for_live_queries_but_not_for_ever() -> None:
    with watched(uniform(0.01, 0.02), rate_per_s=10.0) as w:
        w.workload.warm_up(20)
        assert w.clock.now() == pytest.approx(2.0, abs=0.5)
        w.workload.warm_up(0)
        assert w.clock.now() == pytest.approx(2.0, abs=0.5)
        w.service.status = 500
        w.workload.warm_up(20)
        assert w.clock.now() == pytest.approx(32.0, abs=1.0)


def test_the_rate_is_learned_from_live_traffic() -> None:
    with watched(uniform(0.01, 0.02), rate_per_s=37.0) as w:
        assert w.workload.live_rate_per_s(20.0) == pytest.approx(37.0, rel=0.02)
    with (
        watched(uniform(0.01, 0.02), rate_per_s=1e-4) as w,
        pytest.raises(InvalidInputError, match=r"No query arrived.*--rate"),
    ):
        w.workload.live_rate_per_s(20.0)


def test_a_rate_is_learned_from_somebody_else_s_service() -> None:
    with watched(uniform(0.01, 0.02), rate_per_s=37.0) as w:
        assert learned_rate_per_s(f"watch:{w.url}", w.clock, 20.0) == pytest.approx(37.0, rel=0.02)
    with pytest.raises(InvalidInputError, match="cannot be read"):
        learned_rate_per_s("watch:http://127.0.0.1:9", VirtualClock())


def test_a_rate_is_learned_across_a_restart() -> None:
    with watched(uniform(0.01, 0.02), rate_per_s=37.0) as w:
        w.clock.sleep(100.0)
        w.service.text()
        first = [True]

        def page() -> bytes:
            if w.clock.now() > 105.0 and first:
                first.clear()
                w.service.restart()
            return w.service.text()

        w.service.page = page
        assert w.workload.live_rate_per_s(20.0) == pytest.approx(37.0, rel=0.1)


@pytest.mark.parametrize("statistic", ["p100", "", "median", "p"])
def test_what_is_no_statistic_is_refused(statistic: str) -> None:
    with watched(uniform(0.01, 0.02)) as w, pytest.raises(InvalidInputError):
        w.workload.check_statistic(statistic)


def test_a_mean_is_all_that_some_publish() -> None:
    with pages(TORCHSERVE_PAGE.format(done=5, busy_us=50_000.5)) as shown:
        workload = WatchedWorkload(LiveMetrics(shown.url, shown.clock), shown.clock)
        workload.check_statistic("mean")
        with pytest.raises(InvalidInputError, match="only the mean") as error:
            workload.check_statistic("p99")
        assert "\n" not in str(error.value)
    text = TRITON_COUNTERS.format(done=1, failed=0, queries=1, busy_us=1)
    with pages(text) as shown:
        workload = WatchedWorkload(LiveMetrics(shown.url, shown.clock, model="cat"), shown.clock)
        with pytest.raises(InvalidInputError, match="summary_latencies=true"):
            workload.check_statistic("p99")


def summary_pages(
    rate_per_s: float, p50_us: float, p99_us: float, clock: VirtualClock
) -> Callable[[], bytes]:
    def page() -> bytes:
        n = round(clock.now() * rate_per_s)
        text = (TRITON_COUNTERS + TRITON_SUMMARY).format(
            done=n, failed=0, queries=n, busy_us=n * p50_us, p50=p50_us, p99=p99_us
        )
        return (
            text
            + f'nv_inference_request_summary_us{{model="cat",version="1",quantile="0.999"}} {2 * p99_us}\n'
        ).encode()

    return page


def test_a_summary_is_read_when_it_holds_nothing_but_the_window() -> None:
    clock = VirtualClock()
    service = MetricsService(clock, 1.0, lambda: 0.01)
    service.page = summary_pages(50.0, 9000, 20000, clock)
    with listening(service) as url:
        workload = WatchedWorkload(LiveMetrics(url, clock, model="cat"), clock)
        served = workload.serve(PLAN, "p99")
        with pytest.raises(InvalidInputError, match=r"p50, p99, p99\.9 of its latency, not p95"):
            workload.check_statistic("p95")
        aborted = workload.serve(MeasurementPlan(abort_latency_s=0.015), "p99")
    assert served.duration_s >= 60.0
    found = reading(served)
    assert found.latency_s == pytest.approx(0.02)
    assert found.upper_s is not None
    assert 0.02 < found.upper_s < 0.035
    assert found.bounded
    assert aborted.aborted_reason is not None
    assert "above 20 ms" in aborted.aborted_reason


def opened(text: str, **options: object) -> Opened:
    return open_workload(text, WorkloadOptions(**options), VirtualClock())  # type: ignore[arg-type]


def test_it_is_opened_by_its_scheme() -> None:
    with watched(uniform(0.01, 0.02)) as w:
        assert opened(f"vllm:{w.url}").workload.name == "llama"
        assert opened(f"watch:{w.url}/metrics").workload.name == "llama"
        assert opened(f"vllm:{w.url}", latency_metric="ttft").workload.name == "llama ttft"
        assert opened(f"vllm:{w.url}", headers=("Authorization: Bearer x",)).load == "live traffic"
        assert not opened(f"vllm:{w.url}").controls
        with pytest.raises(InvalidInputError, match="no latency metrics of TGI"):
            opened(f"tgi:{w.url}")
        with pytest.raises(InvalidInputError, match="rate"):
            opened(f"vllm:{w.url}", rate_per_s=5.0)


@pytest.mark.parametrize("text", ["vllm:http://127.0.0.1:9", "watch:ftp://x", "tgi:a b"])
def test_what_cannot_be_watched_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(InvalidInputError) as error:
        opened(text)
    assert "\n" not in str(error.value)


def test_a_header_that_is_none_is_refused() -> None:
    assert headers_of(("A: b: c",)) == {"A": "b: c"}
    with pytest.raises(InvalidInputError):
        headers_of(("nonsense",))
