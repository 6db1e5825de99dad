"""Mounts an emulated board's sysfs with FUSE, so that any program meets it through open, read and write."""

from __future__ import annotations

import errno
import importlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from polythrottle.clock import Clock, RealClock
from polythrottle.errors import PolythrottleError
from polythrottle_agent.emulation.board import EmulatedBoard
from polythrottle_agent.emulation.faults import Fault
from polythrottle_agent.emulation.kernels import refused
from polythrottle_agent.emulation.machine import Machine, Options
from polythrottle_agent.emulation.sysfs import Link, Tree

MOUNT_TIMEOUT_S = 10.0


class MountError(PolythrottleError):
    """The emulated sysfs cannot be mounted here."""


def _fuse() -> ModuleType:
    """
    Raises:
        MountError: mfusepy, libfuse 3 or fusermount3 is missing.
    """
    try:
        mfusepy = importlib.import_module("mfusepy")
    except (ImportError, OSError) as error:
        raise MountError(
            f"The emulated sysfs needs FUSE ({error}): pip install 'polythrottle[emulator]' and, "
            "on Debian or Ubuntu, apt install fuse3."
        ) from None
    if shutil.which("fusermount3") is None:
        raise MountError("The emulated sysfs needs fusermount3: on Debian or Ubuntu, apt install fuse3.")
    return mfusepy


class _Files:
    """FUSE operations over a tree. A file's text is made when it is read from its start, as seq_file does."""

    use_ns = True

    def __init__(self, tree: Tree) -> None:
        self.serving = threading.Event()
        self._tree = tree
        self._shown: dict[int, bytes] = {}
        self._next = 1
        self._lock = threading.Lock()

    def init(self, _path: str) -> None:
        self.serving.set()

    def getattr(self, path: str, _fh: int | None = None) -> dict[str, int]:
        return self._tree.attributes(path)

    def readdir(self, path: str, _fh: int) -> list[str]:
        return [".", "..", *self._tree.names(path)]

    def readlink(self, path: str) -> str:
        return self._tree.link_text(path)

    def open(self, path: str, flags: int) -> int:
        access = flags & os.O_ACCMODE
        self._tree.check_open(
            path, reads=access in (os.O_RDONLY, os.O_RDWR), writes=access in (os.O_WRONLY, os.O_RDWR)
        )
        with self._lock:
            self._next += 1
            return self._next

    def release(self, _path: str, fh: int) -> int:
        with self._lock:
            self._shown.pop(fh, None)
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        if offset == 0 or fh not in self._shown:
            text = self._tree.read(path)
            with self._lock:
                self._shown[fh] = text
        return self._shown[fh][offset : offset + size]

    def write(self, path: str, data: bytes, _offset: int, _fh: int) -> int:
        return self._tree.write(path, data)

    def truncate(self, path: str, _length: int, _fh: int | None = None) -> int:
        """`>` in a shell truncates first; sysfs takes no notice."""
        self._tree.entry(path)
        return 0

    def chmod(self, path: str, mode: int) -> int:
        self._own(path, lambda entry: setattr(entry, "mode", mode & 0o7777))
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        def change(entry: object) -> None:
            for name, value in (("uid", uid), ("gid", gid)):
                if value not in (-1, 0xFFFFFFFF):
                    setattr(entry, name, value)

        self._own(path, change)
        return 0

    def _own(self, path: str, change: Callable[[Any], None]) -> None:
        entry = self._tree.entry(path)
        if isinstance(entry, Link):
            raise refused(errno.EPERM)
        change(entry)

    def create(self, _path: str, _mode: int, _fi: object = None) -> int:
        raise refused(errno.EACCES)

    def mknod(self, _path: str, _mode: int, _dev: int) -> int:
        raise refused(errno.EACCES)

    def mkdir(self, _path: str, _mode: int) -> int:
        raise refused(errno.EPERM)

    def unlink(self, _path: str) -> int:
        raise refused(errno.EPERM)

    def rmdir(self, _path: str) -> int:
        raise refused(errno.EPERM)

    def utimens(self, _path: str, _times: object = None) -> int:
        return 0

    def statfs(self, _path: str) -> dict[str, int]:
        return {"f_bsize": 4096, "f_namemax": 255}


class MountedBoard:
    """An emulated board whose files lie under `root`. `machine` is the board behind them."""

    def __init__(self, machine: Machine, root: Path) -> None:
        self.machine = machine
        self.root = root

    @property
    def board(self) -> EmulatedBoard:
        return self.machine.board

    def path(self, node: str) -> Path:
        """Where a node lies under the mount; names as `Machine.node` takes them."""
        return self.root / self.machine.node(node).lstrip("/")

    def inject(self, node: str, fault: Fault | str) -> None:
        """Put a fault on a node; see `Machine.inject`."""
        self.machine.inject(node, fault)

    def clear(self, node: str | None = None) -> None:
        """Take a fault off a node, or off all."""
        self.machine.clear(node)

    def reboot(self) -> None:
        """As the board after a power cycle; nvpmodel's mode persists."""
        self.machine.reboot()


