"""Opens the device that a user names: `auto`, `emulated:BOARD` or `replay:TABLE.csv`."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from polythrottle.clock import Clock, VirtualClock
from polythrottle.errors import InvalidInputError, NoDeviceError, did_you_mean
from polythrottle.profiles import resolve_board
from polythrottle_agent.load.options import Load
from polythrottle_agent.ports import Device
from polythrottle_agent.workloads.opening import WorkloadOptions

AUTO, EMULATED, REPLAY = "auto", "emulated", "replay"
SCHEMES = (AUTO, EMULATED, REPLAY)

SYSROOT_VARIABLE = "POLYTHROTTLE_SYSROOT"
"""Names another root for `auto`: where an emulated sysfs is mounted."""


def sysroot() -> Path:
    """Where `auto` looks for /sys, /proc and /dev."""
    return Path(os.environ.get(SYSROOT_VARIABLE) or "/")


def open_device(
    text: str,
    workload: str | None,
    seed: int,
    clock: Clock | None = None,
    *,
    root: Path | None = None,
    meter: str | None = None,
    load: Load | None = None,
    options: WorkloadOptions | None = None,
) -> Device:
    """Open a device for a study.

    Args:
        text: `auto`, `auto:GPU` (its UUID or PCI address), `emulated:BOARD` or `replay:TABLE.csv`.
        workload: which of the device's workloads; None for its default or only one.
        seed: of the emulated measurement noise.
        clock: None for the real one on hardware, else for a virtual one, under which emulated time and
            replays take no time.
        root: where `auto` looks for /sys, /proc and /dev; None for `$POLYTHROTTLE_SYSROOT`, or /.
        meter: an external meter for `auto`: `file:PATH` or `command:PROGRAM ARGUMENTS`.
        options: how the workload is loaded, as a user says it.
        load: of `emulated`: at which rate queries arrive; None serves batches back to back.

    Raises:
        InvalidInputError: unknown kind of device, board, workload or meter, or a table that cannot be used.
        NoDeviceError: `auto` found nothing that can be controlled here.
    """
    scheme, colon, rest = text.strip().partition(":")
    scheme = scheme.lower()
    if scheme == AUTO:
        if colon and not rest:
            raise InvalidInputError(f"Device {text!r} is not complete; write auto, or auto:UUID of a GPU.")
        return _open_auto(root, workload, clock, meter, rest or None, options)
    if meter is not None:
        raise InvalidInputError(
            f"Device {text!r} has its own meter; leave --meter out, or use --device auto."
        )
    if scheme not in SCHEMES:
        raise InvalidInputError(_unknown_scheme(text, scheme))
    if not rest:
        example = "emulated:orin-nano-8gb" if scheme == EMULATED else "replay:TABLE.csv"
        raise InvalidInputError(f"Device {text!r} is not complete; write for example {example}.")
    if load is None and options is not None:
        load = _emulated_load(options)
    if scheme == REPLAY:
        if load is not None and load.arrivals is not None:
            raise InvalidInputError(
                f"Device {text!r} is a recorded table, whose latencies stand as they are; leave --rate out."
            )
        from polythrottle_agent.replay import open_replay

        return open_replay(Path(rest).expanduser(), workload, clock or VirtualClock())
    from polythrottle_agent.emulation import open_emulated

    return open_emulated(_emulated_board(rest), workload, clock or VirtualClock(), seed, load=load)


def _emulated_load(options: WorkloadOptions) -> Load | None:
    """The load of a workload that is part of the device; None where it is served back to back.

    Raises:
        InvalidInputError: an option that only means something to a service.
    """
    if options.watch or options.method or options.headers or options.body or options.success or options.data:
        raise InvalidInputError(
            "This device serves its own workload: --watch, --method, --header, --body, --success and --data "
            "are for services; leave them out, or use --device auto."
        )
    has_arrivals = options.rate_per_s is not None or options.arrivals.startswith("trace")
    return options.load() if has_arrivals else None


def _open_auto(
    root: Path | None,
    workload: str | None,
    clock: Clock | None,
    meter: str | None,
    gpu: str | None,
    options: WorkloadOptions | None,
) -> Device:
    if root is None:
        root = sysroot()
    findings = look_for_hardware(root)
    if all(finding.found is None for finding in findings):
        raise NoDeviceError(_no_device(findings))
    from polythrottle_agent.hardware import open_hardware

    return open_hardware(root, workload, clock, meter=meter, gpu=gpu, options=options)


def _unknown_scheme(text: str, scheme: str) -> str:
    if text.lower().endswith(".csv"):
        return f"Device {text!r} looks like a table; write replay:{text}."
    try:
        board = resolve_board(text)
    except InvalidInputError:
        return (
            f"Unknown device {text!r}; {did_you_mean(scheme, SCHEMES)} "
            "Write auto, emulated:BOARD or replay:TABLE.csv."
        )
    return f"Device {text!r} is the name of a board; write emulated:{text} to emulate the {board}."


def _emulated_board(text: str) -> str:
    """The emulator's name of a board that the user may call by any of its names.

    Raises:
        InvalidInputError: no such board, or one that has a profile but is not emulated.
    """
    from polythrottle_agent.emulation.boards import BOARDS

    if text in BOARDS:
        return text
    board = resolve_board(text)
    emulated = {resolve_board(name): name for name in BOARDS}
    if board not in emulated:
        raise InvalidInputError(f"Board {board} is not emulated yet; emulated are {', '.join(BOARDS)}.")
    return emulated[board]


@dataclass(frozen=True)
class Finding:
    """One kind of hardware: what was looked for, and what was found (None: nothing)."""

    looked_for: str
    found: str | None


def look_for_hardware(root: Path = Path("/")) -> tuple[Finding, ...]:
    """Looks for a Jetson, an NVIDIA GPU and CPU clocks. Reads only."""
    return (_jetson(root), _nvidia_gpu(root), _cpu_clocks(root))


def _jetson(root: Path) -> Finding:
    looked_for = "a Jetson (GPU under /sys/class/devfreq, /proc/device-tree/model)"
    from polythrottle_agent.controls.jetson_gpu import find_gpu_nodes
    from polythrottle_agent.sysfs import Sysfs

    model = _text(root / "proc/device-tree/model")
    nodes = [node.name for node in find_gpu_nodes(Sysfs(root))]
    if not nodes and not (model and "jetson" in model.lower()):
        return Finding(looked_for, None)
    gpu = f"GPU node {', '.join(nodes)}" if nodes else "no GPU node"
    return Finding(looked_for, f"{model or 'a board without a model name'} with {gpu}")


def _nvidia_gpu(root: Path) -> Finding:
    looked_for = "an NVIDIA GPU (/proc/driver/nvidia/gpus)"
    gpus = _entries(root / "proc/driver/nvidia/gpus")
    if gpus:
        binding = "" if importlib.util.find_spec("pynvml") else ", without the nvidia-ml-py package"
        return Finding(looked_for, f"NVIDIA GPU {', '.join(gpu.name for gpu in gpus)}{binding}")
    if (root / "dev/nvidiactl").exists():
        return Finding(looked_for, "an NVIDIA driver (/dev/nvidiactl) that lists no GPU")
    return Finding(looked_for, None)


def _cpu_clocks(root: Path) -> Finding:
    looked_for = "CPU clocks (/sys/devices/system/cpu/cpufreq)"
    policies = [e for e in _entries(root / "sys/devices/system/cpu/cpufreq") if e.name.startswith("policy")]
    if not policies:
        return Finding(looked_for, None)
    driver = _text(policies[0] / "scaling_driver") or "an unnamed driver"
    return Finding(looked_for, f"{len(policies)} CPU clock domains under {driver}")


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:  # not there or not ours to list: the same as nothing found
        return []


def _text(path: Path) -> str | None:
    """Device-tree strings end in a NUL."""
    try:
        return path.read_bytes().decode("utf-8", "replace").strip("\0 \n")
    except OSError:  # not there: the caller reports what was not found
        return None


def _no_device(findings: tuple[Finding, ...]) -> str:
    instead = (
        "Run --device emulated:orin-nano-8gb for an emulated board or --device replay:TABLE.csv "
        "for a recorded table."
    )
    looked_for = ", ".join(finding.looked_for for finding in findings)
    return f"No hardware here can be controlled. Looked for {looked_for}: not there. {instead}"
