"""A study: what is searched for, on which device, and everything that was tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from polythrottle.configuration import Configuration, Level, SearchSpace
from polythrottle.measurement import Provenance
from polythrottle.objective import EnergyObjective, LatencySlo
from polythrottle.traffic import LiveTraffic
from polythrottle.trial import Purpose, Trial


class Strategy(str, Enum):
    """How the next configuration is chosen."""

    INFORMED = "informed"
    """Bayesian optimisation over an ensemble of physical models; the default."""
    POLYTHROTTLE = "polythrottle"
    """The PolyThrottle paper's: 5 random starts, then EI × PF with ξ = 0.1."""
    FLAT = "flat"
    """Gaussian processes on logarithms, without physics."""
    RANDOM = "random"
    GRID = "grid"
    """Every configuration once."""


class StudyState(str, Enum):
    ACTIVE = "active"
    CONVERGED = "converged"
    """The stopping rule fired and the winner was confirmed."""
    EXHAUSTED = "exhausted"
    """The budget of trials or time ran out, or nothing was left to try."""
    INFEASIBLE = "infeasible"
    """Nothing meets the SLO, max clocks included."""
    CANCELLED = "cancelled"
    """Ended by the user. `resume` takes it back to active."""
    SUPERSEDED = "superseded"
    """Another model version took its place."""


STUDY_TRANSITIONS: Mapping[StudyState, frozenset[StudyState]] = {
    StudyState.ACTIVE: frozenset(
        {
            StudyState.CONVERGED,
            StudyState.EXHAUSTED,
            StudyState.INFEASIBLE,
            StudyState.CANCELLED,
            StudyState.SUPERSEDED,
        }
    ),
    StudyState.CANCELLED: frozenset({StudyState.ACTIVE, StudyState.SUPERSEDED}),
    StudyState.EXHAUSTED: frozenset({StudyState.ACTIVE, StudyState.SUPERSEDED}),
    StudyState.CONVERGED: frozenset({StudyState.SUPERSEDED}),
    StudyState.INFEASIBLE: frozenset({StudyState.SUPERSEDED}),
    StudyState.SUPERSEDED: frozenset(),
}


class Verdict(str, Enum):
    """The answer in one word; see docs/concepts.md."""

    OPTIMAL = "optimal"
    BEST_FEASIBLE = "best_feasible"
    KEEP_STOCK = "keep_stock"
    NO_FEASIBLE_FOUND = "no_feasible_found"


@dataclass(frozen=True)
class DeviceIdentity:
    """Which device, in words and by a stable id (never an index).

    `tables_digest` covers the tables of levels, which differ between BSPs of one board.
    """

    id: str
    board: str
    label: str
    provenance: Provenance
    tables_digest: str


@dataclass(frozen=True)
class FirstStage:
    """A stage of the workload that is tuned alone, by one knob, before the rest: the first of two phases."""

    name: str
    knob: str


@dataclass(frozen=True)
class StudySpec:
    """Everything that defines a study. Two equal specs are the same study.

    `baseline` says whether the device as found can be measured. `anchor` is max clocks with the default
    batch size. `max_trials` counts search trials with the anchor (not the baseline, not confirmations);
    `max_time_s` is in the device's time. `load` says in words how the workload is loaded: another load is
    another question. `precision` is the measurement plan's. `live` holds the rules of live traffic; None
    where a slow trial harms nobody.
    """

    device: DeviceIdentity
    workload: str
    model_version: str
    slo: LatencySlo
    objective: EnergyObjective
    space: SearchSpace
    anchor: Configuration
    fixed: tuple[tuple[str, Level], ...] = ()
    baseline: bool = True
    strategy: Strategy = Strategy.INFORMED
    safe: bool = False
    keep_searching: bool = False
    max_trials: int = 20
    max_time_s: float | None = None
    seed: int = 0
    notes: tuple[str, ...] = ()
    load: str = ""
    precision: float | None = None
    first_stage: FirstStage | None = None
    live: LiveTraffic | None = None


@dataclass(frozen=True)
class Estimate:
    """A mean over all windows of one configuration, with standard errors.

    `latency_upper_s` is the 95 % upper confidence bound of the latency, on which the SLO is judged.
    """

    configuration: Configuration
    energy_j: float
    energy_error_j: float
    latency_s: float
    latency_error_s: float
    n_windows: int
    latency_upper_s: float | None = None


@dataclass(frozen=True)
class Result:
    """The answer and why it is right. Always there once a study has ended.

    `chosen` is None for `no_feasible_found`; `closest` is then the configuration with the least latency.
    `search_energy_j` is what all trials cost; `payback_queries` is after how many queries at the
    chosen configuration, against stock, that is saved again.
    """

    verdict: Verdict
    state: StudyState
    reason: str
    chosen: Estimate | None
    stock: Estimate | None
    max_clocks: Estimate | None
    closest: Estimate | None
    slo: LatencySlo
    p_feasible: float | None
    n_search_trials: int
    n_trials: int
    search_time_s: float
    search_energy_j: float | None
    payback_queries: int | None

    @property
    def saving(self) -> float | None:
        """Relative energy saved against stock; None where either is missing."""
        if self.chosen is None or self.stock is None:
            return None
        return 1.0 - self.chosen.energy_j / self.stock.energy_j


@dataclass(frozen=True)
class Study:
    """A study as it stands: its spec and all of its trials, in order."""

    id: str
    spec: StudySpec
    state: StudyState
    created_at: str
    trials: tuple[Trial, ...] = ()
    state_reason: str | None = None
    result: Result | None = None

    def of(self, *purposes: Purpose) -> tuple[Trial, ...]:
        return tuple(trial for trial in self.trials if trial.purpose in purposes)