@contextmanager
def mounted(
    board: str,
    *,
    kernel: str | None = None,
    workload: str | None = None,
    clock: Clock | None = None,
    seed: int = 0,
    mountpoint: Path | None = None,
    options: Options | None = None,
) -> Iterator[MountedBoard]:
    """An emulated board with its sysfs mounted, unmounted again at the end.

    Args:
        board: one of `SYSFS_BOARDS`.
        kernel: `4.9`, `5.10`, `5.15` or `6.8`; None for the board's usual one.
        workload: one of `WORKLOADS`; None for the default.
        clock: None for the real one, which other processes share.
        seed: of noise, delays and hwmon numbers.
        mountpoint: an empty directory; None for a temporary one.
        options: see `Options`.

    Raises:
        InvalidInputError: an unknown board, kernel, workload or mode.
        MountError: FUSE is missing or refused.
    """
    machine = Machine(
        board, kernel=kernel, workload=workload, clock=clock or RealClock(), seed=seed, options=options
    )
    own = Path(tempfile.mkdtemp(prefix="polythrottle-sysfs-")) if mountpoint is None else None
    root = (own or Path(mountpoint or "")).absolute()
    if is_mounted(root):
        raise MountError(
            f"Something is mounted at {mountpoint} already; choose another directory or run "
            f"fusermount3 -u {mountpoint}."
        )
    if not root.is_dir():
        raise MountError(f"Cannot mount at {mountpoint}: it is no directory; make it first.")
    try:
        with _dies_of_sigterm():
            mount = _Mount(machine.tree, root)
        try:
            with _cleaner(root):
                yield MountedBoard(machine, root)
        finally:
            # A call that hangs would keep the mount busy.
            machine.faults.clear()
            unmount(root)
            mount.thread.join(MOUNT_TIMEOUT_S)
    finally:
        if own is not None and not is_mounted(own):
            own.rmdir()


class _Mount:
    """Serves a tree from a thread, until somebody unmounts it.

    Raises:
        MountError: FUSE refused.
    """

    def __init__(self, tree: Tree, root: Path) -> None:
        self._fuse = _fuse()
        self._files = _Files(tree)
        self._root = root
        self._failed: BaseException | None = None
        self.thread = threading.Thread(target=self._serve, name="emulated sysfs", daemon=True)
        # libfuse goes to / when it starts to serve, and takes the whole process along.
        here = os.getcwd()
        self.thread.start()
        try:
            self._wait()
        finally:
            os.chdir(here)

    def _serve(self) -> None:
        settings: dict[str, Any] = {
            "foreground": True,
            "fsname": "polythrottle-emulator",
            "default_permissions": True,
            "direct_io": True,
            "attr_timeout": 0,
            "entry_timeout": 0,
            "negative_timeout": 0,
        }
        if os.geteuid() == 0:
            settings["allow_other"] = True
        if (self._fuse.fuse_version_major, self._fuse.fuse_version_minor) >= (3, 12):
            # So that calls that hang leave room for others; without the second, libfuse warns of its default.
            settings |= {"max_threads": 64, "max_idle_threads": 16}
        try:
            self._fuse.FUSE(self._files, str(self._root), **settings)
        except BaseException as error:  # told by whoever waits for the mount
            self._failed = error

    def _wait(self) -> None:
        clock = RealClock()
        ends_s = clock.now() + MOUNT_TIMEOUT_S
        while not (self._files.serving.is_set() and is_mounted(self._root)):
            if not self.thread.is_alive() or clock.now() > ends_s:
                reason = "" if self._failed is None else f": {self._failed}"
                raise MountError(
                    f"FUSE could not mount the emulated sysfs at {self._root}{reason}; is /dev/fuse there?"
                )
            clock.sleep(0.002)


@contextmanager
def _dies_of_sigterm() -> Iterator[None]:
    """libfuse takes over SIGTERM and SIGHUP where nobody handles them; this process is to end by them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, end)
    yield


@contextmanager
def _cleaner(root: Path) -> Iterator[None]:
    """A process that unmounts when this one is killed.

    FUSE's own auto_unmount does the same, but complains on stderr after every orderly end.
    """
    script = 'read -r _ && exit 0; exec fusermount3 -u -z -q "$0"'
    cleaner = subprocess.Popen(
        ["/bin/sh", "-c", script, str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )
    try:
        yield
    finally:
        cleaner.communicate(b"done\n")


def is_mounted(path: Path) -> bool:
    """Whether something is mounted there, even a mount whose server is gone, on which stat fails."""
    wanted = os.path.join(os.path.realpath(path.parent), path.name)
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    # The fifth field, with blanks and the like as octal escapes.
    places = (line.split()[4] for line in mounts.splitlines())
    return any(
        place.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\") == wanted
        for place in places
    )


def unmount(root: Path) -> None:
    """Unmount, lazily if somebody still has a file open there. Nothing mounted there is fine."""
    for how in ("-u", "-uz"):
        if not is_mounted(root):
            return
        subprocess.run(["fusermount3", how, str(root)], capture_output=True, check=False)
