"""`.emulator/` in the mounted tree: how other processes serve on the board, and how a test disturbs it.

| file | |
|---|---|
| `batch` | reading it starts one batch and gives its latency, as JSON; the reader lets that time pass |
| `window` | writing anything draws the conditions of a new window |
| `batch_size` | the workload's batch size |
| `state` | what holds, as JSON: energy counter, clocks under load, temperature, faults |
| `control` | one command a line; see `COMMANDS` |

Reading `batch` is EBUSY while an HTTP service runs on the board.
"""

from __future__ import annotations

import errno
import json
import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from polythrottle.errors import InvalidInputError
from polythrottle_agent.emulation.faults import Fault
from polythrottle_agent.emulation.kernels import kstrtoul, refused
from polythrottle_agent.emulation.sysfs import Entry, Node

if TYPE_CHECKING:
    from polythrottle_agent.emulation.machine import Machine

CONTROL_DIRECTORY = "/.emulator"

COMMANDS = """\
inject NODE FAULT [on=read|write|both] [seconds=S] [times=N] [skip=N] [text=TEXT]
clear [NODE]
write NODE VALUE [after=S] [every=S]
mode ID_OR_NAME [after=S]
jetson-clocks [after=S]
heat CELSIUS [ambient=CELSIUS]
emc rejects|drifts on|off
reboot"""


def control_entries(machine: Machine) -> dict[str, Entry]:
    """The files of `.emulator/` over a machine."""

    def begin_batch() -> str:
        if machine.service_url is not None:
            raise refused(errno.EBUSY)
        latency_s = machine.begin_batch()
        board = machine.board
        answer = {
            "latency_s": latency_s,
            "batch_size": board.nodes.batch,
            "energy_scatter": board.energy_scatter,
        }
        return json.dumps(answer)

    def store_batch_size(data: bytes) -> None:
        try:
            machine.set_batch(kstrtoul(data))
        except InvalidInputError:
            raise refused(errno.EINVAL) from None

    def store_control(data: bytes) -> None:
        try:
            for line in data.decode("utf-8").splitlines():
                if line.strip():
                    run_command(machine, line)
        except (InvalidInputError, UnicodeDecodeError):
            raise refused(errno.EINVAL) from None

    files: dict[str, Entry] = {
        "batch": Node(0o444, begin_batch),
        "window": Node(0o222, None, lambda _: machine.begin_window()),
        "batch_size": Node(0o666, lambda: str(machine.board.nodes.batch), store_batch_size),
        "state": Node(0o444, lambda: json.dumps(state_of(machine))),
        "control": Node(0o644, lambda: COMMANDS, store_control),
    }
    return {f"{CONTROL_DIRECTORY}/{name}": entry for name, entry in files.items()}


def state_of(machine: Machine) -> dict[str, object]:
    """What holds on the board, for tests and for people."""
    board = machine.board
    return {
        "board": machine.layout.board,
        "kernel": machine.layout.kernel.release,
        "workload": board.behaviour.calibration.workload,
        "mode": machine.mode.name,
        "batch_size": board.nodes.batch,
        "energy_scatter": board.energy_scatter,
        "energy_j": machine.energy_j(),
        "busy": board.looks_busy,
        "service_url": machine.service_url,
        "gpu_under_load_mhz": board.gpu_under_load_mhz,
        "mem_under_load_mhz": board.mem_under_load_mhz,
        "cpu_under_load_mhz": board.cpu_under_load_mhz,
        "temperature_c": machine.around.temperature_c,
        "cooling_state": machine.around.cooling_state,
        "faults": list(machine.faults.paths()),
    }


def run_command(machine: Machine, line: str) -> None:
    """Run one command of `COMMANDS`.

    Raises:
        InvalidInputError: it cannot be understood, or names what is not there.
    """
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise InvalidInputError(f"Command {line!r}: {error}.") from None
    name, arguments = words[0], [word for word in words[1:] if "=" not in word]
    options = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    commands: Mapping[str, Callable[[list[str], dict[str, str]], None]] = {
        "inject": lambda args, opts: machine.inject(args[0], _fault(args[1], opts)),
        "clear": lambda args, _: machine.clear(args[0] if args else None),
        "write": lambda args, opts: machine.write_as_other(
            args[0], args[1], after_s=_seconds(opts, "after") or 0.0, every_s=_seconds(opts, "every")
        ),
        "mode": lambda args, opts: machine.set_mode(args[0], after_s=_seconds(opts, "after") or 0.0),
        "jetson-clocks": lambda _, opts: machine.jetson_clocks(after_s=_seconds(opts, "after") or 0.0),
        "heat": lambda args, opts: machine.heat(_number(args[0]), ambient_c=_seconds(opts, "ambient")),
        "emc": lambda args, _: machine.disturb_emc(args[0], args[1] == "on"),
        "reboot": lambda *_: machine.reboot(),
    }
    if name not in commands:
        raise InvalidInputError(f"Unknown command {name!r}; known: {', '.join(commands)}.")
    try:
        commands[name](arguments, options)
    except (IndexError, ValueError):
        raise InvalidInputError(
            f"Command {line!r} lacks something or holds no number; see control."
        ) from None


def _seconds(options: Mapping[str, str], name: str) -> float | None:
    return _number(options[name]) if name in options else None


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _fault(kind: str, options: Mapping[str, str]) -> Fault:
    fault = Fault.named(kind)
    return replace(
        fault,
        on=options.get("on", fault.on),
        text=options.get("text", fault.text),
        seconds=_seconds(options, "seconds"),
        times=int(options["times"]) if "times" in options else None,
        skip=int(options.get("skip", 0)),
    )
