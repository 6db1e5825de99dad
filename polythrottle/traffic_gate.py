"""Keeps the rules of live traffic between trials: waits through quiet hours and for the violation budget.

The study's protocol is pure and knows no time of day; this stands before each trial, with clocks injected.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from polythrottle.clock import Clock, WallClock
from polythrottle.study import Study
from polythrottle.traffic import LiveTraffic
from polythrottle.trial import Purpose, Trial, TrialState

VIOLATIONS = (TrialState.ABORTED, TrialState.INFEASIBLE)
"""States of a trial that missed the SLO."""
USUAL_TRIAL_S = 150.0
"""How long a trial takes, before there was one."""
STEP_S = 1.0
HOUR = timedelta(hours=1)


def is_violation(trial: Trial) -> bool:
    """Whether live traffic missed the SLO because of a configuration that the study chose."""
    return trial.purpose in (Purpose.SEARCH, Purpose.CONFIRM) and trial.state in VIOLATIONS


@dataclass(frozen=True)
class Pause:
    """No trial may begin now. `until` is None where waiting would not help."""

    reason: str
    until: datetime | None


class TrafficGate:
    """Asked before each trial, told after each.

    Args:
        wall: the local time of day. clock: what is waited on; both of the device's time.
        put_back: puts the device back as it was found, at once after a violation and before a wait.
        tell: hears why it waits, once a wait.
        past: when earlier runs of the study missed the SLO.
    """

    def __init__(
        self,
        rules: LiveTraffic,
        clock: Clock,
        wall: WallClock,
        put_back: Callable[[], None],
        tell: Callable[[str], None],
        should_stop: Callable[[], bool],
        past: Iterable[datetime] = (),
    ) -> None:
        self._rules = rules
        self._clock = clock
        self._wall = wall
        self._put_back = put_back
        self._tell = tell
        self._should_stop = should_stop
        self._violations = deque(sorted(past))

    def before_trial(self, study: Study) -> str | None:
        """Wait until a trial may begin, or until told to stop. Why the study has to stop; None: go on."""
        told = False
        while True:
            pause = self.pause(study)
            if pause is None or self._should_stop():
                return None
            if not told:
                self._put_back()
            if pause.until is None or not self._rules.waits:
                return pause.reason
            if not told:
                self._tell(f"{pause.reason}; waiting until {pause.until:%H:%M}")
                told = True
            left_s = (pause.until - self._wall.now()).total_seconds()
            self._clock.sleep(min(max(left_s, 0.0), STEP_S))

    def after_trial(self, trial: Trial) -> None:
        """Whoever is served must not wait for the optimiser: after a violation the device goes back first."""
        if is_violation(trial):
            self._put_back()
            self._violations.append(self._wall.now())

    def pause(self, study: Study) -> Pause | None:
        """Why no trial of this study may begin now."""
        return self._quiet(study) or self._budget()

    def _quiet(self, study: Study) -> Pause | None:
        hours = self._rules.quiet_hours
        if hours is None:
            return None
        longest_s = max((t.cost_s for t in study.trials), default=0.0) or USUAL_TRIAL_S
        now = self._wall.now()
        ends = hours.ends_after(now, longest_s)
        if ends is None:
            return None
        verb = "these are" if hours.ends_after(now) is not None else "a trial would reach into"
        return Pause(f"{verb} the quiet hours {hours}", ends)

    def _budget(self) -> Pause | None:
        per_hour = self._rules.violations_per_hour
        if per_hour is None:
            return None
        count = max(math.floor(per_hour), 1)
        window = HOUR if per_hour >= 1 else (HOUR / per_hour if per_hour > 0 else None)
        now = self._wall.now()
        while window is not None and self._violations and self._violations[0] <= now - window:
            self._violations.popleft()
        if len(self._violations) < count:
            return None
        trials = "one trial" if count == 1 else f"{count} trials"
        if window is None:
            return Pause("a trial missed the SLO, and none may", None)
        hours = window / HOUR
        span = "the last hour" if hours == 1 else f"the last {hours:.3g} hours"
        oldest = self._violations[-count]
        return Pause(f"{trials} missed the SLO in {span}, as many as may", oldest + window)
