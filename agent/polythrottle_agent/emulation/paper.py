"""What the PolyThrottle paper (arXiv 2310.19991v2) printed and plotted: the facts the emulator is held to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class MemoryOptimum:
    """A row of Table 2: TX2, GPU clock at its optimum. `saving` is relative to the highest memory clock."""

    workload: str
    saving: float
    mem_mhz: float


TABLE_2: tuple[MemoryOptimum, ...] = (
    MemoryOptimum("efficientnet-b0", 0.149, 1331.2),
    MemoryOptimum("efficientnet-b4", 0.143, 1331.2),
    MemoryOptimum("efficientnet-b7", 0.120, 1331.2),
    MemoryOptimum("bert-base", 0.254, 1062.4),
)

TIGHT = "batch 1, SLO 1.2x"
RELAXED = "relaxed SLO"

FIGURE_4: Mapping[tuple[str, str, str], float] = {
    ("agx-orin", "efficientnet-b0", TIGHT): 0.141,
    ("agx-orin", "efficientnet-b4", TIGHT): 0.161,
    ("agx-orin", "efficientnet-b7", TIGHT): 0.132,
    ("agx-orin", "bert-base", TIGHT): 0.133,
    ("tx2", "efficientnet-b0", TIGHT): 0.103,
    ("tx2", "efficientnet-b4", TIGHT): 0.148,
    ("tx2", "efficientnet-b7", TIGHT): 0.175,
    ("tx2", "bert-base", TIGHT): 0.222,
    ("agx-orin", "efficientnet-b0", RELAXED): 0.220,
    ("agx-orin", "efficientnet-b4", RELAXED): 0.178,
    ("agx-orin", "efficientnet-b7", RELAXED): 0.102,
    ("agx-orin", "bert-base", RELAXED): 0.218,
    ("tx2", "efficientnet-b0", RELAXED): 0.209,
    ("tx2", "efficientnet-b4", RELAXED): 0.190,
    ("tx2", "efficientnet-b7", RELAXED): 0.204,
    ("tx2", "bert-base", RELAXED): 0.363,
}
"""Fig. 4, FP16: energy saved of the optimum under the SLO, by (board, workload, SLO)."""


@dataclass(frozen=True)
class FloorOptimum:
    """A row of Table 3: Orin, everything else at default. `saving` is relative to the lowest GPU floor."""

    workload: str
    saving: float
    gpu_min_mhz: float


TABLE_3: tuple[FloorOptimum, ...] = (
    FloorOptimum("efficientnet-b0", 0.476, 1236.75),
    FloorOptimum("efficientnet-b4", 0.291, 1032.75),
    FloorOptimum("efficientnet-b7", 0.088, 1134.75),
    FloorOptimum("bert-base", 0.011, 216.75),
)


@dataclass(frozen=True)
class BatchPoint:
    """The least latency and its energy per query at one batch of Fig. 2, relative to batch 1."""

    batch: int
    latency: float
    energy: float


def _points(board: str, workload: str) -> tuple[BatchPoint, ...]:
    fronts = FIGURE_2_FRONTS[board, workload]
    least = fronts[1][0].energy_j
    firsts = ((batch, front[0]) for batch, front in fronts.items() if batch > 1)
    return tuple(BatchPoint(batch, first.latency, first.energy_j / least) for batch, first in firsts)


@dataclass(frozen=True)
class FrontPoint:
    """A point of Fig. 2: the least energy per query within a latency, relative to batch 1's least."""

    latency: float
    energy_j: float


def _front(*points: tuple[float, float]) -> tuple[FrontPoint, ...]:
    return tuple(FrontPoint(latency, energy_j) for latency, energy_j in points)


FIGURE_2_FRONTS: Mapping[tuple[str, str], Mapping[int, tuple[FrontPoint, ...]]] = {
    ("agx-orin", "efficientnet-b7"): {
        1: _front((1.0, 3.1734), (1.05, 2.7423), (1.1, 2.6222), (1.2, 2.6132), (1.5, 2.6132)),
        2: _front((1.7, 2.3241), (1.8, 2.2461), (2.0, 2.2001), (2.2, 2.1701)),
        4: _front((2.7, 2.068), (2.8, 1.991), (3.2, 1.972), (3.8, 1.955)),
        8: _front((4.6, 2.018), (4.8, 1.958), (5.2, 1.895), (6.0, 1.874), (6.4, 1.845)),
    },
    ("tx2", "efficientnet-b4"): {
        1: _front((1.0, 0.857), (1.05, 0.799), (1.1, 0.767), (1.2, 0.721), (1.5, 0.675)),
        2: _front((1.7, 0.758), (1.8, 0.680), (1.9, 0.647), (2.1, 0.618), (2.4, 0.597)),
        4: _front((3.2, 0.690), (3.4, 0.654), (3.6, 0.613), (3.8, 0.589), (4.2, 0.570)),
        8: _front((6.0, 0.749), (6.4, 0.677), (6.8, 0.636), (7.2, 0.614), (7.6, 0.603), (8.0, 0.580)),
    },
}
"""Fig. 2, FP16: batch → Pareto front. The energies are the figure's own: only their ratios mean anything."""

FIGURE_2: Mapping[tuple[str, str], tuple[BatchPoint, ...]] = {key: _points(*key) for key in FIGURE_2_FRONTS}
"""The fast end of each front."""


@dataclass(frozen=True)
class CpuOptimum:
    """A row of Table 7: pre-processing alone. `saving` is relative to the highest CPU clock."""

    board: str
    saving: float
    cpu_mhz: float


TABLE_7: tuple[CpuOptimum, ...] = (CpuOptimum("agx-orin", 0.286, 900.0), CpuOptimum("tx2", 0.294, 1000.0))

MOST_BY_CPU = 0.06
"""What pre-processing at its best CPU clock saves of a whole query, at most (the text beside Table 7)."""
