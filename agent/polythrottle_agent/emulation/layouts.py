"""Where each emulated board keeps its files, under which kernel, and which tables it shows there.

Paths as `device_profiles/` has them. The device directories behind the links under /sys/class and /sys/bus
(names of I²C controllers, thermal devices) are plausible ones: programs must come by the links.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from polythrottle.errors import InvalidInputError, did_you_mean
from polythrottle.profiles import BoardProfile, LevelTable, NvpModel, load_profile
from polythrottle_agent.emulation.boards import board_named
from polythrottle_agent.emulation.kernels import Kernel, kernel_named

THOR_PCI = "0000:01:00.0"


@dataclass(frozen=True)
class GpuPlace:
    """device: the directory of the GPU. name: of its devfreq node. links: other paths, each with its target.

    of_node_name is the device tree's name, None on Thor, where the GPU sits on PCI.
    """

    device: str
    name: str
    of_node_name: str | None
    links: Mapping[str, str] = field(default_factory=dict)

    @property
    def devfreq(self) -> str:
        return f"{self.device}/devfreq/{self.name}"


@dataclass(frozen=True)
class Layout:
    """One board under one kernel. Levels in MHz, ascending.

    i2c: the controller's directory of each bus. volts: of each rail by its label, `*` for the others.
    """

    board: str
    kernel: Kernel
    profile: BoardProfile
    nvpmodel: NvpModel
    gpu_mhz: tuple[float, ...]
    mem_mhz: tuple[float, ...]
    cpu_mhz: tuple[float, ...]
    gpu: GpuPlace
    model: str
    compatible: tuple[str, ...]
    release: str
    i2c: Mapping[int, str]
    volts: Mapping[str, float]
    cpufreq_driver: str

    @property
    def clusters(self) -> tuple[tuple[int, ...], ...]:
        return tuple(cluster.cpus for cluster in self.profile.cpu_clusters)


@dataclass(frozen=True)
class _Boot:
    """How one board boots one kernel: which variants of its profile's tables hold, and where the GPU is."""

    tables: Mapping[str, str]
    nvpmodel: str
    gpu: GpuPlace
    release: str


@dataclass(frozen=True)
class _Module:
    profile: str
    model: str
    compatible: tuple[str, ...]
    i2c: Mapping[int, str]
    volts: Mapping[str, float]
    cpufreq_driver: str
    boots: Mapping[str, _Boot]
    default_kernel: str


def _flat_gpu(name: str, *, newer: bool) -> GpuPlace:
    """TX2, Xavier, and Orin up to JetPack 5: named after its architecture, right under /sys/devices."""
    device = f"/sys/devices/17000000.{name}"
    links = {"/sys/devices/gpu.0": device}
    if newer:
        links[f"{device}/devfreq_dev"] = f"{device}/devfreq/17000000.{name}"
    return GpuPlace(device, f"17000000.{name}", name, links)


_PLATFORM_GPU = GpuPlace(
    "/sys/devices/platform/bus@0/17000000.gpu",
    "17000000.gpu",
    "gpu",
    {
        "/sys/devices/platform/17000000.gpu": "/sys/devices/platform/bus@0/17000000.gpu",
        "/sys/devices/platform/gpu.0": "/sys/devices/platform/bus@0/17000000.gpu",
        "/sys/devices/platform/bus@0/17000000.gpu/devfreq_dev": (
            "/sys/devices/platform/bus@0/17000000.gpu/devfreq/17000000.gpu"
        ),
    },
)

_THOR_GPU = GpuPlace(
    f"/sys/devices/platform/bus@0/d0b0000000.pcie/pci0000:00/0000:00:00.0/{THOR_PCI}/gpu-gpc-0",
    "gpu-gpc-0",
    None,
    {
        f"/sys/bus/pci/devices/{THOR_PCI}": (
            f"/sys/devices/platform/bus@0/d0b0000000.pcie/pci0000:00/0000:00:00.0/{THOR_PCI}"
        )
    },
)

_JP4 = "# R32 (release), REVISION: 7.4, GCID: 33514132, BOARD: {board}, EABI: aarch64, DATE: 2023-06-13"
_JP5 = "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: {board}, EABI: aarch64, DATE: 2023-08-01"
_JP6 = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: 2025-01-08"
_JP7 = "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64, DATE: 2025-08-22"

_ORIN_SUPER = {
    "gpu_freq_mhz": "super (JetPack 6.2)",
    "mem_freq_mhz": "super (JetPack 6.2)",
    "cpu_freq_mhz": "super (JetPack 6.2)",
}
_ORIN_STOCK = {"gpu_freq_mhz": "stock", "mem_freq_mhz": "stock", "cpu_freq_mhz": "stock"}

