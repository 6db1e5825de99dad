"""`command:` with real programs, and what becomes of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from polythrottle.clock import RealClock, VirtualClock
from polythrottle.errors import InvalidInputError
from polythrottle.measurement import LatencyReading, Unavailable
from polythrottle.studies import MeasurementPlan
from polythrottle_agent.devices import open_device
from polythrottle_agent.ports import ControlError, Served
from polythrottle_agent.workloads.command import CommandWorkload
from polythrottle_agent.workloads.opening import Opened, WorkloadOptions, open_workload

PROGRAM = Path(__file__).parents[2] / "fakes/query_program.py"
PLAN = MeasurementPlan(min_queries=100, min_window_s=0.5, max_window_s=8.0)


def opened(arguments: str, **options: object) -> Opened:
    return open_workload(
        f"command:{sys.executable} {PROGRAM} {arguments}",
        WorkloadOptions(**options),  # type: ignore[arg-type]
        RealClock(),
    )


def reading(served: Served) -> LatencyReading:
    assert isinstance(served.latency, LatencyReading), served
    return served.latency


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def ends_soon(pid: int) -> bool:
    until_s = time.monotonic() + 5.0
    while is_running(pid) and time.monotonic() < until_s:
        time.sleep(0.02)
    return not is_running(pid)


def test_latency_is_what_the_program_tells() -> None:
    workload = opened("latency_ms=4").workload
    workload.warm_up(20)
    served = workload.serve(PLAN, "p50")
    assert reading(served).latency_s == pytest.approx(0.004)
    # One query takes 4 ms at least, and what was told before the window does not count.
    assert 100 <= served.n_queries <= served.duration_s / 0.004 + 10
    assert served.duration_s >= 0.5
    assert served.lost.total == 0


def test_loading_the_model_is_no_part_of_the_window() -> None:
    workload = opened("load_s=1").workload
    began_s = time.monotonic()
    workload.warm_up(5)
    assert time.monotonic() - began_s > 1.0
    assert workload.serve(PLAN, "p50").duration_s < 1.0


def test_knobs_and_rate_are_filled_in(tmp_path: Path) -> None:
    board = open_device("emulated:orin-nano-8gb", None, 1, VirtualClock())
    board.controls["gpu_freq_mhz"].apply(306.0)
    found = open_workload(
        f"command:{sys.executable} {PROGRAM} args={tmp_path}/args "
        "gpu={gpu_freq_mhz} b={batch_size} r={rate}",
        WorkloadOptions(rate_per_s=12.5, batch_sizes=(1, 8)),
        RealClock(),
        controls=board.controls,
    )
    found.controls["batch_size"].apply(8.0)
    served = found.workload.serve(PLAN, "p50")
    told = json.loads((tmp_path / "args").read_text(encoding="utf-8"))
    assert (told["gpu"], told["b"], told["r"]) == ("306", "8", "12.5")
    assert served.n_queries % 8 == 0
    assert served.n_queries >= 800  # the queries of a line share a latency and count once


def test_failures_count_against_the_percentile() -> None:
    served = opened("fail_every=10").workload.serve(
        MeasurementPlan(min_queries=100, min_window_s=0.5, abort_latency_s=0.1), "p99"
    )
    assert served.aborted_reason is not None
    assert served.lost.errors > 0
    assert "out of memory" in served.notes[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("stop_after=30 code=3", r"ended with 3: that was all"),
        ("stop_after=30", r"ended with 0: that was all"),
        ("fail_every=1", "out of memory"),
        ("silent_after=30", "told of no query for 500 ms"),
    ],
)
def test_a_program_that_does_not_go_on_has_no_latency(arguments: str, words: str) -> None:
    workload = opened(arguments, time_out_s=0.5).workload
    if "fail_every" not in arguments:
        workload.warm_up(10)
    served = workload.serve(PLAN, "p99")
    assert isinstance(served.latency, Unavailable)
    assert words in served.latency.reason
    assert served.aborted_reason is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("stop_after=0 code=2", "ended with 2: that was all"),
        ("fail_every=1", "out of memory"),
        ("latency_ms=much", "ended with 1: ValueError"),
    ],
)
def test_a_program_that_does_not_work_is_said_at_warm_up(arguments: str, words: str) -> None:
    with pytest.raises(ControlError, match=words) as error:
        opened(arguments).workload.warm_up(10)
    assert "\n" not in str(error.value)


def test_a_program_killed_by_somebody_is_said_so(tmp_path: Path) -> None:
    script = tmp_path / "suicide.py"
    script.write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", encoding="utf-8")
    workload = open_workload(f"command:{sys.executable} {script}", WorkloadOptions(), RealClock()).workload
    with pytest.raises(ControlError, match="was killed by SIGKILL"):
        workload.warm_up(1)


def test_lines_about_something_else_are_shown_when_nothing_comes(tmp_path: Path) -> None:
    script = tmp_path / "chatty.py"
    script.write_text("print('throughput: 55 queries/s')", encoding="utf-8")
    workload = open_workload(f"command:{sys.executable} {script}", WorkloadOptions(), RealClock()).workload
    with pytest.raises(ControlError, match="throughput: 55"):
        workload.warm_up(1)


@pytest.mark.parametrize("manner", ["", "stubborn=1"])
def test_the_whole_group_ends_with_the_window(tmp_path: Path, manner: str) -> None:
    child = tmp_path / "child"
    workload = opened(f"child={child} {manner}").workload
    workload.warm_up(5)
    pid = int(child.read_text(encoding="utf-8"))
    assert is_running(pid)
    assert workload.serve(PLAN, "p50").n_queries >= 100
    assert ends_soon(pid)


def test_a_program_that_was_warmed_up_for_nothing_ends_with_its_workload(tmp_path: Path) -> None:
    child = tmp_path / "child"
    workload = opened(f"child={child}").workload
    workload.warm_up(5)
    pid = int(child.read_text(encoding="utf-8"))
    del workload
    assert ends_soon(pid)


def test_the_program_does_not_outlive_an_agent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "agent.py"
    pids = tmp_path / "pids"
    text = f"""
        import sys
        from pathlib import Path
        from polythrottle.clock import RealClock
        from polythrottle_agent.workloads.opening import WorkloadOptions, open_workload
        command = "command:{sys.executable} {PROGRAM}"
        workload = open_workload(command, WorkloadOptions(), RealClock()).workload
        workload.warm_up(5)
        Path({str(pids)!r}).write_text(str(workload._program._process.pid))
        print("ready", flush=True)
        sys.stdin.read()
    """
    script.write_text(textwrap.dedent(text), encoding="utf-8")
    agent = subprocess.Popen(
        [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert agent.stdout is not None
    assert agent.stdin is not None
    assert agent.stdout.readline() == "ready\n"
    pid = int(pids.read_text(encoding="utf-8"))
    assert is_running(pid)
    os.kill(agent.pid, signal.SIGKILL)
    agent.wait()
    agent.stdout.close()
    agent.stdin.close()
    assert ends_soon(pid)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("command:/nowhere/at/all", "no program"),
        ("command:sh 'unclosed", "cannot be read"),
        ("command:sh {gpu_frequency_mhz}", "no knob"),
        ("command:sh {rate}", "--rate"),
    ],
)
def test_a_command_that_cannot_be_used_is_refused_in_one_sentence(text: str, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words) as error:
        open_workload(text, WorkloadOptions(), RealClock())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options", [{"rate_per_s": 5.0}, {"body": "x"}, {"batch_sizes": (1, 2)}, {"watch": True}]
)
def test_an_option_that_would_change_nothing_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError, match="takes no --"):
        opened("", **options)


def test_the_command_line_is_part_of_its_identity() -> None:
    first, second = opened("a=1").workload, opened("a=2").workload
    assert isinstance(first, CommandWorkload)
    assert first.model_version != second.model_version
    assert first.name == f"command {Path(sys.executable).name} query_program.py"
