"""Which GPU this is, by its UUID, in the words of a study."""

from __future__ import annotations

import re

from polythrottle.measurement import Provenance
from polythrottle.profiles import tables_digest
from polythrottle.study import DeviceIdentity
from polythrottle_agent.nvml.gpu import Gpu
from polythrottle_agent.nvml.session import NvmlSession


def nvidia_identity(session: NvmlSession, uuid: str) -> DeviceIdentity:
    """The identity of a GPU on its own. Its digest covers the tables of clocks.

    Raises:
        NvmlError: the GPU cannot be read.
    """
    gpu = Gpu(session, uuid)
    facts = gpu.facts
    where = "" if facts.pci_address is None else f" at {facts.pci_address}"
    return DeviceIdentity(
        id=f"nvidia:{uuid}",
        board=re.sub(r"[^a-z0-9]+", "-", facts.name.lower()).strip("-"),
        label=f"{facts.name}{where}, driver {facts.driver}",
        provenance=Provenance.MEASURED,
        tables_digest=tables_digest(
            {"gpu_freq_mhz": gpu.graphics_clocks_mhz, "mem_freq_mhz": gpu.memory_clocks_mhz}
        ),
    )
