"""Which levels may be written: a control's own, within the operator's limits and the power mode's caps."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from polythrottle.configuration import UNITS, Level, format_level
from polythrottle.errors import InvalidInputError
from polythrottle_agent.limits import Limit, OperatorLimits
from polythrottle_agent.ports import ControlError

CAP_TOLERANCE = 1e-6
"""Caps come in Hz or kHz and are compared in MHz."""


class Bounds:
    """The bounds of one knob.

    `cap` gives what the power mode allows now, in the knob's unit: it is asked at each write, because the
    mode may change at any time.
    """

    def __init__(self, knob: str, limit: Limit, limit_source: str | None, cap: Callable[[], float]) -> None:
        self.knob = knob
        self._limit = limit
        self._source = limit_source
        self._cap = cap

    @classmethod
    def of(cls, knob: str, limits: OperatorLimits, cap: Callable[[], float] = lambda: float("inf")) -> Bounds:
        return cls(knob, limits.of(knob), limits.source, cap)

    def cap(self) -> float:
        """What the power mode allows now; inf where it does not cap this knob."""
        return self._cap()

    def allowed(self, levels: Iterable[Level]) -> tuple[Level, ...]:
        """The levels within all bounds, in their order. `unlocked` obeys a power mode's cap by itself."""
        cap = self._cap() * (1.0 + CAP_TOLERANCE)
        return tuple(x for x in levels if self._limit.allows(x) and (isinstance(x, str) or x <= cap))

    def check(self, level: Level, table: Iterable[Level]) -> None:
        """The last look before a write.

        Raises:
            InvalidInputError: not a level of this knob, or beyond the operator's limits.
            ControlError: above what the power mode allows now.
        """
        if level not in tuple(table):
            raise InvalidInputError(f"{self.knob} has no level {format_level(level)} here.")
        if not self._limit.allows(level):
            raise InvalidInputError(
                f"{self.knob} = {format_level(level)} lies outside the limits in {self._source}."
            )
        cap = self._cap()
        if not isinstance(level, str) and level > cap * (1.0 + CAP_TOLERANCE):
            unit = UNITS[self.knob]
            raise ControlError(f"the power mode now allows {cap:g} {unit} at most".replace("  ", " "))
