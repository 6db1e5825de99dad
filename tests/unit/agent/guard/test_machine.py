"""The guard's state machine: what it does about each cause, and that it never flaps."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from polythrottle.errors import InvalidInputError
from polythrottle.measurement import Unavailable
from polythrottle.objective import LatencySlo
from polythrottle_agent.guard.machine import (
    AskForSearch,
    FallBackTo,
    NothingSafer,
    ReturnTo,
    advance,
    begun,
    stopped,
    switched,
)
from polythrottle_agent.guard.rules import GuardRules, RateBand
from polythrottle_agent.guard.samples import Idle, Sample, Traffic
from polythrottle_agent.guard.states import TRANSITIONS, Cause, GuardState, IllegalMoveError
from tests.unit.agent.guard.conftest import LIMIT_S, gross, latency, sample, with_group, with_rate

GOOD, LITTLE, SURE = latency(0.05), latency(0.105), latency(0.2)
RULES = GuardRules(LatencySlo("p99", limit_s=LIMIT_S))
HOT = ("throttled: cooling at work",)


class Play:
    """Feeds samples twice a second and does what the machine asks for."""

    def __init__(self, rules: GuardRules, ladder: int = 2) -> None:
        self.rules = rules
        self.status = begun(0.0, ladder)
        self.actions: list = []
        self.now_s = 0.0
        self.refuses = 0

    def feed(self, for_s: float, traffic: Traffic = GOOD, **health) -> list:
        """What was asked for meanwhile."""
        before = len(self.actions)
        ends_s = self.now_s + for_s
        while self.now_s < ends_s:
            self.now_s += 0.5
            self.take(sample(self.now_s, traffic, **health))
        return self.actions[before:]

    def take(self, one: Sample) -> None:
        step = advance(self.status, one, self.rules)
        self.status = step.status
        self.act(step.actions)

    def act(self, actions) -> None:
        for action in actions:
            self.actions.append(action)
            if isinstance(action, (FallBackTo, ReturnTo)):
                problem = None
                if self.refuses:
                    self.refuses, problem = self.refuses - 1, "the helper is gone"
                step = switched(self.status, self.now_s, problem, self.rules)
                self.status = step.status
                self.act(step.actions)

    @property
    def state(self) -> GuardState:
        return self.status.state


@pytest.fixture
def play(rules: GuardRules) -> Play:
    return Play(rules)


def kinds(actions) -> list:
    return [type(action) for action in actions]


def test_while_nothing_is_wrong_nothing_is_done(play: Play) -> None:
    assert play.feed(3600) == []
    assert play.state is GuardState.WATCHING


@pytest.mark.parametrize(
    ("traffic", "within_s"), [(gross(), 10.0), (SURE, 10.0), (LITTLE, 130.0)], ids=["gross", "sure", "little"]
)
def test_a_missed_slo_falls_back_and_asks_for_another_search(
    play: Play, traffic: Traffic, within_s: float
) -> None:
    play.feed(60)
    actions = play.feed(within_s, traffic)
    assert kinds(actions) == [FallBackTo, AskForSearch]
    assert actions[0].rung == 1
    assert actions[0].cause is actions[1].cause is Cause.LATENCY
    assert play.state is GuardState.COOLING_DOWN


def test_what_is_missed_by_a_little_only_makes_it_suspicious_for_a_while(play: Play) -> None:
    play.feed(60)
    assert play.feed(100, LITTLE) == []
    assert play.state is GuardState.SUSPICIOUS
    play.feed(10)
    assert play.state is GuardState.SUSPICIOUS  # calm has to last
    play.feed(40)
    assert play.state is GuardState.WATCHING


def test_one_bad_moment_is_no_breach(play: Play) -> None:
    play.feed(60)
    assert play.feed(2.0, gross()) == []
    assert play.feed(60) == []
    assert play.state is GuardState.WATCHING


def test_a_window_that_is_over_while_the_last_moments_are_not_is_no_breach(play: Play) -> None:
    """What made it miss is over: going back now would help nobody."""
    play.feed(60)
    past = Traffic(SURE.latency, GOOD.recent)
    assert play.feed(60, past) == []
    assert play.state is GuardState.SUSPICIOUS


def test_after_a_switch_nothing_is_judged_until_queues_have_drained(play: Play) -> None:
    play.feed(60)
    play.feed(10, SURE)
    assert play.state is GuardState.COOLING_DOWN
    at_s = play.status.switched_s
    play.feed(play.rules.settle_s - (play.now_s - at_s), gross())
    assert play.status.rung == 1


def test_where_the_last_known_good_misses_it_too_the_next_one_comes_and_then_nothing(play: Play) -> None:
    play.feed(60)
    actions = play.feed(120, SURE)
    assert [a.rung for a in actions if isinstance(a, FallBackTo)] == [1, 2]
    assert kinds(actions).count(NothingSafer) == 1
    assert play.status.rung == 2


def test_a_guard_without_a_ladder_says_so_and_asks(rules: GuardRules) -> None:
    play = Play(rules, ladder=0)
    play.feed(60)
    assert kinds(play.feed(60, SURE)) == [NothingSafer, AskForSearch]


def test_a_fall_back_that_cannot_be_written_is_tried_again(play: Play) -> None:
    play.feed(60)
    play.refuses = 3
    actions = play.feed(9, SURE)
    assert kinds(actions).count(FallBackTo) == 4
    assert kinds(actions).count(AskForSearch) == 1
    assert play.state is GuardState.COOLING_DOWN


@pytest.mark.parametrize(
    ("health", "cause"),
    [({"temperature_c": 90.0}, Cause.TEMPERATURE), ({"throttling": HOT}, Cause.THROTTLING)],
)
def test_heat_falls_back_once_and_comes_back_when_it_has_passed(play: Play, health, cause: Cause) -> None:
    play.feed(60)
    assert play.feed(9, **health) == []
    assert play.state is GuardState.SUSPICIOUS
    actions = play.feed(1200, **health)
    assert kinds(actions) == [FallBackTo, AskForSearch]  # another clock cools no board: no further rung
    assert actions[0].cause is cause
    assert play.state is GuardState.FALLEN_BACK
    back = play.feed(60)
    assert kinds(back) == [ReturnTo]
    assert play.state is GuardState.WATCHING
    assert play.status.rung == 0


def test_just_below_the_limit_is_not_cool_yet(play: Play) -> None:
    play.feed(60)
    play.feed(20, temperature_c=90.0)
    assert play.feed(3000, temperature_c=83.0) == []
    assert kinds(play.feed(60, temperature_c=79.0)) == [ReturnTo]


def test_nobody_looking_is_no_proof_that_nothing_throttles(play: Play) -> None:
    play.feed(60)
    play.feed(20, throttling=HOT)
    assert play.feed(3000, throttling=None) == []


def test_a_configuration_that_missed_the_slo_does_not_come_back(play: Play) -> None:
    play.feed(60)
    play.feed(10, SURE)
    assert play.feed(7 * 86400 / 100) == []
    assert play.state is GuardState.FALLEN_BACK


def test_each_return_doubles_the_cool_down_and_there_are_not_many(play: Play) -> None:
    times = []
    for _ in range(6):
        play.feed(20, temperature_c=90.0)
        began_s = play.now_s
        back = play.feed(6000)
        if back:
            times.append(play.status.switched_s - began_s)
    assert len(times) == play.rules.max_returns
    assert times[0] >= 590
    assert all(b >= 1.9 * a for a, b in pairwise(times))
    assert play.state is GuardState.FALLEN_BACK


def test_a_return_that_fails_falls_back(play: Play) -> None:
    play.feed(60)
    play.feed(20, temperature_c=90.0)
    play.feed(590)
    play.refuses = 1
    actions = play.feed(100)
    assert kinds(actions) == [ReturnTo, FallBackTo]  # the request of before still stands
    assert play.status.rung == 1


def test_a_guard_that_cannot_see_falls_back_and_returns_when_it_can(play: Play) -> None:
    play.feed(60)
    blind = Traffic(Unavailable("the page is gone"))
    actions = play.feed(65, blind)
    assert actions[0].cause is Cause.BLIND
    assert "the page is gone" in actions[0].sentence
    assert play.feed(3000, blind) == []
    assert kinds(play.feed(60)) == [ReturnTo]


def test_no_queries_are_no_breach(play: Play) -> None:
    play.feed(60)
    assert play.feed(86400 / 10, Traffic(Idle())) == []


def test_the_rate_of_the_first_minute_is_learned_and_too_many_queries_fall_back(play: Play) -> None:
    play.feed(120, with_rate(GOOD, 20.0))
    assert play.status.learned == RateBand(10.0, 30.0)
    assert play.feed(600, with_rate(GOOD, 29.0)) == []
    actions = play.feed(70, with_rate(GOOD, 40.0))
    assert kinds(actions) == [FallBackTo, AskForSearch]
    assert actions[0].cause is Cause.RATE_ABOVE
    assert play.feed(1200, with_rate(GOOD, 29.0)) == []  # within the band, but not by a margin
    assert kinds(play.feed(120, with_rate(GOOD, 20.0))) == [ReturnTo]


def test_too_few_queries_only_ask_for_another_search_and_not_again_within_an_hour(play: Play) -> None:
    play.feed(120, with_rate(GOOD, 20.0))
    actions = play.feed(3600, with_rate(GOOD, 2.0))
    assert kinds(actions) == [AskForSearch]
    assert actions[0].cause is Cause.RATE_BELOW
    assert play.status.rung == 0
    assert kinds(play.feed(1200, with_rate(GOOD, 2.0))) == [AskForSearch]


def test_a_rate_that_is_hardly_known_is_not_judged(rules: GuardRules) -> None:
    play = Play(replace(rules, rate_band=RateBand(10.0, 30.0)))
    assert play.feed(600, with_rate(GOOD, 33.0, error=2.0)) == []


def test_another_latency_at_the_same_configuration_asks_for_another_search(play: Play) -> None:
    def stretch(n: int, median_s: float) -> list:
        found = []
        for _ in range(n):
            play.feed(29.5)
            play.now_s += 0.5
            before = len(play.actions)
            play.take(sample(play.now_s, with_group(GOOD, play.now_s, median_s)))
            found += play.actions[before:]
        return found

    assert stretch(60, 0.020) == []
    (ask,) = stretch(60, 0.026)
    assert isinstance(ask, AskForSearch)
    assert ask.cause is Cause.LATENCY_SHIFT
    assert "30% slower" in ask.sentence
    assert play.status.rung == 0


def test_a_stopped_guard_does_nothing_more(play: Play) -> None:
    play.status = stopped(play.status, 0.0)
    assert play.feed(60, SURE) == []
    assert stopped(play.status, 1.0) == play.status


def test_no_move_leaves_the_table() -> None:
    assert set(TRANSITIONS) == set(GuardState)
    status = begun(0.0, 1)
    for to in set(GuardState) - TRANSITIONS[GuardState.WATCHING]:
        with pytest.raises(IllegalMoveError):
            status.moved(to, 1.0)
    with pytest.raises(IllegalMoveError):
        switched(status, 1.0, None, RULES)


@pytest.mark.parametrize(
    ("slo", "word"),
    [(LatencySlo("p99", factor=1.2), "as a time"), (LatencySlo("recorded", limit_s=1), "live")],
)
def test_an_slo_that_cannot_be_watched_is_refused(slo: LatencySlo, word: str) -> None:
    with pytest.raises(InvalidInputError, match=word):
        GuardRules(slo)


@pytest.mark.parametrize(("low", "high"), [(2.0, 1.0), (-1.0, 1.0), (1.0, 1.0), (float("inf"), 2.0)])
def test_a_band_must_rise(low: float, high: float) -> None:
    with pytest.raises(InvalidInputError, match="must rise"):
        RateBand(low, high)
