"""What a machine offers: its controls, its meters, who it is, and what bounds them. Used by helper and agent.

Only reads. Everything is found by name, address or label, so a board whose kernel moves its files, or numbers
them anew at each boot, is found all the same.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from polythrottle.clock import Clock, RealClock
from polythrottle.errors import StateError
from polythrottle.measurement import Provenance
from polythrottle.profiles import BoardProfile
from polythrottle.study import DeviceIdentity
from polythrottle_agent.bounds import Bounds
from polythrottle_agent.context import find_profile, is_emulated, jetson_stats_context, other_controllers
from polythrottle_agent.controls.cpu_clocks import (
    CPU_KNOB,
    CPUFREQ,
    CpuClocks,
    Policy,
    find_policies,
    present_maxima,
)
from polythrottle_agent.controls.cpu_cores import CORES_KNOB, CpuCores, online_cpus
from polythrottle_agent.controls.jetson_gpu import (
    GPU_ALWAYS_ON_KNOB,
    GPU_KNOB,
    GPU_MIN_KNOB,
    GpuRange,
    JetsonGpuAlwaysOn,
    JetsonGpuMax,
    JetsonGpuMin,
    find_gpu_nodes,
)
from polythrottle_agent.controls.jetson_memory import CLOCK, MEM_KNOB, POSSIBLE_RATES, JetsonMemory
from polythrottle_agent.controls.memory_rates import LockableRates
from polythrottle_agent.identity import device_id, identify
from polythrottle_agent.limits import OperatorLimits, load_limits
from polythrottle_agent.meters.ina import ina_meter
from polythrottle_agent.meters.rapl import find_zones, rapl_meter
from polythrottle_agent.nvpmodel import Mode, NvpModel
from polythrottle_agent.ports import Control, ControlError, Meter, Originals, Witness
from polythrottle_agent.sysfs import Sysfs
from polythrottle_agent.throttle import ThrottleWitness, Together

if TYPE_CHECKING:
    from polythrottle_agent.nvml.session import NvmlSession

BOOT_ID = "/proc/sys/kernel/random/boot_id"
RATES_FILE = "memory-rates.json"
GPU_WAIT_STEP_S = 0.25

NVIDIA_TRACES = ("/proc/driver/nvidia/gpus", "/dev/nvidiactl")
"""Where an NVIDIA driver shows that it is loaded: NVML is not opened without one."""


@dataclass(frozen=True)
class Caps:
    """What bounds the levels: the power mode (None: none, or it cannot be told), the operator's limits."""

    mode: Mode | None
    limits: OperatorLimits


@dataclass(frozen=True)
class Discovered:
    """Everything found on one machine.

    `controls` come in the order in which they are best written. `is_writable` says whether this process may
    write them. `meters` are the ones that can be read, the one that fits the controls best first;
    `no_meter` says why others cannot. `gpu` is the UUID of the NVIDIA GPU, if any; `memory` the control of a
    Jetson's memory clock, whose rates can be probed.
    """

    identity: DeviceIdentity
    controls: Mapping[str, Control]
    is_writable: bool
    meters: tuple[Meter, ...]
    no_meter: tuple[str, ...]
    witness: Witness
    caps: Caps
    notes: tuple[str, ...]
    profile: BoardProfile | None
    gpu: str | None
    memory: JetsonMemory | None
    sysfs: Sysfs


def discover(
    root: Path = Path("/"),
    nvml: NvmlSession | None = None,
    *,
    clock: Clock | None = None,
    gpu: str | None = None,
    state_dir: Path | None = None,
    wait_s: float = 0.0,
    limits: OperatorLimits | None = None,
) -> Discovered:
    """Look at the machine below `root`.

    Args:
        nvml: a session to use; None opens one where an NVIDIA driver is loaded.
        gpu: UUID or PCI address of the NVIDIA GPU, where there are several.
        state_dir: where the journal lies, and the memory rates that were probed in this boot; None: nowhere.
        wait_s: how long to wait for a Jetson's GPU, whose node can come late in boot.
        limits: in place of the operator's file, which must not keep a device from being put back.

    Raises:
        InvalidInputError: the operator's limits cannot be understood.
        ControlError: `gpu` names none, or there are several and none is named.
    """
    limits = limits if limits is not None else load_limits(root)
    return _Search(Sysfs(root), clock or RealClock(), limits, state_dir).run(nvml, gpu, wait_s)


