"""The event loop keeps the injected clock's time."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time

import pytest

from polythrottle.clock import RealClock, VirtualClock
from polythrottle_agent.load.loop import run_clocked, undisturbed
from tests.fakes.scaled_clock import ScaledClock


async def waits(*seconds: float) -> list[float]:
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    woke: list[float] = []

    async def one(duration_s: float) -> None:
        await asyncio.sleep(duration_s)
        woke.append(loop.time() - began_s)

    await asyncio.gather(*(one(duration_s) for duration_s in seconds))
    return woke


def test_a_virtual_hour_takes_no_time() -> None:
    clock = VirtualClock(5.0)
    began_s = time.monotonic()
    assert run_clocked(waits(3600.0, 1.0, 60.0), clock) == pytest.approx([1.0, 60.0, 3600.0])
    assert clock.now() == pytest.approx(3605.0)
    assert time.monotonic() - began_s < 2.0


def test_a_scaled_clock_passes_at_its_own_pace() -> None:
    began_s = time.monotonic()
    (woke_s,) = run_clocked(waits(5.0), ScaledClock(50.0))
    assert woke_s >= 5.0
    assert 0.1 <= time.monotonic() - began_s < 1.0


def test_real_waits_are_not_rounded_up_to_a_millisecond() -> None:
    """The shortest of many: how late a machine with other work wakes is not the loop's doing."""
    late = []
    for _ in range(200):
        (woke_s,) = run_clocked(waits(0.0003), RealClock())
        late.append(woke_s - 0.0003)
    assert min(late) >= 0.0
    assert sorted(late)[20] < 0.0005


def test_what_is_left_running_is_cancelled() -> None:
    cancelled = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def main() -> int:
        task = asyncio.get_running_loop().create_task(forever())
        await asyncio.sleep(0.0)
        assert not task.done()
        return 3

    assert run_clocked(main(), VirtualClock()) == 3
    assert cancelled == [True]


def test_an_interruption_comes_through_and_cleans_up() -> None:
    closed = []

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def interrupt() -> None:
            raise KeyboardInterrupt

        loop.call_later(0.1, interrupt)
        try:
            await asyncio.sleep(10.0)
        finally:
            closed.append(True)

    with pytest.raises(KeyboardInterrupt):
        run_clocked(main(), VirtualClock())
    assert closed == [True]


def test_undisturbed_leaves_everything_as_it_was() -> None:
    before = (sys.getswitchinterval(), os.sched_getscheduler(0), gc.isenabled())
    with undisturbed():
        assert sys.getswitchinterval() < 0.001
        assert gc.get_freeze_count() > 0
    assert (sys.getswitchinterval(), os.sched_getscheduler(0), gc.isenabled()) == before
    assert gc.get_freeze_count() == 0
