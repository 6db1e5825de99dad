"""Kernel files under an injected root: one read or write each, and every errno as a sentence."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from polythrottle_agent.ports import ControlError

_MEANING = {
    errno.EACCES: "permission denied; it takes root (polythrottle-helper) and a file that can be written",
    errno.EPERM: "permission denied; it takes root (polythrottle-helper)",
    errno.EROFS: "the file system is read-only here",
    errno.ENOENT: "it is not there",
    errno.ENODEV: "its device is gone",
    errno.EINVAL: "the kernel refuses that",
    errno.EBUSY: "it is busy, as an offline CPU is",
    errno.EAGAIN: "its hardware is powered off or not ready",
    errno.ENODATA: "it has nothing to say: the channel is disabled",
    errno.ETIMEDOUT: "the hardware did not answer in time",
    errno.EIO: "the hardware failed",
}

MAX_BYTES = 1 << 16
"""sysfs shows one page at most; debugfs and /proc files read here are small too."""


class SysfsError(ControlError):
    """A kernel file could not be read or written. `code` is the errno, 0 where the text made no sense."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Sysfs:
    """The files of one machine, found below `root`.

    A write is one `write(2)`: the kernel takes each as a whole value. A write that returns proves
    nothing; read back what it did.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def at(self, path: str) -> Path:
        """A path as the kernel's documentation writes it, below the root."""
        return self.root / path.lstrip("/")

    def shown(self, path: Path) -> str:
        """A path for people: without the injected root."""
        try:
            return f"/{path.relative_to(self.root)}"
        except ValueError:
            return str(path)

    def entries(self, directory: Path) -> list[Path]:
        """What lies in a directory, sorted by name; nothing where it is missing or closed to us."""
        try:
            return sorted(directory.iterdir())
        except OSError:
            return []

    def text(self, path: Path) -> str:
        """
        Raises:
            SysfsError: it cannot be read.
        """
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                content = os.read(descriptor, MAX_BYTES)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._error("read", path, error) from error
        # Strings of the device tree end in a NUL.
        return content.decode("utf-8", "replace").strip("\0 \t\n")

    def text_or_none(self, path: Path) -> str | None:
        """None where it is missing or cannot be read, for what is optional."""
        try:
            return self.text(path)
        except SysfsError:
            return None

    def number(self, path: Path) -> int:
        """
        Raises:
            SysfsError: it cannot be read, or holds no whole number.
        """
        text = self.text(path)
        try:
            return int(text)
        except ValueError:
            raise SysfsError(f"{self.shown(path)} reads {text[:40]!r}, which is no number", 0) from None

    def number_or_none(self, path: Path) -> int | None:
        try:
            return self.number(path)
        except SysfsError:
            return None

    def numbers(self, path: Path) -> tuple[int, ...]:
        """Whole numbers between spaces, in the file's order. A unit in brackets at the end is skipped.

        Raises:
            SysfsError: it cannot be read, or holds something else.
        """
        text = self.text(path).partition("(")[0]
        try:
            return tuple(int(word) for word in text.split())
        except ValueError:
            raise SysfsError(f"{self.shown(path)} reads {text[:40]!r}, not a list of numbers", 0) from None

    def write(self, path: Path, value: int | str) -> None:
        """
        Raises:
            SysfsError: the kernel refused, with the reason in words.
        """
        try:
            # Truncating changes nothing on sysfs; a shell's `echo >` does it too.
            descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
            try:
                os.write(descriptor, f"{value}\n".encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._error(f"write {value} to", path, error) from error

    def readable(self, path: Path) -> bool:
        """Whether this process may read it; a file that answers EIO or EAGAIN is readable."""
        return os.access(path, os.R_OK)

    def writable(self, path: Path) -> bool:
        """Whether this process may write it. A file without a write bit is refused to root as well."""
        try:
            bits = path.stat().st_mode
        except OSError:
            return False
        return bool(bits & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)) and os.access(path, os.W_OK)

    def _error(self, verb: str, path: Path, error: OSError) -> SysfsError:
        code = error.errno or errno.EIO
        meaning = _MEANING.get(code, error.strerror or "unknown error")
        name = errno.errorcode.get(code, str(code))
        return SysfsError(f"cannot {verb} {self.shown(path)}: {meaning} ({name})", code)
