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


FIGURE_2: Mapping[tuple[str, str], tuple[BatchPoint, ...]] = {
    ("agx-orin", "efficientnet-b7"): (
        BatchPoint(2, 1.7, 2.3241 / 3.1734),
        BatchPoint(4, 2.7, 2.068 / 3.1734),
        BatchPoint(8, 4.6, 2.018 / 3.1734),
    ),
    ("tx2", "efficientnet-b4"): (
        BatchPoint(2, 1.7, 0.758 / 0.857),
        BatchPoint(4, 3.2, 0.690 / 0.857),
        BatchPoint(8, 6.0, 0.749 / 0.857),
    ),
}
