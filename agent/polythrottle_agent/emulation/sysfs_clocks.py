"""The files of the clocks: GPU devfreq, EMC under debugfs and nvpmodel's caps, cpufreq and CPUs online."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable

from polythrottle_agent.emulation.cpus import GOVERNORS as CPU_GOVERNORS
from polythrottle_agent.emulation.cpus import Cpus, Policy
from polythrottle_agent.emulation.emc import Emc
from polythrottle_agent.emulation.gpu import GOVERNORS as GPU_GOVERNORS
from polythrottle_agent.emulation.gpu import Gpu
from polythrottle_agent.emulation.kernels import kstrtoul, refused, sscanf_unsigned, word
from polythrottle_agent.emulation.layouts import Layout
from polythrottle_agent.emulation.sysfs import Directory, Entry, Link, Node, fixed, readable

DEBUGFS = "/sys/kernel/debug"
BPMP_EMC = f"{DEBUGFS}/bpmp/debug/clk/emc"
CPU_ROOT = "/sys/devices/system/cpu"
PODGOV_TUNABLES = {"load_target": 700, "load_max": 900, "load_margin": 10, "k": 3}


def spaced(values: Iterable[object]) -> str:
    return " ".join(str(value) for value in values)


def gpu_entries(layout: Layout, gpu: Gpu, is_there: Callable[[], bool]) -> dict[str, Entry]:
    """devfreq and the driver's own files one level up. `is_there`: the node can appear late in boot."""
    place = layout.gpu
    on_thor = place.of_node_name is None
    base, device = place.devfreq, place.device

    def store(call: Callable[[int], None]) -> Callable[[bytes], None]:
        return lambda data: call(sscanf_unsigned(data))

    def store_railgate(data: bytes) -> None:
        gpu.railgate_enabled = kstrtoul(data) != 0

    def store_delay(data: bytes) -> None:
        gpu.railgate_delay_ms = kstrtoul(data, 10)

    def store_control(data: bytes) -> None:
        if word(data) not in ("on", "auto"):
            raise refused(errno.EINVAL)
        gpu.power_control = word(data)

    entries: dict[str, Entry] = {
        f"{base}/name": readable(lambda: place.name),
        f"{base}/min_freq": Node(0o644, lambda: str(gpu.min_hz), store(gpu.store_min)),
        f"{base}/max_freq": Node(0o644, lambda: str(gpu.max_hz), store(gpu.store_max)),
        f"{base}/cur_freq": readable(lambda: str(gpu.cur_hz)),
        f"{base}/target_freq": readable(lambda: str(gpu.cur_hz)),
        f"{base}/available_frequencies": readable(lambda: spaced(gpu.table_hz)),
        f"{base}/governor": Node(0o644, lambda: gpu.governor, lambda data: gpu.store_governor(word(data))),
        f"{base}/available_governors": readable(lambda: spaced(GPU_GOVERNORS)),
        f"{base}/polling_interval": readable(lambda: "25", 0o644),
        f"{base}/trans_stat": readable(lambda: "Total transition : 0"),
        f"{base}/userspace/set_freq": Node(
            0o644,
            lambda: str(gpu.set_freq_hz),
            store(gpu.store_set_freq),
            exists=lambda: gpu.governor == "userspace",
        ),
    }
    for name, value in PODGOV_TUNABLES.items():
        entries[f"{base}/nvhost_podgov/{name}"] = Node(
            0o644, fixed(str(value)), exists=lambda: gpu.governor == "nvhost_podgov"
        )
    if on_thor:
        pci = device.rpartition("/")[0]
        entries |= {
            f"{pci}/power/control": Node(0o644, lambda: gpu.power_control, store_control),
            f"{pci}/power/runtime_status": readable(lambda: "suspended" if gpu.is_gated else "active"),
            f"{pci}/vendor": readable(lambda: "0x10de"),
            f"{pci}/class": readable(lambda: "0x030200"),
        }
    else:
        entries |= {
            f"{device}/load": readable(lambda: str(gpu.load_permille)),
            f"{device}/railgate_enable": Node(0o744, lambda: str(int(gpu.railgate_enabled)), store_railgate),
            f"{device}/railgate_delay": Node(0o744, lambda: str(gpu.railgate_delay_ms), store_delay),
            f"{device}/is_railgated": readable(lambda: "yes" if gpu.is_gated else "no"),
            f"{device}/power/control": Node(0o644, lambda: gpu.power_control, store_control),
            f"{device}/of_node/name": readable(lambda: f"{place.of_node_name}\0".encode()),
        }
    for entry in entries.values():
        if isinstance(entry, Node):
            entry.exists = _both(is_there, entry.exists)
    entries[f"{base}/device"] = Link(device, is_there)
    entries[f"/sys/class/devfreq/{place.name}"] = Link(base, is_there)
    entries |= {path: Link(target, is_there) for path, target in place.links.items()}
    return entries | _other_devfreq(layout)


