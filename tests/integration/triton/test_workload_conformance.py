"""The conformance suite of workloads, on a real Triton: driven over HTTP and gRPC, and watched."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from polythrottle.clock import RealClock
from polythrottle.measurement import Provenance
from polythrottle.studies import MeasurementPlan
from tests.integration.triton.conftest import opened
from tests.integration.triton.real_triton import Triton

sys.path.insert(0, str(Path(__file__).parents[2] / "conformance"))

from test_workloads import *  # noqa: F403


@pytest.fixture(params=["http", "grpc", "watched"])
def member_case(request: pytest.FixtureRequest, triton: Triton) -> Iterator[Any]:
    stop = threading.Event()
    driver = None
    if request.param == "watched":
        sender = opened(triton.http("image"), rate_per_s=100.0).workload
        plan = MeasurementPlan(min_queries=10**6, max_window_s=1.0)

        def drive() -> None:
            while not stop.is_set():
                sender.serve(plan, "p50")

        driver = threading.Thread(target=drive)
        driver.start()
        found = opened(triton.http("image"), watch=True, metrics_url=triton.metrics_url)
    else:
        found = opened(getattr(triton, request.param)("image"), rate_per_s=100.0)
    device = SimpleNamespace(
        workload=found.workload,
        controls=found.controls,
        clock=RealClock(),
        identity=SimpleNamespace(provenance=Provenance.MEASURED),
    )
    statistic = "mean" if driver is not None else "p50"
    yield SimpleNamespace(device=device, statistic=statistic, can_be_cut_short=True, takes_time=True)
    stop.set()
    if driver is not None:
        driver.join()
