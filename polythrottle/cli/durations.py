"""Durations on the command line: `90s`, `10m`, `1h`, `2d`."""

from __future__ import annotations

import re

from polythrottle.errors import InvalidInputError

_DURATION = re.compile(r"^\s*(\d+(?:\.\d*)?)\s*(ms|s|m|min|h|d)\s*$", re.IGNORECASE)
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(option: str, text: str) -> float:
    """
    Raises:
        InvalidInputError: not a duration above zero.
    """
    match = _DURATION.match(text)
    if match is None or float(match[1]) <= 0:
        raise InvalidInputError(f"{option} {text!r} cannot be read; write for example 90s, 10m or 1h.")
    return float(match[1]) * _SECONDS[match[2].lower()]