def _both(first: Callable[[], bool], second: Callable[[], bool]) -> Callable[[], bool]:
    return lambda: first() and second()


def _other_devfreq(layout: Layout) -> dict[str, Entry]:
    """Nodes beside the GPU's, which no program may take for it."""
    if layout.gpu.of_node_name is None:
        pci = layout.gpu.device.rpartition("/")[0]
        name, device, of_node = "gpu-nvd-0", f"{pci}/gpu-nvd-0", None
        levels = [round(1692e6)]
    else:
        name, device, of_node = "15340000.vic", "/sys/devices/platform/15340000.vic", "vic"
        levels = [round(mhz * 1e6) for mhz in (115.2, 460.8, 601.6, 1024.0)]
    base = f"{device}/devfreq/{name}"
    entries: dict[str, Entry] = {
        f"{base}/min_freq": readable(lambda: str(levels[0]), 0o644),
        f"{base}/max_freq": readable(lambda: str(levels[-1]), 0o644),
        f"{base}/cur_freq": readable(lambda: str(levels[0])),
        f"{base}/available_frequencies": readable(lambda: spaced(levels)),
        f"{base}/governor": readable(lambda: "tegra_wmark", 0o644),
        f"{base}/device": Link(device),
        f"/sys/class/devfreq/{name}": Link(base),
    }
    if of_node is not None:
        entries[f"{device}/of_node/name"] = readable(lambda: f"{of_node}\0".encode())
    return entries


def emc_entries(layout: Layout, emc: Emc) -> dict[str, Entry]:
    """debugfs is open to root alone. BPMP's refusals do not reach the writer from 5.10 on."""

    def number(call: Callable[[int], None]) -> Callable[[bytes], None]:
        def store(data: bytes) -> None:
            try:
                value = kstrtoul(data)
            except OSError:
                if layout.kernel.qos:
                    return  # mrq_debug_write() ends with the result of closing
                raise
            call(value)

        return store

    entries: dict[str, Entry] = {
        DEBUGFS: Directory(0o700),
        f"{BPMP_EMC}/rate": Node(0o600, lambda: str(emc.rate_hz), number(emc.store_rate)),
        f"{BPMP_EMC}/min_rate": readable(lambda: str(emc.rates_hz[0]), 0o400),
        f"{BPMP_EMC}/max_rate": readable(lambda: str(emc.max_rate_hz), 0o400),
        f"{BPMP_EMC}/mrq_rate_locked": Node(0o600, lambda: str(int(emc.locked)), number(emc.store_locked)),
        f"{BPMP_EMC}/state": Node(0o600, lambda: str(emc.state), number(emc.store_state)),
        f"{DEBUGFS}/bpmp/debug/actmon/mc_all_avg_activity": readable(lambda: str(emc.utilisation), 0o400),
        f"{DEBUGFS}/cactmon/mc_all": readable(lambda: str(emc.utilisation)),
    }
    if layout.kernel.halts_bwmgr:
        entries[f"{DEBUGFS}/bpmp/debug/bwmgr/bwmgr_halt"] = Node(
            0o600, lambda: str(int(emc.halted)), number(emc.store_halted)
        )
    if layout.kernel.release == "4.9":
        entries[f"{DEBUGFS}/clk/emc/clk_rate"] = readable(lambda: str(emc.rate_hz))
    if layout.kernel.clk_cap:
        entries["/sys/kernel/nvpmodel_clk_cap/emc"] = Node(
            0o664, lambda: str(emc.clk_cap_hz), lambda data: emc.store_clk_cap(kstrtoul(data))
        )
    else:
        entries["/sys/kernel/nvpmodel_emc_cap/emc_iso_cap"] = Node(
            0o660, lambda: str(emc.iso_cap_hz), lambda data: emc.store_iso_cap(kstrtoul(data))
        )
    if layout.gpu.of_node_name is None:
        base = "/sys/devices/platform/bwmgr/devfreq/bwmgr"
        entries |= {
            f"{base}/cur_freq": readable(lambda: str(emc.rate_hz)),
            f"{base}/min_freq": readable(lambda: str(emc.rates_hz[0]), 0o644),
            f"{base}/max_freq": readable(lambda: str(emc.max_rate_hz), 0o644),
            f"{base}/governor": readable(lambda: "userspace", 0o644),
            "/sys/class/devfreq/bwmgr": Link(base),
        }
    return entries


