"""The CPU stage before the model: an image is read, converted, resized and laid out, one after the other.

Table 7 of the paper has the energy of this stage alone against the CPU clock: least near 900 MHz on Orin
(−28.6 %) and near 1000 MHz on TX2 (−29.4 %), which comes to 6 % of a query's energy at most. The constants
here were chosen to meet both for EfficientNet; BERT, whose pre-processing the paper leaves out, has no such
stage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from polythrottle.errors import InvalidInputError
from polythrottle.physics import OperatingPoint
from polythrottle_agent.emulation.behaviour import Behaviour

STAGE = "preprocessing"
SUFFIX = f"+{STAGE}"
"""Added to a workload's name where images are pre-processed on the board: `efficientnet-b4+preprocessing`."""


@dataclass(frozen=True)
class Cores:
    """What pre-processing asks of a board's CPU.

    image_s: seconds one image takes at the highest clock. clock_share: the part of it that goes with
    1 / clock; memory and storage make up the rest. over_rest: power of the busy cores at the highest clock,
    over that of the module at rest there. Their voltage is `floor` up to the relative clock `knee`, then
    rises as a power `exponent` to 1.
    """

    image_s: float
    clock_share: float
    over_rest: float
    floor: float
    knee: float
    exponent: float

    def dynamic(self, clock: float) -> float:
        """f·V² at a relative clock in (0, 1], 1 at the highest."""
        above = max(clock - self.knee, 0.0) / (1.0 - self.knee)
        voltage = self.floor + (1.0 - self.floor) * math.pow(above, self.exponent)
        return clock * voltage * voltage


_ORIN = Cores(0.00068, clock_share=0.85, over_rest=4.0, floor=0.65, knee=0.4, exponent=0.8)
_TX2 = Cores(0.0017, clock_share=0.85, over_rest=5.0, floor=0.65, knee=0.2, exponent=1.2)

CORES: Mapping[str, Cores] = {"agx-orin": _ORIN, "tx2": _TX2}
"""By the board that the paper measured; every other one is extrapolated from Orin."""


def has_stage(workload: str) -> bool:
    """Whether a name such as `efficientnet-b4+preprocessing` asks for the CPU stage."""
    return workload.endswith(SUFFIX)


def without_stage(workload: str) -> str:
    """The name of the workload itself: what is served once an image is ready."""
    return workload.removesuffix(SUFFIX)


@dataclass(frozen=True)
class CpuStage:
    """Pre-processing for one workload on one board.

    `size` multiplies the work of an image: 1 is the paper's. Images of equal size cost every model the same
    time, so the stage's share shrinks as the model grows.
    """

    behaviour: Behaviour
    cores: Cores
    size: float = 1.0

    @classmethod
    def of(cls, behaviour: Behaviour, size: float = 1.0) -> CpuStage:
        """
        Raises:
            InvalidInputError: the workload has no such stage.
        """
        workload = behaviour.calibration.workload
        if not workload.startswith("efficientnet"):
            raise InvalidInputError(
                f"The emulated {workload} has no CPU stage: the paper reports pre-processing of images only."
            )
        tables = behaviour.board
        cores = CORES["agx-orin"] if tables.extrapolated else CORES[tables.name]
        # A slower CPU takes longer by the part of the time that goes with its clock.
        slower = CORES_TOP_MHZ / tables.cpu_mhz[-1] if tables.extrapolated else 1.0
        time = cores.clock_share * slower + 1.0 - cores.clock_share
        return cls(behaviour, cores, size * time)

    def image_s(self, cpu_mhz: float) -> float:
        """Mean seconds that one image takes."""
        share = self.cores.clock_share
        return self.cores.image_s * self.size * (share / self._clock(cpu_mhz) + 1.0 - share)

    def added_power_w(self, cpu_mhz: float) -> float:
        """Mean watts of the busy cores, on top of whatever else the board draws."""
        tables = self.behaviour.board
        at_top_w = self.cores.over_rest * self._rest_w(tables.cpu_mhz[-1])
        return at_top_w * self.cores.dynamic(self._clock(cpu_mhz))

    def alone_power_w(self, cpu_mhz: float) -> float:
        """Mean watts of the module while it only pre-processes: GPU at rest, memory at its highest."""
        return self._rest_w(cpu_mhz) + self.added_power_w(cpu_mhz)

    def alone_j(self, cpu_mhz: float) -> float:
        """Joules an image costs while the board does nothing else: what Table 7 compares."""
        return self.alone_power_w(cpu_mhz) * self.image_s(cpu_mhz)

    def best_mhz(self) -> float:
        """The level at which an image alone costs least."""
        return min(self.behaviour.board.cpu_mhz, key=self.alone_j)

    def _clock(self, cpu_mhz: float) -> float:
        return cpu_mhz / self.behaviour.board.cpu_mhz[-1]

    def _rest_w(self, cpu_mhz: float) -> float:
        tables = self.behaviour.board
        return self.behaviour.idle_power_w(
            self.behaviour.point(
                cpu_mhz=cpu_mhz, gpu_mhz=tables.gpu_mhz[0], mem_mhz=tables.mem_mhz[-1], batch=1
            )
        )


CORES_TOP_MHZ = 2201.6
"""Highest CPU clock of Orin, which the other boards are extrapolated from."""


@dataclass(frozen=True)
class Pipelined:
    """One batch through both stages, in steady state.

    The CPU prepares the next batch while the GPU serves this one, just in time: a batch is served `period_s`
    after the one before, and a query takes `latency_s` through both stages. `energy_j` is of one period.
    """

    stage_s: float
    model_s: float
    energy_j: float

    @property
    def latency_s(self) -> float:
        return self.stage_s + self.model_s

    @property
    def period_s(self) -> float:
        return max(self.stage_s, self.model_s)


def pipelined(stage: CpuStage, cpu_mhz: float, point: OperatingPoint) -> Pipelined:
    """Mean times and energy of one batch where both stages overlap.

    Args:
        cpu_mhz: the CPU clock under load.
        point: where the model is served; its `batch` images are prepared one after the other.
    """
    behaviour = stage.behaviour
    stage_s = float(point.batch) * stage.image_s(cpu_mhz)
    model_s, model_w = behaviour.latency_and_power(point)
    waits_s = max(stage_s - model_s, 0.0)
    return Pipelined(
        stage_s,
        model_s,
        model_s * model_w + waits_s * behaviour.idle_power_w(point) + stage_s * stage.added_power_w(cpu_mhz),
    )
