"""A sysfs without a mount: nodes, links and directories that answer as the kernel does."""

from __future__ import annotations

import errno
import posixpath
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from polythrottle_agent.emulation.faults import Faults
from polythrottle_agent.emulation.kernels import refused

PAGE_SIZE = 4096
"""One read or write goes no further than a page."""

MAX_LINKS = 40


def _always() -> bool:
    return True


@dataclass
class Node:
    """One attribute: its mode, what reading shows and what writing stores.

    `show` returns text, to which a newline is added, or bytes as they are. Either raises OSError with the
    errno that the system call returns. `exists` says whether it is there now.
    """

    mode: int
    show: Callable[[], str | bytes] | None = None
    store: Callable[[bytes], None] | None = None
    exists: Callable[[], bool] = field(default=_always)
    uid: int = 0
    gid: int = 0

    def text(self) -> bytes:
        if self.show is None:
            raise refused(errno.EIO)
        shown = self.show()
        return shown if isinstance(shown, bytes) else f"{shown}\n".encode()


def readable(show: Callable[[], str | bytes], mode: int = 0o444) -> Node:
    """A node that cannot be written."""
    return Node(mode, show)


def fixed(text: str) -> Callable[[], str]:
    """Shows always the same."""
    return lambda: text


def shown(call: Callable[..., object], *arguments: object) -> Callable[[], str]:
    """Shows what a call with these arguments returns."""
    return lambda: str(call(*arguments))


@dataclass
class Link:
    """A symbolic link to an absolute path of the tree; shown as a relative one, as sysfs does."""

    target: str
    exists: Callable[[], bool] = field(default=_always)


@dataclass
class Directory:
    """A directory whose mode is not 0755."""

    mode: int = 0o755
    uid: int = 0
    gid: int = 0


Entry = Node | Link | Directory


class Tree:
    """Paths and what lies there. All access holds one lock, so that the model behind sees one at a time."""

    def __init__(self, faults: Faults, settle: Callable[[], None]) -> None:
        self.lock = threading.RLock()
        self.faults = faults
        self._settle = settle
        self._entries: dict[str, Entry] = {"/": Directory()}
        self._children: dict[str, dict[str, None]] = {"/": {}}

    def replace(self, entries: Mapping[str, Entry]) -> None:
        """Lay out the tree anew, with the directories above every entry."""
        with self.lock:
            self._entries = {"/": Directory()}
            self._children = {"/": {}}
            for path, entry in entries.items():
                self._entries[path] = entry
                while path != "/":
                    parent, name = posixpath.split(path)
                    self._children.setdefault(parent, {})[name] = None
                    if parent not in entries:
                        self._entries.setdefault(parent, Directory())
                    path = parent

    def entry(self, path: str) -> Entry:
        """What lies at a path, links along it not followed.

        Raises:
            OSError: ENOENT.
        """
        with self.lock:
            self._settle()
            found = self._entries.get(path)
            if found is None or self.faults.hides(path) or not self._is_there(path, found):
                raise refused(errno.ENOENT)
            return found

    def _is_there(self, path: str, found: Entry) -> bool:
        """A directory goes with everything in it."""
        if not isinstance(found, Directory):
            return found.exists()
        inside = self._children.get(path)
        if not inside or path.count("/") < 3:
            return True
        return any(self._is_there(child, self._entries[child]) for child in self._paths_in(path))

    def _paths_in(self, path: str) -> Iterator[str]:
        for name in self._children.get(path, ()):
            yield posixpath.join(path, name)

    def names(self, path: str) -> list[str]:
        """
        Raises:
            OSError: ENOENT or ENOTDIR.
        """
        if not isinstance(self.entry(path), Directory):
            raise refused(errno.ENOTDIR)
        with self.lock:
            return [
                posixpath.basename(child)
                for child in self._paths_in(path)
                if not self.faults.hides(child) and self._is_there(child, self._entries[child])
            ]

    def resolve(self, path: str) -> str:
        """The path with every link on the way followed.

        Raises:
            OSError: ENOENT, or ELOOP.
        """
        for _ in range(MAX_LINKS):
            so_far = "/"
            parts = [part for part in posixpath.normpath(path).split("/") if part]
            for index, part in enumerate(parts):
                so_far = posixpath.join(so_far, part)
                found = self.entry(so_far)
                if isinstance(found, Link):
                    path = posixpath.join(found.target, *parts[index + 1 :])
                    break
            else:
                return so_far
        raise refused(errno.ELOOP)

    def link_text(self, path: str) -> str:
        """What readlink gives.

        Raises:
            OSError: ENOENT; EINVAL for what is no link.
        """
        found = self.entry(path)
        if not isinstance(found, Link):
            raise refused(errno.EINVAL)
        return posixpath.relpath(found.target, posixpath.dirname(path))

    def check_open(self, path: str, *, reads: bool, writes: bool) -> None:
        """Sysfs refuses what no mode bit allows to anyone: a 0444 file cannot be written by root either.

        Raises:
            OSError: EACCES, EISDIR, ENOENT, or what a fault answers.
        """
        found = self.entry(path)
        if not isinstance(found, Node):
            raise refused(errno.EISDIR)
        if writes and (not found.mode & 0o222 or found.store is None):
            raise refused(errno.EACCES)
        if reads and (not found.mode & 0o444 or found.show is None):
            raise refused(errno.EACCES)
        self.faults.check_open(path, reads=reads, writes=writes)

    def read(self, path: str) -> bytes:
        """The whole text of a node.

        Raises:
            OSError: as the node or a fault on it answers.
        """
        self.faults.wait(path, "read")
        with self.lock:
            found = self._node(path)
            shown = self.faults.on_read(path, found.text)
            return shown[:PAGE_SIZE] if path.startswith("/sys/") else shown

    def write(self, path: str, data: bytes) -> int:
        """Write once, as one write(2) does, wherever the file offset is; the bytes taken.

        Raises:
            OSError: as the node or a fault on it answers.
        """
        if not data:
            return 0
        data = data[:PAGE_SIZE]
        self.faults.wait(path, "write")
        with self.lock:
            found = self._node(path)
            if found.store is None:
                raise refused(errno.EACCES)
            if self.faults.on_write(path):
                found.store(data)
        return len(data)

    def _node(self, path: str) -> Node:
        found = self.entry(path)
        if not isinstance(found, Node):
            raise refused(errno.EISDIR)
        return found

    def attributes(self, path: str) -> dict[str, int]:
        """What stat(2) shows.

        Raises:
            OSError: ENOENT.
        """
        found = self.entry(path)
        if isinstance(found, Link):
            return {"st_mode": stat.S_IFLNK | 0o777, "st_nlink": 1, "st_uid": 0, "st_gid": 0, "st_size": 0}
        kind, links = stat.S_IFREG, 1
        size = PAGE_SIZE if path.startswith("/sys/") else 0  # as sysfs and proc say
        if isinstance(found, Directory):
            kind, links, size = stat.S_IFDIR, 2, 0
        return {
            "st_mode": kind | found.mode,
            "st_nlink": links,
            "st_uid": found.uid,
            "st_gid": found.gid,
            "st_size": size,
        }
