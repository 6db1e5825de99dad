"""One GPU as NVML shows it, in MHz and watts. What is not supported is None, never a zero."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from polythrottle_agent.nvml.session import NvmlError, NvmlSession

GRAPHICS, MEMORY = 0, 2
"""nvmlClockType_t."""

VOLTA, AMPERE = 5, 7
"""nvmlDeviceArchitecture_t."""

UNKNOWN_ARCHITECTURE = 0xFFFFFFFF

FIELD_POWER_AVERAGE, FIELD_POWER_INSTANT = 185, 186
"""Power in mW over the last second (Ampere and later, not GA100), and at the last refresh (all)."""

NVGPU = "(nvgpu)"
"""In the name of a Jetson's GPU: NVML is there and supports nothing. Its clocks are devfreq's."""

GA100 = re.compile(r"\bA(100X?|30X?|800)\b")
"""GA100 boards by product name; they report instantaneous power although they are Amperes."""

MODULE_COUNTERS = re.compile(r"\bG[HB][23]00\b")
"""Grace Hopper and Grace Blackwell: the GPU's counter may cover the whole module (ml-energy/zeus PR 172)."""


@dataclass(frozen=True)
class GpuFacts:
    """What does not change. `architecture` is None where the driver does not say."""

    uuid: str
    name: str
    pci_address: str | None
    architecture: int | None
    driver: str


class Gpu:
    """Reads and writes of one GPU; every failure is an `NvmlError`, whose message is one sentence."""

    def __init__(self, session: NvmlSession, uuid: str) -> None:
        self.session = session
        self.uuid = uuid

    @cached_property
    def facts(self) -> GpuFacts:
        pci = self.optional("nvmlDeviceGetPciInfo")
        architecture = self.optional("nvmlDeviceGetArchitecture")
        return GpuFacts(
            uuid=self.uuid,
            name=str(self.call("nvmlDeviceGetName")),
            pci_address=None if pci is None else _pci(pci.busId),
            architecture=None if architecture in (None, UNKNOWN_ARCHITECTURE) else int(architecture),
            driver=str(self.session.system("nvmlSystemGetDriverVersion")),
        )

    @property
    def is_nvgpu(self) -> bool:
        return NVGPU in self.facts.name

    @property
    def averages_power(self) -> bool:
        """Whether GetPowerUsage is a 1 s average: from Ampere on, but not on GA100 (nvml.h)."""
        architecture = self.facts.architecture
        return architecture is not None and architecture >= AMPERE and not GA100.search(self.facts.name)

    def call(self, function: str, *arguments: Any) -> Any:
        return self.session.call(self.uuid, function, *arguments)

    def optional(self, function: str, *arguments: Any) -> Any:
        """The value, or None where GPU or driver do not support it. Other errors are raised."""
        try:
            return self.call(function, *arguments)
        except NvmlError as error:
            if error.is_unsupported:
                return None
            raise

    # Clocks.

    @cached_property
    def memory_clocks_mhz(self) -> tuple[float, ...]:
        """Ascending; empty where they cannot be read."""
        return _ascending(self.optional("nvmlDeviceGetSupportedMemoryClocks"))

    @cached_property
    def graphics_clocks_mhz(self) -> tuple[float, ...]:
        """Those of the highest memory clock, ascending; empty where they cannot be read."""
        if not self.memory_clocks_mhz:
            return ()
        highest = int(self.memory_clocks_mhz[-1])
        return _ascending(self.optional("nvmlDeviceGetSupportedGraphicsClocks", highest))

    def clock_mhz(self, kind: int) -> float:
        """The clock that runs now: `GRAPHICS` or `MEMORY`."""
        return float(self.call("nvmlDeviceGetClockInfo", kind))

    def event_reasons(self) -> int:
        """Why the clock is what it is, as a bit mask; older drivers call them throttle reasons."""
        reasons = self.optional("nvmlDeviceGetCurrentClocksEventReasons")
        if reasons is None:
            reasons = self.call("nvmlDeviceGetCurrentClocksThrottleReasons")
        return int(reasons)

    # Power, in mW where it is written back exactly, else in watts.

    def power_limit_mw(self) -> int:
        return int(self.call("nvmlDeviceGetPowerManagementLimit"))

    def power_range_mw(self) -> tuple[int, int] | None:
        found = self.optional("nvmlDeviceGetPowerManagementLimitConstraints")
        return None if found is None else (int(found[0]), int(found[1]))

    def default_power_limit_mw(self) -> int | None:
        found = self.optional("nvmlDeviceGetPowerManagementDefaultLimit")
        return None if found is None else int(found)

    def power_field_w(self, field: int) -> float | None:
        """A power field. Each value carries its own return code, which the call's success does not cover."""
        values = self.optional("nvmlDeviceGetFieldValues", [field])
        if values is None or int(values[0].nvmlReturn) != 0:
            return None
        return float(values[0].value.uiVal) / 1e3

    def power_usage_w(self) -> float | None:
        """GetPowerUsage: a 1 s average where `averages_power`, else the last refresh."""
        found = self.optional("nvmlDeviceGetPowerUsage")
        return None if found is None else float(found) / 1e3

    def energy_mj(self) -> int | None:
        """The energy counter since the driver was loaded; None before Volta."""
        found = self.optional("nvmlDeviceGetTotalEnergyConsumption")
        return None if found is None else int(found)

    # State that is context: kept, restored, never chosen.

    def persistence(self) -> int | None:
        found = self.optional("nvmlDeviceGetPersistenceMode")
        return None if found is None else int(found)

    def set_persistence(self, mode: int) -> None:
        self.call("nvmlDeviceSetPersistenceMode", mode)

    def mig_is_on(self) -> bool:
        """Whether the GPU is split into instances, or will be after the next reset."""
        modes = self.optional("nvmlDeviceGetMigMode")
        return modes is not None and any(int(mode) for mode in modes)


def _ascending(clocks: Any) -> tuple[float, ...]:
    return () if clocks is None else tuple(sorted({float(clock) for clock in clocks}))


def _pci(bus_id: Any) -> str:
    """`0000:18:00.0`, as sysfs writes it, for NVML's `00000000:18:00.0`."""
    text = bus_id.decode() if isinstance(bus_id, bytes) else str(bus_id)
    domain, _, rest = text.lower().partition(":")
    return f"{domain[-4:]}:{rest}"


def find_gpu(session: NvmlSession, text: str) -> str:
    """The UUID of the GPU that `text` names: its UUID, the start of it, or its PCI address.

    Raises:
        NvmlError: none or several; the GPUs are listed. An index is refused: it is not an identity.
    """
    wanted = text.strip().lower()
    gpus = [Gpu(session, uuid) for uuid in session.gpus()]
    hits = [
        gpu.uuid
        for gpu in gpus
        if wanted
        and (gpu.uuid.lower().startswith(wanted) or gpu.facts.pci_address in (wanted, f"0000:{wanted}"))
    ]
    if len(hits) == 1:
        return hits[0]
    known = ", ".join(f"{gpu.uuid} ({gpu.facts.name}, {gpu.facts.pci_address})" for gpu in gpus) or "none"
    problem = "names no GPU" if not hits else "names several GPUs"
    raise NvmlError(f"{text!r} {problem}; name one by UUID or PCI address: {known}.", None)
