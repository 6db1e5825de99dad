"""`polythrottle bench optimizer`: from options to tables, targets and the last line."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from polythrottle.benchmarking import render
from polythrottle.benchmarking.campaign import Results, planned, run_all
from polythrottle.benchmarking.generated import generated_tasks
from polythrottle.benchmarking.metrics import grouped
from polythrottle.benchmarking.peers import missing
from polythrottle.benchmarking.run import BUDGET
from polythrottle.benchmarking.strategies import Entrant, chosen_entrants
from polythrottle.benchmarking.tables import Skipped, read_tables
from polythrottle.benchmarking.targets import judge, last_line
from polythrottle.benchmarking.task import (
    BATCH_CAP,
    DEGRADED,
    FAMILIES,
    SLO_FACTORS,
    THREE_KNOB,
    Condition,
    Task,
)
from polythrottle.benchmarking.timing import measure
from polythrottle.clock import Clock, RealClock
from polythrottle.errors import InvalidInputError, did_you_mean

QUICK_LIMIT_S = 30.0
"""Nothing is begun after this; the longest run takes a few seconds more."""
DEFAULT_OUT = Path("benchmarks/results/optimizer.jsonl")


@dataclass(frozen=True)
class Options:
    """What the command line offers. `seeds` are for our strategies, `other_seeds` for the paper's, random
    and the peers; `generated` is the number of emulated tables of each family where `tables` is None."""

    tables: Path | None = None
    peers: bool = False
    seeds: int = 10
    other_seeds: int = 3
    jobs: int = 1
    out: Path = DEFAULT_OUT
    noise: float = 0.02
    strategies: tuple[str, ...] = ()
    families: tuple[str, ...] = ()
    generated: int = 6
    quick: bool = False
    timing: bool = True
    degraded: bool = True
    verbose: bool = False


def run(options: Options, clock: Clock | None = None, screen: Console | None = None) -> int:
    """Run the benchmark and print it. Returns the exit code.

    Raises:
        InvalidInputError: an option or a table that cannot be used.
    """
    clock = clock or RealClock()
    screen = screen or render.console()
    _check(options)
    tasks, skipped = _tasks(options)
    entrants = _present(chosen_entrants(options.strategies, options.peers), screen)
    normal = Condition("normal", noise=options.noise)
    render.show_tasks(screen, tasks, skipped)
    if options.quick:
        with tempfile.TemporaryDirectory() as scratch:
            return _quick(options, tasks, entrants, normal, Results(Path(scratch) / "rows"), clock, screen)

    conditions: list[tuple[Condition, Sequence[Entrant]]] = [(normal, entrants)]
    if options.degraded:
        main = (THREE_KNOB, BATCH_CAP)
        conditions.append((DEGRADED, [replace(e, families=main) for e in entrants if e.name == "informed"]))
    jobs = planned(tasks, conditions, SLO_FACTORS, options.seeds, options.other_seeds, BUDGET)
    rows, failures, _ = run_all(jobs, Results(options.out), options.jobs, _Progress(screen), clock)
    timing = measure(clock, options.peers) if options.timing else None
    summaries = grouped(rows)
    render.show_summaries(screen, summaries, [condition for condition, _ in conditions])
    targets = judge(summaries, normal.name, DEGRADED.name, timing)
    render.show_targets(screen, targets)
    render.show_failures(screen, failures, options.verbose)
    line, code = last_line(targets, len(rows), len(failures), quick=False)
    screen.print(Text(line))
    return code


def _quick(
    options: Options,
    tasks: Sequence[Task],
    entrants: Sequence[Entrant],
    normal: Condition,
    results: Results,
    clock: Clock,
    screen: Console,
) -> int:
    """One SLO, one seed, the first table of each family, until the time is up; only breakage fails."""
    sample = list({task.family: task for task in reversed(tasks)}.values())
    conditions: list[tuple[Condition, Sequence[Entrant]]] = [
        (normal, entrants),
        (DEGRADED, [e for e in entrants if e.name == "informed"]),
    ]
    jobs = planned(sample, conditions, SLO_FACTORS[1:2], seeds=1, other_seeds=1, budget=BUDGET)
    rows, failures, left_out = run_all(jobs, results, 1, lambda _done, _all: None, clock, QUICK_LIMIT_S)
    summaries = grouped(rows)
    render.show_summaries(screen, summaries, [condition for condition, _ in conditions])
    render.show_targets(screen, judge(summaries, normal.name, DEGRADED.name, None))
    render.show_failures(screen, failures, options.verbose)
    if left_out:
        screen.print(Text(f"{left_out} of {len(jobs)} quick runs left out for lack of time."))
    line, code = last_line([], len(rows), len(failures), quick=True)
    screen.print(Text(line))
    return code


def _check(options: Options) -> None:
    for name, number in (
        ("--seeds", options.seeds),
        ("--other-seeds", options.other_seeds),
        ("--jobs", options.jobs),
        ("--generated", options.generated),
    ):
        if number < 1:
            raise InvalidInputError(f"{name} {number} is too small; give at least 1.")
    if not 0 <= options.noise < 1:
        raise InvalidInputError(f"--noise {options.noise:g} must be from 0 to below 1; 0.02 is 2 %.")
    for family in options.families:
        if family not in FAMILIES:
            raise InvalidInputError(f"Unknown family {family!r}; {did_you_mean(family, FAMILIES)}")


def _tasks(options: Options) -> tuple[list[Task], list[Skipped]]:
    skipped: list[Skipped] = []
    if options.tables is None:
        tasks = generated_tasks(options.generated, options.generated)
    else:
        tasks, skipped = read_tables(options.tables)
    if options.families:
        tasks = [task for task in tasks if task.family in options.families]
        if not tasks:
            raise InvalidInputError(
                f"No table of family {' or '.join(options.families)} here; leave --family out to see all."
            )
    return tasks, skipped


def _present(entrants: Sequence[Entrant], screen: Console) -> list[Entrant]:
    """Those that can play here; the absent are named."""
    present = []
    for entrant in entrants:
        reason = missing(entrant.peer) if entrant.peer is not None else None
        if reason is None:
            present.append(entrant)
        else:
            screen.print(Text(f"{entrant.label}: {reason}"))
    if not present:
        raise InvalidInputError("None of the chosen strategies can play here.")
    return present


class _Progress:
    """A line now and then: at the start, at each tenth and at the end."""

    def __init__(self, screen: Console) -> None:
        self._screen = screen
        self._shown = -1

    def __call__(self, done: int, total: int) -> None:
        tenth = 10 * done // max(total, 1)
        if tenth > self._shown:
            self._shown = tenth
            self._screen.print(Text(f"{done} of {total} runs"))
