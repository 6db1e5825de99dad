"""Where a guard's latencies come from: queries that a workload tells of, or a service's own metrics."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from polythrottle.clock import Clock
from polythrottle.errors import InvalidInputError
from polythrottle.latency.statistic import quantile_of
from polythrottle_agent.guard.rules import GuardRules
from polythrottle_agent.guard.samples import Idle, LatencyView, Traffic
from polythrottle_agent.guard.sliding import SlidingWindow, unseen
from polythrottle_agent.ports import ControlError, Workload
from polythrottle_agent.workloads.live_metrics import Kind, LiveMetrics
from polythrottle_agent.workloads.prometheus import Implausible, Page, Restarted, ScrapeError
from polythrottle_agent.workloads.watching import WatchedWorkload

OnQuery = Callable[[float, int], None]
"""Told of queries that are over: their latency in seconds (infinity: lost), and how many share it."""

POLL_S = 1.0
AGAIN_S = 1.0
"""A service that cannot be asked at all is tried again after so long."""
MOST_IN_BUCKET = 20
"""Latencies that one bucket's queries are spread over."""


@runtime_checkable
class TellsQueries(Protocol):
    """A workload that tells of each query when it is over: a guard cannot wait for a window to end."""

    def tell_queries(self, on_query: OnQuery, should_stop: Callable[[], bool]) -> None:
        """Serve, or drive whoever does, until `should_stop` turns true.

        Raises:
            ControlError: the service cannot be asked at all.
        """


class LatencySource(Protocol):
    """Looks at the traffic. `look` never raises and never waits for a service."""

    @property
    def passes_time(self) -> bool:
        """Whether `look` itself takes the time between two looks, as in virtual time."""

    def start(self) -> None: ...

    def look(self) -> Traffic: ...

    def forget(self) -> None:
        """Another configuration is in force: nothing seen before counts."""

    def stop(self) -> None: ...


