"""A whole emulated Jetson: one board, and the files of its kernel over it."""

from __future__ import annotations

import contextlib
import random
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from polythrottle.clock import Clock
from polythrottle.errors import InvalidInputError
from polythrottle_agent.emulation.agenda import Agenda
from polythrottle_agent.emulation.behaviour import Behaviour
from polythrottle_agent.emulation.board import EmulatedBoard
from polythrottle_agent.emulation.boards import BATCH_SIZES
from polythrottle_agent.emulation.calibration import DEFAULT_WORKLOAD
from polythrottle_agent.emulation.control_files import control_entries
from polythrottle_agent.emulation.cpus import Cpus
from polythrottle_agent.emulation.emc import Emc
from polythrottle_agent.emulation.fake_tools import tool_entries
from polythrottle_agent.emulation.faults import Fault, Faults
from polythrottle_agent.emulation.gpu import Gpu
from polythrottle_agent.emulation.layouts import THOR_PCI, Layout, layout_of
from polythrottle_agent.emulation.nvpmodel import (
    apply_mode,
    conf_text,
    jetson_clocks,
    mode_named,
    status_text,
)
from polythrottle_agent.emulation.surroundings import DEFAULT_ENVIRONMENT, Environment, Surroundings
from polythrottle_agent.emulation.sysfs import Entry, Link, Node, Tree, readable
from polythrottle_agent.emulation.sysfs_clocks import (
    BPMP_EMC,
    CPU_ROOT,
    cpu_entries,
    emc_entries,
    gpu_entries,
)
from polythrottle_agent.emulation.sysfs_sensors import (
    Chip,
    chips_of,
    overcurrent_entries,
    power_entries,
    thermal_entries,
)

STATUS = "/var/lib/nvpmodel/status"
BOOT_ID = "/proc/sys/kernel/random/boot_id"


@dataclass(frozen=True)
class Options:
    """mode: nvpmodel's, by id or name; None for the board's default. emc_stuck_mhz: see `Emc`.

    gpu_appears_after_s: the GPU's devfreq node comes that late after a boot.
    """

    mode: int | str | None = None
    environment: Environment = DEFAULT_ENVIRONMENT
    emc_stuck_mhz: float | None = None
    gpu_appears_after_s: float = 0.0


