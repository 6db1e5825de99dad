"""The conformance suite of workloads, on watched live traffic."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from polythrottle.clock import VirtualClock
from polythrottle.measurement import Provenance
from polythrottle_agent.workloads.opening import WorkloadOptions, open_workload
from tests.fakes.metrics_service import MetricsService, listening

sys.path.insert(0, str(Path(__file__).parents[2] / "conformance"))

from test_workloads import *  # noqa: F403

CASES = [
    ("vllm:", "e2e", "p95"),
    ("watch:", "e2e", "mean"),
    ("vllm:", "ttft", "p50"),
    ("watch:", "itl", "p90"),
]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case).replace(":", ""))
def member_case(request: pytest.FixtureRequest) -> Iterator[Any]:
    scheme, metric, statistic = request.param
    clock, rng = VirtualClock(), random.Random(1)
    with listening(MetricsService(clock, 100.0, lambda: rng.uniform(0.02, 0.06))) as url:
        opened = open_workload(f"{scheme}{url}", WorkloadOptions(latency_metric=metric), clock)
        device = SimpleNamespace(
            workload=opened.workload,
            controls=opened.controls,
            clock=clock,
            identity=SimpleNamespace(provenance=Provenance.MEASURED),
        )
        yield SimpleNamespace(device=device, statistic=statistic, can_be_cut_short=True, takes_time=False)
