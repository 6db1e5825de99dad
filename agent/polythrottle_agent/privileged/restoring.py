"""Putting devices back without a helper: `polythrottle restore` as root, and the helper's own last act."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from polythrottle.clock import Clock
from polythrottle.errors import DeviceBusyError, PolythrottleError, StateError
from polythrottle_agent.audit import AuditLog
from polythrottle_agent.discovery import Discovered
from polythrottle_agent.identity import gpu_of, nvidia_id
from polythrottle_agent.limits import OperatorLimits
from polythrottle_agent.marks import power_mode_of
from polythrottle_agent.ports import Control, ControlError
from polythrottle_agent.privileged.files import Files
from polythrottle_agent.privileged.journal import (
    MACHINE_KNOBS,
    Entry,
    Journal,
    Owner,
    boot_id,
    kept_entries,
)
from polythrottle_agent.privileged.keeper import Keeper, NotRestored, Pending, restore_order
from polythrottle_agent.privileged.on_disk import OnDisk, writer_lock
from polythrottle_agent.privileged.patient import PatientControl

Discover = Callable[..., Discovered]


@dataclass(frozen=True)
class Restored:
    """One device that had a journal.

    `knobs` are back; `problems` say, in sentences, what is not, or why its journal still stands.
    """

    device: str
    knobs: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preview:
    """What a restore of one device would do. `problem`: why it could not be looked at, or only in part."""

    device: str
    entry: Entry
    pending: tuple[Pending, ...]
    problem: str | None = None


@dataclass(frozen=True)
class _Reached:
    """A device of a journal, and what of it is here now. `problem`: why not all of it is."""

    entry: Entry
    found: Discovered | None
    controls: Mapping[str, Control]
    problem: str | None

    @property
    def label(self) -> str:
        is_it = self.found is not None and self.found.identity.id == self.entry.device_id
        return self.found.identity.label if is_it and self.found is not None else self.entry.device_id


@dataclass(frozen=True)
class Restoring:
    """Every device of the machine below `root` that has a journal of this boot in `directory`."""

    root: Path
    directory: Path
    discovering: Discover
    clock: Clock
    files: Files

    def devices(self, gpu: str | None = None) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
        """The entries there are, of one GPU only where one is named; and journals that cannot be used.

        Raises:
            ControlError: no GPU is called that.
            StateError: the directory cannot be read.
        """
        boot = boot_id(self.root)
        if gpu is None:
            return kept_entries(self.directory, boot)
        journal = Journal(self.directory, boot, nvidia_id(gpu.strip()), self.files)
        if not journal.path.exists():
            journal = Journal(self.directory, boot, self.id_of(gpu), self.files)
        try:
            entry = journal.read()
        except StateError as error:
            return (), (str(error),)
        return (() if entry is None else (entry,)), ()

    def id_of(self, gpu: str) -> str:
        """The id of the GPU that is called that: by PCI address, or by the start of its UUID.

        Raises:
            ControlError: there is none.
        """
        return self._discover(gpu).identity.id

    def put_back(
        self, reason: str, gpu: str | None = None, *, but: str | None = None, only: str | None = None
    ) -> tuple[Restored, ...]:
        """Put back whatever the journals hold, kept or not; each forgets what is back.

        Args:
            but, only: the id of a device that somebody else sees to; of the only one that is wanted.
        """
        entries, damaged = self.devices(gpu)
        wanted = [e for e in entries if e.device_id != but and only in (None, e.device_id)]
        done = [self._put_back(self._reach(entry), reason) for entry in wanted]
        if damaged and only is None:
            done.append(Restored("", (), damaged))
        return tuple(done)

    def preview(self, gpu: str | None = None) -> Iterator[Preview]:
        """What `put_back` would do. Only reads."""
        for entry in self.devices(gpu)[0]:
            reached = self._reach(entry)
            pending = self._keeper(reached).compare(entry.originals)
            yield Preview(reached.label, entry, pending, reached.problem)

    def _reach(self, entry: Entry) -> _Reached:
        """The device that the originals are of. Its id is compared before anything of it can be written."""
        why = ""
        # Where the GPU itself is gone, the machine around it is still here.
        for gpu in dict.fromkeys((gpu_of(entry.device_id), None)):
            try:
                found = self._discover(gpu)
            except (ControlError, PolythrottleError) as error:
                why = why or f" ({error})"
                continue
            if found.identity.id == entry.device_id:
                return _Reached(entry, found, found.controls, None)
            of_the_machine = MACHINE_KNOBS if gpu_of(entry.device_id) is not None else ()
            controls = {knob: found.controls[knob] for knob in of_the_machine if knob in found.controls}
            return _Reached(entry, found, controls, f"{entry.device_id} is not found here now{why}")
        return _Reached(entry, None, {}, f"{entry.device_id} cannot be reached now{why}")

    def _discover(self, gpu: str | None) -> Discovered:
        return self.discovering(
            self.root, clock=self.clock, gpu=gpu, state_dir=self.directory, limits=OperatorLimits()
        )

    def _put_back(self, reached: _Reached, reason: str) -> Restored:
        entry, found = reached.entry, reached.found
        if found is not None and not found.is_writable:
            return Restored(
                reached.label,
                (),
                (f"This user may not set the clocks of {reached.label}; run sudo polythrottle restore.",),
            )
        try:
            with writer_lock(self.directory, entry.device_id):
                return self._put_back_alone(reached, reason)
        except (DeviceBusyError, StateError) as error:
            return Restored(reached.label, (), (str(error),))

    def _put_back_alone(self, reached: _Reached, reason: str) -> Restored:
        journal = Journal(self.directory, boot_id(self.root), reached.entry.device_id, self.files)
        entry = journal.read()
        if entry is None:
            return Restored(reached.label)
        keeper = self._keeper(reached, journal)
        not_restored = keeper.restore_to(entry.originals, reason)
        problems = [] if reached.problem is None else [f"{reached.problem}."]
        problems += [str(problem) for problem in not_restored]
        back = _without(entry, not_restored)
        try:
            journal.forget(back)
        except StateError as error:
            problems.append(str(error))
        return Restored(reached.label, back, tuple(problems))

    def _keeper(self, reached: _Reached, journal: Journal | None = None) -> Keeper:
        found, device_id = reached.found, reached.entry.device_id
        keeping = OnDisk(
            journal or Journal(self.directory, boot_id(self.root), device_id, self.files),
            AuditLog(self.directory, self.files),
            Owner.this_process(),
            exclusive=False,
            power_mode=lambda: None if found is None else power_mode_of(found.sysfs),
        )
        controls = {name: PatientControl(control) for name, control in reached.controls.items()}
        return Keeper(controls, self.clock, keeping)


def _without(entry: Entry, failed: tuple[NotRestored, ...]) -> tuple[str, ...]:
    names = {problem.knob for problem in failed}
    return tuple(knob for knob in restore_order(entry.originals) if knob not in names)
