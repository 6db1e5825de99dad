"""The files of the sensors: INA3221 under hwmon or the old iio driver, INA238, thermal zones, soctherm."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from polythrottle.profiles import PowerRail
from polythrottle_agent.emulation.behaviour import Shares
from polythrottle_agent.emulation.kernels import kstrtoul, refused
from polythrottle_agent.emulation.layouts import Layout
from polythrottle_agent.emulation.power_sensors import PowerSensor, Rail
from polythrottle_agent.emulation.surroundings import Surroundings
from polythrottle_agent.emulation.sysfs import Entry, Link, Node, fixed, readable, shown

REGULATORS = 0.92
"""Of the module's input, what arrives at the rails behind it; assumed. The board's power is the input's."""

ASSUMED_SHUNT_UOHM = 5000
"""Where no source gives the shunt."""

THOR_OFFSET_W = -0.4
"""Thor's input sensor reads that much low at rest (-392 mW was seen)."""

SAMPLES, CONVERSION_US = 512, 140
"""As nvpower.sh sets up INA3221 on Xavier and Orin: 3 channels × 512 × 2 × 140 µs = 430 ms."""
SAMPLES_JP4, CONVERSION_US_JP4 = 64, 1100


@dataclass(frozen=True)
class Chip:
    """A power sensor on its bus, with what its rails are called."""

    model: str
    bus: int
    address: int
    sensor: PowerSensor

    @property
    def name(self) -> str:
        return f"{self.bus}-{self.address:04x}"


def _domains(covers: str | None, has_input: bool) -> Callable[[float, Shares], float] | None:
    """The power of a rail from the board's. Without an input rail the rails add up to the whole."""
    static = {"gpu+soc": 0.6, "sys5v": 0.4, "soc": 0.5, "cpu+soc+mem": 0.5}
    if covers is None:
        return None
    if covers == "total":
        return lambda watts, _: watts
    if covers in ("wifi", "carrier"):
        return lambda *_: 0.08
    efficiency = REGULATORS if has_input else 1.0
    parts = covers.split("+")

    def watts_of(watts: float, shares: Shares) -> float:
        share = static.get(covers, 0.0) * shares.static
        share += shares.gpu * ("gpu" in parts) + shares.cpu * ("cpu" in parts)
        share += shares.mem * ("mem" in parts or "ddr" in parts)
        if covers == "soc" and has_input:
            share += shares.mem * 0.5
        return watts * share * efficiency

    return watts_of


def chips_of(layout: Layout, started_s: float) -> list[Chip]:
    """The board's power sensors."""
    rails: dict[tuple[str, int, int], list[PowerRail]] = {}
    for rail in layout.profile.power_rails:
        if rail.i2c_bus is not None:
            rails.setdefault((rail.sensor, rail.i2c_bus, int(rail.address, 16)), []).append(rail)
    has_input = layout.profile.total_rail is not None
    chips = []
    for (model, bus, address), wired in rails.items():
        samples, conversion = SAMPLES, CONVERSION_US
        if layout.kernel.iio:
            samples, conversion = SAMPLES_JP4, CONVERSION_US_JP4
        sensor = PowerSensor(
            [_rail(layout, rail, has_input) for rail in wired], samples, conversion, started_s
        )
        chips.append(Chip(model, bus, address, sensor))
    return chips


def _rail(layout: Layout, rail: PowerRail, has_input: bool) -> Rail:
    label = rail.label or ""
    # iio counts channels from 0, hwmon from 1; profiles count as the board's usual driver does.
    first = min(r.index for r in layout.profile.power_rails)
    index = rail.index - first + (0 if layout.kernel.iio else 1)
    return Rail(
        index=index,
        label=rail.label,
        volts=layout.volts.get(label, layout.volts["*"]),
        shunt_uohm=rail.shunt_uohm or ASSUMED_SHUNT_UOHM,
        watts=_domains(rail.covers, has_input),
        offset_w=THOR_OFFSET_W if rail.sensor == "ina238" else 0.0,
    )


