"""Who plays: our strategies through `build_prior` and `suggest`, and the peers behind the same interface."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import polythrottle
from polythrottle.benchmarking.task import BATCH_CAP, FAMILIES, THREE_KNOB, Goal
from polythrottle.errors import InvalidInputError, did_you_mean
from polythrottle.optimizer.problem import Observation, OptimizerSettings
from polythrottle.study import Strategy
from polythrottle.suggestion import Suggestion


class BrokenInvariantError(Exception):
    """A strategy answered what it must never answer."""


@dataclass(frozen=True)
class Move:
    """The next cell to measure (None: nothing left) and what is known so far.

    `ranking`: measured cells that could be recommended, best first. `stop_rule` is set where the strategy
    would stop now.
    """

    cell: int | None
    ranking: tuple[int, ...]
    stop_rule: str | None = None


class Player(Protocol):
    """A strategy playing one run. Setting up is the constructor's job and is timed apart."""

    def ask(self, observations: Sequence[Observation]) -> Move:
        """The next move; `observations` holds one entry for each cell measured so far, in order."""

    def final(self, observations: Sequence[Observation]) -> tuple[int, ...]:
        """Measured cells in the order they should be installed, judged by the stricter threshold."""


def best_readings(goal: Goal, observations: Sequence[Observation]) -> tuple[int, ...]:
    """Measured cells by their readings alone: feasible ones by energy, then the others by latency."""

    def order(entry: Observation) -> tuple[bool, float]:
        late = entry.latency_s > goal.limit_s
        return late, entry.latency_s if late or entry.energy_j is None else entry.energy_j

    return tuple(goal.task.cells[entry.configuration] for entry in sorted(observations, key=order))


class OurPlayer:
    """One of our strategies, through the optimiser's public functions."""

    _last_prior: tuple[object, Any] | None = None
    """The last prior built in this process: SLOs and safe mode share it."""

    def __init__(self, goal: Goal, settings: OptimizerSettings, seed: int) -> None:
        from polythrottle.optimizer.suggest import build_prior, suggest

        self._suggest = suggest
        self._goal, self._seed = goal, seed
        self._settings = replace(settings, draw_seed=seed)
        key = (goal.task.space.digest, goal.task.anchor, replace(self._settings, safe=False))
        if OurPlayer._last_prior is None or OurPlayer._last_prior[0] != key:
            OurPlayer._last_prior = (key, build_prior(goal.problem, self._settings))
        self._prior: Any = OurPlayer._last_prior[1]

    def ask(self, observations: Sequence[Observation]) -> Move:
        suggestion = self._call(observations, self._settings)
        cell = None if suggestion.configuration is None else self._cell(suggestion, observations)
        stop = suggestion.stop
        return Move(
            cell=cell,
            ranking=self._ranking(suggestion, observations),
            stop_rule=stop.rule if stop is not None and stop.stop else None,
        )

    def final(self, observations: Sequence[Observation]) -> tuple[int, ...]:
        strict = replace(self._settings, progress_p_feasible=self._settings.install_p_feasible)
        return self._ranking(self._call(observations, strict), observations)

    def _call(self, observations: Sequence[Observation], settings: OptimizerSettings) -> Suggestion:
        return self._suggest(self._goal.problem, self._prior, observations, (), settings, self._seed)

    def _cell(self, suggestion: Suggestion, observations: Sequence[Observation]) -> int:
        task = self._goal.task
        cell = task.cells.get(suggestion.configuration) if suggestion.configuration is not None else None
        if cell is None:
            raise BrokenInvariantError(f"suggested {suggestion.configuration}, which is not in the space")
        if any(task.cells[entry.configuration] == cell for entry in observations):
            raise BrokenInvariantError(f"suggested {suggestion.configuration} a second time")
        anchored = self._settings.strategy in (Strategy.INFORMED, Strategy.FLAT)
        if anchored and not observations and cell != task.anchor_cell:
            raise BrokenInvariantError(f"started with {suggestion.configuration} instead of the anchor")
        prediction = suggestion.prediction
        if prediction is not None and not all(
            math.isfinite(value) for value in (prediction.energy_j, prediction.latency_s)
        ):
            raise BrokenInvariantError(f"predicted a number that is not finite: {prediction}")
        return cell

    def _ranking(self, suggestion: Suggestion, observations: Sequence[Observation]) -> tuple[int, ...]:
        measured = {entry.configuration for entry in observations}
        for candidate in suggestion.ranking:
            if candidate.configuration not in measured:
                raise BrokenInvariantError(f"recommended {candidate.configuration}, which was not measured")
            if not math.isfinite(candidate.prediction.energy_j):
                raise BrokenInvariantError(f"ranked with a number that is not finite: {candidate}")
        if not suggestion.ranking and observations:
            if self._settings.strategy in (Strategy.INFORMED, Strategy.FLAT):
                raise BrokenInvariantError("ranked nothing although configurations were measured")
            return best_readings(self._goal, observations)
        return tuple(self._goal.task.cells[candidate.configuration] for candidate in suggestion.ranking)


