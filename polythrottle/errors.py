"""Errors that a user sees: one sentence that says what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the command line, documented in docs/cli.md."""

    OK = 0
    ERROR = 1
    INFEASIBLE = 2
    NO_DEVICE = 3
    INTERRUPTED = 130


class PolythrottleError(Exception):
    """Something the user can mend. The message is shown as it stands, without a traceback."""

    exit_code: ExitCode = ExitCode.ERROR


class InvalidInputError(PolythrottleError):
    """An option, a file or a value that cannot be used."""


class NoDeviceError(PolythrottleError):
    """No hardware here can be controlled."""

    exit_code = ExitCode.NO_DEVICE


class DeviceBusyError(PolythrottleError):
    """Another run holds the device."""


class StateError(PolythrottleError):
    """The state directory or the database cannot be used."""


def did_you_mean(word: str, known: Iterable[str], *, keep_order: bool = False) -> str:
    """A sentence with the closest known words, or all of them when none is close.

    They are listed by name, or with `keep_order` as they come: numbers written out do not sort as text.
    """
    known = list(known) if keep_order else sorted(known)
    close = difflib.get_close_matches(word.lower(), known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known: {', '.join(known)}." if known else "none is known."
