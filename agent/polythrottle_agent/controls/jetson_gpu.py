"""The GPU clock of a Jetson: the two ends of its devfreq range.

The ends are one thing to the kernel. Up to 5.5 a minimum above the maximum is EINVAL on either file; later
kernels accept it and let the maximum win, so every write here keeps them in order for both.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from polythrottle.configuration import Level, format_level
from polythrottle.errors import InvalidInputError
from polythrottle_agent.bounds import Bounds
from polythrottle_agent.cooling import GPU_COOLING, refuse_while_hot
from polythrottle_agent.ports import ControlError
from polythrottle_agent.sysfs import Sysfs

GPU_KNOB = "gpu_freq_mhz"
GPU_MIN_KNOB = "gpu_min_freq_mhz"
GPU_ALWAYS_ON_KNOB = "gpu_always_on"

DEVFREQ = "/sys/class/devfreq"
NODE_NAMES = ("gv11b", "gp10b", "ga10b", "gb10b", "gpu")
"""`device/of_node/name` of a Jetson's GPU, TX2 to Orin, under any JetPack."""

THOR_NODE = "gpu-gpc-0"
"""Thor's GPU is a PCI device without such a name; its graphics clock is always called this."""

_RANGE = ("max_freq", "min_freq")


def find_gpu_nodes(sysfs: Sysfs) -> list[Path]:
    """The devfreq node of the GPU, by name; nothing where there is none, or not yet: it may come late."""
    return [
        node
        for node in sysfs.entries(sysfs.at(DEVFREQ))
        if (sysfs.text_or_none(node / "device/of_node/name") in NODE_NAMES and _may_be_nvidia(sysfs, node))
        or node.name == THOR_NODE
    ]


def _may_be_nvidia(sysfs: Sysfs, node: Path) -> bool:
    """Other makers' GPUs on Arm are called `gpu` too; a maker that is named must be NVIDIA."""
    compatible = sysfs.text_or_none(node / "device/of_node/compatible")
    return compatible is None or "nvidia," in compatible


class GpuRange:
    """The devfreq node of one GPU.

    `levels` maps MHz to the kernel's Hz. `floor_is_held` is True while the floor is set by its own knob;
    else locking the maximum takes the floor along, so that the clock is the level and nothing below it.
    """

    def __init__(self, sysfs: Sysfs, node: Path) -> None:
        """
        Raises:
            ControlError: the node has no table of levels.
        """
        self.sysfs = sysfs
        self.node = node
        self.floor_is_held = False
        table = sysfs.numbers(node / "available_frequencies")
        if not table:
            raise ControlError(f"{sysfs.shown(node)} lists no clock levels")
        self.levels: dict[float, int] = {hz / 1e6: hz for hz in sorted(set(table))}

    def read_hz(self, name: str) -> int:
        return self.sysfs.number(self.node / name)

    def read_mhz(self, name: str) -> float:
        return self.read_hz(name) / 1e6

    def write(self, low_hz: int, high_hz: int) -> None:
        """Both ends, in the order that keeps the minimum below the maximum after each write."""
        if low_hz > high_hz:
            raise ControlError(f"a GPU minimum of {low_hz} Hz is above the maximum of {high_hz} Hz")
        ends = [("max_freq", high_hz), ("min_freq", low_hz)]
        if high_hz < self.read_hz("min_freq"):
            ends.reverse()
        for name, hz in ends:
            self.sysfs.write(self.node / name, hz)

    def lock(self, level: float) -> None:
        """Maximum at a level; the floor with it unless it is held, and then never above the maximum."""
        hz = self.levels[level]
        low_hz = min(self.read_hz("min_freq"), hz) if self.floor_is_held else hz
        self.write(low_hz, hz)

    def hold_floor(self, level: float) -> None:
        """Minimum at a level. The maximum stays."""
        hz = self.levels[level]
        high_hz = self.read_hz("max_freq")
        if hz > high_hz:
            raise ControlError(f"{level:g} MHz is above the GPU's maximum of {high_hz / 1e6:g} MHz")
        self.floor_is_held = True
        self.sysfs.write(self.node / "min_freq", hz)

    # What is kept beside the range: context that another tool may have set, put back but never chosen.

    def context(self) -> dict[str, str]:
        """Governor and rail gating as found; only what this board has and we may read."""
        found = {
            "governor": self.sysfs.text_or_none(self.node / "governor"),
            "railgate_enable": self.sysfs.text_or_none(self.node / "device/railgate_enable"),
        }
        return {name: value for name, value in found.items() if value is not None}

    def check_cool(self) -> None:
        """
        Raises:
            ControlError: the maximum is below the table's highest while heat is at work: whose is it?
        """
        if self.read_hz("max_freq") < max(self.levels.values()):
            refuse_while_hot(self.sysfs, GPU_COOLING, "the GPU's clock")

    def put_context_back(self, saved: Mapping[str, str]) -> None:
        """Each by itself: a companion that fails keeps nothing else from its original.

        Raises:
            ControlError: one could not be written.
        """
        problems = []
        paths = {"governor": self.node / "governor", "railgate_enable": self.node / "device/railgate_enable"}
        for name, path in paths.items():
            try:
                if name in saved and self.sysfs.text_or_none(path) != saved[name]:
                    self.sysfs.write(path, saved[name])
            except ControlError as error:
                problems.append(str(error))
        if problems:
            raise ControlError("; ".join(problems))

    def within(self, saved: Mapping[str, str], bounds: Bounds) -> Mapping[str, str]:
        """The ends of a saved range, within the power mode's cap."""
        ends = {}
        for name in _RANGE:
            if saved.get(name, "").isdigit():
                mhz = int(saved[name]) / 1e6
                held = bounds.highest_below_cap(mhz, self.levels)
                if held != mhz:
                    ends[name] = str(self.levels[held])
        return {**saved, **ends}


