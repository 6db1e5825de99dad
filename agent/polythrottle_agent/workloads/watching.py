"""A workload that generates no load: it watches live traffic through the service's own metrics."""

from __future__ import annotations

from collections.abc import Mapping

from polythrottle.clock import Clock
from polythrottle.errors import InvalidInputError
from polythrottle.latency.statistic import quantile_of
from polythrottle.measurement import Provenance, Unavailable
from polythrottle.studies import MeasurementPlan
from polythrottle_agent.load.batching import BatchSize
from polythrottle_agent.ports import Lost, MayEnd, Served
from polythrottle_agent.workloads.live_metrics import Kind, LiveMetrics
from polythrottle_agent.workloads.opening import Asked, Opened, WorkloadOptions, open_workload
from polythrottle_agent.workloads.prometheus import Implausible, Page, Restarted, ScrapeError
from polythrottle_agent.workloads.stacks import E2E, TGI, VLLM, Stack
from polythrottle_agent.workloads.watched_window import WatchedWindow

POLL_S = 1.0
FIRST_POLL_S = 0.25
"""How often is looked at first: one that misses the SLO by far is to be seen within two seconds."""
FIRST_S = 4.0
PATIENCE_S = 5.0
"""A page that cannot be had for so long ends the window."""
SUMMARY_S = 60.0
"""What a summary of Triton, and of the client libraries it is made with, looks back on."""
WARM_UP_S = 30.0
"""Live traffic comes as it likes: nobody waits longer than this for warm-up queries."""
RATE_WINDOW_S = 10.0

_SCHEMES: Mapping[str, Stack] = {"vllm": VLLM, "tgi": TGI}


class WatchedWorkload:
    """Live traffic, as the service's metrics tell of it."""

    def __init__(
        self,
        metrics: LiveMetrics,
        clock: Clock,
        *,
        model_version: str = "live",
        batch: BatchSize | None = None,
        provenance: Provenance = Provenance.MEASURED,
    ) -> None:
        """
        Args:
            batch: where something sets the service's batch size; None for no such knob.
        """
        self._metrics = metrics
        self._clock = clock
        self._model_version = model_version
        self._batch = batch or BatchSize()
        self._provenance = provenance

    @property
    def name(self) -> str:
        metrics = self._metrics
        return metrics.model if metrics.metric == E2E else f"{metrics.model} {metrics.metric}"

    @property
    def model_version(self) -> str:
        return self._model_version

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        return self._batch.sizes

    @property
    def default_batch_size(self) -> int:
        return self._batch.default

    @property
    def metrics(self) -> LiveMetrics:
        """Where the numbers come from."""
        return self._metrics

    def check_statistic(self, statistic: str) -> None:
        self._quantile(statistic)

    def warm_up(self, n_queries: int) -> None:
        """Waits until live traffic brought that many queries, `WARM_UP_S` at most."""
        if n_queries < 1:
            return
        ends_s = self._clock.now() + WARM_UP_S
        first: Page | None = None
        while self._clock.now() < ends_s:
            try:
                page = self._metrics.scrape()
                first = first or page
                seen = self._metrics.between(first, page)
                if seen.n_good + seen.n_lost >= n_queries:
                    return
            except (ScrapeError, Restarted, Implausible):
                first = None  # the window itself says what is wrong, if it still is
            self._clock.sleep(FIRST_POLL_S)

    def serve(self, plan: MeasurementPlan, statistic: str, may_end: MayEnd | None = None) -> Served:
        quantile = self._quantile(statistic)
        is_summary = quantile is not None and self._metrics.kind is Kind.SUMMARY
        window = WatchedWindow(plan, statistic, quantile, SUMMARY_S if is_summary else 0.0)
        url = self._metrics.url
        try:
            last = self._patiently()
            while not window.is_over(may_end):
                self._clock.sleep(FIRST_POLL_S if window.duration_s < FIRST_S else POLL_S)
                page = self._patiently()
                window.add(self._metrics.between(last, page), self._metrics.quantiles(page))
                last = page
        except ScrapeError as error:
            return self._nothing(window, f"the metrics at {url} are gone: {error}")
        except Implausible as error:
            return self._nothing(window, f"the metrics at {url} cannot be believed: {error}")
        except Restarted as error:
            reason = f"the service was started again, or its model reloaded ({error})"
            return Served(
                window.n_good, window.duration_s, Unavailable(reason), void_reason=reason, lost=_lost(window)
            )
        reading, notes = window.reading(self._provenance)
        return Served(
            n_queries=window.n_good,
            duration_s=window.duration_s,
            latency=reading,
            aborted_reason=window.aborted_reason,
            lost=_lost(window),
            notes=notes,
        )

    def live_rate_per_s(self, window_s: float = RATE_WINDOW_S) -> float:
        """Queries a second that arrive now, lost ones with them; see `live_rate_per_s`."""
        return live_rate_per_s(self._metrics, self._clock, window_s)

    def _nothing(self, window: WatchedWindow, reason: str) -> Served:
        return Served(window.n_good, window.duration_s, Unavailable(reason), lost=_lost(window))

    def _patiently(self) -> Page:
        """
        Raises:
            ScrapeError: the page could not be had for `PATIENCE_S`.
        """
        ends_s = self._clock.now() + PATIENCE_S
        while True:
            try:
                return self._metrics.scrape()
            except ScrapeError:
                if self._clock.now() >= ends_s:
                    raise
            self._clock.sleep(FIRST_POLL_S)

    def _quantile(self, statistic: str) -> float | None:
        metrics = self._metrics
        quantile = quantile_of(statistic, f"{metrics.stack.name} at {metrics.url}")
        if quantile is None or metrics.kind is Kind.HISTOGRAM:
            return quantile
        remedy = metrics.stack.for_percentiles
        if metrics.kind is Kind.MEAN:
            raise InvalidInputError(
                f"{metrics.stack.name} at {metrics.url} publishes only the mean of its latency, "
                f"not {statistic}; "
                + (f"{remedy}, " if remedy else "")
                + "or ask for example for 'mean<50ms'."
            )
        known = self._known_quantiles()
        if not any(abs(q - quantile) < 1e-9 for q in known):
            shown = ", ".join(f"p{100 * q:g}" for q in known)
            raise InvalidInputError(
                f"{metrics.stack.name} at {metrics.url} publishes {shown} of its latency, not {statistic}; "
                "ask for one of them, or for the mean."
            )
        return quantile

    def _known_quantiles(self) -> list[float]:
        try:
            return sorted(self._metrics.quantiles(self._metrics.scrape()))
        except (ScrapeError, Implausible) as error:
            raise InvalidInputError(
                f"The metrics at {self._metrics.url} cannot be read: {error}; "
                "start the service, or correct the address."
            ) from error


