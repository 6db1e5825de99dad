"""A workload on an emulated board: batches served back to back, every batch's latency drawn."""

from __future__ import annotations

import math
from collections.abc import Callable

from polythrottle.latency.statistic import quantile_of
from polythrottle.latency.window import LatencyWindow
from polythrottle.measurement import Provenance
from polythrottle.studies import MeasurementPlan
from polythrottle_agent.emulation.board import EmulatedBoard
from polythrottle_agent.emulation.boards import BATCH_SIZES, DEFAULT_BATCH_SIZE
from polythrottle_agent.emulation.noise import draw_conditions, draw_latency, latency_scatter
from polythrottle_agent.ports import MayEnd, Served


class EmulatedWorkload:
    """Closed loop, one batch in flight; each query's latency is its batch's."""

    def __init__(self, board: EmulatedBoard) -> None:
        self._board = board

    @property
    def name(self) -> str:
        return self._board.behaviour.calibration.workload

    @property
    def model_version(self) -> str:
        return f"{self.name}-fp16-emulated"

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
            batch = self._board.nodes.batch
            seconds, watts = self._board.behaviour.latency_and_power(self._board.point_under_load())
            self._board.run(math.ceil(n_queries / batch) * seconds, watts)

    def serve(self, plan: MeasurementPlan, statistic: str, may_end: MayEnd | None = None) -> Served:
        board = self._board
        if board.observers or may_end is not None:
            return self._serve_in_surroundings(plan, statistic, may_end)
        noise, rng = board.behaviour.calibration.noise, board.random
        mean_s, watts = board.behaviour.latency_and_power(board.point_under_load())
        conditions = draw_conditions(board.energy_scatter, rng)
        served = closed_loop(
            plan,
            statistic,
            board.nodes.batch,
            lambda: draw_latency(mean_s * conditions.latency, noise, rng),
            board.energy_scatter,
            may_end,
        )
        board.run(served.duration_s, watts * conditions.power)
        return served

    def tell_queries(self, on_query: Callable[[float, int], None], should_stop: Callable[[], bool]) -> None:
        """Serve batch after batch; see `guard.sources.TellsQueries`."""
        board = self._board
        board.begin_window()
        while not should_stop():
            latency_s = board.begin_batch()
            board.clock.sleep(latency_s)
            board.energy_counter_j()
            on_query(latency_s, board.nodes.batch)

    def _serve_in_surroundings(self, plan: MeasurementPlan, statistic: str, may_end: MayEnd | None) -> Served:
        """Batch by batch: what surrounds the board may throttle its clocks, and meters are read meanwhile."""
        board = self._board
        board.begin_window()

        def serve_batch() -> float:
            latency_s = board.begin_batch()
            board.clock.sleep(latency_s)
            board.energy_counter_j()
            return latency_s

        return closed_loop(plan, statistic, board.nodes.batch, serve_batch, board.energy_scatter, may_end)


def closed_loop(
    plan: MeasurementPlan,
    statistic: str,
    batch: int,
    serve_batch: Callable[[], float],
    scatter: float,
    may_end: MayEnd | None = None,
) -> Served:
    """One window of batches back to back, cut short by the plan's abort rule.

    Args:
        serve_batch: serves one batch and gives its latency in seconds.
        scatter: relative standard deviation of a window's energy, from which that of its latency follows.
        may_end: asked whenever the window has what the plan wants.
    """
    window, elapsed_s = LatencyWindow(plan, statistic), 0.0
    while not window.is_over(elapsed_s, may_end):
        latency_s = serve_batch()
        elapsed_s += latency_s
        window.add(latency_s, batch)
    reading = window.reading(Provenance.EMULATED, latency_scatter(scatter))
    return Served(window.n_good, elapsed_s, reading, window.aborted_reason)
