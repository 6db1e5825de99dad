"""The boards of the campaign. Each lives in a process or file of its own, and outlives whoever is killed."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from benchmarks.crash_campaign.children import ask, wait_until
from polythrottle.configuration import Level
from polythrottle_agent.discovery import Discovered, discover
from polythrottle_agent.ports import Control
from polythrottle_agent.sysfs import Sysfs
from tests.fakes.file_board import TABLES, FileBoard, discover_file_board

REPOSITORY = Path(__file__).parents[2]
NVML_FAKE = REPOSITORY / "tests" / "fakes" / "nvml"
Watch = Callable[[str], None]


class Target(Protocol):
    """A board, how a child finds it, and how the campaign looks at it behind everybody's back."""

    name: str
    root: Path
    trials: int
    """How many configurations an enumerated run tries: one has every kind of step."""
    gpus: tuple[str | None, ...]
    """The devices of the machine: None for the board itself, else GPUs by UUID. A helper serves the first."""

    def open(self) -> None: ...

    def close(self) -> None: ...

    def discover(self, watch: Watch, state: Path, gpu: str | None = None) -> Discovered:
        """To be called in a child. Every write to the device is told to `watch`, before and after; `state` is
        where the journal lies."""

    def state(self) -> Mapping[str, str]:
        """Everything that a write can change, read without the agent's code."""

    def device_of(self, name: str) -> int:
        """The device, by its place in `gpus`, that this name of `state` belongs to."""

    def disturb(self, chance: random.Random) -> None:
        """What an operator sets before we come: not always what the board boots with."""

    def inject(self, chance: random.Random) -> None:
        """One fault, that lasts for a few calls or until `clear`."""

    def clear(self) -> None: ...


class HasControls(Protocol):
    """Whatever has a device's controls."""

    @property
    def controls(self) -> Mapping[str, Control]: ...


def configurations(found: HasControls, chance: random.Random, count: int) -> list[dict[str, Level]]:
    """Random levels for every knob, a GPU minimum never above its maximum."""
    made = []
    for _ in range(count):
        levels = {knob: chance.choice(control.levels) for knob, control in found.controls.items()}
        low, high = levels.get("gpu_min_freq_mhz"), levels.get("gpu_freq_mhz")
        if isinstance(low, float) and isinstance(high, float) and low > high:
            levels["gpu_min_freq_mhz"] = high
        made.append(levels)
    return made


class FilesTarget:
    """A board of plain files: quick, and needs nothing."""

    name = "files"
    trials = 2
    gpus: tuple[str | None, ...] = (None,)

    def __init__(self, directory: Path) -> None:
        self.root = directory

    def open(self) -> None:
        self._board = FileBoard.as_found(self.root / "board")

    def close(self) -> None: ...

    def discover(self, watch: Watch, state: Path, gpu: str | None = None) -> Discovered:  # noqa: ARG002
        return discover_file_board(self.root, watch)

    def device_of(self, name: str) -> int:  # noqa: ARG002 - there is one
        return 0

    def state(self) -> Mapping[str, str]:
        return self._board.state()

    def disturb(self, chance: random.Random) -> None:
        levels = {knob: chance.choice(table) for knob, table in TABLES.items()}
        levels["gpu_min_freq_mhz"] = min(levels["gpu_min_freq_mhz"], levels["gpu_freq_mhz"])
        for knob, level in levels.items():
            text = level if isinstance(level, str) else f"{level:g}"
            (self._board.directory / knob).write_text(text, encoding="ascii")

    def inject(self, chance: random.Random) -> None:
        self._board.fail_writes(chance.choice(list(TABLES)), chance.choice((1, 2, 100_000)))

    def clear(self) -> None:
        self._board.clear_faults()


