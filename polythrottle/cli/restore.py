"""`polythrottle restore`: put the device back, with the helper or without."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer
from rich.console import Console

from polythrottle.errors import ExitCode, NoDeviceError
from polythrottle.reporting.console import make_console, print_text


def restore(
    dry_run: bool = typer.Option(False, "--dry-run", help="Say what would be put back; write nothing."),
    force: bool = typer.Option(False, "--force", help="Even while somebody's run holds the device: end it."),
    gpu: str | None = typer.Option(None, help="UUID or PCI address of the NVIDIA GPU, where several are."),
    state_dir: Path | None = typer.Option(
        None, help="Where the journal of originals is kept. Default: where the helper, or root, keeps it."
    ),
) -> None:
    """Put every clock and limit back as it was before polythrottle wrote it.

    Ends a configuration that apply --keep left, and finishes what a killed run could not. Doing it twice
    changes nothing.
    """
    console = make_console()
    if dry_run:
        _show(console, gpu, state_dir)
        return
    done = _by_helper(force) if state_dir is None else None
    knobs, problems = done if done is not None else put_back_directly(gpu, state_dir)
    if not knobs:
        print_text(console, "Nothing to put back: polythrottle holds nothing on this device.")
    elif not problems:
        print_text(console, ("put back  ", "bold"), ", ".join(knobs), indent=10)
    for problem in problems:
        print_text(make_console(sys.stderr), ("error: ", "bold red"), problem, indent=7)
    if problems:
        raise typer.Exit(int(ExitCode.ERROR))


def _by_helper(force: bool) -> tuple[list[str], list[str]] | None:
    """As `put_back_directly`; None where no helper answers and this process can do it itself."""
    from polythrottle_agent.privileged.client import HelperClient, HelperError, socket_path

    if not socket_path().exists():
        return None
    try:
        client = HelperClient()
    except HelperError:
        # A helper that was killed leaves its socket behind; root needs none.
        if os.geteuid() == 0:
            return None
        raise
    with client:
        answer = client.request("put_back", force=force)
    return list(answer["knobs"]), list(answer["not_restored"])


def put_back_directly(gpu: str | None, state_dir: Path | None) -> tuple[list[str], list[str]]:
    """Without a helper: knobs that the journal held, and what could not be restored."""
    from polythrottle.clock import RealClock
    from polythrottle_agent.audit import AuditLog
    from polythrottle_agent.devices import sysroot
    from polythrottle_agent.discovery import discover
    from polythrottle_agent.hardware import state_directory
    from polythrottle_agent.ports import ControlError
    from polythrottle_agent.privileged.journal import Journal, boot_id
    from polythrottle_agent.privileged.restoring import restore_from_journal

    root = sysroot()
    directory = state_dir if state_dir is not None else state_directory(root)
    journal = Journal(directory, boot_id(root))
    entry = journal.read()
    if entry is None:
        return [], []
    clock = RealClock()
    try:
        found = discover(root, clock=clock, gpu=gpu, state_dir=directory)
    except ControlError as error:
        raise NoDeviceError(f"The hardware here cannot be used: {error}.") from error
    if not found.is_writable:
        raise NoDeviceError(
            f"User {os.getuid()} may not set the clocks of {found.identity.label}; "
            "run sudo polythrottle restore."
        )
    done = restore_from_journal(journal, AuditLog(directory), found.controls, clock, "polythrottle restore")
    return list(entry.originals), [str(problem) for problem in done.not_restored]


def _show(console: Console, gpu: str | None, state_dir: Path | None) -> None:
    from polythrottle.clock import RealClock
    from polythrottle_agent.devices import sysroot
    from polythrottle_agent.discovery import discover
    from polythrottle_agent.hardware import state_directory
    from polythrottle_agent.ports import ControlError
    from polythrottle_agent.privileged.journal import Journal, boot_id
    from polythrottle_agent.privileged.keeper import format_state
    from polythrottle_agent.privileged.restoring import what_restore_would_do

    root = sysroot()
    directory = state_dir if state_dir is not None else state_directory(root)
    journal = Journal(directory, boot_id(root))
    if journal.read() is None:
        print_text(
            console, ("dry run", "bold"), ": nothing to put back; no journal of this boot in ", str(directory)
        )
        return
    clock = RealClock()
    try:
        found = discover(root, clock=clock, gpu=gpu, state_dir=directory)
    except ControlError as error:
        raise NoDeviceError(f"The hardware here cannot be used: {error}.") from error
    entry, pending = what_restore_would_do(journal, found.controls, clock)
    if entry is None:
        return
    print_text(
        console, ("dry run", "bold"), f": nothing was written. Originals of {entry.written_at}, {entry.owner}"
    )
    if entry.kept is not None:
        print_text(console, "  kept      ", entry.kept, indent=12)
    for one in pending:
        now = one.problem if one.now is None else format_state(one.now)
        state = "as it was" if not one.differs else f"now {now}"
        print_text(console, "  put back  ", f"{one.knob}: {format_state(one.original)} ({state})", indent=12)