def live_rate_per_s(metrics: LiveMetrics, clock: Clock, window_s: float = RATE_WINDOW_S) -> float:
    """Queries a second of the live traffic, lost ones with them, over the next `window_s` seconds.

    Where the service is started again meanwhile, the time from then on counts.

    Raises:
        InvalidInputError: the page cannot be had or believed, or nothing arrived.
    """
    ends_s = clock.now() + window_s
    n = elapsed_s = 0.0
    try:
        last = metrics.scrape()
        while (left_s := ends_s - clock.now()) > 0:
            clock.sleep(min(POLL_S, left_s))
            page = metrics.scrape()
            try:
                seen = metrics.between(last, page)
                n, elapsed_s = n + seen.n_good + seen.n_lost, elapsed_s + seen.duration_s
            except Restarted:
                n = elapsed_s = 0.0
            last = page
    except (ScrapeError, Implausible) as error:
        raise InvalidInputError(
            f"The rate of {metrics.url} cannot be learned: {error}; give it with --rate."
        ) from error
    if n <= 0 or elapsed_s <= 0:
        raise InvalidInputError(
            f"No query arrived at {metrics.url} within {window_s:g} s, so its rate cannot be learned; "
            "give it with --rate."
        )
    return n / elapsed_s


def learned_rate_per_s(text: str, clock: Clock, window_s: float = RATE_WINDOW_S) -> float:
    """Queries a second of somebody's live traffic, to load another service alike.

    Args:
        text: a workload that can be watched: `vllm:URL`, `tgi:URL`, `watch:URL` or `triton:URL/MODEL`.

    Raises:
        InvalidInputError: it cannot be watched, or nothing arrived.
    """
    is_triton = text.strip().lower().startswith("triton:")
    workload = open_workload(text, WorkloadOptions(watch=is_triton), clock).workload
    if not isinstance(workload, WatchedWorkload):
        raise InvalidInputError(
            f"A rate cannot be learned from {text!r}; name a service to watch: watch:URL."
        )
    return workload.live_rate_per_s(window_s)


def _lost(window: WatchedWindow) -> Lost:
    return Lost(errors=window.n_lost)


def open_watched(asked: Asked) -> Opened:
    """`vllm:URL`, `tgi:URL`, or `watch:URL` for any service whose metrics page is known.

    Raises:
        InvalidInputError: an option that is for generated load, or nothing there can be watched.
    """
    asked.refuse_other_options("watch", "latency_metric", "headers", "seed")
    options = asked.options
    metrics = LiveMetrics(
        asked.target,
        asked.clock,
        stack=_SCHEMES.get(asked.scheme),
        metric=options.latency_metric,
        headers=headers_of(options.headers),
    )
    workload = WatchedWorkload(metrics, asked.clock, provenance=asked.provenance)
    return Opened(workload, load="live traffic")


def headers_of(lines: tuple[str, ...]) -> Mapping[str, str]:
    """Headers from `Name: value`.

    Raises:
        InvalidInputError: one is none.
    """
    found = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise InvalidInputError(f"Header {line!r} cannot be read; write 'Name: value'.")
        found[name.strip()] = value.strip()
    return found
