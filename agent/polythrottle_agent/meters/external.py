"""An external meter: a file that something else keeps up to date, or a command that prints a reading.

Either gives one line: a number and its unit, `12.3 W` for power now or `4567 J` for energy since some moment.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from polythrottle.clock import Clock
from polythrottle.errors import InvalidInputError, did_you_mean
from polythrottle.measurement import Provenance, Scope
from polythrottle_agent.meters.power import (
    PERIOD_S,
    About,
    Counter,
    CounterMeter,
    PowerMeter,
    PowerReading,
)
from polythrottle_agent.ports import ControlError, Meter

_WATTS = {"W": 1.0, "mW": 1e-3, "uW": 1e-6, "kW": 1e3}
_JOULES = {"J": 1.0, "mJ": 1e-3, "uJ": 1e-6, "kJ": 1e3, "Wh": 3600.0, "kWh": 3.6e6}
_READING = re.compile(r"^\s*([-+]?\d+(?:\.(\d+))?(?:[eE][-+]?\d+)?)\s*([A-Za-zµ]+)\s*$")

COMMAND_PERIOD_S = 0.5
"""Starting a process takes milliseconds of a core: twice a second stays below 1 %."""

COMMAND_TIMEOUT_S = 2.0
KINDS = ("file", "command")
_FORM = "a reading is a number and its unit, such as `12.3 W` or `4567 J`"


def open_external(text: str, clock: Clock) -> Meter:
    """`file:PATH` or `command:PROGRAM ARGUMENTS`. Read once, to learn the unit.

    Raises:
        InvalidInputError: neither, nothing there, or its first reading cannot be understood.
    """
    kind, colon, rest = text.strip().partition(":")
    if kind not in KINDS or not colon or not rest.strip():
        raise InvalidInputError(
            f"Meter {text!r} is not known; {did_you_mean(kind, KINDS)} Write file:PATH or command:PROGRAM."
        )
    ask = _file(rest.strip()) if kind == "file" else _command(rest.strip())
    try:
        first, unit, digits = _parsed(ask())
    except ControlError as error:
        raise InvalidInputError(f"Meter {text!r} cannot be used: {error}.") from error
    about = About(f"external meter {kind}:{_short(rest.strip())}", Scope.BOARD, Provenance.MEASURED)
    period_s = PERIOD_S if kind == "file" else COMMAND_PERIOD_S
    factor, table = (_WATTS[unit], _WATTS) if unit in _WATTS else (_JOULES[unit], _JOULES)
    step = factor * 10.0**-digits if digits else 0.0

    def value() -> float:
        number, its_unit, _ = _parsed(ask())
        if its_unit not in table:
            raise ControlError(f"it read {first:g} {unit} at first and now {number:g} {its_unit}")
        return number * table[its_unit]

    if table is _JOULES:
        counter = Counter(rest.strip(), value, None, step or factor, 0.0)
        return CounterMeter(about, [counter], clock, period_s=10.0)
    return PowerMeter(about, lambda: PowerReading(value(), step), lambda: 0.0, clock, period_s)


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:39]}…"


def _parsed(text: str) -> tuple[float, str, int]:
    """Number, unit and digits after the point."""
    match = _READING.match(text)
    unit = "" if match is None else match[3].replace("µ", "u")
    if match is None or unit not in {**_WATTS, **_JOULES}:
        raise ControlError(f"it reads {text.strip()[:40]!r}, but {_FORM}")
    return float(match[1]), unit, len(match[2] or "")


def _file(name: str) -> Callable[[], str]:
    path = Path(name).expanduser()

    def ask() -> str:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise ControlError(f"{path} cannot be read ({reason})") from error
        return lines[-1] if lines else ""

    return ask


def _command(line: str) -> Callable[[], str]:
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise InvalidInputError(f"The meter command {line!r} cannot be read: {error}.") from error
    if not words or shutil.which(words[0]) is None:
        raise InvalidInputError(f"The meter command {line!r} names no program that is installed.")

    def ask() -> str:
        try:
            # No shell: what is not an argument here is not run.
            done = subprocess.run(
                words, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ControlError(f"{words[0]} took longer than {COMMAND_TIMEOUT_S:g} s") from error
        except (OSError, UnicodeDecodeError) as error:
            raise ControlError(f"{words[0]} cannot be run ({error})") from error
        if done.returncode != 0:
            raise ControlError(f"{words[0]} ended with {done.returncode}: {done.stderr.strip()[:80]}")
        return done.stdout.strip().rpartition("\n")[2]

    return ask
