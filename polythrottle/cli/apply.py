"""`polythrottle apply`: put a configuration on a device, and take it off again unless it proves itself."""

from __future__ import annotations

import select
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
import yaml
from rich.console import Console

from polythrottle.cli.durations import seconds
from polythrottle.cli.interrupts import Interrupts
from polythrottle.cli.studies import find_study
from polythrottle.configuration import Configuration, Knob, Level, format_level
from polythrottle.errors import ExitCode, InvalidInputError, NoDeviceError, did_you_mean
from polythrottle.objective import LatencySlo
from polythrottle.reporting.console import make_console, print_text

if TYPE_CHECKING:
    from polythrottle_agent.applying import Bare
    from polythrottle_agent.ports import Device

BATCH = "batch_size"


def apply(
    what: str = typer.Argument(
        metavar="STUDY|FILE",
        help="A study (id, how it begins, or 'last'), or a file: knob: level, or what tune --json printed.",
    ),
    for_: str | None = typer.Option(None, "--for", help="Hold it that long, such as 10m, then put it back."),
    keep: bool = typer.Option(False, "--keep", help="Keep it until polythrottle restore, or a reboot."),
    device: str | None = typer.Option(None, help="Default: the study's kind of device, else auto."),
    workload: str | None = typer.Option(None, help="Default: the study's."),
    slo: str | None = typer.Option(None, "--latency-slo", help="Default: the study's."),
    yes: bool = typer.Option(False, "--yes", help="Confirm it yourself, whatever is measured."),
    confirm_within: str = typer.Option("60s", help="How long to wait for your answer, where one is needed."),
    seed: int = typer.Option(0, min=0, help="Of emulated noise."),
    state_dir: Path | None = typer.Option(None, help="Where studies are kept."),
) -> None:
    """Apply a configuration. It reverts by itself unless the SLO is measured as met, or you confirm it."""
    if (for_ is None) != keep:
        raise InvalidInputError("Say either --for TIME, such as --for 10m, or --keep.")
    for_s = None if for_ is None else seconds("--for", for_)
    answer_s = seconds("--confirm-within", confirm_within)
    wanted, named_device, named_workload, named_slo = _wanted(what, state_dir)
    limit = LatencySlo.parse(slo) if slo is not None else named_slo
    if limit is not None and limit.limit_s is None:
        raise InvalidInputError(
            "--latency-slo must be a time here, such as 50ms: max clocks are not measured."
        )
    console = make_console()
    opened = _open(device or named_device, workload or named_workload, seed, console)
    configuration = _matched(wanted, opened, console)
    from polythrottle_agent.applying import Verdict, apply_or_revert

    def confirm(sentence: str) -> bool:
        print_text(console, sentence)
        return yes or _ask(console, answer_s)

    print_text(console, ("applying  ", "bold"), str(configuration), indent=10)
    with Interrupts() as interrupts:
        done = apply_or_revert(opened, configuration, limit, confirm, for_s, lambda: interrupts.after_trial)
    print_text(console, (f"{done.verdict.value:<10}", "bold"), done.reason, indent=10)
    if done.verdict is Verdict.KEPT:
        until = "" if for_ is None else f"Put back by itself in {for_}. "
        print_text(console, " " * 10, f"{until}polythrottle restore or a reboot puts it back.", indent=10)
    for problem in done.not_restored:
        print_text(make_console(sys.stderr), ("error: ", "bold red"), problem, indent=7)
    if done.verdict is Verdict.REVERTED or done.not_restored:
        raise typer.Exit(int(ExitCode.ERROR))


def _wanted(
    what: str, state_dir: Path | None
) -> tuple[Mapping[str, Level], str, str | None, LatencySlo | None]:
    """The settings, and what the study says about device, workload and SLO."""
    path = Path(what)
    if path.is_file():
        return _from_file(path), "auto", None, None
    if path.suffix in (".json", ".yaml", ".yml"):
        raise InvalidInputError(f"There is no file {what}.")
    study = find_study(what, state_dir)
    result = study.result
    if result is None or result.chosen is None:
        raise InvalidInputError(
            f"Study {study.id} has chosen no configuration; see polythrottle studies show."
        )
    settings = {**dict(study.spec.fixed), **dict(result.chosen.configuration)}
    if not settings:
        raise InvalidInputError(
            f"Study {study.id} says to keep the device as it is: there is nothing to apply."
        )
    emulated = study.spec.device.id.startswith("emulated:")
    return settings, study.spec.device.id if emulated else "auto", study.spec.workload, result.slo


def _from_file(path: Path) -> Mapping[str, Level]:
    """
    Raises:
        InvalidInputError: not a mapping from knobs to levels.
    """
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidInputError(f"{path} cannot be read as YAML or JSON ({error}).") from error
    if isinstance(content, dict) and str(content.get("schema", "")).startswith("polythrottle-result/"):
        content = (content.get("chosen") or {}).get("configuration")
    if not isinstance(content, dict) or not content:
        raise InvalidInputError(
            f"{path} must map knobs to levels, as in `gpu_freq_mhz: 612`, or be what tune --json printed."
        )
    for knob, level in content.items():
        if isinstance(level, bool) or not isinstance(level, (int, float, str)):
            raise InvalidInputError(f"{path}: {knob} must be a number or a name such as unlocked.")
    return {str(k): v if isinstance(v, str) else float(v) for k, v in content.items()}


def _open(device: str, workload: str | None, seed: int, console: Console) -> Device | Bare:
    """The whole device; where it has no workload or meter, only what can be set."""
    from polythrottle_agent.devices import open_device

    try:
        return open_device(device, workload, seed)
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
    from polythrottle.clock import RealClock
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
    return Bare(hands.controls, clock, hands.safekeeping) if hands.controls else None


def _matched(wanted: Mapping[str, Level], device: Device | Bare, console: Console) -> Configuration:
    """The settings as levels of this device.

    Raises:
        InvalidInputError: a knob or level that the device does not have.
    """
    settings: dict[str, Level] = {}
    for name, level in wanted.items():
        control = device.controls.get(name)
        if control is not None:
            settings[name] = Knob(name, tuple(control.levels)).match(format_level(level))
        elif name == BATCH:
            print_text(
                console,
                ("note      ", "dim"),
                f"batch size {format_level(level)} is set in what serves.",
                indent=10,
            )
        else:
            raise InvalidInputError(f"The device has no knob {name!r}; {did_you_mean(name, device.controls)}")
    if not settings:
        raise InvalidInputError("Nothing in there can be set on this device.")
    return Configuration.of(settings)


def _ask(console: Console, answer_s: float) -> bool:
    """Ask on the terminal; no answer in time, or no terminal, is a no."""
    if not sys.stdin.isatty():
        return False
    print_text(console, f"Keep it? Reverts in {answer_s:g} s without a yes. [y/N] ")
    ready, _, _ = select.select([sys.stdin], [], [], answer_s)
    return bool(ready) and sys.stdin.readline().strip().lower() in ("y", "yes")
