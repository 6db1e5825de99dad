"""Emulated boards, really mounted. Every test goes through open, read and write as a program does."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from polythrottle_agent.emulation.mount import MountedBoard, mounted

NOBODY = 65534


def why_not() -> str | None:
    if not Path("/dev/fuse").exists():
        return "there is no /dev/fuse here"
    if shutil.which("fusermount3") is None:
        return "fusermount3 is missing (apt install fuse3)"
    if importlib.util.find_spec("mfusepy") is None:
        return "mfusepy is missing (pip install 'polythrottle[emulator]')"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = why_not()
    if reason is not None:
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=f"NO FUSE: {reason}"))


@pytest.fixture
def tx2() -> Iterator[MountedBoard]:
    with mounted("tx2") as board:
        yield board


@pytest.fixture
def xavier_nx() -> Iterator[MountedBoard]:
    with mounted("xavier-nx") as board:
        yield board


@pytest.fixture
def orin() -> Iterator[MountedBoard]:
    with mounted("orin-nano-8gb") as board:
        yield board


@pytest.fixture
def agx() -> Iterator[MountedBoard]:
    with mounted("agx-orin") as board:
        yield board


@pytest.fixture
def thor() -> Iterator[MountedBoard]:
    with mounted("agx-thor") as board:
        yield board


def read(path: Path) -> str:
    """One read(2). Python's files turn EAGAIN into None, which no caller expects."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, 65536).decode().strip()
    finally:
        os.close(descriptor)


def write(path: Path, text: str | bytes) -> int:
    """One write(2), as a shell's echo makes; what it returns."""
    data = text.encode() if isinstance(text, str) else text
    descriptor = os.open(path, os.O_WRONLY)
    try:
        return os.write(descriptor, data)
    finally:
        os.close(descriptor)


def errno_of(call: Callable[[], object]) -> int | None:
    """The errno a call fails with; None where it succeeds."""
    try:
        call()
    except OSError as error:
        return error.errno
    return None


def eventually(condition: Callable[[], bool], within_s: float = 1.0) -> bool:
    ends_s = time.monotonic() + within_s
    while time.monotonic() < ends_s:
        if condition():
            return True
        time.sleep(0.002)
    return condition()


def as_nobody(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script as an unprivileged user."""
    return subprocess.run(
        ["/bin/sh", "-c", script, "sh", *arguments],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
    )
