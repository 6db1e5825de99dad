"""Every write, fsync, rename and request of a run, killed before and after, one at a time."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.crash_campaign import victims
from benchmarks.crash_campaign.children import CRASHED, KillAt, ask, ended, spawn, wait_until
from benchmarks.crash_campaign.targets import Target, Watch
from polythrottle.errors import StateError
from polythrottle_agent.ports import Originals
from polythrottle_agent.privileged.client import HelperClient, HelperError
from polythrottle_agent.privileged.journal import Journal, boot_id

RESTORE_S = 20.0


@dataclass
class Row:
    """One line of the table."""

    board: str
    killed: str
    kills: int = 0
    changed: int = 0
    lost: int = 0
    details: list[str] = field(default_factory=list)


@dataclass
class Site:
    """One board with a state directory, and what it looked like before anybody came."""

    target: Target
    directory: Path

    def __post_init__(self) -> None:
        self.state = self.directory / "state"
        self.socket = self.directory / "helper.sock"
        self.log = self.directory / "log"

        self.before: Mapping[str, str] = {}
        self.originals: Originals = {}

    def fresh(self) -> None:
        """As before the first run. What the board shows now is what it has to show at the end."""
        shutil.rmtree(self.state, ignore_errors=True)
        self.state.mkdir(parents=True)
        self.log.unlink(missing_ok=True)
        now = dict(self.target.state())
        if now == self.before:
            return
        self.before = now
        self.originals = ask(
            lambda: {k: dict(c.save()) for k, c in self.target.discover(nobody, self.state).controls.items()},
            self.log,
        )

    @property
    def is_back(self) -> bool:
        return dict(self.target.state()) == self.before

    def differences(self) -> str:
        now: Mapping[str, str] = self.target.state()
        return ", ".join(
            f"{name}: {self.before.get(name)} -> {now.get(name)}"
            for name in sorted({*now, *self.before})
            if now.get(name) != self.before.get(name)
        )

    def originals_are_safe(self) -> bool:
        """Whether the journal can put back whatever is changed now.

        A helper that lives goes on while we look: it may put the board back, and drop the journal, between
        our look at the one and at the other. So the board is looked at again before anything counts as lost.
        """
        return self.is_back or self._journal_holds_originals() or self.is_back

    def _journal_holds_originals(self) -> bool:
        try:
            entry = Journal(self.state, boot_id(self.target.root)).read()
        except StateError:
            return False
        return entry is not None and all(
            self.originals.get(knob) == dict(state) for knob, state in entry.originals.items()
        )

    def put_back(self) -> int:
        """What systemd does after a crash."""
        return ended(spawn(victims.restore(self.target, self.state, nobody), self.log))

    def judge(self, row: Row, where: str) -> None:
        """Count what is wrong after the restore."""
        if not wait_until(lambda: self.is_back, 1.0):
            row.changed += 1
            row.details.append(f"{row.board}, {where}: left changed: {self.differences()}")


def nobody(step: str) -> None:
    """No watch."""


def kill_everywhere(site: Site, seed: int, stride: int = 1) -> Iterator[Row]:
    """All victims on one board. With a stride above 1 only every so many steps, for a quick look."""
    yield _kill_direct(site, seed, stride)
    yield _kill_restore(site, seed, stride)
    yield _kill_helper(site, seed, stride)
    yield _kill_client(site, seed, stride)


def _count(site: Site, make: Callable[[Watch], Callable[[], int]]) -> int:
    """How many steps a run has that nobody kills."""

    def run() -> int:
        watch = KillAt()
        code = make(watch)()
        if code != 0:
            raise RuntimeError(f"the undisturbed run ended with {code}")
        return len(watch.seen)

    return int(ask(run, site.log))


def _kill_direct(site: Site, seed: int, stride: int) -> Row:
    row = Row(site.target.name, "run as root")
    site.fresh()
    steps = _count(site, lambda w: victims.direct(site.target, site.state, seed, w, site.target.trials))
    for step in range(0, steps, stride):
        site.fresh()
        _expect_killed(
            spawn(victims.direct(site.target, site.state, seed, KillAt(step), site.target.trials), site.log),
            site,
            row,
        )
        row.lost += not site.originals_are_safe()
        site.put_back()
        site.judge(row, f"step {step}")
    return row


def _kill_restore(site: Site, seed: int, stride: int) -> Row:
    """The journal of a killed run is there, and the restore itself is killed; then the next one succeeds."""
    row = Row(site.target.name, "restore")
    half = _steps_to_half(site, seed)

    def leave_changed() -> None:
        site.fresh()
        ended(
            spawn(victims.direct(site.target, site.state, seed, KillAt(half), site.target.trials), site.log)
        )

    leave_changed()
    steps = _count(site, lambda w: victims.restore(site.target, site.state, w))
    for step in range(0, steps, stride):
        leave_changed()
        _expect_killed(spawn(victims.restore(site.target, site.state, KillAt(step)), site.log), site, row)
        row.lost += not site.originals_are_safe()
        site.put_back()
        site.judge(row, f"step {step}")
    return row


def _steps_to_half(site: Site, seed: int) -> int:
    site.fresh()
    return _count(site, lambda w: victims.direct(site.target, site.state, seed, w, site.target.trials)) // 2


def _kill_helper(site: Site, seed: int, stride: int) -> Row:
    """The helper dies at each of its steps while a client runs; the next helper puts the board back."""
    row = Row(site.target.name, "helper")
    step = 0
    while True:
        site.fresh()
        pid = spawn(victims.helper(site.target, site.state, site.socket, KillAt(step)), site.log)
        if not wait_until(lambda: listens(site), RESTORE_S):
            raise RuntimeError(f"the helper does not start; see {site.log}")
        ended(spawn(victims.client(site.socket, seed, nobody, site.target.trials), site.log))
        if _runs(pid):
            # This run has no such step.
            stop(pid)
            site.judge(row, "no kill")
            return row
        _expect_killed(pid, site, row)
        row.lost += not site.originals_are_safe()
        site.put_back()
        site.judge(row, f"step {step}")
        step += stride


def _kill_client(site: Site, seed: int, stride: int) -> Row:
    """The client dies before and after each request; the helper puts the board back by itself."""
    row = Row(site.target.name, "client of the helper")
    site.fresh()
    pid = spawn(victims.helper(site.target, site.state, site.socket, nobody), site.log)
    if not wait_until(lambda: listens(site), RESTORE_S):
        raise RuntimeError(f"the helper does not start; see {site.log}")
    steps = _count(site, lambda w: victims.client(site.socket, seed, w, site.target.trials))
    for step in range(0, steps, stride):
        _expect_killed(
            spawn(victims.client(site.socket, seed, KillAt(step), site.target.trials), site.log), site, row
        )
        row.lost += not site.originals_are_safe()
        # The helper answers again, and without a lease, only when it has put the board back.
        wait_until(lambda: not _held(site), RESTORE_S, step_s=0.03)
        site.judge(row, f"step {step}")
    stop(pid)
    return row


def _expect_killed(pid: int, site: Site, row: Row) -> None:
    status = ended(pid)
    if status == CRASHED or status >= 0:
        raise RuntimeError(
            f"{row.board}, {row.killed}: the victim ended with {status} instead of being killed; its log:\n"
            + site.log.read_text()[-3000:]
        )
    row.kills += 1


def _runs(pid: int) -> bool:
    """Whether a child goes on running; it is not reaped.

    A process that is killed closes its sockets a moment before it can be waited for.
    """
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return not wait_until(lambda: os.waitid(os.P_PID, pid, options) is not None, 1.0)


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    ended(pid)


def listens(site: Site) -> bool:
    try:
        HelperClient(site.socket, answer_s=10).close()
    except HelperError:
        return False
    return True


def _held(site: Site) -> bool:
    try:
        with HelperClient(site.socket, answer_s=30) as client:
            return client.request("status")["lease"] is not None
    except HelperError:  # such as: too many connections in a short time
        return True
