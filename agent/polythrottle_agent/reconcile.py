"""Compares what holds with what should, says who moved it, and decides: write it again, or yield.

Two programs that both insist would fight for ever, so ours gives up after a few tries.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from polythrottle.clock import Clock
from polythrottle.configuration import UNITS, Level, format_level
from polythrottle_agent.ports import Control, ControlError

INTERVAL_S = 5.0
REAPPLY_LIMIT = 3
REAPPLY_WINDOW_S = 600.0
TOLERANCE = 0.005
"""Clocks are kept in kHz or MHz, so that they may read back rounded."""

JETSON_CLOCKS_KNOBS = ("gpu_freq_mhz", "gpu_min_freq_mhz", "cpu_freq_mhz", "mem_freq_mhz")


class Who(str, Enum):
    """Whose doing a drift is, as far as can be told."""

    NVPMODEL = "nvpmodel"
    JETSON_CLOCKS = "jetson_clocks"
    PERSISTENCE = "persistence mode lost"
    RESET = "the driver was reset"
    OTHER = "another tool"


class Policy(str, Enum):
    """What to do about a drift."""

    REAPPLY = "reapply"
    YIELD = "yield"


DEFAULT_POLICY: Mapping[Who, Policy] = {
    # An operator chose another power mode, or max clocks: theirs is the last word.
    Who.NVPMODEL: Policy.YIELD,
    Who.JETSON_CLOCKS: Policy.YIELD,
    # Nobody chose that: the driver forgot.
    Who.PERSISTENCE: Policy.REAPPLY,
    Who.RESET: Policy.REAPPLY,
    Who.OTHER: Policy.REAPPLY,
}
ALWAYS_YIELD: Mapping[Who, Policy] = dict.fromkeys(Who, Policy.YIELD)
"""For a tuning run: its next trial writes anyway, so drift is told and nothing is done."""


@dataclass(frozen=True)
class Marks:
    """What tells who did it. Compared with the same marks when the settings were written.

    `power_mode` is nvpmodel's; `driver` changes when a GPU's driver is loaded anew; both None where there is
    none. `persistence` is None where it cannot be told. `others` are programs that run and may set clocks.
    """

    power_mode: str | None = None
    persistence: bool | None = None
    driver: str | None = None
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Drift:
    """One knob that is not where it was put. `found` is None where it cannot be read any more."""

    knob: str
    wanted: Level
    found: Level | None
    who: Who
    detail: str = ""

    def __str__(self) -> str:
        unit = UNITS.get(self.knob, "")
        found = "unreadable" if self.found is None else f"{format_level(self.found)} {unit}".rstrip()
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.knob} is {found}, not {format_level(self.wanted)}: {self.who.value}{detail}"


@dataclass(frozen=True)
class Finding:
    """What a look found, and what to write again. `yielded` names knobs that are now left to others."""

    drifts: tuple[Drift, ...] = ()
    reapply: Mapping[str, Level] | None = None
    yielded: tuple[Drift, ...] = ()


class Reconciler:
    """Watches the settings it was told to `want`."""

    def __init__(
        self,
        controls: Mapping[str, Control],
        clock: Clock,
        marks: Callable[[], Marks],
        *,
        limit: int = REAPPLY_LIMIT,
        window_s: float = REAPPLY_WINDOW_S,
    ) -> None:
        self._controls = controls
        self._clock = clock
        self._marks = marks
        self._limit = limit
        self._window_s = window_s
        self._wanted: dict[str, Level] = {}
        self._policy: Mapping[Who, Policy] = DEFAULT_POLICY
        self._before = Marks()
        self._yielded: set[str] = set()
        self._told: set[str] = set()
        self._reapplied: deque[float] = deque()

    def want(self, settings: Mapping[str, Level], policy: Mapping[Who, Policy] = DEFAULT_POLICY) -> None:
        """From now on these should hold; everything before is forgotten."""
        self._wanted = dict(settings)
        self._policy = policy
        self._before = self._marks() if settings else Marks()
        self._yielded = set()
        self._told = set()
        self._reapplied.clear()

    def check(self) -> Finding:
        """Look once. Each drift is told once; one that is written again is told again if it comes back."""
        drifted = {
            knob: found
            for knob, wanted in self._wanted.items()
            if knob not in self._yielded
            for found in [self._accepted(knob)]
            if not _same(wanted, found)
        }
        self._told &= set(drifted)
        if not drifted:
            return Finding()
        who, detail = attribute(self._before, self._marks(), drifted, self._controls)
        drifts = tuple(Drift(knob, self._wanted[knob], found, who, detail) for knob, found in drifted.items())
        news = tuple(drift for drift in drifts if drift.knob not in self._told)
        if self._policy[who] is Policy.REAPPLY and self._may_reapply():
            self._reapplied.append(self._clock.now())
            return Finding(news, {drift.knob: drift.wanted for drift in drifts})
        if self._policy is ALWAYS_YIELD:
            self._told |= set(drifted)
            return Finding(news)
        self._yielded |= set(drifted)
        return Finding(news, None, drifts)

    def _may_reapply(self) -> bool:
        while self._reapplied and self._clock.now() - self._reapplied[0] > self._window_s:
            self._reapplied.popleft()
        return len(self._reapplied) < self._limit

    def _accepted(self, knob: str) -> Level | None:
        try:
            return self._controls[knob].accepted()
        except ControlError:
            return None


def attribute(
    before: Marks, now: Marks, drifted: Mapping[str, Level | None], controls: Mapping[str, Control]
) -> tuple[Who, str]:
    """Who moved these knobs, by what else changed; and a word on why that is thought."""
    if before.power_mode != now.power_mode:
        return Who.NVPMODEL, f"power mode {before.power_mode or 'unknown'} → {now.power_mode or 'unknown'}"
    if before.driver != now.driver:
        return Who.RESET, "its driver was loaded anew"
    if before.persistence and now.persistence is False:
        return Who.PERSISTENCE, "the driver unloaded while nobody used the GPU"
    if before.power_mode is not None and _all_at_highest(drifted, controls):
        return Who.JETSON_CLOCKS, "every clock that moved stands at its highest"
    suspects = [name for name in now.others if name not in before.others] or list(now.others)
    return Who.OTHER, f"running here: {', '.join(suspects)}" if suspects else ""


def _all_at_highest(drifted: Mapping[str, Level | None], controls: Mapping[str, Control]) -> bool:
    clocks = {knob: found for knob, found in drifted.items() if knob in JETSON_CLOCKS_KNOBS}
    return bool(clocks) and all(_same(_highest(controls[knob].levels), clocks[knob]) for knob in clocks)


def _highest(levels: Sequence[Level]) -> Level:
    return max(level for level in levels if not isinstance(level, str))


def _same(wanted: Level, found: Level | None) -> bool:
    if found is None or isinstance(wanted, str) or isinstance(found, str):
        return wanted == found
    return math.isclose(wanted, found, rel_tol=TOLERANCE)
