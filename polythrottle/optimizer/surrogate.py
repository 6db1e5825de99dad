"""The mixture surrogate: a kernel-density prior in function space around physical models.

For each output o in {L, P} and each member m, given bandwidth rho and discrepancy scale s,

    f_o = mean_o + sqrt(1 - rho) (member_om - mean_o) + GP(0, rho·F_o F_oᵀ + s²·Matern52(ls) + OFFSET)

with the member shared by both outputs. rho → 0 is Bayesian model averaging over the members with a
discrepancy; rho = 1 is one low-rank Gaussian process. Hyper-parameters lie on a grid and the likeliest
pair of cells is kept: no gradients, so the result is deterministic.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from gpytorch.kernels import MaternKernel
from torch import Tensor

from polythrottle.optimizer.prior import EnsemblePrior

OFFSET = 25.0
"""Variance of the unknown scale (log units): the first observation settles it."""
RHOS = (0.03, 0.1, 0.3, 1.0)
KEPT_CELLS = 5
KEPT_MEMBERS = 64
_CENSOR_ROUNDS = 2


@dataclass(frozen=True)
class Data:
    """What was observed, as arrays over n points.

    rows: grid rows. log_latency, log_power: y^L and y^P; NaN in log_power where energy is unknown.
    latency_var, power_var: their variances. censored: y^L is a lower bound.
    columns: (2, M, n) members at the clocks that ran.
    """

    rows: tuple[int, ...]
    log_latency: Tensor
    log_power: Tensor
    latency_var: Tensor
    power_var: Tensor
    censored: Tensor
    columns: Tensor


@dataclass(frozen=True)
class Posterior:
    """C members on N points; weights sum to 1.

    latency_mean, power_mean: (C, N). latency_var, power_var: (N,), shared by the members.
    """

    weights: Tensor
    latency_mean: Tensor
    power_mean: Tensor
    latency_var: Tensor
    power_var: Tensor

    def p_below(self, limit: float) -> Tensor:
        """(N,) probability that y^L ≤ limit."""
        z = (limit - self.latency_mean) / self.latency_var.sqrt()
        return torch.matmul(self.weights, torch.special.ndtr(z))

    def energy(self, latency_weight: float) -> tuple[Tensor, Tensor]:
        """(C, N) mean and (N,) variance of y^P + (1 + latency_weight)·y^L, the log objective."""
        scale = 1.0 + latency_weight
        return (
            self.power_mean + scale * self.latency_mean,
            self.power_var + scale * scale * self.latency_var,
        )

    def moments(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) mean and variance of the mixture with these (C, N) means and (N,) variance."""
        centre = self.weights @ mean
        return centre, variance + self.weights @ (mean - centre) ** 2


@dataclass(frozen=True)
class _Cell:
    """One output under one setting of the hyper-parameters."""

    rho: float
    scale: float
    length: float
    cholesky: Tensor
    residuals: Tensor
    log_likelihood: Tensor


@dataclass(frozen=True)
class _Output:
    """One output's prior and data: the n points where it was observed."""

    mean: Tensor
    factors: Tensor
    rows: list[int]
    values: Tensor
    noise: Tensor
    columns: Tensor


