"""How an NVIDIA GPU is: its temperature, and event reasons that nobody asked for, through NVML."""

from __future__ import annotations

from polythrottle.clock import Clock
from polythrottle.measurement import Unavailable
from polythrottle_agent.guard.health import WatchedHealth
from polythrottle_agent.nvml.gpu import Gpu
from polythrottle_agent.nvml.session import NvmlError, NvmlSession
from polythrottle_agent.nvml.watch import GpuWatch
from polythrottle_agent.ports import Seen

GPU_SENSOR = 0
"""nvmlTemperatureSensors_t: the die."""


class _Reasons:
    """A witness of event reasons alone. That the power limit holds the clock down may be what was set."""

    def __init__(self, watch: GpuWatch) -> None:
        self._watch = watch

    def begin(self) -> None:
        """
        Raises:
            NvmlError: the GPU cannot be read.
        """
        self._watch.begin()

    def end(self) -> Seen:
        """
        Raises:
            NvmlError: nothing could be read in the window.
        """
        watched = self._watch.end()
        if watched is None or watched.graphics_mhz is None:
            raise NvmlError("the GPU's event reasons could not be read", None)
        return Seen({}, tuple(f"throttled: {found}" for found in watched.evidence if found.spoils))


def nvidia_health(uuid: str, clock: Clock, session: NvmlSession | None = None) -> WatchedHealth:
    """The health of the GPU with this UUID."""
    gpu = Gpu(session if session is not None else NvmlSession(), uuid)

    def temperature() -> float | Unavailable:
        try:
            found = gpu.optional("nvmlDeviceGetTemperature", GPU_SENSOR)
        except NvmlError as error:
            return Unavailable(str(error))
        return (
            Unavailable("the driver does not tell the GPU's temperature") if found is None else float(found)
        )

    return WatchedHealth(temperature, _Reasons(GpuWatch(gpu, clock)), clock)