def power_entries(layout: Layout, chips: Sequence[Chip], hwmon: Mapping[str, int]) -> dict[str, Entry]:
    """`hwmon` numbers each device by its name."""
    entries: dict[str, Entry] = {}
    for number, chip in enumerate(chips):
        device = f"{layout.i2c[chip.bus]}/{chip.name}"
        driver = f"{chip.model}x" if layout.kernel.iio else chip.model
        entries[f"{device}/name"] = readable(fixed(driver))
        entries[f"/sys/bus/i2c/devices/{chip.name}"] = Link(device)
        entries[f"/sys/bus/i2c/drivers/{driver}/{chip.name}"] = Link(device)
        if layout.kernel.iio:
            entries |= _iio_entries(device, number, chip.sensor)
            continue
        base = f"{device}/hwmon/hwmon{hwmon[chip.name]}"
        entries[f"{base}/name"] = readable(fixed(chip.model))
        entries[f"{base}/device"] = Link(device)
        entries[f"/sys/class/hwmon/hwmon{hwmon[chip.name]}"] = Link(base)
        entries |= _ina238_entries(base, chip) if chip.model == "ina238" else _ina3221_entries(base, chip)
    return entries


def _ina3221_entries(base: str, chip: Chip) -> dict[str, Entry]:
    sensor = chip.sensor
    entries: dict[str, Entry] = {
        f"{base}/samples": Node(
            0o644, lambda: str(sensor.samples), lambda data: sensor.store_samples(kstrtoul(data))
        ),
        f"{base}/update_interval": Node(
            0o644,
            lambda: str(round(sensor.interval_s * 1000)),
            lambda data: sensor.store_interval_ms(kstrtoul(data)),
        ),
    }
    for index, rail in sensor.rails.items():
        entries |= {
            f"{base}/in{index}_input": readable(shown(sensor.millivolts, index)),
            f"{base}/curr{index}_input": readable(shown(sensor.milliamps, index)),
            f"{base}/in{index + 3}_input": readable(shown(sensor.shunt_microvolts, index)),
            f"{base}/in{index}_enable": Node(0o644, _is_enabled(sensor, index), _enable(sensor, index)),
        }
        if rail.label is not None:
            entries[f"{base}/in{index}_label"] = readable(fixed(rail.label))
        for limit in ("max", "crit"):
            entries[f"{base}/curr{index}_{limit}"] = Node(
                0o644,
                shown(sensor.limit_ma, index, limit),
                _limit(sensor, (index, limit)),
            )
            entries[f"{base}/curr{index}_{limit}_alarm"] = readable(shown(sensor.alarm, index, limit))
    return entries


def _enable(sensor: PowerSensor, index: int) -> Callable[[bytes], None]:
    def store(data: bytes) -> None:
        sensor.enabled[index] = kstrtoul(data) != 0

    return store


def _is_enabled(sensor: PowerSensor, index: int) -> Callable[[], str]:
    return lambda: str(int(sensor.enabled[index]))


def _limit(sensor: PowerSensor, key: tuple[int, str]) -> Callable[[bytes], None]:
    def store(data: bytes) -> None:
        sensor.limits_ma[key] = kstrtoul(data)

    return store


def _ina238_entries(base: str, chip: Chip) -> dict[str, Entry]:
    sensor = chip.sensor
    (index,) = sensor.rails
    return {
        f"{base}/power1_input": readable(lambda: str(sensor.microwatts(index))),
        f"{base}/in1_input": readable(lambda: str(sensor.millivolts(index))),
        f"{base}/curr1_input": readable(lambda: str(sensor.milliamps(index))),
    }


