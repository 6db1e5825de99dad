"""Ctrl-C once and twice, kill -9 and --resume, and two runs at one device: real processes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from polythrottle import api
from polythrottle.study import Study
from tests.e2e.conftest import NANO, Command

DRIVER = textwrap.dedent(
    """
    import os, signal, sys
    import polythrottle.cli.tune as tune
    from polythrottle.cli.main import main

    WHEN, SIGNALS, AT = sys.argv[1], [int(s) for s in sys.argv[2].split(",")], int(sys.argv[3])

    class Screen(tune.ProgressScreen):
        def hit(self, when, trial):
            if when == WHEN and trial.number == AT:
                for number in SIGNALS:
                    os.kill(os.getpid(), number)

        def trial_started(self, trial):
            super().trial_started(trial)
            self.hit("started", trial)

        def trial_finished(self, trial, study):
            super().trial_finished(trial, study)
            self.hit("finished", trial)

    tune.ProgressScreen = Screen
    main(sys.argv[4:])
    """
)


def struck(
    state_dir: Path, when: str, signals: str, at: int, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run `tune` in a process that sends itself signals when trial `at` starts or has finished."""
    return subprocess.run(
        [
            sys.executable,
            "-c",
            DRIVER,
            when,
            signals,
            str(at),
            "tune",
            "--latency-slo",
            "50ms",
            *NANO,
            *arguments,
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "POLYTHROTTLE_STATE_DIR": str(state_dir)},
        timeout=240,
        check=False,
    )


def test_ctrl_c_once_finishes_the_trial_and_shows_the_best_so_far(
    state_dir: Path, polythrottle: Command
) -> None:
    ran = struck(state_dir, "started", str(int(signal.SIGINT)), 7)
    assert ran.returncode == 130, ran.stderr
    assert "\n 7  search" in ran.stdout
    assert "\n 8  " not in ran.stdout
    assert "best feasible (emulated)" in ran.stdout
    assert "press Ctrl-C again" in ran.stderr
    study = polythrottle("studies", "show", "last", "--json").json
    assert study["state"] == "cancelled"
    assert study["chosen"] is not None
    assert study["search"]["n_trials"] == 7


@pytest.mark.parametrize(("slo", "code"), [("50ms", 0), ("1ms", 2)])
def test_ctrl_c_after_the_answer_takes_nothing_from_it(
    polythrottle: Command, monkeypatch: pytest.MonkeyPatch, slo: str, code: int
) -> None:
    run = api.run

    def run_and_interrupt(*arguments: Any, **options: Any) -> Study:
        study = run(*arguments, **options)
        os.kill(os.getpid(), signal.SIGINT)
        return study

    monkeypatch.setattr(api, "run", run_and_interrupt)
    ran = polythrottle("tune", "--latency-slo", slo, *NANO, "--strategy", "random", "--max-trials", "3")
    assert "press Ctrl-C again" in ran.err
    assert ran.code == code


def test_ctrl_c_twice_stops_in_the_middle_and_saves(state_dir: Path, polythrottle: Command) -> None:
    both = f"{int(signal.SIGINT)},{int(signal.SIGINT)}"
    ran = struck(state_dir, "started", both, 7)
    assert ran.returncode == 130, ran.stderr
    assert "\n 7  search" not in ran.stdout
    assert "best feasible (emulated)" in ran.stdout
    study = polythrottle("studies", "export", "last").json
    assert [t["state"] for t in study["trials"]] == ["completed"] * 6 + ["cancelled"]


def test_resume_after_ctrl_c_goes_on(state_dir: Path, polythrottle: Command) -> None:
    struck(state_dir, "started", str(int(signal.SIGINT)), 7)
    before = polythrottle("studies", "export", "last").json
    resumed = polythrottle("tune", "--latency-slo", "50ms", *NANO, "--resume", "--json").json
    after = polythrottle("studies", "export", "last").json
    assert resumed["study"] == before["id"]
    assert after["trials"][:7] == before["trials"]
    assert resumed["verdict"] == "optimal"


def test_kill_9_loses_nothing(state_dir: Path, polythrottle: Command) -> None:
    ran = struck(state_dir, "started", str(int(signal.SIGKILL)), 8)
    assert ran.returncode == -signal.SIGKILL
    before = polythrottle("studies", "export", "last").json
    assert [t["state"] for t in before["trials"]] == ["completed"] * 7 + ["leased"]
    resumed = polythrottle("tune", "--latency-slo", "50ms", *NANO, "--resume", "--json").json
    after = polythrottle("studies", "export", "last").json
    assert resumed["study"] == before["id"]
    assert after["trials"][:7] == before["trials"][:7]
    assert after["trials"][7]["attempt"] == 2
    assert after["trials"][7]["state"] in ("completed", "infeasible")
    assert resumed["verdict"] == "optimal"


def test_a_second_run_on_the_device_is_refused_and_says_by_whom(
    state_dir: Path, polythrottle: Command
) -> None:
    # The first run stops itself (SIGSTOP) in the middle of a trial, holding the device.
    first = subprocess.Popen(
        [
            *(sys.executable, "-c", DRIVER, "started", str(int(signal.SIGSTOP)), "6"),
            *("tune", "--latency-slo", "50ms", *NANO),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "POLYTHROTTLE_STATE_DIR": str(state_dir)},
    )
    try:
        os.waitid(os.P_PID, first.pid, os.WSTOPPED | os.WNOWAIT)
        ran = polythrottle("tune", "--latency-slo", "50ms", *NANO)
        assert ran.code == 1
        assert f"process {first.pid}" in ran.err
        assert "in use" in ran.err
    finally:
        first.kill()
        first.wait()
    assert polythrottle("tune", "--latency-slo", "50ms", *NANO).code == 0


def test_resume_after_the_time_ran_out_goes_on(polythrottle: Command) -> None:
    command = ("tune", "--latency-slo", "50ms", *NANO, "--json", "--max-time", "250s")
    short = polythrottle(*command).json
    assert short["state"] == "exhausted"
    resumed = polythrottle(*command, "--resume").json
    assert resumed["study"] == short["study"]
    assert resumed["search"]["n_trials"] > short["search"]["n_trials"]
