"""The BoTorch wrapper and the bare algebra must be the same model."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from botorch.acquisition.analytic import LogConstrainedExpectedImprovement

from polythrottle.configuration import Configuration
from polythrottle.optimizer.acquisition import constrained_improvement
from polythrottle.optimizer.botorch_model import ENERGY, LATENCY, MixtureModel
from polythrottle.optimizer.informed import arrays_of
from polythrottle.optimizer.prior import EnsemblePrior
from polythrottle.optimizer.problem import Observation, OptimizerSettings, Problem
from polythrottle.optimizer.suggest import build_prior
from polythrottle.optimizer.surrogate import MixtureSurrogate


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("latency_weight", [0.0, 1.0])
def test_botorch_constrained_improvement_equals_ours(
    problem: Problem, observe: Callable[[Configuration], Observation], latency_weight: float
) -> None:
    prior = build_prior(problem, OptimizerSettings(members=500))
    assert isinstance(prior, EnsemblePrior)
    observations = [observe(problem.anchor)] + [
        observe(problem.space.at(i)) for i in problem.space.indices()[4:90:17]
    ]
    data, origin = arrays_of(problem, prior, observations)
    posterior = MixtureSurrogate(prior).posterior(data)
    assert problem.latency_limit_s is not None
    limit = math.log(problem.latency_limit_s) - origin
    mean, _ = posterior.energy(latency_weight)
    incumbent = float((posterior.weights @ mean)[list(data.rows)].min())
    coordinates = torch.from_numpy(prior.grid.coordinates)
    model = MixtureModel(posterior, coordinates, latency_weight, size=2048)
    acquisition = LogConstrainedExpectedImprovement(
        model, incumbent, objective_index=ENERGY, constraints={LATENCY: (None, limit)}, maximize=False
    )
    with torch.no_grad():
        theirs = acquisition(coordinates.unsqueeze(1)).exp()
    ours = constrained_improvement(posterior, limit, latency_weight, incumbent)
    assert float((theirs - ours).abs().max()) < 0.01 * float(ours.max())
