"""The driver in virtual time, over queues whose latencies can be worked out by hand."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest

from polythrottle.clock import VirtualClock
from polythrottle_agent.load.arrivals import Arrivals
from polythrottle_agent.load.driver import Decision, Driver, Ended, Progress, Query
from polythrottle_agent.load.loop import run_clocked
from polythrottle_agent.load.options import Load
from polythrottle_agent.load.sender import GOOD, Answer, Sender
from tests.fakes.queueing_service import QueueingService


def drive(
    sender: Sender,
    load: Load,
    until_s: float,
    *,
    last: Decision = Decision.ENOUGH,
    look_every_s: float = 0.05,
) -> tuple[list[Query], Ended, list[Progress]]:
    """A window of `until_s` seconds; every query that was told of."""
    queries: list[Query] = []
    seen: list[Progress] = []

    async def judge(progress: Progress) -> Decision:
        queries.extend(progress.queries)
        seen.append(progress)
        return last if progress.elapsed_s >= until_s else Decision.GO_ON

    async def main() -> Ended:
        return await Driver(sender, load, seed=7).run(judge, look_every_s)

    ended = run_clocked(main(), VirtualClock(100.0))
    return queries, ended, seen


def constant(rate_per_s: float, **load: float) -> Load:
    return Load(Arrivals.parse("constant", rate_per_s), **load)  # type: ignore[arg-type]


def test_latencies_are_those_of_the_queue() -> None:
    rng = random.Random(3)
    services_s = [rng.uniform(0.001, 0.03) for _ in range(3000)]
    arrivals = Arrivals.parse("poisson", 50.0)
    served = iter(services_s)
    queries, _, _ = drive(QueueingService(lambda _: next(served)), Load(arrivals, 1000), 20.0)
    expected, free_s = [], 0.0
    for due_s, service_s in zip(arrivals.times(7), services_s, strict=False):
        free_s = max(free_s, due_s) + service_s
        expected.append(free_s - due_s)
    assert len(queries) > 900
    assert [query.latency_s for query in queries] == pytest.approx(expected[: len(queries)], abs=1e-6)


def test_a_pause_of_the_service_is_felt_by_everybody_who_came_in_it() -> None:
    """No coordinated omission: a generator that waits for answers would show one slow query."""
    pauses = itertools.chain([0.0] * 100, [1.0], itertools.repeat(0.0))
    queries, _, _ = drive(QueueingService(lambda _: 0.001 + next(pauses)), constant(100.0), 5.0)
    slow = [query.latency_s for query in queries if query.latency_s > 0.05]
    assert len(slow) > 90
    assert max(slow) == pytest.approx(1.001, abs=1e-3)


def test_what_is_due_while_no_connection_is_free_waits_from_its_due_time() -> None:
    service = QueueingService(lambda _: 0.1, servers=10)
    queries, _, _ = drive(service, constant(100.0, connections=2), 1.0)
    assert service.most_in_flight == 2
    # Two connections of 100 ms answer 20 queries a second; 100 a second come.
    assert [q.latency_s for q in queries[:6]] == pytest.approx([0.1, 0.1, 0.18, 0.18, 0.26, 0.26], abs=1e-6)
    assert queries[99].latency_s == pytest.approx(5.0 - 1.0 + 0.02, abs=1e-6)


def test_queries_that_time_out_are_lost_and_those_never_sent_are_dropped() -> None:
    service = QueueingService(lambda _: 10.0, servers=100)
    queries, ended, _ = drive(service, constant(1000.0, connections=3, time_out_s=1.0), 3.0)
    lost = ended.report.lost
    assert not any(query.is_good for query in queries)
    assert lost.total == len(queries) >= 3000
    assert lost.timeouts + lost.dropped == lost.total
    # Three leave with each look for what is late; the rest of that time's queries never do.
    assert lost.timeouts == ended.report.n_requests == pytest.approx(3 * 3.0 / 0.05, rel=0.1)
    assert all(1.0 <= query.latency_s <= 1.06 for query in queries)


def test_a_request_that_timed_out_frees_its_connection() -> None:
    slow = iter([10.0])
    service = QueueingService(lambda _: next(slow, 0.01), servers=2)
    queries, ended, _ = drive(service, constant(10.0, connections=1, time_out_s=0.5), 3.0)
    assert ended.report.lost.timeouts == 1
    assert sum(query.is_good for query in queries) >= 20


def test_failures_are_counted_by_reason() -> None:
    kinds = itertools.cycle(
        [GOOD, Answer.error("status 503"), Answer.error("status 503"), Answer.error("odd")]
    )
    queries, ended, _ = drive(
        QueueingService(lambda _: 0.001, answers=lambda: next(kinds)), constant(100.0), 2.0
    )
    assert ended.report.lost.errors == sum(not query.is_good for query in queries) > 100
    assert ended.report.failures["status 503"] == pytest.approx(2 * ended.report.failures["odd"], abs=2)
    assert "status 503" in str(ended.report.most_frequent_failure)


def test_queries_are_told_in_the_order_they_were_due() -> None:
    rng = random.Random(5)
    service = QueueingService(lambda _: rng.uniform(0.001, 0.2), servers=50)
    due_s: list[float] = []
    queries, _, seen = drive(service, constant(100.0), 3.0)
    assert len({query.latency_s for query in queries}) > 100
    told = 0
    for progress in seen:
        told += len(progress.queries)
        due_s.append(told / 100.0)
        # Nothing younger than 1 ms, and nothing that is due later than now, can be known.
        assert due_s[-1] <= progress.elapsed_s
    # The slowest takes 0.2 s: everything older than that is known.
    assert told / 100.0 >= seen[-2].elapsed_s - 0.21


def test_the_queries_of_a_batch_wait_until_it_is_full() -> None:
    service = QueueingService(lambda n: 0.01 * n, servers=10, per_request=4)
    queries, ended, _ = drive(service, constant(100.0), 2.0)
    assert [query.latency_s for query in queries[:4]] == pytest.approx([0.07, 0.06, 0.05, 0.04], abs=1e-6)
    assert all(query.n_queries == 1 for query in queries)
    assert ended.report.n_requests == len(queries) // 4


def test_a_closed_loop_keeps_every_connection_busy() -> None:
    service = QueueingService(lambda _: 0.01, servers=2, per_request=8)
    queries, ended, _ = drive(service, Load(None, connections=2), 5.0)
    assert ended.report.n_requests == pytest.approx(1000, abs=10)
    assert service.most_in_flight == 2
    assert all(query.n_queries == 8 for query in queries)
    assert {round(query.latency_s, 6) for query in queries} == {0.01}


def test_a_closed_loop_does_not_hammer_a_service_that_refuses() -> None:
    service = QueueingService(lambda _: 0.0, servers=1, answers=lambda: Answer.error("refused"))
    _, ended, _ = drive(service, Load(None, connections=1), 2.0)
    assert 100 < ended.report.n_requests <= 210


def test_what_is_on_its_way_at_the_end_still_counts() -> None:
    queries, ended, _ = drive(QueueingService(lambda _: 3.0, servers=100), constant(10.0), 1.0)
    assert len(queries) == 10
    assert all(query.is_good for query in queries)
    assert ended.report.duration_s == pytest.approx(4.0, abs=0.06)
    assert ended.unanswered == ()


def test_a_window_that_is_given_up_waits_for_nothing() -> None:
    queries, ended, _ = drive(
        QueueingService(lambda _: 3.0, servers=100), constant(10.0), 1.0, last=Decision.GIVE_UP
    )
    assert queries == []
    assert ended.report.duration_s == pytest.approx(1.0, abs=0.06)
    assert len(ended.unanswered) == 10
    assert max(query.latency_s for query in ended.unanswered) == pytest.approx(0.9, abs=0.06)


def test_silence_is_told_only_while_something_was_asked() -> None:
    _, _, seen = drive(QueueingService(lambda _: 50.0, servers=100), constant(1.0, time_out_s=100.0), 5.0)
    at_5_s = next(progress for progress in seen if progress.elapsed_s >= 5.0)
    assert at_5_s.silent_s == pytest.approx(4.0, abs=0.06)  # the first query was due at 1 s
    _, _, seen = drive(QueueingService(lambda _: 0.001), constant(0.4), 5.0)
    assert max(progress.silent_s for progress in seen) < 0.1


def test_a_sender_that_raises_is_a_bug_and_shows() -> None:
    class Broken(QueueingService):
        async def send(self, n_queries: int) -> Answer:  # noqa: ARG002
            raise ZeroDivisionError("here")

    with pytest.raises(ZeroDivisionError, match="here"):
        drive(Broken(lambda _: 0.0), constant(10.0), 2.0)


def test_in_virtual_time_nothing_is_late() -> None:
    _, ended, _ = drive(QueueingService(lambda _: 0.02), constant(30.0), 10.0)
    assert ended.report.lateness.quantile(1.0) < 1e-6
    assert len(ended.report.lateness) == ended.report.n_requests


def test_a_judge_that_fails_ends_the_window_and_leaves_no_task() -> None:
    async def judge(_: Progress) -> Decision:
        raise LookupError("the meter is gone")

    async def main() -> int:
        driver = Driver(QueueingService(lambda _: 3.0), constant(100.0), seed=0)
        with pytest.raises(LookupError):
            await driver.run(judge, 0.5)
        return len(asyncio.all_tasks())

    assert run_clocked(main(), VirtualClock()) == 1
