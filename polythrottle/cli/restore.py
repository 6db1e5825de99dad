"""`polythrottle restore`: put the device back, with the helper or without."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from polythrottle.cli.interrupts import Interrupts
from polythrottle.errors import ExitCode, NoDeviceError
from polythrottle.reporting.console import make_console, print_text

if TYPE_CHECKING:
    from polythrottle_agent.privileged.client import HelperClient
    from polythrottle_agent.privileged.restoring import Preview, Restored, Restoring

UNDER_WAY = "\nThe device is being put back; this ends by itself."


def restore(
    dry_run: bool = typer.Option(False, "--dry-run", help="Say what would be put back; write nothing."),
    force: bool = typer.Option(False, "--force", help="Even while somebody's run holds the device: end it."),
    gpu: str | None = typer.Option(
        None, help="Only this NVIDIA GPU, by UUID or PCI address. Default: every device."
    ),
    state_dir: Path | None = typer.Option(
        None, help="Where the journals of originals are kept. Default: where the helper, or root, keeps them."
    ),
) -> None:
    """Put every clock and limit back as it was before polythrottle wrote it.

    Ends a configuration that apply --keep left, and finishes what a killed run could not. Doing it twice
    changes nothing.
    """
    from polythrottle_agent.ports import ControlError

    console = make_console()
    restoring = _restoring(state_dir)
    try:
        if dry_run:
            _show(console, restoring, gpu)
            return
        # A signal must not leave it half done.
        with Interrupts(UNDER_WAY, UNDER_WAY):
            done = put_back(restoring, gpu, by_helper=state_dir is None, force=force)
    except ControlError as error:
        raise NoDeviceError(f"The hardware here cannot be used: {error}.") from error
    served = _put_back_services()
    done = (*done, *served)
    report(console, done)
    if not any(device.knobs or device.problems for device in done):
        print_text(console, "Nothing to put back: polythrottle holds nothing here.")
    if any(device.problems for device in done):
        raise typer.Exit(int(ExitCode.ERROR))


def report(console: Console, done: tuple[Restored, ...]) -> None:
    """Say what is back, and on stderr what is not."""
    several = len(done) > 1
    for device in done:
        of_device = f" of {device.device}" if several else ""
        if device.knobs:
            print_text(console, ("put back  ", "bold"), f"{', '.join(device.knobs)}{of_device}", indent=10)
        for problem in device.problems:
            print_text(make_console(sys.stderr), ("error: ", "bold red"), problem, indent=7)


def put_back(restoring: Restoring, gpu: str | None, *, by_helper: bool, force: bool) -> tuple[Restored, ...]:
    """Every device that has a journal, or the one GPU: the helper's own by it, others by this process.

    Raises:
        ControlError: no GPU is called that.
        HelperError: the helper went away, or cannot be reached by a user who needs it.
    """
    client = _client() if by_helper else None
    if client is None:
        return restoring.put_back("polythrottle restore", gpu)
    from polythrottle_agent.privileged.client import helper_device

    with client:
        served = helper_device(client)[0]
        if gpu is not None and not _is(served.id, gpu, restoring):
            return restoring.put_back("polythrottle restore", gpu)
        ours = _by_helper(client, served.label, force)
    others = () if gpu is not None else restoring.put_back("polythrottle restore", but=served.id)
    return (ours, *others)


def _put_back_services() -> tuple[Restored, ...]:
    """Configurations of models that an interrupted run left in a Triton."""
    from polythrottle_agent.privileged.restoring import Restored
    from polythrottle_agent.workloads.triton_original import put_back_all

    return tuple(
        Restored(
            back.target, () if back.problem else ("batch_size",), (back.problem,) if back.problem else ()
        )
        for back in put_back_all()
    )


def _client() -> HelperClient | None:
    """None where no helper answers and this process can do it itself."""
    from polythrottle_agent.privileged.client import HelperClient, HelperError, socket_path

    if not socket_path().exists():
        return None
    try:
        return HelperClient()
    except HelperError:
        # A helper that was killed leaves its socket behind; root needs none.
        if os.geteuid() == 0:
            return None
        raise


def _by_helper(client: HelperClient, label: str, force: bool) -> Restored:
    from polythrottle_agent.privileged.client import HelperRefusal
    from polythrottle_agent.privileged.restoring import Restored

    try:
        answer = client.request("put_back", force=force)
    except HelperRefusal as refusal:
        return Restored(label, (), (f"The helper puts nothing back: {refusal}.",))
    return Restored(label, tuple(answer["knobs"]), tuple(answer["not_restored"]))


def _is(device_id: str, gpu: str, restoring: Restoring) -> bool:
    from polythrottle_agent.identity import nvidia_id

    return device_id == nvidia_id(gpu.strip()) or device_id == restoring.id_of(gpu)


def _restoring(state_dir: Path | None) -> Restoring:
    from polythrottle.clock import RealClock
    from polythrottle_agent.devices import sysroot
    from polythrottle_agent.discovery import discover
    from polythrottle_agent.hardware import state_directory
    from polythrottle_agent.privileged.files import Files
    from polythrottle_agent.privileged.restoring import Restoring

    root = sysroot()
    directory = state_dir if state_dir is not None else state_directory(root)
    return Restoring(root, directory, discover, RealClock(), Files())


def put_back_directly() -> tuple[Restored, ...]:
    """Without a helper: every device that has a journal where the helper, or root, keeps it."""
    return _restoring(None).put_back("polythrottle uninstall")


def _show(console: Console, restoring: Restoring, gpu: str | None) -> None:
    shown = 0
    for device in restoring.preview(gpu):
        _show_device(console, device)
        shown += 1
    damaged = restoring.devices(gpu)[1]
    for problem in damaged:
        print_text(make_console(sys.stderr), ("error: ", "bold red"), problem, indent=7)
    if not shown and not damaged:
        where = str(restoring.directory)
        print_text(console, ("dry run", "bold"), ": nothing to put back; no journal of this boot in ", where)
    if damaged:
        raise typer.Exit(int(ExitCode.ERROR))


def _show_device(console: Console, device: Preview) -> None:
    from polythrottle_agent.privileged.caps import format_state

    entry = device.entry
    print_text(
        console,
        ("dry run", "bold"),
        f": nothing was written. Originals of {device.device}, of {entry.written_at}, {entry.owner}",
    )
    if device.problem is not None:
        print_text(console, "  note      ", f"{device.problem}.", indent=12)
    if entry.kept is not None:
        print_text(console, "  kept      ", entry.kept, indent=12)
    for one in device.pending:
        now = one.problem if one.now is None else format_state(one.now)
        state = "as it was" if not one.differs else f"now {now}"
        if one.wanted != one.original:
            state += f"; it was {format_state(one.original)}, above what the power mode allows now"
        print_text(console, "  put back  ", f"{one.knob}: {format_state(one.wanted)} ({state})", indent=12)
