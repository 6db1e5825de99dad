"""Keeps a device's originals safe while its settings are ours, and puts them back."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from polythrottle.clock import Clock
from polythrottle.configuration import Level, format_level
from polythrottle.errors import InvalidInputError, did_you_mean
from polythrottle_agent.ports import Control, ControlError, Originals, Safekeeping
from polythrottle_agent.privileged.caps import (
    Held,
    KnowsMode,
    ModeChange,
    TellsRestored,
    WithinCaps,
    format_state,
)

log = logging.getLogger(__name__)

RANGES = (("gpu_min_freq_mhz", "gpu_freq_mhz"),)
"""Pairs of knobs that are the two ends of one range: a kernel may refuse a minimum above the maximum."""

RESTORE_ORDER = (
    "cpu_cores",  # a clock domain whose cores are all offline refuses writes
    "mem_freq_mhz",
    "gpu_freq_mhz",
    "gpu_min_freq_mhz",
    "cpu_freq_mhz",
    "power_limit_w",
)

RESTORE_PASSES = 2
"""The second pass reaches what was refused while another control still stood in its way."""

READ_BACK_S = 0.5
READ_BACK_STEP_S = 0.05
"""A kernel may take a clock limit over later than it returns from the write."""


@dataclass(frozen=True)
class NotRestored:
    """A control whose original could not be put back, and why."""

    knob: str
    original: Mapping[str, str]
    reason: str

    def __str__(self) -> str:
        return f"{self.knob} was not restored ({format_state(self.original)}): {self.reason}"


@dataclass(frozen=True)
class Pending:
    """What a restore would put back. `now` is None where it cannot be read; `problem` says why.

    `wanted` is the original, within the caps of the power mode where that changed since.
    """

    knob: str
    now: Mapping[str, str] | None
    original: Mapping[str, str]
    wanted: Mapping[str, str]
    problem: str | None = None

    @property
    def differs(self) -> bool:
        return self.now is None or dict(self.now) != dict(self.wanted)


class InMemory:
    """Safekeeping for a device that ends with its process, such as an emulated board: nothing to survive."""

    def pending(self) -> Originals:
        return {}

    def take(self, originals: Originals) -> Originals:
        return originals

    def writing(self, event: str, knob: str, old: Level | None, new: Level, reason: str) -> None: ...

    def release(self, back: Sequence[str]) -> None: ...

    def keep(self, for_s: float | None, reason: str) -> bool:  # noqa: ARG002
        if for_s is not None:
            return False
        raise InvalidInputError("This device ends with its process, so nothing on it can be kept; use --for.")


class Keeper:
    """All controls of one device, with their originals.

    `take` before anything else; then `apply` and `restore` in any order, any number of times.
    """

    def __init__(
        self, controls: Mapping[str, Control], clock: Clock, safekeeping: Safekeeping | None = None
    ) -> None:
        self.controls = controls
        self.safekeeping: Safekeeping = safekeeping if safekeeping is not None else InMemory()
        self.held: dict[str, Held] = {}
        """What the last restore of each knob held within the caps of a new power mode."""
        self._clock = clock
        self._originals: dict[str, Mapping[str, str]] | None = None

    @property
    def originals(self) -> Originals:
        """What was saved, by knob.

        Raises:
            RuntimeError: nothing was taken yet.
        """
        if self._originals is None:
            raise RuntimeError("a device must be taken before it is used")
        return self._originals

    def take(self) -> Originals:
        """Read every original and make it safe. Nothing is written to the device before that.

        What an interrupted run left behind is put back first; where that fails, its originals stand.

        Raises:
            ControlError: an original cannot be read.
            StateError: the originals cannot be made safe.
        """
        for problem in self.recover():
            log.error("%s", problem)
        present = {name: dict(control.save()) for name, control in self.controls.items()}
        self._originals = dict(self.safekeeping.take(present))
        return self._originals

    def recover(self) -> tuple[NotRestored, ...]:
        """Put back what an interrupted run left behind; nothing where there is nothing."""
        left = self.safekeeping.pending()
        return self.put_back(left, "left by an interrupted run") if left else ()

    def put_back(self, originals: Originals, reason: str) -> tuple[NotRestored, ...]:
        """Put these originals back and let go of the ones that are."""
        problems = self._restore(originals, reason)
        failed = {problem.knob for problem in problems}
        self.safekeeping.release([knob for knob in originals if knob not in failed])
        return problems

    def apply(self, settings: Mapping[str, Level], reason: str = "") -> None:
        """Ask for these levels, leaving other knobs alone.

        Raises:
            InvalidInputError: a knob that the device does not have, or a level it does not take.
            ControlError: the device refused one; some may have been set.
        """
        for name, level in settings.items():
            if name not in self.originals or name not in self.controls:
                known = did_you_mean(name, self.controls)
                raise InvalidInputError(f"The device has no knob {name!r}; {known}")
            if level not in self.controls[name].levels:
                raise InvalidInputError(f"{name} has no level {format_level(level)}.")
        for name in write_order(settings, self.controls):
            self._apply_one(name, settings[name], reason)

    def _apply_one(self, name: str, level: Level, reason: str) -> None:
        control = self.controls[name]
        try:
            old: Level | None = control.accepted()
        except ControlError:  # unreadable now is no reason not to write; the log then says old: unknown
            old = None
        self.safekeeping.writing("apply", name, old, level, reason)
        try:
            control.apply(level)
        except ControlError as refusal:
            self.safekeeping.writing("refused", name, old, level, str(refusal))
            raise ControlError(f"{name} = {format_level(level)}: {refusal}") from refusal

    def restore(self, reason: str = "the run ended") -> tuple[NotRestored, ...]:
        """Put every original back; may be called any number of times. Returns what could not be."""
        return self._restore(self.originals, reason)

    def restore_to(self, states: Originals, reason: str) -> tuple[NotRestored, ...]:
        """Put controls into states they were saved in, be they originals or not."""
        return self._restore(states, reason)

    def held_originals(self) -> Originals:
        """The originals in this process's memory; none where nothing is taken."""
        return {} if self._originals is None else self._originals

    def let_go(self, back: Iterable[str]) -> None:
        """Forget the originals of these knobs in memory: they are back, and no longer ours."""
        done = set(back)
        left = {knob: state for knob, state in self.held_originals().items() if knob not in done}
        self._originals = left or None

    def release(self, reason: str = "the run ended") -> tuple[NotRestored, ...]:
        """Put everything back and let go of the device."""
        return self.put_back(self.originals, reason)

    def compare(self, originals: Originals) -> tuple[Pending, ...]:
        """What a restore of these would change. Only reads."""
        change = self._mode_change()
        return tuple(self._pending(knob, originals[knob], change) for knob in restore_order(originals))

    def _pending(self, knob: str, original: Mapping[str, str], change: ModeChange | None) -> Pending:
        now, problem = self._state(knob)
        try:
            wanted = self._expected(knob, self._wanted(knob, original, change))
        except Exception as error:  # whatever a driver raises; the caller reports it by its words
            return Pending(knob, now, original, original, problem or f"{type(error).__name__}: {error}")
        return Pending(knob, now, original, wanted, problem)

    def _mode_change(self) -> ModeChange | None:
        return self.safekeeping.changed_mode() if isinstance(self.safekeeping, KnowsMode) else None

    def _wanted(self, knob: str, original: Mapping[str, str], change: ModeChange | None) -> Mapping[str, str]:
        """Nobody's cap is exceeded: an original of another power mode is held within the present one's."""
        control = self.controls.get(knob)
        if change is None or not isinstance(control, WithinCaps):
            return original
        return dict(control.within_caps(original))

    def _expected(self, knob: str, wanted: Mapping[str, str]) -> Mapping[str, str]:
        """What has to read back: where a helper writes, only its answer tells what it held within caps."""
        control = self.controls.get(knob)
        return dict(control.restored_as(wanted)) if isinstance(control, TellsRestored) else wanted

    def _state(self, knob: str) -> tuple[Mapping[str, str] | None, str | None]:
        control = self.controls.get(knob)
        if control is None:
            return None, "no such control is found here now"
        try:
            return dict(control.save()), None
        except Exception as error:  # whatever a driver raises; the caller reports it by its words
            return None, f"{type(error).__name__}: {error}"

    def _restore(self, originals: Originals, reason: str) -> tuple[NotRestored, ...]:
        problems: dict[str, NotRestored] = {}
        left = restore_order(originals)
        change = self._mode_change()
        for _ in range(RESTORE_PASSES):
            problems = {}
            for knob in left:
                problem = self._restore_one(knob, originals[knob], change, reason)
                if problem is not None:
                    problems[knob] = NotRestored(knob, originals[knob], problem)
            # Putting one control back may have moved another that was right before.
            for pending in self.compare({k: originals[k] for k in originals if k not in problems}):
                if pending.differs:
                    why = pending.problem or f"it reads back {format_state(pending.now or {})}"
                    problems[pending.knob] = NotRestored(pending.knob, pending.original, why)
            left = restore_order(problems)
            if not problems:
                break
        return tuple(problems[knob] for knob in restore_order(problems))

    def _restore_one(
        self, knob: str, original: Mapping[str, str], change: ModeChange | None, reason: str
    ) -> str | None:
        """Restore one control and read it back. None, or the reason why it is not as it was."""
        now, problem = self._state(knob)
        control = self.controls.get(knob)
        if control is None:
            return problem
        try:
            wanted = self._wanted(knob, original, change)
            if dict(wanted) != dict(original) and change is not None:
                reason = f"{reason}; held within power mode {change.now}, it was {change.before}"
            # Written even where it reads back right: some drivers forget, or never tell, what they hold.
            self._note("restore", knob, now, wanted, reason)
            control.restore(wanted)
            wanted = self._expected(knob, wanted)
        except Exception as error:  # whatever a driver raises: the next control is restored all the same
            problem = f"{type(error).__name__}: {error}"
            self._note("not_restored", knob, now, original, problem)
            return problem
        problem = self._read_back(knob, wanted)
        if problem is None:
            self._tell_held(Held(knob, original, wanted, change))
        return problem

    def _tell_held(self, held: Held) -> None:
        """Once, however often the knob is restored."""
        if dict(held.put_back) == dict(held.original):
            self.held.pop(held.knob, None)
        elif self.held.get(held.knob) != held:
            self.held[held.knob] = held
            log.warning("%s", held)

    def _read_back(self, knob: str, wanted: Mapping[str, str]) -> str | None:
        deadline_s = self._clock.now() + READ_BACK_S
        while True:
            now, problem = self._state(knob)
            if now == dict(wanted):
                return None
            if self._clock.now() >= deadline_s:
                problem = problem or f"it reads back {format_state(now or {})}"
                self._note("not_restored", knob, now, wanted, problem)
                return problem
            self._clock.sleep(READ_BACK_STEP_S)

    def _note(
        self, event: str, knob: str, now: Mapping[str, str] | None, original: Mapping[str, str], reason: str
    ) -> None:
        """A log that cannot be written must not keep a device from its originals."""
        old = None if now is None else format_state(now)
        try:
            self.safekeeping.writing(event, knob, old, format_state(original), reason)
        except (OSError, ControlError) as error:
            log.error("%s of %s could not be logged: %s", event, knob, error)


def restore_order(knobs: Iterable[str]) -> list[str]:
    """Knobs in the order that meets the fewest refusals; ones without a place come last."""
    place = {knob: index for index, knob in enumerate(RESTORE_ORDER)}
    return sorted(knobs, key=lambda knob: place.get(knob, len(place)))


def write_order(settings: Mapping[str, Level], controls: Mapping[str, Control]) -> list[str]:
    """Cores first. Raising a range: its maximum first; lowering it: its minimum. Both ends stay ordered."""
    order = sorted(settings, key=lambda knob: knob != "cpu_cores")
    for low, high in RANGES:
        if low not in settings or high not in settings:
            continue
        now, wanted = controls[high].accepted(), settings[high]
        raising = isinstance(wanted, str) or (not isinstance(now, str) and wanted >= now)
        first, second = (high, low) if raising else (low, high)
        order.remove(second)
        order.insert(order.index(first) + 1, second)
    return order


def state_key(state: Mapping[str, str]) -> str:
    """One text for equal states."""
    return json.dumps(dict(state), sort_keys=True)
