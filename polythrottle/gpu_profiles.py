"""GPU profiles: what is published about each data-centre GPU, with sources. None: no source was found.

On hardware the lists and ranges that the driver gives are in force; a profile only tells what to expect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from typing import Any

import yaml

from polythrottle.errors import InvalidInputError, did_you_mean
from polythrottle.profiles import PACKAGE, sources_in

SCHEMA = "polythrottle-gpu-profile/1"
FOLDER = "gpus"


@dataclass(frozen=True)
class GpuProfile:
    """One model. `facts` is the whole file, for what has no field of its own yet. Clocks in MHz."""

    name: str
    aliases: tuple[str, ...]
    display_name: str
    product_names: tuple[str, ...]
    architecture: str
    lowest_mhz: float | None
    highest_mhz: float | None
    step_mhz: float | None
    memory_mhz: tuple[float, ...] | None
    lowest_w: float | None
    highest_w: float | None
    default_w: float | None
    facts: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def graphics_mhz(self) -> tuple[float, ...] | None:
        """The table, ascending, where its ends and step are published; the driver shows whole MHz."""
        if self.lowest_mhz is None or self.highest_mhz is None or self.step_mhz is None:
            return None
        count = int((self.highest_mhz - self.lowest_mhz) / self.step_mhz + 1e-6)
        return tuple(float(int(self.highest_mhz - n * self.step_mhz)) for n in range(count, -1, -1))

    @property
    def sources(self) -> tuple[str, ...]:
        """Every source the profile names, without repeats."""
        return sources_in(self.facts)


@lru_cache(maxsize=1)
def gpu_names() -> tuple[str, ...]:
    """Every GPU that has a profile, sorted."""
    files = resources.files(PACKAGE).joinpath(FOLDER).iterdir()
    return tuple(sorted(entry.name[: -len(".yaml")] for entry in files if entry.name.endswith(".yaml")))


@lru_cache(maxsize=32)
def load_gpu_profile(name: str) -> GpuProfile:
    """The profile of a GPU, by any of its names or by what NVML calls it.

    Raises:
        InvalidInputError: no such GPU; close matches are named.
    """
    wanted = name.strip().lower().replace("_", "-").replace(" ", "-")
    known: dict[str, dict[str, Any]] = {}
    for candidate in gpu_names():
        facts = _read(candidate)
        products = [product.lower().replace(" ", "-") for product in facts["product_names"]]
        for word in (candidate, *facts["aliases"], *products):
            known.setdefault(word, facts)
    if wanted not in known:
        raise InvalidInputError(f"No profile of a GPU {name!r}; {did_you_mean(wanted, gpu_names())}")
    return _profile(known[wanted])


def _read(name: str) -> dict[str, Any]:
    text = resources.files(PACKAGE).joinpath(FOLDER).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    facts = yaml.safe_load(text)
    if facts.get("schema") != SCHEMA:
        raise InvalidInputError(f"GPU profile {name} is {facts.get('schema')}, not {SCHEMA}: reinstall.")
    return dict(facts)


def _profile(facts: dict[str, Any]) -> GpuProfile:
    graphics, memory, power = facts["graphics_clock"], facts["memory_clock"], facts["power_limit_w"]
    levels = memory["levels_mhz"]
    return GpuProfile(
        name=facts["gpu"],
        aliases=tuple(facts["aliases"]),
        display_name=facts["display_name"],
        product_names=tuple(facts["product_names"]),
        architecture=facts["architecture"],
        lowest_mhz=graphics["lowest_mhz"],
        highest_mhz=graphics["highest_mhz"],
        step_mhz=graphics["step_mhz"],
        memory_mhz=None if levels is None else tuple(float(level) for level in levels),
        lowest_w=power["lowest"],
        highest_w=power["highest"],
        default_w=power["default"],
        facts=facts,
    )
