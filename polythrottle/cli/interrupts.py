"""Ctrl-C: once ends after the running trial, twice ends now. The device is put back either way."""

from __future__ import annotations

import signal
import sys
from types import FrameType, TracebackType
from typing import Any

AFTER_TRIAL = "\nStopping after this trial (press Ctrl-C again to stop now)."
NOW = "\nStopping now; the device is being put back."


class Interrupts:
    """While entered, SIGINT and SIGTERM set flags instead of raising: no write, no restore is cut in two.

    SIGTERM and a second SIGINT stop at the next step of the executor.
    """

    def __init__(self) -> None:
        self.after_trial = False
        self.now = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._received)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _received(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.after_trial or number == signal.SIGTERM:
            self.now = True
        self.after_trial = True
        print(NOW if self.now else AFTER_TRIAL, file=sys.stderr, flush=True)
