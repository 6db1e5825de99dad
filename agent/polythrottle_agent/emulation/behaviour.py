"""Seconds and watts of a workload on an emulated board, at levels in MHz: calibrated physics, no noise."""

from __future__ import annotations

from dataclasses import dataclass, replace

from polythrottle.errors import InvalidInputError, did_you_mean
from polythrottle.physics import (
    DeviceModel,
    DomainPower,
    OperatingPoint,
    ScalarOps,
    idle_power,
    latency_and_power,
)
from polythrottle_agent.emulation.boards import BATCH_SIZES, Board, board_named
from polythrottle_agent.emulation.calibration import (
    ANCHOR,
    WORKLOADS,
    Calibration,
    Resizing,
    extrapolated,
)
from polythrottle_agent.emulation.fitted import FITTED

_OPS = ScalarOps()
_LARGEST_BATCH = float(BATCH_SIZES[-1])

# 1,024 of 2,048 GPU cores, a 128-bit of a 256-bit memory bus, 6 of 12 CPU cores, highest clocks 1020 of
# 1300.5 and 1728 of 2201.6 MHz. How much of the static power a smaller module keeps is an assumption.
_ORIN_NANO_8GB = Resizing(
    gpu_size=0.5,
    gpu_top=1020.0 / 1300.5,
    mem_width=0.5,
    cpu_size=0.5,
    cpu_top=1728.0 / 2201.6,
    static=0.55,
)


# The same ratios for boards of which only the tables are known: GPU cores 384 and 2,560 of 2,048, memory
# bandwidth 59.7 and 273 of 204.8 GB/s, CPUs 6 and 14 of 12. That another generation's silicon behaves like
# Orin's, and the static power, are assumptions: these boards exercise interfaces, they predict nothing.
_XAVIER_NX = Resizing(
    gpu_size=0.1875,
    gpu_top=1109.25 / 1300.5,
    mem_width=0.29,
    cpu_size=0.5,
    cpu_top=1907.2 / 2201.6,
    static=0.5,
)
_AGX_THOR = Resizing(
    gpu_size=1.25,
    gpu_top=1575.0 / 1300.5,
    mem_width=1.33,
    cpu_size=1.17,
    cpu_top=2601.0 / 2201.6,
    static=1.5,
)

_EXTRAPOLATED = {"orin-nano-8gb": _ORIN_NANO_8GB, "xavier-nx": _XAVIER_NX, "agx-thor": _AGX_THOR}


@dataclass(frozen=True)
class Shares:
    """What part of the board's power each domain draws; the rest is static."""

    gpu: float
    mem: float
    cpu: float

    @property
    def static(self) -> float:
        return 1.0 - self.gpu - self.mem - self.cpu


@dataclass(frozen=True)
class Behaviour:
    """The calibrated physics of one workload on one board."""

    board: Board
    calibration: Calibration

    @classmethod
    def of(cls, board: str, workload: str) -> Behaviour:
        """
        Raises:
            InvalidInputError: an unknown board or workload; close names are given.
        """
        described = board_named(board)
        if workload not in WORKLOADS:
            raise InvalidInputError(
                f"No workload {workload!r} is emulated; {did_you_mean(workload, WORKLOADS)}"
            )
        sizing = _EXTRAPOLATED.get(described.name)
        source = described.name if sizing is None else "agx-orin"
        fitted = next(c for c in FITTED if (c.board, c.workload) == (source, workload))
        if sizing is None:
            return cls(described, fitted)
        return cls(described, extrapolated(fitted, described.name, sizing))

    def point(
        self, *, cpu_mhz: float, gpu_mhz: float, mem_mhz: float, batch: int, gpu_min_mhz: float | None = None
    ) -> OperatingPoint:
        """The operating point of levels in MHz. `gpu_min_mhz` is the floor; None locks the GPU."""
        return OperatingPoint(
            cpu=cpu_mhz / self.board.cpu_mhz[-1],
            gpu=gpu_mhz / self.board.gpu_mhz[-1],
            mem=mem_mhz / self.board.mem_mhz[-1],
            gpu_min=0.0 if gpu_min_mhz is None else gpu_min_mhz / self.board.gpu_mhz[-1],
            has_gpu_min=gpu_min_mhz is not None,
            batch=float(batch),
            has_batch=True,
            largest_batch=_LARGEST_BATCH,
        )

    def latency_and_power(self, point: OperatingPoint) -> tuple[float, float]:
        """Mean latency of one batch in seconds, and mean power in watts while it is served."""
        seconds, watts = latency_and_power(self.calibration.model, point, _OPS)
        anchor_seconds, anchor_watts = latency_and_power(self.calibration.model, ANCHOR, _OPS)
        return (
            float(seconds / anchor_seconds * self.calibration.latency_s),
            float(watts / anchor_watts * self.calibration.power_w),
        )

    def idle_power_w(self, point: OperatingPoint) -> float:
        """Power in watts at these clocks while nothing is served."""
        _, anchor_watts = latency_and_power(self.calibration.model, ANCHOR, _OPS)
        watts = idle_power(self.calibration.model, point, _OPS)
        return float(watts / anchor_watts * self.calibration.power_w)

    def shares(self, point: OperatingPoint, *, busy: bool) -> Shares:
        """How the power at a point divides into domains, while serving or at rest.

        Power is a sum over domains, so a domain's part is what is missing without it.
        """
        model = self.calibration.model

        def watts(of: DeviceModel) -> float:
            if busy:
                return float(latency_and_power(of, point, _OPS)[1])
            return float(idle_power(of, point, _OPS))

        def part(**without: DomainPower) -> float:
            return (whole - watts(replace(model, **without))) / whole

        whole = watts(model)
        return Shares(
            gpu=part(gpu=replace(model.gpu, amplitude=0.0)),
            mem=part(mem=replace(model.mem, amplitude=0.0)),
            cpu=part(cpu=replace(model.cpu, amplitude=0.0)),
        )

    def energy_per_query_j(self, point: OperatingPoint) -> float:
        """Joules per query of back-to-back batches."""
        seconds, watts = self.latency_and_power(point)
        return seconds * watts / float(point.batch)
