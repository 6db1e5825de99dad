"""What was measured: value, uncertainty, unit, and where the number comes from."""

from __future__ import annotations

import math
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

    `bounded` is False when the window held too few independent latencies to bound the statistic (for
    p99: fewer than 1,000, ten expected beyond it). Queries of one batch share one. `upper_s` is the one-sided
    95 % upper confidence bound, with autocorrelation counted, on which an SLO is judged; None where the
    workload gives no more than a standard error.
    """

    latency_s: float
    standard_error_s: float | None
    statistic: str
    n_queries: int
    bounded: bool
    provenance: Provenance
    upper_s: float | None = None

    @property
    def relative_error(self) -> float:
        if self.standard_error_s is None:
            return ASSUMED_RELATIVE_ERROR
        return self.standard_error_s / self.latency_s


@dataclass(frozen=True)
class Measurement:
    """The outcome of one trial: requested was applied, `accepted` read back, `observed` ran under load.

    `started_s`, `duration_s` and `total_energy_j` cover the whole trial, applying, settling and warming up
    included; the readings' own windows are shorter. `total_energy_j` is None where no meter could tell.
    """

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


def pooled(readings: list[tuple[float, float]]) -> tuple[float, float]:
    """All windows of one configuration as one: (value > 0, relative standard error) pairs → the same.

    The inverse-variance mean of the logarithms: relative errors are what stays alike between windows, and
    pooling the values themselves would favour low readings. The error is widened to the scatter between
    windows where that is larger (Birge ratio), so that two windows that disagree do not look exact.
    """
    if len(readings) == 1:
        return readings[0]
    logs = [math.log(value) for value, _ in readings]
    weights = [1.0 / max(relative, 1e-12) ** 2 for _, relative in readings]
    total = sum(weights)
    mean = sum(w * log for w, log in zip(weights, logs, strict=True)) / total
    chi2 = sum(w * (log - mean) ** 2 for w, log in zip(weights, logs, strict=True))
    birge = max(1.0, chi2 / (len(readings) - 1))
    return math.exp(mean), math.sqrt(birge / total)


def combined(values: list[tuple[float, float]]) -> tuple[float, float]:
    """The same for (value > 0, standard error) pairs in the value's own unit."""
    if len(values) == 1:
        return values[0]
    value, relative = pooled([(value, error / value) for value, error in values])
    return value, relative * value