class SysfsTarget:
    """An emulated Jetson behind FUSE, in a process of its own, driven by the real controls."""

    trials = 1
    gpus: tuple[str | None, ...] = (None,)
    NO_CLOCKS = ("hwmon", "thermal", "powercap", "iio", "/.emulator")
    FAULTS = ("eio", "ebusy", "eagain", "silent", "stuck", "garbage")

    def __init__(self, directory: Path, board: str, kernel: str) -> None:
        self.name = f"sysfs {board} {kernel}"
        self.root = directory / "mount"
        self._board, self._kernel = board, kernel
        self._nodes: tuple[Path, ...] = ()

    @staticmethod
    def why_not() -> str | None:
        if not Path("/dev/fuse").exists() or shutil.which("fusermount3") is None:
            return "there is no FUSE (/dev/fuse, fusermount3)"
        return None if importlib.util.find_spec("mfusepy") else "mfusepy is not installed"

    def open(self) -> None:
        command = [
            "-c", "from polythrottle.cli.main import main; main()",
            "emulate", "board", self._board, "--kernel", self._kernel, "--mount", str(self.root),
        ]  # fmt: skip
        self._server = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
        assert self._server.stdout is not None
        if not self._server.stdout.readline().startswith("emulated"):
            raise RuntimeError(f"{self.name} could not be mounted")
        self._nodes = self._writable_nodes()

    def close(self) -> None:
        self.clear()
        self._server.send_signal(signal.SIGTERM)
        self._server.wait(20)

    def device_of(self, name: str) -> int:  # noqa: ARG002 - there is one
        return 0

    def discover(self, watch: Watch, state: Path, gpu: str | None = None) -> Discovered:  # noqa: ARG002
        plain = getattr(Sysfs.write, "plain", Sysfs.write)

        def write(sysfs: Sysfs, path: Path, value: int | str) -> None:
            watch("before device write")
            plain(sysfs, path, value)
            watch("after device write")

        write.plain = plain  # type: ignore[attr-defined]
        setattr(Sysfs, "write", write)  # noqa: B010 - a watched method in place of the plain one
        return discover(self.root, state_dir=state)

    def _writable_nodes(self) -> tuple[Path, ...]:
        """Files that clocks are set through: what has a write bit and shows one word."""
        found = []
        for top in ("sys/devices", "sys/kernel"):
            for directory, _, files in os.walk(self.root / top):
                if any(word in directory for word in self.NO_CLOCKS):
                    continue
                for name in files:
                    path = Path(directory) / name
                    if path.stat().st_mode & 0o222 and path.stat().st_mode & 0o444:
                        found.append(path)
        return tuple(sorted(set(found)))

    def state(self) -> Mapping[str, str]:
        seen = {str(path.relative_to(self.root)): self._text(path) for path in self._nodes}
        lock = next((name for name in seen if name.endswith("emc/mrq_rate_locked")), None)
        if lock is not None and seen[lock] == "0":
            # While it is not locked, demand moves the rate.
            seen.pop(lock.replace("mrq_rate_locked", "rate"), None)
        return seen

    @staticmethod
    def _text(path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8", errors="replace").strip()
        except OSError as error:
            return f"errno {error.errno}"

    def disturb(self, chance: random.Random) -> None:
        found = discover(self.root)
        for knob, level in configurations(found, chance, 1)[0].items():
            if knob in ("gpu_freq_mhz", "gpu_min_freq_mhz", "cpu_freq_mhz", "mem_freq_mhz"):
                if knob == "gpu_freq_mhz":
                    found.controls["gpu_min_freq_mhz"].apply(found.controls["gpu_min_freq_mhz"].levels[0])
                found.controls[knob].apply(level)
        wait_until(self._is_quiet, 2.0)

    def _is_quiet(self) -> bool:
        before = self.state()
        return before == self.state()

    def inject(self, chance: random.Random) -> None:
        # Nodes that the controls write; the others are no risk.
        nodes = [p for p in self._nodes if p.name in ("min_freq", "max_freq", "scaling_max_freq", "rate")]
        node = chance.choice(nodes)
        fault, on = chance.choice(self.FAULTS), chance.choice(("write", "both"))
        times = chance.choice(("times=1", "times=3", ""))
        self._control(f"inject /{node.relative_to(self.root)} {fault} on={on} {times}")

    def clear(self) -> None:
        self._control("clear")

    def _control(self, line: str) -> None:
        (self.root / ".emulator/control").write_text(line + "\n", encoding="utf-8")


class NvmlTarget:
    """Pretended GPUs behind the real nvidia-ml-py; their state is a file that all processes share."""

    trials = 2
    gpus: tuple[str | None, ...] = (None,)
    NAMES = ("lock_min", "lock_max", "memory_min", "memory_max", "limit_mw", "persistence")
    SETTERS = (
        "nvmlDeviceSetGpuLockedClocks",
        "nvmlDeviceSetMemoryLockedClocks",
        "nvmlDeviceSetPowerManagementLimit",
        "nvmlDeviceResetGpuLockedClocks",
    )
    UNKNOWN, IN_USE, GPU_IS_LOST = 999, 19, 15

    def __init__(self, directory: Path, *kinds: str) -> None:
        self.name = f"nvml {' + '.join(kinds)}"
        self.root = directory / "root"
        self._directory, self._kinds = directory, kinds

    @staticmethod
    def why_not() -> str | None:
        if shutil.which("cc") is None and shutil.which("gcc") is None:
            return "there is no C compiler to build the pretended library with"
        return None if importlib.util.find_spec("pynvml") else "nvidia-ml-py is not installed"

    def open(self) -> None:
        sys.path.insert(0, str(NVML_FAKE))
        nvml_fake = importlib.import_module("nvml_fake")
        library = nvml_fake.build(self._directory)
        os.environ.update(nvml_fake.environment(library, self._directory / "gpus", ",".join(self._kinds)))
        (self.root / "dev").mkdir(parents=True, exist_ok=True)
        (self.root / "dev/nvidiactl").touch()
        self._fake: Any = nvml_fake.FakeNvml(library)
        for number in range(len(self._kinds)):
            # As on a server: the driver stays loaded while nobody uses it, and with it what it holds.
            self._fake.set(number, persistence=1)
        if len(self._kinds) > 1:
            self.gpus = tuple(ask(_uuids, self._directory / "log"))

    def close(self) -> None: ...

    def device_of(self, name: str) -> int:
        return int(name.partition(".")[0])

    def discover(self, watch: Watch, state: Path, gpu: str | None = None) -> Discovered:
        from polythrottle_agent.nvml.session import NvmlSession

        plain = getattr(NvmlSession.call, "plain", NvmlSession.call)

        def call(session: NvmlSession, uuid: str, function: str, *arguments: Any) -> Any:
            if "Set" not in function and "Reset" not in function:
                return plain(session, uuid, function, *arguments)
            watch("before device write")
            answer = plain(session, uuid, function, *arguments)
            watch("after device write")
            return answer

        call.plain = plain  # type: ignore[attr-defined]
        setattr(NvmlSession, "call", call)  # noqa: B010 - a watched method in place of the plain one
        return discover(self.root, state_dir=state, gpu=gpu)

    def state(self) -> Mapping[str, str]:
        return {
            f"{number}.{name}": f"{self._fake.get(name, number):g}"
            for number in range(len(self._kinds))
            for name in self.NAMES
        }

    def disturb(self, chance: random.Random) -> None:
        for number in range(len(self._kinds)):
            self._fake.set(number, limit_mw=chance.choice((300_000, 350_000, 400_000)))

    def inject(self, chance: random.Random) -> None:
        code = chance.choice((self.UNKNOWN, self.IN_USE, self.GPU_IS_LOST))
        self._fake.inject(chance.choice(self.SETTERS), code, times=chance.choice((1, 3, -1)))

    def clear(self) -> None:
        self._fake.clear_faults()


def _uuids() -> list[str]:
    from polythrottle_agent.nvml.session import NvmlSession

    return list(NvmlSession().gpus())
