"""Ctrl-C: once ends after the running trial, twice ends now. The device is put back either way."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

AFTER_TRIAL = "\nStopping after this trial (press Ctrl-C again to stop now)."
NOW = "\nStopping now; the device is being put back."


class Interrupts:
    """While entered, signals set flags instead of raising: no write, no restore is cut in two.

    SIGTERM, SIGHUP (the terminal was closed, the connection lost) and a second SIGINT stop at the next step
    of the executor, or in the middle of one that says it may be cut short. `after_trial_text` and `now_text`
    are what the user is told.
    """

    def __init__(self, after_trial_text: str = AFTER_TRIAL, now_text: str = NOW) -> None:
        self.after_trial = False
        self.now = False
        self._may_raise = False
        self._texts = (after_trial_text, now_text)
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # Whoever started us under nohup wants us to outlive the terminal.
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._before[number] = signal.signal(number, self._received)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            # None: it was not Python that had set one.
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within it, what stops now raises: for a stretch that only waits and measures, and writes nothing.

        Raises:
            KeyboardInterrupt: the user wants to stop now.
        """
        self._may_raise = True
        try:
            if self.now:
                raise KeyboardInterrupt
            yield
        finally:
            self._may_raise = False

    def _received(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.after_trial or number != signal.SIGINT:
            self.now = True
        self.after_trial = True
        # An error raised here would surface in the middle of whatever runs now, be it a restore: the terminal
        # may be gone (EIO, EPIPE), or this signal may have come in the middle of another print.
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            print(self._texts[self.now], file=sys.stderr, flush=True)
        if self.now and self._may_raise:
            self._may_raise = False  # once is enough: what cleans up after it must not be cut short too
            raise KeyboardInterrupt
