"""Opens what a guard needs: the device, what is served on it, who looks, and whether something is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from polythrottle.clock import Clock, RealClock
from polythrottle.configuration import Level
from polythrottle.errors import InvalidInputError, NoDeviceError, StateError
from polythrottle.measurement import Unavailable
from polythrottle.study import DeviceIdentity
from polythrottle_agent.applying import Bare
from polythrottle_agent.devices import AUTO, EMULATED, open_device, sysroot
from polythrottle_agent.discovery import Discovered, discover
from polythrottle_agent.guard.falling_back import HelperSwitch, JournalSwitch, Switch
from polythrottle_agent.guard.health import HealthSource, NoHealth, WatchedHealth, hottest_c
from polythrottle_agent.guard.nvidia_health import nvidia_health
from polythrottle_agent.hardware import Hands, find_hands, find_workload, state_directory
from polythrottle_agent.identity import gpu_of
from polythrottle_agent.ports import Control, ControlError, Safekeeping, Workload
from polythrottle_agent.privileged.client import socket_path
from polythrottle_agent.privileged.files import Files
from polythrottle_agent.privileged.journal import Journal, boot_id
from polythrottle_agent.privileged.restoring import Restoring
from polythrottle_agent.workloads.opening import WorkloadOptions


@dataclass(frozen=True)
class Kept:
    """A configuration that was kept on the device before the guard came."""

    settings: Mapping[str, Level]
    switch: Callable[[], Switch]


@dataclass(frozen=True)
class Guarded:
    """A device to be guarded; it can be held (`holding.Holdable`). `kept`: what is in force on it already."""

    identity: DeviceIdentity
    controls: Mapping[str, Control]
    clock: Clock
    safekeeping: Safekeeping | None
    workload: Workload
    health: HealthSource
    kept: Kept | None = None
    bring_back: Callable[[], Switch] | None = None
    """Puts the device back where whoever holds it lost it; None where nobody else could."""


def open_guarded(
    device: str, watch: str | None, options: WorkloadOptions, seed: int = 0, root: Path | None = None
) -> Guarded:
    """Open a device for a guard. Only reads.

    Args:
        device: `auto`, `auto:GPU` or `emulated:BOARD`.
        watch: what is served, as `open_workload` takes it; None for an emulated board's own.
        options: how it is loaded, or that live traffic is watched.

    Raises:
        InvalidInputError: the device or the workload cannot be guarded.
        NoDeviceError: nothing here can be set, or not by this user.
    """
    scheme, _, rest = device.strip().partition(":")
    if scheme.lower() == EMULATED:
        opened = open_device(device, watch, seed, options=options)
        return Guarded(opened.identity, opened.controls, opened.clock, None, opened.workload, NoHealth())
    if scheme.lower() != AUTO:
        raise InvalidInputError(f"Device {device!r} serves nobody, so there is nothing to guard on it.")
    root, clock = root if root is not None else sysroot(), RealClock()
    try:
        found = discover(root, clock=clock, gpu=rest or None, state_dir=state_directory(root))
        hands = find_hands(found)
        if not hands.controls:
            raise NoDeviceError(
                f"Nothing on {found.identity.label} can be set, so there is nothing to guard."
            )
        serving = find_workload(root, watch, clock, found, options, hands.controls)
        kept = _kept(found, hands, root, clock)
        # What is kept is the device's; a batch size that somebody else's server has is not.
        more = serving.controls if kept is None else {}
        return Guarded(
            hands.identity,
            {**hands.controls, **more},
            clock,
            hands.safekeeping,
            serving.workload,
            _health(found, clock),
            kept,
            None if hands.client is None else lambda: HelperSwitch(socket_path()),
        )
    except ControlError as error:
        raise NoDeviceError(f"The hardware here cannot be used: {error}.") from error


def _health(found: Discovered, clock: Clock) -> HealthSource:
    if found.gpu is not None:
        return nvidia_health(found.gpu, clock)

    def temperature() -> float | Unavailable:
        return hottest_c(found.sysfs)

    return WatchedHealth(temperature, found.witness, clock)


def _kept(found: Discovered, hands: Hands, root: Path, clock: Clock) -> Kept | None:
    if hands.client is not None:
        kept = hands.client.request("status")["kept"]
        if kept is None:
            return None
        settings = {str(k): v if isinstance(v, str) else float(v) for k, v in kept["settings"].items()}
        return Kept(settings, lambda: HelperSwitch(socket_path()))
    directory, device_id = state_directory(root), found.identity.id
    try:
        entry = Journal(directory, boot_id(root), device_id).read()
    except StateError:
        return None  # whoever holds the device next says what is wrong with it
    if entry is None or entry.kept is None:
        return None
    restoring = Restoring(root, directory, discover, clock, Files())
    settings = {knob: found.controls[knob].accepted() for knob in entry.originals if knob in found.controls}
    again = _OpenAgain(root, clock, device_id)
    return Kept(settings, lambda: JournalSwitch(restoring, device_id, again))


@dataclass(frozen=True)
class _OpenAgain:
    """The device's hands anew, for whoever writes it after something kept was put back."""

    root: Path
    clock: Clock
    device_id: str

    def __call__(self) -> Bare:
        found = discover(
            self.root, clock=self.clock, gpu=gpu_of(self.device_id), state_dir=state_directory(self.root)
        )
        hands = find_hands(found)
        return Bare(hands.identity, hands.controls, self.clock, hands.safekeeping)
