"""Putting a device back without a helper: `polythrottle restore` as root, and the helper's own last act."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from polythrottle.clock import Clock
from polythrottle_agent.audit import AuditLog
from polythrottle_agent.ports import Control
from polythrottle_agent.privileged.journal import Entry, Journal, Owner
from polythrottle_agent.privileged.keeper import Keeper, NotRestored, Pending, restore_order
from polythrottle_agent.privileged.on_disk import OnDisk, writer_lock
from polythrottle_agent.privileged.patient import PatientControl


@dataclass(frozen=True)
class Restored:
    """`entry` is what the journal held, None where there was nothing to put back."""

    entry: Entry | None
    not_restored: tuple[NotRestored, ...] = ()

    @property
    def knobs(self) -> tuple[str, ...]:
        """The knobs that are back."""
        failed = {problem.knob for problem in self.not_restored}
        originals = {} if self.entry is None else self.entry.originals
        return tuple(knob for knob in restore_order(originals) if knob not in failed)


def restore_from_journal(
    journal: Journal, audit: AuditLog, controls: Mapping[str, Control], clock: Clock, reason: str
) -> Restored:
    """Put back whatever the journal holds, kept or not; the journal forgets what is back.

    Raises:
        DeviceBusyError: another process writes the device, such as the helper.
        StateError: the journal is damaged or cannot be written.
    """
    entry = journal.read()
    if entry is None:
        return Restored(None)
    with writer_lock(journal.directory, entry.device_id):
        entry = journal.read()
        if entry is None:
            return Restored(None)
        keeping = OnDisk(journal, audit, entry.device_id, Owner.this_process(), exclusive=False)
        keeper = Keeper(_patient(controls), clock, keeping)
        return Restored(entry, keeper.put_back(entry.originals, reason))


def what_restore_would_do(
    journal: Journal, controls: Mapping[str, Control], clock: Clock
) -> tuple[Entry | None, tuple[Pending, ...]]:
    """For a dry run. Only reads."""
    entry = journal.read()
    if entry is None:
        return None, ()
    return entry, Keeper(_patient(controls), clock).compare(entry.originals)


def _patient(controls: Mapping[str, Control]) -> dict[str, Control]:
    return {name: PatientControl(control) for name, control in controls.items()}
