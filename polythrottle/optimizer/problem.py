"""The optimiser's input: plain frozen values, no arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass

from polythrottle.configuration import Configuration, SearchSpace
from polythrottle.errors import InvalidInputError
from polythrottle.objective import EnergyObjective
from polythrottle.study import Strategy


@dataclass(frozen=True)
class Problem:
    """Least energy (or energy × latency) over `space` with latency ≤ `latency_limit_s`.

    `latency_limit_s` is None only before the anchor of a relative SLO was measured. `queued` is the statistic
    that the limit is on, where queries arrive by themselves, wait and leave idle time; None: back to back.
    """

    space: SearchSpace
    anchor: Configuration
    latency_limit_s: float | None
    objective: EnergyObjective = EnergyObjective.ENERGY_PER_QUERY
    queued: str | None = None


@dataclass(frozen=True)
class Observation:
    """What all windows of one configuration taught.

    Errors are relative standard errors (sd of the logarithm). `energy_j` is None for a censored
    observation: the trial was aborted, and latency is at least `latency_s`. `achieved` are the clocks
    that ran, where they differ from the requested. `device` tells devices of a shared study apart.
    """

    configuration: Configuration
    latency_s: float
    latency_error: float
    energy_j: float | None
    energy_error: float | None
    achieved: Configuration | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        numbers = [self.latency_s, self.latency_error, self.energy_j, self.energy_error]
        if any(number is not None and not math.isfinite(number) for number in numbers):
            raise InvalidInputError(
                f"The observation of {self.configuration} holds a number that is not finite."
            )
        if self.latency_s <= 0 or (self.energy_j is not None and self.energy_j <= 0):
            raise InvalidInputError(f"The observation of {self.configuration} must be above zero.")
        if (self.energy_j is None) != (self.energy_error is None):
            raise InvalidInputError(
                f"The observation of {self.configuration}: energy and its error go together."
            )

    @property
    def censored(self) -> bool:
        return self.energy_j is None


@dataclass(frozen=True)
class FailedTrial:
    """A configuration that could not be applied or measured: teaches viability only.

    Listed twice, it is not proposed again.
    """

    configuration: Configuration


Evidence = Observation | FailedTrial


@dataclass(frozen=True)
class OptimizerSettings:
    """How to search. The defaults are the ones the benchmarks were run with.

    members, draw_seed: size and seed of the ensemble prior. progress_p_feasible is the probability of
    meeting the SLO that the best-so-far needs, install_p_feasible what the final answer needs.

    Trials: p_feasible_floor is the least probability of meeting the SLO a trial may have once
    floor_after points were observed (earlier the model is too timid about batch sizes); in safe mode
    every trial needs safe_p_feasible.

    Stopping, after at least min_trials: when P(within 2 % of the best) exceeds stop_probability and
    the expected gain of one more trial is below stop_expected_gain; `flat`, which has no members, when
    the expected gain is below flat_stop_expected_gain.
    """

    strategy: Strategy = Strategy.INFORMED
    safe: bool = False
    members: int = 5000
    draw_seed: int = 0
    progress_p_feasible: float = 0.7
    install_p_feasible: float = 0.95
    p_feasible_floor: float = 0.3
    floor_after: int = 5
    safe_p_feasible: float = 0.85
    min_trials: int = 6
    stop_probability: float = 0.95
    stop_expected_gain: float = 0.01
    flat_stop_expected_gain: float = 0.005
