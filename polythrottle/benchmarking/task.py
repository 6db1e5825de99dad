"""A table as a black box: what is true, what is asked for, and what a noisy measurement shows."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from polythrottle.configuration import Configuration, Knob, SearchSpace
from polythrottle.errors import InvalidInputError
from polythrottle.measurement import pooled
from polythrottle.optimizer.problem import Observation, Problem

SLO_FACTORS = (1.05, 1.15, 1.3)
"""SLOs of the benchmark, in times the true latency at the anchor."""

CLOCK_KNOBS = frozenset({"cpu_freq_mhz", "gpu_freq_mhz", "gpu_min_freq_mhz", "mem_freq_mhz", "cpu_cores"})
THREE_KNOB, BATCH_CAP, TWO_KNOB, ONE_KNOB, OTHER = "three-knob", "batch-cap", "two-knob", "one-knob", "other"
FAMILIES = (THREE_KNOB, BATCH_CAP, TWO_KNOB, ONE_KNOB, OTHER)


def family_of(knobs: Sequence[str]) -> str:
    """The family of tables that these knobs make: at least three clocks or cores, batch × cap, …"""
    if set(knobs) == {"batch_size", "power_limit_w"}:
        return BATCH_CAP
    if not set(knobs) <= CLOCK_KNOBS and len(knobs) > 2:
        return OTHER
    return {1: ONE_KNOB, 2: TWO_KNOB}.get(len(knobs), THREE_KNOB)


@dataclass(frozen=True)
class Task:
    """One table. `latency_s` and `energy_j` hold the truth, in the order of `space.indices()`."""

    name: str
    family: str
    source: str
    emulated: bool
    space: SearchSpace
    anchor: Configuration
    latency_s: tuple[float, ...]
    energy_j: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.latency_s) == len(self.energy_j) == len(self.configurations):
            raise InvalidInputError(f"Task {self.name}: one latency and one energy for each configuration.")
        if self.anchor not in self.cells:
            raise InvalidInputError(
                f"Task {self.name}: the table has no row for its anchor ({self.anchor}); "
                "add the row with every knob at its highest level."
            )

    @cached_property
    def configurations(self) -> tuple[Configuration, ...]:
        return tuple(self.space.at(index) for index in self.space.indices())

    @cached_property
    def cells(self) -> Mapping[Configuration, int]:
        """Position of each configuration."""
        return {configuration: cell for cell, configuration in enumerate(self.configurations)}

    @cached_property
    def anchor_cell(self) -> int:
        return self.cells[self.anchor]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the space, the anchor and every value."""
        content = f"{self.space.digest}|{self.anchor.settings}|{self.latency_s}|{self.energy_j}"
        return hashlib.sha256(content.encode()).hexdigest()

    def renamed(self, names: Mapping[str, str]) -> Task:
        """The same table with knobs under other names, for instance one the physics does not know."""
        knobs = tuple(Knob(names.get(k.name, k.name), k.levels) for k in self.space.knobs)
        anchor = Configuration(tuple((names.get(n, n), level) for n, level in self.anchor.settings))
        return replace(self, space=replace(self.space, knobs=knobs), anchor=anchor)

    def without_cells(self, share: float, seed: int) -> Task:
        """The same table with that share of its rows lost at random, the anchor's kept."""
        indices = self.space.indices()
        rng = np.random.default_rng([seed, zlib.crc32(self.name.encode()), 1])
        others = [cell for cell in range(len(indices)) if cell != self.anchor_cell]
        lost = set(rng.choice(others, size=round(share * len(indices)), replace=False).tolist())
        kept = [cell for cell in range(len(indices)) if cell not in lost]
        return replace(
            self,
            space=replace(self.space, cells=frozenset(indices[cell] for cell in kept)),
            latency_s=tuple(self.latency_s[cell] for cell in kept),
            energy_j=tuple(self.energy_j[cell] for cell in kept),
        )


@dataclass(frozen=True)
class Condition:
    """How well a table is measured.

    noise: sd of the logarithm of one latency and of one energy reading, told to the optimiser as the
    standard error. outlier_share: share of trials where one of the two readings is
    `OUTLIER_FACTOR` × too large (nobody is told). missing_share: share of rows that are lost.
    anchor_windows: windows at the anchor; one more where the first two differ by over 3 sd.
    """

    name: str
    noise: float = 0.02
    outlier_share: float = 0.0
    missing_share: float = 0.0
    anchor_windows: int = 1

    @property
    def label(self) -> str:
        return f"{self.name} ({self.noise:.1%} noise)"


