"""What an operator allows: /etc/polythrottle/limits.yaml, the least and the most of a knob."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from polythrottle.configuration import UNITS, Level
from polythrottle.errors import InvalidInputError, did_you_mean

LIMITS_FILE = "/etc/polythrottle/limits.yaml"

_FIELDS = ("min", "max")
_FORM = "write for example `gpu_freq_mhz: {max: 918}`"


@dataclass(frozen=True)
class Limit:
    """The range a knob may take, in its unit."""

    lowest: float = 0.0
    highest: float = math.inf

    def allows(self, level: Level) -> bool:
        """`unlocked` lets the hardware go as high as it likes, so a maximum rules it out."""
        if isinstance(level, str):
            return math.isinf(self.highest)
        return self.lowest <= level <= self.highest


@dataclass
class OperatorLimits:
    """Limits by knob; a knob that is not named is not limited. `source` is the file, None without one.

    Controls hold on to it, so that what `reread` finds below `root` bounds their next write.
    """

    limits: Mapping[str, Limit] = field(default_factory=dict)
    source: str | None = None
    root: Path | None = None

    def of(self, knob: str) -> Limit:
        return self.limits.get(knob, Limit())

    def reread(self) -> None:
        """Take over what the file says now. Without a `root`, nothing can have changed.

        Raises:
            InvalidInputError: it cannot be understood; the limits stay as they were.
        """
        if self.root is not None:
            now = load_limits(self.root)
            self.limits, self.source = now.limits, now.source


def load_limits(root: Path = Path("/")) -> OperatorLimits:
    """Read the operator's file below `root`; no file means no limits.

    Raises:
        InvalidInputError: the file is there and cannot be understood. Limits that cannot be read must
            not count as none.
    """
    path = root / LIMITS_FILE.lstrip("/")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return OperatorLimits(root=root)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(
            f"The limits in {LIMITS_FILE} cannot be read ({error}); nothing is changed until they can be."
        ) from error
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where is not None else ""
        raise InvalidInputError(f"{LIMITS_FILE} is not YAML{line}; {_FORM}.") from error
    if content is None:
        return OperatorLimits(source=LIMITS_FILE, root=root)
    if not isinstance(content, dict):
        raise InvalidInputError(f"{LIMITS_FILE} must map knobs to limits; {_FORM}.")
    return OperatorLimits({str(k): _limit(str(k), v) for k, v in content.items()}, LIMITS_FILE, root)


def _limit(knob: str, value: object) -> Limit:
    if knob not in UNITS:
        raise InvalidInputError(f"{LIMITS_FILE} names knob {knob!r}; {did_you_mean(knob, UNITS)}")
    if not isinstance(value, dict) or not value:
        raise InvalidInputError(f"{LIMITS_FILE}: {knob} must have min, max or both; {_FORM}.")
    for name in value:
        if name not in _FIELDS:
            raise InvalidInputError(f"{LIMITS_FILE}: {knob} has {name!r}; {did_you_mean(str(name), _FIELDS)}")
    lowest = _number(knob, "min", value.get("min", 0.0))
    highest = _number(knob, "max", value.get("max", math.inf))
    if lowest > highest:
        raise InvalidInputError(f"{LIMITS_FILE}: {knob} has min {lowest:g} above max {highest:g}.")
    return Limit(lowest, highest)


def _number(knob: str, name: str, value: object) -> float:
    # A bool is an int to Python, and `max: yes` is a mistake.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value) or value < 0:
        unit = f" of {UNITS[knob]}" if UNITS[knob] else ""
        raise InvalidInputError(f"{LIMITS_FILE}: {knob} {name} is {value!r}, not a number{unit}.")
    return float(value)
