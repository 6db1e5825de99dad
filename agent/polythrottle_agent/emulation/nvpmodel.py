"""nvpmodel and jetson_clocks on an emulated board: conf file, status, and the writes of each."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any

from polythrottle.errors import InvalidInputError, did_you_mean
from polythrottle.profiles import NvpMode
from polythrottle_agent.emulation.board import round_down
from polythrottle_agent.emulation.cpus import Cpus
from polythrottle_agent.emulation.emc import Emc
from polythrottle_agent.emulation.gpu import Gpu
from polythrottle_agent.emulation.layouts import Layout

UNLIMITED = 2**31 - 1
"""INT_MAX: what -1 in a conf file becomes."""


EACH_CORE = "each_core"
"""How a profile names the limits of a conf that limits each core by itself."""


def mode_named(layout: Layout, wanted: int | str) -> NvpMode:
    """A power mode by its id or its name.

    Raises:
        InvalidInputError: the board has no such mode.
    """
    for mode in layout.nvpmodel.modes:
        if wanted in (mode.id, mode.name) or str(wanted) == str(mode.id):
            return mode
    names = [mode.name for mode in layout.nvpmodel.modes]
    raise InvalidInputError(
        f"{layout.board} has no power mode {wanted!r}; {did_you_mean(str(wanted), names)}"
    )


def apply_mode(layout: Layout, mode: NvpMode, gpu: Gpu, emc: Emc, cpus: Cpus) -> None:
    """The writes of `nvpmodel -m`, in its order: cores, CPU, GPU, memory. Values off a table go down."""
    facts = next(m for m in facts_of(layout)["modes"] if m["id"] == mode.id)
    online = range(cpus.count) if mode.cpus_online is None else mode.cpus_online
    for cpu in range(1, cpus.count):
        cpus.store_online(cpu, cpu in online)
    limits = list((facts["cpu"] or {}).values())
    for number, policy in enumerate(cpus.policies):
        if not limits or not cpus.is_active(policy):
            continue
        limit = limits[min(number, len(limits) - 1)]
        high = UNLIMITED if isinstance(limit["max_khz"], str) else limit["max_khz"]
        cpus.store_min(policy, policy.table_khz[0])
        cpus.store_max(policy, round(round_down(high, policy.table_khz)))
        floor = limit["min_khz"] or policy.table_khz[0]
        cpus.store_min(policy, round(min(floor, round_down(high, policy.table_khz))))
    gpu.store_min(0)
    cap = math.inf if mode.gpu_cap_mhz is None else mode.gpu_cap_mhz * 1e6
    gpu.store_max(round(round_down(cap, gpu.table_hz)))
    mem_cap = math.inf if mode.mem_cap_mhz is None else mode.mem_cap_mhz * 1e6
    if layout.kernel.clk_cap:
        with contextlib.suppress(OSError):  # it complains, and goes on
            emc.store_clk_cap(round(min(mem_cap, emc.rates_hz[-1])))
    else:
        emc.store_iso_cap(0 if math.isinf(mem_cap) else round(mem_cap))


def jetson_clocks(layout: Layout, gpu: Gpu, emc: Emc, cpus: Cpus) -> None:
    """The writes of `jetson_clocks`: everything to its present maximum, minimum up, memory locked."""
    for policy in cpus.policies:
        if cpus.is_active(policy):
            cpus.store_min(policy, policy.high)
    gpu.railgate_enabled = False
    gpu.store_min(gpu.max_hz)
    if layout.kernel.halts_bwmgr:
        emc.store_halted(1)
    emc.store_locked(1)
    emc.store_rate(emc.ceiling_hz)
    emc.store_state(1)


def status_text(mode: NvpMode) -> str:
    """/var/lib/nvpmodel/status, which survives a reboot."""
    return f"pmode:{mode.id:04d} fmode:quiet"


def facts_of(layout: Layout) -> Mapping[str, Any]:
    """The conf file of the board, as its profile has it."""
    entries: list[Mapping[str, Any]] = layout.profile.facts["nvpmodel"]
    return next(entry for entry in entries if entry["variant"] == layout.nvpmodel.variant)


def conf_text(layout: Layout) -> str:
    """A conf file in nvpmodel's format, from the facts of the profile."""
    facts = facts_of(layout)
    nodes: dict[str, str] = {}
    for key in ("max_freq_nodes", "max_freq_nodes_newer_kernel"):
        nodes |= facts[key] or {}
    lines = ["# Emulated: written from the board's profile.", ""]
    cores = range(layout.profile.cpu_cores)
    if any(EACH_CORE in (mode["cpu"] or {}) for mode in facts["modes"]):
        # Such a conf has a parameter for each core. What they are called there is not sourced.
        nodes |= {f"CPU_{n}": f"/sys/devices/system/cpu/cpu{n}/cpufreq/scaling_max_freq" for n in cores}
    lines.append("< PARAM TYPE=FILE NAME=CPU_ONLINE >")
    lines += [f"CORE_{core} /sys/devices/system/cpu/cpu{core}/online" for core in cores]
    for name, path in nodes.items():
        unit = path.rpartition("/")[0]
        lines += ["", f"< PARAM TYPE=CLOCK NAME={name} >"]
        if name == "EMC":
            lines.append(f"MAX_FREQ {path}")
        elif name == "GPU":
            lines += [
                f"FREQ_TABLE {unit}/available_frequencies",
                f"MAX_FREQ {path}",
                f"MIN_FREQ {unit}/min_freq",
            ]
        else:
            lines += [
                f"FREQ_TABLE {unit}/scaling_available_frequencies",
                f"MAX_FREQ {path}",
                f"MIN_FREQ {unit}/scaling_min_freq",
            ]
    for mode in facts["modes"]:
        lines += ["", f"< POWER_MODEL ID={mode['id']} NAME={mode['name']} >"]
        online = mode["cpus_online"]
        lines += [f"CPU_ONLINE CORE_{core} {int(online is None or core in online)}" for core in cores]
        for name, limit in _by_parameter(mode["cpu"] or {}, cores):
            lines += [f"{name} MIN_FREQ {limit['min_khz']}", f"{name} MAX_FREQ {_conf(limit['max_khz'])}"]
        if mode["gpu"] is not None:
            lines += [f"GPU MIN_FREQ {mode['gpu']['min_hz']}", f"GPU MAX_FREQ {_conf(mode['gpu']['max_hz'])}"]
        if mode["memory"] is not None:
            lines.append(f"EMC MAX_FREQ {mode['memory']['value_in_conf']}")
    lines += ["", f"< PM_CONFIG DEFAULT={layout.nvpmodel.default_mode} >", "", "< FAN_CONFIG DEFAULT=quiet >"]
    return "\n".join(lines)


def _by_parameter(
    limits: dict[str, dict[str, int | str]], cores: range
) -> list[tuple[str, dict[str, int | str]]]:
    if EACH_CORE not in limits:
        return list(limits.items())
    return [(f"CPU_{core}", limits[EACH_CORE]) for core in cores]


def _conf(value: object) -> object:
    return -1 if isinstance(value, str) else value
