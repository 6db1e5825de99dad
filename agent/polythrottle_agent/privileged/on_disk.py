"""Safekeeping on disk, for a process that writes the device itself: journal and audit log."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from polythrottle.configuration import Level
from polythrottle.errors import DeviceBusyError, StateError
from polythrottle_agent.audit import AuditLog
from polythrottle_agent.locking import DeviceLock
from polythrottle_agent.ports import ControlError, Originals
from polythrottle_agent.privileged.caps import ModeChange
from polythrottle_agent.privileged.journal import Journal, Owner


class OnDisk:
    """Originals stand in the journal before the first write, each write in the audit log before it is made.

    `owner` is whom the journal and the log name; the helper changes it with each lease. `exclusive`: take the
    writer's lock with the device, for a process that does not hold it anyway. `knobs` are the device's own;
    others, such as a server's batch size, end with their server, and nobody could put them back later.
    `power_mode` tells nvpmodel's mode now; None where there is none.
    """

    def __init__(
        self,
        journal: Journal,
        audit: AuditLog,
        owner: Owner,
        *,
        exclusive: bool = True,
        knobs: Collection[str] | None = None,
        power_mode: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.journal = journal
        self.audit = audit
        self.owner = owner
        self._knobs = None if knobs is None else frozenset(knobs)
        self._lock = writer_lock(journal.directory, journal.device_id) if exclusive else None
        self._is_locked = False
        self._power_mode = power_mode
        self._mode_when_saved: str | None = None

    def pending(self) -> Originals:
        """
        Raises:
            DeviceBusyError: another process writes the device, or somebody's configuration is kept on it.
            StateError: the journal is damaged.
        """
        with self._locked():
            entry = self.journal.read()
            if entry is None:
                return {}
            if entry.kept is not None:
                raise DeviceBusyError(
                    f"{entry.owner} keeps a configuration on the device since {entry.written_at} "
                    f"({entry.kept}); run polythrottle restore first."
                )
            return entry.originals

    def take(self, originals: Originals) -> Originals:
        ours = {knob: x for knob, x in originals.items() if self._knobs is None or knob in self._knobs}
        with self._locked():
            entry = self.journal.add(self.owner, ours, self._power_mode())
        self._mode_when_saved = entry.power_mode
        return {**originals, **entry.originals}

    def changed_mode(self) -> ModeChange | None:
        """Whether nvpmodel's mode is another one than when the originals were saved; None where unknown."""
        try:
            entry = self.journal.read()
        except StateError:  # what this process remembers of it still holds
            entry = None
        if entry is not None:
            self._mode_when_saved = entry.power_mode
        before, now = self._mode_when_saved, self._power_mode()
        return None if before is None or now in (None, before) else ModeChange(before, str(now))

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
        try:
            self.journal.forget(back)
        finally:
            self._unlock()

    def keep(self, for_s: float | None, reason: str) -> bool:
        """Until somebody restores: the journal stays. Nobody is there to end it after a time."""
        if for_s is not None:
            return False
        self.journal.mark_kept(reason)
        self._unlock()  # whoever restores may be this very process, such as a guard
        return True

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """The lock stays when all goes well; who is refused holds nothing."""
        if self._lock is not None and not self._is_locked:
            self._lock.__enter__()
            self._is_locked = True
        try:
            yield
        except BaseException:
            self._unlock()
            raise

    def _unlock(self) -> None:
        if self._lock is not None and self._is_locked:
            self._lock.__exit__(None, None, None)
            self._is_locked = False


def writer_lock(directory: Path, device_id: str) -> DeviceLock:
    """Held by whoever writes the device: the helper for its whole life, or root's run without a helper."""
    return DeviceLock(directory / "writer", device_id)
