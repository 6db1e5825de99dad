"""A percentile of batches: what its standard error promises must hold, at every batch size."""

from __future__ import annotations

import math

import pytest

from polythrottle.clock import VirtualClock
from polythrottle.measurement import LatencyReading
from polythrottle.studies import MeasurementPlan
from polythrottle_agent.emulation import open_emulated

WINDOWS = 150


def readings(batch: int, plan: MeasurementPlan, seed: int = 0) -> list[LatencyReading]:
    device = open_emulated("agx-orin", "efficientnet-b4", VirtualClock(), seed)
    device.controls["batch_size"].apply(float(batch))
    found = []
    for _ in range(WINDOWS):
        latency = device.workload.serve(plan, "p99").latency
        assert isinstance(latency, LatencyReading)
        found.append(latency)
    return found


@pytest.mark.parametrize("batch", [1, 8, 16])
def test_a_bounded_p99_is_not_biased_low(batch: int) -> None:
    found = readings(batch, MeasurementPlan(min_queries=1000, max_window_s=1e6))
    assert all(r.bounded for r in found)
    assert all(r.n_queries >= 1000 * batch for r in found)
    truth = sorted(r.latency_s for r in found)[WINDOWS // 2]
    low = sum(r.latency_s + 1.645 * (r.standard_error_s or 0.0) < truth for r in found)
    # 5 % are expected; 12 % is 4 standard deviations beyond that.
    assert low <= math.floor(0.12 * WINDOWS)


def test_a_window_of_few_batches_is_not_bounded_whatever_its_queries() -> None:
    found = readings(16, MeasurementPlan(min_queries=1000, max_window_s=10.0))
    assert all(r.n_queries > 500 for r in found)
    assert not any(r.bounded for r in found)
