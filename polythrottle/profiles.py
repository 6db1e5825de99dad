"""Board profiles: what is published about each board, with sources. None: no source was found.

The data lie in the package `polythrottle_device_profiles`. On hardware the tables that the kernel shows
are in force; a profile stands in for them in emulation and where nothing can be read.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from typing import Any

import yaml

from polythrottle.configuration import Level
from polythrottle.errors import InvalidInputError, did_you_mean

SCHEMA = "polythrottle-profile/1"
PACKAGE = "polythrottle_device_profiles"


@dataclass(frozen=True)
class LevelTable:
    """The levels of one clock, as one BSP (`variant`) shows them.

    `freqs_mhz` is None where the list is not sourced; `known_points_mhz` then holds the levels that are
    certain. `complete` says that `freqs_mhz` is the whole list.
    """

    variant: str
    complete: bool
    freqs_mhz: tuple[float, ...] | None
    known_points_mhz: tuple[float, ...] | None
    source: str | None
    note: str | None


@dataclass(frozen=True)
class CpuCluster:
    """CPUs that share one clock. `policy_cpu` is the one whose cpufreq node nvpmodel writes."""

    name: str
    nvpmodel_name: str | None
    policy_cpu: int
    cpus: tuple[int, ...]


@dataclass(frozen=True)
class PowerRail:
    """One channel of a power sensor. `covers` says in a word what hangs on it (`total`, `gpu`, ...)."""

    sensor: str
    i2c_bus: int | None
    address: str
    index: int
    label: str | None
    shunt_uohm: int | None
    current_lsb_ma: float | None
    covers: str | None


@dataclass(frozen=True)
class NvpMode:
    """One power mode: CPUs online and the caps nobody may exceed. inf: uncapped. None: not sourced.

    `cpu_caps_mhz` holds (nvpmodel's cluster name or `each_core`, cap) pairs.
    """

    id: int
    name: str
    cpus_online: tuple[int, ...] | None
    cpu_caps_mhz: tuple[tuple[str, float], ...] | None
    gpu_cap_mhz: float | None
    mem_cap_mhz: float | None


@dataclass(frozen=True)
class NvpModel:
    """The power modes of one conf file."""

    variant: str
    conf_file: str
    default_mode: int
    modes: tuple[NvpMode, ...]
    source: str
    note: str | None


@dataclass(frozen=True)
class BoardProfile:
    """One board. `facts` is the whole file, for what has no field of its own yet."""

    name: str
    aliases: tuple[str, ...]
    display_name: str
    soc: str
    gpu: str
    module_parts: tuple[str, ...]
    jetpack: str
    note: str | None
    cpu_cores: int
    cpu_clusters: tuple[CpuCluster, ...]
    cpu_tables: tuple[LevelTable, ...]
    gpu_tables: tuple[LevelTable, ...]
    mem_tables: tuple[LevelTable, ...]
    power_rails: tuple[PowerRail, ...]
    total_rail: str | None
    total_summed_rails: tuple[str, ...] | None
    nvpmodels: tuple[NvpModel, ...]
    thermal_zones: tuple[str, ...] | None
    facts: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def tables(self) -> Mapping[str, tuple[LevelTable, ...]]:
        """Tables by the knob whose levels they hold."""
        return {
            "cpu_freq_mhz": self.cpu_tables,
            "gpu_freq_mhz": self.gpu_tables,
            "mem_freq_mhz": self.mem_tables,
        }

    def table(self, knob: str, variant: str | None = None) -> LevelTable:
        """The table with levels for a knob: the named variant, else the first that is complete.

        Raises:
            InvalidInputError: no such knob or variant, or its levels are not sourced.
        """
        tables = self.tables.get(knob)
        if tables is None:
            hint = did_you_mean(knob, self.tables)
            raise InvalidInputError(f"{self.display_name} has no table for knob {knob!r}; {hint}")
        if variant is None:
            chosen = next((table for table in tables if table.complete), tables[0])
        else:
            by_name = {table.variant: table for table in tables}
            if variant not in by_name:
                hint = did_you_mean(variant, by_name)
                raise InvalidInputError(f"{self.display_name} has no variant {variant!r} of {knob}; {hint}")
            chosen = by_name[variant]
        if chosen.freqs_mhz is None:
            raise InvalidInputError(
                f"The {knob} levels of {self.display_name} ({chosen.variant}) are not sourced; "
                "choose another board or knob."
            )
        return chosen

    @property
    def sources(self) -> tuple[str, ...]:
        """Every source the profile names, in the order of the file, without repeats."""
        return sources_in(self.facts)


def sources_in(facts: object) -> tuple[str, ...]:
    """Every source that a profile's content names, in the order of the file, without repeats."""
    return tuple(dict.fromkeys(_sources(facts)))


def _sources(value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if str(key).endswith("source") and isinstance(inner, str):
                yield inner
            else:
                yield from _sources(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _sources(inner)


def tables_digest(levels: Mapping[str, Sequence[Level]]) -> str:
    """SHA-256 over the levels in force, knob by knob: two BSPs of one board with other tables differ.

    `levels` maps each clock knob to its levels in MHz (or `unlocked`), in any order.
    """
    content = sorted(
        (knob, [level if isinstance(level, str) else float(level) for level in values])
        for knob, values in levels.items()
    )
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@lru_cache(maxsize=1)
def board_names() -> tuple[str, ...]:
    """Every board that has a profile, sorted."""
    files = resources.files(PACKAGE).iterdir()
    return tuple(sorted(entry.name[: -len(".yaml")] for entry in files if entry.name.endswith(".yaml")))


@lru_cache(maxsize=1)
def _aliases() -> Mapping[str, str]:
    """Names a user may write, each with the board it stands for."""
    known = {name: name for name in board_names()}
    for name in board_names():
        for alias in _read(name)["aliases"]:
            known.setdefault(alias, name)
    return known


@lru_cache(maxsize=32)
def _read(name: str) -> dict[str, Any]:
    text = resources.files(PACKAGE).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    facts = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    if facts.get("schema") != SCHEMA:
        raise InvalidInputError(f"Profile {name} is {facts.get('schema')}, not {SCHEMA}: reinstall.")
    return dict(facts)


def resolve_board(name: str) -> str:
    """The board's full name for what a user wrote: `tx2`, `jetson-tx2` or `Jetson_TX2`.

    Raises:
        InvalidInputError: no such board; close matches are named.
    """
    wanted = name.strip().lower().replace("_", "-").replace(" ", "-")
    known = _aliases()
    for candidate in (wanted, wanted.removeprefix("jetson-")):
        if candidate in known:
            return known[candidate]
    word = wanted.removeprefix("jetson-")
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    hint = did_you_mean(word, known if close else board_names())
    raise InvalidInputError(f"Unknown board {name!r}; {hint} `polythrottle profiles list` shows all.")


@lru_cache(maxsize=32)
def load_profile(name: str) -> BoardProfile:
    """The profile of a board, by any of its names.

    Raises:
        InvalidInputError: no such board; close matches are named.
    """
    facts = _read(resolve_board(name))
    cpu, power, thermal = facts["cpu"], facts["power"], facts["thermal"]
    return BoardProfile(
        name=facts["board"],
        aliases=tuple(facts["aliases"]),
        display_name=facts["display_name"],
        soc=facts["soc"],
        gpu=facts["gpu"],
        module_parts=tuple(facts["module_parts"]),
        jetpack=facts["jetpack"],
        note=facts["note"],
        cpu_cores=cpu["cores"],
        cpu_clusters=tuple(
            CpuCluster(c["name"], c["nvpmodel_name"], c["policy_cpu"], tuple(c["cpus"]))
            for c in cpu["clusters"]
        ),
        cpu_tables=_tables(cpu),
        gpu_tables=_tables(facts["gpu_clock"]),
        mem_tables=_tables(facts["memory_clock"]),
        power_rails=tuple(_rails(power["sensors"])),
        total_rail=power["total"]["rail"],
        total_summed_rails=_tuple(power["total"]["summed_rails"]),
        nvpmodels=tuple(_nvpmodel(entry) for entry in facts["nvpmodel"]),
        thermal_zones=None if thermal is None else tuple(thermal["zones"]),
        facts=facts,
    )


def _tuple(values: Sequence[Any] | None) -> tuple[Any, ...] | None:
    return None if values is None else tuple(values)


def _tables(block: Mapping[str, Any]) -> tuple[LevelTable, ...]:
    return tuple(
        LevelTable(
            variant=table["variant"],
            complete=table["complete"],
            freqs_mhz=_floats(table["levels_mhz"]),
            known_points_mhz=_floats(table["known_points_mhz"]),
            source=table["source"],
            note=table["note"],
        )
        for table in block["tables"]
    )


def _floats(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(float(value) for value in values)


def _rails(sensors: Sequence[Mapping[str, Any]]) -> Iterator[PowerRail]:
    for sensor in sensors:
        for channel in sensor["channels"]:
            yield PowerRail(
                sensor=sensor["model"],
                i2c_bus=sensor["i2c_bus"],
                address=sensor["address"],
                index=channel["index"],
                label=channel["label"],
                shunt_uohm=channel["shunt_uohm"],
                current_lsb_ma=channel["current_lsb_ma"],
                covers=channel["covers"],
            )


def _mhz(cap: int | str, per_mhz: float) -> float:
    return float("inf") if isinstance(cap, str) else cap / per_mhz


def _nvpmodel(entry: Mapping[str, Any]) -> NvpModel:
    modes = []
    for mode in entry["modes"]:
        cpu = mode["cpu"]
        caps = None
        if cpu is not None:
            caps = tuple((name, _mhz(limits["max_khz"], 1e3)) for name, limits in cpu.items())
        modes.append(
            NvpMode(
                id=mode["id"],
                name=mode["name"],
                cpus_online=_tuple(mode["cpus_online"]),
                cpu_caps_mhz=caps,
                gpu_cap_mhz=None if mode["gpu"] is None else _mhz(mode["gpu"]["max_hz"], 1e6),
                mem_cap_mhz=None if mode["memory"] is None else _mhz(mode["memory"]["max_hz"], 1e6),
            )
        )
    return NvpModel(
        variant=entry["variant"],
        conf_file=entry["conf_file"],
        default_mode=entry["default_mode"],
        modes=tuple(modes),
        source=entry["source"],
        note=entry["note"],
    )
