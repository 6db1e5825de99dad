"""What is asked for: a latency SLO to keep and an energy to make small."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import Enum

from polythrottle.errors import InvalidInputError

_UNIT_S = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
_SYNTAX = re.compile(
    r"^\s*(?:(?P<statistic>p\d{1,3}(?:\.\d+)?|mean|recorded)\s*(?:<=?|≤)\s*)?"
    r"(?P<number>[+-]?\d+(?:\.\d*)?|[+-]?\.\d+)\s*(?P<unit>us|µs|ms|s|x|×)?\s*$",
    re.IGNORECASE,
)
_HELP = "write for example 50ms, 'p95<50ms' or 1.2x (times the latency at max clocks)"


class EnergyObjective(str, Enum):
    """What the search makes small."""

    ENERGY_PER_QUERY = "energy"
    ENERGY_DELAY_PRODUCT = "edp"

    @property
    def latency_weight(self) -> float:
        """Exponent of latency in energy × latency^weight."""
        return 1.0 if self is EnergyObjective.ENERGY_DELAY_PRODUCT else 0.0

    def of(self, energy_j: float, latency_s: float) -> float:
        """J per query, or J·s for the energy-delay product."""
        return energy_j * math.pow(latency_s, self.latency_weight)

    @property
    def label(self) -> str:
        return "energy-delay product" if self.latency_weight else "energy per query"


@dataclass(frozen=True)
class LatencySlo:
    """An upper limit on one statistic of latency.

    `statistic` is `p50` … `p99.9`, `mean`, or `recorded` (whatever a replayed table holds). Exactly one
    of `limit_s` (seconds) and `factor` (times the latency at max clocks) is set.
    """

    statistic: str
    limit_s: float | None = None
    factor: float | None = None

    def __post_init__(self) -> None:
        if (self.limit_s is None) == (self.factor is None):
            raise ValueError("exactly one of limit_s and factor must be set")

    @classmethod
    def parse(cls, text: str) -> LatencySlo:
        """Read `50ms`, `p95<50ms`, `mean<0.2s`, `1.2x` or `p95<1.2x`.

        Raises:
            InvalidInputError: no unit, a limit that is not above zero, or a percentile out of (0, 100).
        """
        match = _SYNTAX.match(text)
        if match is None:
            raise InvalidInputError(f"Latency SLO {text!r} cannot be read; {_HELP}.")
        statistic = (match["statistic"] or "p99").lower()
        number, unit = float(match["number"]), (match["unit"] or "").lower()
        if not unit:
            raise InvalidInputError(f"Latency SLO {text!r} has no unit; {_HELP}.")
        if not math.isfinite(number) or number <= 0:
            raise InvalidInputError(f"Latency SLO {text!r} must be above zero; {_HELP}.")
        if statistic.startswith("p") and not 0 < float(statistic[1:]) < 100:
            raise InvalidInputError(f"Latency SLO {text!r}: a percentile lies between 0 and 100.")
        if unit in ("x", "×"):
            return cls(statistic, factor=number)
        return cls(statistic, limit_s=number * _UNIT_S[unit])

    @property
    def quantile(self) -> float | None:
        """0.99 for p99; None for `mean` and `recorded`."""
        return float(self.statistic[1:]) / 100 if self.statistic.startswith("p") else None

    def resolved(self, anchor_latency_s: float) -> LatencySlo:
        """The SLO as an absolute limit, given the latency at max clocks in seconds."""
        if self.factor is None:
            return self
        return LatencySlo(self.statistic, limit_s=self.factor * anchor_latency_s)

    def __str__(self) -> str:
        limit = f"{self.factor:g}x" if self.limit_s is None else format_latency(self.limit_s)
        return f"{self.statistic} ≤ {limit}"


def format_latency(latency_s: float) -> str:
    """Seconds in the unit a person would use, to four significant digits at most."""
    if latency_s >= 10:
        return f"{latency_s:.4g} s"
    if latency_s >= 1e-3:
        return f"{latency_s * 1e3:.4g} ms"
    return f"{latency_s * 1e6:.4g} µs"


def format_energy(energy_j: float) -> str:
    """Joules in the unit a person would use, to four significant digits at most."""
    if energy_j >= 10_000:
        return f"{energy_j / 1e3:.4g} kJ"
    if energy_j >= 1:
        return f"{energy_j:.4g} J"
    if energy_j >= 1e-3:
        return f"{energy_j * 1e3:.4g} mJ"
    return f"{energy_j * 1e6:.4g} µJ"
