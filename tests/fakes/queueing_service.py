"""A service within this process: queues in front of servers, on whatever clock the event loop has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from polythrottle_agent.load.sender import GOOD, Answer, ServiceError


class QueueingService:
    """A `Sender` whose requests wait for one of `servers`, first come first served.

    `service_s` gives the seconds a request of so many queries is served; `answers` what it is answered.
    """

    def __init__(
        self,
        service_s: Callable[[int], float],
        *,
        servers: int = 1,
        per_request: int = 1,
        answers: Callable[[], Answer] = lambda: GOOD,
        is_there: bool = True,
    ) -> None:
        self.service_s = service_s
        self.per_request = per_request
        self.answers = answers
        self.is_there = is_there
        self.n_sent = 0
        self.most_in_flight = 0
        self.is_open = False
        self._free_s = [0.0] * servers
        self._in_flight = 0

    @property
    def queries_per_request(self) -> int:
        return self.per_request

    async def open(self, connections: int) -> None:  # noqa: ARG002
        if not self.is_there:
            raise ServiceError("nobody listens")
        self.is_open = True

    async def send(self, n_queries: int) -> Answer:
        now_s = asyncio.get_running_loop().time()
        self.n_sent += 1
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        first = min(range(len(self._free_s)), key=self._free_s.__getitem__)
        over_s = max(now_s, self._free_s[first]) + self.service_s(n_queries)
        self._free_s[first] = over_s
        try:
            await asyncio.sleep(over_s - now_s)
        finally:
            self._in_flight -= 1
        return self.answers()

    async def close(self) -> None:
        self.is_open = False
