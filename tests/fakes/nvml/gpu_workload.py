"""A workload on a pretended GPU: batches back to back, as long as the clocks that run make them."""

from __future__ import annotations

import random

from nvml_fake import FakeNvml

from polythrottle.clock import Clock
from polythrottle.latency.statistic import quantile_of
from polythrottle.studies import MeasurementPlan
from polythrottle_agent.ports import MayEnd, Served
from polythrottle_agent.workloads.emulated import closed_loop

JITTER = 0.02
"""Relative standard deviation of a batch's latency."""


class GpuWorkload:
    """Closed loop, one query a batch. The GPU is busy while a batch runs, and only then."""

    batch_sizes: tuple[int, ...] = ()
    default_batch_size = 1
    name = "pretended"
    model_version = "pretended-1"

    def __init__(self, fake: FakeNvml, clock: Clock, seed: int = 1) -> None:
        self._fake, self._clock = fake, clock
        self._random = random.Random(seed)

    def check_statistic(self, statistic: str) -> None:
        quantile_of(statistic)

    def warm_up(self, n_queries: int) -> None:
        self._fake.set(load=1)
        for _ in range(n_queries):
            self._batch()
        self._fake.set(load=0)

    def serve(self, plan: MeasurementPlan, statistic: str, may_end: MayEnd | None = None) -> Served:
        self._fake.set(load=1)
        try:
            return closed_loop(plan, statistic, 1, self._batch, JITTER, may_end)
        finally:
            self._fake.set(load=0)

    def _batch(self) -> float:
        seconds = self._fake.get("service_s") * max(self._random.gauss(1.0, JITTER), 0.5)
        self._clock.sleep(seconds)
        return seconds
