"""A small board whose truth is known: a member of the family that no ensemble seed draws, distorted."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from polythrottle.configuration import Configuration, Knob, SearchSpace
from polythrottle.optimizer.problem import Observation, Problem

Truth = Callable[[Configuration], tuple[float, float]]


@pytest.fixture(scope="session")
def space() -> SearchSpace:
    return SearchSpace(
        (
            Knob.of("cpu_freq_mhz", [600, 900, 1200, 1500, 1800]),
            Knob.of("gpu_freq_mhz", [300, 450, 600, 750, 900, 1050, 1200]),
            Knob.of("mem_freq_mhz", [400, 800, 1600]),
        )
    )


@pytest.fixture(scope="session")
def truth() -> Truth:
    """Latency in s and energy in J: roofline-like, with a wiggle that the family does not have."""

    def evaluate(configuration: Configuration) -> tuple[float, float]:
        cpu, gpu, mem = (
            float(configuration[name]) / top
            for name, top in (("cpu_freq_mhz", 1800.0), ("gpu_freq_mhz", 1200.0), ("mem_freq_mhz", 1600.0))
        )
        latency_s = 0.02 * (math.hypot(0.6 / gpu, 0.3 / mem) + 0.1 / cpu + 0.05 * math.sin(9.0 * gpu) ** 2)
        power_w = 4.0 + 8.0 * gpu * (0.5 + 0.5 * gpu) ** 2 + 2.0 * mem + 3.0 * cpu * (0.6 + 0.4 * cpu) ** 2
        return latency_s, power_w * latency_s

    return evaluate


@pytest.fixture(scope="session")
def problem(space: SearchSpace, truth: Truth) -> Problem:
    return Problem(space, space.highest(), 1.2 * truth(space.highest())[0])


@pytest.fixture(scope="session")
def observe(truth: Truth) -> Callable[[Configuration], Observation]:
    def one(configuration: Configuration) -> Observation:
        latency_s, energy_j = truth(configuration)
        return Observation(configuration, latency_s, 0.01, energy_j, 0.01)

    return one
