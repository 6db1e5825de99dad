"""What the comparison with the paper is made of: rows, and the grid of operating points behind them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from polythrottle_agent.emulation.behaviour import Behaviour
from polythrottle_agent.emulation.boards import BATCH_SIZES

SAVING_TOLERANCE = 0.05


@dataclass(frozen=True)
class Row:
    """One figure: the emulator's and the paper's, and whether they agree.

    Where they do not, `excluded` says how the paper contradicts itself there, and `known` what it is in the
    emulator that cannot reproduce it.
    """

    what: str
    emulator: str
    paper: str
    agrees: bool
    excluded: str | None = None
    known: str | None = None

    @property
    def verdict(self) -> str:
        if self.agrees:
            return "ok"
        if self.excluded:
            return f"excluded: {self.excluded}"
        return f"known miss: {self.known}" if self.known else "MISS"

    @property
    def passes(self) -> bool:
        return self.agrees or self.excluded is not None or self.known is not None


@dataclass(frozen=True)
class GridPoint:
    """Levels by index, and what a batch takes there."""

    gpu: int
    mem: int
    batch: int
    latency_s: float
    energy_j: float


def grid(board: str, workload: str, batches: Iterable[int] = BATCH_SIZES) -> list[GridPoint]:
    """The paper's grid: GPU locked at each level × memory × batch, CPU at its highest clock."""
    behaviour = Behaviour.of(board, workload)
    tables = behaviour.board
    points = []
    for batch in batches:
        for g, gpu_mhz in enumerate(tables.gpu_mhz):
            for m, mem_mhz in enumerate(tables.mem_mhz):
                point = behaviour.point(
                    cpu_mhz=tables.cpu_mhz[-1], gpu_mhz=gpu_mhz, mem_mhz=mem_mhz, batch=batch
                )
                seconds, watts = behaviour.latency_and_power(point)
                points.append(GridPoint(g, m, batch, seconds, seconds * watts / batch))
    return points


def at_max(points: Iterable[GridPoint], batch: int) -> GridPoint:
    """Max clocks at a batch size."""
    return max((p for p in points if p.batch == batch), key=lambda p: (p.gpu, p.mem))


def least(points: Iterable[GridPoint]) -> GridPoint:
    """The point with the least energy per query."""
    return min(points, key=lambda p: p.energy_j)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def level_row(what: str, levels: Sequence[float], index: int, published_mhz: float) -> Row:
    """Agrees where the optimum is within one level of the published one, or of the level nearest to that."""
    published = min(range(len(levels)), key=lambda i: abs(levels[i] - published_mhz))
    return Row(what, f"{levels[index]:g} MHz", f"{published_mhz:g} MHz", abs(index - published) <= 1)


def saving_row(what: str, ours: float, published: float, excluded: str | None = None) -> Row:
    agrees = abs(ours - published) <= SAVING_TOLERANCE
    return Row(what, percent(ours), percent(published), agrees, excluded)
