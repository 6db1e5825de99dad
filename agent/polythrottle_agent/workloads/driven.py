"""A workload over any sender: load is generated, latencies are judged, and what was lost is counted."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace

from polythrottle.clock import Clock, VirtualClock
from polythrottle.errors import InvalidInputError
from polythrottle.latency.histogram import LatencyHistogram
from polythrottle.latency.statistic import quantile_of
from polythrottle.latency.window import LatencyWindow
from polythrottle.measurement import LatencyReading, Provenance, Unavailable
from polythrottle.objective import format_latency
from polythrottle.studies import MeasurementPlan
from polythrottle_agent.load.batching import BatchSize
from polythrottle_agent.load.driver import Decision, Driver, Ended, Judge, Progress
from polythrottle_agent.load.loop import go_first, run_clocked, undisturbed
from polythrottle_agent.load.options import Load
from polythrottle_agent.load.report import LoadReport
from polythrottle_agent.load.sender import Answer, Outcome, Sender, ServiceError
from polythrottle_agent.ports import ControlError, Lost, MayEnd, Served

LOOK_EVERY_S = 0.05
"""How often a window is judged."""

STALLED_AFTER_S = 2.0
"""A service that answers nothing for so long has stalled, unless the SLO itself is slower than that."""

HOPELESS_AFTER = 20
"""Queries lost without a single good one after which a window has nothing to tell."""

WARM_UP_TRIES = 3
"""Requests that may fail before the first good one, in a warm-up."""


class DrivenWorkload:
    """Drives one service with generated load.

    Latency is measured from the moment a query was due. A sender is opened and closed with each window, in
    an event loop of its own.
    """

    def __init__(
        self,
        name: str,
        model_version: str,
        sender: Sender,
        load: Load,
        clock: Clock,
        *,
        batch: BatchSize | None = None,
        provenance: Provenance = Provenance.MEASURED,
    ) -> None:
        """
        Args:
            name: of the workload, part of a study's identity.
            clock: real, or virtual over a sender that only waits on the event loop.
            batch: where the workload has a knob `batch_size`, whoever sets it; None for no such knob.
            provenance: EMULATED where the service's times are.
        """
        self._name = name
        self._model_version = model_version
        self._sender = sender
        self._load = load
        self._clock = clock
        self._batch = batch or BatchSize()
        self._provenance = provenance
        self._n_windows = 0
        self.last_report: LoadReport | None = None
        """How the generator did in the last window."""

    @property
    def name(self) -> str:
        return self._name

    @property
    def model_version(self) -> str:
        return self._model_version

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        return self._batch.sizes

    @property
    def default_batch_size(self) -> int:
        return self._batch.default

    def check_statistic(self, statistic: str) -> None:
        quantile_of(statistic, f"Workload {self._name}")

    def check_service(self) -> None:
        """Ask once, before anything is measured or changed.

        Raises:
            InvalidInputError: the service is not there, or does not answer well.
        """
        try:
            answer = run_clocked(self._ask_once(), self._clock)
        except ServiceError as error:
            raise InvalidInputError(f"Workload {self._name} cannot be used: {error}.") from error
        if not answer.is_good:
            raise InvalidInputError(
                f"Workload {self._name} does not answer a query well: {answer.reason}. "
                "Check that the service is ready, and what is sent to it."
            )

    def warm_up(self, n_queries: int) -> None:
        """One request after the other.

        Raises:
            ControlError: the service is not there, or its first answers are all bad.
        """
        if n_queries < 1:
            return
        try:
            answer = run_clocked(self._warm_up(n_queries), self._clock)
        except ServiceError as error:
            raise ControlError(f"{self._name} cannot be asked: {error}") from error
        if answer is not None:
            raise ControlError(f"{self._name} does not answer a query well: {answer.reason}")

    def serve(self, plan: MeasurementPlan, statistic: str, may_end: MayEnd | None = None) -> Served:
        window = LatencyWindow(plan, statistic)
        look = _Look(window, plan, may_end)
        self._n_windows += 1
        seed = self._load.seed + self._n_windows
        try:
            with nullcontext() if isinstance(self._clock, VirtualClock) else undisturbed():
                ended = run_clocked(self._drive(look, seed), self._clock)
        except ServiceError as error:
            return Served(0, 0.0, Unavailable(f"{self._name} cannot be asked: {error}"))
        return self._served(window, look, ended)

    def tell_queries(self, on_query: Callable[[float, int], None], should_stop: Callable[[], bool]) -> None:
        """Load the service until told to stop; see `guard.sources.TellsQueries`."""
        self._n_windows += 1

        def look(progress: Progress) -> Decision:
            for query in progress.queries:
                on_query(query.latency_s if query.is_good else math.inf, query.n_queries)
            return Decision.GIVE_UP if should_stop() else Decision.GO_ON

        try:
            run_clocked(self._drive(look, self._load.seed + self._n_windows), self._clock)
        except ServiceError as error:
            raise ControlError(f"{self._name} cannot be asked: {error}") from error

    async def _drive(self, look: Callable[[Progress], Decision], seed: int) -> Ended:
        try:
            await self._open(self._load.connections)
            driver = Driver(self._sender, self._load, seed)
            if isinstance(self._clock, VirtualClock):
                return await driver.run(_at_once(look), LOOK_EVERY_S)
            with ThreadPoolExecutor(1, "judging a window", initializer=go_first) as thread:
                judge = _elsewhere(look, thread)
                await judge(
                    Progress((), 0.0, 0.0)
                )  # so that the thread is there before the first query is due
                return await driver.run(judge, LOOK_EVERY_S)
        finally:
            await self._sender.close()

    def _served(self, window: LatencyWindow, look: _Look, ended: Ended) -> Served:
        report = self.last_report = ended.report
        report.latencies = look.latencies
        if isinstance(self._clock, VirtualClock):
            report.processor_s = 0.0  # real seconds say nothing about virtual ones
        lost = report.lost
        if look.has_stalled:
            # What was never answered is as late as what timed out.
            for query in ended.unanswered:
                window.lose(query.n_queries, query.latency_s)
            waiting = sum(query.n_queries for query in ended.unanswered)
            lost = Lost(lost.errors, lost.timeouts + waiting, lost.dropped)
        latency = window.reading(self._provenance)
        if look.has_stalled and isinstance(latency, LatencyReading):
            # However few it leaves unanswered: whoever asks now waits at least so long.
            if latency.latency_s < look.stalled_s:
                latency = replace(latency, latency_s=look.stalled_s, upper_s=None)
            latency = replace(latency, bounded=False)
        failure = report.most_frequent_failure
        if window.n_good == 0:
            why = failure or look.stalled_reason or "no query was due in the window"
            latency = Unavailable(f"no query was answered well: {why}")
        value_s = None if isinstance(latency, Unavailable) else latency.latency_s
        aborted = window.aborted_reason or look.stalled_reason
        return Served(
            n_queries=window.n_good,
            duration_s=report.duration_s,
            latency=latency,
            aborted_reason=None if value_s is None else aborted,
            lost=lost,
            void_reason=None if value_s is None else report.void_reason(value_s),
            notes=(
                # How the generator did is the same from trial to trial, unless something is wrong.
                *((f"load: {report}",) if self._n_windows == 1 or report.is_noteworthy else ()),
                *(() if failure is None else (f"failures: {failure}",)),
            ),
            rate_per_s=None if self._load.arrivals is None else self._load.arrivals.rate_per_s,
        )

    async def _open(self, connections: int) -> None:
        time_out_s = self._load.time_out_s
        try:
            await asyncio.wait_for(self._sender.open(connections), time_out_s)
        except asyncio.TimeoutError:
            raise ServiceError(f"it cannot be connected to within {format_latency(time_out_s)}") from None

    async def _ask_once(self) -> Answer:
        try:
            await self._open(1)
            return await self._send()
        finally:
            await self._sender.close()

    async def _warm_up(self, n_queries: int) -> Answer | None:
        """The last answer where none was good."""
        sent, failures, has_answered = 0, 0, False
        try:
            await self._open(1)
            while sent < n_queries:
                answer = await self._send()
                sent += self._sender.queries_per_request
                has_answered = has_answered or answer.is_good
                failures += not answer.is_good
                if failures >= WARM_UP_TRIES and not has_answered:
                    return answer
        finally:
            await self._sender.close()
        return None

    async def _send(self) -> Answer:
        time_out_s = self._load.time_out_s
        try:
            return await asyncio.wait_for(
                self._sender.send(self._sender.queries_per_request), timeout=time_out_s
            )
        except asyncio.TimeoutError:
            return Answer(Outcome.TIMEOUT, f"no answer within {format_latency(time_out_s)}")


def _at_once(look: Callable[[Progress], Decision]) -> Judge:
    """In virtual time nothing passes while a window is judged."""

    async def judge(progress: Progress) -> Decision:
        return look(progress)

    return judge


def _elsewhere(look: Callable[[Progress], Decision], thread: ThreadPoolExecutor) -> Judge:
    """In real time the load goes on while a window is judged and a meter is read."""
    loop = asyncio.get_running_loop()

    async def judge(progress: Progress) -> Decision:
        return await loop.run_in_executor(thread, look, progress)

    return judge


class _Look:
    """Judges a window whenever queries are over."""

    def __init__(
        self, window: LatencyWindow, plan: MeasurementPlan, may_end: Callable[[], bool] | None
    ) -> None:
        self._window = window
        self._may_end = may_end
        self._stalled_after_s: float | None = None
        if plan.abort_latency_s is not None:
            self._stalled_after_s = max(STALLED_AFTER_S, 5.0 * plan.abort_latency_s)
        self._decision = Decision.GO_ON
        self.latencies = LatencyHistogram()
        self.stalled_s = 0.0

    @property
    def has_stalled(self) -> bool:
        return self.stalled_s > 0.0

    @property
    def stalled_reason(self) -> str | None:
        return f"nothing was answered for {format_latency(self.stalled_s)}" if self.has_stalled else None

    def __call__(self, progress: Progress) -> Decision:
        window = self._window
        for query in progress.queries:
            if query.is_good:
                self.latencies.record(query.latency_s, query.n_queries)
                window.add(query.latency_s, query.n_queries)
            else:
                window.lose(query.n_queries, query.latency_s)
        if self._decision is Decision.GO_ON:  # afterwards only what was still on its way comes in
            self._decision = self._decided(progress)
        return self._decision

    def _decided(self, progress: Progress) -> Decision:
        window = self._window
        if window.is_over(progress.elapsed_s, self._may_end):
            return Decision.ENOUGH if window.aborted_reason is None else Decision.GIVE_UP
        if self._stalled_after_s is not None and progress.silent_s >= self._stalled_after_s:
            self.stalled_s = progress.silent_s
            return Decision.GIVE_UP
        if window.n_good == 0 and window.n_lost >= HOPELESS_AFTER:
            return Decision.GIVE_UP
        return Decision.GO_ON
