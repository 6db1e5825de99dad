"""The CPU controls on the kernel's own acpi-cpufreq driver, and the kernel's rules that they rely on."""

from __future__ import annotations

import errno
import time
from pathlib import Path

from hardware import CPUFREQ, LEVELS_KHZ, clock_khz, p_state, power_mw, settings
from verdicts import check, expect, wait_for

from polythrottle.errors import InvalidInputError
from polythrottle_agent.discovery import discover
from polythrottle_agent.ports import ControlError


def write(path: Path, value: int) -> int:
    """One write(2); returns its errno, 0 for success."""
    try:
        with open(path, "wb", buffering=0) as file:
            file.write(str(value).encode())
    except OSError as error:
        return error.errno or -1
    return 0


def run() -> None:
    with check("kernel: acpi-cpufreq drives both CPUs") as details:
        for number in (0, 1):
            driver = (CPUFREQ / f"policy{number}/scaling_driver").read_text().strip()
            expect(driver == "acpi-cpufreq", f"policy{number} is driven by {driver}")
        listed = (CPUFREQ / "policy0/scaling_available_frequencies").read_text().split()
        expect(sorted(map(int, listed)) == sorted(LEVELS_KHZ), f"it lists {listed}")
        details.append(f"governor {(CPUFREQ / 'policy0/scaling_governor').read_text().strip()}")

    kernel_rules()
    found = discover()
    stock = settings()
    cpu = found.controls.get("cpu_freq_mhz")
    with check("discovery: finds the CPU clock and the number of CPUs") as details:
        expect({"cpu_freq_mhz", "cpu_cores"} <= set(found.controls), f"found {sorted(found.controls)}")
        expect(found.is_writable, "it says that root may not write")
        details.append(f"{found.identity.label} ({found.identity.id})")
    if cpu is None:
        return

    with check("cpu_freq_mhz: every level is accepted, runs, and reaches the hardware") as details:
        original = cpu.save()
        expect(
            [round(float(level) * 1e3) for level in cpu.levels] == sorted(LEVELS_KHZ), f"levels {cpu.levels}"
        )
        watts = []
        for level in (*cpu.levels, *reversed(cpu.levels)):
            cpu.apply(level)
            khz = round(float(level) * 1e3)
            wanted = LEVELS_KHZ.index(khz)
            expect(cpu.accepted() == level, f"{level} was accepted as {cpu.accepted()}")
            wait_for(lambda: [p_state(0), p_state(1)] == [wanted] * 2, 2, f"P-state {wanted}")  # noqa: B023
            expect(cpu.observed() == level, f"{level} runs as {cpu.observed()}")
            time.sleep(0.05)
            watts.append(power_mw() / 1e3)
        expect(watts[: len(cpu.levels)] == sorted(watts[: len(cpu.levels)]), f"power was {watts}")
        details.append(f"{watts[0]:.1f} to {max(watts):.1f} W by the ACPI power meter")
        cpu.restore(original)
        wait_for(lambda: settings() == stock, 2, "the stock settings")
        expect(cpu.save() == original, "the saved state differs after restore")

    with check("cpu_freq_mhz: a level off the table is refused and changes nothing"):
        for level in (950.0, 0.0, -1.0, 9999.0, "unlocked"):
            try:
                cpu.apply(level)
            except (InvalidInputError, ControlError):
                continue
            expect(False, f"{level} was taken")
        expect(settings() == stock, "something changed")

    cores = found.controls.get("cpu_cores")
    with check("cpu_cores: switches CPU 1 off and on, with its clock as it was") as details:
        expect(cores is not None, "there is no such control")
        assert cores is not None
        cpu.apply(cpu.levels[0])
        kept_cores, kept_clock = cores.save(), cpu.save()
        cores.apply(1.0)
        expect(Path("/sys/devices/system/cpu/online").read_text().strip() == "0", "CPU 1 is still online")
        refused = (
            write(CPUFREQ / "policy1/scaling_max_freq", 2_400_000) if (CPUFREQ / "policy1").exists() else None
        )
        details.append(f"its policy then answers {errno.errorcode.get(refused or 0, 'nothing: it is gone')}")
        cores.restore(kept_cores)
        wait_for(lambda: cpu.save() == kept_clock, 3, "the pinned clock of CPU 1")
        cpu.restore(original)
        wait_for(lambda: settings() == stock, 2, "the stock settings")

    check_sensor(found)


def kernel_rules() -> None:
    """What the emulated files are built after; if a kernel does otherwise, they are wrong."""
    low, high = CPUFREQ / "policy0/scaling_min_freq", CPUFREQ / "policy0/scaling_max_freq"
    with check("kernel: a minimum above the maximum is taken, and the maximum wins"):
        expect(write(high, 1_200_000) == 0, "the maximum was refused")
        expect(write(low, 2_100_000) == 0, "the minimum was refused")
        time.sleep(0.2)
        expect(int(high.read_text()) == 1_200_000, f"the maximum reads {high.read_text()}")
        expect(int(low.read_text()) <= 1_200_000, f"the minimum reads {low.read_text()}")
        expect(clock_khz() == 1_200_000, f"{clock_khz()} kHz runs")
        write(low, min(LEVELS_KHZ))
        write(high, max(LEVELS_KHZ))
        wait_for(lambda: int(high.read_text()) == max(LEVELS_KHZ), 2, "the old maximum")
    with check("kernel: a maximum off the table is rounded down, a minimum up") as details:
        write(high, 1_700_000)
        write(low, 1_000_000)
        time.sleep(0.2)
        details.append(f"1700000 reads {high.read_text().strip()}, 1000000 reads {low.read_text().strip()}")
        expect(clock_khz() in (1_200_000, 1_500_000), f"{clock_khz()} kHz runs")
        write(low, min(LEVELS_KHZ))
        write(high, max(LEVELS_KHZ))
        wait_for(lambda: int(high.read_text()) == max(LEVELS_KHZ), 2, "the old maximum")
    with check("kernel: text is EINVAL, a read-only file EACCES even for root"):
        try:
            high.write_bytes(b"fast\n")
            expect(False, "text was taken")
        except OSError as error:
            expect(error.errno == errno.EINVAL, f"text gave {error}")
        expect(
            write(CPUFREQ / "policy0/cpuinfo_max_freq", 1) == errno.EACCES, "cpuinfo_max_freq can be written"
        )


def check_sensor(found: object) -> None:  # noqa: ARG001 - what discovery found holds no rails here
    from polythrottle_agent.meters.ina import find_chips
    from polythrottle_agent.sysfs import Sysfs

    with check("ina3221: the kernel's own driver is found by I2C address and reads its registers") as details:
        chips = find_chips(Sysfs(Path("/")))
        expect([chip.address for chip in chips] == [0x40], f"found {chips}")
        directory = chips[0].directory
        millivolts = int((directory / "in1_input").read_text())
        milliamperes = int((directory / "curr1_input").read_text())
        expect((millivolts, milliamperes) == (19_200, 800), f"it reads {millivolts} mV and {milliamperes} mA")
        details.append(f"{chips[0].name}: {millivolts * milliamperes / 1e6:.2f} W")
        expect(not (directory / "in1_label").exists(), "a channel without a label has one")