OUTLIER_FACTOR = 5.0
DEGRADED = Condition("degraded", noise=0.05, outlier_share=0.02, missing_share=0.1, anchor_windows=2)


@dataclass(frozen=True)
class Goal:
    """A task with an SLO: what is truly feasible, truly best, and what a recommendation is worth."""

    task: Task
    slo_factor: float

    @cached_property
    def limit_s(self) -> float:
        return self.slo_factor * self.task.latency_s[self.task.anchor_cell]

    @cached_property
    def problem(self) -> Problem:
        return Problem(self.task.space, self.task.anchor, self.limit_s)

    @cached_property
    def best_energy_j(self) -> float:
        """Least true energy among the truly feasible; the anchor is always one of them."""
        return min(
            energy
            for latency, energy in zip(self.task.latency_s, self.task.energy_j, strict=True)
            if latency <= self.limit_s
        )

    def excess(self, cell: int) -> float:
        """True latency over the SLO, relative: 0.01 is 1 % over, negative is within."""
        return self.task.latency_s[cell] / self.limit_s - 1.0

    def violates(self, cell: int) -> bool:
        return self.task.latency_s[cell] > self.limit_s

    def within(self, cell: int, margin: float) -> bool:
        """Truly feasible and within `margin` of the true constrained optimum."""
        return not self.violates(cell) and self.task.energy_j[cell] <= (1.0 + margin) * self.best_energy_j

    def regret(self, cell: int) -> float:
        """What recommending this configuration costs: relative energy over the true optimum, at least 0.

        More than 3 % over the SLO it is charged the anchor's energy, and at least 25 %.
        """
        if self.excess(cell) > 0.03:
            return max(self.task.energy_j[self.task.anchor_cell] / self.best_energy_j - 1.0, 0.25)
        return max(self.task.energy_j[cell] / self.best_energy_j - 1.0, 0.0)


@dataclass(frozen=True)
class Reading:
    """One noisy window. `error` is the standard error that the meter claims, relative."""

    latency_s: float
    energy_j: float
    error: float


class BlackBox:
    """Measures cells of a task with the noise of a condition.

    The n-th reading of a cell depends on task, seed, cell and n alone, so that strategies with the same
    seed see the same noise.
    """

    READINGS = 12

    def __init__(self, task: Task, condition: Condition, seed: int) -> None:
        self._task, self._condition = task, condition
        self._taken = [0] * len(task.configurations)
        rng = np.random.default_rng([seed, zlib.crc32(task.name.encode()), 0])
        shape = (self.READINGS, len(task.configurations))
        self._noise = condition.noise * rng.standard_normal((2, *shape))
        hit = rng.random(shape) < condition.outlier_share
        which = rng.random(shape) < 0.5
        self._noise[0][hit & which] += math.log(OUTLIER_FACTOR)
        self._noise[1][hit & ~which] += math.log(OUTLIER_FACTOR)

    def measure(self, cell: int) -> Reading:
        """One window.

        Raises:
            IndexError: the cell was measured more often than noise was drawn for.
        """
        nth = self._taken[cell]
        self._taken[cell] += 1
        return Reading(
            latency_s=self._task.latency_s[cell] * math.exp(self._noise[0, nth, cell]),
            energy_j=self._task.energy_j[cell] * math.exp(self._noise[1, nth, cell]),
            error=max(self._condition.noise, 1e-3),
        )

    def trial(self, cell: int) -> list[Reading]:
        """All windows of one trial: several at the anchor where the condition says so, else one."""
        if cell != self._task.anchor_cell or self._condition.anchor_windows < 2:
            return [self.measure(cell)]
        windows = [self.measure(cell) for _ in range(self._condition.anchor_windows)]
        first, second = windows[:2]
        apart = max(
            abs(math.log(first.latency_s / second.latency_s)), abs(math.log(first.energy_j / second.energy_j))
        )
        if apart > 3.0 * math.sqrt(2.0) * first.error:
            windows.append(self.measure(cell))
        return windows


def observation(task: Task, cell: int, windows: Sequence[Reading]) -> Observation:
    """What all windows of one cell taught, pooled as a study pools them."""
    latency_s, latency_error = pooled([(w.latency_s, w.error) for w in windows])
    energy_j, energy_error = pooled([(w.energy_j, w.error) for w in windows])
    return Observation(
        configuration=task.configurations[cell],
        latency_s=latency_s,
        latency_error=latency_error,
        energy_j=energy_j,
        energy_error=energy_error,
    )
