"""Runs a guard: looks, decides, acts, tells. Falling back comes before everything else, telling included."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from polythrottle.clock import Clock
from polythrottle.configuration import Level
from polythrottle.errors import PolythrottleError
from polythrottle.measurement import Unavailable
from polythrottle_agent.guard.events import GuardEvent, Kind, Listener, now_utc
from polythrottle_agent.guard.falling_back import NotSwitched, Settings, Switch
from polythrottle_agent.guard.health import HealthSource
from polythrottle_agent.guard.machine import (
    AskForSearch,
    FallBackTo,
    NothingSafer,
    ReturnTo,
    Status,
    advance,
    begun,
    stopped,
    switched,
)
from polythrottle_agent.guard.rules import GuardRules
from polythrottle_agent.guard.samples import LatencyView, Sample
from polythrottle_agent.guard.sources import LatencySource
from polythrottle_agent.guard.states import Cause

log = logging.getLogger(__name__)

PERIOD_S = 0.2
"""Between two looks. A look costs about a millisecond."""


@dataclass(frozen=True)
class Ladder:
    """What may be in force: the guarded configuration, then ever safer ones; None is the device as found."""

    guarded: Settings
    known_good: tuple[Settings, ...]

    def __getitem__(self, rung: int) -> Settings:
        return self.guarded if rung == 0 else self.known_good[rung - 1]


@dataclass(frozen=True)
class Wanted:
    """Another search is wanted."""

    cause: Cause
    reason: str
    has_fallen_back: bool


class Guard:
    """One device, one workload. When it ends it leaves in force what is in force."""

    def __init__(
        self,
        ladder: Ladder,
        rules: GuardRules,
        source: LatencySource,
        health: HealthSource,
        switch: Switch,
        clock: Clock,
        *,
        device: str,
        study: str | None = None,
        listeners: Sequence[Listener] = (),
    ) -> None:
        self._ladder = ladder
        self._rules = rules
        self._source = source
        self._health = health
        self._switch = switch
        self._clock = clock
        self._device = device
        self._study = study
        self._listeners = tuple(listeners)
        self.status: Status = begun(clock.now(), len(ladder.known_good))
        self._forget_at_s: float | None = None
        self.wanted: Wanted | None = None
        """The last request for another search."""

    def run(
        self,
        should_stop: Callable[[], bool],
        *,
        for_s: float | None = None,
        until_wanted: Callable[[], bool] = lambda: False,
    ) -> Status:
        """Watch until told to stop, or for a time.

        Args:
            until_wanted: whether to end as well once another search is wanted, after the fall back that
                goes with it.
        """
        self.status = begun(self._clock.now(), len(self._ladder.known_good))
        ends_s = math.inf if for_s is None else self._clock.now() + for_s
        why = "its time is up"
        self._source.start()
        self._health.start()
        self._tell(Kind.STARTED, "watching", settings=self._ladder.guarded or {})
        try:
            while self._clock.now() < ends_s:
                self._look()
                if should_stop():
                    why = "told to stop"
                    break
                if self.wanted is not None and until_wanted() and self._is_settled():
                    why = "another search is wanted"
                    break
                if not self._source.passes_time:
                    self._clock.sleep(PERIOD_S)
        finally:
            self.status = stopped(self.status, self._clock.now())
            self._source.stop()
            self._health.stop()
            self._tell(Kind.STOPPED, why)
        return self.status

    def _is_settled(self) -> bool:
        return self.status.tried_s is None

    def _look(self) -> None:
        if self._forget_at_s is not None and self._clock.now() >= self._forget_at_s:
            # What was queued under the configuration before has drained; it says nothing of this one.
            self._forget_at_s = None
            self._source.forget()
        traffic = self._source.look()
        sample = Sample(self._clock.now(), traffic, self._health.look())
        before = self.status
        step = advance(before, sample, self._rules)
        self.status = step.status
        told: list[Callable[[], None]] = []
        for action in step.actions:
            if isinstance(action, (FallBackTo, ReturnTo)):
                told.append(self._act(action, sample))
        # The rest may wait for a disk; clocks may not.
        for tell in told:
            tell()
        for action in step.actions:
            if isinstance(action, AskForSearch):
                self.wanted = Wanted(action.cause, action.sentence, self.status.rung > 0)
                self._tell(Kind.SEARCH_WANTED, action.sentence, action.cause, evidence=evidence_of(sample))
            elif isinstance(action, NothingSafer):
                text = f"{action.sentence}; nothing safer is known"
                self._tell(Kind.NOTHING_SAFER, text, action.cause, evidence=evidence_of(sample))
        if not step.actions and self.status.state is not before.state:
            self._tell(Kind.STATE, self._why(), evidence=evidence_of(sample))

    def _act(self, action: FallBackTo | ReturnTo, sample: Sample) -> Callable[[], None]:
        """Switch, and then say so: what is returned tells of it."""
        rung = action.rung if isinstance(action, FallBackTo) else 0
        settings = self._ladder[rung]
        problem: str | None = None
        try:
            self._switch.put(settings, f"guard: {action.sentence}")
        except NotSwitched as error:
            problem = str(error)
        now_s = self._clock.now()
        took_s = now_s - sample.at_s
        if problem is None:
            self._source.forget()
            self._forget_at_s = now_s + self._rules.settle_s
        step = switched(self.status, now_s, problem, self._rules)
        self.status = step.status
        # A return that failed leads to a fall back, at once.
        then = [self._act(a, sample) for a in step.actions if isinstance(a, FallBackTo)]
        kind = Kind.FELL_BACK if isinstance(action, FallBackTo) else Kind.RETURNED

        def tell() -> None:
            if problem is None:
                self._tell(
                    kind,
                    action.sentence,
                    action.cause,
                    settings=settings or {},
                    detected_s=sample.at_s,
                    took_s=took_s,
                    evidence=evidence_of(sample),
                )
            else:
                self._tell(Kind.NOT_SWITCHED, problem, action.cause, detected_s=sample.at_s, took_s=took_s)
            for one in then:
                one()

        return tell

    def _why(self) -> str:
        causes = ", ".join(dict.fromkeys(cause.value for cause, _ in self.status.over_since))
        return causes or "nothing is over its limit"

    def _tell(
        self,
        kind: Kind,
        reason: str,
        cause: Cause | None = None,
        *,
        settings: Mapping[str, Level] | None = None,
        detected_s: float | None = None,
        took_s: float | None = None,
        evidence: Mapping[str, float | str] | None = None,
    ) -> None:
        event = GuardEvent(
            at=now_utc(),
            event=kind,
            state=self.status.state.value,
            device=self._device,
            cause=None if cause is None else cause.value,
            reason=reason,
            study=self._study,
            settings=settings,
            detected_s=detected_s,
            took_s=took_s,
            evidence=evidence or {},
        )
        for listener in self._listeners:
            try:
                listener.told(event)
            except (PolythrottleError, OSError) as error:
                # A full disk must not end the watch over live traffic.
                log.error("%s", error)


def evidence_of(sample: Sample) -> Mapping[str, float | str]:
    """What a sample showed, for people: finite numbers, and words where there is none."""
    traffic, health = sample.traffic, sample.health
    found: dict[str, float | str] = {}
    view = traffic.latency
    if isinstance(view, LatencyView):
        found["latency_s"] = _finite(view.value_s)
        found["latency_lower_s"] = _finite(view.lower_s)
        found["latency_upper_s"] = _finite(view.upper_s)
        found["n_queries"] = view.n_queries
    elif isinstance(view, Unavailable):
        found["latency"] = view.reason
    else:
        found["latency"] = "no query"
    if traffic.rate is not None:
        found["rate_per_s"] = traffic.rate.per_s
    if not isinstance(health.temperature_c, Unavailable):
        found["temperature_c"] = health.temperature_c
    if health.throttling:
        found["throttling"] = "; ".join(health.throttling)
    return found


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else "infinite"