class MixtureSurrogate:
    """Fits the mixture to data; everything is exact over the whole grid.

    `wide` (a knob the physics does not know) gives the discrepancy more freedom.
    """

    def __init__(self, prior: EnsemblePrior) -> None:
        self._prior = prior
        self._mean = torch.from_numpy(prior.mean)
        self._factors = torch.from_numpy(prior.factors)
        self._coordinates = torch.from_numpy(np.ascontiguousarray(prior.grid.coordinates))
        self._scales: tuple[float, ...]
        self._lengths: tuple[float, ...]
        if prior.wide:
            self._scales = (0.06, 0.12, 0.25, 0.5, 1.0)
            self._lengths = (0.4, 1.0, 2.0)
            self._scale_median = 0.3
        else:
            self._scales = (0.015, 0.04, 0.1, 0.25)
            self._lengths = (0.5,)
            self._scale_median = 0.06
        self._kernels: dict[float, MaternKernel] = {}
        for length in self._lengths:
            kernel = MaternKernel(nu=2.5).double()
            kernel.lengthscale = length
            self._kernels[length] = kernel.requires_grad_(False)

    def posterior(self, data: Data) -> Posterior:
        """Condition on the data; censored latencies are imputed by their truncated mean first."""
        if bool(data.censored.any()):
            data = self._imputed(data)
        return self._fit(data)

    def _imputed(self, data: Data) -> Data:
        """Replace each lower bound by E[y | y ≥ bound] under the model of the rest."""
        values, variances = data.log_latency.clone(), data.latency_var.clone()
        keep = ~data.censored
        if not bool(keep.any()):
            keep = torch.ones_like(data.censored)
        for round_ in range(_CENSOR_ROUNDS):
            known = keep if round_ == 0 else torch.ones_like(keep)
            fitted = self._fit(_subset(data, known, values, variances))
            for i in torch.nonzero(data.censored).flatten().tolist():
                row = data.rows[i]
                mean, variance = fitted.moments(fitted.latency_mean[:, [row]], fitted.latency_var[[row]])
                values[i], variances[i] = _truncated(
                    float(mean), math.sqrt(float(variance)), float(data.log_latency[i])
                )
                variances[i] += data.latency_var[i]
        return Data(
            data.rows,
            values,
            data.log_power,
            variances,
            data.power_var,
            torch.zeros_like(data.censored),
            data.columns,
        )

    def _fit(self, data: Data) -> Posterior:
        latency = self._output(0, data, data.log_latency, data.latency_var)
        power = self._output(1, data, data.log_power, data.power_var)
        latency_cells, power_cells = self._cells(latency), self._cells(power)
        joint = [a.log_likelihood + b.log_likelihood for a in latency_cells for b in power_cells]
        pairs = list(itertools.product(latency_cells, power_cells))
        evidence = [float(torch.logsumexp(log_likelihood, 0)) for log_likelihood in joint]
        likeliest = evidence.index(max(evidence))
        latency_cell, power_cell = pairs[likeliest]
        best = torch.topk(joint[likeliest], min(KEPT_MEMBERS, self._prior.members))
        surfaces = torch.from_numpy(self._prior.surfaces(best.indices.numpy())).double()
        latency_mean, latency_var = self._condition(latency, latency_cell, best.indices, surfaces[0])
        power_mean, power_var = self._condition(power, power_cell, best.indices, surfaces[1])
        return Posterior(torch.softmax(best.values, 0), latency_mean, power_mean, latency_var, power_var)

    def _output(self, o: int, data: Data, values: Tensor, variances: Tensor) -> _Output:
        known = torch.nonzero(~torch.isnan(values)).flatten()
        rows = [data.rows[i] for i in known.tolist()]
        return _Output(
            self._mean[o], self._factors[o], rows, values[known], variances[known], data.columns[o][:, known]
        )

    def _matern(self, length: float, rows: list[int]) -> Tensor:
        with torch.no_grad():
            kernel = self._kernels[length](self._coordinates, self._coordinates[rows])
            return torch.as_tensor(kernel.to_dense())

    def _cells(self, output: _Output) -> list[_Cell]:
        """The likeliest hyper-parameters of one output, each with all members' log likelihoods."""
        low = output.factors[output.rows]
        spread = output.columns - output.mean[output.rows]
        n = len(output.rows)
        base = OFFSET + torch.diag(output.noise)
        cells = []
        for length in self._lengths:
            matern = self._matern(length, output.rows)[output.rows] if n else torch.zeros(0, 0).double()
            for rho, scale in itertools.product(RHOS, self._scales):
                kernel = rho * (low @ low.T) + scale * scale * matern + base
                cholesky = torch.linalg.cholesky(kernel)
                residuals = output.values - output.mean[output.rows] - math.sqrt(1.0 - rho) * spread
                white = torch.linalg.solve_triangular(cholesky, residuals.T, upper=False)
                log_likelihood = (
                    -0.5 * (white * white).sum(0)
                    - torch.log(torch.diagonal(cholesky)).sum()
                    - 0.5 * (math.log(scale / self._scale_median) / 0.8) ** 2
                    - 0.5 * (math.log(rho / 0.2) / 1.2) ** 2
                )
                cells.append(_Cell(rho, scale, length, cholesky, residuals, log_likelihood))
        cells.sort(key=lambda cell: -float(torch.logsumexp(cell.log_likelihood, 0)))
        return cells[:KEPT_CELLS]

    def _condition(
        self, output: _Output, cell: _Cell, members: Tensor, surfaces: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(c, N) means of the chosen members on the grid, and the (N,) variance they share."""
        mean = output.mean + math.sqrt(1.0 - cell.rho) * (surfaces - output.mean)
        own = cell.rho * (output.factors**2).sum(1) + cell.scale**2 + OFFSET
        if not output.rows:
            return mean, own
        cross = (
            cell.rho * (output.factors @ output.factors[output.rows].T)
            + cell.scale**2 * self._matern(cell.length, output.rows)
            + OFFSET
        )
        solved = torch.cholesky_solve(cell.residuals[members].T, cell.cholesky)
        mean = mean + (cross @ solved).T
        explained = torch.linalg.solve_triangular(cell.cholesky, cross.T, upper=False).pow(2).sum(0)
        variance = (own - explained).clamp_min(1e-10)
        return mean, variance


def _subset(data: Data, keep: Tensor, values: Tensor, variances: Tensor) -> Data:
    kept = torch.nonzero(keep).flatten()
    return Data(
        tuple(data.rows[i] for i in kept.tolist()),
        values[kept],
        data.log_power[kept],
        variances[kept],
        data.power_var[kept],
        torch.zeros(len(kept), dtype=torch.bool),
        data.columns[:, :, kept],
    )


def _truncated(mean: float, sd: float, lower: float) -> tuple[float, float]:
    """Mean and variance of a normal known to lie above `lower`."""
    z = min((lower - mean) / sd, 8.0)
    tail = 0.5 * math.erfc(z / math.sqrt(2.0))
    hazard = math.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi) / max(tail, 1e-300)
    variance = sd * sd * max(1.0 + z * hazard - hazard * hazard, 1e-3)
    return max(mean + sd * hazard, lower), variance
