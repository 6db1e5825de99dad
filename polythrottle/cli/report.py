"""`polythrottle report`: a study as one HTML file."""

from __future__ import annotations

from pathlib import Path

import typer

from polythrottle.cli.studies import StateDirOption, find_study
from polythrottle.reporting.console import make_console, print_text


def report(
    study: str = typer.Argument(help="The study's id, or how it begins; 'last' for the newest."),
    output: Path | None = typer.Option(None, "--output", "-o", help="Default: polythrottle-STUDY.html."),
    state_dir: Path | None = StateDirOption,
) -> None:
    """Write a study's report: energy against latency, convergence, and every trial with why."""
    from polythrottle.cli.tune import check_report

    found = find_study(study, state_dir)
    path = output if output is not None else Path(f"polythrottle-{found.id}.html")
    check_report(path)
    from polythrottle.reporting.html import write_report

    write_report(found, path)
    print_text(make_console(), f"report: {path}")
