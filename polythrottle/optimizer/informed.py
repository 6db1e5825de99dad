"""The default strategy: constrained Bayesian optimisation over an ensemble of physical models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polythrottle.configuration import Configuration
from polythrottle.optimizer.acquisition import constrained_improvement, p_within_band, towards_feasible
from polythrottle.optimizer.grid import Grid
from polythrottle.optimizer.prior import EnsemblePrior
from polythrottle.optimizer.problem import Observation, OptimizerSettings, Problem
from polythrottle.optimizer.surrogate import Data, MixtureSurrogate, Posterior
from polythrottle.suggestion import Candidate, Prediction, StopAdvice, Suggestion

MIN_ERROR = 0.003
"""Floor of a relative standard error: nothing on a live device repeats better."""
FANTASY_ERROR = 0.01
ANCHOR_FANTASY_RATIO = 1.2
"""Before the anchor was measured its latency is taken as the limit over this."""
NOTHING_SAFE = "nothing safe enough is left"


@dataclass(frozen=True)
class _View:
    """A posterior seen through the problem: (N,) feasibility and log objective, rows that were observed."""

    posterior: Posterior
    log_limit: float
    latency_weight: float
    p_feasible: Tensor
    objective: Tensor
    observed: list[int]
    origin: float


def suggest_informed(
    problem: Problem,
    prior: EnsemblePrior,
    observations: Sequence[Observation],
    pending: Sequence[Configuration],
    excluded: frozenset[Configuration],
    settings: OptimizerSettings,
) -> Suggestion:
    """The next configuration, a ranking of the measured ones and whether to stop. Deterministic."""
    grid = prior.grid
    if not observations and not pending:
        return Suggestion(problem.anchor, "anchor", notes=("Max clocks first: it fixes the scale.",))
    if problem.latency_limit_s is None:
        return Suggestion(None, "waiting", notes=("The SLO is relative to max clocks, which still run.",))
    surrogate = MixtureSurrogate(prior)
    data, origin = arrays_of(problem, prior, observations)
    pending_rows = [grid.row(configuration) for configuration in pending]
    if pending_rows:
        data = _with_fantasies(problem, prior, surrogate, data, pending_rows, origin)
    measured = [grid.row(o.configuration) for o in observations if not o.censored]
    view = _view(problem, surrogate.posterior(data), measured, origin)
    ranking = _ranking(grid, view, settings.progress_p_feasible)
    tried = set(data.rows) | {grid.row(c) for c in excluded}
    choice = _choose(view, tried, settings)
    stop = _stop(view, ranking, grid, settings, len(observations), choice)
    if choice.row is None:
        return Suggestion(None, choice.provenance, None, None, ranking, stop)
    return Suggestion(
        configuration=grid.configuration(choice.row),
        provenance=choice.provenance,
        prediction=_prediction(view, choice.row),
        expected_gain=choice.gain,
        ranking=ranking,
        stop=stop,
    )


def arrays_of(
    problem: Problem, prior: EnsemblePrior, observations: Sequence[Observation]
) -> tuple[Data, float]:
    """Observations as arrays; latencies and powers relative to the first, whose log latency is returned."""
    origin = (
        math.log(observations[0].latency_s)
        if observations
        else math.log((problem.latency_limit_s or ANCHOR_FANTASY_RATIO) / ANCHOR_FANTASY_RATIO)
    )
    log_latency, log_power, latency_var, power_var = [], [], [], []
    for o in observations:
        latency_error = max(o.latency_error, MIN_ERROR)
        log_latency.append(math.log(o.latency_s) - origin)
        latency_var.append(latency_error**2)
        if o.energy_j is None or o.energy_error is None:
            log_power.append(math.nan)
            power_var.append(1.0)
        else:
            log_power.append(math.log(o.energy_j) - math.log(o.latency_s))
            power_var.append(max(o.energy_error, MIN_ERROR) ** 2 + latency_error**2)
    rows = [prior.grid.row(o.configuration) for o in observations]
    achieved = [
        o.achieved if o.achieved is not None and _differs(o.achieved, o.configuration) else None
        for o in observations
    ]
    if rows:
        columns = torch.from_numpy(prior.columns(rows, list(achieved)))
    else:
        columns = torch.zeros(2, prior.members, 0, dtype=torch.float64)
    return (
        Data(
            tuple(rows),
            torch.tensor(log_latency, dtype=torch.float64),
            torch.tensor(log_power, dtype=torch.float64),
            torch.tensor(latency_var, dtype=torch.float64),
            torch.tensor(power_var, dtype=torch.float64),
            torch.tensor([o.censored for o in observations], dtype=torch.bool),
            columns,
        ),
        origin,
    )


def _differs(achieved: Configuration, requested: Configuration) -> bool:
    return set(achieved) >= set(requested) and any(achieved[name] != requested[name] for name in requested)


def _with_fantasies(
    problem: Problem,
    prior: EnsemblePrior,
    surrogate: MixtureSurrogate,
    data: Data,
    pending_rows: list[int],
    origin: float,
) -> Data:
    """Running points count as observed at their posterior mean (kriging believer)."""
    if data.rows:
        posterior = surrogate.posterior(data)
        latency = (posterior.weights @ posterior.latency_mean)[pending_rows]
        power = (posterior.weights @ posterior.power_mean)[pending_rows]
    else:
        assert problem.latency_limit_s is not None
        start = math.log(problem.latency_limit_s / ANCHOR_FANTASY_RATIO) - origin
        latency = torch.full((len(pending_rows),), start, dtype=torch.float64)
        power = torch.zeros(len(pending_rows), dtype=torch.float64)
    variance = torch.full((len(pending_rows),), FANTASY_ERROR**2, dtype=torch.float64)
    columns = torch.from_numpy(prior.columns(pending_rows, [None] * len(pending_rows)))
    return Data(
        data.rows + tuple(pending_rows),
        torch.cat([data.log_latency, latency]),
        torch.cat([data.log_power, power]),
        torch.cat([data.latency_var, variance]),
        torch.cat([data.power_var, 2.0 * variance]),
        torch.cat([data.censored, torch.zeros(len(pending_rows), dtype=torch.bool)]),
        torch.cat([data.columns, columns], dim=2),
    )


def _view(problem: Problem, posterior: Posterior, observed: list[int], origin: float) -> _View:
    assert problem.latency_limit_s is not None
    log_limit = math.log(problem.latency_limit_s) - origin
    weight = problem.objective.latency_weight
    mean, _ = posterior.energy(weight)
    return _View(
        posterior,
        log_limit,
        weight,
        posterior.p_below(log_limit),
        posterior.weights @ mean,
        observed,
        origin,
    )


def _ranking(grid: Grid, view: _View, p_feasible: float) -> tuple[Candidate, ...]:
    """Measured configurations that meet `p_feasible`, cheapest first; else all, likeliest first."""
    rows = list(dict.fromkeys(view.observed))
    safe = [row for row in rows if float(view.p_feasible[row]) >= p_feasible]
    if safe:
        ordered = sorted(safe, key=lambda row: float(view.objective[row]))
    else:
        ordered = sorted(rows, key=lambda row: -float(view.p_feasible[row]))
    return tuple(Candidate(grid.configuration(row), _prediction(view, row)) for row in ordered)


def _prediction(view: _View, row: int) -> Prediction:
    posterior = view.posterior
    latency, latency_var = posterior.moments(posterior.latency_mean[:, [row]], posterior.latency_var[[row]])
    mean, variance = posterior.energy(0.0)
    energy, energy_var = posterior.moments(mean[:, [row]], variance[[row]])
    # y^P is log energy - log latency with absolute latency, y^L is relative to the origin.
    return Prediction(
        energy_j=math.exp(float(energy) + view.origin),
        energy_sd=math.sqrt(float(energy_var)),
        latency_s=math.exp(float(latency) + view.origin),
        latency_sd=math.sqrt(float(latency_var)),
        p_feasible=float(view.p_feasible[row]),
    )


@dataclass(frozen=True)
class _Choice:
    """The next row (None: nothing to try), its expected relative gain, and why.

    `remaining_gain` is the largest gain that any row offers which may be tried; `reachable` (N,) marks the
    rows that may be tried or were.
    """

    row: int | None
    gain: float | None
    provenance: str
    remaining_gain: float
    reachable: Tensor


def _choose(view: _View, tried: set[int], settings: OptimizerSettings) -> _Choice:
    n = len(view.p_feasible)
    open_rows = torch.ones(n, dtype=torch.bool)
    open_rows[list(tried)] = False
    if not bool(open_rows.any()):
        return _Choice(None, None, "exhausted", 0.0, ~open_rows)
    likely = [row for row in view.observed if float(view.p_feasible[row]) >= 0.5]
    if likely:
        incumbent = min(float(view.objective[row]) for row in likely)
        gain = constrained_improvement(view.posterior, view.log_limit, view.latency_weight, incumbent)
        score, provenance = gain, "expected improvement × P(feasible)"
    else:
        gain = torch.full((n,), math.nan, dtype=torch.float64)
        score = towards_feasible(view.posterior, view.p_feasible, view.latency_weight)
        provenance = "towards feasibility"
    reachable = torch.ones(n, dtype=torch.bool)
    remaining = float(gain[open_rows].max())
    if settings.safe:
        allowed = open_rows & (view.p_feasible >= settings.safe_p_feasible)
        provenance = f"safe mode, {provenance}"
        if bool(allowed.any()):
            # What safe mode may not try can neither be gained nor be missed.
            reachable, remaining = allowed | ~open_rows, float(gain[allowed].max())
        elif likely and len(view.observed) >= settings.floor_after:
            return _Choice(None, None, NOTHING_SAFE, 0.0, ~open_rows)
        else:
            score, allowed = view.p_feasible, open_rows
            provenance = "safe mode, likeliest to be feasible"
    else:
        floor = settings.p_feasible_floor if len(view.observed) >= settings.floor_after else 0.0
        allowed = open_rows & (view.p_feasible >= floor)
        if not bool(allowed.any()):
            allowed = open_rows
    score = torch.where(allowed, score, torch.full_like(score, -math.inf))
    row = int(torch.argmax(score))
    own = float(gain[row])
    return _Choice(row, None if math.isnan(own) else own, provenance, remaining, reachable)


def _stop(
    view: _View,
    ranking: tuple[Candidate, ...],
    grid: Grid,
    settings: OptimizerSettings,
    n_observations: int,
    choice: _Choice,
) -> StopAdvice | None:
    if not ranking or ranking[0].prediction.p_feasible < 0.5:
        return None
    row = grid.row(ranking[0].configuration)
    probability = p_within_band(view.posterior, view.log_limit, view.latency_weight, row, choice.reachable)
    gain = choice.remaining_gain
    return StopAdvice(
        stop=(
            n_observations >= settings.min_trials
            and probability > settings.stop_probability
            and gain < settings.stop_expected_gain
        ),
        rule="P(within 2 % of the best)",
        value=probability,
        threshold=settings.stop_probability,
        remaining_gain=None if math.isnan(gain) else gain,
    )
