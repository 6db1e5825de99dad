from dataclasses import dataclass

import pytest

from polythrottle_agent.emulation.batching import BatchQueue


@dataclass(frozen=True)
class Asked:
    name: str
    n_queries: int = 1


def _queue(*requests: Asked, limit: int = 100) -> BatchQueue[Asked]:
    queue: BatchQueue[Asked] = BatchQueue(limit)
    for request in requests:
        assert queue.offer(request)
    return queue


def _names(requests: list[Asked]) -> str:
    return "".join(request.name for request in requests)


def test_whole_requests_are_taken_oldest_first_up_to_the_batch_size() -> None:
    queue = _queue(Asked("a", 2), Asked("b", 1), Asked("c", 2), Asked("d", 1))
    assert _names(queue.take(4)) == "ab"
    assert _names(queue.take(4)) == "cd"
    assert queue.take(4) == []


def test_no_request_overtakes_a_larger_one() -> None:
    queue = _queue(Asked("a", 3), Asked("b", 2), Asked("c", 1))
    assert _names(queue.take(4)) == "a"
    assert _names(queue.take(4)) == "bc"


def test_a_request_larger_than_a_batch_is_taken_alone() -> None:
    queue = _queue(Asked("a", 8), Asked("b", 1))
    assert _names(queue.take(4)) == "a"
    assert _names(queue.take(4)) == "b"


def test_the_limit_counts_queries() -> None:
    queue = _queue(Asked("a", 3), limit=4)
    assert not queue.offer(Asked("b", 2))
    assert queue.offer(Asked("c", 1))
    assert queue.n_queries == 4
    queue.take(16)
    assert queue.n_queries == 0
    assert queue.offer(Asked("d", 4))


def test_what_nobody_waits_for_leaves_room() -> None:
    gone = Asked("b", 2)
    queue = _queue(Asked("a"), gone, Asked("c"), limit=4)
    assert queue.withdraw(gone)
    assert not queue.withdraw(gone)
    assert queue.n_queries == 2
    assert _names(queue.take(16)) == "ac"


def test_the_oldest_can_be_seen_and_dropped() -> None:
    queue = _queue(Asked("a", 2), Asked("b"))
    assert queue.oldest() == Asked("a", 2)
    queue.drop_oldest()
    assert (len(queue), queue.n_queries) == (1, 1)
    assert _names(queue.clear()) == "b"
    assert queue.oldest() is None
    assert queue.n_queries == 0
    with pytest.raises(IndexError):
        queue.drop_oldest()
