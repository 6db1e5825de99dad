"""Files that survive a crash at any instruction. Every step can be watched, so that a test can kill there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

Step = Callable[[str], None]
"""Called before and after each operation, with `before rename originals` and the like."""

TEMPORARY_SUFFIX = ".new"


def _unwatched(step: str) -> None:
    """Nobody looks on: the default of everything that is not the crash campaign."""


class Files:
    """Durable writes: when a method returns, a power cut no longer undoes it.

    Every method raises OSError where the disk does.
    """

    def __init__(self, on_step: Step = _unwatched) -> None:
        self._on_step = on_step

    def replace(self, path: Path, content: bytes, mode: int = 0o600) -> None:
        """The whole new content or the whole old one, whatever happens in between."""
        temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode
        )
        try:
            self._do("write", path, lambda: write_all(descriptor, content))
            self._do("fsync", path, lambda: os.fsync(descriptor))
        finally:
            os.close(descriptor)
        self._do("rename", path, lambda: os.replace(temporary, path))
        self._sync_directory(path)

    def remove(self, path: Path) -> None:
        """Gone for good; nothing happens where it was not there."""
        self._do("remove", path, lambda: path.unlink(missing_ok=True))
        self._sync_directory(path)

    def append(self, path: Path, line: bytes, mode: int = 0o640, gid: int | None = None) -> None:
        """One more line at the end, in one write, after everything that is there.

        A file that is made now is given to the group `gid`, where this process may do that.
        """
        new = not path.exists()
        descriptor = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, mode
        )
        try:
            if new and gid is not None:
                with contextlib.suppress(PermissionError):  # a line in the wrong group beats no line
                    os.fchown(descriptor, -1, gid)
            self._do("append", path, lambda: write_all(descriptor, line))
            self._do("fsync", path, lambda: os.fsync(descriptor))
        finally:
            os.close(descriptor)
        if new:
            self._sync_directory(path)

    def _sync_directory(self, path: Path) -> None:
        """A rename or removal is on disk once its directory is."""
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._do("fsync directory", path, lambda: os.fsync(descriptor))
        finally:
            os.close(descriptor)

    def _do(self, operation: str, path: Path, action: Callable[[], object]) -> None:
        name = path.name.partition("-")[0].partition(".")[0]
        self._on_step(f"before {operation} {name}")
        action()
        self._on_step(f"after {operation} {name}")


def write_all(descriptor: int, content: bytes) -> None:
    """`os.write` may take less than it was given."""
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
