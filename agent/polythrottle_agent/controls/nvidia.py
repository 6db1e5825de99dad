"""Controls of an NVIDIA GPU: locked GPU and memory clocks, and the power limit.

Each write first turns persistence mode on, since without it the driver drops locks and limits when its last
client leaves; the mode found is part of every saved state and comes back with it.
"""

from __future__ import annotations

from collections.abc import Mapping

from polythrottle.configuration import UNLOCKED, Level
from polythrottle_agent.bounds import Bounds
from polythrottle_agent.limits import OperatorLimits
from polythrottle_agent.nvml.clock_lock import ClockLock
from polythrottle_agent.nvml.gpu import AMPERE, GRAPHICS, MEMORY, VOLTA, Gpu
from polythrottle_agent.nvml.session import NvmlSession
from polythrottle_agent.ports import Control, ControlError

GPU_KNOB, GPU_MIN_KNOB = "gpu_freq_mhz", "gpu_min_freq_mhz"
MEM_KNOB, POWER_KNOB = "mem_freq_mhz", "power_limit_w"

NOT_LOCKED = "none"
"""In a saved state: no lock of ours, so restoring resets it. Another tool's lock cannot be seen."""

PERSISTENCE = "persistence"
UNSUPPORTED = "unsupported"

STEPS_W = (5, 10, 20, 25, 50, 100)
MOST_POWER_LEVELS = 13


