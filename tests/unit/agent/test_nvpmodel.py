from __future__ import annotations

import math
from pathlib import Path

import pytest

from polythrottle_agent.nvpmodel import NvpModel, parse_conf
from polythrottle_agent.sysfs import Sysfs

CONF = """\
# comment < PARAM TYPE=CLOCK NAME=NOT >
< PARAM TYPE=FILE NAME=CPU_ONLINE >
CORE_1 /sys/devices/system/cpu/cpu1/online
CORE_4 /sys/devices/system/cpu/cpu4/online
< PARAM TYPE=CLOCK NAME=CPU_A78_0 >
FREQ_TABLE /sys/devices/system/cpu/cpu0/cpufreq/scaling_available_frequencies
MAX_FREQ /sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq
MIN_FREQ /sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq
<PARAM TYPE=CLOCK NAME=CPU_A78_1>
MAX_FREQ_KNEXT /sys/devices/system/cpu/cpu4/cpufreq/scaling_max_freq
< PARAM TYPE=CLOCK NAME=GPU >
MAX_FREQ /sys/devices/17000000.ga10b/devfreq/17000000.ga10b/max_freq
MIN_FREQ /sys/devices/17000000.ga10b/devfreq/17000000.ga10b/min_freq
<PARAM TYPE=CLOCK NAME=EMC >
MAX_FREQ /sys/kernel/nvpmodel_emc_cap/emc_iso_cap
< PARAM TYPE=FILE NAME=GPU_POWER_CONTROL_ENABLE >
GPU_PWR_CNTL_EN /sys/devices/gpu.0/power/control

< POWER_MODEL ID=0 NAME=MAXN >
CPU_ONLINE CORE_1 1
CPU_ONLINE CORE_4 1
CPU_A78_0 MIN_FREQ 729600
CPU_A78_0 MAX_FREQ -1
CPU_A78_1 MAX_FREQ -1
GPU MIN_FREQ 0
GPU MAX_FREQ -1
EMC MAX_FREQ 0
< POWER_MODEL ID=3 NAME=7W >
CPU_ONLINE CORE_1 1
CPU_ONLINE CORE_4 0
GPU_POWER_CONTROL_ENABLE GPU_PWR_CNTL_EN on
CPU_A78_0 MIN_FREQ 729600
CPU_A78_0 MAX_FREQ 960000
GPU MIN_FREQ 0
GPU MAX_FREQ 408000000
EMC MAX_FREQ 3199000000
< PM_CONFIG DEFAULT=3 >
< FAN_CONFIG DEFAULT=cool >
"""

OLD_CONF = """\
< POWER_MODEL ID=1 NAME=MAXQ >
/sys/devices/system/cpu/cpu1/online 0
/sys/devices/system/cpu/cpu3/online 1
/sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq 0
/sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq 1200000
/sys/devices/17000000.gp10b/devfreq/17000000.gp10b/min_freq 0
/sys/devices/17000000.gp10b/devfreq/17000000.gp10b/max_freq 850000000
/sys/kernel/nvpmodel_emc_cap/emc_iso_cap 1331200000
"""


def test_a_conf_is_read_with_gaps_in_ids_and_headers_without_spaces() -> None:
    modes, default = parse_conf(CONF)
    assert [(mode.id, mode.name) for mode in modes] == [(0, "MAXN"), (3, "7W")]
    assert default == 3
    low = modes[1]
    assert (low.gpu_mhz, low.mem_mhz) == (408.0, 3199.0)
    assert low.cpu_mhz == {0: 960.0}
    assert (low.cpus_online, low.cpus_offline) == (frozenset({1}), frozenset({4}))


def test_minus_one_is_no_cap_and_zero_is_none_for_memory() -> None:
    most = parse_conf(CONF)[0][0]
    assert most.gpu_mhz == math.inf
    assert most.mem_mhz == math.inf
    assert most.cpu_mhz == {0: math.inf, 4: math.inf}


def test_the_oldest_form_names_nodes_in_the_modes() -> None:
    (mode,), default = parse_conf(OLD_CONF)
    assert default is None
    assert (mode.gpu_mhz, mode.mem_mhz, mode.cpu_mhz) == (850.0, 1331.2, {0: 1200.0})
    assert (mode.cpus_online, mode.cpus_offline) == (frozenset({3}), frozenset({1}))


def test_what_a_mode_does_not_name_is_not_called_uncapped() -> None:
    (mode,), _ = parse_conf("< POWER_MODEL ID=1 NAME=120W >\nCPU_ONLINE CORE_1 1\n")
    assert mode.gpu_mhz is None
    assert mode.mem_mhz is None
    assert mode.cpu_mhz == {}


@pytest.mark.parametrize(
    "text", ["", "garbage\n\0\xff", "< POWER_MODEL NAME=X >\nGPU MAX_FREQ 1", "GPU MAX_FREQ"]
)
def test_a_conf_that_makes_no_sense_has_no_mode(text: str) -> None:
    assert parse_conf(text)[0] == ()


def put(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_the_mode_in_force_is_the_status_file_s_and_follows_it(tmp_path: Path) -> None:
    put(tmp_path, "etc/nvpmodel.conf", CONF)
    model = NvpModel(Sysfs(tmp_path))
    mode = model.mode()
    assert mode is not None
    assert mode.name == "7W"  # the default, while there is no status file
    put(tmp_path, "var/lib/nvpmodel/status", "pmode:0000 fmode:quiet\n")
    mode = model.mode()
    assert mode is not None
    assert mode.name == "MAXN"
    put(tmp_path, "var/lib/nvpmodel/status", "pmode:0009 fmode:quiet\n")
    assert model.mode() is None


def test_a_machine_without_nvpmodel_has_no_mode(tmp_path: Path) -> None:
    model = NvpModel(Sysfs(tmp_path))
    assert not model.is_here
    assert model.mode() is None
    assert model.memory_cap_mhz() == math.inf


@pytest.mark.parametrize(
    ("node", "value", "cap"),
    [
        ("sys/kernel/nvpmodel_emc_cap/emc_iso_cap", "0", 3199.0),
        ("sys/kernel/nvpmodel_emc_cap/emc_iso_cap", "2133000000", 2133.0),
        ("sys/kernel/nvpmodel_clk_cap/emc", "665600000", 665.6),
        ("sys/kernel/nvpmodel_clk_cap/emc", "9999000000", 3199.0),
    ],
)
def test_the_memory_cap_is_the_lower_of_mode_and_node(
    tmp_path: Path, node: str, value: str, cap: float
) -> None:
    put(tmp_path, "etc/nvpmodel.conf", CONF)
    put(tmp_path, node, value)
    assert NvpModel(Sysfs(tmp_path)).memory_cap_mhz() == cap
