"""What happens later on an emulated board: a worker that applies a limit, another program that writes."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

from polythrottle_agent.emulation.board import EmulatedBoard


class Agenda:
    """Actions with a time on the board's clock. Nothing runs by itself: `settle` catches up."""

    def __init__(self, board: EmulatedBoard) -> None:
        self._board = board
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Do something `delay_s` from now."""
        at_s = self._board.clock.now() + max(delay_s, 0.0)
        heapq.heappush(self._due, (at_s, next(self._order), action))

    def settle(self) -> None:
        """Do all that is due, each at its time, and count the board's energy up to now."""
        now_s = self._board.clock.now()
        while self._due and self._due[0][0] <= now_s:
            at_s, _, action = heapq.heappop(self._due)
            self._board.count_until(at_s)
            action()
        self._board.count_until(now_s)

    def run_all(self) -> None:
        """Do all that is pending as if its time had come: how a board is found long after its boot."""
        while self._due:
            heapq.heappop(self._due)[2]()

    def clear(self) -> None:
        self._due.clear()
