"""A terminal that is closed in the middle of `tune`: the study ends well, and says nothing to nobody."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from polythrottle.cli.interrupts import Interrupts
from polythrottle.reporting.console import make_console, print_text
from tests.e2e.conftest import NANO, Command
from tests.e2e.test_interruption import DRIVER


def test_tune_stops_saves_and_ends_by_itself(state_dir: Path, polythrottle: Command) -> None:
    ours, theirs = pty.openpty()

    def take_the_terminal() -> None:
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    # It stops itself (SIGSTOP) as the 4th trial starts, its spinner on the screen; a closed terminal sends
    # SIGHUP and SIGCONT.
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", DRIVER, "started", str(int(signal.SIGSTOP)), "4"),
            *("tune", "--latency-slo", "50ms", "--strategy", "random", "--max-trials", "50", *NANO),
        ],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, preexec_fn=take_the_terminal,
        env={**os.environ, "POLYTHROTTLE_STATE_DIR": str(state_dir), "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    try:
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        os.close(ours)
        process.wait(60)
    finally:
        process.kill()
        process.wait()
    study = polythrottle("studies", "export", "last").json
    assert study["state"] == "cancelled"
    assert len(study["trials"]) < 10
    assert {trial["state"] for trial in study["trials"]} <= {"completed", "infeasible", "cancelled"}


@pytest.fixture
def closed_terminal() -> int:
    """The far end of a terminal that is gone: writing to it is EIO."""
    ours, theirs = pty.openpty()
    os.close(ours)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        os.write(theirs, b"x")
    return theirs


def test_a_screen_without_a_terminal_is_quiet(closed_terminal: int) -> None:
    with open(closed_terminal, "w", encoding="utf-8", buffering=1) as gone:
        console = make_console(gone)
        print_text(console, "anything")
        with console.status("working"):
            print_text(console, "more")
        console.print("and more")
        # What Python still holds back must not trouble the end of the test.
        os.dup2(os.open(os.devnull, os.O_WRONLY), closed_terminal)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_that_cannot_be_answered_is_obeyed(
    closed_terminal: int, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    with open(closed_terminal, "w", encoding="utf-8", buffering=1) as gone:
        monkeypatch.setattr(sys, "stderr", gone)
        with Interrupts() as interrupts:
            os.kill(os.getpid(), number)
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), closed_terminal)
    assert interrupts.now


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            os.kill(os.getpid(), signal.SIGHUP)
        assert not interrupts.after_trial
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
