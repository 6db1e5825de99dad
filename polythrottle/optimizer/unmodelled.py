"""Strategies without a model: random and grid. Pure Python, so that they run where no array library is."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from polythrottle.configuration import Configuration
from polythrottle.optimizer.problem import Observation, OptimizerSettings, Problem
from polythrottle.suggestion import Candidate, Prediction, Suggestion


def suggest_unmodelled(
    problem: Problem,
    observations: Sequence[Observation],
    pending: Sequence[Configuration],
    excluded: frozenset[Configuration],
    settings: OptimizerSettings,
    seed: int,
    *,
    shuffled: bool,
) -> Suggestion:
    """The next untried configuration, in random order or the grid's, and a ranking of raw readings."""
    tried = {o.configuration for o in observations} | set(pending) | excluded
    indices = problem.space.indices()
    if shuffled:
        # A fresh draw per suggestion: the seed already differs from trial to trial.
        random.Random(seed).shuffle(indices)
    chosen = next((c for c in map(problem.space.at, indices) if c not in tried), None)
    ranking = raw_ranking(problem, observations, settings.progress_p_feasible)
    return Suggestion(chosen, "random" if shuffled else "grid", ranking=ranking)


def raw_ranking(
    problem: Problem, observations: Sequence[Observation], p_feasible: float
) -> tuple[Candidate, ...]:
    """Measured configurations by their own readings: those likely to meet the SLO, cheapest first.

    P(feasible) is that of a normal around each reading's logarithm with its own standard error.
    """
    if problem.latency_limit_s is None:
        return ()
    candidates = []
    for o in observations:
        if o.energy_j is None or o.energy_error is None:
            continue
        margin = math.log(problem.latency_limit_s / o.latency_s) / max(o.latency_error, 1e-9)
        p = 0.5 * math.erfc(-margin / math.sqrt(2.0))
        prediction = Prediction(o.energy_j, o.energy_error, o.latency_s, o.latency_error, p)
        candidates.append(Candidate(o.configuration, prediction))
    safe = [c for c in candidates if c.prediction.p_feasible >= p_feasible]
    if not safe:
        return tuple(sorted(candidates, key=lambda c: -c.prediction.p_feasible))
    value = problem.objective.of
    return tuple(sorted(safe, key=lambda c: value(c.prediction.energy_j, c.prediction.latency_s)))
