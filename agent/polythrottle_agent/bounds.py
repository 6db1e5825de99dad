"""Which levels may be written: a control's own, within the operator's limits and the power mode's caps."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from polythrottle.configuration import UNITS, Level, format_level
from polythrottle.errors import InvalidInputError
from polythrottle_agent.limits import OperatorLimits
from polythrottle_agent.ports import ControlError

CAP_TOLERANCE = 1e-6
"""Caps come in Hz or kHz and are compared in MHz."""


class Bounds:
    """The bounds of one knob.

    `cap` gives what the power mode allows now, in the knob's unit. It is asked at each write, as the limits
    are: the mode may change at any time, and an operator may edit the limits.
    """

    def __init__(self, knob: str, limits: OperatorLimits, cap: Callable[[], float]) -> None:
        self.knob = knob
        self._limits = limits
        self._cap = cap

    @classmethod
    def of(cls, knob: str, limits: OperatorLimits, cap: Callable[[], float] = lambda: float("inf")) -> Bounds:
        return cls(knob, limits, cap)

    def cap(self) -> float:
        """What the power mode allows now; inf where it does not cap this knob."""
        return self._cap()

    def allowed(self, levels: Iterable[Level]) -> tuple[Level, ...]:
        """The levels within all bounds, in their order. `unlocked` obeys a power mode's cap by itself."""
        cap, limit = self._cap() * (1.0 + CAP_TOLERANCE), self._limits.of(self.knob)
        return tuple(x for x in levels if limit.allows(x) and (isinstance(x, str) or x <= cap))

    def highest_below_cap(self, number: float, levels: Iterable[float]) -> float:
        """A number that somebody else set, held within the power mode's cap: itself, or the next level below.

        Raises:
            ControlError: every level lies above the cap.
        """
        cap = self._cap() * (1.0 + CAP_TOLERANCE)
        if number <= cap:
            return number
        below = [level for level in levels if level <= cap]
        if not below:
            raise ControlError(f"the power mode's cap on {self.knob} lies below every level")
        return max(below)

    def check(self, level: Level, table: Iterable[Level]) -> None:
        """The last look before a write.

        Raises:
            InvalidInputError: not a level of this knob, or beyond the operator's limits.
            ControlError: above what the power mode allows now.
        """
        if level not in tuple(table):
            raise InvalidInputError(f"{self.knob} has no level {format_level(level)} here.")
        if not self._limits.of(self.knob).allows(level):
            raise InvalidInputError(
                f"{self.knob} = {format_level(level)} lies outside the limits in {self._limits.source}."
            )
        cap = self._cap()
        if not isinstance(level, str) and level > cap * (1.0 + CAP_TOLERANCE):
            unit = UNITS[self.knob]
            raise ControlError(f"the power mode now allows {cap:g} {unit} at most".replace("  ", " "))