_MODULES: Mapping[str, _Module] = {
    "tx2": _Module(
        profile="jetson-tx2",
        model="quill",
        compatible=("nvidia,quill", "nvidia,tegra186"),
        i2c={0: "/sys/devices/3160000.i2c/i2c-0"},
        volts={"*": 19.0, "VDD_4V0_WIFI": 4.8},
        cpufreq_driver="tegra_cpufreq",
        boots={
            "4.9": _Boot({}, "L4T 32.x", _flat_gpu("gp10b", newer=False), _JP4.format(board="t186ref")),
        },
        default_kernel="4.9",
    ),
    "xavier-nx": _Module(
        profile="jetson-xavier-nx",
        model="NVIDIA Jetson Xavier NX Developer Kit",
        compatible=("nvidia,p3509-0000+p3668-0000", "nvidia,tegra194"),
        i2c={7: "/sys/devices/platform/c250000.i2c/i2c-7"},
        volts={"*": 5.0},
        cpufreq_driver="tegra194",
        boots={
            "4.9": _Boot({}, "L4T 35.x", _flat_gpu("gv11b", newer=False), _JP4.format(board="t186ref")),
            "5.10": _Boot({}, "L4T 35.x", _flat_gpu("gv11b", newer=True), _JP5.format(board="t186ref")),
        },
        default_kernel="5.10",
    ),
    "orin-nano-8gb": _Module(
        profile="jetson-orin-nano-8gb",
        model="NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        compatible=("nvidia,p3768-0000+p3767-0005-super", "nvidia,p3767-0005", "nvidia,tegra234"),
        i2c={1: "/sys/devices/platform/bus@0/c240000.i2c/i2c-1"},
        volts={"*": 5.0},
        cpufreq_driver="tegra194",
        boots={
            "5.10": _Boot(
                _ORIN_STOCK, "JetPack 5", _flat_gpu("ga10b", newer=True), _JP5.format(board="t186ref")
            ),
            "5.15": _Boot(_ORIN_SUPER, "super (JetPack 6.2)", _PLATFORM_GPU, _JP6),
        },
        default_kernel="5.15",
    ),
    "agx-orin": _Module(
        profile="jetson-agx-orin-64gb",
        model="NVIDIA Jetson AGX Orin Developer Kit",
        compatible=("nvidia,p3737-0000+p3701-0005", "nvidia,p3701-0005", "nvidia,tegra234"),
        i2c={1: "/sys/devices/platform/bus@0/c240000.i2c/i2c-1"},
        volts={"*": 20.0, "VIN_SYS_5V0": 5.0, "VDDQ_VDD2_1V8AO": 5.0},
        cpufreq_driver="tegra194",
        boots={
            "5.10": _Boot(
                {"gpu_freq_mhz": "JetPack 5.0 (early)"},
                "JetPack 5",
                _flat_gpu("ga10b", newer=True),
                _JP5.format(board="t186ref"),
            ),
            "5.15": _Boot({"gpu_freq_mhz": "JetPack 5.1 and 6"}, "JetPack 5", _PLATFORM_GPU, _JP6),
            "6.8": _Boot({"gpu_freq_mhz": "JetPack 5.1 and 6"}, "JetPack 5", _PLATFORM_GPU, _JP7),
        },
        default_kernel="5.15",
    ),
    "agx-thor": _Module(
        profile="jetson-agx-thor",
        model="NVIDIA Jetson AGX Thor Developer Kit",
        compatible=("nvidia,p4071-0000+p3834-0008", "nvidia,p3834-0008", "nvidia,tegra264"),
        i2c={2: "/sys/devices/platform/bus@0/810c600000.i2c/i2c-2"},
        volts={"*": 12.0, "VIN_SYS_5V0": 5.0, "VIN": 20.0},
        cpufreq_driver="cppc_cpufreq",
        boots={"6.8": _Boot({}, "L4T 38.x", _THOR_GPU, _JP7)},
        default_kernel="6.8",
    ),
}


def kernels_of(board: str) -> tuple[str, ...]:
    """The kernels that a board is emulated under."""
    return tuple(_MODULES[board].boots)


def layout_of(board: str, kernel: str | None = None) -> Layout:
    """The layout of a board under a kernel; None for the kernel it usually runs.

    Where a table is not published whole, the levels are those of `emulation.boards`: known points only.

    Raises:
        InvalidInputError: the sysfs of that board, or that kernel on it, is not emulated.
    """
    if board not in _MODULES:
        raise InvalidInputError(
            f"The sysfs of board {board!r} is not emulated; {did_you_mean(board, _MODULES)}"
        )
    module = _MODULES[board]
    release = module.default_kernel if kernel is None else kernel_named(kernel).release
    if release not in module.boots:
        raise InvalidInputError(
            f"{board} is emulated under kernel {' or '.join(module.boots)}, not {release}."
        )
    boot, profile, known = module.boots[release], load_profile(module.profile), board_named(board)

    def levels(knob: str, fallback: tuple[float, ...]) -> tuple[float, ...]:
        table = _table(profile, knob, boot.tables.get(knob))
        if table.freqs_mhz is not None:
            return table.freqs_mhz
        points = table.known_points_mhz or fallback
        return points if len(points) > 1 else fallback

    return Layout(
        board=board,
        kernel=kernel_named(release),
        profile=profile,
        nvpmodel=next(n for n in profile.nvpmodels if n.variant == boot.nvpmodel),
        gpu_mhz=levels("gpu_freq_mhz", known.gpu_mhz),
        mem_mhz=levels("mem_freq_mhz", known.mem_mhz),
        cpu_mhz=levels("cpu_freq_mhz", known.cpu_mhz),
        gpu=boot.gpu,
        model=module.model,
        compatible=module.compatible,
        release=boot.release,
        i2c=module.i2c,
        volts=module.volts,
        cpufreq_driver=module.cpufreq_driver,
    )


def _table(profile: BoardProfile, knob: str, variant: str | None) -> LevelTable:
    tables = profile.tables[knob]
    return tables[0] if variant is None else next(t for t in tables if t.variant == variant)
