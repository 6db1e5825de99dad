"""What tells who moved a setting, read from the machine: power mode, driver, persistence, other programs."""

from __future__ import annotations

from collections.abc import Mapping

from polythrottle_agent.context import other_controllers
from polythrottle_agent.nvpmodel import NvpModel
from polythrottle_agent.ports import Control, ControlError
from polythrottle_agent.reconcile import Marks
from polythrottle_agent.sysfs import Sysfs

DRIVER = "/sys/module/nvidia"


def marks_of(sysfs: Sysfs, persistence: bool | None = None) -> Marks:
    """Only reads.

    Args:
        persistence: NVIDIA's persistence mode, where the caller has asked the driver for it.
    """
    return Marks(
        power_mode=power_mode_of(sysfs),
        persistence=persistence,
        driver=_driver_load(sysfs),
        others=tuple(other.name for other in other_controllers(sysfs) if not other.harmless),
    )


def power_mode_of(sysfs: Sysfs) -> str | None:
    """nvpmodel's mode; None where there is none, or it cannot be told."""
    mode = NvpModel(sysfs).mode()
    return None if mode is None else f"{mode.name} (ID {mode.id})"


def _driver_load(sysfs: Sysfs) -> str | None:
    """A module that is loaded anew gets a new directory, and the kernel a new inode for it."""
    try:
        return str(sysfs.at(DRIVER).stat().st_ino)
    except OSError:  # no such driver here
        return None


def persistence_of(controls: Mapping[str, Control]) -> bool | None:
    """NVIDIA's persistence mode, as the GPU's controls save it; None where there is none."""
    for control in controls.values():
        try:
            mode = control.save().get("persistence")
        except ControlError:
            continue  # whoever needs this control reports that
        if mode is not None:
            return mode == "1"
    return None
