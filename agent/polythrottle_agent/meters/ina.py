"""Power rails of a Jetson: INA3221 under hwmon or the old iio driver, INA238 under hwmon.

A rail is known by the I²C address of its chip and its label, never by a hwmon number, which changes from
boot to boot. Which rail is the total, or which make it up, stands in the board's profile; a board without one
is refused, because a wrong sum looks as good as a right one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from polythrottle.clock import Clock
from polythrottle.measurement import Provenance, Scope
from polythrottle.profiles import BoardProfile, PowerRail
from polythrottle_agent.meters.power import About, PowerMeter, PowerReading
from polythrottle_agent.ports import ControlError
from polythrottle_agent.sysfs import Sysfs

DRIVERS = "/sys/bus/i2c/drivers"
DRIVER_NAMES = ("ina3221", "ina3221x", "ina238")
_ADDRESS = re.compile(r"^(\d+)-00([0-9a-f]{2})$")

VOLTAGE_STEP_V = 0.008
"""INA3221's step of bus voltage (data sheet; Documentation/hwmon/ina3221.rst)."""

CURRENT_STEP_A = 0.001
"""The driver's unit of current, where the profile does not know the shunt."""

INA238_AVERAGING_S = 0.051
"""16 samples of three conversions of 1.052 ms: what the kernel's driver sets (drivers/hwmon/ina238.c)."""

DEFAULT_AVERAGING_S = 0.43
"""What nvpower.sh sets on Jetsons, for a chip that does not tell."""


@dataclass(frozen=True)
class Chip:
    """One sensor chip: its driver, I²C bus and address, and the directory of its readings."""

    driver: str
    bus: int
    address: int
    directory: Path

    @property
    def name(self) -> str:
        return f"{self.bus}-{self.address:04x}"


def find_chips(sysfs: Sysfs) -> list[Chip]:
    """Every power sensor that the kernel drives."""
    found = []
    for driver in DRIVER_NAMES:
        for device in sysfs.entries(sysfs.at(DRIVERS) / driver):
            address = _ADDRESS.match(device.name)
            directory = None if address is None else _readings(sysfs, device)
            if address is not None and directory is not None:
                found.append(Chip(driver, int(address[1]), int(address[2], 16), directory))
    return found


def _readings(sysfs: Sysfs, device: Path) -> Path | None:
    for entry in sysfs.entries(device / "hwmon"):
        if entry.name.startswith("hwmon"):
            return entry
    return next((entry for entry in sysfs.entries(device) if entry.name.startswith("iio:device")), None)


class Rail:
    """One channel of a chip."""

    def __init__(self, sysfs: Sysfs, chip: Chip, channel: int, label: str, current_step_a: float) -> None:
        self.sysfs = sysfs
        self.chip = chip
        self.label = label
        self._channel = channel
        self._current_step_a = current_step_a

    @property
    def name(self) -> str:
        return f"{self.label} ({self.chip.name})"

    def read(self) -> PowerReading:
        """Power now. An idle rail may read below zero: an offset, taken as it is.

        Raises:
            ControlError: the channel is disabled, the chip does not answer, or the text is no number.
        """
        directory, channel = self.chip.directory, self._channel
        if self.chip.driver == "ina3221x":
            return PowerReading(self.sysfs.number(directory / f"in_power{channel}_input") / 1e3, 0.001)
        if self.chip.driver == "ina238":
            return PowerReading(self.sysfs.number(directory / f"power{channel}_input") / 1e6)
        volts = self.sysfs.number(directory / f"in{channel}_input") / 1e3
        amps = self.sysfs.number(directory / f"curr{channel}_input") / 1e3
        step_w = math.hypot(volts * self._current_step_a, amps * VOLTAGE_STEP_V)
        return PowerReading(volts * amps, step_w)


def _labelled(sysfs: Sysfs, chip: Chip) -> Iterator[tuple[int, str]]:
    """Channels of a chip with the labels that the kernel shows."""
    pattern = "rail_name_{}" if chip.driver == "ina3221x" else "in{}_label"
    for channel in range(8):
        label = sysfs.text_or_none(chip.directory / pattern.format(channel))
        if label:
            yield channel, label


def find_rail(sysfs: Sysfs, chips: list[Chip], wanted: PowerRail) -> Rail:
    """The channel that a profile describes.

    Raises:
        ControlError: there is none, or more than one.
    """
    address = int(wanted.address, 16)
    at_address = [
        chip
        for chip in chips
        if chip.address == address
        and chip.driver.startswith(wanted.sensor)
        and wanted.i2c_bus in (None, chip.bus)
    ]
    step_a = CURRENT_STEP_A if wanted.current_lsb_ma is None else wanted.current_lsb_ma / 1e3
    label = wanted.label or ""
    found = []
    for chip in at_address:
        if chip.driver == "ina238":  # a single channel, which its driver does not label
            found.append(Rail(sysfs, chip, 1, label, step_a))
        found += [Rail(sysfs, chip, n, text, step_a) for n, text in _labelled(sysfs, chip) if text == label]
    if len(found) != 1:
        how_many = "no sensor shows" if not found else f"{len(found)} sensors show"
        raise ControlError(f"{how_many} rail {label} at I²C address {wanted.address}")
    return found[0]


def total_rails(sysfs: Sysfs, profile: BoardProfile) -> list[Rail]:
    """The rails whose sum is the board's total, by the rule of its profile.

    Raises:
        ControlError: one of them is not there, so that the total cannot be had.
    """
    chips = find_chips(sysfs)
    labels = profile.total_summed_rails if profile.total_rail is None else (profile.total_rail,)
    if not labels:
        raise ControlError(f"the profile of {profile.display_name} has no rule for the total")
    described = {rail.label: rail for rail in profile.power_rails}
    return [find_rail(sysfs, chips, described[label]) for label in labels]


def averaging_s(sysfs: Sysfs, chip: Chip, profile: BoardProfile) -> float:
    """What the chip averages one reading over, now: its driver's word, else the profile's."""
    interval_ms = sysfs.number_or_none(chip.directory / "update_interval")
    if interval_ms is not None and interval_ms > 0:
        return interval_ms / 1e3
    if chip.driver == "ina238":
        return INA238_AVERAGING_S
    averaging = profile.facts["power"]["averaging"] or {}
    if averaging.get("update_interval_ms"):
        return float(averaging["update_interval_ms"]) / 1e3
    samples, conversion_us = averaging.get("samples"), averaging.get("conversion_time_us")
    if samples and conversion_us:
        # A cycle converts the bus and the shunt voltage of all three channels.
        return float(samples) * float(conversion_us) * 2 * 3 / 1e6
    return DEFAULT_AVERAGING_S


def ina_meter(sysfs: Sysfs, profile: BoardProfile, clock: Clock, provenance: Provenance) -> PowerMeter:
    """A meter of the module's total power.

    Raises:
        ControlError: the rails of the total are not all there.
    """
    rails = total_rails(sysfs, profile)

    def read() -> PowerReading:
        readings = [rail.read() for rail in rails]
        return PowerReading(
            math.fsum(reading.watts for reading in readings),
            math.hypot(*(reading.resolution_w for reading in readings)),
        )

    kind = "sum of " if len(rails) > 1 else ""
    models = "/".join(dict.fromkeys(rail.chip.driver.removesuffix("x").upper() for rail in rails))
    return PowerMeter(
        About(f"{models} {kind}{' + '.join(rail.name for rail in rails)}", Scope.MODULE, provenance),
        read,
        lambda: max(averaging_s(sysfs, rail.chip, profile) for rail in rails),
        clock,
    )
