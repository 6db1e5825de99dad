"""The guard's state machine: from a status and a sample to the next status and what to do. Pure.

The ladder is what can be in force: rung 0 is the guarded configuration, each further one is safer. A breach
leads one rung up, never down; only a cause that has passed leads back to rung 0, after the cool-down, and
each time the cool-down doubles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from polythrottle.objective import format_latency
from polythrottle_agent.guard.changes import ShiftTest
from polythrottle_agent.guard.judging import Finding, findings, has_passed
from polythrottle_agent.guard.rules import GuardRules, RateBand
from polythrottle_agent.guard.samples import Idle, Sample
from polythrottle_agent.guard.states import (
    FALLS_BACK,
    GOES_FURTHER,
    PASSES,
    TRANSITIONS,
    Cause,
    GuardState,
    IllegalMoveError,
)

RETRY_S = 0.5
"""Between two tries to write the last known good configuration."""
QUIET_DAY_S = 86400.0
"""After so long without a breach the returns before are forgotten."""
LEARNS_RATE_S = 60.0
LEARNS_RATE_QUERIES = 100


@dataclass(frozen=True)
class FallBackTo:
    """Put this rung of the ladder in force, now."""

    rung: int
    cause: Cause
    sentence: str


@dataclass(frozen=True)
class ReturnTo:
    """Put the guarded configuration in force again."""

    cause: Cause
    sentence: str


@dataclass(frozen=True)
class AskForSearch:
    """The workload or the device is another than the configuration was chosen for: search again."""

    cause: Cause
    sentence: str


@dataclass(frozen=True)
class NothingSafer:
    """The last rung of the ladder breaches as well. Said once."""

    cause: Cause
    sentence: str


Action = FallBackTo | ReturnTo | AskForSearch | NothingSafer


@dataclass(frozen=True)
class Status:
    """All that a guard remembers. Times are those of its clock.

    since_s: of the state; switched_s: when another rung was last in force, or the guard began.
    over_since: since when each finding has held without a gap. calm_since_s: since when the cause is gone.
    returns: how often it came back to the guarded configuration; forgotten after a quiet day.
    asked: when each cause last asked for a search. learned: the band by the rate of the first minute.
    """

    state: GuardState
    since_s: float
    switched_s: float
    rungs: int
    rung: int = 0
    cause: Cause | None = None
    sentence: str = ""
    returns: int = 0
    tried_s: float | None = None
    over_since: Mapping[tuple[Cause, str], float] = field(default_factory=dict)
    calm_since_s: float | None = None
    asked: Mapping[Cause, float] = field(default_factory=dict)
    learned: RateBand | None = None
    shift: ShiftTest = field(default_factory=ShiftTest)
    is_helpless: bool = False

    def moved(self, to: GuardState, at_s: float, **changes: object) -> Status:
        """
        Raises:
            IllegalMoveError: the move is not in `TRANSITIONS`.
        """
        if to not in TRANSITIONS[self.state]:
            raise IllegalMoveError(f"a guard cannot go from {self.state.value} to {to.value}")
        return replace(self, state=to, since_s=at_s, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Step:
    status: Status
    actions: tuple[Action, ...] = ()


def begun(at_s: float, ladder: int) -> Status:
    """A guard that begins to watch, with so many rungs above the guarded configuration."""
    return Status(GuardState.WATCHING, at_s, at_s, ladder)


def advance(status: Status, sample: Sample, rules: GuardRules) -> Step:
    """What the next sample leads to. After `FallBackTo` and `ReturnTo` call `switched`."""
    now_s = sample.at_s
    if status.state is GuardState.STOPPED:
        return Step(status)
    if status.state is GuardState.FALLING_BACK:
        return _try_again(status, now_s)
    status = _learned(status, sample, rules)
    band = band_of(status, rules)
    found = findings(sample, rules, band) if now_s - status.switched_s >= rules.settle_s else ()
    status = replace(status, over_since=_lasting(status, found, now_s))
    breach = _breach(status, found, now_s)
    if status.rung == 0:
        return _watched(status, sample, rules, found, breach)
    return _fallen(status, sample, rules, breach)


def switched(status: Status, at_s: float, problem: str | None, rules: GuardRules) -> Step:
    """The configuration that an action asked for is in force; or is not, and why."""
    if status.state is GuardState.RETURNING:
        if problem is None:
            return Step(_in_force(status.moved(GuardState.WATCHING, at_s, cause=None), at_s, 0))
        again = f"the configuration could not be put back in force: {problem}"
        # Half of it may have been written: nothing is known good but the ladder.
        return _fall_back(status, status.cause or Cause.LATENCY, again, 1, rules, at_s)
    if status.state is not GuardState.FALLING_BACK:
        raise IllegalMoveError(f"a guard that is {status.state.value} switches nothing")
    if problem is not None:
        return Step(replace(status, tried_s=at_s))
    return Step(_in_force(status.moved(GuardState.COOLING_DOWN, at_s), at_s, status.rung))


def stopped(status: Status, at_s: float) -> Status:
    return status if status.state is GuardState.STOPPED else status.moved(GuardState.STOPPED, at_s)


def band_of(status: Status, rules: GuardRules) -> RateBand | None:
    """The band in queries per second; None while it is not known, or where there is none."""
    band = rules.rate_band
    return band if band is None or not band.relative else status.learned


def cool_down_s(status: Status, rules: GuardRules) -> float:
    return float(rules.cool_down_s * 2**status.returns)


# Watching the guarded configuration


def _watched(
    status: Status, sample: Sample, rules: GuardRules, found: tuple[Finding, ...], breach: Finding | None
) -> Step:
    now_s = sample.at_s
    if breach is not None and breach.cause in FALLS_BACK:
        if status.rungs > 0:
            return _fall_back(status, breach.cause, breach.sentence, 1, rules, now_s)
        return _helpless(status, breach, rules, now_s)
    if now_s - status.switched_s >= QUIET_DAY_S:
        status = replace(status, returns=0)
    status, asks = _asked_for(status, sample, rules, breach, found)
    danger = [f for f in found if f.cause in FALLS_BACK]
    if danger and status.state is GuardState.WATCHING:
        status = status.moved(GuardState.SUSPICIOUS, now_s)
    elif not danger and status.state is GuardState.SUSPICIOUS:
        calm_s = status.calm_since_s
        if calm_s is None:
            status = replace(status, calm_since_s=now_s)
        elif now_s - calm_s >= rules.window_s:
            # As long as the window: what made it suspicious has left it.
            status = status.moved(GuardState.WATCHING, now_s)
    if danger or status.state is GuardState.WATCHING:
        status = replace(status, calm_since_s=None)
    return Step(status, asks)


def _asked_for(
    status: Status,
    sample: Sample,
    rules: GuardRules,
    breach: Finding | None,
    found: tuple[Finding, ...],
) -> tuple[Status, tuple[Action, ...]]:
    """What is no danger to the SLO but calls for another search."""
    if breach is not None:
        return _ask(status, breach.cause, breach.sentence, rules, sample.at_s)
    if any(f.cause in (Cause.RATE_ABOVE, Cause.RATE_BELOW) for f in found):
        return status, ()  # under another load, another latency is no wonder
    actions: tuple[Action, ...] = ()
    for group in sample.traffic.groups:
        shift, change = status.shift.add(group.median_s)
        status = replace(status, shift=shift)
        if change is not None:
            word = "slower" if change.ratio > 1 else "faster"
            text = (
                f"the same configuration has become {abs(change.ratio - 1):.0%} {word}: the median is now "
                f"{format_latency(group.median_s)}"
            )
            status, more = _ask(status, Cause.LATENCY_SHIFT, text, rules, sample.at_s)
            actions += more
    return status, actions


def _ask(
    status: Status, cause: Cause, sentence: str, rules: GuardRules, now_s: float
) -> tuple[Status, tuple[Action, ...]]:
    last_s = status.asked.get(cause)
    if last_s is not None and now_s - last_s < rules.ask_every_s:
        return status, ()
    return replace(status, asked={**status.asked, cause: now_s}), (AskForSearch(cause, sentence),)


# Falling back


def _fall_back(
    status: Status, cause: Cause, sentence: str, rung: int, rules: GuardRules, now_s: float
) -> Step:
    status = status.moved(
        GuardState.FALLING_BACK,
        now_s,
        rung=rung,
        cause=cause,
        sentence=sentence,
        tried_s=now_s,
        calm_since_s=None,
    )
    status, asks = _ask(status, cause, sentence, rules, now_s)
    return Step(status, (FallBackTo(rung, cause, sentence), *asks))


def _try_again(status: Status, now_s: float) -> Step:
    if status.tried_s is not None and now_s - status.tried_s < RETRY_S:
        return Step(status)
    assert status.cause is not None
    again = FallBackTo(status.rung, status.cause, status.sentence)
    return Step(replace(status, tried_s=now_s), (again,))


def _fallen(status: Status, sample: Sample, rules: GuardRules, breach: Finding | None) -> Step:
    """Something safer is in force: is even that not enough, is the cool-down over, has the cause passed?"""
    now_s = sample.at_s
    if breach is not None and breach.cause in GOES_FURTHER:
        if status.rung < status.rungs:
            return _fall_back(status, breach.cause, breach.sentence, status.rung + 1, rules, now_s)
        return _helpless(status, breach, rules, now_s)
    if status.state is GuardState.COOLING_DOWN:
        if now_s - status.switched_s < cool_down_s(status, rules):
            return Step(status)
        status = status.moved(GuardState.FALLEN_BACK, now_s, calm_since_s=None)
    cause = status.cause
    if cause not in PASSES or status.returns >= rules.max_returns:
        return Step(status)
    if not has_passed(cause, sample, rules, band_of(status, rules)):
        return Step(replace(status, calm_since_s=None))
    if status.calm_since_s is None:
        return Step(replace(status, calm_since_s=now_s))
    if now_s - status.calm_since_s < rules.window_s:
        return Step(status)
    text = f"{cause.value.replace('_', ' ')} has passed"
    status = status.moved(GuardState.RETURNING, now_s, returns=status.returns + 1)
    return Step(status, (ReturnTo(cause, text),))


def _helpless(status: Status, breach: Finding, rules: GuardRules, now_s: float) -> Step:
    if status.is_helpless:
        status, actions = _ask(status, breach.cause, breach.sentence, rules, now_s)
        return Step(status, actions)
    status = replace(status, is_helpless=True)
    status, asks = _ask(status, breach.cause, breach.sentence, rules, now_s)
    return Step(status, (NothingSafer(breach.cause, breach.sentence), *asks))


# Parts


def _in_force(status: Status, at_s: float, rung: int) -> Status:
    """Another configuration: nothing that was seen before counts."""
    return replace(
        status,
        rung=rung,
        switched_s=at_s,
        over_since={},
        calm_since_s=None,
        shift=ShiftTest(),
        is_helpless=False,
        tried_s=None,
    )


def _lasting(status: Status, found: tuple[Finding, ...], now_s: float) -> Mapping[tuple[Cause, str], float]:
    before = status.over_since
    lasting = {(f.cause, f.kind): before.get((f.cause, f.kind), now_s) for f in found}
    if (Cause.LATENCY, "surely") in lasting:
        # What is surely missed is missed by a little, too.
        little = (Cause.LATENCY, "by a little")
        lasting[little] = before.get(little, now_s)
    return lasting


def _breach(status: Status, found: tuple[Finding, ...], now_s: float) -> Finding | None:
    """The gravest finding that has lasted long enough."""
    due = [f for f in found if now_s - status.over_since[f.cause, f.kind] >= f.patience_s]
    order = [*FALLS_BACK, Cause.RATE_BELOW]
    return min(due, key=lambda f: order.index(f.cause), default=None)


def _learned(status: Status, sample: Sample, rules: GuardRules) -> Status:
    """A relative band becomes one in queries per second once the first minute is over."""
    rate, band = sample.traffic.rate, rules.rate_band
    if band is None or not band.relative or status.learned is not None or rate is None or status.rung != 0:
        return status
    if isinstance(sample.traffic.latency, Idle) or sample.at_s - status.switched_s < LEARNS_RATE_S:
        return status
    if rate.per_s * rules.window_s < LEARNS_RATE_QUERIES and rate.error_per_s > 0.1 * rate.per_s:
        return status
    return replace(status, learned=RateBand(band.low * rate.per_s, band.high * rate.per_s))
