"""The emulator beside the PolyThrottle paper: optima of Table 2, savings of Fig. 4, energy surfaces.

The paper leaves the baseline of its savings undefined. Here it is max clocks (highest GPU and memory
level) at the same batch as the optimum: that is the one reading under which the paper's own surfaces
reproduce its relaxed savings (TX2 B4 and B7 within 0.5 points).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from polythrottle.errors import PolythrottleError
from polythrottle_agent.emulation import paper
from polythrottle_agent.emulation.behaviour import Behaviour
from polythrottle_agent.emulation.boards import BATCH_SIZES, Board, board_named
from polythrottle_agent.emulation.surfaces import Surface, read_surfaces

SAVING_TOLERANCE = 0.05
TIGHT_FACTOR = 1.2

EXCLUDED: Mapping[tuple[str, str, str], str] = {
    ("tx2", "bert-base", paper.RELAXED): (
        "the paper's own BERT surfaces save at most 23.2 % (batch 1) and 26.7 % (batch 8): "
        "36.3 % needs another baseline, which it does not name"
    ),
}
"""Cells that the paper's own figures contradict, with the reason."""


@dataclass(frozen=True)
class Row:
    """One figure: the emulator's and the paper's, and whether they agree."""

    what: str
    emulator: str
    paper: str
    agrees: bool
    excluded: str | None = None

    @property
    def verdict(self) -> str:
        if self.agrees:
            return "ok"
        return f"excluded: {self.excluded}" if self.excluded else "MISS"

    @property
    def passes(self) -> bool:
        return self.agrees or self.excluded is not None


@dataclass(frozen=True)
class _Point:
    gpu: int
    mem: int
    batch: int
    latency_s: float
    energy_j: float


def _grid(board: str, workload: str, batches: Iterable[int] = BATCH_SIZES) -> list[_Point]:
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
                points.append(_Point(g, m, batch, seconds, seconds * watts / batch))
    return points


def _at_max(points: list[_Point], batch: int) -> _Point:
    return max((p for p in points if p.batch == batch), key=lambda p: (p.gpu, p.mem))


def _least(points: Iterable[_Point]) -> _Point:
    return min(points, key=lambda p: p.energy_j)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def table_2() -> list[Row]:
    """Memory optimum at the best GPU clock, and its saving against the highest memory clock; batch 1, TX2."""
    board = board_named("tx2")
    rows = []
    for published in paper.TABLE_2:
        points = _grid("tx2", published.workload, (1,))
        gpu = _least(points).gpu
        column = [p for p in points if p.gpu == gpu]
        best = _least(column)
        saving = 1.0 - best.energy_j / _at_max(column, 1).energy_j
        name = f"tx2 {published.workload}"
        rows.append(_level_row(f"{name}, memory", board.mem_mhz, best.mem, published.mem_mhz))
        rows.append(_saving_row(f"{name}, saving by memory", saving, published.saving, None))
    return rows


def figure_4(boards: Sequence[str]) -> list[Row]:
    """Savings of the optimum under a tight SLO at batch 1, and under none at any batch."""
    rows = []
    for (board, workload, slo), saving in paper.FIGURE_4.items():
        if board not in boards:
            continue
        points = _grid(board, workload, (1,) if slo == paper.TIGHT else BATCH_SIZES)
        limit_s = TIGHT_FACTOR * _at_max(points, 1).latency_s if slo == paper.TIGHT else float("inf")
        best = _least(p for p in points if p.latency_s <= limit_s)
        ours = 1.0 - best.energy_j / _at_max(points, best.batch).energy_j
        rows.append(
            _saving_row(f"{board} {workload}, {slo}", ours, saving, EXCLUDED.get((board, workload, slo)))
        )
    return rows


@dataclass(frozen=True)
class SurfaceComparison:
    """How the emulator's energy ratios compare with a figure's; ratios are to the highest clocks there."""

    surface: Surface
    rank_correlation: float
    mean_ratio_error: float
    rows: tuple[Row, ...]


