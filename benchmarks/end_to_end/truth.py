"""The emulator's true optimum: every configuration under the same load, in virtual time and without noise."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from polythrottle.clock import VirtualClock
from polythrottle.configuration import Configuration
from polythrottle.measurement import LatencyReading
from polythrottle.studies import MeasurementPlan
from polythrottle_agent.devices import open_device
from polythrottle_agent.emulation.behaviour import Behaviour
from polythrottle_agent.emulation.board import EmulatedBoard, Nodes
from polythrottle_agent.emulation.mount import mounted
from polythrottle_agent.holding import HeldDevice
from polythrottle_agent.load.options import Load
from polythrottle_agent.workloads.emulated_queue import QueuedEmulatedWorkload

SETTLE_S = 1.0
FIRST_QUERIES = 2_000
MORE_QUERIES = 30_000
NEAR_ENERGY = 1.15
NEAR_LATENCY = 1.3
"""Configurations this near to the optimum, or to the SLO, are simulated again for longer."""


@dataclass(frozen=True)
class Truth:
    """One configuration under one load. `latency_s` is inf where the service cannot keep up."""

    energy_j: float
    latency_s: float


def nodes_of(
    board: str, workload: str, configurations: Iterable[Configuration]
) -> dict[Configuration, Nodes]:
    """What the kernel of a mounted board holds under each configuration, set through its files."""
    clock = VirtualClock()
    found = {}
    with mounted(board, workload=workload, clock=clock) as emulated:
        device = open_device("auto", None, 0, clock, root=emulated.root)
        with HeldDevice(device) as held:
            for configuration in configurations:
                held.apply(configuration)
                clock.sleep(SETTLE_S)
                emulated.machine.energy_j()  # what is due on the board happens now
                found[configuration] = copy.copy(emulated.board.nodes)
    return found


@dataclass(frozen=True)
class Service:
    """What is served where: a board's behaviour, and what its kernel holds under each configuration."""

    board: str
    workload: str
    nodes: Mapping[Configuration, Nodes]


def simulate(
    service: Service, configuration: Configuration, load: Load, statistic: str, n_queries: int
) -> Truth:
    """One long window without noise between windows; queries scatter as they do."""
    behaviour = Behaviour.of(service.board, service.workload)
    noise = replace(behaviour.calibration.noise, scatter_one=0.0, scatter_many=0.0)
    behaviour = replace(behaviour, calibration=replace(behaviour.calibration, noise=noise))
    board = EmulatedBoard(behaviour, VirtualClock(), seed=0)
    board.nodes = copy.copy(service.nodes[configuration])
    board.clocks_changed()
    workload = QueuedEmulatedWorkload(board, load)
    workload.warm_up(n_queries // 20)
    began_j, began_s = board.energy_counter_j(), board.clock.now()
    plan = MeasurementPlan(min_queries=n_queries, max_window_s=math.inf)
    served = workload.serve(plan, statistic)
    spent_j, took_s = board.energy_counter_j() - began_j, board.clock.now() - began_s
    assert load.arrivals is not None
    if served.lost.total or not isinstance(served.latency, LatencyReading):
        return Truth(math.inf, math.inf)
    # Per query that is due: the arrivals of this one window do not matter.
    return Truth(spent_j / took_s / load.arrivals.rate_per_s, served.latency.latency_s)
