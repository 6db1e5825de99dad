"""The device in the helper's custody: what is set, what is kept, what is owed back, and who moved it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from polythrottle.clock import Clock
from polythrottle.configuration import Level
from polythrottle.errors import InvalidInputError, StateError
from polythrottle_agent.ports import ControlError, Originals
from polythrottle_agent.privileged.journal import Owner
from polythrottle_agent.privileged.keeper import Keeper, NotRestored
from polythrottle_agent.privileged.on_disk import OnDisk
from polythrottle_agent.reconcile import ALWAYS_YIELD, INTERVAL_S, Reconciler

log = logging.getLogger(__name__)

RETRY_FIRST_S = 1.0
RETRY_LAST_S = 60.0
DRIFTS_REMEMBERED = 20


@dataclass(frozen=True)
class Kept:
    """A configuration that outlives its client. `deadline_s` None: until somebody restores."""

    owner: Owner
    settings: Mapping[str, Level]
    reason: str
    deadline_s: float | None


@dataclass
class Owed:
    """Restores that failed so far, and when to try them again."""

    problems: tuple[NotRestored, ...] = ()
    next_try_s: float = 0.0
    wait_s: float = RETRY_FIRST_S


@dataclass
class Custody:
    """Knows nothing of clients: the service says on whose behalf. `clock` is monotonic."""

    keeper: Keeper
    on_disk: OnDisk
    clock: Clock
    reconciler: Reconciler
    kept: Kept | None = None
    drifts: tuple[str, ...] = ()
    settings: dict[str, Level] = field(default_factory=dict)
    owed: Owed = field(default_factory=Owed)
    _next_look_s: float = 0.0
    _mode_when_taken: str | None = None

    def __post_init__(self) -> None:
        self._helper = self.on_disk.owner

    def take(self, owner: Owner) -> Originals:
        """Make the originals safe on somebody's behalf.

        Raises:
            ControlError: an original cannot be read.
            StateError: they cannot be made safe.
        """
        self.on_disk.owner = owner
        try:
            originals = self.keeper.take()
        except BaseException:
            self.on_disk.owner = self._helper
            raise
        self.settings = {}
        self.drifts = ()
        self.owed = Owed()
        self._mode_when_taken = self.reconciler.power_mode()
        self.log("lease", owner, "granted")
        return originals

    def apply(self, settings: Mapping[str, Level], reason: str) -> None:
        """
        Raises:
            ControlError: the device refused one; some may have been set.
        """
        # Before the write: one that fails half-way leaves nobody's settings in force.
        self.settings = {k: v for k, v in self.settings.items() if k not in settings}
        self.keeper.apply(settings, reason)
        self.settings |= settings
        self._watch()

    def put_one_back(self, knob: str, state: Mapping[str, str]) -> None:
        """
        Raises:
            ControlError: it reads back as something else.
        """
        self.settings.pop(knob, None)
        self._watch()
        problems = self.keeper.restore_to({knob: state}, "the client put it back")
        if problems:
            raise ControlError(problems[0].reason)

    def keep(self, owner: Owner, for_s: float | None, reason: str) -> None:
        """From now on the settings outlive their owner."""
        self.on_disk.journal.mark_kept(reason)
        deadline_s = None if for_s is None else self.clock.now() + for_s
        self.kept = Kept(owner, dict(self.settings), reason, deadline_s)
        self.reconciler.want(self.settings)
        self._next_look_s = self.clock.now() + INTERVAL_S
        self.log("kept", owner, reason)

    def put_back(self, reason: str) -> tuple[NotRestored, ...]:
        """Put back everything the journal holds. What fails stays in it and is tried again by `tick`."""
        self.kept = None
        self.settings = {}
        self.reconciler.want({})
        try:
            entry = self.on_disk.journal.read()
            originals = self.keeper.held_originals() if entry is None else entry.originals
            problems = self.keeper.put_back(originals, reason)
        except StateError as error:
            # The journal cannot be used; what this process remembers is put back all the same.
            log.error("%s", error)
            problems = self.keeper.put_back_from_memory(reason)
        for problem in problems:
            log.error("%s", problem)
        if not problems:
            self.keeper.let_go()
        self._tell_mode_change()
        wait_s = min(self.owed.wait_s * 2, RETRY_LAST_S) if self.owed.problems else RETRY_FIRST_S
        self.owed = Owed(problems, self.clock.now() + wait_s, wait_s) if problems else Owed()
        self.on_disk.owner = self._helper
        return problems

    def tick(self, is_held: bool) -> None:
        """What time brings: the end of what is kept, another try of what is owed, a look for drift."""
        now_s = self.clock.now()
        if self.kept is not None and self.kept.deadline_s is not None and now_s >= self.kept.deadline_s:
            self.put_back("its time was up")
        if self.owed.problems and not is_held and now_s >= self.owed.next_try_s:
            self.put_back("tried again")
        if self.settings and now_s >= self._next_look_s:
            self._next_look_s = now_s + INTERVAL_S
            self._reconcile()

    def _watch(self) -> None:
        self.reconciler.want(self.settings, ALWAYS_YIELD)
        self._next_look_s = self.clock.now() + INTERVAL_S

    def _tell_mode_change(self) -> None:
        """The originals are the old mode's: somebody has to set the new one's again, and it is not us."""
        before, self._mode_when_taken = self._mode_when_taken, None
        now = self.reconciler.power_mode()
        if before is not None and before != now:
            text = (
                f"the power mode changed ({before} → {now}) while the device was held; the originals that "
                "were put back are the old mode's, so run nvpmodel -m again"
            )
            log.warning("%s", text)
            self.drifts = (*self.drifts, text)
            self.log("mode_changed", self.on_disk.owner, text)

    def _reconcile(self) -> None:
        finding = self.reconciler.check()
        owner = self.on_disk.owner
        news = [str(drift) for drift in finding.drifts]
        self.drifts = (*self.drifts, *news)[-DRIFTS_REMEMBERED:]
        for text in news:
            log.warning("drift: %s", text)
            self.log("drift", owner, text)
        for drift in finding.yielded:
            self.settings.pop(drift.knob, None)
            text = f"left to {drift.who.value}: {drift.detail or 'it insists'}"
            self.log("yielded", owner, text, drift.knob)
        if finding.reapply:
            try:
                self.keeper.apply(finding.reapply, "written again after drift")
            except (ControlError, InvalidInputError) as error:
                log.error("drift could not be mended: %s", error)

    def log(self, event: str, owner: Owner, reason: str, knob: str | None = None) -> None:
        """For events that write nothing to the device: a full disk must not stop them."""
        try:
            self.on_disk.audit.write(event, owner, reason, knob)
        except OSError as error:
            log.error("%s could not be logged: %s", event, error)
