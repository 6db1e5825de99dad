"""An emulated board with its CPU stage, without noise: the joint optimum, and what a split leaves of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from polythrottle.configuration import Level
from polythrottle_agent.emulation.behaviour import Behaviour
from polythrottle_agent.emulation.boards import BATCH_SIZES
from polythrottle_agent.emulation.preprocessing import CpuStage, pipelined

EQUAL = "same factor"
"""The rule by which the stage may become slower by the same factor as the whole."""


@dataclass(frozen=True)
class Point:
    """One configuration: levels in MHz, J per query, seconds per batch through both stages."""

    gpu_mhz: float
    mem_mhz: float
    cpu_mhz: float
    batch: int
    energy_j: float
    latency_s: float


@dataclass(frozen=True)
class Split:
    """The best that a split leaves: the CPU level that its first phase holds, and the rest at their best."""

    cpu_mhz: float
    best: Point
    loss: float


class Landscape:
    """One board and model with images of `size` times the paper's work; every level of every knob."""

    def __init__(self, board: str, workload: str, size: float) -> None:
        self.behaviour = Behaviour.of(board, workload)
        self.stage = CpuStage.of(self.behaviour, size)
        self.size = size
        self._best: dict[float, dict[float, Point]] = {}

    @cached_property
    def points(self) -> tuple[Point, ...]:
        tables = self.behaviour.board
        return tuple(
            self.point(gpu_mhz, mem_mhz, cpu_mhz, batch)
            for batch in BATCH_SIZES
            for gpu_mhz in tables.gpu_mhz
            for mem_mhz in tables.mem_mhz
            for cpu_mhz in tables.cpu_mhz
        )

    def point(self, gpu_mhz: float, mem_mhz: float, cpu_mhz: float, batch: int) -> Point:
        at = self.behaviour.point(cpu_mhz=cpu_mhz, gpu_mhz=gpu_mhz, mem_mhz=mem_mhz, batch=batch)
        both = pipelined(self.stage, cpu_mhz, at)
        return Point(gpu_mhz, mem_mhz, cpu_mhz, batch, both.energy_j / batch, both.latency_s)

    def of(self, settings: Mapping[str, Level]) -> Point:
        """The point of a configuration; what it does not name is at its highest level, at batch 1."""
        tables = self.behaviour.board

        def mhz(knob: str, table: tuple[float, ...]) -> float:
            level = settings.get(knob, table[-1])
            return table[-1] if isinstance(level, str) else level

        return self.point(
            mhz("gpu_freq_mhz", tables.gpu_mhz),
            mhz("mem_freq_mhz", tables.mem_mhz),
            mhz("cpu_freq_mhz", tables.cpu_mhz),
            int(settings.get("batch_size", 1)),
        )

    @cached_property
    def max_clocks(self) -> Point:
        return self.of({})

    @property
    def share(self) -> float:
        """The stage's part of a query's energy at max clocks."""
        top_mhz = self.behaviour.board.cpu_mhz[-1]
        added_j = self.stage.added_power_w(top_mhz) * self.stage.image_s(top_mhz)
        return added_j / self.max_clocks.energy_j

    def joint(self, factor: float) -> Point:
        """The least energy under an SLO of so many times max clocks' latency."""
        return min(self._best_by_cpu(factor).values(), key=lambda p: p.energy_j)

    def _best_by_cpu(self, factor: float) -> dict[float, Point]:
        """By CPU clock; one at which nothing keeps the SLO is left out."""
        if factor not in self._best:
            found: dict[float, Point] = {}
            for p in self.points:
                known = found.get(p.cpu_mhz)
                if p.latency_s <= factor * self.max_clocks.latency_s and (
                    known is None or p.energy_j < known.energy_j
                ):
                    found[p.cpu_mhz] = p
            self._best[factor] = found
        return self._best[factor]

    def split(self, factor: float, rule: float | str) -> Split:
        """
        Args:
            rule: the share of the slack that the stage may use, or `EQUAL`.
        """
        first_s = self.stage.image_s(self.behaviour.board.cpu_mhz[-1])
        slack_s = (factor - 1.0) * self.max_clocks.latency_s
        limit_s = factor * first_s if isinstance(rule, str) else first_s + rule * slack_s
        within = [c for c in self.behaviour.board.cpu_mhz if self.stage.image_s(c) <= limit_s * (1 + 1e-9)]
        level = min(within, key=self.stage.alone_j)
        held = self._best_by_cpu(factor).get(level, self.max_clocks)
        best = min(held, self.max_clocks, key=lambda p: p.energy_j)
        return Split(level, best, best.energy_j / self.joint(factor).energy_j - 1.0)


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)
