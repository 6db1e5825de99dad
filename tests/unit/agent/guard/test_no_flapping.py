"""Whatever traffic, heat and failures come: the guard never flaps."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from polythrottle.measurement import Unavailable
from polythrottle.objective import LatencySlo
from polythrottle_agent.guard.machine import (
    FallBackTo,
    ReturnTo,
    Status,
    advance,
    begun,
    cool_down_s,
    switched,
)
from polythrottle_agent.guard.rules import GuardRules, RateBand
from polythrottle_agent.guard.samples import Idle, Traffic
from polythrottle_agent.guard.states import PASSES, TRANSITIONS, GuardState
from tests.unit.agent.guard.conftest import LIMIT_S, gross, latency, sample, with_rate

GOOD, LITTLE, SURE = latency(0.05), latency(0.105), latency(0.2)
HOT = ("throttled: cooling at work",)

CALM, MANY = with_rate(GOOD, 20.0), with_rate(GOOD, 80.0)
BLIND = Traffic(Unavailable("gone"))
COOL, WARM, TOO_HOT = 40.0, 84.0, 95.0


def spell(traffic: Traffic, lasts_s: list[float], temperature_c: float | None = COOL, throttling=()):
    """Traffic and health that last for some time."""
    return st.tuples(st.sampled_from(lasts_s), st.just(traffic), st.just(temperature_c), st.just(throttling))


SHORT, LONG = [2.0, 12.0, 17.0, 40.0, 90.0, 200.0], [1.0, 20.0, 45.0, 650.0, 1300.0, 2600.0, 6000.0]
_PASSING = st.one_of(
    spell(CALM, SHORT, TOO_HOT), spell(CALM, SHORT, COOL, HOT), spell(BLIND, SHORT), spell(MANY, SHORT)
)
_ANYTHING = st.one_of(
    spell(CALM, LONG, WARM, None),
    spell(LITTLE, SHORT),
    spell(SURE, SHORT),
    spell(gross(), SHORT),
    spell(Traffic(Idle()), LONG),
    spell(with_rate(GOOD, 5.0), LONG, None),
)
# Causes that come and go again are what could make it sway.
_CYCLE = st.one_of(
    st.tuples(_PASSING, spell(CALM, LONG)),
    st.tuples(_PASSING, spell(CALM, LONG)),
    st.tuples(_PASSING, _ANYTHING, spell(CALM, LONG)),
)
_SPELLS = st.lists(_CYCLE, min_size=1, max_size=10).map(lambda cycles: [s for c in cycles for s in c])


@settings(max_examples=100, deadline=None)
@given(
    spells=_SPELLS,
    ladder=st.integers(0, 3),
    refusals=st.integers(0, 3),
    cool_down=st.sampled_from([10.0, 600.0]),
)
def test_it_never_flaps(spells, ladder: int, refusals: int, cool_down: float) -> None:
    rules = GuardRules(
        LatencySlo("p99", limit_s=LIMIT_S),
        max_temperature_c=85.0,
        cool_down_s=cool_down,
        rate_band=RateBand(10.0, 30.0),
    )
    play = Watched(rules, ladder, refusals)
    for for_s, traffic, temperature, throttling in spells:
        play.spell(for_s, traffic, temperature, throttling)
    switches = play.switches
    returns = [at for at, rung in switches if rung == 0]
    # A day may forget earlier returns; nothing here lasts so long but all spells together.
    days = 1 + int(play.now_s // 86400)
    assert len(returns) <= rules.max_returns * days
    assert len(switches) <= (rules.max_returns * days + 1) * max(ladder, 1) + len(returns)
    fell_back_s = 0.0
    rung_before = 0
    n_returns = 0
    for at_s, rung in switches:
        if rung == 0:
            # Back only after the cool-down, which doubles.
            assert at_s - fell_back_s >= cool_down * 2 ** min(n_returns, rules.max_returns - 1) or days > 1
            n_returns += 1
        else:
            # Only ever one rung up, and never two at once.
            assert rung == rung_before + 1
            assert rung <= ladder
            fell_back_s = at_s
        rung_before = rung
    times = [at for at, _ in switches]
    assert all(b - a >= rules.settle_s for a, b in pairwise(times))


class Watched:
    """Plays spells and notes what was in force when; every state and every move is checked."""

    def __init__(self, rules: GuardRules, ladder: int, refusals: int) -> None:
        self.rules = rules
        self.status: Status = begun(0.0, ladder)
        self.now_s = 0.0
        self.refusals = refusals
        self.switches: list[tuple[float, int]] = []

    def spell(self, for_s: float, traffic: Traffic, temperature, throttling) -> None:
        steps = min(200, max(1, int(for_s)))
        for _ in range(steps):
            self.now_s += for_s / steps
            before = self.status
            step = advance(before, sample(self.now_s, traffic, temperature, throttling), self.rules)
            self.check(before, step.status)
            self.status = step.status
            self.act(step.actions)

    def act(self, actions) -> None:
        for action in actions:
            if not isinstance(action, (FallBackTo, ReturnTo)):
                continue
            # A configuration that missed the SLO does not come back.
            assert isinstance(action, FallBackTo) or action.cause in PASSES
            problem, before = None, self.status
            if self.refusals:
                self.refusals, problem = self.refusals - 1, "no"
            step = switched(self.status, self.now_s, problem, self.rules)
            self.check(before, step.status)
            self.status = step.status
            if problem is None:
                self.switches.append((self.now_s, self.status.rung))
            self.act(step.actions)

    def check(self, before: Status, after: Status) -> None:
        if before.state is not after.state:
            # Some steps pass through a second state at once; each is a legal move of its own.
            reachable = TRANSITIONS[before.state] | {
                s for t in TRANSITIONS[before.state] for s in TRANSITIONS[t]
            }
            assert after.state in reachable
        assert 0 <= after.rung <= max(after.rungs, 0)
        assert (after.rung == 0) == (
            after.state in (GuardState.WATCHING, GuardState.SUSPICIOUS)
        ) or after.state in (GuardState.FALLING_BACK, GuardState.RETURNING)
        assert cool_down_s(after, self.rules) >= self.rules.cool_down_s
