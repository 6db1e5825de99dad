"""Reads a recorded table: one CSV row for each configuration that somebody measured. See docs/tables.md."""

from __future__ import annotations

import csv
import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from polythrottle.configuration import UNITS, UNLOCKED, Configuration, Knob, Level, parse_number
from polythrottle.errors import InvalidInputError, did_you_mean

RECORDED = "recorded"
"""The statistic that `latency_ms` holds: whatever the table's author took."""

_STATISTIC = re.compile(r"latency_(?:p(?P<percent>\d{1,2}(?:\.\d+)?)|(?P<mean>mean))_ms")
_WHOLE = frozenset({"batch_size", "cpu_cores"})
_OPTIONAL = frozenset({"n_repeats", "latency_std", "energy_std"})
_ENERGY_HELP = (
    "add it as J per query (power_w × latency_ms / 1000 / batch_size is that only where power was metered "
    "while batches ran back to back, which the table cannot tell)"
)


@dataclass(frozen=True)
class RecordedRow:
    """What the table says about one configuration.

    `latency_s` is by statistic (`recorded`, `p99`, ...), in seconds; energy is per query. The standard
    errors are None where the table gives no spread or fewer than two repeats. `recording_s` is latency
    times repeats: the least time that the recording took.
    """

    line: int
    configuration: Configuration
    latency_s: Mapping[str, float]
    latency_error_s: float | None
    energy_j: float
    energy_error_j: float | None
    recording_s: float


@dataclass(frozen=True)
class RecordedTable:
    """One device and workload of a table. `digest` is over its values, so an edited table is another one."""

    path: Path
    device: str
    workload: str
    knobs: tuple[Knob, ...]
    statistics: tuple[str, ...]
    rows: Mapping[Configuration, RecordedRow]
    digest: str

    @property
    def name(self) -> str:
        return self.path.name

    def knob(self, name: str) -> Knob | None:
        return next((knob for knob in self.knobs if knob.name == name), None)


@dataclass(frozen=True)
class _Line:
    number: int
    cells: Mapping[str, str]


def read_table(path: Path, workload: str | None = None) -> RecordedTable:
    """Read one device and workload.

    Args:
        path: a CSV file in UTF-8.
        workload: the workload to replay, or `DEVICE:WORKLOAD` where several devices have it. None where
            the table has a single one.

    Raises:
        InvalidInputError: the file, its columns or a cell cannot be used (file, line and column are
            named), or the workload must be chosen (all are listed).
    """
    columns, lines = _read_csv(path)
    knob_columns = [name for name in UNITS if name in columns]
    statistics = {s: column for column in columns if (s := _statistic(column)) is not None}
    _check_columns(path, columns, knob_columns, statistics)
    device, name, chosen = _choose(path, lines, workload)
    used = [column for column in knob_columns if any(line.cells[column] for line in chosen)]
    if not used:
        raise InvalidInputError(f"{path.name} has no knob for {name}: its knob columns are empty.")
    complete = {s: c for s, c in statistics.items() if all(line.cells[c] for line in chosen)}
    if not complete:
        line = next(x for x in chosen if not all(x.cells[c] for c in statistics.values()))
        column = next(c for c in statistics.values() if not line.cells[c])
        raise _bad_cell(path, line, column, "is empty; give the latency in ms")
    rows: dict[Configuration, RecordedRow] = {}
    for line in chosen:
        row = _row(path, line, used, complete)
        earlier = rows.get(row.configuration)
        if earlier is not None:
            raise InvalidInputError(
                f"{path.name}: lines {earlier.line} and {row.line} hold the same configuration "
                f"({row.configuration}); keep one row for each."
            )
        rows[row.configuration] = row
    knobs = tuple(Knob.of(column, {row[column] for row in rows}) for column in used)
    return RecordedTable(
        path, device, name, knobs, tuple(complete), rows, _digest(device, name, rows.values())
    )


def _read_csv(path: Path) -> tuple[list[str], list[_Line]]:
    try:
        if not path.exists():
            raise InvalidInputError(f"There is no table at {path}; give the path of a CSV file.")
        if not path.is_file():
            raise InvalidInputError(f"{path} is not a file; give the path of a CSV file.")
        # utf-8-sig: spreadsheets put a byte order mark in front.
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            columns = [column.strip() for column in next(reader, [])]
            lines = []
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(columns):
                    raise InvalidInputError(
                        f"{path.name}, line {reader.line_num}: {len(cells)} cells where line 1 names "
                        f"{len(columns)} columns; give one cell for each."
                    )
                named = dict(zip(columns, (cell.strip() for cell in cells), strict=True))
                lines.append(_Line(reader.line_num, named))
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"{path.name} is not UTF-8 (byte {error.start}); save it as a CSV in UTF-8."
        ) from error
    except csv.Error as error:
        raise InvalidInputError(f"{path.name}, line {reader.line_num}: not a CSV ({error}).") from error
    except OSError as error:
        raise InvalidInputError(
            f"{path} cannot be read ({error.strerror or error}); give the path of a CSV file that can be."
        ) from error
    if not columns:
        raise InvalidInputError(f"{path.name} is empty; the first line must name the columns.")
    repeated = next((column for column in columns if column and columns.count(column) > 1), None)
    if repeated is not None:
        raise InvalidInputError(f"{path.name}, line 1: column {repeated} appears twice; keep one.")
    return columns, lines


