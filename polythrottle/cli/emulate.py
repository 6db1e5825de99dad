"""`polythrottle emulate`: an emulated board's sysfs, mounted for other processes."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from polythrottle.errors import InvalidInputError

app = typer.Typer(
    no_args_is_help=True,
    help="Emulate a board's sysfs with FUSE, for other programs to meet. Every number from it is emulated.",
)

MountedAt = Annotated[Path, typer.Argument(help="Where the board is mounted.")]


@app.command("list")
def list_boards() -> None:
    """List the boards, and the kernels that each is emulated under."""
    from polythrottle_agent.emulation.boards import SYSFS_BOARDS
    from polythrottle_agent.emulation.layouts import kernels_of, layout_of

    for board in SYSFS_BOARDS:
        layout = layout_of(board)
        others = [release for release in kernels_of(board) if release != layout.kernel.release]
        also = f" (also {', '.join(others)})" if others else ""
        typer.echo(f"{board}: {layout.profile.display_name}, kernel {layout.kernel.release}{also}")


@app.command("board")
def emulate_board(
    board: Annotated[str, typer.Argument(help="A board of `polythrottle emulate list`.")],
    mount: Annotated[Path, typer.Option("--mount", help="An empty directory to mount at; made if missing.")],
    kernel: Annotated[str | None, typer.Option(help="4.9, 5.10, 5.15 or 6.8 (default: the usual).")] = None,
    workload: Annotated[str | None, typer.Option(help="What the board serves.")] = None,
    mode: Annotated[str | None, typer.Option(help="nvpmodel's mode at boot, by id or name.")] = None,
    seed: Annotated[int, typer.Option(help="Of noise, delays and hwmon numbers.")] = 0,
    emc_stuck_mhz: Annotated[
        float | None, typer.Option("--emc-stuck-mhz", help="A memory ceiling that no file shows.")
    ] = None,
    gpu_late_s: Annotated[
        float, typer.Option("--gpu-late-s", min=0.0, help="The GPU's node appears that late.")
    ] = 0.0,
) -> None:
    """Mount a board and serve it until interrupted. It outlives any program that uses it."""
    from polythrottle_agent.emulation.machine import Options
    from polythrottle_agent.emulation.mount import is_mounted, mounted

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    if not is_mounted(mount.absolute()):
        try:
            mount.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInputError(f"Cannot make {mount}: {error.strerror}.") from None
    options = Options(mode=mode, emc_stuck_mhz=emc_stuck_mhz, gpu_appears_after_s=gpu_late_s)
    with mounted(
        board, kernel=kernel, workload=workload, seed=seed, mountpoint=mount, options=options
    ) as emulated:
        layout = emulated.machine.layout
        typer.echo(
            f"emulated {board}, kernel {layout.kernel.release}, mode {emulated.machine.mode.name}, "
            f"at {emulated.root}"
        )
        stop.wait()


@app.command("control")
def control(mount: MountedAt, command: Annotated[list[str], typer.Argument(help="A command.")]) -> None:
    """Disturb a mounted board, as in `control DIR inject emc/rate silent`; `control DIR help` lists all."""
    import shlex

    from polythrottle_agent.ports import ControlError
    from polythrottle_agent.workloads.emulated_remote import RemoteBoard

    board = RemoteBoard(mount)
    try:
        if command == ["help"]:
            typer.echo(board.read("control").rstrip())
        else:
            board.command(shlex.join(command))
    except ControlError as error:
        raise InvalidInputError(f"{str(error)[:1].upper()}{str(error)[1:]}.") from None


@app.command("state")
def state(mount: MountedAt) -> None:
    """Print what holds on a mounted board, as JSON."""
    import json

    from polythrottle_agent.ports import ControlError
    from polythrottle_agent.workloads.emulated_remote import RemoteBoard

    try:
        typer.echo(json.dumps(dict(RemoteBoard(mount).state()), indent=2))
    except ControlError as error:
        raise InvalidInputError(f"{str(error)[:1].upper()}{str(error)[1:]}.") from None
