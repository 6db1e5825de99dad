"""The command line: its commands, and the one place where an error becomes a sentence and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import typer
from typer.exceptions import TyperException

from polythrottle import __version__
from polythrottle.cli import (
    apply,
    audit,
    bench,
    doctor,
    emulate,
    guard,
    install_service,
    models,
    profiles,
    report,
    restore,
    snapshot,
    studies,
    tune,
)
from polythrottle.errors import ExitCode, PolythrottleError
from polythrottle.reporting.console import make_console, print_text

app = typer.Typer(
    name="polythrottle",
    help="Least energy per query that still meets a latency SLO.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("tune")(tune.tune)
app.command("apply")(apply.apply)
app.command("restore")(restore.restore)
app.command("guard")(guard.guard)
app.command("report")(report.report)
app.command("doctor")(doctor.doctor)
app.command("snapshot")(snapshot.snapshot)
app.command("audit")(audit.audit)
app.command("install-service")(install_service.install_service)
app.command("uninstall")(install_service.uninstall)
app.add_typer(studies.app, name="studies")
app.add_typer(profiles.app, name="profiles")
app.add_typer(models.app, name="models")
app.add_typer(bench.app, name="bench")
app.add_typer(emulate.app, name="emulate")

DEBUG_VARIABLE = "POLYTHROTTLE_DEBUG"


def _version(show: bool) -> None:
    if show:
        typer.echo(f"polythrottle {__version__}")
        raise typer.Exit


@app.callback()
def polythrottle(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Least energy per query that still meets a latency SLO."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit. Exit codes: `polythrottle.errors.ExitCode`."""
    sys.exit(invoke(list(sys.argv[1:] if arguments is None else arguments)))


def invoke(arguments: list[str]) -> int:
    """Run the command line; every failure is one sentence on stderr, and a traceback only on request."""
    command = typer.main.get_command(app)
    try:
        code = command.main(arguments, prog_name="polythrottle", standalone_mode=False)
    except PolythrottleError as error:
        _complain(str(error))
        return int(error.exit_code)
    except typer.Exit as done:
        return done.exit_code
    except (typer.Abort, KeyboardInterrupt):
        _complain("Stopped by the user.")
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone, as `| head` does; nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.ERROR)
    except TyperException as error:  # unknown option, missing argument, value out of range
        return _usage(error)
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            traceback.print_exc()
        _complain(
            f"Something that should not happen did: {type(error).__name__}: {error}. "
            f"Set {DEBUG_VARIABLE}=1 for the details and please report it."
        )
        return int(ExitCode.ERROR)
    return code if isinstance(code, int) else int(ExitCode.OK)


def _usage(error: TyperException) -> int:
    """Typer's own complaint as our one sentence; a bare command shows its help and is no error."""
    context = getattr(error, "ctx", None)
    message = error.format_message().replace("Value error, ", "").strip().rstrip(".")
    if not message or type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(message)
        return int(ExitCode.OK)
    path = context.command_path if context is not None else "polythrottle"
    _complain(f"{message}; see {path} --help.")
    return int(ExitCode.ERROR)


def _complain(sentence: str) -> None:
    print_text(make_console(sys.stderr), ("error: ", "bold red"), sentence, indent=7)
