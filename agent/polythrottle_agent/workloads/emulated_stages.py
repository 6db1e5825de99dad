"""A workload with a CPU stage on an emulated board: images are pre-processed on the CPU, then the model runs.

Both stages overlap, as in the paper: while the GPU serves a batch, the CPU prepares the next one. A query's
latency goes through both, and whichever stage takes longer sets the pace.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from polythrottle.latency.statistic import quantile_of
from polythrottle.latency.window import LatencyWindow
from polythrottle.measurement import Provenance
from polythrottle.studies import MeasurementPlan
from polythrottle_agent.emulation.board import EmulatedBoard
from polythrottle_agent.emulation.boards import BATCH_SIZES, DEFAULT_BATCH_SIZE
from polythrottle_agent.emulation.noise import draw_conditions, draw_latency, latency_scatter
from polythrottle_agent.emulation.preprocessing import STAGE, SUFFIX, CpuStage, pipelined
from polythrottle_agent.ports import MayEnd, Served, Workload


@dataclass(frozen=True)
class _Batch:
    """Mean seconds of each stage of one batch, and mean watts until the next one."""

    stages_s: tuple[float, ...]
    power_w: float


class _ClosedLoop:
    """One batch after the other, as fast as the slowest stage takes them."""

    def __init__(self, board: EmulatedBoard, stage: CpuStage, name: str, batch: Callable[[], _Batch]) -> None:
        self._board = board
        self._stage = stage
        self._name = name
        self._batch = batch

    @property
    def name(self) -> str:
        return self._name

    @property
    def model_version(self) -> str:
        size = "" if self._stage.size == 1.0 else f"-images-{self._stage.size:g}x"
        return f"{self._board.behaviour.calibration.workload}-fp16{size}-emulated"

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        return BATCH_SIZES

    @property
    def default_batch_size(self) -> int:
        return DEFAULT_BATCH_SIZE

    def check_statistic(self, statistic: str) -> None:
        quantile_of(statistic, "An emulated workload")

    def warm_up(self, n_queries: int) -> None:
        if n_queries > 0:
            batch = self._batch()
            n_batches = math.ceil(n_queries / self._board.nodes.batch)
            self._board.run(n_batches * max(batch.stages_s), batch.power_w)

    def serve(self, plan: MeasurementPlan, statistic: str, may_end: MayEnd | None = None) -> Served:
        board, window, batch = self._board, LatencyWindow(plan, statistic), self._batch()
        conditions = draw_conditions(board.energy_scatter, board.random)
        noise, elapsed_s = board.behaviour.calibration.noise, 0.0
        while not window.is_over(elapsed_s, may_end):
            drawn_s = [draw_latency(s * conditions.latency, noise, board.random) for s in batch.stages_s]
            window.add(sum(drawn_s), board.nodes.batch)
            board.run(max(drawn_s), batch.power_w * conditions.power)
            elapsed_s += max(drawn_s)
        latency = window.reading(Provenance.EMULATED, latency_scatter(board.energy_scatter))
        return Served(window.n_good, elapsed_s, latency, window.aborted_reason)


class StagedEmulatedWorkload(_ClosedLoop):
    """Both stages, overlapping."""

    def __init__(self, board: EmulatedBoard, stage: CpuStage) -> None:
        name = f"{board.behaviour.calibration.workload}{SUFFIX}"
        super().__init__(board, stage, name, lambda: _both(board, stage))
        alone = _ClosedLoop(board, stage, f"{name}, {STAGE} alone", lambda: _alone(board, stage))
        self._stages: Mapping[str, Workload] = {STAGE: alone}

    def resized(self, stage: CpuStage) -> StagedEmulatedWorkload:
        """The same on the same board with other images."""
        return StagedEmulatedWorkload(self._board, stage)

    @property
    def stages(self) -> Mapping[str, Workload]:
        """Pre-processing alone: the images of one batch after the other, with the GPU at rest."""
        return self._stages


def _both(board: EmulatedBoard, stage: CpuStage) -> _Batch:
    both = pipelined(stage, board.cpu_under_load_mhz, board.point_under_load())
    return _Batch((both.stage_s, both.model_s), both.energy_j / both.period_s)


def _alone(board: EmulatedBoard, stage: CpuStage) -> _Batch:
    cpu_mhz, nodes = board.cpu_under_load_mhz, board.nodes
    at_rest = board.behaviour.point(
        cpu_mhz=cpu_mhz,
        gpu_mhz=min(nodes.gpu_min_mhz, nodes.gpu_max_mhz),
        mem_mhz=board.mem_under_load_mhz,
        batch=nodes.batch,
    )
    power_w = board.behaviour.idle_power_w(at_rest) + stage.added_power_w(cpu_mhz)
    return _Batch((nodes.batch * stage.image_s(cpu_mhz),), power_w)
