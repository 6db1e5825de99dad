"""`polythrottle emulate`: an emulated board's sysfs, mounted for other processes."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polythrottle.errors import InvalidInputError

if TYPE_CHECKING:
    from polythrottle_agent.emulation.mount import MountedBoard

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


BoardName = Annotated[str, typer.Argument(help="A board of `polythrottle emulate list`.")]
MountAt = Annotated[Path, typer.Option("--mount", help="An empty directory to mount at; made if missing.")]
Kernel = Annotated[str | None, typer.Option(help="4.9, 5.10, 5.15 or 6.8 (default: the usual).")]
WorkloadName = Annotated[str | None, typer.Option(help="What the board serves.")]
Mode = Annotated[str | None, typer.Option(help="nvpmodel's mode at boot, by id or name.")]
Seed = Annotated[int, typer.Option(help="Of noise, delays and hwmon numbers.")]
EmcStuck = Annotated[
    float | None, typer.Option("--emc-stuck-mhz", help="A memory ceiling that no file shows.")
]
GpuLate = Annotated[float, typer.Option("--gpu-late-s", min=0.0, help="The GPU's node appears that late.")]


@app.command("board")
def emulate_board(
    board: BoardName,
    mount: MountAt,
    kernel: Kernel = None,
    workload: WorkloadName = None,
    mode: Mode = None,
    seed: Seed = 0,
    emc_stuck_mhz: EmcStuck = None,
    gpu_late_s: GpuLate = 0.0,
) -> None:
    """Mount a board and serve it until interrupted. It outlives any program that uses it."""
    from polythrottle_agent.emulation.machine import Options
    from polythrottle_agent.emulation.mount import mounted

    stop = _until_interrupted()
    options = Options(mode=mode, emc_stuck_mhz=emc_stuck_mhz, gpu_appears_after_s=gpu_late_s)
    _make(mount)
    with mounted(
        board, kernel=kernel, workload=workload, seed=seed, mountpoint=mount, options=options
    ) as emulated:
        typer.echo(_mounted_note(emulated))
        stop.wait()


@app.command("serve")
def serve(
    board: BoardName,
    mount: MountAt,
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8100,
    queue: Annotated[int, typer.Option(min=1, help="Queries that may wait; more get 503.")] = 256,
    batch_size: Annotated[
        int | None, typer.Option(help="The most queries served together, until somebody sets another.")
    ] = None,
    kernel: Kernel = None,
    workload: WorkloadName = None,
    mode: Mode = None,
    seed: Seed = 0,
) -> None:
    """Mount a board and run an HTTP inference service on it until interrupted.

    POST /infer takes as long as the board's clocks make it; batches form from what waits. GET /healthz and
    /metrics (Prometheus) tell how it goes.
    """
    from polythrottle_agent.emulation.machine import Options
    from polythrottle_agent.emulation.mount import mounted
    from polythrottle_agent.emulation.serving.running import serving

    stop = _until_interrupted()
    _make(mount)
    with mounted(
        board, kernel=kernel, workload=workload, seed=seed, mountpoint=mount, options=Options(mode=mode)
    ) as emulated:
        machine = emulated.machine
        if batch_size is not None:
            machine.set_batch(batch_size)
        with serving(machine, host=host, port=port, queue_limit=queue) as service:
            typer.echo(_mounted_note(emulated))
            model = machine.board.behaviour.calibration.workload
            typer.echo(f"emulated {model} at {service.infer_url}, batches of up to {machine.batch_size}")
            stop.wait()


def _until_interrupted() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _make(mount: Path) -> None:
    """
    Raises:
        InvalidInputError: the directory cannot be made.
    """
    from polythrottle_agent.emulation.mount import is_mounted

    if is_mounted(mount.absolute()):
        return  # `mounted` says what to do
    try:
        mount.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"Cannot make {mount}: {error.strerror}.") from None


def _mounted_note(emulated: MountedBoard) -> str:
    machine = emulated.machine
    return (
        f"emulated {machine.layout.board}, kernel {machine.layout.kernel.release}, mode {machine.mode.name}, "
        f"at {emulated.root}"
    )


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
