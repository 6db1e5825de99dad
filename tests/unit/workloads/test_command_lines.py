"""Which lines of a program tell about a query."""

from __future__ import annotations

import math

import pytest

from polythrottle_agent.workloads.command import Line, parse


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"latency_ms": 12.5}', Line(0.0125, 4)),
        ('  {"latency_s": 2, "other": [1]}', Line(2.0, 4)),
        ('{"latency_ms": 3, "queries": 2}', Line(0.003, 2)),
        ('{"error": "out of memory"}', Line(math.inf, 4, "out of memory")),
        ('{"error": "late", "latency_ms": 3, "queries": 1}', Line(math.inf, 1, "late")),
        ('{"error": null, "latency_ms": 3}', Line(0.003, 4)),
    ],
)
def test_a_line_about_queries(text: str, line: Line) -> None:
    found = parse(text.encode(), 4)
    assert found is not None
    assert (found.latency_s, found.n_queries, found.error) == pytest.approx(
        (line.latency_s, line.n_queries, line.error)
    )


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"loading the model",
        b"[1, 2]",
        b"{not json",
        b'{"latency_ms": "12"}',
        b'{"latency_ms": -1}',
        b'{"latency_ms": 0}',
        b'{"latency_ms": NaN}',
        b'{"latency_ms": 1, "queries": 0}',
        b'{"latency_ms": 1, "queries": "many"}',
        b'{"throughput": 5}',
        b'{"\xff": 1}',
    ],
)
def test_other_lines_are_left_alone(raw: bytes) -> None:
    assert parse(raw, 1) is None
