from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from benchmarking_fakes import small_task

from polythrottle.benchmarking import peers
from polythrottle.benchmarking.run import play
from polythrottle.benchmarking.strategies import (
    ENTRANTS,
    BrokenInvariantError,
    OurPlayer,
    best_readings,
    chosen_entrants,
)
from polythrottle.benchmarking.task import Condition, Goal
from polythrottle.configuration import Configuration
from polythrottle.errors import InvalidInputError
from polythrottle.optimizer.problem import Observation, OptimizerSettings
from polythrottle.suggestion import Candidate, Prediction, StopAdvice, Suggestion

GOAL = Goal(small_task(), 1.3)


def reading(cell: int, latency_s: float, energy_j: float) -> Observation:
    return Observation(GOAL.task.configurations[cell], latency_s, 0.02, energy_j, 0.02)


def player(monkeypatch: pytest.MonkeyPatch, answer: Any) -> OurPlayer:
    from polythrottle.optimizer import suggest

    monkeypatch.setattr(suggest, "build_prior", lambda *_: None)
    monkeypatch.setattr(suggest, "suggest", lambda *arguments: answer(arguments[4]))
    monkeypatch.setattr(OurPlayer, "_last_prior", None)
    return OurPlayer(GOAL, OptimizerSettings(), seed=4)


def suggestion(
    cell: int, ranked: Sequence[int] = (), energy_j: float = 1.0, stop: bool = False
) -> Suggestion:
    prediction = Prediction(energy_j, 0.1, 1.0, 0.1, 0.9)
    task = GOAL.task
    return Suggestion(
        configuration=task.configurations[cell],
        provenance="fake",
        prediction=prediction,
        ranking=tuple(Candidate(task.configurations[c], prediction) for c in ranked),
        stop=StopAdvice(stop, "fake rule", 1.0, 0.97),
    )


def test_moves_are_cells_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    move = player(monkeypatch, lambda _: suggestion(7, ranked=(9,), stop=True)).ask([reading(9, 1.0, 7.0)])
    assert (move.cell, move.ranking, move.stop_rule) == (7, (9,), "fake rule")
    assert player(monkeypatch, lambda _: suggestion(9)).ask([]).stop_rule is None


def test_the_seed_draws_the_ensemble_and_the_final_ranking_is_stricter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def answer(settings: OptimizerSettings) -> Suggestion:
        seen.append((settings.draw_seed, settings.progress_p_feasible))
        return suggestion(7, ranked=(9,))

    ours = player(monkeypatch, answer)
    ours.ask([reading(9, 1.0, 7.0)])
    ours.final([reading(9, 1.0, 7.0)])
    assert seen == [(4, 0.7), (4, 0.95)]


@pytest.mark.parametrize(
    ("answer", "observations", "message"),
    [
        (suggestion(9, ranked=(9,)), [reading(9, 1.0, 7.0)], "a second time"),
        (suggestion(7, ranked=(8,)), [reading(9, 1.0, 7.0)], "was not measured"),
        (suggestion(7), [reading(9, 1.0, 7.0)], "ranked nothing"),
        (suggestion(7), [], "instead of the anchor"),
        (suggestion(7, ranked=(9,), energy_j=math.nan), [reading(9, 1.0, 7.0)], "not finite"),
        (
            Suggestion(Configuration.of({"gpu_freq_mhz": 9.0, "mem_freq_mhz": 1.0}), "fake"),
            [],
            "not in the space",
        ),
    ],
)
def test_answers_that_must_not_be(
    monkeypatch: pytest.MonkeyPatch, answer: Suggestion, observations: list[Observation], message: str
) -> None:
    with pytest.raises(BrokenInvariantError, match=message):
        player(monkeypatch, lambda _: answer).ask(observations)


def test_best_readings_prefer_feasible_then_cheap_then_fast() -> None:
    entries = [reading(9, 1.0, 7.0), reading(7, 1.25, 6.0), reading(1, 4.0, 1.0), reading(5, 1.6, 2.0)]
    assert best_readings(GOAL, entries) == (7, 9, 5, 1)


def test_choosing_strategies() -> None:
    names = [entrant.name for entrant in chosen_entrants((), peers=False)]
    assert "informed" in names
    assert "botorch" not in names
    assert "botorch" in [entrant.name for entrant in chosen_entrants((), peers=True)]
    assert [entrant.name for entrant in chosen_entrants(("random", "random"), False)] == ["random"]
    with pytest.raises(InvalidInputError, match="did you mean informed"):
        chosen_entrants(("informd",), False)


def test_digests_tell_strategies_and_settings_apart() -> None:
    digests = {entrant.digest() for entrant in ENTRANTS.values()}
    assert len(digests) == len(ENTRANTS)
    assert ENTRANTS["informed"].digest() == ENTRANTS["informed"].digest()


@pytest.mark.parametrize("name", ["botorch", "optuna-tpe", "optuna-gp", "ax", "random"])
def test_peers_start_at_the_anchor_and_never_repeat(name: str) -> None:
    peer = ENTRANTS[name].peer
    if peer is not None and peers.missing(peer):
        pytest.skip(str(peers.missing(peer)))
    row = play(small_task(), 1.3, Condition("normal"), ENTRANTS[name], seed=1, key="k", budget=10)
    assert sorted(row.cells) == list(range(10))
    assert row.cells[0] == GOAL.task.anchor_cell or name == "random"
    assert row.final_cell == 7
    assert row.to_5 <= 10


def test_an_absent_peer_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InvalidInputError, match=r"optuna is not installed; install polythrottle\[peers\]"):
        peers.peer_player("optuna-gp", GOAL, 0)
