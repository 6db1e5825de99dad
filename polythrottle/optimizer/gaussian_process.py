"""Gaussian-process strategies on BoTorch: `flat` (ours without physics) and `polythrottle` (the paper's).

Both use `SingleTaskGP` with the measured noise and `LogConstrainedExpectedImprovement`, evaluated exactly
on every grid point as N × 1 × d batches; never one joint N × N covariance.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from botorch.acquisition.analytic import LogConstrainedExpectedImprovement
from botorch.exceptions.warnings import BotorchWarning
from botorch.fit import fit_gpytorch_mll
from botorch.models.gp_regression import SingleTaskGP
from botorch.models.model_list_gp_regression import ModelListGP
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import MaternKernel, ScaleKernel
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.priors import LogNormalPrior
from linear_operator.utils.warnings import NumericalWarning
from torch import Tensor

from polythrottle.configuration import Configuration
from polythrottle.optimizer.grid import Grid
from polythrottle.optimizer.informed import MIN_ERROR
from polythrottle.optimizer.problem import Observation, OptimizerSettings, Problem
from polythrottle.optimizer.unmodelled import raw_ranking
from polythrottle.suggestion import Candidate, Prediction, StopAdvice, Suggestion

PAPER_RANDOM_STARTS = 5
PAPER_XI = 0.1
"""Exploration of the paper's EI, in units of the standardised objective."""
_RESTART_LENGTHS = (0.5, 1.5)
_ENERGY, _LATENCY = 0, 1


