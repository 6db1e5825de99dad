"""An event loop whose time is the injected clock's. Here, and nowhere else, waiting meets the machine's time.

Under the real clock it wakes within tens of microseconds of a deadline: asyncio's own loop rounds every wait
up to a millisecond, as epoll does. Under a virtual clock it waits by moving that clock, so that whole
windows over a sender in this process take no time.
"""

from __future__ import annotations

import asyncio
import gc
import os
import select
import selectors
import sys
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from polythrottle.clock import Clock, RealClock, VirtualClock

T = TypeVar("T")

_SLICE_S = 0.0005
"""How long a clock that is neither real nor virtual is let pass at once, between two looks at the sockets."""

_SWITCH_INTERVAL_S = 0.0002
"""How long another thread may keep the interpreter while the loop wants it; Python's own default is 5 ms."""

_HIGHEST_FOR_SELECT = 1023

_LOOP_PRIORITY, _HELPER_PRIORITY = 2, 1
"""Among real-time threads, whose lowest priority is 1."""


class _ClockedSelector(selectors.EpollSelector):
    """Waits for sockets until a deadline on a clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As `EpollSelector.select`; `timeout` in the clock's seconds."""
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        if isinstance(self._clock, RealClock):
            if self.fileno() > _HIGHEST_FOR_SELECT:
                return super().select(timeout)
            # An epoll can itself be waited for, and select takes microseconds.
            select.select([self.fileno()], [], [], timeout)
            return super().select(0)
        ready = super().select(0)
        if ready:
            return ready
        virtual = isinstance(self._clock, VirtualClock)
        self._clock.sleep(timeout if virtual else min(timeout, _SLICE_S))
        return super().select(0)


class ClockedLoop(asyncio.SelectorEventLoop):
    """asyncio on an injected clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(_ClockedSelector(clock))
        self._polythrottle_clock = clock

    def time(self) -> float:
        return self._polythrottle_clock.now()


def run_clocked(main: Coroutine[Any, Any, T], clock: Clock) -> T:
    """Run a coroutine in a fresh loop to its end; whatever it left running is cancelled.

    Like `asyncio.run`, which takes no clock before Python 3.11.
    """
    loop = ClockedLoop(clock)
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(main)
    finally:
        try:
            _cancel_all(loop)
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            asyncio.set_event_loop(None)
            loop.close()


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep this thread's pauses short for the length of a window.

    Objects that exist by now are left out of garbage collection: beside a loaded PyTorch one full collection
    takes tens of milliseconds. Threads hand over quickly. And the thread goes first, as `go_first` says.
    """
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    gc.freeze()
    policy, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    went_first = go_first(_LOOP_PRIORITY)
    try:
        yield
    finally:
        if went_first:
            _set_policy(policy, parameter)
        gc.unfreeze()
        sys.setswitchinterval(interval_s)


def go_first(priority: int = _HELPER_PRIORITY) -> bool:
    """Let this thread run as soon as it wants to, where the user may ask for that.

    It needs little, and a client on another machine would not have to wait for the service's own threads
    either. Whatever the loop waits for must go first too: a thread that holds the interpreter and is not let
    run would hold up the loop as well. Not with a single processor, which it would take from the service.

    Returns:
        Whether anything was changed.
    """
    if os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK != os.SCHED_OTHER or (os.cpu_count() or 1) < 2:
        return False
    try:
        # Threads and processes that a sender starts meanwhile do not inherit it.
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
    except OSError:  # not ours to ask for: it works without, less evenly on a loaded machine
        return False
    return True


def _set_policy(policy: int, parameter: os.sched_param) -> None:
    try:
        os.sched_setscheduler(0, policy, parameter)
    except PermissionError:  # who may raise itself by a limit alone may not take this flag back
        os.sched_setscheduler(0, policy | os.SCHED_RESET_ON_FORK, parameter)


def processor_s() -> float:
    """Processor time of this thread in seconds: what the generator itself costs."""
    return time.thread_time()
