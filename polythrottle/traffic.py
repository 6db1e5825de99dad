"""Rules for a study that tries configurations on live traffic. Plain values; nothing here reads the time."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from polythrottle.configuration import Configuration, Knob, Level, SearchSpace
from polythrottle.errors import InvalidInputError

DAY_MIN = 24 * 60
_TIME = r"([01]?\d|2[0-3]):([0-5]\d)"
_HOURS = re.compile(rf"^\s*{_TIME}\s*-\s*{_TIME}\s*$")

USUAL_VIOLATIONS_PER_HOUR = 3.0


@dataclass(frozen=True)
class QuietHours:
    """A time of every day, local, in minutes after midnight; over midnight where it ends before it begins."""

    begins_min: int
    ends_min: int

    def __post_init__(self) -> None:
        if not (0 <= self.begins_min < DAY_MIN and 0 <= self.ends_min < DAY_MIN):
            raise InvalidInputError("Quiet hours begin and end between 00:00 and 23:59.")
        if self.begins_min == self.ends_min:
            raise InvalidInputError("Quiet hours must end at another time than they begin.")

    @classmethod
    def parse(cls, text: str) -> QuietHours:
        """Read `22:00-06:00`.

        Raises:
            InvalidInputError: not two times of day.
        """
        match = _HOURS.match(text)
        if match is None:
            raise InvalidInputError(f"Quiet hours {text!r} cannot be read; write for example 22:00-06:00.")
        begins_h, begins, ends_h, ends = (int(part) for part in match.groups())
        return cls(60 * begins_h + begins, 60 * ends_h + ends)

    def ends_after(self, now: datetime, for_s: float = 0.0) -> datetime | None:
        """When they are over, where they reach into the next `for_s` seconds; None where they do not."""
        for begins, ends in self._around(now):
            if begins <= now + timedelta(seconds=max(for_s, 0.0)) and now < ends:
                return ends
        return None

    def _around(self, now: datetime) -> list[tuple[datetime, datetime]]:
        """Yesterday's, today's and tomorrow's."""
        length = timedelta(minutes=(self.ends_min - self.begins_min) % DAY_MIN)
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        begins = [midnight + timedelta(days=day, minutes=self.begins_min) for day in (-1, 0, 1)]
        return [(moment, moment + length) for moment in begins]

    def __str__(self) -> str:
        return "-".join(f"{m // 60:02}:{m % 60:02}" for m in (self.begins_min, self.ends_min))


@dataclass(frozen=True)
class LiveTraffic:
    """What a study may do to live traffic.

    start: the configuration in force now, as levels of the space; the first changes are small steps from it.
    violations_per_hour: trials that may miss the SLO within any hour; below 1, one in so many hours; None for
    any number. quiet_hours: no trials then. canary_share: of the traffic that a configuration is tried on
    first, where traffic can be split. waits: where a rule forbids a trial now, wait for it; else stop.
    """

    start: Configuration
    violations_per_hour: float | None = USUAL_VIOLATIONS_PER_HOUR
    quiet_hours: QuietHours | None = None
    canary_share: float | None = None
    waits: bool = True

    def __post_init__(self) -> None:
        if self.violations_per_hour is not None and not 0 <= self.violations_per_hour < 1e6:
            raise InvalidInputError(
                f"Violations per hour must be a number from 0 up, not {self.violations_per_hour:g}."
            )
        if self.canary_share is not None and not 0 < self.canary_share < 1:
            raise InvalidInputError("The canary share must lie between 0 % and 100 % of the traffic.")


@dataclass(frozen=True)
class LiveOptions:
    """What a user says of live traffic; `LiveTraffic` says what each means.

    canary_command: a program that sends a share of the traffic here, called with {share} filled in.
    """

    violations_per_hour: float | None = USUAL_VIOLATIONS_PER_HOUR
    quiet_hours: QuietHours | None = None
    canary_share: float | None = None
    canary_command: str | None = None
    waits: bool = True

    def __post_init__(self) -> None:
        if (self.canary_share is None) != (self.canary_command is None):
            raise InvalidInputError(
                "A canary needs both: --canary with a share, and --canary-command with the program that "
                "splits the traffic."
            )

    def starting_from(self, start: Configuration) -> LiveTraffic:
        """
        Raises:
            InvalidInputError: a number that makes no sense.
        """
        return LiveTraffic(start, self.violations_per_hour, self.quiet_hours, self.canary_share, self.waits)


def nearest_in(space: SearchSpace, levels: Mapping[str, Level]) -> Configuration:
    """The configuration of a space that is nearest to what a device holds, by ranks of the levels.

    A knob that the device does not tell counts as at its highest level.
    """
    ranks = [_rank(knob, levels.get(knob.name, knob.highest)) for knob in space.knobs]
    spans = [max(len(knob.levels) - 1, 1) for knob in space.knobs]

    def distance(index: Sequence[int]) -> tuple[float, list[int]]:
        # Of two that are as near, the one with the higher levels: it is the faster one.
        away = sum(abs(i - rank) / span for i, rank, span in zip(index, ranks, spans, strict=True))
        return away, [-i for i in index]

    return space.at(min(space.indices(), key=distance))


def _rank(knob: Knob, level: Level) -> int:
    if level in knob.levels:
        return knob.levels.index(level)
    number = knob.number(level)
    return min(range(len(knob.levels)), key=lambda i: (abs(knob.number(knob.levels[i]) - number), -i))
