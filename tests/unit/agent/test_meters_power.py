from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from polythrottle.clock import RealClock, VirtualClock
from polythrottle.measurement import Provenance, Scope, Unavailable
from polythrottle_agent.meters import sampler as sampler_module
from polythrottle_agent.meters.power import (
    About,
    Counter,
    CounterMeter,
    NoMeter,
    PowerMeter,
    PowerReading,
)
from polythrottle_agent.meters.sampler import Sampler
from polythrottle_agent.ports import ControlError, EnergyWindow

ABOUT = About("test meter", Scope.MODULE)


def power_meter(read: Callable[[], PowerReading], averaging_s: float = 0.0) -> PowerMeter:
    return PowerMeter(ABOUT, read, lambda: averaging_s, RealClock(), period_s=0.01)


def test_energy_is_mean_power_times_the_window() -> None:
    meter = power_meter(lambda: PowerReading(6.0, 0.04), averaging_s=0.05)
    meter.begin()
    time.sleep(0.4)
    read = meter.end()
    assert isinstance(read, EnergyWindow)
    assert read.energy_j == pytest.approx(6.0 * read.window_s)
    assert 0.39 < read.window_s < 1.0
    assert read.standard_error_j is not None
    assert 0 < read.standard_error_j < 0.01 * read.energy_j
    assert (meter.name, meter.scope, meter.provenance) == ("test meter", Scope.MODULE, Provenance.MEASURED)


def test_without_a_window_it_says_so() -> None:
    meter = power_meter(lambda: PowerReading(6.0))
    assert meter.end() == Unavailable("the meter's window was never opened")
    meter.begin()
    time.sleep(0.5)
    assert isinstance(meter.end(), EnergyWindow)
    assert isinstance(meter.end(), Unavailable)


def flaky(share: int) -> Callable[[], PowerReading]:
    calls: Iterator[int] = iter(range(10**9))

    def read() -> PowerReading:
        if next(calls) % share == 0:
            raise ControlError("the chip is busy (EAGAIN)")
        return PowerReading(6.0)

    return read


def test_now_and_then_a_reading_may_fail() -> None:
    meter = power_meter(flaky(8))
    meter.begin()
    time.sleep(0.5)
    assert isinstance(meter.end(), EnergyWindow)


def test_too_many_failures_are_no_measurement_and_say_why() -> None:
    meter = power_meter(flaky(2))
    meter.begin()
    time.sleep(0.3)
    read = meter.end()
    assert isinstance(read, Unavailable)
    assert "readings failed" in read.reason
    assert "EAGAIN" in read.reason


def test_a_sensor_that_hangs_neither_blocks_nor_reads_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler_module, "STUCK_S", 0.1)
    release = threading.Event()

    def read() -> PowerReading:
        release.wait(10)
        return PowerReading(6.0)

    meter = power_meter(read)
    for _ in range(2):
        meter.begin()
        began = time.monotonic()
        time.sleep(0.25)
        found = meter.end()
        assert time.monotonic() - began < 1.0
        assert isinstance(found, Unavailable)
        assert "has not answered for" in found.reason
    assert sum(thread.name == "sampler test meter" for thread in threading.enumerate()) == 1
    release.set()


def test_a_slow_sensor_does_not_hold_up_the_window() -> None:
    def read() -> PowerReading:
        time.sleep(0.05)
        return PowerReading(6.0)

    sampler = Sampler(read, RealClock(), 0.01, "slow")
    sampler.begin()
    time.sleep(0.4)
    began = time.monotonic()
    samples = sampler.end()
    assert time.monotonic() - began < 0.04
    assert samples is not None
    assert 5 <= len(samples.values) <= 8  # it never catches up on what it missed


def test_its_thread_ends_with_the_window() -> None:
    sampler = Sampler(lambda: 1, RealClock(), 0.01, "ending")
    sampler.begin()
    time.sleep(0.05)
    sampler.end()
    time.sleep(0.1)
    assert not any(thread.name == "sampler ending" for thread in threading.enumerate())


def test_a_window_that_is_opened_again_drops_the_first() -> None:
    sampler = Sampler(lambda: 1, RealClock(), 0.01, "again")
    sampler.begin()
    time.sleep(0.1)
    sampler.begin()
    samples = sampler.end()
    assert samples is not None
    assert len(samples.values) <= 2


class Counting:
    """A counter that a test turns by hand."""

    def __init__(self, joules: float = 0.0) -> None:
        self.joules = joules
        self.error: str | None = None

    def __call__(self) -> float:
        if self.error is not None:
            raise ControlError(self.error)
        return self.joules


def counter_meter(
    counting: Counting, clock: VirtualClock | RealClock, range_j: float | None = None
) -> CounterMeter:
    counter = Counter("package-0", counting, range_j, step_j=61e-6, tick_s=0.001)
    return CounterMeter(ABOUT, [counter], clock, period_s=0.01)


def test_a_counter_is_read_at_both_ends() -> None:
    counting = Counting(100.0)
    meter = counter_meter(counting, RealClock())
    meter.begin()
    time.sleep(0.05)
    counting.joules = 103.0
    read = meter.end()
    assert isinstance(read, EnergyWindow)
    assert read.energy_j == pytest.approx(3.0)
    assert read.standard_error_j == pytest.approx(0.001 * 3.0 / read.window_s / 6**0.5, rel=0.01)


def test_every_wrap_is_seen_because_it_is_read_in_between() -> None:
    counting = Counting(95.0)
    meter = counter_meter(counting, RealClock(), range_j=100.0)
    meter.begin()
    for joules in (20.0, 80.0, 40.0, 10.0):
        time.sleep(0.05)
        counting.joules = joules
    time.sleep(0.05)
    read = meter.end()
    assert isinstance(read, EnergyWindow)
    assert read.energy_j == pytest.approx(5 + 20 + 60 + 60 + 70)


def test_a_counter_that_starts_again_is_no_measurement() -> None:
    counting = Counting(100.0)
    meter = counter_meter(counting, RealClock())
    meter.begin()
    time.sleep(0.01)
    counting.joules = 1.0
    read = meter.end()
    assert isinstance(read, Unavailable)
    assert "started again" in read.reason


@pytest.mark.parametrize("when", ["begin", "end"])
def test_a_counter_that_cannot_be_read_says_why(when: str) -> None:
    counting = Counting(100.0)
    meter = counter_meter(counting, RealClock())
    if when == "begin":
        counting.error = "permission denied"
    meter.begin()
    time.sleep(0.01)
    counting.error = "permission denied"
    assert meter.end() == Unavailable("test meter: permission denied")
    counting.error = None
    assert meter.end() == Unavailable("the meter's window was never opened")


def test_where_nothing_can_be_metered_the_reason_is_all_there_is() -> None:
    meter = NoMeter("no rail is known")
    meter.begin()
    assert meter.end() == Unavailable("no rail is known")