def cpu_entries(layout: Layout, cpus: Cpus) -> dict[str, Entry]:
    every = range(cpus.count)
    entries: dict[str, Entry] = {
        f"{CPU_ROOT}/online": readable(lambda: cpu_list(cpus.online)),
        f"{CPU_ROOT}/offline": readable(lambda: cpu_list(set(every) - cpus.online)),
        f"{CPU_ROOT}/present": readable(lambda: cpu_list(every)),
        f"{CPU_ROOT}/possible": readable(lambda: cpu_list(every)),
    }
    for policy in cpus.policies:
        base = f"{CPU_ROOT}/cpufreq/policy{policy.cpus[0]}"
        entries |= _policy_entries(layout, cpus, policy, base)
        for cpu in policy.cpus:
            entries[f"{CPU_ROOT}/cpu{cpu}/online"] = Node(
                0o644, _is_online(cpus, cpu), _online_store(cpus, cpu)
            )
            entries[f"{CPU_ROOT}/cpu{cpu}/cpufreq"] = Link(base)
    return entries


def _is_online(cpus: Cpus, cpu: int) -> Callable[[], str]:
    return lambda: str(int(cpu in cpus.online))


def _online_store(cpus: Cpus, cpu: int) -> Callable[[bytes], None]:
    def store(data: bytes) -> None:
        first = data.strip()[:1].lower()
        if first not in (b"0", b"1", b"y", b"n"):
            raise refused(errno.EINVAL)
        cpus.store_online(cpu, first in (b"1", b"y"))

    return store


def _policy_entries(layout: Layout, cpus: Cpus, policy: Policy, base: str) -> dict[str, Entry]:
    number = kstrtoul if layout.kernel.newer_cpufreq else sscanf_unsigned

    def shown(value: Callable[[], object], mode: int = 0o444) -> Node:
        def show() -> str:
            if layout.kernel.newer_cpufreq:
                cpus.check_active(policy)
            return str(value())

        return Node(mode, show)

    def written(value: Callable[[], object], store: Callable[[bytes], None]) -> Node:
        node = shown(value, 0o644)
        node.store = store
        return node

    def setspeed() -> str:
        return str(policy.setspeed_khz) if policy.governor == "userspace" else "<unsupported>"

    table = policy.table_khz
    return {
        f"{base}/scaling_min_freq": written(
            lambda: policy.low, lambda data: cpus.store_min(policy, number(data))
        ),
        f"{base}/scaling_max_freq": written(
            lambda: policy.high, lambda data: cpus.store_max(policy, number(data))
        ),
        f"{base}/scaling_cur_freq": shown(lambda: cpus.cur_khz(policy)),
        f"{base}/cpuinfo_cur_freq": shown(lambda: cpus.measured_khz(policy), 0o400),
        f"{base}/cpuinfo_min_freq": shown(lambda: table[0]),
        f"{base}/cpuinfo_max_freq": shown(lambda: table[-1]),
        f"{base}/cpuinfo_transition_latency": shown(lambda: 300000),
        f"{base}/scaling_available_frequencies": shown(lambda: spaced(table) + " "),
        f"{base}/scaling_governor": written(
            lambda: policy.governor, lambda data: cpus.store_governor(policy, word(data))
        ),
        f"{base}/scaling_available_governors": shown(lambda: spaced(CPU_GOVERNORS) + " "),
        f"{base}/scaling_driver": shown(lambda: layout.cpufreq_driver),
        f"{base}/scaling_setspeed": written(setspeed, lambda data: cpus.store_setspeed(policy, number(data))),
        f"{base}/related_cpus": shown(lambda: spaced(policy.cpus)),
        f"{base}/affected_cpus": shown(lambda: spaced(sorted(cpus.online.intersection(policy.cpus)))),
    }


def cpu_list(cpus: Iterable[int]) -> str:
    """`0-3,5`, as the kernel prints a set of CPUs."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and cpu == runs[-1][-1] + 1:
            runs[-1].append(cpu)
        else:
            runs.append([cpu])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
