"""The `polythrottle` command with a workload whose latency follows the P-state that the hardware is in.

There is no workload for real hardware yet, and nothing slows down in a virtual machine when a P-state does.
Everything else is what a user runs: discovery, the helper, the controls, the meter, the study.
"""

from __future__ import annotations

import random
import sys
import time

from hardware import LEVELS_KHZ, clock_khz

from polythrottle.cli.main import main
from polythrottle.studies import MeasurementPlan
from polythrottle_agent import hardware as device
from polythrottle_agent.ports import Served
from polythrottle_agent.workloads.emulated import closed_loop, quantile_of

BATCH = 25
"""Queries served at once: sleeping is slow in a virtual machine."""

AT_TOP_S, FIXED_S = 0.020, 0.010


class PStateWorkload:
    """Closed loop. A batch takes longer the slower the CPU is."""

    name, model_version = "p-state", "p-state-1"
    batch_sizes: tuple[int, ...] = ()
    default_batch_size = BATCH

    def __init__(self) -> None:
        self._random = random.Random(3)

    def check_statistic(self, statistic: str) -> None:
        quantile_of(statistic)

    def warm_up(self, n_queries: int) -> None:
        for _ in range(0, n_queries, BATCH):
            self._batch()

    def serve(self, plan: MeasurementPlan, statistic: str) -> Served:
        return closed_loop(plan, statistic, BATCH, self._batch, 0.02)

    def _batch(self) -> float:
        seconds = (FIXED_S + AT_TOP_S * LEVELS_KHZ[0] / clock_khz()) * self._random.gauss(1.0, 0.01)
        time.sleep(seconds)
        return seconds


if __name__ == "__main__":
    device.find_workload = lambda *_: (PStateWorkload(), {})
    main(sys.argv[1:])