class _Search:
    def __init__(self, sysfs: Sysfs, clock: Clock, limits: OperatorLimits, state_dir: Path | None) -> None:
        self._sysfs = sysfs
        self._clock = clock
        self._limits = limits
        self._state_dir = state_dir
        self._mode = NvpModel(sysfs)
        self._profile = find_profile(sysfs)
        self._notes: list[str] = []
        self._no_meter: list[str] = []
        self._memory: JetsonMemory | None = None
        self._originals: Originals = {}

    def _kept_originals(self, device: str) -> Originals:
        """What the device's journal of this boot holds: while somebody has it, that is what was found."""
        if self._state_dir is None:
            return {}
        from polythrottle_agent.privileged.journal import Journal, boot_id

        try:
            entry = Journal(self._state_dir, boot_id(self._sysfs.root), device).read()
        except StateError as error:
            self._notes.append(str(error))
            return {}
        return {} if entry is None else entry.originals

    def run(self, nvml: NvmlSession | None, gpu: str | None, wait_s: float) -> Discovered:
        sysfs = self._sysfs
        node = self._gpu_node(wait_s)
        is_jetson = node is not None or self._profile is not None
        controls: dict[str, Control] = {}
        session = None if is_jetson else self._nvidia(nvml)
        uuid = None
        meters: list[Meter] = []
        witnesses: list[Witness] = []
        if session is not None:
            from polythrottle_agent.nvidia_gpu import look_at_gpu

            found = look_at_gpu(session, gpu, self._limits, self._clock)
            uuid = found.uuid
            controls |= found.controls
            meters.append(found.meter)
            witnesses.append(found.witness)
            self._notes += found.notes
        provenance = Provenance.EMULATED if is_emulated(sysfs) else Provenance.MEASURED
        self._originals = self._kept_originals(device_id(sysfs, self._profile, uuid, provenance))
        if node is not None:
            controls |= self._jetson_gpu(node)
        if is_jetson:
            controls |= self._jetson_memory()
        controls |= self._cpus(is_jetson)
        # A control with one level is no knob; but one whose original is in the journal has to be put back.
        controls = {
            name: control
            for name, control in controls.items()
            if len(control.levels) > 1 or name in self._originals
        }
        meters += self._meters(is_jetson, provenance)
        self._context(is_jetson)
        watched = {name: c for name, c in controls.items() if uuid is None or name in (CPU_KNOB, CORES_KNOB)}
        witnesses.append(ThrottleWitness(sysfs, watched, self._clock))
        return Discovered(
            identity=identify(sysfs, self._profile, session, uuid, controls, provenance),
            controls=controls,
            is_writable=self._is_writable(node, uuid),
            meters=tuple(meters),
            no_meter=tuple(self._no_meter),
            witness=witnesses[0] if len(witnesses) == 1 else Together(witnesses),
            caps=Caps(self._mode.mode(), self._limits),
            notes=tuple(self._notes),
            profile=self._profile,
            gpu=uuid,
            memory=self._memory,
            sysfs=sysfs,
        )

    def _gpu_node(self, wait_s: float) -> Path | None:
        deadline_s = self._clock.now() + wait_s
        while True:
            nodes = find_gpu_nodes(self._sysfs)
            if nodes:
                return nodes[0]
            if self._profile is None or self._clock.now() >= deadline_s:
                return None
            self._clock.sleep(GPU_WAIT_STEP_S)

    def _nvidia(self, given: NvmlSession | None) -> NvmlSession | None:
        if given is not None:
            return given
        if not any(self._sysfs.at(path).exists() for path in NVIDIA_TRACES):
            return None
        from polythrottle_agent.nvml.session import NvmlSession

        session = NvmlSession()
        try:
            if session.gpus():
                return session
            self._notes.append("An NVIDIA driver is loaded, and it lists no GPU.")
        except ControlError as error:
            self._notes.append(f"There is an NVIDIA GPU that cannot be used: {error}")
        except ImportError:
            self._notes.append(
                "There is an NVIDIA GPU; to tune it, run pip install 'polythrottle[nvidia]' first."
            )
        return None

    def _jetson_gpu(self, node: Path) -> dict[str, Control]:
        try:
            gpu = GpuRange(self._sysfs, node)
            kept = self._originals.get(GPU_KNOB, {}).get("max_freq", "")
            present_mhz = int(kept) / 1e6 if kept.isdigit() else gpu.read_mhz("max_freq")
        except ControlError as error:
            self._notes.append(f"The GPU's clock cannot be set: {error}.")
            return {}
        mode = self._mode.mode()
        if mode is None or mode.gpu_mhz is None:
            self._notes.append(
                "No power mode says how fast the GPU may run, so its present maximum of "
                f"{present_mhz:g} MHz is taken as its cap."
            )

        def cap() -> float:
            mode = self._mode.mode()
            return present_mhz if mode is None or mode.gpu_mhz is None else mode.gpu_mhz

        controls: dict[str, Control] = {
            GPU_KNOB: JetsonGpuMax(gpu, Bounds.of(GPU_KNOB, self._limits, cap)),
            GPU_MIN_KNOB: JetsonGpuMin(gpu, Bounds.of(GPU_MIN_KNOB, self._limits, cap)),
        }
        if JetsonGpuAlwaysOn.is_here(gpu):
            controls[GPU_ALWAYS_ON_KNOB] = JetsonGpuAlwaysOn(gpu)
        return controls

    def _jetson_memory(self) -> dict[str, Control]:
        sysfs, mode = self._sysfs, self._mode
        if not JetsonMemory.is_here(sysfs):
            self._notes.append(
                f"The memory clock cannot be set: {CLOCK} is not there or closed to this user (root only)."
            )
            return {}
        cap_mhz = mode.memory_cap_mhz()
        boot = sysfs.text_or_none(sysfs.at(BOOT_ID))
        cache = None if self._state_dir is None or boot is None else self._state_dir / RATES_FILE
        rates = LockableRates(self._said_rates(), cache, f"{boot} capped at {cap_mhz:g} MHz")
        bounds = Bounds.of(MEM_KNOB, self._limits, mode.memory_cap_mhz)
        self._memory = JetsonMemory(sysfs, rates, bounds, self._clock)
        return {MEM_KNOB: self._memory}

    def _said_rates(self) -> Iterable[int]:
        """The firmware's list, else every rate the profile knows; within what the clock reaches."""
        sysfs = self._sysfs
        lowest = sysfs.number_or_none(sysfs.at(CLOCK) / "min_rate") or 0
        highest = sysfs.number_or_none(sysfs.at(CLOCK) / "max_rate") or 0
        try:
            said = [khz * 1000 for khz in sysfs.numbers(sysfs.at(POSSIBLE_RATES))]
        except ControlError:
            tables = () if self._profile is None else self._profile.mem_tables
            points = [mhz for t in tables for mhz in (*(t.freqs_mhz or ()), *(t.known_points_mhz or ()))]
            said = [round(mhz * 1e6) for mhz in points]
        inside = [hz for hz in said if lowest <= hz <= (highest or math.inf)]
        return inside or ([highest] if highest else [])

    def _cpus(self, is_jetson: bool) -> dict[str, Control]:
        sysfs = self._sysfs

        # Where a Jetson's mode does not name a CPU clock, its present maximum is all that tells the cap.
        kept = self._originals.get(CPU_KNOB, {})
        present = present_maxima(sysfs, kept) if is_jetson else {}

        def cap_mhz(cpus: Iterable[int]) -> float:
            mode = self._mode.mode()
            caps = {} if mode is None else mode.cpu_mhz
            named = [caps[cpu] for cpu in cpus if cpu in caps]
            return min(named or [present[cpu] for cpu in cpus if cpu in present], default=math.inf)

        controls: dict[str, Control] = {}
        policies = find_policies(sysfs, cap_mhz)
        clocks: CpuClocks | None = None
        if policies:
            clocks = CpuClocks(policies, Bounds.of(CPU_KNOB, self._limits, _lead_cap(policies)), self._clock)
        reassert = clocks.reassert if clocks is not None else lambda: None
        try:
            controls[CORES_KNOB] = CpuCores(
                sysfs,
                self._usable_cpus(is_jetson),
                Bounds.of(CORES_KNOB, self._limits),
                reassert,
                self._mode_s_cpus,
            )
        except ControlError as error:
            self._notes.append(f"The number of CPUs cannot be set: {error}.")
        if clocks is not None:
            controls[CPU_KNOB] = clocks
        else:
            self._notes.append("The CPU's clock cannot be set: the kernel shows no cpufreq policy.")
        return controls

    def _mode_s_cpus(self) -> frozenset[int] | None:
        mode = self._mode.mode()
        return None if mode is None or not mode.cpus_online else mode.cpus_online | {0}

    def _usable_cpus(self, is_jetson: bool) -> frozenset[int]:
        """The CPUs that run now, within the power mode's: nobody's choice to switch one off is undone."""
        kept = self._originals.get(CORES_KNOB, {})
        found = online_cpus(self._sysfs) | {
            int(cpu.removeprefix("cpu")) for cpu, state in kept.items() if state == "1"
        }
        allowed = self._mode_s_cpus() if is_jetson else None
        return found if allowed is None else allowed & found

    def _meters(self, is_jetson: bool, provenance: Provenance) -> list[Meter]:
        sysfs, clock = self._sysfs, self._clock
        if is_jetson:
            if self._profile is None:
                self._no_meter.append(
                    "this board is not known, and a guess at which rails make its total would look as good "
                    "as a measurement; give an external meter"
                )
                return []
            try:
                return [ina_meter(sysfs, self._profile, clock, provenance)]
            except ControlError as error:
                self._no_meter.append(f"the board's power rails cannot be read: {error}")
                return []
        if not find_zones(sysfs):
            self._no_meter.append("the kernel shows no energy counter of the CPU (RAPL)")
            return []
        try:
            return [rapl_meter(sysfs, clock, provenance)]
        except ControlError as error:
            self._no_meter.append(f"the CPU's energy counter cannot be read: {error}")
            return []

    def _is_writable(self, node: Path | None, uuid: str | None) -> bool:
        """NVML's setters take root; a sysfs file says itself whom it lets write."""
        sysfs = self._sysfs
        files = [directory / "scaling_max_freq" for directory in sysfs.entries(sysfs.at(CPUFREQ))]
        if node is not None:
            files.append(node / "max_freq")
        return (uuid is None or os.geteuid() == 0) and all(
            sysfs.writable(file) for file in files if file.exists()
        )

    def _context(self, is_jetson: bool) -> None:
        mode = self._mode.mode()
        if mode is not None:
            self._notes.append(
                f"Power mode {mode.name} (ID {mode.id}) caps what is tried; it is not changed."
            )
        if self._limits.source is not None:
            self._notes.append(f"The operator's limits in {self._limits.source} bound what is tried.")
        for other in other_controllers(self._sysfs):
            if not other.harmless:
                self._notes.append(f"{other.name} runs here (process {other.process}): it {other.advice}.")
        if is_jetson and self._sysfs.root == Path("/"):
            self._notes += jetson_stats_context()


def _lead_cap(policies: list[Policy]) -> Callable[[], float]:
    """The cap of the fastest clock: its levels are the knob's."""
    lead = max(policies, key=lambda policy: policy.high_khz)
    return lambda: lead.cap_mhz
