"""A trial: one configuration tried, its purpose, its state and the legal moves between states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from polythrottle.configuration import Configuration
from polythrottle.measurement import Measurement
from polythrottle.suggestion import Suggestion

STOCK = Configuration(())
"""Nothing is set: the device as it was found."""


class Purpose(str, Enum):
    """Why a trial is run."""

    BASELINE = "baseline"
    """The device as found: what the user has today."""
    ANCHOR = "anchor"
    """Max clocks: fixes the scale and tells whether the SLO can be reached."""
    STAGE = "stage"
    """One stage of the workload alone, by one knob, everything else as found: the first of two phases."""
    SEARCH = "search"
    CONFIRM = "confirm"
    """A repeat of the winner, the runner-up or max clocks before the answer is given."""
    DRIFT = "drift"
    """Max clocks again, to see whether the device changed during the search."""


class TrialState(str, Enum):
    QUEUED = "queued"
    LEASED = "leased"
    RUNNING = "running"
    COMPLETED = "completed"
    INFEASIBLE = "infeasible"
    """Measured in full, but over the SLO: teaches both models."""
    ABORTED = "aborted"
    """Cut short: its latency is a lower bound and its energy unknown."""
    FAILED = "failed"
    """Could not be applied or measured: teaches viability only."""
    EXPIRED = "expired"
    """Its lease ran out; it goes back to the queue with the next attempt."""
    CANCELLED = "cancelled"

    @property
    def finished(self) -> bool:
        return not TRANSITIONS[self]

    @property
    def measured(self) -> bool:
        return self in (TrialState.COMPLETED, TrialState.INFEASIBLE)


TRANSITIONS: Mapping[TrialState, frozenset[TrialState]] = {
    TrialState.QUEUED: frozenset({TrialState.LEASED, TrialState.CANCELLED}),
    TrialState.LEASED: frozenset(
        {TrialState.RUNNING, TrialState.FAILED, TrialState.EXPIRED, TrialState.CANCELLED}
    ),
    TrialState.RUNNING: frozenset(
        {
            TrialState.COMPLETED,
            TrialState.INFEASIBLE,
            TrialState.ABORTED,
            TrialState.FAILED,
            TrialState.EXPIRED,
            TrialState.CANCELLED,
        }
    ),
    TrialState.EXPIRED: frozenset({TrialState.QUEUED, TrialState.CANCELLED}),
    TrialState.COMPLETED: frozenset(),
    TrialState.INFEASIBLE: frozenset(),
    TrialState.ABORTED: frozenset(),
    TrialState.FAILED: frozenset(),
    TrialState.CANCELLED: frozenset(),
}
"""The only legal moves. A state with none is final."""


class IllegalTransitionError(Exception):
    """A trial was asked to make a move that the table does not hold."""


@dataclass(frozen=True)
class Trial:
    """One configuration tried in a study. `number` counts from 1 within the study.

    `spent_s` and `spent_j` are what a trial cost that failed without a measurement; `spent_j` is None where
    no meter could tell. The cost of any other is in its measurement.
    """

    number: int
    purpose: Purpose
    configuration: Configuration
    state: TrialState = TrialState.QUEUED
    attempt: int = 1
    suggestion: Suggestion | None = None
    measurement: Measurement | None = None
    reason: str | None = None
    spent_s: float = 0.0
    spent_j: float | None = None

    @property
    def cost_s(self) -> float:
        """Seconds that the device was busy with it."""
        return self.spent_s if self.measurement is None else self.measurement.duration_s

    @property
    def cost_j(self) -> float | None:
        """J that it cost; None where that is unknown, and 0 where it took no time."""
        if self.measurement is not None:
            return self.measurement.total_energy_j
        return self.spent_j if self.spent_s > 0 else self.spent_j or 0.0

    def moved(
        self, to: TrialState, *, measurement: Measurement | None = None, reason: str | None = None
    ) -> Trial:
        """The trial in its next state.

        Raises:
            IllegalTransitionError: the move is not in `TRANSITIONS`.
        """
        if to not in TRANSITIONS[self.state]:
            raise IllegalTransitionError(
                f"trial {self.number} cannot go from {self.state.value} to {to.value}"
            )
        return replace(
            self,
            state=to,
            attempt=self.attempt + (to is TrialState.QUEUED),
            measurement=measurement if measurement is not None else self.measurement,
            reason=reason if reason is not None else self.reason,
        )
