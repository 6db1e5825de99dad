"""Figures over many runs of one strategy on one family of tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from polythrottle.benchmarking.run import Row

REGRET_AFTER = (3, 5, 8, 10, 15, 20)


@dataclass(frozen=True)
class Share:
    """k of n, with its 95 % Wilson interval."""

    k: int
    n: int

    @property
    def value(self) -> float:
        return self.k / self.n if self.n else math.nan

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Lower and upper end. [Wilson 1927, J. Am. Stat. Assoc. 22, 209]"""
        if not self.n:
            return 0.0, 1.0
        p, n = self.value, self.n
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(centre - half, 0.0), min(centre + half, 1.0)


@dataclass(frozen=True)
class Reach:
    """Evaluations needed; "not reached" counts as budget + 1."""

    median: float
    p90: float
    mean: float

    @classmethod
    def of(cls, counts: Sequence[int]) -> Reach:
        return cls(float(np.median(counts)), float(np.percentile(counts, 90)), float(np.mean(counts)))


@dataclass(frozen=True)
class Summary:
    """All figures of one strategy on one family under one condition. Regrets are shares of energy."""

    strategy: str
    family: str
    condition: str
    n: int
    emulated: bool
    regrets: tuple[tuple[int, float], ...]
    to_5: Reach
    to_2: Reach
    violations: float
    slo_met: Share
    """Final recommendations whose true latency is at most 1 % over the SLO."""
    final_regret: float
    suggest_ms: float
    setup_ms: float
    stop_trials: float
    stop_regret: float
    stop_within_5: Share
    stop_fired: Share

    def regret_after(self, evaluations: int) -> float | None:
        return dict(self.regrets).get(evaluations)


def summarise(rows: Sequence[Row]) -> Summary:
    """Figures of rows that share strategy, family and condition (at least one)."""
    first = rows[0]
    budget = min(row.budget for row in rows)
    suggest = [ms for row in rows for ms in row.suggest_ms[1:]] or [ms for r in rows for ms in r.suggest_ms]
    return Summary(
        strategy=first.strategy,
        family=first.family,
        condition=first.condition,
        n=len(rows),
        emulated=all(row.emulated for row in rows),
        regrets=tuple(
            (k, float(np.mean([row.regrets[k - 1] for row in rows]))) for k in REGRET_AFTER if k <= budget
        ),
        to_5=Reach.of([row.to_5 for row in rows]),
        to_2=Reach.of([row.to_2 for row in rows]),
        violations=float(np.mean([row.violations for row in rows])),
        slo_met=Share(sum(row.final_excess <= 0.01 for row in rows), len(rows)),
        final_regret=float(np.mean([row.final_regret for row in rows])),
        suggest_ms=float(np.median(suggest)),
        setup_ms=float(np.median([row.setup_ms for row in rows])),
        stop_trials=float(np.mean([row.stop_at for row in rows])),
        stop_regret=float(np.mean([row.stop_regret for row in rows])),
        stop_within_5=Share(sum(row.stop_regret <= 0.05 for row in rows), len(rows)),
        stop_fired=Share(sum(row.stop_rule is not None for row in rows), len(rows)),
    )


def grouped(rows: Sequence[Row]) -> dict[tuple[str, str, str], Summary]:
    """Summaries by (family, condition, strategy), in order of first appearance."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.family, row.condition, row.strategy), []).append(row)
    return {key: summarise(members) for key, members in groups.items()}
