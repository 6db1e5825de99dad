"""What the kernel slows down because of heat, told by its cooling devices. Reads only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from polythrottle_agent.ports import ControlError
from polythrottle_agent.sysfs import Sysfs

THERMAL = "/sys/class/thermal"
GPU_COOLING = ("devfreq", "thermal-devfreq")
CPU_COOLING = ("cpufreq", "thermal-cpufreq")


def cooling_devices(sysfs: Sysfs, kinds: tuple[str, ...] = GPU_COOLING + CPU_COOLING) -> Mapping[Path, str]:
    """The cooling devices that slow a clock, by their directory, with the kernel's name of each."""
    found = {}
    for entry in sysfs.entries(sysfs.at(THERMAL)):
        kind = sysfs.text_or_none(entry / "type") or ""
        if entry.name.startswith("cooling_device") and kind.lower().startswith(kinds):
            found[entry] = kind
    return found


def at_work(sysfs: Sysfs, devices: Mapping[Path, str]) -> tuple[str, ...]:
    """The ones that slow something down now."""
    return tuple(
        kind for device, kind in devices.items() if (sysfs.number_or_none(device / "cur_state") or 0) > 0
    )


def refuse_while_hot(sysfs: Sysfs, kinds: tuple[str, ...], what: str) -> None:
    """To be called where a limit is read that since kernel 5.10 shows heat's limit in place of its own.

    Raises:
        ControlError: heat holds clocks of these kinds down now, so the limit that was set cannot be seen.
    """
    working = at_work(sysfs, cooling_devices(sysfs, kinds))
    if working:
        raise ControlError(
            f"heat holds {what} down now ({', '.join(working)}), so its own limit cannot be read; "
            "let the device cool"
        )
