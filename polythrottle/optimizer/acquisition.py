"""What is worth trying next: constrained expected improvement, exact over the whole grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from polythrottle.optimizer.surrogate import Posterior

_SQRT_2PI = math.sqrt(2.0 * math.pi)
NO_INCUMBENT_TRADE = 0.3
"""Weight of energy against log P(feasible) while nothing feasible is known."""
BLOCK = 8192
STOP_BAND = 0.02
"""The stopping rule asks whether the recommendation is within this share of the best."""


def constrained_improvement(
    posterior: Posterior, log_limit: float, latency_weight: float, incumbent: float
) -> Tensor:
    """(N,) expected relative saving times feasibility, averaged over the members.

    Averaging the product keeps the dependence of energy and latency across members.
    """
    mean, variance = posterior.energy(latency_weight)
    blocks = []
    # In blocks, so that a grid of 50,000 points does not need a dozen arrays of members × points at once.
    for block in torch.split(torch.arange(mean.shape[1]), BLOCK):
        sd = variance[block].sqrt()
        u = (incumbent - mean[:, block]) / sd
        improvement = sd * (u * torch.special.ndtr(u) + torch.exp(-0.5 * u * u) / _SQRT_2PI)
        z = (log_limit - posterior.latency_mean[:, block]) / posterior.latency_var[block].sqrt()
        blocks.append(posterior.weights @ (improvement.clamp_min(0.0) * torch.special.ndtr(z)))
    return torch.cat(blocks)


def towards_feasible(posterior: Posterior, p_feasible: Tensor, latency_weight: float) -> Tensor:
    """(N,) score while nothing feasible is known: likely feasible, and cheap among equals."""
    mean, _ = posterior.energy(latency_weight)
    energy = posterior.weights @ mean
    return torch.log(p_feasible.clamp_min(1e-300)) - NO_INCUMBENT_TRADE * (energy - energy.min())


def p_within_band(
    posterior: Posterior, log_limit: float, latency_weight: float, row: int, reachable: Tensor
) -> float:
    """Share of members for which `row` costs at most `STOP_BAND` more than their best feasible point.

    reachable: (N,) points that count. Uses the members' mean surfaces, so it is not calibrated; the
    benchmarks print how often a search that stopped by it was within 5 %.
    """
    mean, _ = posterior.energy(latency_weight)
    feasible = (posterior.latency_mean <= log_limit) & reachable
    best = torch.where(feasible, mean, torch.full_like(mean, math.inf)).min(dim=1).values
    close = mean[:, row] <= best + STOP_BAND
    return float(posterior.weights @ close.double())
