"""Drives one window of load over a sender, in an event loop.

Open loop: queries become due by a schedule that does not care how the service does, and each one's latency
counts from the moment it was due. What is due while every connection is busy waits, and its latency grows
meanwhile. Closed loop: each connection asks again as soon as it was answered.

Queries are told about in the order in which they were due, so that at no moment only the slow ones are
missing among those that are known.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from polythrottle.objective import format_latency
from polythrottle_agent.load.loop import processor_s
from polythrottle_agent.load.options import Load
from polythrottle_agent.load.report import LoadReport
from polythrottle_agent.load.sender import Answer, Outcome, Sender

LONGEST_SWEEP_S = 0.05
"""How often late queries are looked for, unless a short time-out asks for more."""

MAX_CATCHING_UP = 1000
"""Queries taken from the schedule at one go, before the loop looks at its sockets again."""

BREATH_S = 0.01
"""In a closed loop a connection that failed waits this long: a service that refuses must not be hammered."""


@dataclass(frozen=True)
class Query:
    """One query that is over; in a closed loop, the `n_queries` of one request.

    `latency_s` counts from when it was due; for a lost one it is how long it was waited for.
    """

    latency_s: float
    is_good: bool
    n_queries: int = 1


@dataclass(frozen=True)
class Progress:
    """How a window is going.

    Args:
        queries: newly over, in the order they were due.
        elapsed_s: since the start.
        silent_s: for so long nothing at all was answered, although something was asked.
    """

    queries: tuple[Query, ...]
    elapsed_s: float
    silent_s: float


class Decision(str, Enum):
    """What is to become of a window."""

    GO_ON = "go on"
    ENOUGH = "enough"
    """No more load; what is on its way still counts."""
    GIVE_UP = "give up"
    """Nothing more is waited for."""


Judge = Callable[[Progress], Awaitable[Decision]]


@dataclass(frozen=True)
class Ended:
    """How a window ended. `unanswered` are the queries that it was given up on, good ones not among them."""

    report: LoadReport
    unanswered: tuple[Query, ...] = ()


class _Request:
    """Queries that travel together."""

    __slots__ = ("answer", "dues_s", "ended_s", "has_left", "n_queries", "sent_s")

    def __init__(self, dues_s: list[float], n_queries: int) -> None:
        self.dues_s = dues_s
        self.n_queries = n_queries
        self.sent_s = self.ended_s = math.nan
        self.has_left = False
        self.answer: Answer | None = None

    def queries(self) -> Iterator[Query]:
        good = self.answer is not None and self.answer.is_good
        each = self.n_queries // len(self.dues_s)
        return (Query(self.ended_s - due_s, good, each) for due_s in self.dues_s)


class Driver:
    """One window of load; used once, within the running event loop."""

    def __init__(self, sender: Sender, load: Load, seed: int) -> None:
        """
        Args:
            sender: open, and used by nobody else meanwhile.
            seed: of this window's arrivals.
        """
        self._sender = sender
        self._load = load
        self._loop = asyncio.get_running_loop()
        self._per_request = sender.queries_per_request
        self._report = LoadReport()
        self._schedule = None if load.arrivals is None else load.arrivals.times(seed)
        self._start_s = self._next_due_s = self._last_answer_s = math.nan
        self._forming: list[float] = []
        self._waiting: deque[_Request] = deque()
        self._flying: dict[asyncio.Task[None], _Request] = {}
        self._unfinished: deque[_Request] = deque()
        self._over: list[Query] = []
        self._is_loading = True
        self._bug: BaseException | None = None
        self._due_timer: asyncio.TimerHandle | None = None
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._all_over = asyncio.Event()

    async def run(self, judge: Judge, look_every_s: float) -> Ended:
        """Load the service until `judge` has enough.

        Args:
            judge: asked every `look_every_s` seconds, one call at a time. It may take its time: load goes on.
        """
        used_s = processor_s()
        self._start_s = self._last_answer_s = self._loop.time()
        self._begin()
        self._sweep()
        try:
            decision = Decision.GO_ON
            while decision is Decision.GO_ON:
                await asyncio.sleep(look_every_s)
                decision = await judge(self._progress())
            self._end_load()
            if decision is Decision.ENOUGH and self._unfinished:
                await self._all_over.wait()
            if decision is Decision.ENOUGH:
                await judge(self._progress())
        finally:
            self._end_load()
            unanswered = self._give_up()
            await asyncio.gather(*self._flying, return_exceptions=True)
        if self._bug is not None:
            raise self._bug
        self._report.duration_s = self._loop.time() - self._start_s
        self._report.processor_s = processor_s() - used_s
        return Ended(self._report, unanswered)

    def _begin(self) -> None:
        if self._schedule is None:
            for _ in range(self._load.connections):
                self._ask_again()
            return
        self._next_due_s = self._start_s + next(self._schedule)
        self._due_timer = self._loop.call_at(self._next_due_s, self._tick)

    def _end_load(self) -> None:
        self._is_loading = False
        if self._due_timer is not None:
            self._due_timer.cancel()

    def _give_up(self) -> tuple[Query, ...]:
        """Cancel what is on its way; the queries it was."""
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        now_s = self._loop.time()
        unanswered: list[Query] = []
        for request in self._unfinished:
            if request.answer is None:
                request.ended_s = now_s
                unanswered += request.queries()
        self._waiting.clear()
        for task in self._flying:
            task.cancel()
        return tuple(unanswered)

    def _progress(self) -> Progress:
        if self._bug is not None:
            raise self._bug
        over, self._over = self._over, []
        now_s = self._loop.time()
        oldest = next(iter(self._flying.values()), None)
        silent_s = 0.0 if oldest is None else now_s - max(self._last_answer_s, oldest.sent_s)
        return Progress(tuple(over), now_s - self._start_s, silent_s)

    # What is due

    def _tick(self) -> None:
        """Send what is due by now."""
        assert self._schedule is not None
        now_s = self._loop.time()
        for _ in range(MAX_CATCHING_UP):
            if self._next_due_s > now_s:
                break
            self._forming.append(self._next_due_s)
            self._next_due_s = self._start_s + next(self._schedule)
            if len(self._forming) == self._per_request:
                request, self._forming = _Request(self._forming, self._per_request), []
                self._unfinished.append(request)
                if self._waiting or len(self._flying) >= self._load.connections:
                    self._waiting.append(request)
                else:
                    self._start(request, request.dues_s[-1])
        self._due_timer = self._loop.call_at(self._next_due_s, self._tick)

    def _ask_again(self) -> None:
        """One connection of a closed loop asks."""
        if self._is_loading:
            request = _Request([self._loop.time()], self._per_request)
            self._unfinished.append(request)
            self._start(request, request.dues_s[0])

    # On its way

    def _start(self, request: _Request, possible_s: float) -> None:
        """Send a request that could leave from `possible_s` on."""
        request.sent_s = possible_s
        task = self._loop.create_task(self._carry(request, possible_s))
        self._flying[task] = request

    async def _carry(self, request: _Request, possible_s: float) -> None:
        request.sent_s, request.has_left = self._loop.time(), True
        self._report.n_requests += 1
        if self._schedule is not None:
            self._report.lateness.record(request.sent_s - possible_s)
        try:
            answer = await self._sender.send(request.n_queries)
            if request.answer is None:
                self._finish(request, answer)
            self._last_answer_s = self._loop.time()
        except (
            Exception
        ) as error:  # a sender never raises: this is a bug, and must not pass for a slow service
            self._bug = self._bug or error
            self._finish(request, Answer.error("the sender failed"))
        finally:
            task = asyncio.current_task()
            assert task is not None
            self._flying.pop(task, None)
            self._use_free_connections(request)

    def _use_free_connections(self, last: _Request) -> None:
        if self._schedule is None:
            if last.answer is not None and last.answer.is_good:
                self._ask_again()
            elif self._is_loading:
                self._loop.call_later(BREATH_S, self._ask_again)
        while self._waiting and len(self._flying) < self._load.connections:
            self._start(self._waiting.popleft(), self._loop.time())

    def _finish(self, request: _Request, answer: Answer) -> None:
        request.answer, request.ended_s = answer, self._loop.time()
        if not answer.is_good:
            self._report.failed(answer, request.n_queries)
        self._collect()

    def _collect(self) -> None:
        unfinished = self._unfinished
        while unfinished and unfinished[0].answer is not None:
            self._over += unfinished.popleft().queries()
        if not unfinished and not self._is_loading:
            self._all_over.set()

    # What is too late

    def _sweep(self) -> None:
        """Give up on what has timed out."""
        time_out_s = self._load.time_out_s
        too_old_s = self._loop.time() - time_out_s
        while self._waiting and self._waiting[0].dues_s[-1] < too_old_s:
            request = self._waiting.popleft()
            request.answer, request.ended_s = Answer(Outcome.TIMEOUT), self._loop.time()
            self._report.dropped(request.n_queries)
        for task, request in self._flying.items():
            # A task that was cancelled before its first step would never say that it is over.
            if request.has_left and request.answer is None and request.dues_s[-1] < too_old_s:
                self._finish(request, Answer.timeout(f"no answer within {format_latency(time_out_s)}"))
                task.cancel()
        self._collect()
        every_s = min(LONGEST_SWEEP_S, time_out_s / 20.0)
        self._sweep_timer = self._loop.call_later(every_s, self._sweep)
