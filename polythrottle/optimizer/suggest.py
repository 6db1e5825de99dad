"""The optimiser's door: build a prior once, then ask for suggestions. Both are pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from polythrottle.configuration import UNITS, Configuration
from polythrottle.errors import InvalidInputError
from polythrottle.optimizer.problem import Evidence, FailedTrial, Observation, OptimizerSettings, Problem
from polythrottle.optimizer.unmodelled import suggest_unmodelled
from polythrottle.study import Strategy
from polythrottle.suggestion import Suggestion

if TYPE_CHECKING:
    from polythrottle.optimizer.grid import Grid
    from polythrottle.optimizer.prior import EnsemblePrior

    Prior = EnsemblePrior | Grid
    """What is prepared once per grid and anchor."""

GIVE_UP_AFTER = 2
"""Failures of one configuration before it is not proposed again."""


def build_prior(problem: Problem, settings: OptimizerSettings) -> Prior | None:
    """What `suggest` needs beforehand; None for strategies without a model.

    Depends on the space, the anchor, `queued`, the members and the draw seed, so it can be shared by every
    study of one device class. `informed` falls back to `flat` where the physics knows no knob of the space.
    """
    if settings.strategy in (Strategy.RANDOM, Strategy.GRID):
        return None
    import torch

    from polythrottle.optimizer.grid import Grid

    # More threads make these small matrices slower, many times so on a busy machine.
    torch.set_num_threads(1)
    grid = Grid(problem.space, problem.anchor)
    if settings.strategy is not Strategy.INFORMED or not any(name in UNITS for name in problem.space.names):
        return grid
    from polythrottle.optimizer.prior import EnsemblePrior

    return EnsemblePrior(grid, settings.members, settings.draw_seed, problem.queued)


def suggest(
    problem: Problem,
    prior: Prior | None,
    observations: Sequence[Evidence],
    pending: Sequence[Configuration],
    settings: OptimizerSettings,
    seed: int,
) -> Suggestion:
    """The next configuration to try, with reasons, ranking and stopping advice.

    Deterministic in its arguments. `observations` holds at most one `Observation` per configuration
    (repeats combined) and one `FailedTrial` per failure.

    Raises:
        InvalidInputError: an observation or the anchor is not in the space, or one is given twice.
    """
    failures = Counter(e.configuration for e in observations if isinstance(e, FailedTrial))
    excluded = frozenset(c for c, times in failures.items() if times >= GIVE_UP_AFTER and c in problem.space)
    known = [e for e in observations if isinstance(e, Observation)]
    _check(problem, known, pending)
    if settings.strategy in (Strategy.RANDOM, Strategy.GRID):
        shuffled = settings.strategy is Strategy.RANDOM
        return suggest_unmodelled(problem, known, pending, excluded, settings, seed, shuffled=shuffled)
    if prior is None:
        raise ValueError("this strategy needs the prior that build_prior makes")
    from polythrottle.optimizer.prior import EnsemblePrior

    if settings.strategy is Strategy.INFORMED and isinstance(prior, EnsemblePrior):
        from polythrottle.optimizer.informed import suggest_informed

        return suggest_informed(problem, prior, known, pending, excluded, settings)
    from polythrottle.optimizer.gaussian_process import suggest_flat, suggest_paper

    grid = prior.grid if isinstance(prior, EnsemblePrior) else prior
    if settings.strategy is Strategy.POLYTHROTTLE:
        return suggest_paper(problem, grid, known, pending, excluded, settings, seed)
    return suggest_flat(problem, grid, known, pending, excluded, settings)


def _check(problem: Problem, known: list[Observation], pending: Sequence[Configuration]) -> None:
    if problem.anchor not in problem.space:
        raise InvalidInputError(f"The anchor ({problem.anchor}) is not in the search space.")
    for configuration in (*(o.configuration for o in known), *pending):
        if configuration not in problem.space:
            raise InvalidInputError(f"{configuration} was observed but is not in the search space.")
    if len({o.configuration for o in known}) < len(known):
        raise InvalidInputError("A configuration was observed twice; combine repeats into one observation.")
