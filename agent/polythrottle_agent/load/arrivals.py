"""When queries are due: constant, Poisson, bursts, or a recorded trace."""

from __future__ import annotations

import csv
import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path

from polythrottle.errors import InvalidInputError, did_you_mean


class Kind(str, Enum):
    """How arrivals are spread."""

    CONSTANT = "constant"
    POISSON = "poisson"
    BURST = "burst"
    TRACE = "trace"


_FORM = "write poisson, constant, burst:ON_S/OFF_S or trace:FILE.csv"
_COLUMNS = ("timestamp", "time", "time_s", "arrival_s", "t")


@dataclass(frozen=True)
class Arrivals:
    """A stream of queries without an end.

    Args:
        kind: how they are spread.
        rate_per_s: mean queries a second, pauses of a burst included.
        on_s, off_s: of a burst: seconds with Poisson arrivals, seconds with none.
        gaps_s: of a trace: seconds from the start to the first arrival and from each to the next; repeated.
    """

    kind: Kind
    rate_per_s: float
    on_s: float = 0.0
    off_s: float = 0.0
    gaps_s: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not math.isfinite(self.rate_per_s) or self.rate_per_s <= 0:
            raise InvalidInputError(
                f"A rate of {self.rate_per_s:g} queries/s cannot be used; write a number above zero."
            )

    def __str__(self) -> str:
        if self.kind is Kind.BURST:
            cycle_s = self.on_s + self.off_s
            return f"bursts of {self.on_s:g} s every {cycle_s:g} s, {self.rate_per_s:g}/s in the mean"
        if self.kind is Kind.TRACE:
            return f"a trace of {len(self.gaps_s):,} arrivals at {self.rate_per_s:g}/s"
        name = "Poisson" if self.kind is Kind.POISSON else self.kind.value
        return f"{name} arrivals at {self.rate_per_s:g}/s"

    @classmethod
    def parse(cls, text: str, rate_per_s: float | None) -> Arrivals:
        """Read `poisson`, `constant`, `burst:ON_S/OFF_S` or `trace:FILE.csv`.

        Args:
            rate_per_s: mean queries a second; None only for a trace, which then runs as recorded. With a
                rate a trace is stretched to it.

        Raises:
            InvalidInputError: none of these, no rate, or a file that holds no arrivals.
        """
        name, colon, rest = text.strip().partition(":")
        try:
            kind = Kind(name.lower())
        except ValueError:
            raise InvalidInputError(
                f"Unknown arrivals {text!r}; {did_you_mean(name, [k.value for k in Kind])} Please {_FORM}."
            ) from None
        if kind is Kind.TRACE:
            return _trace(rest, rate_per_s)
        if rate_per_s is None:
            raise InvalidInputError(f"Arrivals {text!r} need a rate; add --rate with queries per second.")
        if kind is Kind.BURST:
            on_s, off_s = _burst(text, rest)
            return cls(kind, rate_per_s, on_s, off_s)
        if colon:
            raise InvalidInputError(f"Arrivals {text!r} cannot be read; {_FORM}.")
        return cls(kind, rate_per_s)

    def times(self, seed: int) -> Iterator[float]:
        """Due times in seconds from the start of a window, ascending, without an end."""
        if self.kind is Kind.CONSTANT:
            return self._constant()
        if self.kind is Kind.POISSON:
            return self._poisson(random.Random(seed))
        if self.kind is Kind.BURST:
            return self._burst(random.Random(seed))
        return self._trace()

    def _constant(self) -> Iterator[float]:
        number = 0
        while True:
            number += 1
            yield number / self.rate_per_s  # not a running sum, whose rounding would drift

    def _poisson(self, rng: random.Random) -> Iterator[float]:
        due_s = 0.0
        while True:
            due_s += rng.expovariate(self.rate_per_s)
            yield due_s

    def _burst(self, rng: random.Random) -> Iterator[float]:
        cycle_s = self.on_s + self.off_s
        rate_on_per_s = self.rate_per_s * cycle_s / self.on_s
        busy_s = 0.0  # time with the pauses cut out
        while True:
            busy_s += rng.expovariate(rate_on_per_s)
            cycles = math.floor(busy_s / self.on_s)
            yield cycles * cycle_s + (busy_s - cycles * self.on_s)

    def _trace(self) -> Iterator[float]:
        due_s = 0.0
        while True:
            for gap_s in self.gaps_s:
                due_s += gap_s
                yield due_s


def _burst(text: str, rest: str) -> tuple[float, float]:
    on, slash, off = rest.partition("/")
    try:
        on_s, off_s = float(on), float(off)
    except ValueError:
        on_s = off_s = math.nan
    if not slash or not (0 < on_s < math.inf and 0 <= off_s < math.inf):
        raise InvalidInputError(
            f"Arrivals {text!r} cannot be read; write seconds with and without arrivals, as in burst:2/8."
        )
    return on_s, off_s


def _trace(name: str, rate_per_s: float | None) -> Arrivals:
    if not name.strip():
        raise InvalidInputError("Arrivals trace: names no file; write trace:FILE.csv.")
    stamps_s = _stamps(Path(name.strip()).expanduser())
    span_s = stamps_s[-1] - stamps_s[0]
    # The mean gap closes the circle: the first arrival of the next round follows the last of this one.
    mean_gap_s = span_s / (len(stamps_s) - 1)
    gaps_s = [mean_gap_s, *(b - a for a, b in itertools.pairwise(stamps_s))]
    if rate_per_s is not None:
        if not math.isfinite(rate_per_s) or rate_per_s <= 0:
            return Arrivals(Kind.TRACE, rate_per_s)  # says what is wrong with the rate
        stretch = 1.0 / (rate_per_s * mean_gap_s)
        gaps_s = [gap_s * stretch for gap_s in gaps_s]
    return Arrivals(Kind.TRACE, 1.0 / mean_gap_s if rate_per_s is None else rate_per_s, gaps_s=tuple(gaps_s))


def _stamps(path: Path) -> list[float]:
    """Ascending time stamps in seconds: the column named as one, else the first one."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if row and any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidInputError(f"Trace {path} cannot be read ({reason}); name a CSV file.") from error
    column, first = 0, 0
    if rows and _seconds(rows[0][0]) is None:
        header = [cell.strip().lower() for cell in rows[0]]
        column, first = next((header.index(name) for name in _COLUMNS if name in header), 0), 1
    stamps_s = []
    for number, row in enumerate(rows[first:], start=first + 1):
        stamp_s = _seconds(row[column]) if column < len(row) else None
        if stamp_s is None:
            raise InvalidInputError(
                f"Trace {path}, row {number}: {','.join(row)[:40]!r} holds no time; "
                "write seconds or ISO 8601, one arrival a row."
            )
        stamps_s.append(stamp_s)
    if len(stamps_s) < 2 or max(stamps_s) <= min(stamps_s):
        raise InvalidInputError(f"Trace {path} holds no two moments; write one arrival a row.")
    return sorted(stamps_s)


def _seconds(text: str) -> float | None:
    """Seconds, or an ISO 8601 moment as seconds; None where it is neither."""
    text = text.strip()
    try:
        number = float(text)
        return number if math.isfinite(number) else None
    except ValueError:
        pass  # not a number; perhaps a date
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None
