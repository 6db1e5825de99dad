"""A restore after the power mode was changed: nobody's cap is exceeded, the new mode's included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@runtime_checkable
class WithinCaps(Protocol):
    """What a control may offer beside `Control`, where a power mode caps what it writes."""

    def within_caps(self, saved: Mapping[str, str]) -> Mapping[str, str]:
        """A saved state, held within what the power mode allows now.

        Every clock in it that lies above the mode's cap comes back as the highest level below the cap, a
        minimum never above its maximum, and a CPU that the mode switches off stays off. All else, and
        everything where nothing is above a cap, is returned as it was saved. Only reads.

        Raises:
            ControlError: the caps, or the levels below them, cannot be read.
        """


@runtime_checkable
class TellsRestored(Protocol):
    """A control whose writes somebody else makes, who may hold a state within the caps by themselves."""

    def restored_as(self, saved: Mapping[str, str]) -> Mapping[str, str]:
        """What the last `restore` of this state put back; the state itself where nothing else was told."""


@dataclass(frozen=True)
class ModeChange:
    """Another power mode than the one under which the originals were saved."""

    before: str
    now: str


@runtime_checkable
class KnowsMode(Protocol):
    """Safekeeping that keeps nvpmodel's mode with the originals."""

    def changed_mode(self) -> ModeChange | None:
        """None: the mode is the same, or cannot be told."""


@dataclass(frozen=True)
class Held:
    """An original that came back lower than it was saved: the present power mode allows no more."""

    knob: str
    original: Mapping[str, str]
    put_back: Mapping[str, str]
    change: ModeChange | None

    def __str__(self) -> str:
        pairs = ", ".join(
            f"{name} = {value}, not {self.original.get(name)}"
            for name, value in self.put_back.items()
            if value != self.original.get(name)
        )
        if self.change is None:
            return f"{self.knob} was put back within the power mode's caps: {pairs}"
        return (
            f"{self.knob} was put back within the caps of power mode {self.change.now} "
            f"(it was {self.change.before}): {pairs}"
        )


def format_state(state: Mapping[str, str]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in state.items())
