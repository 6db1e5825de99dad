"""The members of each family. A new member is one line in MEMBERS; every suite then runs on it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import pytest

from polythrottle.clock import RealClock, VirtualClock
from polythrottle_agent.devices import open_device
from polythrottle_agent.emulation.mount import MountedBoard, mounted
from polythrottle_agent.ports import Control, Device
from polythrottle_agent.workloads.opening import WorkloadOptions, open_workload
from tests.fakes.scaled_clock import ScaledClock

RECORDED = Path(__file__).parent / "recorded.csv"
FAKES = Path(__file__).parents[1] / "fakes"

HAS_FUSE = Path("/dev/fuse").exists() and shutil.which("fusermount3") is not None
MOUNTED_FACTOR = 10.0
"""How much faster than real time a mounted board lives."""


@dataclass(frozen=True)
class Member:
    """How to open a fresh device, a statistic its workload gives, and whether there is traffic to protect.

    `takes_time`: its clock passes by itself, so that nothing takes exactly as long as it should. `renew` puts
    the device into the state it is found in. `knobs` names its controls where opening it starts a service.
    """

    open: Callable[[], Device]
    statistic: str
    can_be_cut_short: bool
    takes_time: bool = False
    renew: Callable[[], None] = lambda: None
    knobs: tuple[str, ...] | None = None


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


@lru_cache(maxsize=8)
def running_service(service_ms: float) -> str:
    """`host:port` of a real HTTP service in a process of its own, started once, until the tests end."""
    process = subprocess.Popen(
        [sys.executable, FAKES / "http_service.py", str(service_ms)], stdout=subprocess.PIPE
    )
    MOUNTS.callback(process.wait)
    MOUNTS.callback(process.kill)
    assert process.stdout is not None
    MOUNTS.callback(process.stdout.close)
    return f"127.0.0.1:{int(process.stdout.readline())}"


def service_member(
    name: str,
    workload: Callable[[], str],
    options: WorkloadOptions,
    *,
    statistic: str = "p95",
    brings: tuple[str, ...] = ("batch_size",),
) -> dict[str, Member]:
    """A workload that really runs, in real time, beside clock and meter of an emulated board that is at rest.

    Args:
        workload: the text that names it; whatever it needs is started when this is called.
        brings: the knobs of the controls that the workload brings.
    """

    def open_it() -> Device:
        board = open_device("emulated:orin-nano-8gb", None, 1, RealClock())
        opened = open_workload(
            workload(), options, board.clock, controls=board.controls, provenance=board.identity.provenance
        )
        clock = {"gpu_freq_mhz": board.controls["gpu_freq_mhz"]}
        return replace(board, controls={**clock, **opened.controls}, workload=opened.workload)

    knobs = ("gpu_freq_mhz", *brings)
    return {f"service-{name}": Member(open_it, statistic, True, takes_time=True, knobs=knobs)}


@lru_cache(maxsize=1)
def small_model() -> Path:
    """An .onnx file, made once, until the tests end."""
    from polythrottle_agent.workloads.onnx_models import make

    path = Path(MOUNTS.enter_context(tempfile.TemporaryDirectory())) / "small.onnx"
    path.write_bytes(make("efficientnet", "tiny").SerializeToString())
    return path


def onnx_member() -> dict[str, Member]:
    if not all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime")):
        return {}
    threads = ("intra_op_threads",) if len(os.sched_getaffinity(0)) > 1 else ()
    return service_member(
        "onnx",
        lambda: f"onnx:{small_model()}",
        WorkloadOptions(rate_per_s=200.0, batch_sizes=(1, 4)),
        # Of a few hundred real queries on a busy machine no percentile is known.
        statistic="mean",
        brings=("batch_size", *threads),
    )


MEMBERS = {
    "replay": member(f"replay:{RECORDED}", "recorded", can_be_cut_short=False),
    "replay-p99": member(f"replay:{RECORDED}", "p99", can_be_cut_short=False),
    "emulated-tx2": member("emulated:tx2", "p99", can_be_cut_short=True),
    "emulated-agx-orin": member("emulated:agx-orin", "mean", can_be_cut_short=True),
    "emulated-orin-nano-8gb": member("emulated:orin-nano-8gb", "p95", can_be_cut_short=True),
    **sysfs_member("orin-nano-8gb"),
    **service_member(
        "http",
        lambda: f"http:{running_service(1.0)}/ok?batch={{batch_size}}",
        WorkloadOptions(rate_per_s=400.0, batch_sizes=(1, 4)),
    ),
    **service_member(
        "command",
        lambda: f"command:{sys.executable} {FAKES / 'query_program.py'} latency_ms=2 batch={{batch_size}}",
        WorkloadOptions(batch_sizes=(1, 4)),
    ),
    "emulated-agx-orin-preprocessing": Member(
        lambda: open_device("emulated:agx-orin", "efficientnet-b0+preprocessing", 1, VirtualClock()),
        "p95",
        can_be_cut_short=True,
    ),
    **onnx_member(),
}


@dataclass
class ControlCase:
    """One control of a fresh device, and a way to open the same device again."""

    device: Device
    control: Control
    reopen: Callable[[], Control]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "control_case" in metafunc.fixturenames:
        cases = [
            (name, knob) for name, entry in MEMBERS.items() for knob in entry.knobs or entry.open().controls
        ]
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
