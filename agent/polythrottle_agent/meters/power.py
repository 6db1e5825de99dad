"""Meters that poll power, and meters that read an energy counter at both ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from polythrottle.clock import Clock
from polythrottle.measurement import Provenance, Scope, Unavailable
from polythrottle_agent.meters.estimate import mean_power
from polythrottle_agent.meters.sampler import Sampler, Samples
from polythrottle_agent.ports import ControlError, EnergyWindow

PERIOD_S = 0.1
"""10 readings a second: more than a sensor that averages over 0.4 s has to say, and next to no load."""

MAX_FAILED_SHARE = 0.2


@dataclass(frozen=True)
class About:
    """What a meter says about itself."""

    name: str
    scope: Scope
    provenance: Provenance = Provenance.MEASURED


@dataclass(frozen=True)
class PowerReading:
    """One reading in W, with the step between readings at this load; 0: not known."""

    watts: float
    resolution_w: float = 0.0


class _Described:
    def __init__(self, about: About) -> None:
        self._about = about

    @property
    def name(self) -> str:
        return self._about.name

    @property
    def scope(self) -> Scope:
        return self._about.scope

    @property
    def provenance(self) -> Provenance:
        return self._about.provenance


class PowerMeter(_Described):
    """Energy from power that is read in a thread of its own.

    Args:
        read: one reading; raises ControlError where the sensor gives none.
        averaging_s: what the hardware averages one reading over, asked at the start of each window.
    """

    def __init__(
        self,
        about: About,
        read: Callable[[], PowerReading],
        averaging_s: Callable[[], float],
        clock: Clock,
        period_s: float = PERIOD_S,
    ) -> None:
        super().__init__(about)
        self._averaging_s = averaging_s
        self._window_averaging_s = 0.0
        self._sampler: Sampler[PowerReading] = Sampler(read, clock, period_s, about.name)

    def begin(self) -> None:
        self._window_averaging_s = self._averaging_s()
        self._sampler.begin()

    def so_far(self) -> EnergyWindow | Unavailable:
        return self._energy(self._sampler.so_far())

    def end(self) -> EnergyWindow | Unavailable:
        return self._energy(self._sampler.end())

    def _energy(self, samples: Samples[PowerReading] | None) -> EnergyWindow | Unavailable:
        if samples is None or samples.ended_s is None:
            return Unavailable("the meter's window was never opened")
        window_s = samples.ended_s - samples.began_s
        n = len(samples.values)
        if samples.n_failed > MAX_FAILED_SHARE * (n + samples.n_failed):
            return Unavailable(
                f"{self.name}: {samples.n_failed} of {n + samples.n_failed} readings failed, "
                f"the last because {samples.last_failure}"
            )
        if not n:
            return Unavailable(f"{self.name}: {samples.last_failure or 'not one reading came'}")
        estimate = mean_power(
            samples.times_s,
            [reading.watts for reading in samples.values],
            samples.began_s,
            samples.ended_s,
            self._window_averaging_s,
            max(reading.resolution_w for reading in samples.values),
        )
        if isinstance(estimate, Unavailable):
            return Unavailable(f"{self.name}: {samples.last_failure or estimate.reason}")
        error = estimate.standard_error_w
        return EnergyWindow(estimate.mean_w * window_s, None if error is None else error * window_s, window_s)


@dataclass(frozen=True)
class Counter:
    """One cumulative energy counter.

    Args:
        read_j: joules since some moment; raises ControlError.
        range_j: it starts again at 0 above this; None: it never does, so a decrease is a restart.
        step_j: the least change it shows. tick_s: how often it is updated.
    """

    name: str
    read_j: Callable[[], float]
    range_j: float | None
    step_j: float
    tick_s: float


class CounterMeter(_Described):
    """The sum of energy counters that do not overlap.

    Read at both ends of a window, and in between often enough to see every wrap.
    """

    def __init__(
        self, about: About, counters: Sequence[Counter], clock: Clock, period_s: float = 1.0
    ) -> None:
        super().__init__(about)
        self._counters = tuple(counters)
        self._clock = clock
        self._sampler: Sampler[tuple[float, ...]] = Sampler(self._read, clock, period_s, about.name)
        self._first: tuple[float, tuple[float, ...]] | str | None = None

    def _read(self) -> tuple[float, ...]:
        return tuple(counter.read_j() for counter in self._counters)

    def begin(self) -> None:
        try:
            self._first = (self._clock.now(), self._read())
        except ControlError as error:
            self._first = str(error)
            return
        self._sampler.begin()

    def so_far(self) -> EnergyWindow | Unavailable:
        return self._energy(self._first, self._sampler.so_far())

    def end(self) -> EnergyWindow | Unavailable:
        first, self._first = self._first, None
        return self._energy(first, self._sampler.end())

    def _energy(
        self, first: tuple[float, tuple[float, ...]] | str | None, samples: Samples[tuple[float, ...]] | None
    ) -> EnergyWindow | Unavailable:
        if first is None:
            return Unavailable("the meter's window was never opened")
        if isinstance(first, str):
            return Unavailable(f"{self.name}: {first}")
        began_s, opening = first
        ended_s = self._clock.now()
        try:
            closing = self._read()
        except ControlError as error:
            return Unavailable(f"{self.name}: {error}")
        window_s = ended_s - began_s
        if window_s <= 0:
            return Unavailable("the meter's window has no length")
        readings = [opening, *(samples.values if samples is not None else ()), closing]
        total, steps = 0.0, 0.0
        for i, counter in enumerate(self._counters):
            energy = _total(counter, [reading[i] for reading in readings])
            if energy is None:
                return Unavailable(f"{self.name}: the counter {counter.name} started again in the window")
            total += energy
            steps = math.hypot(steps, counter.step_j, counter.tick_s * energy / window_s)
        # Each end falls anywhere between two updates: a uniform error at both, of variance tick² / 12 each.
        return EnergyWindow(total, steps / math.sqrt(6.0) if steps > 0 else None, window_s)


def _total(counter: Counter, readings: Sequence[float]) -> float | None:
    total = 0.0
    for before, after in pairwise(readings):
        if after < before:
            if counter.range_j is None:
                return None
            after += counter.range_j
        total += after - before
    return total


class NoMeter(_Described):
    """Stands where nothing can be metered, and says why. Never 0 J."""

    def __init__(self, reason: str, provenance: Provenance = Provenance.MEASURED) -> None:
        super().__init__(About("none", Scope.BOARD, provenance))
        self.reason = reason

    def begin(self) -> None:
        """There is nothing to open."""

    def so_far(self) -> EnergyWindow | Unavailable:
        return Unavailable(self.reason)

    def end(self) -> EnergyWindow | Unavailable:
        return Unavailable(self.reason)
