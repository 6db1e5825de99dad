"""Holding a device: one run at a time, originals saved before the first write and put back at the end."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import TracebackType
from typing import Protocol

from polythrottle.clock import Clock
from polythrottle.configuration import Level
from polythrottle_agent.locking import DeviceLock
from polythrottle_agent.ports import Control, Originals, Safekeeping
from polythrottle_agent.privileged.keeper import Keeper, NotRestored

log = logging.getLogger(__name__)

__all__ = ["DeviceLock", "HeldDevice", "NotRestored"]


class Holdable(Protocol):
    """What it takes to hold a device: a `Device`, or one without meter and workload."""

    @property
    def controls(self) -> Mapping[str, Control]: ...

    @property
    def clock(self) -> Clock: ...

    @property
    def safekeeping(self) -> Safekeeping | None: ...


class HeldDevice:
    """A device whose settings are ours until the `with` block ends.

    Every control's original is saved on entry, and on a real device made safe on disk, before anything can
    be written. On exit, whatever happened, each is restored by itself: one that fails does not keep the
    others from their originals. What could not be restored is logged as an error and stays in
    `not_restored`.
    """

    def __init__(self, device: Holdable) -> None:
        self.device = device
        self.not_restored: tuple[NotRestored, ...] = ()
        self._keeper = Keeper(device.controls, device.clock, device.safekeeping)
        self._kept = False

    def __enter__(self) -> HeldDevice:
        """
        Raises:
            ControlError: an original cannot be read; nothing was written then.
            PolythrottleError: the originals cannot be made safe, or somebody else holds the device.
        """
        self._keeper.take()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._kept:
            return
        self.not_restored = self._keeper.release()
        for problem in self.not_restored:
            log.error("%s", problem)

    @property
    def originals(self) -> Originals:
        """What was saved, by knob.

        Raises:
            RuntimeError: used outside its `with` block, so nothing was saved.
        """
        try:
            return self._keeper.originals
        except RuntimeError:
            raise RuntimeError("HeldDevice must be entered before it is used") from None

    def apply(self, settings: Mapping[str, Level], reason: str = "trial") -> None:
        """Ask for these levels, leaving other knobs alone.

        Raises:
            InvalidInputError: a knob that the device does not have, or a level it does not take.
            ControlError: the device refused one; some may have been set.
        """
        _ = self.originals
        self._keeper.apply(settings, reason)

    def restore(self) -> tuple[NotRestored, ...]:
        """Put every original back; may be called any number of times. Returns what could not be."""
        _ = self.originals
        self.not_restored = self._keeper.restore()
        return self.not_restored

    def keep(self, for_s: float | None, reason: str) -> bool:
        """Let the settings outlive the `with` block; see `Safekeeping.keep`."""
        self._kept = self._keeper.safekeeping.keep(for_s, reason)
        return self._kept
