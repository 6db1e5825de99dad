"""The emulated boards: every level of every knob, in MHz, with where the tables come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from polythrottle.configuration import UNLOCKED, Knob
from polythrottle.errors import InvalidInputError, did_you_mean

BATCH_SIZES: tuple[int, ...] = (1, 2, 4, 8, 16)
"""The paper's grids hold five batch sizes; 1, 2, 4, 8 stand in its Fig. 2, 16 in its Figs. 6 and 7."""

DEFAULT_BATCH_SIZE = 1

GPU_MIN_KNOB = "gpu_min_freq_mhz"
GPU_KNOB = "gpu_freq_mhz"
MEM_KNOB = "mem_freq_mhz"
CPU_KNOB = "cpu_freq_mhz"


@dataclass(frozen=True)
class Board:
    """A board's tables of levels in MHz, ascending.

    `extrapolated` names the board its behaviour was derived from; None where the paper measured this one.
    """

    name: str
    label: str
    cpu_mhz: tuple[float, ...]
    gpu_mhz: tuple[float, ...]
    mem_mhz: tuple[float, ...]
    extrapolated: str | None = None

    @property
    def knobs(self) -> Mapping[str, Knob]:
        """The clock knobs by name; memory has `unlocked` above its numbers."""
        return {
            GPU_KNOB: Knob(GPU_KNOB, self.gpu_mhz),
            GPU_MIN_KNOB: Knob(GPU_MIN_KNOB, self.gpu_mhz),
            MEM_KNOB: Knob(MEM_KNOB, (*self.mem_mhz, UNLOCKED)),
            CPU_KNOB: Knob(CPU_KNOB, self.cpu_mhz),
        }


def _steps(first_mhz: float, last_mhz: float, step_mhz: float) -> tuple[float, ...]:
    """Evenly spaced levels, both ends included."""
    count = round((last_mhz - first_mhz) / step_mhz)
    return tuple(round(first_mhz + i * step_mhz, 4) for i in range(count + 1))


# 13 GPU × 11 memory levels: the paper's random-search figures imply grids of 143 points. GPU, memory and
# CPU lists as L4T 32.x prints them (two public captures agree on memory and CPU).
_TX2 = Board(
    name="tx2",
    label="Jetson TX2",
    cpu_mhz=_steps(345.6, 2035.2, 153.6),
    gpu_mhz=(
        *(114.75, 216.75, 318.75, 420.75, 522.75, 624.75, 726.75),
        *(854.25, 930.75, 1032.75, 1122.0, 1236.75, 1300.5),
    ),
    mem_mhz=(40.8, 68.0, 102.0, 204.0, 408.0, 665.6, 800.0, 1062.4, 1331.2, 1600.0, 1866.0),
)

# 13 GPU × 4 memory levels (grids of 52 points in the paper). The GPU list is that of early JetPack 5.0,
# which matches the paper's range 114.75 to 1300.5 MHz; later JetPacks start at 306 MHz. CPU as JetPack 5/6.
_AGX_ORIN = Board(
    name="agx-orin",
    label="Jetson AGX Orin developer kit",
    cpu_mhz=(*_steps(115.2, 2188.8, 76.8), 2201.6),
    gpu_mhz=(*_steps(114.75, 1236.75, 102.0), 1300.5),
    mem_mhz=(204.0, 665.6, 2133.0, 3199.0),
)

# The tables of JetPack 6.2 ("Super" modes). The paper did not measure this board.
_ORIN_NANO_8GB = Board(
    name="orin-nano-8gb",
    label="Jetson Orin Nano 8GB (Super)",
    cpu_mhz=_steps(115.2, 1728.0, 76.8),
    gpu_mhz=_steps(306.0, 1020.0, 102.0),
    mem_mhz=(204.0, 665.6, 2133.0, 3199.0),
    extrapolated="AGX Orin",
)

# Only for the emulated sysfs: boards that nobody measured and whose tables are published in part. Memory of
# the Xavier NX and all of Thor are the levels that are known or were seen on a board, nothing between.
_XAVIER_NX = Board(
    name="xavier-nx",
    label="Jetson Xavier NX",
    cpu_mhz=(*_steps(115.2, 1881.6, 76.8), 1907.2),
    gpu_mhz=(
        *(114.75, 204.0, 306.0, 408.0, 510.0, 599.25, 701.25, 752.25, 803.25),
        *(854.25, 905.25, 956.25, 1007.25, 1058.25, 1109.25),
    ),
    mem_mhz=(1600.0, 1866.0),
    extrapolated="AGX Orin",
)
_AGX_THOR = Board(
    name="agx-thor",
    label="Jetson AGX Thor developer kit",
    cpu_mhz=(972.0, 2601.0),
    gpu_mhz=(315.0, 1575.0),
    mem_mhz=(2750.0, 4266.0),
    extrapolated="AGX Orin",
)

_PUBLIC = {board.name: board for board in (_ORIN_NANO_8GB, _AGX_ORIN, _TX2)}
_ALL = {**_PUBLIC, _XAVIER_NX.name: _XAVIER_NX, _AGX_THOR.name: _AGX_THOR}

BOARDS: tuple[str, ...] = tuple(_PUBLIC)
"""Names of the boards behind `--device emulated:BOARD`."""

SYSFS_BOARDS: tuple[str, ...] = tuple(_ALL)
"""Names of the boards whose sysfs can be emulated."""


def board_named(name: str) -> Board:
    """
    Raises:
        InvalidInputError: no such board is emulated; close names are given.
    """
    if name not in _ALL:
        raise InvalidInputError(f"No board {name!r} is emulated; {did_you_mean(name, BOARDS)}")
    return _ALL[name]
