"""Serves a queue on an emulated board in real time: the thread that stands for the accelerator."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from polythrottle.clock import Clock
from polythrottle_agent.emulation.batching import BatchQueue

CONDITIONS_S = 5.0
"""How often the conditions that scatter windows are drawn anew; the service knows no windows."""


class ServingBoard(Protocol):
    """What a board has to do for the batcher; `Machine` does."""

    @property
    def batch_size(self) -> int: ...

    def begin_window(self) -> None: ...

    def begin_batch(self, n_queries: int | None = None) -> float: ...


@dataclass(eq=False)
class Ticket:
    """One request on its way through the service. Times are on the batcher's clock, in s.

    `batch` is how many queries were served together with it; 0: it was not served. `too_large` says that this
    is because the batch size has fallen below the request since it came.
    """

    n_queries: int
    arrived_s: float
    began_s: float = 0.0
    ended_s: float = 0.0
    batch: int = 0
    too_large: bool = False


class Batcher:
    """Takes requests from any thread; serves them one batch at a time, in a thread of its own.

    A thread, because it can wait for a batch's end to a tenth of a millisecond, which an event loop cannot.

    Args:
        board: who says how long a batch takes.
        clock: the board's clock, which must pass by itself.
        queue_limit: queries that may wait.
        done: called with the requests of each batch that has ended, and with those that will not be served;
            mostly from the thread.
    """

    def __init__(
        self, board: ServingBoard, clock: Clock, queue_limit: int, done: Callable[[list[Ticket]], None]
    ) -> None:
        self._board = board
        self._clock = clock
        self._done = done
        self._queue: BatchQueue[Ticket] = BatchQueue(queue_limit)
        self._changed = threading.Condition()
        self._stopping = False
        self._conditions_until_s = clock.now()
        self._batch: list[Ticket] = []
        self.failure: BaseException | None = None
        """Why the thread ended before it was told to."""
        self._thread = threading.Thread(target=self._run, name="emulated accelerator", daemon=True)

    @property
    def n_waiting(self) -> int:
        """Queries that wait for their batch."""
        return self._queue.n_queries

    @property
    def n_in_service(self) -> int:
        """Queries of the batch that is being served."""
        return sum(ticket.n_queries for ticket in self._batch)

    def start(self) -> None:
        self._thread.start()

    def submit(self, n_queries: int) -> Ticket | None:
        """Put a request into the queue; None where the queue is full or the service is ending."""
        ticket = Ticket(n_queries, self._clock.now())
        with self._changed:
            if self._stopping or self.failure is not None or not self._queue.offer(ticket):
                return None
            self._changed.notify()
        return ticket

    def withdraw(self, ticket: Ticket) -> bool:
        """Nobody waits for this request any more; False where its batch has begun already."""
        with self._changed:
            return self._queue.withdraw(ticket)

    def stop(self, timeout_s: float) -> None:
        """Take no more, serve what waits, for so long at most, and end."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout_s)
        with self._changed:
            left = self._queue.clear()
        self._done(left)
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._serve_next():
                pass
        except BaseException as error:  # told by whoever watches over the service
            with self._changed:
                self.failure = error
                left = self._batch + self._queue.clear()
            self._batch = []
            self._done(left)

    def _serve_next(self) -> bool:
        """Serve one batch, waiting for it; False: there is nothing more to do."""
        with self._changed:
            while not self._queue:
                if self._stopping:
                    return False
                self._changed.wait()
            batch_size = self._board.batch_size
            self._batch = batch = self._queue.take(batch_size)
        n_queries = self.n_in_service
        if n_queries > batch_size:  # the oldest request alone
            batch[0].too_large = True
        else:
            self._serve(batch, n_queries)
        self._batch = []
        self._done(batch)
        return True

    def _serve(self, batch: list[Ticket], n_queries: int) -> None:
        began_s = self._clock.now()
        if began_s >= self._conditions_until_s:
            self._board.begin_window()
            self._conditions_until_s = began_s + CONDITIONS_S
        ends_s = began_s + self._board.begin_batch(n_queries)
        self._clock.sleep(ends_s - self._clock.now())
        ended_s = self._clock.now()
        for ticket in batch:
            ticket.began_s, ticket.ended_s, ticket.batch = began_s, ended_s, n_queries
