"""What a guard is fed: one look at latency, arrival rate and the device's health. Plain values."""

from __future__ import annotations

import math
from dataclasses import dataclass

from polythrottle.measurement import Unavailable


@dataclass(frozen=True)
class LatencyView:
    """The SLO's statistic over a sliding window, in seconds, with one-sided bounds.

    `lower_s` is surely reached and `upper_s` surely not exceeded, autocorrelation counted; 0 and infinity
    where so few queries say nothing. Queries that were lost count as infinitely late.
    """

    value_s: float
    lower_s: float
    upper_s: float
    n_queries: int

    def __post_init__(self) -> None:
        if any(math.isnan(x) for x in (self.value_s, self.lower_s, self.upper_s)) or self.n_queries < 1:
            raise ValueError(f"not a view of latency: {self}")


@dataclass(frozen=True)
class Recent:
    """The last moments alone: the statistic, and the share of queries above the SLO's limit (0 to 1)."""

    value_s: float
    share_over: float
    n_queries: int


@dataclass(frozen=True)
class Rate:
    """Queries a second over the window, and the standard error of that."""

    per_s: float
    error_per_s: float


@dataclass(frozen=True)
class Group:
    """One stretch of the traffic that is over: its median latency, for the change-point test."""

    ended_s: float
    median_s: float
    n_queries: int


@dataclass(frozen=True)
class Idle:
    """No query came: there is nothing to protect, and nothing wrong with the guard's eyes."""


@dataclass(frozen=True)
class Traffic:
    """One look at what is served. `groups` are the ones that ended since the last look."""

    latency: LatencyView | Idle | Unavailable
    recent: Recent | None = None
    rate: Rate | None = None
    groups: tuple[Group, ...] = ()


@dataclass(frozen=True)
class Health:
    """One look at the device. `temperature_c` is the hottest part's.

    `throttling` says what holds clocks down: empty where nothing does, None where nobody could look.
    """

    temperature_c: float | Unavailable
    throttling: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Sample:
    """One look at everything, at a moment of the guard's clock."""

    at_s: float
    traffic: Traffic
    health: Health
