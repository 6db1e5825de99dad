"""The queue in front of an emulated board, and its batching rule: one for real sockets and for virtual time.

Dynamic batching without a wait: as soon as the board is free, the oldest requests that fit into one batch are
served together. A batch that is not full costs what a batch of its size costs.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, Protocol, TypeVar


class HasQueries(Protocol):
    """A request for one or more queries, which stay together."""

    @property
    def n_queries(self) -> int: ...


R = TypeVar("R", bound=HasQueries)


class BatchQueue(Generic[R]):
    """Requests that wait, oldest first. Not safe to share between threads without a lock.

    Args:
        limit: queries that may wait; a request that would be one too many is refused.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.n_queries = 0
        self._waiting: deque[R] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def offer(self, request: R) -> bool:
        """Put a request at the end. False: the queue is full, and the request was not taken."""
        if self.n_queries + request.n_queries > self.limit:
            return False
        self._waiting.append(request)
        self.n_queries += request.n_queries
        return True

    def oldest(self) -> R | None:
        """The request whose turn is next; None where nothing waits."""
        return self._waiting[0] if self._waiting else None

    def drop_oldest(self) -> None:
        """Forget the request whose turn is next."""
        self.n_queries -= self._waiting.popleft().n_queries

    def withdraw(self, request: R) -> bool:
        """Forget a request that nobody waits for any more; False where it has left the queue already."""
        if request not in self._waiting:
            return False
        self._waiting.remove(request)
        self.n_queries -= request.n_queries
        return True

    def clear(self) -> list[R]:
        """Everything that waited."""
        waited = list(self._waiting)
        self._waiting.clear()
        self.n_queries = 0
        return waited

    def take(self, batch_size: int) -> list[R]:
        """The oldest requests that fit into one batch together; empty where nothing waits.

        A request never overtakes another. The oldest one is taken even where it alone is larger than a
        batch: what to do with it is the caller's choice.
        """
        taken: list[R] = []
        n_queries = 0
        while self._waiting:
            request = self._waiting[0]
            if taken and n_queries + request.n_queries > batch_size:
                break
            taken.append(request)
            n_queries += request.n_queries
            self.drop_oldest()
        return taken
