"""Lays out the systemd units, the group and the directories, and takes them away again."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from polythrottle.errors import PolythrottleError, StateError
from polythrottle_agent.audit import FILE_NAME
from polythrottle_agent.discovery import Discovered, discover
from polythrottle_agent.limits import OperatorLimits
from polythrottle_agent.nvidia_gpu import SeveralGpus
from polythrottle_agent.ports import ControlError
from polythrottle_agent.privileged.journal import DEFAULT_DIRECTORY

HELPER_UNIT = "polythrottle-helper.service"
AGENT_UNIT = "polythrottle-agent.service"
PROGRAMS = ("polythrottle-helper", "polythrottle-agent")

LAYOUT = {
    HELPER_UNIT: f"etc/systemd/system/{HELPER_UNIT}",
    AGENT_UNIT: f"etc/systemd/system/{AGENT_UNIT}",
    "polythrottle.sysusers.conf": "etc/sysusers.d/polythrottle.conf",
    "polythrottle.tmpfiles.conf": "etc/tmpfiles.d/polythrottle.conf",
}
"""Where each file of `service_files` goes, below the root."""

_GPU_NAME = re.compile(r"[A-Za-z0-9:._-]+")
"""A UUID or a PCI address, and nothing that means something else in a unit."""

Discover = Callable[..., Discovered]

HOMES = ("/home", "/root", "/run/user")


class InstallError(PolythrottleError):
    """The service cannot be installed or removed like this."""


@dataclass(frozen=True)
class Step:
    """One command that makes systemd take the files over, and why."""

    command: tuple[str, ...]
    purpose: str


def programs_directory() -> Path:
    """Where this installation's programs are."""
    return Path(sysconfig.get_path("scripts"))


def audit_log() -> Path:
    """Where the helper's audit log is; it outlives the service."""
    return DEFAULT_DIRECTORY / FILE_NAME


def gpu_to_serve(wanted: str | None, discovering: Discover = discover) -> str | None:
    """The UUID of the GPU that is named. None where nobody has to name one. Only reads.

    Raises:
        InstallError: there are several and none is named, or none is called that.
    """
    try:
        found = discovering(Path("/"), gpu=wanted, limits=OperatorLimits())
    except SeveralGpus as error:
        how = "sudo polythrottle install-service --gpu {}"
        raise InstallError(f"The helper serves one GPU, and {error.named_by(how)}.") from error
    except ControlError as error:
        if wanted is None:
            return None  # whatever is wrong with the hardware, the helper and doctor say it better
        raise InstallError(f"--gpu {wanted} cannot be served: {error}") from error
    if wanted is not None and found.gpu is None:
        raise InstallError(f"--gpu {wanted} cannot be served: there is no NVIDIA GPU that can be used here.")
    return found.gpu if wanted is not None else None


def lay_out(root: Path, programs: Path, gpu: str | None = None) -> tuple[Path, ...]:
    """Write the units and their configuration below `root`. Below another root than /, the programs need not
    be there yet.

    Args:
        gpu: the NVIDIA GPU that the helper serves, by UUID or PCI address; None for the only one.

    Raises:
        InstallError: the programs are where a service cannot run them from, `gpu` is no name of one, or a
            file cannot be written.
    """
    if root == Path("/"):
        _check_programs(programs)
    if gpu is not None and _GPU_NAME.fullmatch(gpu) is None:
        raise InstallError(f"--gpu {gpu!r} is neither a UUID nor a PCI address.")
    written = []
    for name, place in LAYOUT.items():
        text = files("polythrottle_agent.service_files").joinpath(name).read_text(encoding="utf-8")
        text = text.replace("@BIN@", str(programs)).replace("@GPU@", "" if gpu is None else f" --gpu {gpu}")
        if str(programs).startswith(HOMES):
            # The service must see the programs, and still not write there.
            text = text.replace("ProtectHome=yes", "ProtectHome=read-only")
        path = root / place
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise InstallError(
                f"{path} cannot be written ({error.strerror}); run sudo polythrottle install-service."
            ) from error
        written.append(path)
    return tuple(written)


def remove(root: Path) -> tuple[Path, ...]:
    """Remove what `lay_out` wrote. Journal and audit log stay."""
    removed = []
    for place in LAYOUT.values():
        path = root / place
        try:
            path.unlink()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise InstallError(
                f"{path} cannot be removed ({error.strerror}); run sudo polythrottle uninstall."
            ) from error
        removed.append(path)
    return tuple(removed)


def _check_programs(programs: Path) -> None:
    for name in PROGRAMS:
        program = programs / name
        if not os.access(program, os.X_OK):
            raise InstallError(f"There is no program {program}; install polythrottle there first.")
    blocked = next(_closed_to_others(programs), None)
    if blocked is not None:
        raise InstallError(
            f"A service's user may not enter {blocked}, so it could not run {programs}/{PROGRAMS[1]}; "
            "install polythrottle where every user can read it, as in /opt/polythrottle."
        )


def _closed_to_others(path: Path) -> Iterator[Path]:
    for directory in (path, *path.parents):
        if not directory.stat().st_mode & stat.S_IXOTH:
            yield directory


def start_steps(root: Path, agent: bool) -> tuple[Step, ...]:
    """What makes systemd use the files, in order."""
    place = {name: str(root / where) for name, where in LAYOUT.items()}
    units = (HELPER_UNIT, AGENT_UNIT) if agent else (HELPER_UNIT,)
    return (
        Step(("systemd-sysusers", place["polythrottle.sysusers.conf"]), "make the group polythrottle"),
        Step(("systemd-tmpfiles", "--create", place["polythrottle.tmpfiles.conf"]), "make the directories"),
        Step(("systemctl", "daemon-reload"), "read the units"),
        Step(("systemctl", "enable", *units), "start them at boot"),
        Step(("systemctl", "restart", *units), "start them now"),
    )


def stop_steps() -> tuple[Step, ...]:
    """Stopping the helper puts the device back."""
    return (
        Step(("systemctl", "disable", AGENT_UNIT, HELPER_UNIT), "no longer start at boot"),
        Step(("systemctl", "stop", AGENT_UNIT, HELPER_UNIT), "stop, and put the device back"),
    )


def run(steps: tuple[Step, ...]) -> None:
    """Run commands, each to its end.

    Raises:
        InstallError: one is missing or fails; its own words are in the message.
    """
    for step in steps:
        if shutil.which(step.command[0]) is None:
            raise InstallError(
                f"{step.command[0]} is not there, so {' '.join(step.command)} could not {step.purpose}; "
                "this takes systemd."
            )
        done = subprocess.run(step.command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            words = " ".join((done.stderr or done.stdout).split())
            raise InstallError(f"{' '.join(step.command)} could not {step.purpose}: {words}.")


def require_root() -> None:
    """
    Raises:
        StateError: this process is not root.
    """
    if os.geteuid() != 0:
        raise StateError("Installing a service takes root; run the command with sudo.")
