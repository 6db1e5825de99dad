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
from polythrottle_agent.ports import Originals
from polythrottle_agent.privileged.client import HelperClient, HelperError
from polythrottle_agent.privileged.journal import boot_id, kept_entries

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
        self.originals: dict[str, Originals] = {}
        """By device, in the order of the target's."""
        self._neighbour: Mapping[str, str] | None = None
        self._steps_of_neighbour = 0

    def fresh(self) -> None:
        """As before the first run. What the board shows now is what it has to show at the end."""
        shutil.rmtree(self.state, ignore_errors=True)
        self.state.mkdir(parents=True)
        self.log.unlink(missing_ok=True)
        self._neighbour = None
        now = dict(self.target.state())
        if now == self.before:
            return
        self.before = now
        self.originals = ask(self._saved, self.log)

    def _saved(self) -> dict[str, Originals]:
        saved: dict[str, Originals] = {}
        for gpu in self.target.gpus:
            found = self.target.discover(nobody, self.state, gpu)
            saved[found.identity.id] = {knob: dict(c.save()) for knob, c in found.controls.items()}
        return saved

    @property
    def is_back(self) -> bool:
        return not self._changed()

    @property
    def served_is_back(self) -> bool:
        """The device that the helper serves: the others wait for a restore."""
        return not any(self.target.device_of(name) == 0 for name in self._changed())

    def _changed(self) -> dict[str, str]:
        now: Mapping[str, str] = self.target.state()
        return {
            name: f"{name}: {self.before.get(name)} -> {now.get(name)}"
            for name in sorted({*now, *self.before})
            if now.get(name) != self.before.get(name)
        }

    def differences(self) -> str:
        return ", ".join(self._changed().values())

    # A machine with several devices: the others were left changed by a run that was killed.

    def leave_neighbours_changed(self, seed: int) -> None:
        """Nothing on a board that is alone."""
        others = self.target.gpus[1:]
        if not others:
            return

        def run(watch: Watch) -> Callable[[], int]:
            return victims.direct(self.target, self.state, seed, watch, self.target.trials, others)

        if not self._steps_of_neighbour:
            self._steps_of_neighbour = count_steps(self, run)
        ended(spawn(run(KillAt(self._steps_of_neighbour // 2)), self.log))
        self._neighbour = self._of_neighbours()
        if self.is_back:
            raise RuntimeError("the neighbour was not left changed")

    def _of_neighbours(self) -> Mapping[str, str]:
        return {name: x for name, x in self.target.state().items() if self.target.device_of(name) > 0}

    def judge_neighbours(self, row: Row, where: str) -> None:
        """Whoever serves one device must not have written another."""
        now = self._of_neighbours()
        if self._neighbour is not None and now != self._neighbour:
            row.changed += 1
            row.details.append(f"{row.board}, {where}: another device was written: {now}")

    @property
    def has_neighbours(self) -> bool:
        return self._neighbour is not None

    def originals_are_safe(self) -> bool:
        """Whether the journal can put back whatever is changed now.

        A helper that lives goes on while we look: it may put the board back, and drop the journal, between
        our look at the one and at the other. So the board is looked at again before anything counts as lost.
        """
        return self.is_back or self._journal_holds_originals() or self.is_back

    def _journal_holds_originals(self) -> bool:
        entries, problems = kept_entries(self.state, boot_id(self.target.root))
        held = {entry.device_id for entry in entries}
        changed = {list(self.originals)[self.target.device_of(name)] for name in self._changed()}
        return (
            not problems
            and changed <= held
            and all(
                self.originals[entry.device_id].get(knob) == dict(state)
                for entry in entries
                for knob, state in entry.originals.items()
            )
        )

    def put_back(self) -> int:
        """What systemd does after a crash."""
        return ended(spawn(victims.restore(self.target, self.state, nobody), self.log))

    def judge(self, row: Row, where: str, *, only_served: bool = False) -> None:
        """Count what is wrong after the restore."""
        if not wait_until(lambda: self.served_is_back if only_served else self.is_back, 1.0):
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


def count_steps(site: Site, make: Callable[[Watch], Callable[[], int]]) -> int:
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
    steps = count_steps(site, lambda w: victims.direct(site.target, site.state, seed, w, site.target.trials))
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
    steps = count_steps(site, lambda w: victims.restore(site.target, site.state, w))
    for step in range(0, steps, stride):
        leave_changed()
        _expect_killed(spawn(victims.restore(site.target, site.state, KillAt(step)), site.log), site, row)
        row.lost += not site.originals_are_safe()
        site.put_back()
        site.judge(row, f"step {step}")
    return row


def _steps_to_half(site: Site, seed: int) -> int:
    site.fresh()
    return (
        count_steps(site, lambda w: victims.direct(site.target, site.state, seed, w, site.target.trials)) // 2
    )


def _kill_helper(site: Site, seed: int, stride: int) -> Row:
    """The helper dies at each of its steps while a client runs; the next helper puts the board back."""
    row = Row(site.target.name, "helper")
    step = 0
    while True:
        site.fresh()
        site.leave_neighbours_changed(seed)
        pid = spawn(victims.helper(site.target, site.state, site.socket, KillAt(step)), site.log)
        if not wait_until(lambda: listens(site), RESTORE_S):
            raise RuntimeError(f"the helper does not start; see {site.log}")
        ended(spawn(victims.client(site.socket, seed, nobody, site.target.trials), site.log))
        if _runs(pid):
            # This run has no such step.
            stop(pid)
            site.judge(row, "no kill", only_served=True)
            site.judge_neighbours(row, "no kill")
            put_all_back(site, row, "no kill")
            return row
        _expect_killed(pid, site, row)
        row.lost += not site.originals_are_safe()
        site.judge_neighbours(row, f"step {step}")
        site.put_back()
        site.judge(row, f"step {step}")
        step += stride


def _kill_client(site: Site, seed: int, stride: int) -> Row:
    """The client dies before and after each request; the helper puts the board back by itself."""
    row = Row(site.target.name, "client of the helper")
    site.fresh()
    site.leave_neighbours_changed(seed)
    pid = spawn(victims.helper(site.target, site.state, site.socket, nobody), site.log)
    if not wait_until(lambda: listens(site), RESTORE_S):
        raise RuntimeError(f"the helper does not start; see {site.log}")
    try:
        steps = count_steps(site, lambda w: victims.client(site.socket, seed, w, site.target.trials))
        for step in range(0, steps, stride):
            _expect_killed(
                spawn(victims.client(site.socket, seed, KillAt(step), site.target.trials), site.log),
                site,
                row,
            )
            row.lost += not site.originals_are_safe()
            # The helper answers again, and without a lease, only when it has put the board back.
            wait_until(lambda: not _held(site), RESTORE_S, step_s=0.03)
            site.judge(row, f"step {step}", only_served=True)
            site.judge_neighbours(row, f"step {step}")
    finally:
        # A campaign that fails must not leave a helper behind.
        stop(pid)
    put_all_back(site, row, "at the end")
    return row


def put_all_back(site: Site, row: Row, where: str) -> None:
    """The helper saw to its own device; the others are a restore's."""
    if site.has_neighbours:
        site.put_back()
        site.judge(row, where)


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
