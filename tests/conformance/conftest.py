"""The members of each family. A new member is one line in MEMBERS; every suite then runs on it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest

from polythrottle.clock import VirtualClock
from polythrottle_agent.devices import open_device
from polythrottle_agent.emulation.mount import MountedBoard, mounted
from polythrottle_agent.ports import Control, Device
from tests.fakes.scaled_clock import ScaledClock

RECORDED = Path(__file__).parent / "recorded.csv"

HAS_FUSE = Path("/dev/fuse").exists() and shutil.which("fusermount3") is not None
MOUNTED_FACTOR = 10.0
"""How much faster than real time a mounted board lives."""


@dataclass(frozen=True)
class Member:
    """How to open a fresh device, a statistic its workload gives, and whether there is traffic to protect.

    `takes_time`: its clock passes by itself, so that nothing takes exactly as long as it should. `renew` puts
    the device into the state it is found in.
    """

    open: Callable[[], Device]
    statistic: str
    can_be_cut_short: bool
    takes_time: bool = False
    renew: Callable[[], None] = lambda: None


def member(text: str, statistic: str, *, can_be_cut_short: bool) -> Member:
    return Member(lambda: open_device(text, None, 1, VirtualClock()), statistic, can_be_cut_short)


MOUNTS = ExitStack()


def pytest_sessionfinish() -> None:
    MOUNTS.close()


@lru_cache(maxsize=8)
def mounted_board(board: str) -> MountedBoard:
    """Mounted once, until the tests end."""
    os.environ.setdefault("POLYTHROTTLE_STATE_DIR", MOUNTS.enter_context(tempfile.TemporaryDirectory()))
    return MOUNTS.enter_context(mounted(board, workload="efficientnet-b4", clock=ScaledClock(MOUNTED_FACTOR)))


def sysfs_member(board: str) -> dict[str, Member]:
    """`auto` on a mounted board: the controls and meters of real hardware."""
    if not HAS_FUSE:
        return {}

    def open_it() -> Device:
        found = mounted_board(board)
        return open_device("auto", None, 1, found.board.clock, root=found.root)

    member = Member(
        open_it, "p95", can_be_cut_short=True, takes_time=True, renew=lambda: mounted_board(board).reboot()
    )
    return {f"sysfs-{board}": member}


MEMBERS = {
    "replay": member(f"replay:{RECORDED}", "recorded", can_be_cut_short=False),
    "replay-p99": member(f"replay:{RECORDED}", "p99", can_be_cut_short=False),
    "emulated-tx2": member("emulated:tx2", "p99", can_be_cut_short=True),
    "emulated-agx-orin": member("emulated:agx-orin", "mean", can_be_cut_short=True),
    "emulated-orin-nano-8gb": member("emulated:orin-nano-8gb", "p95", can_be_cut_short=True),
    **sysfs_member("orin-nano-8gb"),
}


@dataclass
class ControlCase:
    """One control of a fresh device, and a way to open the same device again."""

    device: Device
    control: Control
    reopen: Callable[[], Control]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "control_case" in metafunc.fixturenames:
        cases = [(name, knob) for name, entry in MEMBERS.items() for knob in entry.open().controls]
        metafunc.parametrize("control_case", cases, ids=["-".join(case) for case in cases], indirect=True)
    if "member_case" in metafunc.fixturenames:
        metafunc.parametrize("member_case", list(MEMBERS), indirect=True)


@pytest.fixture
def control_case(request: pytest.FixtureRequest) -> ControlCase:
    name, knob = request.param
    MEMBERS[name].renew()
    device = MEMBERS[name].open()
    return ControlCase(device, device.controls[knob], lambda: MEMBERS[name].open().controls[knob])


@dataclass
class MemberCase:
    device: Device
    statistic: str
    can_be_cut_short: bool
    takes_time: bool


@pytest.fixture
def member_case(request: pytest.FixtureRequest) -> MemberCase:
    entry = MEMBERS[request.param]
    entry.renew()
    return MemberCase(entry.open(), entry.statistic, entry.can_be_cut_short, entry.takes_time)
