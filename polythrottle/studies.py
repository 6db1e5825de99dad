"""The one interface between whoever decides (embedded or a server) and whoever runs trials."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from polythrottle.measurement import Measurement
from polythrottle.study import Result, Study, StudySpec
from polythrottle.trial import Trial


@dataclass(frozen=True)
class MeasurementPlan:
    """How one trial is measured.

    A window lasts until it holds `min_queries` and `min_window_s`, or `max_window_s` has passed. Queries
    of one batch share their latency and count once. `max_window_s` is for 1,000 queries: whoever asks for
    more, as p99.9 does, allows longer in proportion, or no window could ever bound that percentile.
    It is cut short when the latency statistic is above `abort_latency_s` after `abort_after_queries`.

    With a `precision` it also grows, up to `max_window_s`, until the upper confidence bound of the latency
    lies within that relative distance of its estimate, and the standard error of the energy is that small.

    `stage` names a stage of the workload that is served alone, with everything that the configuration does
    not name as found; None serves the whole workload.
    """

    settle_s: float = 1.0
    warmup_queries: int = 20
    min_queries: int = 1000
    min_window_s: float = 2.0
    max_window_s: float = 120.0
    abort_latency_s: float | None = None
    abort_after_queries: int = 50
    precision: float | None = None
    stage: str | None = None


@dataclass(frozen=True)
class Assignment:
    """A trial to run now, and how."""

    trial: Trial
    plan: MeasurementPlan


@dataclass(frozen=True)
class Finished:
    """Nothing more to run: the study has ended."""

    result: Result


@dataclass(frozen=True)
class Measured:
    """The trial ran to its end."""

    measurement: Measurement


@dataclass(frozen=True)
class Aborted:
    """The trial was cut short; the measurement's latency is a lower bound."""

    measurement: Measurement
    reason: str


@dataclass(frozen=True)
class Failed:
    """The configuration could not be applied or measured.

    `duration_s` and `total_energy_j` are what the attempt cost; the energy is None where no meter could tell.
    """

    reason: str
    duration_s: float = 0.0
    total_energy_j: float | None = None


Outcome = Measured | Aborted | Failed


class Studies(Protocol):
    """Create, ask, tell, heartbeat, result: in one process or over HTTP."""

    def create(self, spec: StudySpec) -> Study:
        """A new study, or the active one of the same spec."""

    def ask(self, study_id: str) -> Assignment | Finished:
        """The next trial; the same one again while it is unfinished."""

    def tell(self, study_id: str, number: int, attempt: int, outcome: Outcome) -> Study:
        """Report a trial. Telling the same outcome twice changes nothing."""

    def heartbeat(self, study_id: str, number: int, attempt: int) -> bool:
        """Renew the trial's lease. False: stop, it was taken away or cancelled."""

    def result(self, study_id: str) -> Result:
        """The answer so far, or the final one."""

    def get(self, study_id: str) -> Study: ...

    def list(self) -> tuple[Study, ...]: ...

    def cancel(self, study_id: str, reason: str) -> Study:
        """End the study with the best so far; unfinished trials are cancelled."""

    def resume(self, study_id: str) -> Study:
        """Take a cancelled or exhausted study back to active."""
