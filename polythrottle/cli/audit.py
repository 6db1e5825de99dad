"""`polythrottle audit`: who wrote what to the device, when and why."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from pathlib import Path

import typer

from polythrottle.cli.durations import seconds
from polythrottle.configuration import Level, format_level
from polythrottle.reporting.console import make_console, print_text


def audit(
    since: str | None = typer.Option(None, help="Only the last while, such as 10m, 1h or 7d."),
    knob: str | None = typer.Option(None, help="Only this knob."),
    last: int | None = typer.Option(None, "--last", "-n", min=1, help="Only the last N lines."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object a line."),
    state_dir: Path | None = typer.Option(None, help="Where the log is. Default: where the helper keeps it."),
) -> None:
    """Show the audit log: each write to the device, with who, old, new and why."""
    from polythrottle_agent.audit import Damaged, Record, read_audit
    from polythrottle_agent.devices import sysroot
    from polythrottle_agent.hardware import state_directory
    from polythrottle_agent.privileged.journal import user_name

    directory = state_dir if state_dir is not None else state_directory(sysroot())
    after = ""
    if since is not None:
        moment = datetime.now(timezone.utc) - timedelta(seconds=seconds("--since", since))
        after = moment.isoformat(timespec="milliseconds")
    records: list[Record] = []
    damaged: list[Damaged] = []
    for found in read_audit(directory):
        if isinstance(found, Damaged):
            damaged.append(found)
        elif found.at >= after and knob in (None, found.knob):
            records.append(found)
    if last is not None:
        records = records[-last:]
    console = make_console()
    for record in records:
        if as_json:
            typer.echo(json.dumps(asdict(record), ensure_ascii=False))
            continue
        change = "" if record.new is None else f" {_text(record.old)} → {_text(record.new)}"
        print_text(
            console,
            f"{record.at[:19].replace('T', ' ')}  {record.event:<13}",
            f"{record.knob or '-'}{change}; {record.reason or 'no reason given'} "
            f"({record.owner}, process {record.pid} of {user_name(record.uid)})",
            indent=36,
        )
    if not records and not as_json:
        print_text(console, f"Nothing in the audit log of {directory}.")
    for line in damaged:
        print_text(
            make_console(sys.stderr),
            f"{line.file}, line {line.line} is damaged: a crash cut it short, or it was edited.",
        )


def _text(level: Level | None) -> str:
    return "unknown" if level is None else format_level(level)
