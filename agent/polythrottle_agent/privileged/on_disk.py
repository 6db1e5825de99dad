"""Safekeeping on disk, for a process that writes the device itself: journal and audit log."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from polythrottle.configuration import Level
from polythrottle.errors import DeviceBusyError
from polythrottle_agent.audit import AuditLog
from polythrottle_agent.locking import DeviceLock
from polythrottle_agent.ports import ControlError, Originals
from polythrottle_agent.privileged.journal import Journal, Owner


class OnDisk:
    """Originals stand in the journal before the first write, each write in the audit log before it is made.

    `owner` is whom the journal and the log name; the helper changes it with each lease. `exclusive`: take the
    writer's lock with the device, for a process that does not hold it anyway. `knobs` are the device's own;
    others, such as a server's batch size, end with their server, and nobody could put them back later.
    """

    def __init__(
        self,
        journal: Journal,
        audit: AuditLog,
        device_id: str,
        owner: Owner,
        *,
        exclusive: bool = True,
        knobs: Collection[str] | None = None,
    ) -> None:
        self.journal = journal
        self.audit = audit
        self.device_id = device_id
        self.owner = owner
        self._knobs = None if knobs is None else frozenset(knobs)
        self._lock = writer_lock(journal.directory, device_id) if exclusive else None
        self._is_locked = False

    def pending(self) -> Originals:
        """
        Raises:
            DeviceBusyError: another process writes the device, or somebody's configuration is kept on it.
            StateError: the journal is damaged.
        """
        self._acquire()
        entry = self.journal.read()
        if entry is None:
            return {}
        if entry.kept is not None:
            raise DeviceBusyError(
                f"{entry.owner} keeps a configuration on the device since {entry.written_at} ({entry.kept}); "
                "run polythrottle restore first."
            )
        return entry.originals

    def take(self, originals: Originals) -> Originals:
        self._acquire()
        ours = {knob: x for knob, x in originals.items() if self._knobs is None or knob in self._knobs}
        return {**originals, **self.journal.add(self.device_id, self.owner, ours).originals}

    def writing(self, event: str, knob: str, old: Level | None, new: Level, reason: str) -> None:
        """
        Raises:
            ControlError: the audit log cannot be written, so the device may not be.
        """
        try:
            self.audit.write(event, self.owner, reason, knob, old, new)
        except OSError as error:
            raise ControlError(
                f"the audit log {self.audit.path} cannot be written ({error.strerror or error})"
            ) from error

    def release(self, back: Sequence[str]) -> None:
        self.journal.forget(back)
        if self._lock is not None and self._is_locked:
            self._lock.__exit__(None, None, None)
            self._is_locked = False

    def keep(self, for_s: float | None, reason: str) -> bool:
        """Until somebody restores: the journal stays. Nobody is there to end it after a time."""
        if for_s is not None:
            return False
        self.journal.mark_kept(reason)
        return True

    def _acquire(self) -> None:
        if self._lock is not None and not self._is_locked:
            self._lock.__enter__()
            self._is_locked = True


def writer_lock(directory: Path, device_id: str) -> DeviceLock:
    """Held by whoever writes the device: the helper for its whole life, or root's run without a helper."""
    return DeviceLock(directory / "writer", device_id)
