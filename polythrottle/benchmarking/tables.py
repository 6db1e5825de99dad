"""Reads recorded tables: every CSV of a directory that has our columns, one task a device and workload.

Columns: device, workload, at least one knob, latency_ms, energy_j; others are ignored. A knob column
that is empty or has one level in a group is no knob there.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from polythrottle.benchmarking.task import Task, family_of
from polythrottle.configuration import UNITS, Configuration, Knob, SearchSpace, format_level
from polythrottle.errors import InvalidInputError

REQUIRED = ("device", "workload", "latency_ms", "energy_j")
MIN_ROWS = 20


@dataclass(frozen=True)
class Row:
    """One row of a table: levels of the knobs it names, and the two values. `line` counts from 1."""

    line: int
    levels: tuple[tuple[str, float], ...]
    latency_s: float
    energy_j: float


@dataclass(frozen=True)
class Skipped:
    """A file or group that cannot be replayed, and why."""

    where: str
    reason: str


def _number(text: str | None, where: str, column: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        raise InvalidInputError(f"{where}: {column} is {text!r}; it must be a number.") from None
    if not math.isfinite(value) or value <= 0:
        raise InvalidInputError(f"{where}: {column} is {text}; it must be a finite number above zero.")
    return value


def _rows(path: Path) -> tuple[dict[tuple[str, str], list[tuple[int, dict[str, str]]]], list[str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            header = [name for name in (reader.fieldnames or []) if name]
            missing = [name for name in REQUIRED if name not in header]
            knobs = [name for name in header if name in UNITS]
            if missing or not knobs:
                lacking = ", ".join(missing) or "a knob (" + ", ".join(UNITS) + ")"
                raise InvalidInputError(
                    f"{path.name} is not one of our tables: it has no column for {lacking}."
                )
            groups: dict[tuple[str, str], list[tuple[int, dict[str, str]]]] = {}
            for line, record in enumerate(reader, start=2):
                key = (record["device"] or "", record["workload"] or "")
                groups.setdefault(key, []).append((line, record))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidInputError(f"{path.name} cannot be read as a CSV in UTF-8: {error}.") from error
    return groups, knobs


def _parse(path: Path, records: Sequence[tuple[int, dict[str, str]]], knobs: Sequence[str]) -> list[Row]:
    used = [name for name in knobs if any((record[name] or "").strip() for _, record in records)]
    rows = []
    for line, record in records:
        where = f"{path.name}, line {line}"
        levels = tuple((name, _number(record[name], where, name)) for name in used)
        latency_ms = _number(record["latency_ms"], where, "latency_ms")
        rows.append(Row(line, levels, latency_ms / 1e3, _number(record["energy_j"], where, "energy_j")))
    return rows


def task_of(name: str, source: str, rows: Sequence[Row]) -> Task:
    """The black box of one group of rows.

    Raises:
        InvalidInputError: fewer than `MIN_ROWS` rows, no knob with two levels, two rows of the same
            configuration, or no row for the anchor.
    """
    if len(rows) < MIN_ROWS:
        raise InvalidInputError(f"{name} has {len(rows)} rows; at least {MIN_ROWS} are needed.")
    names = [knob for knob, _ in rows[0].levels]
    knobs = tuple(Knob.of(n, {dict(row.levels)[n] for row in rows}) for n in names)
    knobs = tuple(knob for knob in knobs if len(knob.levels) > 1)
    if not knobs:
        raise InvalidInputError(f"{name} has no knob with two levels or more; there is nothing to choose.")
    grid = SearchSpace(knobs)
    by_index: dict[tuple[int, ...], Row] = {}
    for row in rows:
        index = grid.index_of(dict(row.levels))
        if index in by_index:
            raise InvalidInputError(
                f"{source}: lines {by_index[index].line} and {row.line} have the same configuration "
                f"({grid.at(index)}); keep one row for each."
            )
        by_index[index] = row
    complete = len(by_index) == grid.size_before_rules
    space = grid if complete else SearchSpace(knobs, cells=frozenset(by_index))
    ordered = [by_index[index] for index in space.indices()]
    return Task(
        name=name,
        family=family_of(space.names),
        source=source,
        emulated=False,
        space=space,
        anchor=anchor_of(space),
        latency_s=tuple(row.latency_s for row in ordered),
        energy_j=tuple(row.energy_j for row in ordered),
    )


def anchor_of(space: SearchSpace) -> Configuration:
    """Every knob at its highest level, the batch at its middle one (the upper of two)."""
    anchor = dict(space.highest())
    if "batch_size" in anchor:
        levels = space.knob("batch_size").levels
        anchor["batch_size"] = levels[len(levels) // 2]
    return Configuration.of(anchor)


def read_tables(directory: Path) -> tuple[list[Task], list[Skipped]]:
    """Every task in the directory's CSV files, and what was skipped.

    Raises:
        InvalidInputError: no such directory, or not one table in it can be replayed.
    """
    if not directory.is_dir():
        raise InvalidInputError(f"--tables {directory} is not a directory; name one that holds CSV tables.")
    tasks: list[Task] = []
    skipped: list[Skipped] = []
    for path in sorted(directory.glob("*.csv")):
        try:
            groups, knobs = _rows(path)
        except InvalidInputError as error:
            skipped.append(Skipped(path.name, str(error)))
            continue
        for (device, workload), records in groups.items():
            name = f"{device}/{workload}"
            try:
                tasks.append(task_of(name, path.name, _parse(path, records, knobs)))
            except InvalidInputError as error:
                skipped.append(Skipped(f"{path.name}: {name}", str(error)))
    if not tasks:
        why = f" First reason: {skipped[0].reason}" if skipped else " It holds no *.csv."
        raise InvalidInputError(f"--tables {directory} has no table that can be replayed.{why}")
    return _unique(tasks), skipped


def _unique(tasks: Sequence[Task]) -> list[Task]:
    """Same device and workload in two files: the file's name tells them apart."""
    names = [task.name for task in tasks]
    return [
        replace(task, name=f"{task.name} ({task.source})") if names.count(task.name) > 1 else task
        for task in tasks
    ]


def describe(task: Task) -> str:
    """Knobs and their number of levels, with the cells that exist."""
    levels = " × ".join(f"{knob.name} {len(knob.levels)}" for knob in task.space.knobs)
    ends = ", ".join(
        f"{format_level(k.levels[0])}–{format_level(k.levels[-1])} {k.unit}".strip() for k in task.space.knobs
    )
    return f"{levels} ({ends}), {len(task.configurations)} points"
