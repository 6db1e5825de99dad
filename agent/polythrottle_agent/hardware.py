"""`auto` as a device: what discovery found, the hands that may write it, a meter and a workload."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from polythrottle.clock import Clock, RealClock
from polythrottle.configuration import SHORT_NAMES, UNITS, format_level
from polythrottle.errors import InvalidInputError, NoDeviceError
from polythrottle.measurement import Provenance, Scope
from polythrottle.study import DeviceIdentity
from polythrottle_agent.discovery import Discovered, discover
from polythrottle_agent.meters.external import open_external
from polythrottle_agent.ports import Control, ControlError, Device, Meter, Safekeeping
from polythrottle_agent.workloads.opening import Opened, WorkloadOptions, is_workload, open_workload

if TYPE_CHECKING:
    from polythrottle_agent.privileged.client import HelperClient

GPU_WAIT_S = 3.0
CPU_KNOBS = ("cpu_freq_mhz", "cpu_cores")
STATE_DIR_VARIABLE = "POLYTHROTTLE_STATE_DIR"

NOT_PROBED = (
    "Which memory rates can be locked was not tried in this boot: those that firmware or profile list are "
    "used, and a trial says so where one was rounded or rejected. The root helper tries them when it starts."
)


@dataclass(frozen=True)
class Hands:
    """Who writes: the controls to use, where their originals are kept safe, and what that device is."""

    identity: DeviceIdentity
    controls: Mapping[str, Control]
    safekeeping: Safekeeping | None
    notes: tuple[str, ...] = ()
    client: HelperClient | None = None


def open_hardware(
    root: Path,
    workload: str | None,
    clock: Clock | None,
    *,
    meter: str | None = None,
    gpu: str | None = None,
    options: WorkloadOptions | None = None,
) -> Device:
    """The device of the machine below `root`. Only reads.

    Args:
        workload: which workload, as `open_workload` takes it; None for the only one of an emulated board.
        meter: an external meter, as `open_external` takes it; None for the machine's own.
        gpu: UUID or PCI address of the NVIDIA GPU, where there are several.
        options: how the workload is loaded.

    Raises:
        NoDeviceError: nothing here can be controlled, or not by this user.
        InvalidInputError: the limits, the meter or the workload cannot be used.
    """
    clock = clock or RealClock()
    try:
        found = discover(root, clock=clock, gpu=gpu, state_dir=state_directory(root), wait_s=GPU_WAIT_S)
        with ExitStack() as opened:
            hands = find_hands(found)
            if hands.client is not None:
                opened.callback(hands.client.close)
            device = _device(found, hands, root, workload, clock, meter, options or WorkloadOptions())
            opened.pop_all()  # from here on the connection is the device's
            return device
    except ControlError as error:
        raise NoDeviceError(f"The hardware here cannot be used: {error}.") from error


def _device(
    found: Discovered,
    hands: Hands,
    root: Path,
    workload: str | None,
    clock: Clock,
    meter: str | None,
    options: WorkloadOptions,
) -> Device:
    if not hands.controls:
        raise NoDeviceError(_nothing_to_set(found))
    chosen = _meter(found, meter, clock, hands.client)
    covered = _covered(hands.controls, chosen)
    serving = find_workload(root, workload, clock, found, options, covered)
    controls = {**covered, **serving.controls}
    return Device(
        identity=hands.identity,
        controls=controls,
        meter=chosen,
        workload=serving.workload,
        clock=clock,
        stock_note=stock_note(controls, found),
        safekeeping=hands.safekeeping,
        witness=found.witness,
        notes=(*hands.notes, *_self_check(chosen, found), *serving.notes),
    )


def state_directory(root: Path) -> Path:
    """Where what must outlive a process is kept: originals, the audit log, memory rates that were probed."""
    from polythrottle_agent.privileged.journal import DEFAULT_DIRECTORY

    if root == Path("/"):
        return DEFAULT_DIRECTORY
    named = os.environ.get(STATE_DIR_VARIABLE)
    return (Path(named) if named else Path.home() / ".local/state/polythrottle") / "device"


def find_hands(found: Discovered) -> Hands:
    """The root helper where one listens, else this process itself, where it may write.

    Raises:
        NoDeviceError: neither may.
    """
    from polythrottle_agent.privileged.client import HelperClient, HelperError, socket_path

    problem = None
    if socket_path().exists():
        try:
            return _by_helper(found, HelperClient())
        except HelperError as error:
            problem = str(error)
    if not found.controls or found.is_writable:
        return _directly(found)
    raise NoDeviceError(
        f"Found {found.identity.label}, but user {os.getuid()} may not set its clocks. "
        + (problem or "Start the root helper with `sudo polythrottle install-service`, or run this as root.")
    )


def _by_helper(found: Discovered, client: HelperClient) -> Hands:
    """
    Raises:
        HelperError: it serves another device, such as another GPU of this machine.
    """
    from polythrottle_agent.privileged.client import HelperError, Leased, helper_device
    from polythrottle_agent.privileged.journal import Owner

    identity, controls, notes = helper_device(client)
    if identity.id != found.identity.id:
        client.close()
        raise HelperError(
            f"The helper writes to {identity.label} ({identity.id}), and here is {found.identity.label} "
            f"({found.identity.id}); start it for this device."
        )
    return Hands(identity, controls, Leased(client, Owner.this_process().name), notes, client)


def _directly(found: Discovered) -> Hands:
    from polythrottle_agent.audit import AuditLog
    from polythrottle_agent.marks import marks_of
    from polythrottle_agent.privileged.journal import Journal, Owner, boot_id
    from polythrottle_agent.privileged.on_disk import OnDisk
    from polythrottle_agent.privileged.patient import PatientControl

    directory = state_directory(found.sysfs.root)
    keeping = OnDisk(
        Journal(directory, boot_id(found.sysfs.root), found.identity.id),
        AuditLog(directory),
        Owner.this_process(),
        knobs=tuple(found.controls),
        power_mode=lambda: marks_of(found.sysfs).power_mode,
    )
    controls = {name: PatientControl(control) for name, control in found.controls.items()}
    notes = found.notes
    if found.memory is not None and not found.memory.is_probed:
        notes = (*notes, NOT_PROBED)
    return Hands(found.identity, controls, keeping, notes)


def _meter(found: Discovered, text: str | None, clock: Clock, client: HelperClient | None) -> Meter:
    if text is not None:
        return open_external(text, clock)
    if found.meters:
        return found.meters[0]
    if client is not None:
        from polythrottle_agent.privileged.energy import helper_meter

        meter = helper_meter(client, clock, found.identity.provenance)
        if meter is not None:
            return meter
    raise NoDeviceError(
        f"Found {found.identity.label}, but no meter of its energy: {'; '.join(found.no_meter)}. "
        "Name one with --meter file:PATH or --meter command:PROGRAM."
    )


def _self_check(meter: Meter, found: Discovered) -> tuple[str, ...]:
    """Counter against polled power, where there are both."""
    if found.gpu is None:
        return ()
    from polythrottle_agent.meters.nvidia import NvidiaCounterMeter

    if not isinstance(meter, NvidiaCounterMeter):
        return ()
    return (f"Self-check: {meter.self_check().note}.",)


def _covered(controls: Mapping[str, Control], meter: Meter) -> dict[str, Control]:
    """Knobs whose cost the meter sees: to a GPU's meter a faster CPU is free, and it would always win."""
    if meter.scope is not Scope.GPU:
        return dict(controls)
    return {name: control for name, control in controls.items() if name not in CPU_KNOBS}


