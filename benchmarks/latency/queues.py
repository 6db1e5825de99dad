"""Queues with one server and Poisson arrivals: latencies in virtual time, and what theory says of them.

The mean service time is 1: latencies are in units of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CHUNK = 10_000
"""Queries that are worked out at once."""

STEP = 0.002
CELLS = 1 << 20
"""The lattice on which the distribution of a latency is worked out reaches to 2,097 service times."""

LOG_SD = 1.0
"""Of the log-normal service time: its variance is 1.72 times the squared mean, its tail heavier than any
exponential one."""
PARETO_SHAPE = 3.0
"""Of the Pareto (Lomax) service time: its latencies have no variance."""


@dataclass(frozen=True)
class Queue:
    """`service` is M (exponential), D (constant), `lognormal` or `pareto`; `load` the server's busy share."""

    service: str
    load: float

    @property
    def name(self) -> str:
        return {"M": "M/M/1", "D": "M/D/1"}.get(self.service, f"M/G/1 {self.service}")

    def latencies(self, rng: np.random.Generator, warm_up: int = 20) -> Iterator[Floats]:
        """In order of arrival, without end, by Lindley's recursion.

        The first `warm_up` queries, which find the server idle or nearly so, are left out: as many as a trial
        serves before its window.
        """
        wait = 0.0
        while True:
            served = self._services(CHUNK + warm_up, rng)
            gaps = rng.exponential(1.0 / self.load, CHUNK + warm_up)
            walk = wait + np.concatenate([[0.0], np.cumsum(served - gaps)])
            waits = walk - np.minimum(np.minimum.accumulate(walk), 0.0)
            yield (waits[:-1] + served)[warm_up:]
            wait, warm_up = float(waits[-1]), 0

    def quantile(self, quantile: float) -> float:
        """By theory, over all time."""
        if self.service == "M":
            return -math.log(1.0 - quantile) / (1.0 - self.load)
        if self.service == "D" and quantile <= 1.0 - self.load:
            return 1.0  # they find the server idle
        return float(np.interp(quantile, _distribution(self), STEP * np.arange(CELLS)))

    def mean(self) -> float:
        """By theory (Pollaczek and Khinchine)."""
        square = {
            "M": 2.0,
            "D": 1.0,
            "lognormal": math.exp(LOG_SD**2),
            "pareto": 2.0 * (PARETO_SHAPE - 1.0) / (PARETO_SHAPE - 2.0),
        }[self.service]
        return 1.0 + self.load * square / (2.0 * (1.0 - self.load))

    def _services(self, n: int, rng: np.random.Generator) -> Floats:
        if self.service == "M":
            return rng.exponential(1.0, n)
        if self.service == "D":
            return np.ones(n)
        if self.service == "lognormal":
            return rng.lognormal(-0.5 * LOG_SD**2, LOG_SD, n)
        return rng.pareto(PARETO_SHAPE, n) * (PARETO_SHAPE - 1.0)

    def _beyond(self, x: Floats) -> Floats:
        """Share of service times above x."""
        if self.service == "M":
            return np.exp(-x)
        if self.service == "D":
            return (x < 1.0).astype(np.float64)
        if self.service == "lognormal":
            with np.errstate(divide="ignore"):
                deviates = (np.log(x) + 0.5 * LOG_SD**2) / LOG_SD
            tails: Floats = 0.5 * np.vectorize(math.erfc)(deviates / math.sqrt(2.0))
            return tails
        return (1.0 + x / (PARETO_SHAPE - 1.0)) ** -PARETO_SHAPE


@lru_cache(maxsize=32)
def _distribution(queue: Queue) -> Floats:
    """P(latency ≤ x) at each step of the lattice.

    The wait is a geometric sum of residual service times (Pollaczek and Khinchine), worked out on the
    lattice by a Fourier transform; to it comes one service time. Rounding each summand to the nearest step
    keeps the mean.
    """
    edges = STEP * np.maximum(np.arange(CELLS + 1) - 0.5, 0.0)
    beyond = queue._beyond(edges)
    residual = -np.diff(_integral_beyond(beyond, edges))
    served = -np.diff(beyond)
    served[-1] += beyond[-1]
    transformed = np.fft.rfft(residual / residual.sum(), 2 * CELLS)
    waits = (1.0 - queue.load) / (1.0 - queue.load * transformed)
    cells = np.fft.irfft(waits * np.fft.rfft(served, 2 * CELLS), 2 * CELLS)[:CELLS]
    # A cell's mass lies around its step: half of it is counted up to the step.
    below: Floats = np.maximum.accumulate(np.cumsum(cells) - 0.5 * cells)
    return below


def _integral_beyond(beyond: Floats, edges: Floats) -> Floats:
    """∫ from each edge on of P(service > x): the residual service time's own tail, up to a constant."""
    pieces = 0.5 * (beyond[1:] + beyond[:-1]) * np.diff(edges)
    return np.concatenate([np.cumsum(pieces[::-1])[::-1], [0.0]])
