"""Who a device is: by serial number, GPU UUID or machine id, never by an index."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from polythrottle.measurement import Provenance
from polythrottle.profiles import BoardProfile, tables_digest
from polythrottle.study import DeviceIdentity
from polythrottle_agent.context import cpu_name, machine_key, model_name
from polythrottle_agent.ports import Control
from polythrottle_agent.sysfs import Sysfs

if TYPE_CHECKING:
    from polythrottle_agent.nvml.session import NvmlSession

NVIDIA = "nvidia:"


def identify(
    sysfs: Sysfs,
    profile: BoardProfile | None,
    session: NvmlSession | None,
    gpu: str | None,
    controls: Mapping[str, Control],
    provenance: Provenance,
) -> DeviceIdentity:
    """The identity of what the controls act on. Its digest covers every table of levels in force.

    Raises:
        ControlError: the GPU that was found cannot be read any more.
    """
    digest = tables_digest({name: control.levels for name, control in controls.items()})
    if session is not None and gpu is not None:
        from polythrottle_agent.nvml.identity import nvidia_identity

        return replace(nvidia_identity(session, gpu), tables_digest=digest)
    return _board_identity(sysfs, profile, provenance, digest)


def device_id(sysfs: Sysfs, profile: BoardProfile | None, gpu: str | None, provenance: Provenance) -> str:
    """The id that `identify` will give, before any control is known: the journal lies under it."""
    if gpu is not None:
        return nvidia_id(gpu)
    return _board_identity(sysfs, profile, provenance, "").id


def nvidia_id(uuid: str) -> str:
    """The id of the GPU with this UUID."""
    return f"{NVIDIA}{uuid}"


def gpu_of(device_id: str) -> str | None:
    """The UUID of the GPU that an id names; None for a board or a host."""
    return device_id.removeprefix(NVIDIA) if device_id.startswith(NVIDIA) else None


def _board_identity(
    sysfs: Sysfs, profile: BoardProfile | None, provenance: Provenance, digest: str
) -> DeviceIdentity:
    key = machine_key(sysfs)
    if profile is not None:
        kind, board, label = "jetson", profile.name, profile.display_name
    else:
        label = cpu_name(sysfs) or model_name(sysfs) or "this machine"
        kind, board = "host", _slug(model_name(sysfs) or label)
    if provenance is Provenance.EMULATED:
        kind, label = "emulated-sysfs", f"{label}, emulated"
    return DeviceIdentity(f"{kind}:{board}:{key}", board, label, provenance, digest)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "machine"
