"""What was measured: value, uncertainty, unit, and where the number comes from."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from polythrottle.configuration import Configuration

ASSUMED_RELATIVE_ERROR = 0.02
"""Taken for a recorded value without an error of its own."""


class Provenance(str, Enum):
    """Where a number comes from. Shown wherever the number is shown."""

    MEASURED = "measured"
    EMULATED = "emulated"
    AS_RECORDED = "as recorded"
    ESTIMATED = "estimated"


class Scope(str, Enum):
    """What an energy covers. `RECORDED` is whatever the table's author metered."""

    CPU = "cpu"
    GPU = "gpu"
    MODULE = "module"
    BOARD = "board"
    RECORDED = "recorded"


@dataclass(frozen=True)
class Unavailable:
    """A reading that could not be had, and why. Never stands for zero."""

    reason: str


@dataclass(frozen=True)
class EnergyReading:
    """Energy per query over one window, idle time of the window included.

    `standard_error_j` is None where a recorded table gives none; the optimiser then assumes
    `ASSUMED_RELATIVE_ERROR` and says so.
    """

    energy_j: float
    standard_error_j: float | None
    meter: str
    scope: Scope
    provenance: Provenance
    window_s: float

    @property
    def relative_error(self) -> float:
        if self.standard_error_j is None:
            return ASSUMED_RELATIVE_ERROR
        return self.standard_error_j / self.energy_j


@dataclass(frozen=True)
class LatencyReading:
    """One statistic of latency over one window.

    `bounded` is False when the window held too few queries to bound the statistic (for p99: fewer
    than 1,000, ten expected beyond it).
    """

    latency_s: float
    standard_error_s: float | None
    statistic: str
    n_queries: int
    bounded: bool
    provenance: Provenance

    @property
    def relative_error(self) -> float:
        if self.standard_error_s is None:
            return ASSUMED_RELATIVE_ERROR
        return self.standard_error_s / self.latency_s


@dataclass(frozen=True)
class Measurement:
    """The outcome of one window: requested was applied, `accepted` read back, `observed` ran under load."""

    requested: Configuration
    accepted: Configuration
    observed: Configuration
    energy: EnergyReading | Unavailable
    latency: LatencyReading | Unavailable
    started_s: float
    duration_s: float
    total_energy_j: float | None = None
    aborted_reason: str | None = None
    notes: tuple[str, ...] = ()


def combined(values: list[tuple[float, float]]) -> tuple[float, float]:
    """Inverse-variance mean of (value, standard error) pairs, and its standard error.

    The error is widened to the scatter between windows where that is larger (Birge ratio), so that
    two windows that disagree do not look exact.
    """
    if len(values) == 1:
        return values[0]
    weights = [1.0 / max(error, 1e-12 * abs(value), 1e-300) ** 2 for value, error in values]
    total = sum(weights)
    mean = sum(w * value for w, (value, _) in zip(weights, values, strict=True)) / total
    chi2 = sum(w * (value - mean) ** 2 for w, (value, _) in zip(weights, values, strict=True))
    birge = max(1.0, chi2 / (len(values) - 1))
    return mean, (birge / total) ** 0.5
