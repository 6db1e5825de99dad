"""The optimisers that ours is compared with, each used as its own documentation shows.

They see raw readings and no standard errors. A cell that was measured is not measured again: BoTorch
chooses among the others; where Optuna or Ax propose one again they are told its reading at no cost, and
after `PATIENCE` such answers a random cell is taken. All start with the anchor.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from polythrottle.benchmarking.strategies import Move, Player, best_readings
from polythrottle.benchmarking.task import Goal
from polythrottle.configuration import Configuration
from polythrottle.errors import InvalidInputError
from polythrottle.optimizer.problem import Observation

STARTS = 5
"""Trials before a model is fitted, the anchor among them."""
PATIENCE = 20

_NEEDS: Mapping[str, str] = {"botorch": "botorch", "optuna-tpe": "optuna", "optuna-gp": "optuna", "ax": "ax"}


def missing(peer: str) -> str | None:
    """Why a peer cannot play here, or None."""
    module = _NEEDS[peer]
    return None if importlib.util.find_spec(module) else f"{module} is not installed"


def peer_player(peer: str, goal: Goal, seed: int) -> Player:
    """A new player.

    Raises:
        InvalidInputError: the peer is not installed.
    """
    absent = missing(peer)
    if absent:
        raise InvalidInputError(f"{peer} cannot play: {absent}; install polythrottle[peers].")
    makers: Mapping[str, Callable[[Goal, int], Player]] = {
        "botorch": BotorchPlayer,
        "optuna-tpe": lambda g, s: OptunaPlayer(g, s, "tpe"),
        "optuna-gp": lambda g, s: OptunaPlayer(g, s, "gp"),
        "ax": AxPlayer,
    }
    return makers[peer](goal, seed)


class _Peer:
    """What all peers share: the recommendation is the best measured feasible reading."""

    def __init__(self, goal: Goal, seed: int) -> None:
        self.goal = goal
        self.seed = seed
        self.rng = np.random.default_rng(seed)

    def ask(self, observations: Sequence[Observation]) -> Move:
        if len(observations) == len(self.goal.task.configurations):
            cell = None
        elif not observations:
            cell = self.goal.task.anchor_cell
        else:
            cell = self.choose(observations)
        return Move(cell, best_readings(self.goal, observations))

    def final(self, observations: Sequence[Observation]) -> tuple[int, ...]:
        return best_readings(self.goal, observations)

    def choose(self, observations: Sequence[Observation]) -> int:
        raise NotImplementedError

    def unseen(self, observations: Sequence[Observation]) -> list[int]:
        seen = {self.goal.task.cells[entry.configuration] for entry in observations}
        return [cell for cell in range(len(self.goal.task.configurations)) if cell not in seen]

    def random_unseen(self, observations: Sequence[Observation]) -> int:
        return int(self.rng.choice(self.unseen(observations)))


def _energy(entry: Observation) -> float:
    if entry.energy_j is None:
        raise InvalidInputError("The benchmark's peers take no censored observations.")
    return entry.energy_j


class BotorchPlayer(_Peer):
    """BoTorch's constrained loop: SingleTaskGPs with default priors, qLogNEI, all unseen grid points."""

    def __init__(self, goal: Goal, seed: int) -> None:
        super().__init__(goal, seed)
        import torch

        torch.set_num_threads(1)
        knobs = goal.task.space.knobs
        levels = [[knob.number(c[knob.name]) for knob in knobs] for c in goal.task.configurations]
        self._points = torch.tensor(levels, dtype=torch.float64)

    def choose(self, observations: Sequence[Observation]) -> int:
        if len(observations) < STARTS:
            return self.random_unseen(observations)
        import torch
        from botorch.acquisition.logei import qLogNoisyExpectedImprovement
        from botorch.acquisition.objective import GenericMCObjective
        from botorch.fit import fit_gpytorch_mll
        from botorch.models import SingleTaskGP
        from botorch.models.model_list_gp_regression import ModelListGP
        from botorch.models.transforms import Normalize, Standardize
        from botorch.sampling.normal import SobolQMCNormalSampler
        from gpytorch.mlls import SumMarginalLogLikelihood

        torch.manual_seed(self.seed * 1000 + len(observations))
        low, high = self._points.min(dim=0).values, self._points.max(dim=0).values
        bounds = torch.stack([low, torch.where(high > low, high, low + 1.0)])
        cells = [self.goal.task.cells[entry.configuration] for entry in observations]
        inputs = self._points[cells]
        outputs = [[_energy(entry) for entry in observations], [entry.latency_s for entry in observations]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = ModelListGP(
                *(
                    SingleTaskGP(
                        inputs,
                        torch.tensor(values, dtype=torch.float64).unsqueeze(-1),
                        input_transform=Normalize(inputs.shape[-1], bounds=bounds),
                        outcome_transform=Standardize(1),
                    )
                    for values in outputs
                )
            )
            fit_gpytorch_mll(SumMarginalLogLikelihood(model.likelihood, model))
            limit_s = self.goal.limit_s
            acquisition = qLogNoisyExpectedImprovement(
                model,
                X_baseline=inputs,
                sampler=SobolQMCNormalSampler(torch.Size([128]), seed=self.seed),
                objective=GenericMCObjective(_negative_energy),
                constraints=[lambda samples: samples[..., 1] / limit_s - 1.0],
                prune_baseline=True,
            )
            unseen = self.unseen(observations)
            with torch.no_grad():
                batches = torch.split(self._points[unseen].unsqueeze(-2), 512)
                values = torch.cat([acquisition(batch) for batch in batches])
        return unseen[int(values.argmax())]


def _negative_energy(samples: Any, X: Any = None) -> Any:  # noqa: ARG001
    """First output of the model, to be made large; BoTorch passes `X` by name."""
    return -samples[..., 0]


class OptunaPlayer(_Peer):
    """Optuna's TPESampler or GPSampler with `constraints_func`, one integer for each knob's level."""

    def __init__(self, goal: Goal, seed: int, sampler: str) -> None:
        super().__init__(goal, seed)
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._trials: dict[int, Any] = {}
        knobs = goal.task.space.knobs
        self._distributions: dict[str, optuna.distributions.BaseDistribution] = {
            knob.name: optuna.distributions.IntDistribution(0, len(knob.levels) - 1) for knob in knobs
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make = optuna.samplers.TPESampler if sampler == "tpe" else optuna.samplers.GPSampler
            self._study = optuna.create_study(
                direction="minimize",
                sampler=make(n_startup_trials=STARTS, seed=seed, constraints_func=_constraint),
            )
        self._study.enqueue_trial(self._levels(goal.task.anchor_cell))

    def _levels(self, cell: int) -> dict[str, int]:
        space = self.goal.task.space
        index = space.index_of(self.goal.task.configurations[cell])
        return dict(zip(space.names, index, strict=True))

    def _cell(self, params: Mapping[str, int]) -> int | None:
        """The cell at these levels; None where the table has no such row."""
        space = self.goal.task.space
        return self.goal.task.cells.get(space.at([params[name] for name in space.names]))

    def _tell(self, trial: Any, entry: Observation) -> None:
        trial.set_user_attr("constraint", entry.latency_s / self.goal.limit_s - 1.0)
        self._study.tell(trial, _energy(entry))

    def ask(self, observations: Sequence[Observation]) -> Move:
        import optuna

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            known = {self.goal.task.cells[entry.configuration]: entry for entry in observations}
            for cell in [cell for cell in self._trials if cell in known]:
                self._tell(self._trials.pop(cell), known[cell])
            ranking = best_readings(self.goal, observations)
            if not self.unseen(observations):
                return Move(None, ranking)
            for _ in range(PATIENCE):
                trial = self._study.ask(self._distributions)
                proposed = self._cell(trial.params)
                if proposed is None:
                    self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
                elif proposed in known:
                    self._tell(trial, known[proposed])
                else:
                    self._trials[proposed] = trial
                    return Move(proposed, ranking)
            cell = self.random_unseen(observations)
            self._study.enqueue_trial(self._levels(cell))
            self._trials[cell] = self._study.ask(self._distributions)
            return Move(cell, ranking)


def _constraint(trial: Any) -> tuple[float]:
    return (float(trial.user_attrs["constraint"]),)


class AxPlayer(_Peer):
    """Ax's client with its fast generation strategy, ordered choice parameters and an outcome constraint."""

    def __init__(self, goal: Goal, seed: int) -> None:
        super().__init__(goal, seed)
        from ax.api.client import Client
        from ax.api.configs import RangeParameterConfig

        logging.getLogger("ax").setLevel(logging.ERROR)
        self._pending: dict[int, int] = {}
        self._client = Client(random_seed=seed)
        self._client.configure_experiment(
            parameters=[
                RangeParameterConfig(
                    name=knob.name, parameter_type="int", bounds=(0, max(len(knob.levels) - 1, 1))
                )
                for knob in goal.task.space.knobs
            ]
        )
        self._client.configure_optimization("-energy_j", outcome_constraints=["relative_latency <= 1.0"])
        self._client.configure_generation_strategy(
            method="fast", initialization_budget=STARTS, initialization_random_seed=seed
        )

    def _data(self, entry: Observation) -> dict[str, float]:
        return {"energy_j": _energy(entry), "relative_latency": entry.latency_s / self.goal.limit_s}

    def _cell(self, params: Mapping[str, Any]) -> int | None:
        knobs = self.goal.task.space.knobs
        index = [min(int(params[knob.name]), len(knob.levels) - 1) for knob in knobs]
        return self.goal.task.cells.get(self.goal.task.space.at(index))

    def _levels(self, configuration: Configuration) -> dict[str, int]:
        space = self.goal.task.space
        return dict(zip(space.names, space.index_of(configuration), strict=True))

    def ask(self, observations: Sequence[Observation]) -> Move:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return super().ask(observations)

    def choose(self, observations: Sequence[Observation]) -> int:
        known = {self.goal.task.cells[entry.configuration]: entry for entry in observations}
        if len(observations) == 1:
            first = self._client.attach_trial(self._levels(observations[0].configuration))
            self._client.complete_trial(first, raw_data=self._data(observations[0]))
        for cell in [cell for cell in self._pending if cell in known]:
            self._client.complete_trial(self._pending.pop(cell), raw_data=self._data(known[cell]))
        for _ in range(PATIENCE):
            ((trial, params),) = self._client.get_next_trials(max_trials=1).items()
            proposed = self._cell(params)
            if proposed is None:
                self._client.mark_trial_failed(trial)
            elif proposed in known:
                self._client.complete_trial(trial, raw_data=self._data(known[proposed]))
            else:
                self._pending[proposed] = trial
                return proposed
        cell = self.random_unseen(observations)
        self._pending[cell] = self._client.attach_trial(self._levels(self.goal.task.configurations[cell]))
        return cell