def _iio_entries(device: str, number: int, sensor: PowerSensor) -> dict[str, Entry]:
    """The staging driver of JetPack 4: mW, mA and mV in integers."""
    base = f"{device}/iio:device{number}"
    entries: dict[str, Entry] = {
        f"{base}/name": readable(lambda: "ina3221x"),
        f"{device}/iio_device": Link(base),
        f"/sys/bus/iio/devices/iio:device{number}": Link(base),
        f"{base}/running_mode": readable(lambda: "1", 0o644),
    }
    for index, rail in sensor.rails.items():
        entries |= {
            f"{base}/rail_name_{index}": readable(fixed(rail.label or "")),
            f"{base}/in_power{index}_input": readable(shown(sensor.milliwatts, index)),
            f"{base}/in_current{index}_input": readable(shown(sensor.milliamps, index)),
            f"{base}/in_voltage{index}_input": readable(shown(sensor.millivolts, index)),
            f"{base}/crit_current_limit_{index}": readable(lambda: "32760", 0o644),
            f"{base}/warn_current_limit_{index}": readable(lambda: "32760", 0o644),
        }
    return entries


def thermal_entries(layout: Layout, around: Surroundings) -> dict[str, Entry]:
    """Zones in m°C. A zone whose domain is off answers EAGAIN. Cooling devices show throttling."""
    entries: dict[str, Entry] = {}
    for number, zone in enumerate(layout.profile.thermal_zones or ()):
        base = f"/sys/devices/virtual/thermal/thermal_zone{number}"
        entries |= {
            f"{base}/type": readable(fixed(zone)),
            f"{base}/temp": readable(_temperature(zone, around)),
            f"{base}/mode": readable(lambda: "enabled", 0o644),
            f"{base}/trip_point_0_type": readable(lambda: "passive"),
            f"{base}/trip_point_0_temp": readable(
                lambda: str(round(around.environment.trip_c * 1000)), 0o644
            ),
            f"{base}/trip_point_0_hyst": readable(
                lambda: str(round(around.environment.hysteresis_c * 1000)), 0o644
            ),
            f"/sys/class/thermal/thermal_zone{number}": Link(base),
        }
    kinds = [f"devfreq-{layout.gpu.name}", *(f"cpufreq-cpu{cpus[0]}" for cpus in layout.clusters)]
    for number, kind in enumerate(kinds):
        base = f"/sys/devices/virtual/thermal/cooling_device{number}"
        entries |= {
            f"{base}/type": readable(fixed(kind)),
            f"{base}/cur_state": readable(lambda: str(around.cooling_state), 0o644),
            f"{base}/max_state": readable(lambda: str(around.max_cooling_state)),
            f"/sys/class/thermal/cooling_device{number}": Link(base),
        }
    return entries


def _temperature(zone: str, around: Surroundings) -> Callable[[], str]:
    offset_c = {"gpu": 0.0, "tj": 0.5}.get(zone.lower().split("-")[0], -2.0)

    def show() -> str:
        if zone.startswith("cv"):
            raise refused(errno.EAGAIN)
        return str(round((around.temperature_c + offset_c) * 1000))

    return show


def overcurrent_entries(layout: Layout, around: Surroundings, hwmon: int) -> dict[str, Entry]:
    """soctherm's counters, cumulative since boot. Only where the profile knows them."""
    if layout.profile.facts["throttle_events"] is None:
        return {}
    device = "/sys/devices/platform/soctherm-oc-event"
    base = f"{device}/hwmon/hwmon{hwmon}"
    counts: dict[int, Callable[[], str]] = {
        1: lambda: "0",
        2: lambda: "0",
        3: lambda: str(around.overcurrent_events),
    }
    entries: dict[str, Entry] = {
        f"{base}/name": readable(lambda: "soctherm_oc"),
        f"/sys/class/hwmon/hwmon{hwmon}": Link(base),
    }
    for number, count in counts.items():
        entries[f"{base}/oc{number}_event_cnt"] = readable(count)
        entries[f"{base}/oc{number}_throt_en"] = readable(lambda: "1")
    return entries
