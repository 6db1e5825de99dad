"""Faults that a test puts on a node of an emulated sysfs."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from polythrottle.errors import InvalidInputError
from polythrottle_agent.emulation.kernels import refused


class FaultKind(str, Enum):
    """What goes wrong.

    EIO and the other errnos: the call fails so. ENOENT: the node, and all below it, is gone. HANG: the call
    does not come back until the fault is cleared or its time is up; as on a bus that hangs, not even SIGKILL
    ends it. GARBAGE: reading gives other text. STUCK: reading gives for ever what it gave first, and writing
    changes nothing. SILENT: writing succeeds and changes nothing.
    """

    EIO = "eio"
    EACCES = "eacces"
    EBUSY = "ebusy"
    EINVAL = "einval"
    EAGAIN = "eagain"
    ETIMEDOUT = "etimedout"
    ENODATA = "enodata"
    ENOENT = "enoent"
    HANG = "hang"
    GARBAGE = "garbage"
    STUCK = "stuck"
    SILENT = "silent"


_ERRNOS = {
    FaultKind.EIO: errno.EIO,
    FaultKind.EBUSY: errno.EBUSY,
    FaultKind.EINVAL: errno.EINVAL,
    FaultKind.EAGAIN: errno.EAGAIN,
    FaultKind.ETIMEDOUT: errno.ETIMEDOUT,
    FaultKind.ENODATA: errno.ENODATA,
}

BOTH = "both"


@dataclass(frozen=True)
class Fault:
    """on: `read`, `write` or `both`. text: what GARBAGE shows. seconds: how long HANG lasts (None: until
    cleared). times: how many calls it hits (None: all). skip: how many calls it lets pass first."""

    kind: FaultKind
    on: str = BOTH
    text: str = "\ufffd~garbage"
    seconds: float | None = None
    times: int | None = None
    skip: int = 0

    def __post_init__(self) -> None:
        if self.on not in ("read", "write", BOTH):
            raise InvalidInputError(f"A fault is on read, write or both, not on {self.on!r}.")

    @classmethod
    def named(cls, kind: str) -> Fault:
        """
        Raises:
            InvalidInputError: no such fault.
        """
        try:
            return cls(FaultKind(kind.lower()))
        except ValueError:
            known = ", ".join(known.value for known in FaultKind)
            raise InvalidInputError(f"No fault {kind!r}; known: {known}.") from None


@dataclass
class _Armed:
    fault: Fault
    skip: int
    left: int | None
    frozen: bytes | None = None
    cleared: threading.Event = field(default_factory=threading.Event)

    def hits(self, call: str) -> bool:
        """Whether this call is hit. Counts it."""
        if self.fault.on not in (call, BOTH) or self.left == 0:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.left is not None:
            self.left -= 1
        return True


class Faults:
    """The faults in force, by the path of their node, links followed."""

    def __init__(self) -> None:
        self._armed: dict[str, _Armed] = {}
        self._lock = threading.Lock()

    def arm(self, path: str, fault: Fault) -> None:
        """Put a fault on a node, in place of the one it has."""
        self.clear(path)
        with self._lock:
            self._armed[path] = _Armed(fault, fault.skip, fault.times)

    def clear(self, path: str | None = None) -> None:
        """Take the fault off a node, or off all; calls that hang go on."""
        with self._lock:
            gone = [path] if path is not None else list(self._armed)
            for name in gone:
                armed = self._armed.pop(name, None)
                if armed is not None:
                    armed.cleared.set()

    def paths(self) -> tuple[str, ...]:
        """Nodes with a fault."""
        with self._lock:
            return tuple(self._armed)

    def hides(self, path: str) -> bool:
        """Whether the node is gone. Not counted: looking is no call on it."""
        with self._lock:
            return any(
                armed.fault.kind is FaultKind.ENOENT and (path == gone or path.startswith(gone + "/"))
                for gone, armed in self._armed.items()
            )

    def check_open(self, path: str, *, reads: bool, writes: bool) -> None:
        """
        Raises:
            OSError: EACCES.
        """
        armed = self._of(path, FaultKind.EACCES)
        if armed is None:
            return
        if (reads and armed.hits("read")) or (writes and armed.hits("write")):
            raise refused(errno.EACCES)

    def wait(self, path: str, call: str) -> None:
        """Hang, if that is the fault. Holds no lock, so that the rest of the tree goes on."""
        armed = self._of(path, FaultKind.HANG)
        if armed is not None and armed.hits(call):
            armed.cleared.wait(armed.fault.seconds)

    def on_read(self, path: str, show: Callable[[], bytes]) -> bytes:
        """
        Raises:
            OSError: the fault's, or the node's own.
        """
        armed = self._of(path)
        if armed is None or armed.fault.kind in (FaultKind.HANG, FaultKind.EACCES, FaultKind.SILENT):
            return show()
        if not armed.hits("read"):
            return show()
        if armed.fault.kind in _ERRNOS:
            raise refused(_ERRNOS[armed.fault.kind])
        if armed.fault.kind is FaultKind.GARBAGE:
            return f"{armed.fault.text}\n".encode()
        if armed.frozen is None:
            armed.frozen = show()
        return armed.frozen

    def on_write(self, path: str) -> bool:
        """Whether the write reaches the node.

        Raises:
            OSError: the fault's.
        """
        armed = self._of(path)
        if armed is None or armed.fault.kind in (FaultKind.HANG, FaultKind.EACCES, FaultKind.GARBAGE):
            return True
        if not armed.hits("write"):
            return True
        if armed.fault.kind in _ERRNOS:
            raise refused(_ERRNOS[armed.fault.kind])
        return False

    def _of(self, path: str, kind: FaultKind | None = None) -> _Armed | None:
        with self._lock:
            armed = self._armed.get(path)
        return armed if armed is not None and kind in (None, armed.fault.kind) else None
