"""Metrics pages: what they say, what they cannot say, and how they are fetched."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from polythrottle.clock import RealClock, VirtualClock
from polythrottle.errors import InvalidInputError
from polythrottle_agent.workloads.prometheus import (
    Implausible,
    Page,
    Restarted,
    ScrapeError,
    Scraper,
    increases,
    metrics_url,
    parse,
)
from tests.fakes.metrics_service import MetricsService, listening

PAGE = """\
# HELP orders_total Orders, "quoted" and with a \\n in its help.
# TYPE orders_total counter
orders_total{shop="a",how="by \\"phone\\""} 12
orders_total{shop="b",how="in\\nperson"} 3e2
# TYPE wait_seconds histogram
wait_seconds_bucket{le="0.1"} 4
wait_seconds_bucket{le="+Inf"} 6
wait_seconds_sum 1.25
wait_seconds_count 6
# TYPE baking_us summary
baking_us{quantile="0.5"} Nan
baking_us{quantile="0.99"} 1800
baking_us_sum 5400
baking_us_count 4
# TYPE plain counter
plain 7
untyped_thing 1.5 1700000000000
"""

OPEN_PAGE = """\
# TYPE orders counter
orders_total{shop="a"} 12.0 # {trace="x1"} 1.0
orders_created{shop="a"} 1700000000.5
# TYPE wait_seconds histogram
wait_seconds_bucket{le="0.1"} 4
wait_seconds_bucket{le="+Inf"} 6
wait_seconds_sum 1.25
wait_seconds_count 6
# EOF
"""


def page(text: str, at_s: float = 0.0) -> Page:
    return parse(text, at_s)


def test_a_page_is_read() -> None:
    found = page(PAGE, 3.0)
    assert found.at_s == 3.0
    assert sum(found.series("orders_total").values()) == 312
    assert found.series("orders", {"shop": "a"}) == found.series("orders_total", {"shop": "a"})
    assert list(found.series("orders", {"how": "in\nperson"}).values()) == [300]
    assert list(found.series("orders", {"how": 'by "phone"'}).values()) == [12]
    assert found.series("wait_seconds_bucket", {"le": "+Inf"}) == {frozenset({("le", "+Inf")}): 6}
    assert found.series("plain") == {frozenset(): 7}
    assert found.series("untyped_thing") == {frozenset(): 1.5}
    assert found.label_values("orders_total", "shop") == ["a", "b"]
    assert not found.has("nothing")
    (half,) = found.series("baking_us", {"quantile": "0.5"}).values()
    assert math.isnan(half)


def test_openmetrics_is_read_with_exemplars() -> None:
    found = parse(OPEN_PAGE, 0.0, openmetrics=True)
    assert found.series("orders") == {frozenset({("shop", "a")}): 12}
    assert found.series("wait_seconds_count") == {frozenset(): 6}


@pytest.mark.parametrize("openmetrics", [False, True])
def test_only_what_matters_is_looked_at(openmetrics: bool) -> None:
    text = OPEN_PAGE if openmetrics else PAGE
    found = parse(text, 0.0, only=("wait_seconds",), openmetrics=openmetrics)
    assert set(found.samples) == {"wait_seconds_bucket", "wait_seconds_sum", "wait_seconds_count"}
    assert found.samples["wait_seconds_bucket"] == page(PAGE).samples["wait_seconds_bucket"]


@pytest.mark.parametrize("text", ["<html><body>Hello</body></html>", 'a{b="c"} many', "{", "a b c d"])
def test_what_is_no_page_is_refused(text: str) -> None:
    with pytest.raises(ScrapeError, match="no metrics page"):
        page(text)


def test_counters_are_differences() -> None:
    before, after = page('n{a="1"} 5\nn{a="2"} 7\n'), page('n{a="1"} 8\nn{a="2"} 7\nn{a="3"} 2\n')
    assert sum(increases(before, after, "n").values()) == 5
    assert increases(before, after, "n", {"a": "3"}) == {frozenset({("a", "3")}): 2}
    assert increases(before, after, "unknown") == {}


@pytest.mark.parametrize(("later", "what"), [('n{a="1"} 4\n', "fell from 5 to 4"), ('n{a="2"} 9\n', "gone")])
def test_a_counter_that_fell_or_is_gone_was_started_again(later: str, what: str) -> None:
    with pytest.raises(Restarted, match=what):
        increases(page('n{a="1"} 5\n'), page(later), "n")


@pytest.mark.parametrize("value", ["-1", "NaN", "+Inf"])
def test_a_counter_cannot_be_that(value: str) -> None:
    with pytest.raises(Implausible, match=r"counter n\{a=1\}"):
        increases(page('n{a="1"} 5\n'), page(f'n{{a="1"}} {value}\n'), "n")


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://host:8000", "http://host:8000/metrics"),
        ("host:8000", "http://host:8000/metrics"),
        ("//host:8000/", "http://host:8000/metrics"),
        ("http://host:9100/custom", "http://host:9100/custom"),
        ("https://[::1]:9100/probe?target=x", "https://[::1]:9100/probe?target=x"),
    ],
)
def test_metrics_are_looked_for_where_they_usually_are(text: str, url: str) -> None:
    assert metrics_url(text) == url


@pytest.mark.parametrize(
    "text", ["", "ftp://host", "http://", "http://host:0x/", "a b", "http://me:secret@host"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError) as error:
        metrics_url(text)
    assert "secret" not in str(error.value)


def test_a_real_page_is_fetched_and_read() -> None:
    clock = VirtualClock()
    service = MetricsService(clock, 10.0, lambda: 0.004)
    with listening(service) as url:
        scraper = Scraper(url, clock)
        before = scraper.scrape()
        clock.sleep(2.0)
        after = scraper.scrape()
    assert after.at_s - before.at_s == 2.0
    grown = increases(before, after, "vllm:e2e_request_latency_seconds_bucket")
    assert {dict(labels)["le"]: n for labels, n in grown.items()}["0.005"] == pytest.approx(20, abs=1)


def test_a_page_that_answers_with_an_error_is_refused() -> None:
    clock = RealClock()
    service = MetricsService(clock, 1.0, lambda: 0.1)
    service.status = 503
    with listening(service) as url, pytest.raises(ScrapeError, match="it answers 503"):
        Scraper(url, clock).scrape()


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(ScrapeError, match="nobody listens"):
            Scraper(f"127.0.0.1:{taken.getsockname()[1]}", RealClock()).scrape()


@contextmanager
def raw_server(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def run() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                serve(connection)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join(10)


def silent(connection: socket.socket) -> None:
    connection.settimeout(5)
    connection.recv(1)  # until the client hangs up


def dripping(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    for _ in range(100):
        try:
            connection.sendall(b"n 1\n")
        except OSError:
            return
        time.sleep(0.05)


def hanging_up(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nn 1\n")


def not_http(connection: socket.socket) -> None:
    connection.sendall(b"220 mail.example ESMTP\r\n")


def endless(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    try:
        while True:
            connection.sendall(b"# " + b"x" * 1_000_000 + b"\n")
    except OSError:
        return


@pytest.mark.parametrize(
    ("serve", "why"),
    [
        (silent, "did not answer within 0.5 s"),
        (dripping, "did not answer within 0.5 s"),
        (hanging_up, "hung up"),
        (not_http, "cannot be reached"),
        (endless, "longer than|did not answer"),
    ],
)
def test_a_hostile_endpoint_is_given_up_in_time(serve: Callable[[socket.socket], None], why: str) -> None:
    with raw_server(serve) as url:
        started_s = time.monotonic()
        with pytest.raises(ScrapeError, match=why):
            Scraper(url, RealClock(), time_out_s=0.5).scrape()
        assert time.monotonic() - started_s < 3.0
