"""A service's metrics page: fetched, parsed, and two of them compared.

Counters only mean something as differences. A counter that fell, or is gone, belongs to a service that was
started again in between: what it says of the time before is unknown, so such a pair of pages is refused.
"""

from __future__ import annotations

import http.client
import importlib.util
import math
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from polythrottle.clock import Clock
from polythrottle.errors import InvalidInputError
from polythrottle_agent.load.http_connection import Endpoint

Labels = frozenset[tuple[str, str]]

TIME_OUT_S = 5.0
MAX_BYTES = 32 * 2**20
"""No service has a longer page; one that never ends is cut off here."""
CHUNK_BYTES = 65536

_TOTAL = "_total"
_OPENMETRICS = "application/openmetrics-text"


class ScrapeError(Exception):
    """A page could not be had, or is none. The text says why, without the address."""


class Restarted(Exception):
    """A counter fell or is gone: the service, or the model in it, was started again. Names the counter."""


class Implausible(Exception):
    """The page says what cannot be. The text says what."""


@dataclass(frozen=True)
class Page:
    """What one scrape found, at `at_s` on the clock of whoever scraped.

    `samples` holds values by name and labels. A counter is known by its name without `_total`.
    """

    samples: Mapping[str, Mapping[Labels, float]]
    at_s: float

    def series(self, name: str, where: Mapping[str, str] | None = None) -> dict[Labels, float]:
        """All series of that name whose labels hold `where`."""
        wanted = frozenset((where or {}).items())
        return {
            labels: value for labels, value in self.samples.get(_short(name), {}).items() if wanted <= labels
        }

    def has(self, name: str) -> bool:
        return _short(name) in self.samples

    def label_values(self, name: str, label: str) -> list[str]:
        """The values of one label over all series of that name, sorted."""
        return sorted({v for labels in self.samples.get(_short(name), {}) for k, v in labels if k == label})


def parse(text: str, at_s: float, *, only: Collection[str] = (), openmetrics: bool = False) -> Page:
    """Read the Prometheus text format, or OpenMetrics.

    Args:
        only: beginnings of the names that matter; the rest of a long page is not even looked at. Empty: all.

    Raises:
        ScrapeError: it is neither.
    """
    from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
    from prometheus_client.parser import text_string_to_metric_families as read_text

    if only:
        text = "\n".join(_that_matter(text, only))
        if openmetrics:
            text += "\n# EOF\n"
    samples: dict[str, dict[Labels, float]] = {}
    try:
        for family in (read_openmetrics if openmetrics else read_text)(text):
            for sample in family.samples:
                by_labels = samples.setdefault(_short(sample.name), {})
                by_labels[frozenset(sample.labels.items())] = float(sample.value)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ScrapeError(f"what it answers is no metrics page ({error or type(error).__name__})") from error
    return Page(samples, at_s)


def increases(
    before: Page, after: Page, name: str, where: Mapping[str, str] | None = None
) -> dict[Labels, float]:
    """How much each series of a counter grew from one page to a later one. A new series began at zero.

    Raises:
        Restarted: one fell or is gone.
        Implausible: one is no number, or below zero.
    """
    old, new = before.series(name, where), after.series(name, where)
    for labels, value in (*old.items(), *new.items()):
        if not math.isfinite(value) or value < 0:
            raise Implausible(f"counter {name}{_written(labels)} is {value:g}")
    for labels, value in old.items():
        if labels not in new:
            raise Restarted(f"{name}{_written(labels)} is gone")
        if new[labels] < value:
            raise Restarted(f"{name}{_written(labels)} fell from {value:g} to {new[labels]:g}")
    return {labels: value - old.get(labels, 0.0) for labels, value in new.items()}


class Scraper:
    """Fetches one metrics page, again and again."""

    def __init__(
        self,
        url: str,
        clock: Clock,
        *,
        headers: Mapping[str, str] | None = None,
        only: Collection[str] = (),
        time_out_s: float = TIME_OUT_S,
    ) -> None:
        """
        Args:
            url: of the page; `/metrics` is added to an address without a path.
            only: as `parse` takes it.
            time_out_s: a page that takes longer, however slowly it drips, is given up.

        Raises:
            InvalidInputError: no HTTP address, or the parser is not installed.
        """
        self.url = metrics_url(url)
        if importlib.util.find_spec("prometheus_client") is None:
            raise InvalidInputError(
                "Reading metrics needs prometheus_client, which is not installed; "
                "run pip install 'polythrottle[watch]'."
            )
        self._clock = clock
        self._only = tuple(only)
        self._time_out_s = time_out_s
        self._request = urllib.request.Request(
            self.url, headers={"Accept": "text/plain;version=0.0.4", **(headers or {})}
        )
        # No proxy: a service's metrics are on this machine or in its own network.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def scrape(self) -> Page:
        """
        Raises:
            ScrapeError: nobody answers, in time or at all, or it is no metrics page.
        """
        started_s = self._clock.now()
        try:
            with self._opener.open(self._request, timeout=self._time_out_s) as response:
                kind = response.headers.get("Content-Type", "")
                content = b"".join(self._chunks(response, started_s))
        except urllib.error.HTTPError as error:
            raise ScrapeError(f"it answers {error.code} {error.reason}".rstrip()) from error
        except (OSError, http.client.HTTPException) as error:
            raise ScrapeError(_why(error, self._time_out_s)) from error
        at_s = self._clock.now()
        text = content.decode("utf-8", "replace")
        page = parse(text, at_s, only=self._only, openmetrics=kind.startswith(_OPENMETRICS))
        if self._only and not page.samples:
            raise ScrapeError("its page shows none of the metrics that are watched")
        return page

    def _chunks(self, response: http.client.HTTPResponse, started_s: float) -> Iterator[bytes]:
        size = 0
        while chunk := response.read1(CHUNK_BYTES):
            size += len(chunk)
            if size > MAX_BYTES:
                raise ScrapeError(f"its page is longer than {MAX_BYTES >> 20} MiB")
            if self._clock.now() - started_s > self._time_out_s:
                raise TimeoutError
            yield chunk
        if response.length:  # what its length promised and did not come
            raise http.client.IncompleteRead(b"", response.length)


def metrics_url(text: str) -> str:
    """The address of a metrics page, from what a user wrote.

    Raises:
        InvalidInputError: it is no HTTP address.
    """
    url = text if "://" in text else f"http://{text.removeprefix('//')}"
    endpoint = Endpoint.parse(url)
    return url.rstrip("/") + "/metrics" if endpoint.target == "/" else url


def _that_matter(text: str, only: Collection[str]) -> Iterator[str]:
    names = tuple(only)
    kinds = tuple(f"# TYPE {name}" for name in names)
    return (line for line in text.splitlines() if line.startswith(names) or line.startswith(kinds))


def _short(name: str) -> str:
    return name.removesuffix(_TOTAL)


def _written(labels: Labels) -> str:
    return "{" + ",".join(f"{k}={v}" for k, v in sorted(labels)) + "}" if labels else ""


def _why(error: Exception, time_out_s: float) -> str:
    reason = getattr(error, "reason", error)  # urllib wraps what the socket said
    if isinstance(reason, TimeoutError):
        return f"it did not answer within {time_out_s:g} s"
    if isinstance(reason, ConnectionRefusedError):
        return "nobody listens there"
    if isinstance(reason, http.client.IncompleteRead):
        return "it hung up in the middle of its page"
    text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return f"it cannot be reached ({text})"
