"""Queries to a real Triton: over HTTP and gRPC, under load and with its live traffic."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from polythrottle.errors import InvalidInputError
from polythrottle.measurement import LatencyReading, Unavailable
from polythrottle.studies import MeasurementPlan
from polythrottle_agent.workloads.triton_server import Address, TritonServer
from tests.integration.triton.conftest import opened
from tests.integration.triton.real_triton import Triton

PLAN = MeasurementPlan(min_queries=200, min_window_s=1.0, max_window_s=20.0)


@pytest.fixture(params=["http", "grpc"])
def protocol(request: pytest.FixtureRequest) -> str:
    protocol: str = request.param
    return protocol


def target(triton: Triton, protocol: str, model: str) -> str:
    found: str = getattr(triton, protocol)(model)
    return found


@pytest.mark.parametrize("model", ["image", "text", "single"])
def test_queries_are_served_and_counted_as_triton_counts_them(
    triton: Triton, protocol: str, model: str
) -> None:
    found = opened(target(triton, protocol, model))
    server = TritonServer(Address.parse(target(triton, protocol, model)))
    found.workload.warm_up(5)
    before = server.executed()
    served = found.workload.serve(PLAN, "p95")
    after = server.executed()
    assert served.void_reason is None
    assert served.aborted_reason is None
    assert served.n_queries >= 200
    assert served.lost.total == 0
    # It counts a moment after it answers: the last ones of the warm-up and of the window may be missing.
    assert after.n_queries - before.n_queries == pytest.approx(served.n_queries, abs=3)
    assert after.n_requests - before.n_requests == pytest.approx(served.n_queries, abs=3)
    assert isinstance(served.latency, LatencyReading)
    assert 0.0005 < served.latency.latency_s < 1.0
    assert any("Triton made batches of" in note for note in served.notes)
    assert found.load == "Poisson arrivals at 40/s"


def test_both_protocols_name_the_same_model(triton: Triton) -> None:
    over_http, over_grpc = opened(triton.http("text")).workload, opened(triton.grpc("text")).workload
    assert over_http.name == over_grpc.name == "triton text"
    assert over_http.model_version == over_grpc.model_version
    assert over_http.model_version != opened(triton.http("image")).workload.model_version


def test_a_closed_loop_fills_the_batches(triton: Triton, protocol: str) -> None:
    found = opened(target(triton, protocol, "image"), closed_loop=True, connections=16)
    served = found.workload.serve(MeasurementPlan(min_queries=400, max_window_s=20.0), "p50")
    assert isinstance(served.latency, LatencyReading)
    size = next(float(note.split()[4]) for note in served.notes if "batches of" in note)
    assert size > 2.0


def test_inputs_come_from_a_file(triton: Triton, tmp_path: Path) -> None:
    names = ("input_ids", "attention_mask", "token_type_ids")
    path = tmp_path / "inputs.npz"
    np.savez(path, **{name: np.ones((3, 7), dtype="int64") for name in names})
    served = opened(triton.http("text"), data=str(path)).workload.serve(PLAN, "p50")
    assert isinstance(served.latency, LatencyReading)
    np.savez(path, **{name: np.ones((3, 7), dtype="float32") for name in names})
    with pytest.raises(InvalidInputError, match=r"Model text: .*float32"):
        opened(triton.http("text"), data=str(path))


def test_its_live_traffic_is_watched(triton: Triton) -> None:
    driven = opened(triton.http("image"), rate_per_s=60.0).workload
    plan = MeasurementPlan(min_queries=10**6, max_window_s=14.0)
    driver = threading.Thread(target=driven.serve, args=(plan, "p50"))
    driver.start()
    try:
        time.sleep(1.0)
        found = opened(triton.http("image"), watch=True, metrics_url=triton.metrics_url)
        assert found.load == "live traffic"
        assert found.workload.batch_sizes == (1, 2, 4, 8)
        served = found.workload.serve(MeasurementPlan(min_queries=200, min_window_s=3.0), "mean")
        with pytest.raises(InvalidInputError, match=r"p50, p90, p95, p99, p99\.9 of its latency, not p42"):
            found.workload.check_statistic("p42")
        # Somebody who forgets that it is live does not load it twice.
        with pytest.raises(InvalidInputError, match=r"live traffic of .* queries/s. Add --watch"):
            opened(triton.http("image"), rate_per_s=None, metrics_url=triton.metrics_url)
    finally:
        driver.join()
    assert isinstance(served.latency, LatencyReading)
    assert served.n_queries / served.duration_s == pytest.approx(60.0, rel=0.25)
    assert 0.0005 < served.latency.latency_s < 1.0
    assert served.latency.upper_s is not None


def test_its_summary_agrees_with_the_one_who_sends(triton: Triton) -> None:
    """Takes a minute, as a summary does: the sender's percentile, and Triton's own of the same queries."""
    driven = opened(triton.http("image"), rate_per_s=60.0).workload
    sent: list[object] = []
    plan = MeasurementPlan(min_queries=10**6, max_window_s=66.0)
    driver = threading.Thread(target=lambda: sent.append(driven.serve(plan, "p90").latency))
    driver.start()
    found = opened(triton.http("image"), watch=True, metrics_url=triton.metrics_url)
    watched = found.workload.serve(MeasurementPlan(min_queries=200), "p90").latency
    driver.join()
    (by_sender,) = sent
    assert isinstance(watched, LatencyReading)
    assert isinstance(by_sender, LatencyReading)
    assert watched.upper_s is not None
    # Triton does not see its own sockets, nor the sender's: its latency is the lower one.
    assert watched.latency_s < by_sender.latency_s * 1.05
    assert watched.latency_s > by_sender.latency_s / 5 - 0.002


@pytest.mark.parametrize(
    ("model", "words"),
    [("nothing", "unknown model"), ("image/7", "not available|unknown|not found|not at READY")],
)
def test_a_model_that_is_not_there_is_refused(triton: Triton, protocol: str, model: str, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words) as error:
        opened(target(triton, protocol, model))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_nobody_there_is_refused(scheme: str) -> None:
    started_s = time.monotonic()
    with pytest.raises(InvalidInputError, match="nobody listens") as error:
        opened(f"{scheme}://127.0.0.1:9/image")
    assert "\n" not in str(error.value)
    assert time.monotonic() - started_s < 15


def test_what_is_no_triton_is_refused(triton: Triton) -> None:
    with pytest.raises(InvalidInputError, match="cannot be used"):
        opened(f"http://127.0.0.1:{triton.metrics_port}/image")
    with pytest.raises(InvalidInputError, match="cannot be used"):
        opened(f"grpc://127.0.0.1:{triton.http_port}/image")


def test_when_every_answer_is_an_error_it_is_not_even_begun(triton: Triton, protocol: str) -> None:
    triton.break_model("image")
    try:
        with pytest.raises(InvalidInputError, match="the model is broken"):
            opened(target(triton, protocol, "image"))
    finally:
        triton.mend_model("image")


def test_when_every_answer_becomes_an_error_nothing_is_measured(triton: Triton, protocol: str) -> None:
    found = opened(target(triton, protocol, "image"))
    triton.break_model("image")
    try:
        served = found.workload.serve(PLAN, "p95")
    finally:
        triton.mend_model("image")
    assert isinstance(served.latency, Unavailable)
    assert "the model is broken" in served.latency.reason
    assert served.n_queries == 0
    assert served.lost.errors > 0
    assert served.duration_s < 5


def test_live_traffic_that_all_fails_is_told_as_such(triton: Triton) -> None:
    driven = opened(triton.http("image")).workload
    triton.break_model("image")
    try:
        found = opened(triton.http("image"), watch=True, metrics_url=triton.metrics_url)
        stop = threading.Event()

        def hammer() -> None:
            while not stop.is_set():
                driven.serve(PLAN, "p95")

        driver = threading.Thread(target=hammer)
        driver.start()
        try:
            plan = MeasurementPlan(min_queries=10, min_window_s=1.0, max_window_s=10.0)
            served = found.workload.serve(plan, "mean")
        finally:
            stop.set()
            driver.join()
    finally:
        triton.mend_model("image")
    assert isinstance(served.latency, Unavailable)
    assert "failed" in served.latency.reason
