"""Watches one GPU during a window: clocks, power and event reasons at 10 Hz, in a thread of its own.

Clocks and reasons mean something only under load, so they are sampled while the workload runs. A sample is
four short calls into the driver.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from polythrottle.clock import Clock
from polythrottle.measurement import Unavailable
from polythrottle_agent.meters.estimate import PowerEstimate, mean_power
from polythrottle_agent.meters.sampler import Sampler, Samples
from polythrottle_agent.nvml.events import ClockEvidence, ReasonSample, judged
from polythrottle_agent.nvml.gpu import (
    FIELD_POWER_AVERAGE,
    FIELD_POWER_INSTANT,
    GRAPHICS,
    MEMORY,
    Gpu,
)
from polythrottle_agent.nvml.session import NvmlError

PERIOD_S = 0.1
RESOLUTION_W = 1e-3

AVERAGED_OVER_S = 1.0
"""What an averaging power reading looks back over (nvml.h)."""

REFRESHED_AFTER_S = 0.1
"""How old an instantaneous reading may be: published as 20 ms on V100, about 100 ms on A100 and H100."""


@dataclass(frozen=True)
class PowerSource:
    """Where power is read. `covers_s`: how far back a reading reaches. `field`: None for GetPowerUsage."""

    name: str
    covers_s: float
    field: int | None

    def read_w(self, gpu: Gpu) -> float | None:
        return gpu.power_usage_w() if self.field is None else gpu.power_field_w(self.field)


def power_source(gpu: Gpu) -> PowerSource | None:
    """The best reading this GPU gives: instantaneous before averaged; None where there is none."""
    usage_covers_s = AVERAGED_OVER_S if gpu.averages_power else REFRESHED_AFTER_S
    candidates = (
        PowerSource("instantaneous power", REFRESHED_AFTER_S, FIELD_POWER_INSTANT),
        PowerSource("1 s average power" if gpu.averages_power else "power", usage_covers_s, None),
        PowerSource("1 s average power", AVERAGED_OVER_S, FIELD_POWER_AVERAGE),
    )
    readable = [source for source in candidates if source.read_w(gpu) is not None]
    return min(readable, key=lambda source: source.covers_s, default=None)


@dataclass(frozen=True)
class Sample:
    """One look at a GPU. None: not supported there."""

    power_w: float | None
    graphics_mhz: float | None
    memory_mhz: float | None
    reasons: int | None


class Watched:
    """A window as it was seen."""

    def __init__(self, samples: Samples[Sample], source: PowerSource | None) -> None:
        self._samples = samples
        self._source = source

    @property
    def problem(self) -> str | None:
        """Why the last reading that failed did; None where none did."""
        return self._samples.last_failure

    @property
    def graphics_mhz(self) -> float | None:
        """The median clock of the window."""
        return _median([s.graphics_mhz for s in self._samples.values])

    @property
    def memory_mhz(self) -> float | None:
        return _median([s.memory_mhz for s in self._samples.values])

    @property
    def evidence(self) -> tuple[ClockEvidence, ...]:
        """Why the clock was held down, if it was."""
        seen = zip(self._samples.times_s, self._samples.values, strict=True)
        return judged(
            [ReasonSample(t - self._samples.began_s, s.reasons) for t, s in seen if s.reasons is not None]
        )

    def mean_power(self, ended_s: float) -> PowerEstimate | Unavailable:
        """Mean power from the window's begin to `ended_s`."""
        seen = zip(self._samples.times_s, self._samples.values, strict=True)
        readings = [(t, s.power_w) for t, s in seen if s.power_w is not None]
        if self._source is None or not readings:
            return Unavailable(self.problem or "no power reading came")
        return mean_power(
            [t for t, _ in readings],
            [w for _, w in readings],
            self._samples.began_s,
            ended_s,
            self._source.covers_s,
            RESOLUTION_W,
        )


class GpuWatch:
    """Samples one GPU between `begin` and `end`. The clock must pass by itself: a thread waits on it."""

    def __init__(self, gpu: Gpu, clock: Clock, period_s: float = PERIOD_S) -> None:
        self._gpu = gpu
        self._source: PowerSource | None = None
        self._source_is_known = False
        self._sampler: Sampler[Sample] = Sampler(self.look, clock, period_s, f"GPU {gpu.uuid}")

    @property
    def source(self) -> PowerSource | None:
        """Where power comes from; None where it cannot be read.

        Raises:
            NvmlError: the GPU cannot be read.
        """
        if not self._source_is_known:
            self._source = power_source(self._gpu)
            self._source_is_known = True
        return self._source

    def begin(self) -> None:
        """Open a window; one that is open already is dropped."""
        _ = self.source
        self._sampler.begin()

    def look(self) -> Sample:
        """One sample, now.

        Raises:
            NvmlError: the GPU cannot be read any more.
        """
        gpu = self._gpu
        return Sample(
            power_w=None if self.source is None else self.source.read_w(gpu),
            graphics_mhz=_float_or_none(gpu.optional("nvmlDeviceGetClockInfo", GRAPHICS)),
            memory_mhz=_float_or_none(gpu.optional("nvmlDeviceGetClockInfo", MEMORY)),
            reasons=_reasons_or_none(gpu),
        )

    def so_far(self) -> Watched | None:
        """What the open window has seen until now; None where none is open."""
        samples = self._sampler.so_far()
        return None if samples is None else Watched(samples, self._source)

    def end(self) -> Watched | None:
        """Close the window; None where none was open."""
        samples = self._sampler.end()
        return None if samples is None else Watched(samples, self._source)


def _median(values: list[float | None]) -> float | None:
    seen = [value for value in values if value is not None]
    return statistics.median(seen) if seen else None


def _float_or_none(value: int | None) -> float | None:
    return None if value is None else float(value)


def _reasons_or_none(gpu: Gpu) -> int | None:
    try:
        return gpu.event_reasons()
    except NvmlError as error:
        if error.is_unsupported:
            return None
        raise
