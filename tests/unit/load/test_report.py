"""When a window of load proves nothing, and what is said about it."""

from __future__ import annotations

import pytest

from polythrottle_agent.load.report import LoadReport
from polythrottle_agent.load.sender import Answer


def report(late_s: list[float], *, processor_s: float = 0.1) -> LoadReport:
    found = LoadReport(duration_s=10.0, processor_s=processor_s, n_requests=len(late_s))
    for value_s in late_s:
        found.lateness.record(value_s)
    return found


def test_lateness_has_quantiles() -> None:
    found = report([i * 1e-6 for i in range(1, 1001)])
    assert found.late_s(0.99) == pytest.approx(990e-6, rel=0.01)
    assert found.late_s(1.0) == pytest.approx(1000e-6, rel=0.01)
    assert report([]).late_s(0.99) == 0.0


def test_a_generator_in_time_is_not_void() -> None:
    assert report([0.0002] * 1000).void_reason(0.005) is None


def test_a_late_generator_is_void() -> None:
    reason = report([0.0002] * 950 + [0.004] * 50).void_reason(0.005)
    assert reason is not None
    assert "could not keep up" in reason
    assert "ms" in reason
    assert "--rate" in reason


def test_a_few_late_ones_are_an_accident() -> None:
    assert report([0.0002] * 96 + [0.004] * 4).void_reason(0.005) is None
    assert report([0.0002] * 95 + [0.004] * 5).void_reason(0.005) is not None


def test_lateness_that_the_latency_hides_is_not_void() -> None:
    late = report([0.0002] * 950 + [0.004] * 50)
    assert late.void_reason(0.1) is None
    assert late.void_reason(None) is not None


def test_a_generator_that_is_busy_all_the_time_is_void() -> None:
    reason = report([0.0] * 1000, processor_s=9.5).void_reason(0.005)
    assert reason is not None
    assert "95%" in reason


def test_a_closed_loop_has_no_schedule_to_be_late_against() -> None:
    closed = report([], processor_s=9.5)
    assert "late" not in str(closed)
    reason = closed.void_reason(0.005)
    assert reason is not None
    assert "not the service's" in reason


def test_only_a_generator_near_its_limits_is_worth_a_word() -> None:
    assert not report([0.0002] * 100).is_noteworthy
    assert report([0.0008] * 100).is_noteworthy
    assert report([0.0002] * 100, processor_s=5.0).is_noteworthy


def test_what_was_lost_is_counted_by_kind() -> None:
    found = report([0.0] * 10)
    found.failed(Answer.error("status 503"), 4)
    found.failed(Answer.error("status 503"), 4)
    found.failed(Answer.timeout("no answer within 1 s"), 1)
    found.dropped(2)
    assert (found.lost.errors, found.lost.timeouts, found.lost.dropped) == (8, 1, 2)
    assert found.most_frequent_failure == "status 503 (2 of 10 requests)"


def test_it_says_what_the_load_was() -> None:
    text = str(report([0.0002] * 1234, processor_s=0.3))
    assert "1,234 requests in 10 s" in text
    assert "200 µs late (p99)" in text
    assert "3.0% of a processor" in text
