"""All runs of a benchmark: planned, played in parallel, each saved as it ends, none played twice."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

from polythrottle.benchmarking.run import Row, RunKey, play
from polythrottle.benchmarking.strategies import Entrant
from polythrottle.benchmarking.task import Condition, Task
from polythrottle.clock import Clock
from polythrottle.errors import StateError

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Job:
    """One run to play."""

    task: Task
    slo_factor: float
    condition: Condition
    entrant: Entrant
    seed: int
    budget: int
    key: str

    def __str__(self) -> str:
        return (
            f"{self.entrant.name} on {self.task.name}, SLO {self.slo_factor:g}x, "
            f"seed {self.seed}, {self.condition.name}"
        )


@dataclass(frozen=True)
class Failure:
    """A run that broke."""

    job: str
    reason: str
    details: str


def planned(
    tasks: Sequence[Task],
    conditions: Sequence[tuple[Condition, Sequence[Entrant]]],
    slo_factors: Sequence[float],
    seeds: int,
    other_seeds: int,
    budget: int,
) -> list[Job]:
    """Every run, ordered so that runs which can share a prior follow one another.

    `conditions` names for each condition the strategies that play under it.
    """
    code = {entrant.name: entrant.digest() for _, playing in conditions for entrant in playing}
    jobs = []
    for condition, playing in conditions:
        for seed in range(max(seeds, other_seeds)):
            for task in tasks:
                for entrant in playing:
                    wanted = seeds if entrant.seeded else other_seeds
                    if seed >= wanted or task.family not in entrant.families:
                        continue
                    for factor in slo_factors:
                        key = RunKey(
                            task.name,
                            task.digest[:16],
                            factor,
                            repr(condition),
                            entrant.name,
                            seed,
                            budget,
                            code[entrant.name],
                        )
                        jobs.append(Job(task, factor, condition, entrant, seed, budget, str(key)))
    return jobs


class Results:
    """Rows on disk, one JSON object a line, appended as runs end."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> dict[str, Row]:
        """Rows by key. A last line that a crash cut short is dropped, and the file mended.

        Raises:
            StateError: the file cannot be read, or holds something else.
        """
        if not self.path.exists():
            return {}
        try:
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise StateError(f"{self.path} cannot be read: {error}; name another file with --out.") from error
        whole, newline, torn = text.rpartition("\n")
        if torn:
            self.path.write_text(whole + newline, encoding="utf-8")
        rows = {}
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                row = Row(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise StateError(
                    f"{self.path}, line {number} is not a row of this benchmark; "
                    "move the file away or name another with --out."
                ) from error
            rows[row.key] = row
        return rows

    def append(self, row: Row) -> None:
        """One write to a file opened for appending: rows of parallel processes do not mix."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        data = (json.dumps(asdict(row)) + "\n").encode()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)


def _play(job: Job, results: Results) -> Row | Failure:
    try:
        row = play(job.task, job.slo_factor, job.condition, job.entrant, job.seed, job.key, job.budget)
    except Exception as error:
        return Failure(str(job), f"{type(error).__name__}: {error}", traceback.format_exc())
    results.append(row)
    return row


def _play_all(jobs: Sequence[Job], results: Results) -> list[Row | Failure]:
    return [_play(job, results) for job in jobs]


def _batches(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Runs of the same table, condition and seed: one worker builds their prior once."""
    batch: list[Job] = []
    for job in jobs:
        if batch and (job.task.name, job.condition, job.seed) != (
            batch[0].task.name,
            batch[0].condition,
            batch[0].seed,
        ):
            yield batch
            batch = []
        batch.append(job)
    if batch:
        yield batch


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """Processes started within use one thread each."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def run_all(
    jobs: Sequence[Job],
    results: Results,
    workers: int,
    progress: Callable[[int, int], None],
    clock: Clock,
    time_limit_s: float | None = None,
) -> tuple[list[Row], list[Failure], int]:
    """Play every job whose row is not on disk yet.

    With one worker everything runs in this process. After `time_limit_s` no further run is begun.

    Returns:
        The rows of these jobs, the failures, and how many runs were left out for lack of time.
    """
    done = results.load()
    outcomes: list[Row | Failure] = [done[job.key] for job in jobs if job.key in done]
    todo = [job for job in jobs if job.key not in done]
    left_out = 0
    progress(len(outcomes), len(jobs))
    if workers <= 1:
        started_s = clock.now()
        for position, job in enumerate(todo):
            if time_limit_s is not None and clock.now() - started_s > time_limit_s:
                left_out = len(todo) - position
                break
            outcomes.append(_play(job, results))
            progress(len(outcomes), len(jobs))
    else:
        context = multiprocessing.get_context("spawn")
        with single_threaded(), ProcessPoolExecutor(workers, mp_context=context) as pool:
            futures = [pool.submit(_play_all, batch, results) for batch in _batches(todo)]
            for future in as_completed(futures):
                outcomes.extend(future.result())
                progress(len(outcomes), len(jobs))
    rows = [outcome for outcome in outcomes if isinstance(outcome, Row)]
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    return rows, failures, left_out
