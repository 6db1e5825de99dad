"""What a guard watches for, and how patient it is. Times in seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from polythrottle.errors import InvalidInputError
from polythrottle.objective import LatencySlo


@dataclass(frozen=True)
class RateBand:
    """The arrival rates that a configuration was chosen for, in queries per second.

    Where `relative`, both ends are times the rate of the first minute that was watched.
    """

    low: float
    high: float
    relative: bool = False

    def __post_init__(self) -> None:
        if not (0 <= self.low < self.high and math.isfinite(self.low)):
            raise InvalidInputError(
                f"The band of arrival rates must rise from its low end to its high end, not {self}."
            )

    def __str__(self) -> str:
        unit = "x" if self.relative else ""
        return f"{self.low:g}{unit}-{self.high:g}{unit}"


USUAL_BAND = RateBand(0.5, 1.5, relative=True)


@dataclass(frozen=True)
class GuardRules:
    """When to act.

    slo: with a limit in seconds. window_s, recent_s: of the sliding window, and of the last moments in it.
    patience_s: how long the SLO must be missed for sure; persist_s: how long it may be missed by a little.
    settle_s: after a switch nothing is judged for so long, while queues drain.
    blind_s: how long latency may be out of sight.
    max_temperature_c: None for no limit of its own; it must be `cooler_c` below to count as passed.
    sustain_s: how long heat or throttling must last. rate_sustain_s: the same for too many queries;
    rate_below_sustain_s: for too few, which is no danger.
    cool_down_s: how long at least the last known good stays; doubled with every return, of which there are
    `max_returns` at most. ask_every_s: one cause asks for another search no more often than that.
    """

    slo: LatencySlo
    window_s: float = 30.0
    recent_s: float = 2.0
    patience_s: float = 3.0
    persist_s: float = 120.0
    settle_s: float = 5.0
    blind_s: float = 60.0
    max_temperature_c: float | None = None
    cooler_c: float = 5.0
    throttling: bool = True
    sustain_s: float = 10.0
    rate_band: RateBand | None = USUAL_BAND
    rate_sustain_s: float = 60.0
    rate_below_sustain_s: float = 600.0
    cool_down_s: float = 600.0
    max_returns: int = 3
    ask_every_s: float = 3600.0

    def __post_init__(self) -> None:
        if self.slo.limit_s is None:
            raise InvalidInputError(
                f"The guard needs the SLO as a time, such as p99<50ms, not {self.slo}: max clocks are not "
                "measured while it watches."
            )
        if self.slo.statistic == "recorded":
            raise InvalidInputError("The guard watches live queries; a recorded statistic has none.")

    @property
    def limit_s(self) -> float:
        assert self.slo.limit_s is not None
        return self.slo.limit_s
