"""What works on this machine, what does not, and the command that mends it. Reads only."""

from __future__ import annotations

import grp
import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from polythrottle.clock import Clock
from polythrottle.configuration import UNITS, Level, format_level
from polythrottle.errors import PolythrottleError
from polythrottle_agent.context import other_controllers
from polythrottle_agent.discovery import Discovered, discover
from polythrottle_agent.nvidia_gpu import SeveralGpus
from polythrottle_agent.ports import Control, ControlError
from polythrottle_agent.privileged.client import HelperClient, HelperControl, helper_device, socket_path
from polythrottle_agent.privileged.journal import boot_id, kept_entries
from polythrottle_agent.privileged.patient import PatientControl

GROUP = "polythrottle"
PATIENCE_S = 3.0


class State(str, Enum):
    """How a check came out."""

    OK = "ok"
    NOTE = "note"
    """Worth knowing; nothing has to be done."""
    WARNING = "warning"
    """It works, and something may spoil it."""
    MISSING = "missing"
    """It does not work."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: what was found, and the command or act that mends it."""

    subject: str
    state: State
    found: str
    fix: str | None = None


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was looked at. `device` is None where discovery itself failed."""

    device: str | None
    checks: tuple[Check, ...]

    @property
    def is_usable(self) -> bool:
        return all(check.state is not State.MISSING for check in self.checks)


def diagnose(root: Path, state_dir: Path, clock: Clock, gpu: str | None = None) -> Diagnosis:
    """Look at the machine below `root`. Never raises for what it finds broken: that is its answer."""
    try:
        found = discover(root, clock=clock, gpu=gpu, state_dir=state_dir)
    except SeveralGpus as error:
        return Diagnosis(None, (Check("device", State.MISSING, str(error.named_by("--gpu {}"))),))
    except (ControlError, PolythrottleError) as error:
        return Diagnosis(None, (Check("device", State.MISSING, str(error)),))
    helper = _helper_checks(found)
    checks = (
        *_device_checks(found),
        *helper.checks,
        *_control_checks(found, helper.controls),
        *_meter_checks(found),
        *_journal_checks(root, state_dir),
        *_surroundings(found),
    )
    return Diagnosis(f"{found.identity.label} ({found.identity.id})", checks)


def _device_checks(found: Discovered) -> Iterator[Check]:
    name = f"{found.identity.label} ({found.identity.id})"
    if found.controls or found.gpu is not None or found.profile is not None:
        yield Check("device", State.OK, name)
    else:
        yield Check(
            "device",
            State.MISSING,
            f"{name}: nothing whose clocks can be set",
            "polythrottle tune --device emulated:orin-nano-8gb shows what it would do",
        )
    if found.profile is not None:
        yield Check("profile", State.OK, found.profile.display_name)
    mode = found.caps.mode
    if mode is not None:
        yield Check("power mode", State.OK, f"{mode.name} (ID {mode.id}); it caps what is tried")
    if found.caps.limits.source is not None:
        yield Check("operator's limits", State.OK, found.caps.limits.source)


@dataclass(frozen=True)
class _Helper:
    checks: tuple[Check, ...]
    controls: dict[str, HelperControl]


def _helper_checks(found: Discovered) -> _Helper:
    """Whether the helper answers this user, and what it holds."""
    path = socket_path()
    if not path.exists():
        fix = "sudo polythrottle install-service"
        if found.is_writable and found.controls:
            text = (
                "not installed; this user may write by itself, and a killed run is put back by the next one"
            )
            return _Helper((Check("helper", State.NOTE, text, fix),), {})
        return _Helper((Check("helper", State.MISSING, f"nobody listens on {path}", fix),), {})
    try:
        with HelperClient(path, answer_s=10) as client:
            identity, controls, _ = helper_device(client)
            status = client.request("status")
            version, protocol = client.helper_version, client.protocol
    except PolythrottleError as error:
        return _Helper((Check("helper", State.MISSING, str(error), _group_fix()),), {})
    checks = [Check("helper", State.OK, f"polythrottle-helper {version}, protocol {protocol}")]
    if identity.id != found.identity.id:
        checks.append(Check("helper", State.WARNING, f"it writes another device: {identity.label}"))
    for word in ("lease", "kept"):
        if status[word] is not None:
            holder = status[word]
            text = f"{word}: {holder['owner']} (process {holder['pid']})"
            checks.append(
                Check("helper", State.NOTE, text, "polythrottle restore" if word == "kept" else None)
            )
    for problem in status["not_restored"]:
        checks.append(Check("helper", State.WARNING, problem, "polythrottle restore"))
    for text in status["drift"]:
        checks.append(Check("drift", State.WARNING, text))
    return _Helper(tuple(checks), controls)


def _group_fix() -> str | None:
    try:
        group = grp.getgrnam(GROUP)
    except KeyError:
        return "sudo polythrottle install-service"
    if os.geteuid() != 0 and group.gr_gid not in os.getgroups():
        return f"sudo usermod -aG {GROUP} $USER, then log in again"
    return "systemctl status polythrottle-helper"


def _control_checks(found: Discovered, by_helper: dict[str, HelperControl]) -> Iterator[Check]:
    for name, control in found.controls.items():
        yield _control_check(name, control, found.is_writable or name in by_helper)
    for name in by_helper:
        if name not in found.controls:
            levels = _range(name, by_helper[name].levels)
            yield Check(name, State.OK, f"{levels}; through the helper only")
    for note in found.notes:
        if "cannot be" in note:
            yield Check("controls", State.NOTE, note)


def _control_check(name: str, control: Control, is_writable: bool) -> Check:
    patient = PatientControl(control, PATIENCE_S)
    try:
        levels = _range(name, patient.levels)
        now = format_level(patient.accepted())
    except ControlError as error:
        return Check(name, State.WARNING, f"it cannot be read: {error}")
    unit = f" {UNITS[name]}" if UNITS.get(name) else ""
    text = f"{levels}; now {now}{unit if now[0].isdigit() else ''}"
    if is_writable:
        return Check(name, State.OK, text)
    return Check(
        name, State.MISSING, f"{text}; this user may not write it", "sudo polythrottle install-service"
    )


def _range(name: str, levels: tuple[Level, ...]) -> str:
    numbers = [level for level in levels if not isinstance(level, str)]
    words = [level for level in levels if isinstance(level, str)]
    unit = f" {UNITS[name]}" if UNITS.get(name) else ""
    text = f"{len(levels)} levels"
    if numbers:
        text += f", {format_level(min(numbers))} to {format_level(max(numbers))}{unit}"
    return ", ".join([text, *words])


def _meter_checks(found: Discovered) -> Iterator[Check]:
    for meter in found.meters:
        yield Check("meter", State.OK, f"{meter.name}: energy of the {meter.scope.value}")
    if not found.meters:
        reasons = "; ".join(found.no_meter) or "nothing here measures energy"
        yield Check(
            "meter", State.MISSING, reasons, "polythrottle tune --meter file:PATH, or command:PROGRAM"
        )


def _journal_checks(root: Path, state_dir: Path) -> Iterator[Check]:
    """Of every device: originals of another one than this have to be put back too."""
    try:
        entries, problems = kept_entries(state_dir, boot_id(root))
    except PolythrottleError as error:
        entries, problems = (), (str(error),)
    for problem in problems:
        yield Check("journal", State.WARNING, problem)
    if not entries and not problems:
        yield Check("journal", State.OK, "nothing to put back")
    for entry in entries:
        text = (
            f"originals of {', '.join(entry.originals)} of {entry.device_id}, kept for {entry.owner} since "
            f"{entry.written_at}"
        )
        yield Check("journal", State.NOTE, text, "polythrottle restore, unless a run is under way")


def _surroundings(found: Discovered) -> Iterator[Check]:
    for other in other_controllers(found.sysfs):
        state = State.NOTE if other.harmless else State.WARNING
        yield Check("runs here", state, f"{other.name} (process {other.process})", f"it {other.advice}")
