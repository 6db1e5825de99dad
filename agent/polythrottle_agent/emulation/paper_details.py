"""Tables 3 and 7 and Fig. 2 of the paper beside the emulator: one knob alone, batches, and the CPU stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from polythrottle_agent.emulation import paper
from polythrottle_agent.emulation.behaviour import Behaviour
from polythrottle_agent.emulation.paper_rows import (
    SAVING_TOLERANCE,
    GridPoint,
    Row,
    at_max,
    grid,
    least,
    level_row,
    percent,
    saving_row,
)
from polythrottle_agent.emulation.preprocessing import CpuStage, pipelined

LATENCY_TOLERANCE = 0.10
"""Relative, of a least latency in Fig. 2, which shows them to one decimal."""

_FIGURE_3_FLOOR = "Fig. 3 right maps this floor in full and shows 12 %"
_ORIN_BATCH_1 = "the paper's own figures save 17.7 %, 13.2 % (Fig. 4) and 6.8 % (surface) at batch 1"
_SMOOTH = "the emulator's GPU fills more smoothly"
_DEAR = "energy falls with the batch here; in the paper batch 4 beats batch 8"

_EXCLUDED: Mapping[tuple[str, int], str] = {("agx-orin", 1): _ORIN_BATCH_1}
_KNOWN: Mapping[tuple[str, int], str] = {("tx2", 2): _DEAR, ("tx2", 4): _DEAR}
_KNOWN_LATENCY: Mapping[tuple[str, int], str] = {("agx-orin", 2): _SMOOTH}


@dataclass(frozen=True)
class Part:
    """Rows of one table or figure, and lines to print below them that are not judged."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def table_3(board: str) -> Part:
    """Raising the GPU floor from the lowest, everything else as found; the floors are not judged."""
    rows, notes = [], ["best floor, not judged: the paper states neither batch nor memory clock"]
    for published in paper.TABLE_3:
        behaviour = Behaviour.of(board, published.workload)
        tables = behaviour.board
        energy = [
            behaviour.energy_per_query_j(
                behaviour.point(
                    cpu_mhz=tables.cpu_mhz[-1],
                    gpu_mhz=tables.gpu_mhz[-1],
                    mem_mhz=tables.mem_mhz[-1],
                    gpu_min_mhz=floor_mhz,
                    batch=1,
                )
            )
            for floor_mhz in tables.gpu_mhz
        ]
        best = min(range(len(energy)), key=energy.__getitem__)
        name = f"{board} {published.workload}"
        excluded = _FIGURE_3_FLOOR if published.workload == "efficientnet-b4" else None
        rows.append(saving_row(name, 1.0 - energy[best] / energy[0], published.saving, excluded))
        notes.append(_line(name, f"{tables.gpu_mhz[best]:g} MHz", f"{published.gpu_min_mhz:g} MHz"))
    return Part(tuple(rows), tuple(notes))


def figure_2() -> Part:
    """Fronts by batch: the fast end's latency, and the energy saved against batch 1 at its fastest."""
    rows = []
    notes = [
        "the fronts point by point: latency over the batch's least, energy saved against batch 1's fastest"
    ]
    for (board, workload), fronts in paper.FIGURE_2_FRONTS.items():
        points = grid(board, workload, fronts)
        alone = at_max(points, 1)
        for batch, front in fronts.items():
            name = f"{board} {workload}, batch {batch}"
            fastest = at_max(points, batch)
            if batch > 1:
                times = fastest.latency_s / alone.latency_s
                rows.append(_latency_row(name, (board, batch), times, front[0].latency))
            ours = [
                1.0 - _within(points, batch, point.latency / front[0].latency).energy_j / alone.energy_j
                for point in front
            ]
            theirs = [1.0 - point.energy_j / fronts[1][0].energy_j for point in front]
            rows.append(_front_row(name, (board, batch), ours, theirs))
            notes += [
                _line(f"{name}, {point.latency / front[0].latency:.2f}x", percent(a), percent(b))
                for point, a, b in zip(front, ours, theirs, strict=True)
            ]
    return Part(tuple(rows), tuple(notes))


def _within(points: Sequence[GridPoint], batch: int, slack: float) -> GridPoint:
    """The least energy of a batch size within its own least latency times `slack`."""
    limit_s = at_max(points, batch).latency_s * slack * (1.0 + 1e-9)
    return least(p for p in points if p.batch == batch and p.latency_s <= limit_s)


def _latency_row(name: str, key: tuple[str, int], ours: float, published: float) -> Row:
    return Row(
        f"{name}, least latency",
        f"{ours:.2f}",
        f"{published:.1f}",
        abs(ours / published - 1.0) <= LATENCY_TOLERANCE,
        known=_KNOWN_LATENCY.get(key),
    )


def _front_row(name: str, key: tuple[str, int], ours: Sequence[float], theirs: Sequence[float]) -> Row:
    """Agrees where the whole front lies within the tolerance in the mean."""
    off = sum(abs(a - b) for a, b in zip(ours, theirs, strict=True)) / len(ours)
    return Row(
        f"{name}, saved along the front",
        _range(ours),
        _range(theirs),
        off <= SAVING_TOLERANCE,
        excluded=_EXCLUDED.get(key),
        known=_KNOWN.get(key),
    )


def _range(savings: Sequence[float]) -> str:
    return f"{100 * savings[0]:.0f} to {100 * savings[-1]:.0f} %"


def table_7() -> Part:
    """The CPU stage alone, and what its best clock saves of a whole query (pipelined, batch 1)."""
    rows, notes = (
        [],
        ["of a whole query, by pre-processing at its best clock; not judged, its share is assumed"],
    )
    for published in paper.TABLE_7:
        for workload in ("efficientnet-b0", "efficientnet-b4", "efficientnet-b7"):
            behaviour = Behaviour.of(published.board, workload)
            stage, tables = CpuStage.of(behaviour), behaviour.board
            best_mhz, top_mhz = stage.best_mhz(), tables.cpu_mhz[-1]
            name = f"{published.board} {workload}"
            saving = 1.0 - stage.alone_j(best_mhz) / stage.alone_j(top_mhz)
            index = tables.cpu_mhz.index(best_mhz)
            rows.append(level_row(f"{name}, CPU", tables.cpu_mhz, index, published.cpu_mhz))
            rows.append(saving_row(f"{name}, saving", saving, published.saving))
            whole = 1.0 - _query_j(stage, best_mhz) / _query_j(stage, top_mhz)
            notes.append(_line(name, percent(whole), f"<= {percent(paper.MOST_BY_CPU)}"))
    return Part(tuple(rows), tuple(notes))


def _query_j(stage: CpuStage, cpu_mhz: float) -> float:
    """Joules of a query at max clocks but for the CPU while it prepares the image."""
    tables = stage.behaviour.board
    point = stage.behaviour.point(
        cpu_mhz=tables.cpu_mhz[-1], gpu_mhz=tables.gpu_mhz[-1], mem_mhz=tables.mem_mhz[-1], batch=1
    )
    return pipelined(stage, cpu_mhz, point).energy_j


def _line(what: str, ours: str, theirs: str) -> str:
    return f"{what:<58} {ours:>16} {theirs:>16}"
