"""Holding a device: one run at a time, originals saved before the first write and put back at the end."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType

from polythrottle.configuration import Level, format_level
from polythrottle.errors import DeviceBusyError, InvalidInputError, StateError, did_you_mean
from polythrottle_agent.ports import Control, ControlError, Device

log = logging.getLogger(__name__)

RANGES = (("gpu_min_freq_mhz", "gpu_freq_mhz"),)
"""Pairs of knobs that are the two ends of one range: a kernel may refuse a minimum above the maximum."""

RESTORE_PASSES = 2
"""The second pass reaches what was refused while another control still stood in its way."""


@dataclass(frozen=True)
class NotRestored:
    """A control whose original could not be put back, and why."""

    knob: str
    original: Mapping[str, str]
    reason: str

    def __str__(self) -> str:
        state = ", ".join(f"{name} = {value}" for name, value in self.original.items())
        return f"{self.knob} was not restored ({state}): {self.reason}"


class HeldDevice:
    """A device whose settings are ours until the `with` block ends.

    Every control's original is saved on entry, before anything can be written. On exit, whatever happened,
    each is restored by itself: one that fails does not keep the others from their originals. What could
    not be restored is logged as an error and stays in `not_restored`.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.not_restored: tuple[NotRestored, ...] = ()
        self._originals: dict[str, Mapping[str, str]] | None = None

    def __enter__(self) -> HeldDevice:
        """
        Raises:
            ControlError: an original cannot be read; nothing was written then.
        """
        self._originals = {name: dict(control.save()) for name, control in self.device.controls.items()}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for problem in self.restore():
            log.error("%s", problem)

    @property
    def originals(self) -> Mapping[str, Mapping[str, str]]:
        """What was saved, by knob.

        Raises:
            RuntimeError: used outside its `with` block, so nothing was saved.
        """
        if self._originals is None:
            raise RuntimeError("HeldDevice must be entered before it is used")
        return self._originals

    def apply(self, settings: Mapping[str, Level]) -> None:
        """Ask for these levels, leaving other knobs alone.

        Raises:
            InvalidInputError: a knob that the device does not have, or a level it does not take.
            ControlError: the device refused one; some may have been set.
        """
        controls = {name: self.device.controls[name] for name in self.originals}
        for name in settings:
            if name not in controls:
                raise InvalidInputError(f"The device has no knob {name!r}; {did_you_mean(name, controls)}")
        for name in self._write_order(settings):
            try:
                controls[name].apply(settings[name])
            except ControlError as refusal:
                raise ControlError(f"{name} = {format_level(settings[name])}: {refusal}") from refusal

    def restore(self) -> tuple[NotRestored, ...]:
        """Put every original back; may be called any number of times. Returns what could not be."""
        left = dict(self.originals)
        problems: dict[str, NotRestored] = {}
        for _ in range(RESTORE_PASSES):
            for name, original in list(left.items()):
                reason = _restored(self.device.controls[name], original)
                if reason is None:
                    del left[name]
                    problems.pop(name, None)
                else:
                    problems[name] = NotRestored(name, original, reason)
        self.not_restored = tuple(problems.values())
        return self.not_restored

    def _write_order(self, settings: Mapping[str, Level]) -> list[str]:
        """Raising a range: its maximum first. Lowering it: its minimum first. Both ends stay ordered."""
        order = list(settings)
        for low, high in RANGES:
            if low not in settings or high not in settings:
                continue
            now, wanted = self.device.controls[high].accepted(), settings[high]
            raising = isinstance(wanted, str) or (not isinstance(now, str) and wanted >= now)
            first, second = (high, low) if raising else (low, high)
            order.remove(second)
            order.insert(order.index(first) + 1, second)
        return order


def _restored(control: Control, original: Mapping[str, str]) -> str | None:
    """Restore one control and read it back. None, or the reason why it is not as it was."""
    try:
        control.restore(original)
        now = dict(control.save())
    except Exception as error:  # whatever a driver raises must not keep the next control from its original
        return f"{type(error).__name__}: {error}"
    if now != dict(original):
        return "it reads back " + ", ".join(f"{name} = {value}" for name, value in now.items())
    return None


class DeviceLock:
    """Keeps a second run off a device. The kernel lets go when the process ends, however it ends.

    A context manager over an advisory lock on `STATE_DIR/locks/…`, one file a device id.
    """

    def __init__(self, state_dir: Path, device_id: str, command: str | None = None) -> None:
        self._device_id = device_id
        self._command = command if command is not None else " ".join(sys.argv)
        readable = re.sub(r"[^A-Za-z0-9._-]+", "-", device_id)[:60]
        unique = hashlib.sha256(device_id.encode()).hexdigest()[:12]
        self.path = state_dir / "locks" / f"{readable}-{unique}.lock"
        self._descriptor: int | None = None

    def __enter__(self) -> DeviceLock:
        """
        Raises:
            DeviceBusyError: another run holds the device; the message says who, what and since when.
            StateError: the lock file cannot be written.
        """
        with self._as_state_error():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            with self._as_state_error():
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise DeviceBusyError(self._busy(descriptor)) from None
                content = json.dumps({"pid": os.getpid(), "user": _user(), "command": self._command})
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, content.encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # The file stays: unlinking it would let a waiting process lock a name that is gone.
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @contextlib.contextmanager
    def _as_state_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StateError(
                f"The lock file {self.path} cannot be written ({error.strerror or error}); "
                "make the state directory writable or choose another one."
            ) from error

    def _busy(self, descriptor: int) -> str:
        held = _holder(os.pread(descriptor, 65536, 0))
        since = datetime.fromtimestamp(os.fstat(descriptor).st_mtime).isoformat(" ", "seconds")
        if held is None:
            return f"Device {self._device_id} is in use by another process since {since}; wait for it to end."
        return (
            f"Device {self._device_id} is in use by process {held['pid']} of {held['user']} "
            f"({held['command']}) since {since}; wait for it to end or stop it."
        )


def _holder(content: bytes) -> Mapping[str, object] | None:
    """Who wrote the lock file; None while it is being written."""
    try:
        held = json.loads(content)
    except ValueError:
        return None
    complete = isinstance(held, dict) and {"pid", "user", "command"} <= set(held)
    return held if complete else None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no name for this uid, as in many containers
        return f"uid {os.getuid()}"