class QueryLog:
    """A sliding window that one thread fills and another looks at."""

    def __init__(self, rules: GuardRules, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._window = SlidingWindow(rules.slo, rules.window_s, rules.recent_s, clock.now())
        self._problem: str | None = None

    def add(self, latency_s: float, n_queries: int = 1) -> None:
        """Queries that are over now."""
        with self._lock:
            self._problem = None
            self._window.add(self._clock.now(), latency_s, n_queries)

    def fail(self, problem: str) -> None:
        """Nothing can be seen until the next query is."""
        with self._lock:
            self._problem = problem

    def see_again(self) -> None:
        with self._lock:
            self._problem = None

    def look(self) -> Traffic:
        with self._lock:
            if self._problem is not None:
                return unseen(self._problem)
            return self._window.look(self._clock.now())

    def forget(self) -> None:
        with self._lock:
            self._window.clear(self._clock.now())


class QuerySource:
    """The queries of a workload that tells of them: a thread lets it serve."""

    passes_time = False

    def __init__(self, workload: TellsQueries, rules: GuardRules, clock: Clock) -> None:
        self._workload = workload
        self._clock = clock
        self._log = QueryLog(rules, clock)
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._serve, name="guarded queries", daemon=True)
        self._thread.start()

    def look(self) -> Traffic:
        return self._log.look()

    def forget(self) -> None:
        self._log.forget()

    def stop(self) -> None:
        """Does not wait for a service that hangs: the thread ends by itself, or with the process."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(AGAIN_S)

    def _serve(self) -> None:
        while not self._stopped.is_set():
            try:
                self._workload.tell_queries(self._log.add, self._stopped.is_set)
            except ControlError as error:
                self._log.fail(str(error))
                self._stopped.wait(AGAIN_S)


class InlineSource:
    """The same without a thread, for a workload whose time is virtual: it serves within `look`."""

    passes_time = True

    def __init__(self, workload: TellsQueries, rules: GuardRules, clock: Clock, period_s: float) -> None:
        self._workload = workload
        self._clock = clock
        self._period_s = period_s
        self._log = QueryLog(rules, clock)

    def start(self) -> None: ...

    def look(self) -> Traffic:
        ends_s = self._clock.now() + self._period_s
        try:
            self._workload.tell_queries(self._log.add, lambda: self._clock.now() >= ends_s)
        except ControlError as error:
            self._log.fail(str(error))
            self._clock.sleep(ends_s - self._clock.now())
        return self._log.look()

    def forget(self) -> None:
        self._log.forget()

    def stop(self) -> None: ...


class MetricsSource:
    """Live traffic by a service's own metrics, scraped once a second by a thread.

    A histogram tells how many latencies lie between two edges: they are spread evenly there. A summary looks
    back over a time of its own and gives no bounds: only what lasts is taken for a breach.
    """

    passes_time = False

    def __init__(
        self, metrics: LiveMetrics, rules: GuardRules, clock: Clock, *, poll_s: float = POLL_S
    ) -> None:
        self._metrics = metrics
        self._clock = clock
        self._poll_s = poll_s
        self._quantile = quantile_of(rules.slo.statistic)
        self._log = QueryLog(rules, clock)
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._last: Page | None = None
        self._summary: LatencyView | Idle | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._poll, name="guarded metrics", daemon=True)
        self._thread.start()

    def look(self) -> Traffic:
        seen = self._log.look()
        summary = self._summary
        if summary is None or not isinstance(seen.latency, (LatencyView, Idle)):
            return seen
        return Traffic(summary, None, seen.rate)

    def forget(self) -> None:
        self._log.forget()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(self._poll_s)

    def _poll(self) -> None:
        while not self._stopped.is_set():
            try:
                self.scrape()
            except Restarted:
                self._last = None  # its counters began anew: the next two pages tell again
            except (ScrapeError, Implausible) as error:
                self._last = None
                self._log.fail(str(error))
            self._stopped.wait(self._poll_s)

    def scrape(self) -> None:
        """One page more.

        Raises:
            Restarted: the counters began anew.
            ScrapeError, Implausible: the page cannot be had, or says what cannot be.
        """
        page = self._metrics.scrape()
        before, self._last = self._last, page
        if before is None:
            return
        seen = self._metrics.between(before, page)
        self._log.see_again()
        if seen.n_lost >= 1:
            self._log.add(math.inf, round(seen.n_lost))
        if seen.buckets is not None:
            edges = seen.buckets.edges_s
            for index, count in enumerate(seen.buckets.counts):
                # Above the last edge nothing is known but that it is above.
                high_s = edges[index] if math.isfinite(edges[index]) else 2.0 * edges[index - 1]
                self._spread(seen.buckets.lower_edge_s(index), high_s, round(count))
        elif seen.n_latencies >= 1:
            mean_s = (seen.sum_s or 0.0) / seen.n_latencies
            self._log.add(mean_s, round(seen.n_latencies))
        if self._metrics.kind is Kind.SUMMARY and self._quantile is not None:
            self._summary = self._summarised(page, round(seen.n_good + seen.n_lost))

    def _spread(self, low_s: float, high_s: float, count: int) -> None:
        parts = min(count, MOST_IN_BUCKET)
        for part in range(parts):
            n = count * (part + 1) // parts - count * part // parts
            self._log.add(low_s + (high_s - low_s) * (part + 0.5) / parts, n)

    def _summarised(self, page: Page, n: int) -> LatencyView | Idle:
        quantiles = self._metrics.quantiles(page)
        value_s = quantiles.get(self._quantile or 0.0, math.nan)
        if math.isnan(value_s):
            return Idle()
        return LatencyView(value_s, 0.0, math.inf, max(n, 1))


def source_of(workload: Workload, rules: GuardRules, clock: Clock, period_s: float) -> LatencySource:
    """What watches a workload.

    Raises:
        InvalidInputError: it cannot give the SLO's statistic, or tells of no single query.
    """
    from polythrottle.clock import VirtualClock

    workload.check_statistic(rules.slo.statistic)
    if isinstance(workload, WatchedWorkload):
        return MetricsSource(workload.metrics, rules, clock)
    if not isinstance(workload, TellsQueries):
        raise InvalidInputError(
            f"Workload {workload.name} does not tell of its single queries, so it cannot be guarded; "
            "watch the service's metrics instead, as in --watch watch:URL."
        )
    if isinstance(clock, VirtualClock):
        return InlineSource(workload, rules, clock, period_s)
    return QuerySource(workload, rules, clock)