@dataclass(frozen=True)
class _Fit:
    """Standardised outputs and the fitted models. centre, spread: (2,) of energy and latency."""

    model: ModelListGP
    centre: Tensor
    spread: Tensor

    def posterior(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 2) means and variances, standardised."""
        with torch.no_grad():
            found = self.model.posterior(points.unsqueeze(1))
            return found.mean.squeeze(1), found.variance.squeeze(1).clamp_min(1e-12)


def suggest_flat(
    problem: Problem,
    grid: Grid,
    observations: Sequence[Observation],
    pending: Sequence[Configuration],
    excluded: frozenset[Configuration],
    settings: OptimizerSettings,
) -> Suggestion:
    """GPs on log energy and log latency over log-scaled knobs, max clocks first."""
    if not observations and not pending:
        return Suggestion(problem.anchor, "anchor", notes=("Max clocks first: it fixes the scale.",))
    usable = [o for o in observations if o.energy_j is not None]
    if problem.latency_limit_s is None or not usable:
        return Suggestion(None, "waiting", notes=("Max clocks must be measured first.",))
    points = torch.from_numpy(grid.coordinates)
    rows = [grid.row(o.configuration) for o in usable]
    weight = problem.objective.latency_weight
    latency = torch.tensor([math.log(o.latency_s) for o in usable], dtype=torch.float64)
    energy = torch.tensor([math.log(o.energy_j or 1.0) for o in usable], dtype=torch.float64)
    latency_var = torch.tensor([max(o.latency_error, MIN_ERROR) ** 2 for o in usable], dtype=torch.float64)
    energy_var = torch.tensor(
        [max(o.energy_error or 0.0, MIN_ERROR) ** 2 for o in usable], dtype=torch.float64
    )
    values = torch.stack([energy + weight * latency, latency], 1)
    noise = torch.stack([energy_var + weight**2 * latency_var, latency_var], 1)
    fit = _fit(points[rows], values, noise)
    limit = (math.log(problem.latency_limit_s) - float(fit.centre[_LATENCY])) / float(fit.spread[_LATENCY])
    mean, variance = fit.posterior(points)
    p_feasible = torch.special.ndtr((limit - mean[:, _LATENCY]) / variance[:, _LATENCY].sqrt())
    # Censored trials carry no energy: they count as tried, and as infeasible where they were cut short.
    likely = [row for row in rows if float(p_feasible[row]) >= 0.5]
    open_rows = _open(len(grid), grid, observations, pending, excluded)
    if not bool(open_rows.any()):
        row, gain = None, 0.0
    elif likely:
        incumbent = min(float(mean[row, _ENERGY]) for row in likely)
        log_gain = _log_constrained_ei(fit, points, incumbent, limit)
        allowed = open_rows & (p_feasible >= settings.safe_p_feasible) if settings.safe else open_rows
        score = log_gain if bool(allowed.any()) else torch.log(p_feasible.clamp_min(1e-300))
        row = _argmax(score, allowed if bool(allowed.any()) else open_rows)
        gain = float(torch.exp(log_gain[open_rows].max()) * fit.spread[_ENERGY])
    else:
        row, gain = _argmax(torch.log(p_feasible.clamp_min(1e-300)), open_rows), math.nan

    def prediction(index: int) -> Prediction:
        log_latency = float(fit.centre[_LATENCY] + fit.spread[_LATENCY] * mean[index, _LATENCY])
        objective = float(fit.centre[_ENERGY] + fit.spread[_ENERGY] * mean[index, _ENERGY])
        return Prediction(
            energy_j=math.exp(objective - weight * log_latency),
            energy_sd=float(fit.spread[_ENERGY] * variance[index, _ENERGY].sqrt()),
            latency_s=math.exp(log_latency),
            latency_sd=float(fit.spread[_LATENCY] * variance[index, _LATENCY].sqrt()),
            p_feasible=float(p_feasible[index]),
        )

    safe = [r for r in dict.fromkeys(rows) if float(p_feasible[r]) >= settings.progress_p_feasible]
    ordered = (
        sorted(safe, key=lambda r: float(mean[r, _ENERGY]))
        if safe
        else sorted(dict.fromkeys(rows), key=lambda r: -float(p_feasible[r]))
    )
    ranking = tuple(Candidate(grid.configuration(r), prediction(r)) for r in ordered)
    stop = None
    if not math.isnan(gain):
        stop = StopAdvice(
            stop=len(observations) >= settings.min_trials and gain < settings.flat_stop_expected_gain,
            rule="expected gain × P(feasible)",
            value=gain,
            threshold=settings.flat_stop_expected_gain,
            remaining_gain=gain,
        )
    if row is None:
        return Suggestion(None, "exhausted", ranking=ranking, stop=stop)
    return Suggestion(
        grid.configuration(row),
        "expected improvement × P(feasible), no physics",
        prediction(row),
        None if math.isnan(gain) else gain,
        ranking,
        stop,
    )


def suggest_paper(
    problem: Problem,
    grid: Grid,
    observations: Sequence[Observation],
    pending: Sequence[Configuration],
    excluded: frozenset[Configuration],
    settings: OptimizerSettings,
    seed: int,
) -> Suggestion:
    """PolyThrottle §5.1: 5 random starts, GPs on raw standardised outputs, EI × PF with ξ = 0.1.

    The paper leaves the kernel, noise model and scaling open; taken here: Matérn 5/2 with one length
    scale per knob, measured noise, levels scaled to [0, 1]. Its stopping rule is an oracle, so this
    strategy never stops by itself.
    """
    ranking = raw_ranking(problem, observations, settings.progress_p_feasible)
    open_rows = _open(len(grid), grid, observations, pending, excluded)
    if not bool(open_rows.any()):
        return Suggestion(None, "exhausted", ranking=ranking)
    usable = [o for o in observations if o.energy_j is not None]
    searched = sum(o.configuration != problem.anchor for o in observations) + len(pending)
    if searched < PAPER_RANDOM_STARTS or len(usable) < 2 or problem.latency_limit_s is None:
        rows = torch.nonzero(open_rows).flatten().tolist()
        return Suggestion(
            grid.configuration(random.Random(seed).choice(rows)), "random start", ranking=ranking
        )
    points = _linear(grid)
    rows = [grid.row(o.configuration) for o in usable]
    latency = torch.tensor([o.latency_s for o in usable], dtype=torch.float64)
    objective = torch.tensor(
        [problem.objective.of(o.energy_j or 0.0, o.latency_s) for o in usable], dtype=torch.float64
    )
    errors = [
        (
            math.hypot(o.energy_error or 0.0, problem.objective.latency_weight * o.latency_error),
            o.latency_error,
        )
        for o in usable
    ]
    relative = torch.tensor(errors, dtype=torch.float64).clamp_min(MIN_ERROR)
    values = torch.stack([objective, latency], 1)
    fit = _fit(points[rows], values, (relative * values) ** 2)
    limit = (problem.latency_limit_s - float(fit.centre[_LATENCY])) / float(fit.spread[_LATENCY])
    feasible = [i for i, o in enumerate(usable) if o.latency_s <= problem.latency_limit_s]
    standardised = (objective - fit.centre[_ENERGY]) / fit.spread[_ENERGY]
    mean, variance = fit.posterior(points)
    if feasible:
        best = min(float(standardised[i]) for i in feasible) - PAPER_XI
        score = _log_constrained_ei(fit, points, best, limit)
        gain = float(torch.exp(score[open_rows].max()) * fit.spread[_ENERGY] / objective.min())
    else:
        # No feasible start: the paper leaves it open; take the likeliest to be feasible (Gardner et al.).
        score, gain = (limit - mean[:, _LATENCY]) / variance[:, _LATENCY].sqrt(), None
    row = _argmax(score, open_rows)
    at = mean[row] * fit.spread + fit.centre
    sd = variance[row].sqrt() * fit.spread
    latency_s = max(float(at[_LATENCY]), 1e-9)
    energy_j = max(float(at[_ENERGY]), 1e-12) / latency_s**problem.objective.latency_weight
    prediction = Prediction(
        energy_j,
        float(sd[_ENERGY] / at[_ENERGY].abs().clamp_min(1e-12)),
        latency_s,
        float(sd[_LATENCY]) / latency_s,
        float(torch.special.ndtr((limit - mean[row, _LATENCY]) / variance[row, _LATENCY].sqrt())),
    )
    return Suggestion(grid.configuration(row), "EI × PF, ξ = 0.1", prediction, gain, ranking)


def _linear(grid: Grid) -> Tensor:
    """(N, d) levels scaled to [0, 1]; a category stands at the highest number."""
    columns = []
    for k, knob in enumerate(grid.space.knobs):
        numbers = torch.tensor([knob.number(level) for level in knob.levels], dtype=torch.float64)
        span = float(numbers.max() - numbers.min()) or 1.0
        columns.append(((numbers - numbers.min()) / span)[torch.from_numpy(grid.indices[:, k])])
    return torch.stack(columns, 1)


def _open(
    n: int,
    grid: Grid,
    observations: Sequence[Observation],
    pending: Sequence[Configuration],
    excluded: frozenset[Configuration],
) -> Tensor:
    mask = torch.ones(n, dtype=torch.bool)
    for configuration in (*(o.configuration for o in observations), *pending, *excluded):
        mask[grid.row(configuration)] = False
    return mask


def _argmax(score: Tensor, allowed: Tensor) -> int:
    score = torch.nan_to_num(score, nan=-1e300, neginf=-1e300)
    return int(torch.argmax(torch.where(allowed, score, torch.full_like(score, -math.inf))))


def _fit(inputs: Tensor, values: Tensor, noise: Tensor) -> _Fit:
    """Two GPs (energy, latency) on standardised values, each from two starts; the likelier is kept."""
    centre = values.mean(0)
    spread = values.std(0) if len(values) > 1 else torch.zeros(2, dtype=torch.float64)
    # Constant outputs (or a single point) have no spread: fall back to the size of the values.
    spread = torch.where(spread > 1e-9 * centre.abs(), spread, centre.abs().clamp_min(1.0))
    # GPyTorch rounds variances below 1e-6 up with a warning; ours are never that exact.
    standardised, scaled = (values - centre) / spread, (noise / spread**2).clamp_min(1e-6)
    models = [_fit_one(inputs, standardised[:, [o]], scaled[:, [o]]) for o in range(2)]
    return _Fit(ModelListGP(*models), centre, spread)


def _fit_one(inputs: Tensor, values: Tensor, noise: Tensor) -> SingleTaskGP:
    best: tuple[float, SingleTaskGP] | None = None
    for length in _RESTART_LENGTHS:
        model = _model(inputs, values, noise, length)
        mll = ExactMarginalLogLikelihood(model.likelihood, model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BotorchWarning)
            warnings.simplefilter("ignore", NumericalWarning)
            warnings.simplefilter("ignore", RuntimeWarning)
            fit_gpytorch_mll(mll, optimizer_kwargs={"options": {"maxiter": 75}})
        model.train()
        with torch.no_grad():
            value = float(mll(model(*model.train_inputs), model.train_targets))
        model.eval()
        if best is None or value > best[0]:
            best = (value, model)
    assert best is not None
    return best[1]


def _model(inputs: Tensor, values: Tensor, noise: Tensor, length: float) -> SingleTaskGP:
    """Matérn 5/2 with a length scale per knob; log-space constraints fit in a quarter of the steps."""
    d = inputs.shape[1]
    kernel = ScaleKernel(
        MaternKernel(
            nu=2.5,
            ard_num_dims=d,
            lengthscale_prior=LogNormalPrior(math.log(0.7) + 0.3 * math.log(d), 0.8),
            lengthscale_constraint=GreaterThan(
                2.5e-2, transform=torch.exp, inv_transform=torch.log, initial_value=length
            ),
        ),
        outputscale_prior=LogNormalPrior(0.0, 1.0),
        outputscale_constraint=GreaterThan(
            1e-2, transform=torch.exp, inv_transform=torch.log, initial_value=1.0
        ),
    )
    return SingleTaskGP(
        inputs,
        values,
        train_Yvar=noise,
        likelihood=FixedNoiseGaussianLikelihood(noise=noise.squeeze(-1)),
        covar_module=kernel,
        outcome_transform=None,
    )


def _log_constrained_ei(fit: _Fit, points: Tensor, best: float, limit: float) -> Tensor:
    """(N,) log of EI × P(latency ≤ limit), standardised."""
    acquisition = LogConstrainedExpectedImprovement(
        model=fit.model,
        best_f=best,
        objective_index=_ENERGY,
        constraints={_LATENCY: (None, limit)},
        maximize=False,
    )
    with torch.no_grad():
        return torch.as_tensor(acquisition(points.unsqueeze(1)))
