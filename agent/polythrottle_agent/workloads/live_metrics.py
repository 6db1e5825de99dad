"""What a service's own metrics say of its live traffic: latencies and counts between two scrapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from polythrottle.clock import Clock
from polythrottle.errors import InvalidInputError, did_you_mean
from polythrottle_agent.workloads.buckets import Buckets, from_cumulative
from polythrottle_agent.workloads.prometheus import (
    Implausible,
    Labels,
    Page,
    Restarted,
    ScrapeError,
    Scraper,
    increases,
)
from polythrottle_agent.workloads.stacks import (
    E2E,
    LATENCY_METRICS,
    STACKS,
    Named,
    Stack,
    Sum,
    custom,
    unit_of,
)


class Kind(str, Enum):
    """How much a source tells, the most first."""

    HISTOGRAM = "histogram"
    SUMMARY = "summary"
    MEAN = "mean"


@dataclass(frozen=True)
class Between:
    """What happened between two scrapes.

    `n_good` are queries answered well and `n_lost` those that were not. `n_latencies` is how many latencies
    `sum_s` is of, in seconds (requests, or tokens); `buckets` is None but for a histogram.
    """

    duration_s: float
    n_good: float
    n_lost: float
    n_latencies: float
    sum_s: float | None
    buckets: Buckets | None


class LiveMetrics:
    """One latency metric of one service. Only reads."""

    def __init__(
        self,
        url: str,
        clock: Clock,
        *,
        stack: Stack | None = None,
        metric: str | None = None,
        model: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            stack: whose page it is; None to tell by its names.
            metric: one of `LATENCY_METRICS`, or the name of a histogram or summary of the page, with its unit
                after a colon where the name does not end with it (`my_latency:ms`). None: whole requests.
            model: one of several that a server serves; None for all.

        Raises:
            InvalidInputError: nobody answers there, or nothing there can be watched.
        """
        all_of_it = Scraper(url, clock, headers=headers)
        self.url = all_of_it.url
        try:
            page = all_of_it.scrape()
        except ScrapeError as error:
            raise InvalidInputError(
                f"The metrics at {self.url} cannot be read: {error}; start the service, or correct the "
                "address."
            ) from error
        self.stack = _stack(page, self.url, stack, metric)
        self.metric = metric if metric in LATENCY_METRICS else E2E if metric is None else metric
        self._latency = _latency(page, self.url, self.stack, metric)
        self.kind = _kind(page, self._latency)
        self._where = self._labels(page, model)
        self.model = model or ", ".join(self.models(page)) or self.stack.name
        self._scraper = Scraper(self.url, clock, headers=headers, only=tuple(self.stack.names()))

    def models(self, page: Page) -> list[str]:
        """The models that the page names."""
        label = self.stack.model_label
        found = (
            {m for name in self.stack.names() for m in _label_values(page, name, label)} if label else set()
        )
        return sorted(found)

    def scrape(self) -> Page:
        """
        Raises:
            ScrapeError: nobody answers, or it is no metrics page.
        """
        return self._scraper.scrape()

    def between(self, before: Page, after: Page) -> Between:
        """
        Raises:
            Restarted: counters fell or are gone.
            Implausible: the page says what cannot be.
        """
        n_latencies, sum_s, buckets = self._latencies(before, after)
        n_good, n_lost = self._queries(before, after, n_latencies)
        return Between(after.at_s - before.at_s, n_good, n_lost, n_latencies, sum_s, buckets)

    def quantiles(self, page: Page) -> Mapping[float, float]:
        """Of a summary: latency in seconds by quantile, over its own sliding window. NaN: no latency in it.

        Raises:
            Implausible: a higher quantile has a lower latency, or several series cannot be told apart.
        """
        if not isinstance(self._latency, Named):
            return {}
        found: dict[float, float] = {}
        others: set[Labels] = set()
        for labels, value in page.series(self._latency.name, self._where).items():
            named = dict(labels)
            if "quantile" not in named:
                continue
            found[_number(named.pop("quantile"))] = value * self._latency.unit_s
            others.add(frozenset(named.items()))
        if len(others) > 1:
            raise Implausible(
                f"{self._latency.name} has {len(others)} summaries, which cannot be joined; name one model"
            )
        last_s = 0.0
        for _, latency_s in sorted(found.items()):
            if latency_s < last_s:
                raise Implausible(f"{self._latency.name} has a higher quantile with a lower latency")
            last_s = latency_s if math.isfinite(latency_s) else last_s
        return found

    def _labels(self, page: Page, model: str | None) -> dict[str, str]:
        if model is None:
            return {}
        label = self.stack.model_label
        if not label:
            raise InvalidInputError(f"{self.stack.name} at {self.url} does not tell models apart.")
        known = self.models(page)
        if model not in known:
            raise InvalidInputError(
                f"{self.stack.name} at {self.url} has no metrics of a model {model!r}; "
                f"{did_you_mean(model, known)}"
            )
        return {label: model}

    def _grown(self, before: Page, after: Page, name: str) -> float:
        return sum(increases(before, after, name, self._where).values())

    def _latencies(self, before: Page, after: Page) -> tuple[float, float | None, Buckets | None]:
        latency = self._latency
        if isinstance(latency, Sum):
            sum_s = self._grown(before, after, latency.name) * latency.unit_s
            return self._grown(before, after, latency.count), sum_s, None
        total, number = f"{latency.name}_sum", f"{latency.name}_count"
        known_s = self._grown(before, after, total) * latency.unit_s if after.has(total) else None
        count = self._grown(before, after, number) if after.has(number) else None
        if self.kind is Kind.SUMMARY:
            return count or 0.0, known_s, None
        grown: dict[float, float] = {}
        for labels, more in increases(before, after, f"{latency.name}_bucket", self._where).items():
            edge_s = _number(dict(labels).get("le", "")) * latency.unit_s
            grown[edge_s] = grown.get(edge_s, 0.0) + more
        if not grown:
            raise Restarted(f"{latency.name} is gone")
        buckets = from_cumulative(grown, known_s, count)
        return buckets.n, known_s, buckets

    def _queries(self, before: Page, after: Page, n_latencies: float) -> tuple[float, float]:
        """Answered well, and not. Where nobody counts them: as many as there are latencies."""
        stack, good, lost = self.stack, [0.0], 0.0
        for name in stack.good:
            answered = 0.0
            for labels, more in increases(before, after, name, self._where).items():
                if stack.good_label and dict(labels).get(stack.good_label) in stack.not_good:
                    lost += more
                else:
                    answered += more
            good.append(answered)
        for name in stack.failed:
            lost += self._grown(before, after, name)
        if not any(after.has(name) for name in stack.good):
            good.append(self._whole_requests(before, after, n_latencies))
        return max(good), lost

    def _whole_requests(self, before: Page, after: Page, n_latencies: float) -> float:
        """Tokens are not requests: energy is per request, whatever the latency is of."""
        for named in self.stack.latencies.get(E2E, ()):
            if after.has(f"{named.name}_count"):
                return self._grown(before, after, f"{named.name}_count")
        return n_latencies


