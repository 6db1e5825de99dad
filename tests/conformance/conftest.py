"""The members of each family. A new member is one line in MEMBERS; every suite then runs on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from polythrottle.clock import VirtualClock
from polythrottle_agent.devices import open_device
from polythrottle_agent.ports import Control, Device

RECORDED = Path(__file__).parent / "recorded.csv"


@dataclass(frozen=True)
class Member:
    """How to open a fresh device, a statistic its workload gives, and whether there is traffic to protect."""

    open: Callable[[], Device]
    statistic: str
    can_be_cut_short: bool


def member(text: str, statistic: str, *, can_be_cut_short: bool) -> Member:
    return Member(lambda: open_device(text, None, 1, VirtualClock()), statistic, can_be_cut_short)


MEMBERS = {
    "replay": member(f"replay:{RECORDED}", "recorded", can_be_cut_short=False),
    "replay-p99": member(f"replay:{RECORDED}", "p99", can_be_cut_short=False),
    "emulated-tx2": member("emulated:tx2", "p99", can_be_cut_short=True),
    "emulated-agx-orin": member("emulated:agx-orin", "mean", can_be_cut_short=True),
    "emulated-orin-nano-8gb": member("emulated:orin-nano-8gb", "p95", can_be_cut_short=True),
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
    device = MEMBERS[name].open()
    return ControlCase(device, device.controls[knob], lambda: MEMBERS[name].open().controls[knob])


@dataclass
class MemberCase:
    device: Device
    statistic: str
    can_be_cut_short: bool


@pytest.fixture
def member_case(request: pytest.FixtureRequest) -> MemberCase:
    entry = MEMBERS[request.param]
    return MemberCase(entry.open(), entry.statistic, entry.can_be_cut_short)