class JetsonGpuMax:
    """`gpu_freq_mhz`: the maximum, and with it the floor unless `gpu_min_freq_mhz` holds that."""

    def __init__(self, gpu: GpuRange, bounds: Bounds) -> None:
        self._gpu = gpu
        self._bounds = bounds

    @property
    def knob(self) -> str:
        return GPU_KNOB

    @property
    def levels(self) -> tuple[Level, ...]:
        return self._bounds.allowed(self._gpu.levels)

    def save(self) -> Mapping[str, str]:
        gpu = self._gpu
        gpu.check_cool()
        return {**{name: str(gpu.read_hz(name)) for name in _RANGE}, **gpu.context()}

    def apply(self, level: Level) -> None:
        self._bounds.check(level, self._gpu.levels)
        self._gpu.lock(float(level))

    def accepted(self) -> Level:
        """The effective maximum: since 5.10, lower than what was written means that something limits it."""
        return self._gpu.read_mhz("max_freq")

    def observed(self) -> Level:
        return self._gpu.read_mhz("cur_freq")

    def within_caps(self, saved: Mapping[str, str]) -> Mapping[str, str]:
        return self._gpu.within(saved, self._bounds)

    def restore(self, saved: Mapping[str, str]) -> None:
        high, low = (_saved_hz(GPU_KNOB, saved, name) for name in _RANGE)
        self._gpu.write(low, high)
        self._gpu.put_context_back(saved)


class JetsonGpuAlwaysOn:
    """`gpu_always_on`: 1 keeps the GPU powered between queries, 0 lets the driver gate its rail."""

    FILE = "device/railgate_enable"

    def __init__(self, gpu: GpuRange) -> None:
        self._gpu = gpu

    @classmethod
    def is_here(cls, gpu: GpuRange) -> bool:
        """Not on every board: where the rail is shared, the file is missing or says something else."""
        return gpu.sysfs.text_or_none(gpu.node / cls.FILE) in ("0", "1")

    @property
    def knob(self) -> str:
        return GPU_ALWAYS_ON_KNOB

    @property
    def levels(self) -> tuple[Level, ...]:
        return (0.0, 1.0)

    def save(self) -> Mapping[str, str]:
        return {"railgate_enable": str(self._gpu.sysfs.number(self._gpu.node / self.FILE))}

    def apply(self, level: Level) -> None:
        if level not in self.levels:
            raise InvalidInputError(f"{self.knob} has no level {format_level(level)}.")
        self._write("0" if level == 1.0 else "1")

    def accepted(self) -> Level:
        return 1.0 - self._gpu.sysfs.number(self._gpu.node / self.FILE)

    def observed(self) -> Level:
        return self.accepted()

    def restore(self, saved: Mapping[str, str]) -> None:
        if saved.get("railgate_enable") not in ("0", "1"):
            raise ControlError(f"the saved state of {self.knob} has no usable railgate_enable")
        self._write(saved["railgate_enable"])

    def _write(self, value: str) -> None:
        """A write of what holds already may be refused on a board that cannot gate."""
        path = self._gpu.node / self.FILE
        if self._gpu.sysfs.text(path) != value:
            self._gpu.sysfs.write(path, value)


class JetsonGpuMin:
    """`gpu_min_freq_mhz`: the floor below which the governor does not go."""

    def __init__(self, gpu: GpuRange, bounds: Bounds) -> None:
        self._gpu = gpu
        self._bounds = bounds

    @property
    def knob(self) -> str:
        return GPU_MIN_KNOB

    @property
    def levels(self) -> tuple[Level, ...]:
        return self._bounds.allowed(self._gpu.levels)

    def save(self) -> Mapping[str, str]:
        return {"min_freq": str(self._gpu.read_hz("min_freq"))}

    def apply(self, level: Level) -> None:
        self._bounds.check(level, self._gpu.levels)
        self._gpu.hold_floor(float(level))

    def accepted(self) -> Level:
        return self._gpu.read_mhz("min_freq")

    def observed(self) -> Level:
        """A floor is observed as it stands."""
        return self._gpu.read_mhz("min_freq")

    def within_caps(self, saved: Mapping[str, str]) -> Mapping[str, str]:
        return self._gpu.within(saved, self._bounds)

    def restore(self, saved: Mapping[str, str]) -> None:
        hz = _saved_hz(GPU_MIN_KNOB, saved, "min_freq")
        self._gpu.floor_is_held = False
        self._gpu.sysfs.write(self._gpu.node / "min_freq", hz)


def _saved_hz(knob: str, saved: Mapping[str, str], name: str) -> int:
    text = saved.get(name, "")
    if not text.isdigit():
        raise ControlError(f"the saved state of {knob} has no usable {name}")
    return int(text)
