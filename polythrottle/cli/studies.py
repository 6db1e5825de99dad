"""`polythrottle studies`: what was tuned here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from polythrottle.errors import InvalidInputError, StateError
from polythrottle.objective import format_energy
from polythrottle.reporting.console import make_console, print_text, printable
from polythrottle.reporting.terminal import ProgressScreen, show_result
from polythrottle.study import Study

app = typer.Typer(no_args_is_help=True, help="Studies kept on this machine: list, show, export.")

StateDirOption = typer.Option(
    None,
    "--state-dir",
    help="Where studies are kept. Default: $POLYTHROTTLE_STATE_DIR or the user's state directory.",
)
StudyArgument = Annotated[str, typer.Argument(help="The id, or how it begins; 'last' for the newest.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
NARROW = 90
LAST = "last"


def all_studies(state_dir: Path | None) -> tuple[Study, ...]:
    """Every study, oldest first; none where nothing was ever kept. Creates nothing.

    Raises:
        StateError: the database cannot be read.
    """
    from polythrottle.api import DATABASE, default_state_dir, open_studies

    directory = state_dir if state_dir is not None else default_state_dir()
    try:
        kept = (directory / DATABASE).exists()
        missing = state_dir is not None and not directory.is_dir()
    except OSError as error:
        raise StateError(
            f"The state directory {directory} cannot be read ({error.strerror}); "
            "name another with --state-dir."
        ) from error
    if not kept:
        if missing:
            raise StateError(
                f"The state directory {directory} does not exist; name another with --state-dir."
            )
        return ()
    return open_studies(directory).list()


def find_study(text: str, state_dir: Path | None) -> Study:
    """The study with this id, or the only one whose id begins so, or the newest for `last`.

    Raises:
        InvalidInputError: there is none, or more than one.
    """
    studies = all_studies(state_dir)
    if not studies:
        raise InvalidInputError("No study is kept here yet; polythrottle tune makes one.")
    if text == LAST:
        return studies[-1]
    from polythrottle.api import default_state_dir, open_studies

    return open_studies(state_dir if state_dir is not None else default_state_dir()).get(text)


@app.command("list")
def list_studies(as_json: JsonOption = False, state_dir: Path | None = StateDirOption) -> None:
    """List the studies, oldest first."""
    studies = all_studies(state_dir)
    if as_json:
        typer.echo(json.dumps([_summary(study) for study in studies], indent=2))
        return
    console = make_console()
    if not studies:
        print_text(console, "No study is kept here yet; polythrottle tune makes one.")
        return
    rows = [[str(value) for value in _summary(study).values()] for study in studies]
    heads = list(_summary(studies[0]))
    if console.width < NARROW:
        for row in rows:
            print_text(console, (row[0], "bold"))
            for head, value in zip(heads[1:], row[1:], strict=True):
                print_text(console, f"  {head}: {value}", indent=4)
        return
    table = Table(box=None, pad_edge=False)
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*(printable(console, value) for value in row))
    console.print(table)


def _summary(study: Study) -> dict[str, Any]:
    chosen = study.result.chosen if study.result is not None else None
    return {
        "study": study.id,
        "started": study.created_at[:16].replace("T", " "),
        "device": study.spec.device.id,
        "workload": study.spec.workload,
        "slo": str(study.spec.slo),
        "state": study.state.value,
        "verdict": study.result.verdict.value if study.result is not None else "-",
        "trials": len(study.trials),
        "energy": "-" if chosen is None else format_energy(chosen.energy_j),
    }


@app.command("show")
def show(study: StudyArgument, as_json: JsonOption = False, state_dir: Path | None = StateDirOption) -> None:
    """Show a study: its trials as they were printed, and the answer."""
    found = find_study(study, state_dir)
    from polythrottle.api import default_state_dir, open_studies

    result = found.result
    if result is None:
        directory = state_dir if state_dir is not None else default_state_dir()
        result = open_studies(directory).result(found.id)
    if as_json:
        from polythrottle.reporting.result_json import result_json

        typer.echo(json.dumps(result_json(result, found), indent=2))
        return
    console = make_console()
    screen = ProgressScreen(console)
    screen.started(found, found.spec.device.label, found.spec.notes, live=False)
    for trial in found.trials:
        if trial.state.finished:
            screen.trial_finished(trial, found)
    show_result(result, found, console)


@app.command("export")
def export(
    study: StudyArgument,
    output: Path | None = typer.Option(None, "--output", "-o", help="Default: stdout."),
    state_dir: Path | None = StateDirOption,
) -> None:
    """Export everything about a study as JSON: spec, trials, measurements, suggestions, result."""
    found = find_study(study, state_dir)
    from polythrottle.api import default_state_dir, open_studies

    directory = state_dir if state_dir is not None else default_state_dir()
    text = json.dumps(open_studies(directory).export(found.id), indent=2)
    if output is None:
        typer.echo(text)
        return
    try:
        output.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise InvalidInputError(
            f"{output} cannot be written ({error.strerror}); name another file with --output."
        ) from error
    print_text(make_console(sys.stderr), f"exported: {output}")
