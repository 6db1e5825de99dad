"""Options for a search on live traffic."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from polythrottle.configuration import parse_number
from polythrottle.errors import InvalidInputError
from polythrottle.traffic import USUAL_VIOLATIONS_PER_HOUR, LiveOptions, QuietHours

ANY = "any"
_PANEL = "Live traffic"
_SHARE = re.compile(r"^\s*(\d+(?:\.\d*)?)\s*%\s*$")

LiveOption = Annotated[
    bool,
    typer.Option(
        "--live",
        help="The queries are real users': small steps first, within the rules below. Implied by --watch.",
        rich_help_panel=_PANEL,
    ),
]
ViolationsOption = Annotated[
    str | None,
    typer.Option(
        "--violations-per-hour",
        help="Trials that may miss the SLO within an hour, such as 2, or any. Default: 3.",
        rich_help_panel=_PANEL,
    ),
]
QuietHoursOption = Annotated[
    str | None,
    typer.Option(
        "--quiet-hours", help="No trials then; local time, as in 22:00-06:00.", rich_help_panel=_PANEL
    ),
]
CanaryOption = Annotated[
    str | None,
    typer.Option(
        "--canary",
        help="Try each configuration on this share of the traffic first, such as 10%.",
        rich_help_panel=_PANEL,
    ),
]
CanaryCommandOption = Annotated[
    str | None,
    typer.Option(
        "--canary-command",
        help="The program that sends a share of the traffic here: 'PROGRAM {share}', a number up to 1.",
        rich_help_panel=_PANEL,
    ),
]
NoWaitingOption = Annotated[
    bool,
    typer.Option(
        "--no-waiting",
        help="Stop where a rule forbids a trial now; --resume goes on.",
        rich_help_panel=_PANEL,
    ),
]


def parsed(
    is_live: bool,
    violations_per_hour: str | None,
    quiet_hours: str | None,
    canary: str | None,
    canary_command: str | None,
    no_waiting: bool,
) -> LiveOptions | None:
    """What was said; None where there is no live traffic. Any of the rules means that there is.

    Raises:
        InvalidInputError: one cannot be read.
    """
    told = (violations_per_hour, quiet_hours, canary, canary_command)
    if not is_live and not no_waiting and all(one is None for one in told):
        return None
    return LiveOptions(
        _per_hour(violations_per_hour),
        None if quiet_hours is None else QuietHours.parse(quiet_hours),
        None if canary is None else _share(canary),
        canary_command,
        waits=not no_waiting,
    )


def _per_hour(text: str | None) -> float | None:
    if text is None:
        return USUAL_VIOLATIONS_PER_HOUR
    if text.strip().lower() == ANY:
        return None
    try:
        return parse_number(text)
    except ValueError:
        raise InvalidInputError(
            f"--violations-per-hour {text!r} cannot be read; write a number such as 2, or any."
        ) from None


def _share(text: str) -> float:
    match = _SHARE.match(text)
    if match is None:
        raise InvalidInputError(f"--canary {text!r} cannot be read; write a percentage such as 10%.")
    return float(match[1]) / 100
