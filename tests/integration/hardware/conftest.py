"""Real controls and meters on emulated boards that are really mounted."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from polythrottle_agent.discovery import Discovered, discover
from polythrottle_agent.emulation.mount import MountedBoard, mounted

Mount = Callable[..., MountedBoard]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if Path("/dev/fuse").exists() and shutil.which("fusermount3") is not None:
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="NO FUSE: /dev/fuse or fusermount3 is missing"))


@pytest.fixture
def mount() -> Iterator[Mount]:
    with ExitStack() as mounts:

        def open_board(board: str, **options: Any) -> MountedBoard:
            return mounts.enter_context(mounted(board, **options))

        yield open_board


def look(board: MountedBoard, state_dir: Path | None = None) -> Discovered:
    return discover(board.root, clock=board.board.clock, state_dir=state_dir)