class Machine:
    """Boots at once. `tree` is what programs see; everything else is for whoever runs the test.

    Use the methods from any thread: they hold the tree's lock.
    """

    board: EmulatedBoard
    gpu: Gpu
    emc: Emc
    cpus: Cpus
    around: Surroundings
    chips: list[Chip]

    def __init__(
        self,
        board: str,
        *,
        kernel: str | None = None,
        workload: str | None = None,
        clock: Clock,
        seed: int = 0,
        options: Options | None = None,
    ) -> None:
        """
        Raises:
            InvalidInputError: an unknown board, kernel, workload or mode.
        """
        self.layout: Layout = layout_of(board, kernel)
        self.options = options or Options()
        behaviour = Behaviour.of(board, workload or DEFAULT_WORKLOAD)
        self.board = EmulatedBoard(behaviour, clock, seed)
        self.faults = Faults()
        self.service_url: str | None = None
        self.tree = Tree(self.faults, lambda: self.agenda.settle())
        self._random = random.Random(seed)
        self.agenda = Agenda(self.board)
        wanted = self.options.mode
        self.mode = mode_named(self.layout, self.layout.nvpmodel.default_mode if wanted is None else wanted)
        self.reboot()

    def reboot(self) -> None:
        """Everything back to how the board boots; only nvpmodel's mode persists. Faults are cleared."""
        self.faults.clear()
        with self.tree.lock:
            self.agenda.settle()
            self.agenda.clear()
            self._boot()

    def _boot(self) -> None:
        layout, board, rng = self.layout, self.board, self._random
        self.boot_id = str(uuid.UUID(int=rng.getrandbits(128), version=4))
        self._booted_s = board.clock.now()
        board.observers.clear()
        board.nodes.gpu_limit_mhz = board.nodes.cpu_limit_mhz = float("inf")
        self.around = Surroundings(board, self.options.environment)
        self.around.use_tables(layout.gpu_mhz, layout.cpu_mhz)
        board.observers.append(self.around)
        self.chips = chips_of(layout, board.clock.now())
        board.observers.extend(chip.sensor for chip in self.chips)
        self.gpu = Gpu(layout.kernel, board, self.agenda, layout.gpu_mhz, rng)
        self.emc = Emc(layout.kernel, board, layout.mem_mhz, self.options.emc_stuck_mhz)
        self.cpus = Cpus(layout.kernel, board, self.agenda, layout.clusters, layout.cpu_mhz, rng)
        self.gpu.thermal_limit_mhz = lambda: self.around.thermal_limit_mhz
        self.gpu.on_change = lambda: self.emc.vote(board.nodes.gpu_min_mhz / (self.gpu.table_hz[-1] / 1e6))
        self.around.on_throttle = self.cpus.limits_changed
        apply_mode(layout, self.mode, self.gpu, self.emc, self.cpus)
        self.agenda.run_all()
        self.tree.replace(self._entries())

    def _entries(self) -> dict[str, Entry]:
        numbered = [chip.name for chip in self.chips] + ["soctherm"]
        numbers = self._random.sample(range(len(numbered) + 2), len(numbered))
        hwmon = dict(zip(numbered, numbers, strict=True))
        return {
            **gpu_entries(self.layout, self.gpu, self._gpu_is_there),
            **emc_entries(self.layout, self.emc),
            **cpu_entries(self.layout, self.cpus),
            **power_entries(self.layout, self.chips, hwmon),
            **thermal_entries(self.layout, self.around),
            **overcurrent_entries(self.layout, self.around, hwmon["soctherm"]),
            **self._system_entries(),
            **control_entries(self),
            **tool_entries(self.layout),
        }

    def _system_entries(self) -> dict[str, Entry]:
        layout = self.layout
        conf = layout.nvpmodel.conf_file
        entries: dict[str, Entry] = {
            "/proc/device-tree": Link("/sys/firmware/devicetree/base"),
            "/sys/firmware/devicetree/base/model": readable(lambda: f"{layout.model}\0".encode()),
            "/sys/firmware/devicetree/base/compatible": readable(
                lambda: "".join(f"{name}\0" for name in layout.compatible).encode()
            ),
            "/sys/firmware/devicetree/base/serial-number": readable(lambda: b"1420000000000\0"),
            BOOT_ID: readable(lambda: self.boot_id),
            "/proc/sys/kernel/osrelease": readable(lambda: f"{layout.kernel.release}.0-tegra"),
            "/etc/nv_tegra_release": readable(lambda: layout.release, 0o644),
            "/etc/nvpmodel.conf": Link(conf),
            conf: readable(lambda: conf_text(layout), 0o644),
            STATUS: Node(0o644, lambda: status_text(self.mode)),
        }
        if layout.gpu.of_node_name is None:
            entries[f"/proc/driver/nvidia/gpus/{THOR_PCI}/information"] = readable(
                lambda: "Model: \t\t NVIDIA Thor"
            )
        return entries

    def _gpu_is_there(self) -> bool:
        return self.board.clock.now() - self._booted_s >= self.options.gpu_appears_after_s

    # For whoever runs the test.

    def node(self, name: str) -> str:
        """The path of a node by a short name: `gpu/min_freq`, `emc/rate`, `cpu/policy0/scaling_max_freq`,
        or any path of the tree.

        Raises:
            InvalidInputError: there is no such node.
        """
        head, _, rest = name.partition("/")
        short = {
            "gpu": self.layout.gpu.devfreq,
            "gpu-device": self.layout.gpu.device,
            "emc": BPMP_EMC,
            "cpu": f"{CPU_ROOT}/cpufreq",
        }
        path = f"{short[head]}/{rest}".rstrip("/") if head in short else name
        try:
            return self.tree.resolve(path)
        except OSError:
            raise InvalidInputError(f"The emulated {self.layout.board} has no node {name!r}.") from None

    def inject(self, node: str, fault: Fault | str) -> None:
        """Put a fault on a node. A second one replaces the first."""
        self.faults.arm(self.node(node), Fault.named(fault) if isinstance(fault, str) else fault)

    def clear(self, node: str | None = None) -> None:
        """Take the fault off a node, or off all."""
        if node is None or node in self.faults.paths():
            self.faults.clear(node)
        else:
            self.faults.clear(self.node(node))

    def write_as_other(
        self, node: str, text: str, *, after_s: float = 0.0, every_s: float | None = None
    ) -> None:
        """Another program writes a node, now, later or over and over. Faults are not in its way.

        Raises:
            InvalidInputError: there is no such node, nobody can write it, or `every_s` is not above 0.
        """
        if every_s is not None and not every_s > 0.0:
            raise InvalidInputError(
                f"A node is written every so many seconds above 0, not every {every_s:g} s."
            )
        entry = self.tree.entry(self.node(node))
        if not isinstance(entry, Node) or entry.store is None:
            raise InvalidInputError(f"Nobody can write {node!r}.")
        store = entry.store

        def write() -> None:
            if every_s is not None:
                self.agenda.after(every_s, write)
            with contextlib.suppress(OSError):  # like `echo` in a script: nobody reads its exit status
                store(text.encode())

        self._later(after_s, write)

    def set_mode(self, mode: int | str, *, after_s: float = 0.0) -> None:
        """Somebody runs `nvpmodel -m`."""
        wanted = mode_named(self.layout, mode)

        def switch() -> None:
            self.mode = wanted
            apply_mode(self.layout, wanted, self.gpu, self.emc, self.cpus)

        self._later(after_s, switch)

    def jetson_clocks(self, *, after_s: float = 0.0) -> None:
        """Somebody runs `jetson_clocks`."""
        self._later(after_s, lambda: jetson_clocks(self.layout, self.gpu, self.emc, self.cpus))

    def heat(self, temperature_c: float, *, ambient_c: float | None = None) -> None:
        """Put the board at a temperature at once; `ambient_c` keeps it there."""
        with self.tree.lock:
            self.agenda.settle()
            self.around.soak(temperature_c, ambient_c)

    def disturb_emc(self, how: str, on: bool) -> None:
        """`rejects`: BPMP refuses every write in silence. `drifts`: locks do not hold.

        Raises:
            InvalidInputError: neither of the two.
        """
        if how not in ("rejects", "drifts"):
            raise InvalidInputError(f"EMC can be made to reject or to drift, not {how!r}.")
        with self.tree.lock:
            self.agenda.settle()
            setattr(self.emc, how, on)
            self.emc.changed()

    def set_batch(self, batch: int) -> None:
        """
        Raises:
            InvalidInputError: the workload has no such batch size.
        """
        if batch not in BATCH_SIZES:
            raise InvalidInputError(f"The emulated workload has no batch size {batch}.")
        with self.tree.lock:
            self.agenda.settle()
            self.board.nodes.batch = batch
            self.board.clocks_changed()

    @property
    def batch_size(self) -> int:
        """The most queries that the workload serves together."""
        return self.board.nodes.batch

    @contextlib.contextmanager
    def served_at(self, url: str) -> Iterator[None]:
        """An HTTP service runs on the board. Nobody else serves meanwhile: two at once would overlap."""
        self.service_url = url
        try:
            yield
        finally:
            self.service_url = None

    def begin_window(self) -> None:
        with self.tree.lock:
            self.agenda.settle()
            self.board.begin_window()

    def begin_batch(self, n_queries: int | None = None) -> float:
        """Serve one batch from now on; its latency in seconds, which the caller lets pass."""
        with self.tree.lock:
            self.agenda.settle()
            return self.board.begin_batch(n_queries)

    def energy_j(self) -> float:
        """The board's own energy counter: what a meter ought to find."""
        with self.tree.lock:
            self.agenda.settle()
            return self.board.energy_counter_j()

    def _later(self, after_s: float, action: Callable[[], None]) -> None:
        with self.tree.lock:
            self.agenda.settle()
            if after_s > 0.0:
                self.agenda.after(after_s, action)
            else:
                action()
