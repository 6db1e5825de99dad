"""What can be set: knobs and their levels, configurations, and the finite space they span."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from polythrottle.errors import InvalidInputError, did_you_mean

Level = float | str
"""A number in the knob's unit, or the name of a category such as `unlocked`."""

UNLOCKED = "unlocked"
"""The hardware's own governor chooses. Sorted above every number; to the physics it is the highest one."""

GRID_LIMIT = 50_000
"""Largest number of points that is enumerated; `SearchSpace.thinned` gets below it."""

UNITS: Mapping[str, str] = {
    "cpu_freq_mhz": "MHz",
    "gpu_min_freq_mhz": "MHz",
    "gpu_freq_mhz": "MHz",
    "mem_freq_mhz": "MHz",
    "cpu_cores": "",
    "batch_size": "",
    "power_limit_w": "W",
}
"""The knobs whose effect the physics knows, with their unit. Others are legal and learnt from data alone."""

SHORT_NAMES: Mapping[str, str] = {
    "cpu_freq_mhz": "CPU",
    "gpu_min_freq_mhz": "GPU min",
    "gpu_freq_mhz": "GPU",
    "mem_freq_mhz": "memory",
    "cpu_cores": "cores",
    "batch_size": "batch",
    "power_limit_w": "cap",
    "intra_op_threads": "threads",
}


def parse_number(text: str) -> float:
    """The number that a user or a table wrote.

    Raises:
        ValueError: it is none. `float` also reads the underscores of Python's own literals: a slip, here.
    """
    if "_" in text:
        raise ValueError(f"{text!r} is not a number")
    return float(text)


def format_level(level: Level) -> str:
    return level if isinstance(level, str) else f"{level:g}"


@dataclass(frozen=True)
class Knob:
    """One thing that can be set, with every level it may take.

    Numbers ascend; categories (such as `unlocked`) follow them.
    """

    name: str
    levels: tuple[Level, ...]

    def __post_init__(self) -> None:
        if not self.levels:
            raise InvalidInputError(f"Knob {self.name} has no level; give it at least one.")
        numbers = [level for level in self.levels if not isinstance(level, str)]
        if not numbers:
            raise InvalidInputError(f"Knob {self.name} has no numeric level.")
        if any(not math.isfinite(n) or n < 0 for n in numbers):
            raise InvalidInputError(f"Knob {self.name} has a level that is not a finite number ≥ 0.")
        ordered = (*sorted(set(numbers)), *dict.fromkeys(x for x in self.levels if isinstance(x, str)))
        if ordered != self.levels:
            raise InvalidInputError(f"Levels of {self.name} must ascend without repeats, categories last.")

    @classmethod
    def of(cls, name: str, levels: Iterable[Level]) -> Knob:
        """Build from levels in any order, repeats dropped."""
        unique = set(levels)
        numbers = sorted(float(x) for x in unique if not isinstance(x, str))
        return cls(name, (*numbers, *sorted(x for x in unique if isinstance(x, str))))

    @property
    def unit(self) -> str:
        return UNITS.get(self.name, "")

    @property
    def highest(self) -> Level:
        """The level with the least restraint: the last one."""
        return self.levels[-1]

    @property
    def highest_number(self) -> float:
        return max(level for level in self.levels if not isinstance(level, str))

    def number(self, level: Level) -> float:
        """The level as a number; `unlocked` counts as the highest."""
        return self.highest_number if isinstance(level, str) else level

    def match(self, text: str) -> Level:
        """The level that `text` names.

        Raises:
            InvalidInputError: the text is not one of the levels; the nearest ones are named.
        """
        for level in self.levels:
            if text.strip().lower() == format_level(level).lower():
                return level
        try:
            wanted = parse_number(text)
        except ValueError:
            hint = did_you_mean(text, [format_level(x) for x in self.levels], keep_order=True)
            raise InvalidInputError(f"{self.name} has no level {text!r}; {hint}") from None
        numbers = [x for x in self.levels if not isinstance(x, str)]
        nearest = sorted(sorted(numbers, key=lambda n: abs(n - wanted))[:2])
        for number in numbers:
            if math.isclose(number, wanted, rel_tol=1e-6):
                return number
        raise InvalidInputError(
            f"{self.name} has no level {text}; "
            f"the nearest are {' and '.join(format_level(n) for n in nearest)}."
        )


@dataclass(frozen=True)
class Configuration(Mapping[str, Level]):
    """One level for each knob, in the order of the search space."""

    settings: tuple[tuple[str, Level], ...]

    @classmethod
    def of(cls, settings: Mapping[str, Level]) -> Configuration:
        return cls(tuple(settings.items()))

    def __getitem__(self, knob: str) -> Level:
        for name, level in self.settings:
            if name == knob:
                return level
        raise KeyError(knob)

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self.settings)

    def __len__(self) -> int:
        return len(self.settings)

    def __hash__(self) -> int:
        return hash(frozenset(self.settings))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Configuration) and dict(self.settings) == dict(other.settings)

    def __str__(self) -> str:
        parts = []
        for name, level in self.settings:
            unit = "" if isinstance(level, str) else UNITS.get(name, "")
            text = f"{SHORT_NAMES.get(name, name)} {format_level(level)}"
            parts.append(f"{text} {unit}" if unit else text)
        return " · ".join(parts)


@dataclass(frozen=True)
class AtMost:
    """Forbids combinations where `lower` stands above `upper`, such as a GPU minimum above its maximum."""

    lower: str
    upper: str

    def forbids(self, settings: Mapping[str, Level], knobs: Mapping[str, Knob]) -> bool:
        if self.lower not in settings or self.upper not in settings:
            return False
        return knobs[self.lower].number(settings[self.lower]) > knobs[self.upper].number(settings[self.upper])


