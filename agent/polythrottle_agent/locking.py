"""One run at a time: an advisory lock on a device, which the kernel frees when its holder ends."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType

from polythrottle.errors import DeviceBusyError, StateError


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