def _stack(page: Page, url: str, stack: Stack | None, metric: str | None) -> Stack:
    if metric is not None and metric not in LATENCY_METRICS:
        return _custom(page, url, metric)
    if stack is None:
        stack = next((s for s in STACKS if any(name.startswith(s.mark) for name in page.samples)), None)
        if stack is None:
            raise InvalidInputError(
                f"The metrics at {url} are of no serving stack that is known "
                f"({', '.join(s.name for s in STACKS)}); name a histogram with --latency-metric."
            )
    if not any(page.has(name) or _is_family(page, name) for name in stack.names()):
        raise InvalidInputError(
            f"The page at {url} shows no latency metrics of {stack.name}; "
            "correct the address, or send the service a first query and try again."
        )
    return stack


def _custom(page: Page, url: str, metric: str) -> Stack:
    name, colon, unit = metric.rpartition(":")
    unit_s = unit_of(f"_{unit}") if colon else None
    if unit_s is None:  # a colon may also be part of the name
        name, unit_s = metric, unit_of(metric)
    if not _is_family(page, name):
        families = sorted({n.removesuffix("_bucket") for n in page.samples if n.endswith("_bucket")})
        raise InvalidInputError(
            f"The page at {url} has no histogram or summary {name!r}; "
            f"{did_you_mean(name, [*LATENCY_METRICS, *families])}"
        )
    if unit_s is None:
        raise InvalidInputError(f"The unit of {name!r} is not known; write {name}:s, {name}:ms or {name}:us.")
    return custom(name, unit_s)


def _latency(page: Page, url: str, stack: Stack, metric: str | None) -> Named | Sum:
    wanted = metric if metric is not None and metric in LATENCY_METRICS else E2E
    for named in stack.latencies.get(wanted, ()):
        if _is_family(page, named.name):
            return named
    total = stack.sums.get(wanted)
    if total is not None and page.has(total.name) and page.has(total.count):
        return total
    if wanted not in stack.metrics:
        raise InvalidInputError(
            f"{stack.name} publishes no {wanted} ({LATENCY_METRICS[wanted]}); "
            f"it publishes {', '.join(stack.metrics)}."
        )
    raise InvalidInputError(
        f"The page at {url} does not show {wanted} ({LATENCY_METRICS[wanted]}) of {stack.name} yet; "
        "send the service a first query and try again."
    )


def _kind(page: Page, latency: Named | Sum) -> Kind:
    if isinstance(latency, Sum):
        return Kind.MEAN
    if page.has(f"{latency.name}_bucket"):
        return Kind.HISTOGRAM
    has_quantiles = any("quantile" in dict(labels) for labels in page.series(latency.name))
    return Kind.SUMMARY if has_quantiles else Kind.MEAN


def _is_family(page: Page, name: str) -> bool:
    return page.has(f"{name}_bucket") or page.has(f"{name}_sum")


def _label_values(page: Page, name: str, label: str) -> list[str]:
    return [v for part in (name, f"{name}_bucket", f"{name}_count") for v in page.label_values(part, label)]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise Implausible(f"{text!r} is no edge of a bucket and no quantile") from None
