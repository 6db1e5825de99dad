"""The runner: what it does with a decision, in which order, and what it survives."""

from __future__ import annotations

import pytest

from polythrottle.clock import VirtualClock
from polythrottle.errors import StateError
from polythrottle_agent.guard.events import GuardEvent, Kind
from polythrottle_agent.guard.falling_back import NotSwitched
from polythrottle_agent.guard.health import NoHealth
from polythrottle_agent.guard.rules import GuardRules
from polythrottle_agent.guard.runner import Guard, Ladder
from polythrottle_agent.guard.samples import Traffic
from polythrottle_agent.guard.states import Cause, GuardState
from tests.unit.agent.guard.conftest import latency

LADDER = Ladder({"gpu_freq_mhz": 306.0}, (None, {"gpu_freq_mhz": 918.0}))


class Script:
    """Traffic that depends on the time since what is in force was put there."""

    passes_time = False

    def __init__(self, clock: VirtualClock, bad_from_s: float) -> None:
        self.clock, self.bad_from_s, self.forgotten = clock, bad_from_s, 0
        self.is_bad = True

    def start(self) -> None: ...

    def look(self) -> Traffic:
        bad = self.is_bad and self.clock.now() >= self.bad_from_s
        return latency(0.2 if bad else 0.05)

    def forget(self) -> None:
        self.forgotten += 1
        self.is_bad = False

    def stop(self) -> None: ...


class Switchboard:
    def __init__(self, clock: VirtualClock, order: list, refuses: int = 0) -> None:
        self.clock, self.order, self.refuses = clock, order, refuses
        self.put_at: list = []

    def put(self, settings, reason: str) -> None:
        self.clock.sleep(0.1)
        self.order.append("put")
        if self.refuses:
            self.refuses -= 1
            raise NotSwitched("the helper is gone")
        self.put_at.append((self.clock.now(), settings, reason))

    def close(self) -> None: ...


class Ear:
    def __init__(self, order: list, fails: bool = False) -> None:
        self.order, self.fails, self.events = order, fails, []

    def told(self, event: GuardEvent) -> None:
        self.order.append(event.event.value)
        self.events.append(event)
        if self.fails:
            raise StateError("The disk is full.")


def guard(rules: GuardRules, *, refuses: int = 0, fails: bool = False):
    clock, order = VirtualClock(100.0), []
    source, board, ear = Script(clock, 160.0), Switchboard(clock, order, refuses), Ear(order, fails)
    made = Guard(LADDER, rules, source, NoHealth(), board, clock, device="jetson:one", listeners=(ear,))
    return made, clock, source, board, ear


def test_it_switches_before_it_tells(rules: GuardRules) -> None:
    made, _, source, board, ear = guard(rules)
    status = made.run(lambda: False, for_s=120.0)
    kinds = [e for e in ear.order if e != "state"]
    assert kinds == ["started", "put", "fell_back", "search_wanted", "stopped"]
    assert status.state is GuardState.STOPPED
    assert status.rung == 1
    assert made.wanted.cause is Cause.LATENCY
    assert made.wanted.has_fallen_back
    ((at_s, settings, reason),) = board.put_at
    assert settings is None
    assert "surely over" in reason
    fell = next(e for e in ear.events if e.event is Kind.FELL_BACK)
    assert fell.took_s == pytest.approx(0.1)
    assert fell.detected_s == pytest.approx(at_s - 0.1)
    assert fell.settings == {}
    assert fell.evidence["latency_s"] == pytest.approx(0.2)
    # Once at the switch, and once more when queues have drained.
    assert source.forgotten == 2


def test_a_fall_back_that_fails_is_said_and_tried_again(rules: GuardRules) -> None:
    made, _, _, board, ear = guard(rules, refuses=2)
    made.run(lambda: False, for_s=120.0)
    failed = [e for e in ear.events if e.event is Kind.NOT_SWITCHED]
    assert [e.reason for e in failed] == ["the helper is gone"] * 2
    assert len(board.put_at) == 1
    times = [e for e in ear.order if e == "put"]
    assert len(times) == 3


def test_a_log_that_cannot_be_written_does_not_keep_it_from_acting(rules: GuardRules) -> None:
    made, _, _, board, _ = guard(rules, fails=True)
    made.run(lambda: False, for_s=120.0)
    assert len(board.put_at) == 1


def test_it_ends_when_told_and_leaves_in_force_what_is(rules: GuardRules) -> None:
    made, clock, _, board, ear = guard(rules)
    made.run(lambda: clock.now() > 110.0)
    assert board.put_at == []
    assert ear.events[-1].reason == "told to stop"


def test_it_ends_when_another_search_is_wanted_after_the_fall_back(rules: GuardRules) -> None:
    made, clock, _, board, ear = guard(rules, refuses=1)
    made.run(lambda: False, until_wanted=lambda: True)
    assert len(board.put_at) == 1
    assert ear.events[-1].reason == "another search is wanted"
    assert clock.now() < 170.0
