from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from benchmarking_fakes import ScriptedPlayer, small_task

from polythrottle.benchmarking.campaign import Job, Results, planned, run_all
from polythrottle.benchmarking.run import Row
from polythrottle.benchmarking.strategies import ENTRANTS, Entrant, Player
from polythrottle.benchmarking.task import DEGRADED, FAMILIES, Condition, Goal
from polythrottle.clock import VirtualClock
from polythrottle.errors import StateError

NORMAL = Condition("normal")
PLAYED: list[int] = []


@dataclass(frozen=True)
class Counting(Entrant):
    """Remembers that it played; breaks for seed 13."""

    code: str = "1"

    def player(self, goal: Goal, seed: int) -> Player:
        PLAYED.append(seed)
        if seed == 13:
            raise RuntimeError("unlucky")
        return ScriptedPlayer(goal.task, (9, 7), (7, 9))

    def digest(self) -> str:
        return self.code


@pytest.fixture(autouse=True)
def forget() -> None:
    PLAYED.clear()


def jobs(seeds: int = 3, code: str = "1") -> list[Job]:
    entrant = Counting("counting", "counting", FAMILIES, seeded=True, code=code)
    return planned([small_task()], [(NORMAL, [entrant])], (1.15, 1.3), seeds, 1, budget=2)


def play(todo: list[Job], path: Path, limit_s: float | None = None) -> tuple[list[Row], int, int]:
    rows, failures, left_out = run_all(
        todo, Results(path), 1, lambda _done, _total: None, VirtualClock(), limit_s
    )
    return rows, len(failures), left_out


def test_a_second_run_plays_only_what_is_new(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rows.jsonl"
    first, _, _ = play(jobs(2), path)
    assert len(PLAYED) == 4
    second, _, _ = play(jobs(3), path)
    assert len(PLAYED) == 6
    assert [row.key for row in second[:4]] == [row.key for row in first]
    assert len(second) == 6


def test_other_code_table_or_condition_is_played_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    play(jobs(1), path)
    play(jobs(1, code="2"), path)
    assert len(PLAYED) == 4
    keys = {
        job.key
        for condition in (NORMAL, DEGRADED, Condition("normal", noise=0.03))
        for job in planned([small_task()], [(condition, [ENTRANTS["random"]])], (1.15,), 1, 1, 2)
    }
    assert len(keys) == 3


def test_a_torn_last_line_is_dropped_and_its_run_played_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    play(jobs(2), path)
    path.write_text(path.read_text()[:-30])
    PLAYED.clear()
    rows, _, _ = play(jobs(2), path)
    assert len(PLAYED) == 1
    assert len(rows) == 4
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"hello": 1}\n')
    with pytest.raises(StateError, match=r"rows.jsonl, line 1 is not a row"):
        play(jobs(1), path)
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(StateError, match="cannot be read"):
        play(jobs(1), path)


def test_a_broken_run_is_reported_and_not_saved(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    todo = [job for job in jobs(14) if job.seed in (12, 13)]
    rows, failures, _ = play(todo, path)
    assert (len(rows), failures) == (2, 2)
    assert len(path.read_text().splitlines()) == 2


def test_nothing_is_begun_after_the_time_limit(tmp_path: Path) -> None:
    class Slow(VirtualClock):
        def now(self) -> float:
            self.sleep(1.0)
            return super().now()

    outcome = run_all(jobs(3), Results(tmp_path / "r"), 1, lambda _d, _t: None, Slow(), 3.5)
    assert (len(outcome[0]), outcome[2]) == (3, 3)


def test_seeds_and_families() -> None:
    def count(name: str) -> int:
        return len(planned([small_task()], [(NORMAL, [ENTRANTS[name]])], (1.15,), 10, 3, 20))

    assert (count("informed"), count("random"), count("batch-unknown")) == (10, 3, 0)


def test_processes_play_the_same_runs(tmp_path: Path) -> None:
    todo = planned([small_task()], [(NORMAL, [ENTRANTS["random"]])], (1.3,), 1, 2, budget=4)
    alone, _, _ = play(todo, tmp_path / "one")
    together, failures, _ = run_all(
        todo, Results(tmp_path / "two"), 2, lambda _d, _t: None, VirtualClock(), None
    )
    assert failures == []
    assert sorted(row.cells for row in together) == sorted(row.cells for row in alone)