@dataclass(frozen=True)
class Entrant:
    """A strategy of the benchmark: where it plays and with which settings.

    `seeded` strategies get all seeds on the main families; the others, and other families, the fewer.
    `renames` hides knobs from the physics. `peer` names the implementation in `peers`.
    """

    name: str
    label: str
    families: tuple[str, ...]
    settings: OptimizerSettings | None = None
    seeded: bool = False
    renames: Mapping[str, str] | None = None
    peer: str | None = None

    def player(self, goal: Goal, seed: int) -> Player:
        """A new player for one run; builds what it needs."""
        if self.settings is not None:
            return OurPlayer(goal, self.settings, seed)
        from polythrottle.benchmarking.peers import peer_player

        return peer_player(self.peer or self.name, goal, seed)

    def digest(self) -> str:
        """Changes with the settings and with the code that decides, so that old rows do not count."""
        package = Path(polythrottle.__file__).parent
        content = hashlib.sha256(f"{self.name}|{self.settings}|{self.renames}".encode())
        if self.settings is not None:
            files = [*(package / "optimizer").rglob("*.py"), *(package / "physics").rglob("*.py")]
        else:
            files = [package / "benchmarking" / "peers.py"]
            content.update("|".join(_version(name) for name in ("botorch", "optuna", "ax-platform")).encode())
        files += [package / "benchmarking" / name for name in ("task.py", "run.py", "strategies.py")]
        for file in sorted(files):
            content.update(file.read_bytes())
        return content.hexdigest()[:16]


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "absent"


_MAIN = (THREE_KNOB, BATCH_CAP)
HIDDEN_BATCH = "queue_depth"
"""A name that the physics does not know."""

ENTRANTS: Mapping[str, Entrant] = {
    entrant.name: entrant
    for entrant in (
        Entrant("informed", "informed", FAMILIES, OptimizerSettings(), seeded=True),
        Entrant("informed-safe", "informed, safe mode", _MAIN, OptimizerSettings(safe=True), seeded=True),
        Entrant(
            "batch-unknown",
            "informed, batch unknown",
            (BATCH_CAP,),
            OptimizerSettings(),
            seeded=True,
            renames={"batch_size": HIDDEN_BATCH},
        ),
        Entrant("flat", "flat", _MAIN, OptimizerSettings(strategy=Strategy.FLAT), seeded=True),
        Entrant("polythrottle", "the paper's", _MAIN, OptimizerSettings(strategy=Strategy.POLYTHROTTLE)),
        Entrant("random", "random", _MAIN, OptimizerSettings(strategy=Strategy.RANDOM)),
        Entrant("botorch", "BoTorch qLogNEI", _MAIN, peer="botorch"),
        Entrant("optuna-tpe", "Optuna TPE", _MAIN, peer="optuna-tpe"),
        Entrant("optuna-gp", "Optuna GPSampler", _MAIN, peer="optuna-gp"),
        Entrant("ax", "Ax", _MAIN, peer="ax"),
    )
}


def chosen_entrants(names: Sequence[str] | None, peers: bool) -> list[Entrant]:
    """The named strategies, or all of ours, with the peers where they are asked for.

    Raises:
        InvalidInputError: a name that is not a strategy.
    """
    if names:
        for name in names:
            if name not in ENTRANTS:
                raise InvalidInputError(f"Unknown strategy {name!r}; {did_you_mean(name, ENTRANTS)}")
        return [ENTRANTS[name] for name in dict.fromkeys(names)]
    return [entrant for entrant in ENTRANTS.values() if peers or entrant.peer is None]
