"""A workload on an emulated board under an arrival rate, in virtual time: queries come, wait and are batched.

The batching rule is that of `polythrottle emulate serve`, the counting that of the load generator: latency
runs from the moment a query was due, at most `connections` are with the service at a time, and a query
without an answer when its time is up is lost. Between batches the board rests, and idle power is charged.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from polythrottle.latency.statistic import quantile_of
from polythrottle.latency.window import LatencyWindow
from polythrottle.measurement import Provenance
from polythrottle.studies import MeasurementPlan
from polythrottle_agent.emulation.batching import BatchQueue
from polythrottle_agent.emulation.board import EmulatedBoard
from polythrottle_agent.emulation.boards import BATCH_SIZES, DEFAULT_BATCH_SIZE
from polythrottle_agent.emulation.noise import latency_scatter
from polythrottle_agent.load.arrivals import Arrivals
from polythrottle_agent.load.options import Load
from polythrottle_agent.ports import Lost, MayEnd, Served


@dataclass(frozen=True)
class _Query:
    due_s: float
    n_queries: int = 1


@dataclass
class _Sinks:
    """Who is told of a query: a good one with its latency, a lost one with how long it was waited for."""

    good: Callable[[float], None]
    late: Callable[[float], None]
    dropped: Callable[[float], None]


class _Traffic:
    """One stream of queries through the service, from `clock.now()` on.

    It stands still while nobody calls `serve_batch`: whoever lets time pass otherwise starts a new one.
    """

    def __init__(self, board: EmulatedBoard, load: Load, arrivals: Arrivals, seed: int) -> None:
        self._board = board
        self._load = load
        self._starts_s = board.clock.now()
        self._times: Iterator[float] = arrivals.times(seed)
        self._next_s = self._starts_s + next(self._times)
        self._unsent: deque[float] = deque()
        self._queue: BatchQueue[_Query] = BatchQueue(load.connections)
        self.reached_s = self._starts_s
        """How far it has come, on the board's clock."""

    def serve_batch(self, sinks: _Sinks) -> None:
        """Wait for a query where there is none, and serve the next batch."""
        board, clock, time_out_s = self._board, self._board.clock, self._load.time_out_s
        self._arrive(clock.now(), sinks)
        while not self._queue:
            clock.sleep(self._next_s - clock.now())
            self._arrive(max(clock.now(), self._next_s), sinks)
        batch = self._queue.take(board.nodes.batch)
        latency_s = board.begin_batch(len(batch))
        clock.sleep(latency_s)
        board.energy_counter_j()
        self.reached_s = clock.now()
        for query in batch:
            waited_s = self.reached_s - query.due_s
            if waited_s > time_out_s:
                sinks.late(time_out_s)
            else:
                sinks.good(waited_s)

    def _arrive(self, now_s: float, sinks: _Sinks) -> None:
        """Everything that has come, or has run out of time, by now."""
        time_out_s = self._load.time_out_s
        while self._next_s <= now_s:
            self._unsent.append(self._next_s)
            self._next_s = self._starts_s + next(self._times)
        while (oldest := self._queue.oldest()) is not None and now_s - oldest.due_s > time_out_s:
            self._queue.drop_oldest()
            sinks.late(time_out_s)
        while self._unsent and now_s - self._unsent[0] > time_out_s:
            self._unsent.popleft()
            sinks.dropped(time_out_s)
        while self._unsent and self._queue.offer(_Query(self._unsent[0])):
            self._unsent.popleft()


class QueuedEmulatedWorkload:
    """Open loop on an emulated board, one batch in service at a time.

    Traffic runs from `warm_up` through the `serve` that follows it, so that the window begins with the queue
    as it stands under load; where time has passed in between, both start anew.
    """

    def __init__(self, board: EmulatedBoard, load: Load) -> None:
        """
        Args:
            load: with arrivals; the closed loop is `EmulatedWorkload`.
        """
        if load.arrivals is None:
            raise ValueError("a queue needs arrivals")
        self._board = board
        self._load = load
        self._arrivals = load.arrivals
        self._seeds = random.Random(load.seed)
        self._traffic: _Traffic | None = None

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
        left = n_queries

        def one(_: float) -> None:
            nonlocal left
            left -= 1

        sinks = _Sinks(one, one, one)
        while left > 0:
            self._running().serve_batch(sinks)

    def tell_queries(self, on_query: Callable[[float, int], None], should_stop: Callable[[], bool]) -> None:
        """Serve batch after batch; see `guard.sources.TellsQueries`."""

        def lost(_: float) -> None:
            on_query(math.inf, 1)

        sinks = _Sinks(lambda latency_s: on_query(latency_s, 1), lost, lost)
        while not should_stop():
            self._running().serve_batch(sinks)

    def serve(self, plan: MeasurementPlan, statistic: str, may_end: MayEnd | None = None) -> Served:
        self.check_statistic(statistic)
        board, window, lost = self._board, LatencyWindow(plan, statistic), Lost()
        board.begin_window()
        began_s = board.clock.now()
        traffic = self._running()

        def late(waited_s: float) -> None:
            nonlocal lost
            lost = replace(lost, timeouts=lost.timeouts + 1)
            window.lose(1, waited_s)

        def dropped(waited_s: float) -> None:
            nonlocal lost
            lost = replace(lost, dropped=lost.dropped + 1)
            window.lose(1, waited_s)

        sinks = _Sinks(window.add, late, dropped)
        while not window.is_over(board.clock.now() - began_s, may_end):
            traffic.serve_batch(sinks)
        latency = window.reading(Provenance.EMULATED, latency_scatter(board.energy_scatter))
        duration_s = board.clock.now() - began_s
        rate_per_s = self._arrivals.rate_per_s
        return Served(window.n_good, duration_s, latency, window.aborted_reason, lost, rate_per_s=rate_per_s)

    def _running(self) -> _Traffic:
        """The traffic that runs, or new traffic where time has passed since."""
        traffic = self._traffic
        if traffic is None or traffic.reached_s != self._board.clock.now():
            seed = self._seeds.getrandbits(32)
            traffic = self._traffic = _Traffic(self._board, self._load, self._arrivals, seed)
        return traffic