def compare_surface(surface: Surface) -> SurfaceComparison:
    """
    Args:
        surface: a figure whose levels are hardware levels of the board.
    """
    board = board_named(surface.board)
    points = {(p.gpu, p.mem): p for p in _grid(surface.board, surface.workload, (surface.batch,))}
    cells = [
        (points[board.gpu_mhz.index(c.gpu_mhz), board.mem_mhz.index(c.mem_mhz)], c) for c in surface.cells
    ]
    reference = max((p for p, _ in cells), key=lambda p: (p.gpu, p.mem)).energy_j
    ours = [p.energy_j / reference for p, _ in cells]
    theirs = [c.energy / surface.at_max.energy for _, c in cells]
    best = _least(p for p, _ in cells)
    name = f"{surface.board} {surface.workload}, batch {surface.batch}"
    target = surface.best
    return SurfaceComparison(
        surface,
        spearman(ours, theirs),
        sum(abs(a / b - 1.0) for a, b in zip(ours, theirs, strict=True)) / len(cells),
        (
            _level_row(f"{name}, GPU optimum", board.gpu_mhz, best.gpu, target.gpu_mhz),
            _level_row(f"{name}, memory optimum", board.mem_mhz, best.mem, target.mem_mhz),
            _saving_row(f"{name}, saving", 1.0 - min(ours), 1.0 - min(theirs), None),
        ),
    )


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation of two sequences without ties."""
    n = len(a)
    squares = sum((x - y) ** 2 for x, y in zip(_ranks(a), _ranks(b), strict=True))
    return 1.0 - 6.0 * squares / (n * (n * n - 1))


def _ranks(values: Sequence[float]) -> list[int]:
    ranks = [0] * len(values)
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        ranks[index] = rank
    return ranks


def _level_row(what: str, levels: Sequence[float], index: int, published_mhz: float) -> Row:
    agrees = abs(index - levels.index(published_mhz)) <= 1
    return Row(what, f"{levels[index]:g} MHz", f"{published_mhz:g} MHz", agrees)


def _saving_row(what: str, ours: float, published: float, excluded: str | None) -> Row:
    agrees = abs(ours - published) <= SAVING_TOLERANCE
    return Row(what, _percent(ours), _percent(published), agrees, excluded)


def table_3(board: Board) -> list[str]:
    """Raising the GPU floor from the lowest, everything else as found: shown for orientation, not judged."""
    lines = []
    for published in paper.TABLE_3:
        behaviour = Behaviour.of(board.name, published.workload)
        energy = [
            behaviour.energy_per_query_j(
                behaviour.point(
                    cpu_mhz=board.cpu_mhz[-1],
                    gpu_mhz=board.gpu_mhz[-1],
                    mem_mhz=board.mem_mhz[-1],
                    gpu_min_mhz=floor_mhz,
                    batch=1,
                )
            )
            for floor_mhz in board.gpu_mhz
        ]
        best = min(range(len(energy)), key=energy.__getitem__)
        ours = f"{_percent(1.0 - energy[best] / energy[0])} at {board.gpu_mhz[best]:g} MHz"
        theirs = f"{_percent(published.saving)} at {published.gpu_min_mhz:g} MHz"
        lines.append(f"  {board.name + ' ' + published.workload:<48} {ours:>22} {theirs:>22}")
    return lines


def _print_rows(title: str, rows: Iterable[Row]) -> None:
    print(f"\n{title}")
    print(f"  {'':<48} {'emulator':>12} {'paper':>12}")
    for row in rows:
        print(f"  {row.what:<48} {row.emulator:>12} {row.paper:>12}  {row.verdict}")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the comparison. With QUICK=1 in the environment, a sample of it.

    Returns:
        0 when every figure agrees or is excluded with a reason, else 1.
    """
    parser = argparse.ArgumentParser(prog="polythrottle bench emulator", description=__doc__)
    parser.add_argument("--tables", type=Path, help="folder with the surfaces read off the paper's figures")
    args = parser.parse_args(argv)
    quick = os.environ.get("QUICK") == "1"
    try:
        return _run(args.tables, quick)
    except PolythrottleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(tables: Path | None, quick: bool) -> int:
    surfaces = [] if tables is None else read_surfaces(tables)
    boards = ("tx2",) if quick else ("tx2", "agx-orin")
    print("Emulated boards beside the PolyThrottle paper (FP16); the emulator was fitted to these figures.")
    print("Savings are against max clocks at the same batch. ok: optimum within one hardware level,")
    print(f"saving within {100 * SAVING_TOLERANCE:.0f} percentage points.")
    rows = table_2()
    _print_rows("Table 2: memory clock, GPU at its optimum, batch 1", rows)
    savings = figure_4(boards)
    _print_rows("Fig. 4: energy saved at the optimum", savings)
    rows += savings
    for surface in surfaces[:1] if quick else surfaces:
        compared = compare_surface(surface)
        _print_rows(f"Surface: {surface.board} {surface.workload}, batch {surface.batch}", compared.rows)
        print(
            f"  {len(surface.cells)} settings: rank correlation {compared.rank_correlation:.3f}, "
            f"mean absolute error of energy ratios {_percent(compared.mean_ratio_error)}"
        )
        rows += compared.rows
    if not quick:
        print(
            "\nTable 3: GPU floor, Orin, batch 1; not judged: for B4 Fig. 3 right shows 12 %, Table 3 29.1 %"
        )
        print("\n".join(table_3(board_named("agx-orin"))))
    print()
    if quick:
        print("emulator: QUICK figures")
        return 0 if all(row.passes for row in rows) else 1
    passed = all(row.passes for row in rows)
    print(f"emulator: {'PASS' if passed else 'FAIL'} figures (n = {len(rows)})")
    return 0 if passed else 1
