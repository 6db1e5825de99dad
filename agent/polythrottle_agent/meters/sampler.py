"""Reads something again and again while a window is open, in a thread of its own.

A sensor may block for as long as it converts, and the thread that serves queries must not wait for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from polythrottle.clock import Clock
from polythrottle_agent.ports import ControlError

T = TypeVar("T")

STUCK_S = 3.0
"""A sensor that has not answered for so long is taken to be hung."""


@dataclass
class Samples(Generic[T]):
    """What one window saw. Times are those of the clock, at the middle of each read."""

    began_s: float
    ended_s: float | None = None
    times_s: list[float] = field(default_factory=list)
    values: list[T] = field(default_factory=list)
    n_failed: int = 0
    last_failure: str | None = None
    waiting_since_s: float | None = None


class Sampler(Generic[T]):
    """Calls `read` every `period_s` between `begin` and `end`.

    `read` may raise ControlError: that reading is missing, and the next one is tried. The clock must pass by
    itself: under a virtual one nothing happens between two sleeps.
    """

    def __init__(self, read: Callable[[], T], clock: Clock, period_s: float, name: str) -> None:
        self._read = read
        self._clock = clock
        self._period_s = period_s
        self._name = name
        self._lock = threading.Lock()
        self._samples: Samples[T] | None = None
        self._thread: threading.Thread | None = None
        self._seen_by_thread: Samples[T] | None = None

    @property
    def is_open(self) -> bool:
        return self._samples is not None

    def begin(self) -> None:
        """Open a window; one that is open already is dropped."""
        before = self._samples
        if before is not None:
            before.ended_s = self._clock.now()
        samples: Samples[T] = Samples(self._clock.now())
        self._samples = samples
        stuck_since_s = self._stuck_since_s(samples.began_s)
        if stuck_since_s is not None:
            # Another thread would only hang beside the first one.
            samples.last_failure = (
                f"{self._name} has not answered for {samples.began_s - stuck_since_s:.0f} s"
            )
            return
        self._thread = threading.Thread(
            target=self._run, args=(samples,), name=f"sampler {self._name}", daemon=True
        )
        self._seen_by_thread = samples
        self._thread.start()

    def so_far(self) -> Samples[T] | None:
        """A copy of what the open window has seen until now; None where none is open."""
        samples = self._samples
        if samples is None:
            return None
        with self._lock:
            return replace(
                samples,
                ended_s=self._clock.now(),
                times_s=list(samples.times_s),
                values=list(samples.values),
            )

    def end(self) -> Samples[T] | None:
        """Close the window; None where none was open. Does not wait for the thread, which ends by itself."""
        samples, self._samples = self._samples, None
        if samples is None:
            return None
        with self._lock:
            samples.ended_s = self._clock.now()
            waiting_s = samples.waiting_since_s
            if waiting_s is not None and samples.ended_s - waiting_s > STUCK_S:
                samples.last_failure = (
                    f"{self._name} has not answered for {samples.ended_s - waiting_s:.0f} s"
                )
        return samples

    def _stuck_since_s(self, now_s: float) -> float | None:
        if self._thread is None or self._seen_by_thread is None or not self._thread.is_alive():
            return None
        waiting_s = self._seen_by_thread.waiting_since_s
        return waiting_s if waiting_s is not None and now_s - waiting_s > STUCK_S else None

    def _run(self, samples: Samples[T]) -> None:
        clock, due_s = self._clock, samples.began_s
        while samples.ended_s is None:
            asked_s = clock.now()
            samples.waiting_since_s = asked_s
            reading: list[T] = []
            failure = None
            try:
                reading.append(self._read())
            except ControlError as error:
                failure = str(error)
            answered_s = clock.now()
            samples.waiting_since_s = None
            with self._lock:
                if samples.ended_s is not None:
                    return
                for value in reading:
                    samples.times_s.append(0.5 * (asked_s + answered_s))
                    samples.values.append(value)
                if failure is not None:
                    samples.n_failed += 1
                    samples.last_failure = failure
            # Late by more than a period: skip what was missed instead of catching up.
            due_s = max(due_s + self._period_s, answered_s)
            clock.sleep(due_s - clock.now())
