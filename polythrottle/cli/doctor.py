"""`polythrottle doctor`: what works on this machine, what is missing, and what mends it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import typer

from polythrottle import __version__
from polythrottle.errors import ExitCode
from polythrottle.reporting.console import make_console, print_text

_STYLES = {"ok": "green", "note": "dim", "warning": "yellow", "missing": "bold red"}


def doctor(
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
    gpu: str | None = typer.Option(None, help="UUID or PCI address of the NVIDIA GPU, where several are."),
    state_dir: Path | None = typer.Option(
        None, help="Where the journal is. Default: where the helper keeps it."
    ),
) -> None:
    """Say what can be read and written here, what is missing, and the command that mends it.

    Only reads. Exit code 1 when something that tuning needs is missing.
    """
    from polythrottle.clock import RealClock
    from polythrottle_agent.devices import sysroot
    from polythrottle_agent.diagnosis import diagnose
    from polythrottle_agent.hardware import state_directory

    root = sysroot()
    directory = state_dir if state_dir is not None else state_directory(root)
    found = diagnose(root, directory, RealClock(), gpu)
    if as_json:
        document = {
            "schema": "polythrottle-doctor/1",
            "polythrottle_version": __version__,
            "device": found.device,
            "usable": found.is_usable,
            "checks": [{**asdict(check), "state": check.state.value} for check in found.checks],
        }
        typer.echo(json.dumps(document, indent=2))
    else:
        console = make_console()
        for check in found.checks:
            state = check.state.value
            print_text(console, (f"{state:<9}", _STYLES[state]), f"{check.subject}: {check.found}", indent=9)
            if check.fix is not None:
                print_text(console, " " * 9, ("→ ", "dim"), check.fix, indent=11)
    if not found.is_usable:
        raise typer.Exit(int(ExitCode.ERROR))
