"""Temperature and throttling, looked at by a thread that nobody waits for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from polythrottle.clock import RealClock
from polythrottle.measurement import Unavailable
from polythrottle_agent.guard.health import NoHealth, WatchedHealth, hottest_c
from polythrottle_agent.ports import ControlError, Seen
from polythrottle_agent.sysfs import Sysfs
from tests.fakes.scaled_clock import ScaledClock


def zone(root: Path, number: int, text: str) -> None:
    directory = root / f"sys/class/thermal/thermal_zone{number}"
    directory.mkdir(parents=True)
    (directory / "temp").write_text(text)


def until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    ends_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < ends_s
        time.sleep(0.01)


def test_the_hottest_zone_counts_and_one_that_is_off_does_not(tmp_path: Path) -> None:
    assert isinstance(hottest_c(Sysfs(tmp_path)), Unavailable)
    for number, text in enumerate(["48500\n", "61250\n", "-256000\n", "", "none\n", "900000\n"]):
        zone(tmp_path, number, text)
    assert hottest_c(Sysfs(tmp_path)) == 61.25


class Notes:
    """A witness that has seen these."""

    def __init__(self, *notes: str, fails: bool = False) -> None:
        self.notes, self.fails, self.windows = notes, fails, 0

    def begin(self) -> None:
        self.windows += 1
        if self.fails:
            raise ControlError("the driver is gone")

    def end(self) -> Seen:
        return Seen({}, self.notes)


@pytest.mark.parametrize(
    ("witness", "expected"),
    [
        (Notes("throttled: hot", "ran at 600 MHz"), ("throttled: hot",)),
        (Notes(), ()),
        (None, None),
        (Notes(fails=True), None),
    ],
)
def test_what_a_witness_tells_of_throttling(witness: Notes | None, expected: tuple[str, ...] | None) -> None:
    health = WatchedHealth(lambda: 55.5, witness, RealClock(), every_s=0.01)
    assert health.look().throttling is None
    health.start()
    until(lambda: not isinstance(health.look().temperature_c, Unavailable))
    assert health.look().temperature_c == 55.5
    assert health.look().throttling == expected
    if witness is not None:
        until(lambda: witness.windows > 3)
    health.stop()


def test_a_sensor_that_hangs_is_waited_for_by_nobody() -> None:
    let_go = threading.Event()

    def hangs() -> float:
        let_go.wait(30)
        return 50.0

    clock = ScaledClock(100.0)
    health = WatchedHealth(hangs, None, clock, every_s=0.01)
    health.start()
    began_s = time.monotonic()
    assert isinstance(health.look().temperature_c, Unavailable)
    assert time.monotonic() - began_s < 1.0
    let_go.set()
    health.stop()


def test_a_look_that_is_old_says_nothing_of_now() -> None:
    let_go, calls = threading.Event(), []

    def hangs_later() -> float:
        calls.append(None)
        if len(calls) > 1:
            let_go.wait(30)
        return 50.0

    health = WatchedHealth(hangs_later, None, ScaledClock(100.0), every_s=0.01)
    health.start()
    until(lambda: health.look().temperature_c == 50.0 or len(calls) > 1)
    until(lambda: isinstance(health.look().temperature_c, Unavailable))
    assert "not answered for" in health.look().temperature_c.reason
    let_go.set()
    health.stop()


def test_where_nobody_looks_nothing_is_claimed() -> None:
    seen = NoHealth().look()
    assert isinstance(seen.temperature_c, Unavailable)
    assert seen.throttling is None
