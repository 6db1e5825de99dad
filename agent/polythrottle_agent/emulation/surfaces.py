"""Energy surfaces read off a paper's figures, from CSV files that are not part of this repository."""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass
from pathlib import Path

from polythrottle.errors import InvalidInputError
from polythrottle_agent.emulation.boards import board_named

_NAME = re.compile(r"^(?P<board>Orin|TX2)_(?P<model>B0|B4|B7|Bert)_fp16_bs(?P<batch>\d+)_m?J_hwlevels$")
_BOARDS = {"Orin": "agx-orin", "TX2": "tx2"}
_WORKLOADS = {
    "B0": "efficientnet-b0",
    "B4": "efficientnet-b4",
    "B7": "efficientnet-b7",
    "Bert": "bert-base",
}
_COLUMNS = ("gpu_MHz", "mem_MHz", "mean_energy")


@dataclass(frozen=True)
class Cell:
    """Mean energy at one GPU and memory clock, in the figure's own unit: only ratios mean anything."""

    gpu_mhz: float
    mem_mhz: float
    energy: float


@dataclass(frozen=True)
class Surface:
    """All cells of one figure."""

    board: str
    workload: str
    batch: int
    cells: tuple[Cell, ...]

    @property
    def at_max(self) -> Cell:
        return max(self.cells, key=lambda cell: (cell.gpu_mhz, cell.mem_mhz))

    @property
    def best(self) -> Cell:
        return min(self.cells, key=lambda cell: cell.energy)


def read_surfaces(folder: Path) -> list[Surface]:
    """Every `BOARD_MODEL_fp16_bsN_mJ_hwlevels.csv` in `folder` or in its subfolder `paper`, by name.

    Raises:
        InvalidInputError: no such file there, a column is missing, a cell is not a number above zero, or a
            clock is not a level of the board.
    """
    places = (folder, folder / "paper")
    paths = sorted(
        path for place in places for path in place.glob("*_hwlevels.csv") if _NAME.match(path.stem)
    )
    if not paths:
        raise InvalidInputError(f"{folder} holds no energy surface (a file named *_hwlevels.csv).")
    return [_read(path) for path in paths]


def _read(path: Path) -> Surface:
    match = _NAME.match(path.stem)
    if match is None:
        raise InvalidInputError(f"{path.name} does not say board, model and batch; see docs/emulator.md.")
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise InvalidInputError(
                f"{path.name} has no column {missing[0]}; it needs {', '.join(_COLUMNS)}."
            )
        cells = tuple(_cell(path, number, row) for number, row in enumerate(reader, start=2))
    if not cells:
        raise InvalidInputError(f"{path.name} has no row.")
    board = board_named(_BOARDS[match["board"]])
    for cell in cells:
        if cell.gpu_mhz not in board.gpu_mhz or cell.mem_mhz not in board.mem_mhz:
            where = f"GPU {cell.gpu_mhz:g} with memory {cell.mem_mhz:g} MHz"
            raise InvalidInputError(f"{path.name}: {where} are no levels of {board.name}.")
    return Surface(board.name, _WORKLOADS[match["model"]], int(match["batch"]), cells)


def _cell(path: Path, line: int, row: dict[str, str]) -> Cell:
    try:
        values = [float(row[name]) for name in _COLUMNS]
    except (TypeError, ValueError):
        raise InvalidInputError(f"{path.name}, line {line}: not a number.") from None
    if not all(math.isfinite(value) and value > 0 for value in values):
        raise InvalidInputError(f"{path.name}, line {line}: a value is not above zero.")
    return Cell(*values)
