"""A control that cannot block its caller: a driver that hangs keeps nothing else from its original."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TypeVar

from polythrottle.configuration import Level
from polythrottle_agent.ports import Control, ControlError
from polythrottle_agent.privileged.caps import WithinCaps

T = TypeVar("T")

DEFAULT_PATIENCE_S = 8.0
"""Longer than any control polls for its read-back, shorter than the helper's watchdog."""


def _nobody_asks() -> None:
    """No watchdog."""


class PatientControl:
    """Gives up waiting on the control behind it after `patience_s`.

    The call that hangs is left alone: a write inside the kernel cannot be taken back. Until it returns,
    nothing else is asked of the control, so it cannot come after a later write. `alive` is called before
    and after each wait: several drivers that hang one after the other are no process that hangs.
    """

    def __init__(
        self,
        control: Control,
        patience_s: float = DEFAULT_PATIENCE_S,
        alive: Callable[[], None] = _nobody_asks,
    ) -> None:
        self._control = control
        self._patience_s = patience_s
        self._alive = alive
        self._hanging: threading.Thread | None = None

    @property
    def knob(self) -> str:
        return self._control.knob

    @property
    def levels(self) -> tuple[Level, ...]:
        return self._call(lambda: self._control.levels)

    def save(self) -> Mapping[str, str]:
        return self._call(self._control.save)

    def apply(self, level: Level) -> None:
        self._call(lambda: self._control.apply(level))

    def accepted(self) -> Level:
        return self._call(self._control.accepted)

    def observed(self) -> Level:
        return self._call(self._control.observed)

    def restore(self, saved: Mapping[str, str]) -> None:
        self._call(lambda: self._control.restore(saved))

    def within_caps(self, saved: Mapping[str, str]) -> Mapping[str, str]:
        control = self._control
        return self._call(lambda: control.within_caps(saved)) if isinstance(control, WithinCaps) else saved

    def _call(self, action: Callable[[], T]) -> T:
        if self._hanging is not None and self._hanging.is_alive():
            raise ControlError(f"{self.knob}: an earlier call to the driver still hangs")
        self._hanging = None
        results: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(action())
            except BaseException as error:  # handed on to the caller below
                errors.append(error)

        thread = threading.Thread(target=run, name=f"control {self.knob}", daemon=True)
        self._alive()
        thread.start()
        thread.join(self._patience_s)
        self._alive()
        if errors:
            raise errors[0]
        if results:
            return results[0]
        self._hanging = thread
        raise ControlError(f"{self.knob}: the driver did not answer within {self._patience_s:g} s")