def power_levels_w(lowest_w: float, highest_w: float) -> tuple[float, ...]:
    """Power limits to try: from the least the board takes in even steps, and the highest.

    The step is the smallest of `STEPS_W` with at most `MOST_POWER_LEVELS`; the last gap may be shorter.
    """
    for step in STEPS_W:
        count = int((highest_w - lowest_w) // step) + 1
        levels = {lowest_w + i * step for i in range(count)} | {highest_w}
        if len(levels) <= MOST_POWER_LEVELS:
            break
    return tuple(sorted(levels))


def nvidia_controls(
    session: NvmlSession, uuid: str, limits: OperatorLimits | None = None, *, allow_mig: bool = False
) -> Mapping[str, Control]:
    """The controls that this GPU and driver support, by knob; none on a Jetson's own GPU and under MIG.

    `nvidia_notes` says what is missing and why. A memory clock needs two levels to be a knob.

    Args:
        limits: the operator's; None for none.
        allow_mig: also where MIG is on. Clocks and power are then shared by all instances.

    Raises:
        NvmlError: the GPU cannot be read at all.
    """
    gpu = Gpu(session, uuid)
    limits = OperatorLimits() if limits is None else limits
    if gpu.is_nvgpu or (gpu.mig_is_on() and not allow_mig):
        return {}
    guard = _Guard(gpu, allow_mig)
    found: list[Control] = []
    if _architecture(gpu) >= VOLTA and gpu.graphics_clocks_mhz:
        lock = ClockLock(gpu)
        found.append(NvidiaGpuClock(guard, lock, Bounds.of(GPU_KNOB, limits)))
        found.append(NvidiaGpuFloor(guard, lock, Bounds.of(GPU_MIN_KNOB, limits)))
    if _architecture(gpu) >= AMPERE and len(gpu.memory_clocks_mhz) > 1:
        found.append(NvidiaMemoryClock(guard, Bounds.of(MEM_KNOB, limits)))
    if gpu.power_range_mw() is not None:
        found.append(NvidiaPowerLimit(guard, limits))
    return {control.knob: control for control in found if control.levels}


def nvidia_notes(session: NvmlSession, uuid: str, *, allow_mig: bool = False) -> tuple[str, ...]:
    """Sentences: what cannot be set here and why, and what to know before setting anything."""
    gpu = Gpu(session, uuid)
    name = gpu.facts.name
    if gpu.is_nvgpu:
        return (f"{name}: NVML supports nothing on a Jetson's GPU; its clocks are set through devfreq.",)
    if gpu.mig_is_on() and not allow_mig:
        return (
            f"{name} is split by MIG, and clocks and power are shared by all instances: nothing is set here "
            "unless you allow it.",
        )
    notes = []
    if _architecture(gpu) < VOLTA:
        notes.append(f"{name}: locking the GPU clock needs Volta or later.")
    if _architecture(gpu) < AMPERE:
        notes.append(f"{name}: locking the memory clock needs Ampere or later.")
    elif len(gpu.memory_clocks_mhz) == 1:
        notes.append(f"{name} has a single memory clock ({gpu.memory_clocks_mhz[0]:g} MHz): it is no knob.")
    default_mw = gpu.default_power_limit_mw()
    if default_mw is not None and gpu.power_limit_mw() < default_mw:
        notes.append(
            f"{name} was found with a power limit of {gpu.power_limit_mw() / 1e3:g} W, below its default of "
            f"{default_mw / 1e3:g} W: it is kept as a cap."
        )
    if gpu.persistence() == 0:
        notes.append(
            f"{name} has persistence mode off: it is on while settings are held, and then off again."
        )
    return tuple(notes)


def _architecture(gpu: Gpu) -> int:
    return gpu.facts.architecture or 0


class _Guard:
    """What stands before every write, and the context every saved state carries."""

    def __init__(self, gpu: Gpu, allow_mig: bool) -> None:
        self.gpu = gpu
        self._allow_mig = allow_mig

    def before_write(self) -> None:
        """
        Raises:
            ControlError: MIG was turned on meanwhile, or persistence mode cannot be.
        """
        if not self._allow_mig and self.gpu.mig_is_on():
            raise ControlError(
                f"MIG is on at {self.gpu.uuid}: its clocks and power are shared by all instances"
            )
        if self.gpu.persistence() == 0:
            self.gpu.set_persistence(1)

    def context(self) -> dict[str, str]:
        mode = self.gpu.persistence()
        return {PERSISTENCE: UNSUPPORTED if mode is None else str(mode)}

    def put_context_back(self, knob: str, saved: Mapping[str, str]) -> None:
        wanted = _saved(knob, saved, PERSISTENCE)
        now = self.context()[PERSISTENCE]
        if wanted not in (now, UNSUPPORTED):
            self.gpu.set_persistence(int(wanted))


class NvidiaGpuClock:
    """`gpu_freq_mhz`: locks the GPU to a clock; a held `gpu_min_freq_mhz` opens the range below it."""

    def __init__(self, guard: _Guard, lock: ClockLock, bounds: Bounds) -> None:
        self._guard, self._lock, self._bounds = guard, lock, bounds

    @property
    def knob(self) -> str:
        return GPU_KNOB

    @property
    def levels(self) -> tuple[Level, ...]:
        return self._bounds.allowed(self._guard.gpu.graphics_clocks_mhz)

    def save(self) -> Mapping[str, str]:
        return {"maximum_mhz": _text(self._lock.maximum_mhz), **self._guard.context()}

    def apply(self, level: Level) -> None:
        self._bounds.check(level, self._guard.gpu.graphics_clocks_mhz)
        self._guard.before_write()
        self._lock.set(float(level), self._lock.floor_mhz)

    def accepted(self) -> Level:
        """What the driver took from us, since it cannot be asked; its top clock where we locked nothing."""
        held = self._lock.range_mhz
        return self._guard.gpu.graphics_clocks_mhz[-1] if held is None else held[1]

    def observed(self) -> Level:
        """The clock that runs. The only evidence that a lock is honoured, and only under load."""
        return self._guard.gpu.clock_mhz(GRAPHICS)

    def restore(self, saved: Mapping[str, str]) -> None:
        maximum = _number(GPU_KNOB, saved, "maximum_mhz")
        _saved(GPU_KNOB, saved, PERSISTENCE)
        self._lock.set(maximum, self._lock.floor_mhz)
        self._guard.put_context_back(GPU_KNOB, saved)


class NvidiaGpuFloor:
    """`gpu_min_freq_mhz`: the clock below which the GPU does not go under load."""

    def __init__(self, guard: _Guard, lock: ClockLock, bounds: Bounds) -> None:
        self._guard, self._lock, self._bounds = guard, lock, bounds

    @property
    def knob(self) -> str:
        return GPU_MIN_KNOB

    @property
    def levels(self) -> tuple[Level, ...]:
        return self._bounds.allowed(self._guard.gpu.graphics_clocks_mhz)

    def save(self) -> Mapping[str, str]:
        return {"floor_mhz": _text(self._lock.floor_mhz), **self._guard.context()}

    def apply(self, level: Level) -> None:
        self._bounds.check(level, self._guard.gpu.graphics_clocks_mhz)
        highest = self._lock.maximum_mhz
        if highest is not None and float(level) > highest:
            raise ControlError(f"{float(level):g} MHz is above the GPU's maximum of {highest:g} MHz")
        self._guard.before_write()
        self._lock.set(highest, float(level))

    def accepted(self) -> Level:
        held = self._lock.range_mhz
        return self._guard.gpu.graphics_clocks_mhz[0] if held is None else held[0]

    def observed(self) -> Level:
        """A floor is observed as it stands: what runs above it says nothing about it."""
        return self.accepted()

    def restore(self, saved: Mapping[str, str]) -> None:
        floor = _number(GPU_MIN_KNOB, saved, "floor_mhz")
        _saved(GPU_MIN_KNOB, saved, PERSISTENCE)
        self._lock.set(self._lock.maximum_mhz, floor)
        self._guard.put_context_back(GPU_MIN_KNOB, saved)


class NvidiaMemoryClock:
    """`mem_freq_mhz`: locks the memory clock, or leaves it to the driver (`unlocked`).

    Locked at the highest clock is not the same as unlocked, so both are levels.
    """

    def __init__(self, guard: _Guard, bounds: Bounds) -> None:
        self._guard, self._bounds = guard, bounds
        self._locked_mhz: float | None = None

    @property
    def knob(self) -> str:
        return MEM_KNOB

    @property
    def _table(self) -> tuple[Level, ...]:
        return (*self._guard.gpu.memory_clocks_mhz, UNLOCKED)

    @property
    def levels(self) -> tuple[Level, ...]:
        return self._bounds.allowed(self._table)

    def save(self) -> Mapping[str, str]:
        return {"locked_mhz": _text(self._locked_mhz), **self._guard.context()}

    def apply(self, level: Level) -> None:
        self._bounds.check(level, self._table)
        self._guard.before_write()
        self._lock(None if level == UNLOCKED else float(level))

    def accepted(self) -> Level:
        """What the driver took from us, since it cannot be asked."""
        return UNLOCKED if self._locked_mhz is None else self._locked_mhz

    def observed(self) -> Level:
        return self._guard.gpu.clock_mhz(MEMORY)

    def restore(self, saved: Mapping[str, str]) -> None:
        locked = _number(MEM_KNOB, saved, "locked_mhz")
        _saved(MEM_KNOB, saved, PERSISTENCE)
        self._lock(locked)
        self._guard.put_context_back(MEM_KNOB, saved)

    def _lock(self, mhz: float | None) -> None:
        if mhz is None:
            self._guard.gpu.call("nvmlDeviceResetMemoryLockedClocks")
        else:
            self._guard.gpu.call("nvmlDeviceSetMemoryLockedClocks", int(mhz), int(mhz))
        self._locked_mhz = mhz


class NvidiaPowerLimit:
    """`power_limit_w`: the board's power limit, in the levels of `power_levels_w`.

    A limit found below the board's default is somebody's cap: no level lies above it. It is looked at anew
    whenever nothing of ours is applied, for its owner may change it. After a crash the limit found is ours,
    until `restore` says what the original was.
    """

    def __init__(self, guard: _Guard, limits: OperatorLimits) -> None:
        self._guard = guard
        self._bounds = Bounds.of(POWER_KNOB, limits, self._cap_w)
        self._found_mw: int | None = None

    @property
    def knob(self) -> str:
        return POWER_KNOB

    @property
    def _table(self) -> tuple[Level, ...]:
        gpu = self._guard.gpu
        within = gpu.power_range_mw()
        if within is None:
            raise ControlError(f"the power limit of {gpu.uuid} has no range any more")
        default_mw = gpu.default_power_limit_mw()
        highest = within[1] if default_mw is None else min(default_mw, within[1])
        return power_levels_w(within[0] / 1e3, highest / 1e3)

    @property
    def levels(self) -> tuple[Level, ...]:
        return self._bounds.allowed(self._table)

    def save(self) -> Mapping[str, str]:
        limit_mw = self._guard.gpu.power_limit_mw()
        return {"limit_mw": str(limit_mw), **self._guard.context()}

    def apply(self, level: Level) -> None:
        self._bounds.check(level, self._table)
        self._guard.before_write()
        if self._found_mw is None:
            self._found_mw = self._guard.gpu.power_limit_mw()
        self._write(round(float(level) * 1e3))

    def accepted(self) -> Level:
        return self._guard.gpu.power_limit_mw() / 1e3

    def observed(self) -> Level:
        """A limit is observed as it stands; what is drawn lies below it."""
        return self.accepted()

    def restore(self, saved: Mapping[str, str]) -> None:
        limit = _number(POWER_KNOB, saved, "limit_mw")
        _saved(POWER_KNOB, saved, PERSISTENCE)
        if limit is None:
            raise ControlError(f"the saved state of {POWER_KNOB} has no limit")
        self._write(int(limit))
        self._found_mw = None
        self._guard.put_context_back(POWER_KNOB, saved)

    def _write(self, limit_mw: int) -> None:
        self._guard.gpu.call("nvmlDeviceSetPowerManagementLimit", limit_mw)

    def _cap_w(self) -> float:
        default_mw = self._guard.gpu.default_power_limit_mw()
        found_mw = self._guard.gpu.power_limit_mw() if self._found_mw is None else self._found_mw
        return float("inf") if default_mw is None or found_mw >= default_mw else found_mw / 1e3


def _text(mhz: float | None) -> str:
    return NOT_LOCKED if mhz is None else f"{mhz:g}"


def _saved(knob: str, saved: Mapping[str, str], name: str) -> str:
    if name not in saved:
        raise ControlError(f"the saved state of {knob} has no {name}")
    return saved[name]


def _number(knob: str, saved: Mapping[str, str], name: str) -> float | None:
    text = _saved(knob, saved, name)
    if text == NOT_LOCKED:
        return None
    try:
        return float(text)
    except ValueError:
        raise ControlError(f"the saved state of {knob} has {name} = {text!r}, which is no number") from None
