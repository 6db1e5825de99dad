"""One NVIDIA GPU as discovery needs it: controls, meter and witness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from polythrottle.clock import Clock
from polythrottle.configuration import Level
from polythrottle_agent.controls.nvidia import (
    GPU_KNOB,
    MEM_KNOB,
    nvidia_controls,
    nvidia_notes,
)
from polythrottle_agent.limits import OperatorLimits
from polythrottle_agent.meters.nvidia import NvidiaCounterMeter, NvidiaPowerMeter, nvidia_meter
from polythrottle_agent.nvml.gpu import find_gpu
from polythrottle_agent.nvml.session import NvmlSession
from polythrottle_agent.ports import Control, ControlError, Meter, Seen, Witness


class SeveralGpus(ControlError):
    """Nobody said which GPU is meant. `uuids` are the ones there are; how to name one differs by command."""

    def __init__(self, uuids: Sequence[str], how: str = "--device auto:{}") -> None:
        self.uuids = tuple(uuids)
        super().__init__(
            f"there are {len(self.uuids)} GPUs ({', '.join(self.uuids)}); name one, as in "
            f"{how.format(self.uuids[0])}"
        )

    def named_by(self, how: str) -> SeveralGpus:
        """The same, in the words of a command; `how` has {} where the UUID goes."""
        return SeveralGpus(self.uuids, how)


@dataclass(frozen=True)
class FoundGpu:
    uuid: str
    controls: Mapping[str, Control]
    meter: Meter
    witness: Witness
    notes: tuple[str, ...]


def look_at_gpu(session: NvmlSession, wanted: str | None, limits: OperatorLimits, clock: Clock) -> FoundGpu:
    """The GPU that is named, or the only one.

    Raises:
        SeveralGpus: none is named.
        ControlError: none or several fit the name, or it cannot be read.
    """
    if wanted is not None:
        uuid = find_gpu(session, wanted)
    else:
        uuids = session.gpus()
        if not uuids:
            raise ControlError("the NVIDIA driver lists no GPU")
        if len(uuids) > 1:
            raise SeveralGpus(uuids)
        uuid = uuids[0]
    meter = nvidia_meter(session, uuid, clock)
    return FoundGpu(
        uuid,
        nvidia_controls(session, uuid, limits),
        meter,
        GpuWitness(meter),
        nvidia_notes(session, uuid),
    )


class GpuWitness:
    """Tells what the meter's own watch saw: it looks at clocks and event reasons beside power."""

    def __init__(self, meter: NvidiaCounterMeter | NvidiaPowerMeter) -> None:
        self._meter = meter
        self._before: object = None

    def begin(self) -> None:
        self._before = self._meter.watched

    def end(self) -> Seen:
        watched = self._meter.watched
        if watched is None or watched is self._before:
            return Seen({})
        clocks: dict[str, Level] = {}
        if watched.graphics_mhz is not None:
            clocks[GPU_KNOB] = watched.graphics_mhz
        if watched.memory_mhz is not None:
            clocks[MEM_KNOB] = watched.memory_mhz
        return Seen(clocks, tuple(f"throttled: {evidence}" for evidence in watched.evidence))