def _statistic(column: str) -> str | None:
    if column == "latency_ms":
        return RECORDED
    match = _STATISTIC.fullmatch(column)
    if match is None:
        return None
    return "mean" if match["mean"] else f"p{float(match['percent']):g}"


def _check_columns(
    path: Path, columns: Sequence[str], knobs: Sequence[str], statistics: Mapping[str, str]
) -> None:
    missing = []
    if not knobs:
        missing.append(f"a knob ({', '.join(UNITS)})")
    if not statistics:
        missing.append("latency_ms")
    if "energy_j" not in columns:
        missing.append("energy_j")
    if missing == ["energy_j"] and "power_w" in columns:
        raise InvalidInputError(
            f"{path.name}, line 1: there is power_w but no column energy_j; {_ENERGY_HELP}."
        )
    if missing:
        shown = ", ".join(column for column in columns if column) or "none"
        raise InvalidInputError(
            f"{path.name}, line 1: no column for {' or '.join(missing)}; its columns are: {shown[:200]}."
        )


def _choose(path: Path, lines: Sequence[_Line], workload: str | None) -> tuple[str, str, list[_Line]]:
    """The lines of one device and workload. Without these columns the file's name stands for both."""
    groups: dict[tuple[str, str], list[_Line]] = {}
    for line in lines:
        key = (line.cells.get("device") or path.stem, line.cells.get("workload") or path.stem)
        groups.setdefault(key, []).append(line)
    if not groups:
        raise InvalidInputError(f"{path.name} has no row below its columns.")
    one_device = len({device for device, _ in groups}) == 1
    names = [name if one_device else f"{device}:{name}" for device, name in groups]
    if workload is None:
        if len(groups) > 1:
            raise InvalidInputError(
                f"{path.name} holds {len(groups)} workloads; choose one with --workload: {', '.join(names)}."
            )
        found = list(groups)
    else:
        found = [(d, n) for d, n in groups if workload in (n, f"{d}:{n}")]
    if len(found) > 1:
        choices = ", ".join(f"{device}:{name}" for device, name in found)
        raise InvalidInputError(
            f"{path.name} has workload {workload} of {len(found)} devices; choose with --workload: {choices}."
        )
    if not found:
        raise InvalidInputError(
            f"{path.name} has no workload {workload!r}; {did_you_mean(workload or '', names)}"
        )
    device, name = found[0]
    return device, name, groups[found[0]]


def _row(path: Path, line: _Line, knobs: Sequence[str], statistics: Mapping[str, str]) -> RecordedRow:
    settings = {column: _level(path, line, column) for column in knobs}
    latency_s = {s: _positive(path, line, column) / 1e3 for s, column in statistics.items()}
    spread = {column: _optional(path, line, column) for column in sorted(_OPTIONAL)}
    repeats = spread["n_repeats"]
    latency_std_ms, energy_std_j = spread["latency_std"], spread["energy_std"]
    one_pass_s = latency_s[RECORDED] if RECORDED in latency_s else next(iter(latency_s.values()))
    return RecordedRow(
        line=line.number,
        configuration=Configuration.of(settings),
        latency_s=latency_s,
        latency_error_s=_error(None if latency_std_ms is None else latency_std_ms / 1e3, repeats),
        energy_j=_positive(path, line, "energy_j"),
        energy_error_j=_error(energy_std_j, repeats),
        recording_s=one_pass_s * (repeats or 1.0),
    )


def _error(standard_deviation: float | None, repeats: float | None) -> float | None:
    """Standard error of the mean. A spread of 0 means that none was kept, not that the mean is exact."""
    if not standard_deviation or repeats is None or repeats < 2:
        return None
    return standard_deviation / math.sqrt(repeats)


def _level(path: Path, line: _Line, column: str) -> Level:
    text = line.cells[column]
    if text.lower() == UNLOCKED:
        return UNLOCKED
    value = _number(path, line, column)
    if value < 0 or (column in _WHOLE and (value < 1 or value != int(value))):
        wanted = "a whole number from 1 up" if column in _WHOLE else "0 or more"
        raise _bad_cell(path, line, column, f"is {text}; it must be {wanted}")
    return value


def _positive(path: Path, line: _Line, column: str) -> float:
    value = _number(path, line, column)
    if value <= 0:
        raise _bad_cell(path, line, column, f"is {line.cells[column]}; it must be above zero")
    return value


def _optional(path: Path, line: _Line, column: str) -> float | None:
    if not line.cells.get(column):
        return None
    value = _number(path, line, column)
    if value < 0 or (column == "n_repeats" and value < 1):
        raise _bad_cell(path, line, column, f"is {line.cells[column]}; it cannot be")
    return value


def _number(path: Path, line: _Line, column: str) -> float:
    text = line.cells[column]
    if not text:
        raise _bad_cell(path, line, column, "is empty; give a number")
    try:
        value = parse_number(text)
    except ValueError:
        raise _bad_cell(path, line, column, f"is {text[:40]!r}; give a number") from None
    if not math.isfinite(value):
        raise _bad_cell(path, line, column, f"is {text}; it must be finite")
    return value


def _bad_cell(path: Path, line: _Line, column: str, problem: str) -> InvalidInputError:
    return InvalidInputError(f"{path.name}, line {line.number}: {column} {problem}.")


def _digest(device: str, workload: str, rows: Iterable[RecordedRow]) -> str:
    content = sorted(
        repr((sorted(row.configuration.settings), sorted(row.latency_s.items()), row.energy_j))
        for row in rows
    )
    return hashlib.sha256("\n".join([device, workload, *content]).encode()).hexdigest()