def find_workload(
    root: Path,
    name: str | None,
    clock: Clock,
    found: Discovered,
    options: WorkloadOptions,
    controls: Mapping[str, Control],
) -> Opened:
    """What is served on this machine, and the controls that the workload brings.

    Raises:
        NoDeviceError: no workload is named.
        InvalidInputError: it is not one, or cannot be reached.
    """
    if name is not None and is_workload(name):
        opened = open_workload(name, options, clock, controls=controls, provenance=found.identity.provenance)
        return _with_the_service_s_batch(opened, root)
    if found.identity.provenance is Provenance.EMULATED:
        from polythrottle_agent.workloads.emulated_remote import RemoteBatchControl, RemoteEmulatedWorkload

        workload = RemoteEmulatedWorkload(root, clock)
        if name not in (None, workload.name):
            raise InvalidInputError(
                f"The emulated board serves {workload.name}, not {name!r}; leave --workload out."
            )
        if options.rate_per_s is not None or options.closed_loop:
            raise InvalidInputError(
                "The emulated board serves its batches back to back; for a load of your own run "
                "`polythrottle emulate serve` and name its --workload http:URL."
            )
        batch = RemoteBatchControl(root)
        return Opened(workload, {batch.knob: batch})
    problem = "and no workload is named" if name is None else f"and {name!r} is no workload"
    raise NoDeviceError(
        f"Found {found.identity.label}, {problem}; name what it serves, as in --workload http:URL --rate 20, "
        "triton:URL/MODEL, onnx:FILE or command:PROGRAM."
    )


def _with_the_service_s_batch(opened: Opened, root: Path) -> Opened:
    """The batch size of `polythrottle emulate serve`, where that runs on the emulated board below `root`."""
    from polythrottle_agent.workloads.emulated_remote import RemoteBatchControl, RemoteBoard

    if not RemoteBoard.is_at(root) or RemoteBoard(root).service_url() is None:
        return opened
    batch = RemoteBatchControl(root)
    if batch.knob in opened.controls:
        return opened
    return replace(opened, controls={**opened.controls, batch.knob: batch})


def stock_note(controls: Mapping[str, Control], found: Discovered) -> str:
    """What the device is like as found."""
    parts = []
    for name, control in controls.items():
        try:
            level = control.accepted()
        except ControlError:
            continue  # it could not be read just now; the note says less
        unit = "" if isinstance(level, str) else UNITS.get(name, "")
        parts.append(f"{SHORT_NAMES.get(name, name)} {format_level(level)} {unit}".rstrip())
    mode = found.caps.mode
    prefix = "as found" if mode is None else f"as found in power mode {mode.name}"
    return f"{prefix}: {', '.join(parts)}" if parts else prefix


def _nothing_to_set(found: Discovered) -> str:
    notes: Sequence[str] = (*found.notes, *found.no_meter)
    reasons = f" {' '.join(notes)}" if notes else ""
    return f"Nothing on {found.identity.label} can be set.{reasons}"
