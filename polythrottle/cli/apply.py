"""`polythrottle apply`: put a configuration on a device, and take it off again unless it proves itself."""

from __future__ import annotations

import select
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from polythrottle.cli import serving
from polythrottle.cli.durations import seconds
from polythrottle.cli.interrupts import Interrupts
from polythrottle.cli.wanted import matched, wanted
from polythrottle.clock import RealClock
from polythrottle.errors import ExitCode, InvalidInputError, NoDeviceError
from polythrottle.objective import LatencySlo
from polythrottle.reporting.console import make_console, print_text

if TYPE_CHECKING:
    from polythrottle_agent.applying import Bare
    from polythrottle_agent.ports import Device
    from polythrottle_agent.workloads.opening import WorkloadOptions

ASK_STEP_S = 0.2
NOW = "\nStopping; the device is being put back."


def apply(
    what: str = typer.Argument(
        metavar="STUDY|FILE",
        help="A study (id, how it begins, or 'last'), or a file: knob: level, or what tune --json printed.",
    ),
    for_: str | None = typer.Option(None, "--for", help="Hold it that long, such as 10m, then put it back."),
    keep: bool = typer.Option(False, "--keep", help="Keep it until polythrottle restore, or a reboot."),
    guarded: bool = typer.Option(
        False, "--guard", help="With --keep: then watch it as polythrottle guard does, until interrupted."
    ),
    device: str | None = typer.Option(None, help="Default: the study's kind of device, else auto."),
    workload: serving.WorkloadOption = None,
    rate: serving.RateOption = None,
    arrivals: serving.ArrivalsOption = "poisson",
    closed_loop: serving.ClosedLoopOption = False,
    connections: serving.ConnectionsOption = serving.DEFAULT_CONNECTIONS,
    time_out: serving.TimeOutOption = serving.DEFAULT_TIME_OUT,
    method: serving.MethodOption = None,
    header: serving.HeaderOption = [],  # noqa: B006 - typer copies it
    body: serving.BodyOption = None,
    success: serving.SuccessOption = None,
    data: serving.DataOption = None,
    watch: serving.WatchOption = False,
    slo: str | None = typer.Option(None, "--latency-slo", help="Default: the study's."),
    yes: bool = typer.Option(False, "--yes", help="Confirm it yourself, whatever is measured."),
    confirm_within: str = typer.Option("60s", help="How long to wait for your answer, where one is needed."),
    seed: int = typer.Option(0, min=0, help="Of emulated noise."),
    state_dir: Path | None = typer.Option(None, help="Where studies are kept."),
) -> None:
    """Apply a configuration. It reverts by itself unless the SLO is measured as met, or you confirm it."""
    if (for_ is None) != keep:
        raise InvalidInputError("Say either --for TIME, such as --for 10m, or --keep.")
    if guarded and not keep:
        raise InvalidInputError(
            "--guard goes with --keep; polythrottle guard holds a configuration by itself."
        )
    for_s = None if for_ is None else seconds("--for", for_)
    answer_s = seconds("--confirm-within", confirm_within)
    asked = wanted(what, state_dir)
    limit = LatencySlo.parse(slo) if slo is not None else asked.slo
    if limit is not None and limit.limit_s is None:
        raise InvalidInputError(
            "--latency-slo must be a time here, such as 50ms: max clocks are not measured."
        )
    options = serving.workload_options(
        rate=rate,
        arrivals=arrivals,
        closed_loop=closed_loop,
        connections=connections,
        time_out=time_out,
        method=method,
        headers=header,
        body=body,
        success=success,
        data=data,
        watch=watch,
        seed=seed,
    )
    console = make_console()
    opened = _open(device or asked.device, workload or asked.workload, options, seed, console)
    from polythrottle_agent.applying import Verdict, apply_or_revert, check_device

    warning = None if asked.tuned is None else check_device(asked.tuned, opened.identity)
    if warning is not None:
        print_text(console, ("warning   ", "yellow"), f"{warning}.", indent=10)
    configuration = matched(asked.settings, opened.controls, console)
    print_text(console, ("applying  ", "bold"), str(configuration), indent=10)
    with Interrupts(NOW, NOW) as interrupts:

        def confirm(sentence: str) -> bool:
            print_text(console, sentence)
            return yes or _ask(console, answer_s, lambda: interrupts.after_trial)

        done = apply_or_revert(opened, configuration, limit, confirm, for_s, lambda: interrupts.after_trial)
    print_text(console, (f"{done.verdict.value:<10}", "bold"), done.reason, indent=10)
    if done.verdict is Verdict.KEPT:
        until = "" if for_ is None else f"Put back by itself in {for_}. "
        print_text(console, " " * 10, f"{until}polythrottle restore or a reboot puts it back.", indent=10)
    for problem in done.not_restored:
        print_text(make_console(sys.stderr), ("error: ", "bold red"), problem, indent=7)
    if done.verdict is Verdict.REVERTED or done.not_restored:
        raise typer.Exit(int(ExitCode.ERROR))
    if guarded:
        from polythrottle.cli.guard import guard_as_told

        guard_as_told(what, workload, options, slo=slo, device=device, seed=seed, state_dir=state_dir)


def _open(
    device: str, workload: str | None, options: WorkloadOptions, seed: int, console: Console
) -> Device | Bare:
    """The whole device; where it has no workload or meter, only what can be set."""
    from polythrottle_agent.devices import open_device

    try:
        return open_device(device, workload, seed, options=options)
    except NoDeviceError as error:
        if not device.startswith("auto"):
            raise
        bare = _bare(device)
        if bare is None:
            raise
        print_text(console, ("note      ", "dim"), str(error), indent=10)
        return bare


def _bare(device: str) -> Bare | None:
    """The controls of the hardware here alone; None where nothing can be set."""
    from polythrottle_agent.applying import Bare
    from polythrottle_agent.devices import sysroot
    from polythrottle_agent.discovery import discover
    from polythrottle_agent.hardware import find_hands, state_directory
    from polythrottle_agent.ports import ControlError

    clock, root = RealClock(), sysroot()
    gpu = device.partition(":")[2] or None
    try:
        hands = find_hands(discover(root, clock=clock, gpu=gpu, state_dir=state_directory(root)))
    except ControlError as error:
        raise NoDeviceError(f"The hardware here cannot be used: {error}.") from error
    return Bare(hands.identity, hands.controls, clock, hands.safekeeping) if hands.controls else None


def _ask(console: Console, answer_s: float, should_stop: Callable[[], bool]) -> bool:
    """Ask on the terminal; no answer in time, or no terminal any more, is a no."""
    if not sys.stdin.isatty():
        return False
    print_text(console, f"Keep it? Reverts in {answer_s:g} s without a yes. [y/N] ")
    clock = RealClock()
    ends_s = clock.now() + answer_s
    try:
        while not should_stop() and (left_s := ends_s - clock.now()) > 0:
            ready, _, _ = select.select([sys.stdin], [], [], min(left_s, ASK_STEP_S))
            if ready:
                return sys.stdin.readline().strip().lower() in ("y", "yes")
    except OSError:  # the terminal was closed
        return False
    return False
