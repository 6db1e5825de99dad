"""The device in the helper's custody: what is set, what is kept, what is owed back, and who moved it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from polythrottle.clock import Clock
from polythrottle.configuration import Level
from polythrottle.errors import InvalidInputError, StateError
from polythrottle_agent.ports import ControlError, Originals
from polythrottle_agent.privileged.caps import ModeChange
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


@dataclass(frozen=True)
class Owed:
    """What is not done yet, and when to try it again.

    `problems` are restores that failed. `why`: the journal cannot be used. `unforgotten` are the originals in
    it that are back; they are never written again, because what somebody set since is theirs.
    """

    problems: tuple[NotRestored, ...] = ()
    unforgotten: Originals = field(default_factory=dict)
    why: str = ""
    next_try_s: float = 0.0
    wait_s: float = RETRY_FIRST_S

    def __bool__(self) -> bool:
        return bool(self.problems or self.why)

    @property
    def sentences(self) -> tuple[str, ...]:
        told = tuple(str(problem) for problem in self.problems)
        return (*told, self.why) if self.why else told


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

    def __post_init__(self) -> None:
        self._helper = self.on_disk.owner

    def take(self, owner: Owner) -> Originals:
        """Make the originals safe on somebody's behalf.

        Raises:
            ControlError: an original cannot be read.
            StateError: they cannot be made safe, or the journal holds old ones that it cannot be rid of.
        """
        if self.owed.unforgotten:
            # Else they would be put back again, over whatever was set since.
            self._forget(self.owed.unforgotten, drop=not self.owed.problems)
            self.owed = Owed(self.owed.problems)
        self.on_disk.owner = owner
        try:
            originals = self.keeper.take()
        except BaseException:
            self.on_disk.owner = self._helper
            raise
        self.settings = {}
        self.drifts = ()
        self.owed = Owed()
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

    def put_one_back(self, knob: str, state: Mapping[str, str]) -> Mapping[str, str]:
        """
        Returns:
            What was put back: the state, within the caps of a power mode that changed since.

        Raises:
            ControlError: it reads back as something else.
        """
        self.settings.pop(knob, None)
        self._watch()
        problems = self.keeper.restore_to({knob: state}, "the client put it back")
        if problems:
            raise ControlError(problems[0].reason)
        held = self.keeper.held.get(knob)
        return state if held is None else held.put_back

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
        done = self.owed.unforgotten
        known, why = self._known_originals()
        originals = self.to_put_back(known)
        change = self.on_disk.changed_mode() if originals else None
        problems = self.keeper.restore_to(originals, reason)
        for problem in problems:
            log.error("%s", problem)
        failed = {problem.knob for problem in problems}
        back = {**done, **{knob: state for knob, state in originals.items() if knob not in failed}}
        if (known or done) and (back or not why):
            why = self._try_to_forget(back, drop=not problems)
        self.keeper.let_go(back)
        if change is not None:
            self._tell_mode_change(change)
        wait_s = min(self.owed.wait_s * 2, RETRY_LAST_S) if self.owed else RETRY_FIRST_S
        owed = Owed(problems, back if why else {}, why, self.clock.now() + wait_s, wait_s)
        self.owed = owed if owed else Owed()
        self.on_disk.owner = self._helper
        return problems

    def to_put_back(self, known: Originals | None = None) -> Originals:
        """Originals that are not back yet, by the journal; by memory where that cannot be read."""
        known = self._known_originals()[0] if known is None else known
        return {knob: state for knob, state in known.items() if knob not in self.owed.unforgotten}

    def _known_originals(self) -> tuple[Originals, str]:
        """What has to be put back; and why the journal cannot say, where this process's memory has to."""
        why = ""
        try:
            entry = self.on_disk.journal.read()
        except StateError as error:
            log.error("%s", error)
            entry, why = None, str(error)
        return self.keeper.held_originals() if entry is None else entry.originals, why

    def _try_to_forget(self, back: Originals, *, drop: bool) -> str:
        """Empty, or why the journal still holds what is back."""
        try:
            self._forget(back, drop=drop)
        except StateError as error:
            log.error("%s", error)
            return str(error)
        return ""

    def _forget(self, back: Originals, *, drop: bool) -> None:
        """
        Args:
            drop: nothing else is left to put back, so the journal is not needed, whatever it holds.

        Raises:
            StateError: the journal still holds these originals.
        """
        if drop:
            self.on_disk.journal.drop()
        else:
            self.on_disk.journal.forget(back)

    def tick(self, is_held: bool) -> None:
        """What time brings: the end of what is kept, another try of what is owed, a look for drift."""
        now_s = self.clock.now()
        if self.kept is not None and self.kept.deadline_s is not None and now_s >= self.kept.deadline_s:
            self.put_back("its time was up")
        if self.owed and not is_held and now_s >= self.owed.next_try_s:
            self.put_back("tried again")
        if self.settings and now_s >= self._next_look_s:
            self._next_look_s = now_s + INTERVAL_S
            self._reconcile()

    def _watch(self) -> None:
        self.reconciler.want(self.settings, ALWAYS_YIELD)
        self._next_look_s = self.clock.now() + INTERVAL_S

    def _tell_mode_change(self, change: ModeChange) -> None:
        """The originals are the old mode's: somebody has to set the new one's again, and it is not us."""
        held = "; ".join(str(held) for held in self.keeper.held.values())
        text = (
            f"the power mode changed ({change.before} → {change.now}) while the device was held; the "
            f"originals that were put back are the old mode's, so run nvpmodel -m again"
            f"{f' ({held})' if held else ''}"
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
