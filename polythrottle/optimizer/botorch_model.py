"""The mixture surrogate as a BoTorch `Model`, for any BoTorch acquisition function.

`suggest` itself uses the bare algebra of `acquisition.py`: it gives the same numbers (a test holds them
together) and is many times faster, because a mixture posterior here builds and factorises a covariance
for each point and member. docs/optimizer.md has the ratio and the command that printed it.
"""

from __future__ import annotations

from typing import Any

import torch
from botorch.models.model import Model
from botorch.posteriors.fully_bayesian import GaussianMixturePosterior
from gpytorch.distributions import MultitaskMultivariateNormal
from torch import Tensor

from polythrottle.optimizer.surrogate import Posterior

ENERGY, LATENCY = 0, 1


class MixtureModel(Model):
    """Outputs (log objective, y^L) at grid points, one ensemble member per batch entry.

    BoTorch weighs ensemble members equally, so `size` members are resampled by weight, systematically
    (no random numbers): with `size` = 64 the weights are matched to within 1/64.
    """

    _is_ensemble = True

    def __init__(self, posterior: Posterior, coordinates: Tensor, latency_weight: float, size: int) -> None:
        """coordinates: (N, d) of the grid the posterior is on."""
        super().__init__()
        mean, variance = posterior.energy(latency_weight)
        self.members = _systematic(posterior.weights, size)
        self._coordinates = coordinates
        self._means = torch.stack([mean[self.members], posterior.latency_mean[self.members]], -1)
        scale = 1.0 + latency_weight
        covariance = torch.zeros(len(coordinates), 2, 2, dtype=torch.float64)
        covariance[:, ENERGY, ENERGY] = variance
        covariance[:, LATENCY, LATENCY] = posterior.latency_var
        covariance[:, ENERGY, LATENCY] = covariance[:, LATENCY, ENERGY] = scale * posterior.latency_var
        self._covariances = covariance

    @property
    def num_outputs(self) -> int:
        return 2

    @property
    def batch_shape(self) -> torch.Size:
        return torch.Size([len(self.members)])

    def posterior(self, X: Tensor, *_: Any, **__: Any) -> GaussianMixturePosterior:
        """X: b × 1 × d coordinates of grid points → b × size × 1 × 2."""
        rows = torch.cdist(X.reshape(-1, X.shape[-1]), self._coordinates).argmin(1)
        mean = self._means[:, rows].transpose(0, 1).unsqueeze(-2)
        covariance = self._covariances[rows].unsqueeze(1).expand(-1, len(self.members), 2, 2)
        return GaussianMixturePosterior(MultitaskMultivariateNormal(mean, covariance))


def _systematic(weights: Tensor, size: int) -> Tensor:
    """(size,) member indices whose counts follow the weights."""
    positions = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    return torch.searchsorted(torch.cumsum(weights, 0), positions).clamp_max(len(weights) - 1)