@dataclass(frozen=True)
class Excluded:
    """Forbids each configuration that has all of these levels."""

    settings: tuple[tuple[str, Level], ...]

    def forbids(self, settings: Mapping[str, Level], knobs: Mapping[str, Knob]) -> bool:  # noqa: ARG002
        return all(settings.get(name) == level for name, level in self.settings)


Forbidden = AtMost | Excluded


@dataclass(frozen=True)
class SearchSpace:
    """The finite grid of configurations a study may try.

    `cells` names the level indices that exist, for a recorded table with missing cells; None means
    every combination that no rule forbids.
    """

    knobs: tuple[Knob, ...]
    forbidden: tuple[Forbidden, ...] = ()
    cells: frozenset[tuple[int, ...]] | None = None

    def __post_init__(self) -> None:
        if not self.knobs:
            raise InvalidInputError("A search space needs at least one knob.")
        names = [knob.name for knob in self.knobs]
        if len(set(names)) != len(names):
            raise InvalidInputError(f"A knob is named twice in the search space: {', '.join(names)}.")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(knob.name for knob in self.knobs)

    def knob(self, name: str) -> Knob:
        for knob in self.knobs:
            if knob.name == name:
                return knob
        raise InvalidInputError(f"Unknown knob {name!r}; {did_you_mean(name, self.names)}")

    def indices(self) -> list[tuple[int, ...]]:
        """Level indices of every allowed point, in row-major order: N tuples of d indices."""
        if self.cells is not None:
            candidates: Iterable[tuple[int, ...]] = sorted(self.cells)
        else:
            candidates = itertools.product(*(range(len(knob.levels)) for knob in self.knobs))
        if not self.forbidden:
            return list(candidates)
        by_name = {knob.name: knob for knob in self.knobs}
        return [
            index
            for index in candidates
            if not any(rule.forbids(self._settings(index), by_name) for rule in self.forbidden)
        ]

    def __len__(self) -> int:
        return len(self.indices()) if self.forbidden else self.size_before_rules

    @property
    def size_before_rules(self) -> int:
        """Number of points if no rule forbade any."""
        return len(self.cells) if self.cells is not None else math.prod(len(k.levels) for k in self.knobs)

    def _settings(self, index: Sequence[int]) -> dict[str, Level]:
        return {knob.name: knob.levels[i] for knob, i in zip(self.knobs, index, strict=True)}

    def at(self, index: Sequence[int]) -> Configuration:
        return Configuration.of(self._settings(index))

    def index_of(self, configuration: Mapping[str, Level]) -> tuple[int, ...]:
        """Level indices of a configuration of this space."""
        return tuple(knob.levels.index(configuration[knob.name]) for knob in self.knobs)

    def __contains__(self, configuration: object) -> bool:
        if not isinstance(configuration, Configuration) or set(configuration) != set(self.names):
            return False
        if any(configuration[knob.name] not in knob.levels for knob in self.knobs):
            return False
        by_name = {knob.name: knob for knob in self.knobs}
        if any(rule.forbids(configuration, by_name) for rule in self.forbidden):
            return False
        return self.cells is None or self.index_of(configuration) in self.cells

    def highest(self) -> Configuration:
        """Every knob at its highest level."""
        return Configuration.of({knob.name: knob.highest for knob in self.knobs})

    def thinned(self, limit: int = GRID_LIMIT) -> tuple[SearchSpace, str | None]:
        """The space with evenly fewer levels, ends kept, so that at most `limit` points remain.

        Returns the space itself and None where it is small enough, else the thinned one and a sentence
        that says what was left out.
        """
        if self.cells is not None or len(self) <= limit:
            return self, None
        space = self
        while len(space) > limit:
            widest = max(space.knobs, key=lambda knob: len(knob.levels))
            count = len(widest.levels) - 1
            knobs = tuple(
                Knob(k.name, _evenly(self.knob(k.name).levels, count)) if k is widest else k
                for k in space.knobs
            )
            space = SearchSpace(knobs, self.forbidden)
        changed = ", ".join(
            f"{old.name} {len(old.levels)} → {len(new.levels)} levels"
            for old, new in zip(self.knobs, space.knobs, strict=True)
            if old != new
        )
        note = (
            f"{self.size_before_rules:,} points are more than {limit:,}: "
            f"thinned to {len(space):,} ({changed}), ends kept. "
            "Use --knobs or --fix to search fewer knobs in full."
        )
        return space, note

    @property
    def digest(self) -> str:
        """SHA-256 over knobs, levels and rules: two boards or BSPs with other tables differ here."""
        content = {
            "knobs": [[knob.name, list(knob.levels)] for knob in self.knobs],
            "forbidden": [
                ["at_most", rule.lower, rule.upper]
                if isinstance(rule, AtMost)
                else ["excluded", [list(pair) for pair in rule.settings]]
                for rule in self.forbidden
            ],
            "cells": None if self.cells is None else sorted(list(cell) for cell in self.cells),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _evenly(levels: tuple[Level, ...], count: int) -> tuple[Level, ...]:
    """`count` of the levels, evenly spread by rank, both ends and every category kept."""
    numbers = [x for x in levels if not isinstance(x, str)]
    categories = [x for x in levels if isinstance(x, str)]
    keep = max(count - len(categories), 2)
    if keep >= len(numbers):
        return levels
    step = (len(numbers) - 1) / (keep - 1)
    return (*(numbers[round(i * step)] for i in range(keep)), *categories)
