"""The guest's clocks as the kernel's files and the pretended hardware's ports show them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

CPUFREQ = Path("/sys/devices/system/cpu/cpufreq")
LEVELS_KHZ = (2_400_000, 2_100_000, 1_800_000, 1_500_000, 1_200_000, 900_000)
"""By number of the P-state, as pstates.asl has them."""

FIRST_PORT = 0xE0
FILES = ("scaling_min_freq", "scaling_max_freq", "scaling_governor")


def settings() -> dict[str, str]:
    """Everything about the CPUs that a tool can leave changed."""
    found = {}
    for policy in sorted(CPUFREQ.glob("policy*")):
        for name in FILES:
            found[f"{policy.name}/{name}"] = (policy / name).read_text().strip()
    for switch in sorted(Path("/sys/devices/system/cpu").glob("cpu[0-9]*/online")):
        found[f"{switch.parent.name}/online"] = switch.read_text().strip()
    return found


def is_slowed() -> bool:
    """Whether a clock may not reach the top, which only polythrottle does here."""
    return any(
        int(value) < LEVELS_KHZ[0] for name, value in settings().items() if name.endswith("scaling_max_freq")
    )


def set_governor(name: str) -> None:
    for policy in CPUFREQ.glob("policy*"):
        (policy / "scaling_governor").write_text(name)


def p_state(cpu: int) -> int:
    """The number that the driver wrote to the CPU's port."""
    with open("/dev/port", "rb", buffering=0) as ports:
        ports.seek(FIRST_PORT + cpu)
        return ports.read(1)[0]


def clock_khz(cpu: int = 0) -> int:
    return int((CPUFREQ / f"policy{cpu}/scaling_cur_freq").read_text())


def power_mw() -> float:
    """What the ACPI power meter shows."""
    meter = next(Path("/sys/bus/acpi/drivers/power_meter").glob("ACPI000D:*/power1_average"))
    return int(meter.read_text()) / 1e3


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(settings()))
