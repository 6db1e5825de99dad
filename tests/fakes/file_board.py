"""A board whose nodes are files in a directory: it outlives every process that writes it, and needs no FUSE.

Its rules are few: a GPU minimum above the maximum is refused from either end, and a node with a fault
refuses as many writes as the fault says.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from polythrottle.configuration import UNLOCKED, Level, format_level
from polythrottle.errors import InvalidInputError
from polythrottle.measurement import Provenance
from polythrottle.profiles import tables_digest
from polythrottle.study import DeviceIdentity
from polythrottle_agent.discovery import Caps, Discovered
from polythrottle_agent.limits import OperatorLimits
from polythrottle_agent.ports import Control, ControlError, Seen
from polythrottle_agent.sysfs import Sysfs

TABLES: Mapping[str, tuple[Level, ...]] = {
    "gpu_freq_mhz": (306.0, 408.0, 510.0, 612.0),
    "gpu_min_freq_mhz": (306.0, 408.0, 510.0, 612.0),
    "mem_freq_mhz": (204.0, 2133.0, UNLOCKED),
    "cpu_freq_mhz": (729.6, 1113.6, 1510.4),
    "power_limit_w": (10.0, 15.0, 25.0),
}
AS_FOUND: Mapping[str, Level] = {
    "gpu_freq_mhz": 612.0,
    "gpu_min_freq_mhz": 306.0,
    "mem_freq_mhz": UNLOCKED,
    "cpu_freq_mhz": 1510.4,
    "power_limit_w": 15.0,
}

Watch = Callable[[str], None]


def _unwatched(step: str) -> None:
    """Nobody looks on."""


class FileControl:
    """One knob: one file with its level. `on_step` is called before and after each write."""

    def __init__(self, directory: Path, knob: str, on_step: Watch = _unwatched) -> None:
        self._directory = directory
        self._knob = knob
        self._on_step = on_step

    @property
    def knob(self) -> str:
        return self._knob

    @property
    def levels(self) -> tuple[Level, ...]:
        return TABLES[self._knob]

    def save(self) -> Mapping[str, str]:
        return {"level": self._read(self._knob)}

    def apply(self, level: Level) -> None:
        if level not in self.levels:
            raise InvalidInputError(f"{self._knob} has no level {format_level(level)}.")
        self._write(format_level(level))

    def accepted(self) -> Level:
        text = self._read(self._knob)
        return text if text == UNLOCKED else float(text)

    def observed(self) -> Level:
        return self.accepted()

    def restore(self, saved: Mapping[str, str]) -> None:
        level = saved.get("level", "")
        if level not in map(format_level, self.levels):
            raise ControlError(f"the saved state of {self._knob} is not one: {dict(saved)}")
        self._write(level)

    def _read(self, knob: str) -> str:
        try:
            return (self._directory / knob).read_text(encoding="ascii")
        except OSError as error:
            raise ControlError(f"{knob}: {error.strerror}") from error

    def _write(self, text: str) -> None:
        self._on_step(f"before device {self._knob}")
        self._check_rules(text)
        # Replaced as a whole: a kernel takes a value or does not, never half of it.
        temporary = self._directory / f".{self._knob}.{os.getpid()}"
        temporary.write_text(text, encoding="ascii")
        temporary.replace(self._directory / self._knob)
        self._on_step(f"after device {self._knob}")

    def _check_rules(self, text: str) -> None:
        fault = self._directory / f"fault-{self._knob}"
        if fault.exists():
            left = int(fault.read_text() or 0)
            if left > 1:
                fault.write_text(str(left - 1))
            else:
                fault.unlink()
            raise ControlError(f"{self._knob}: {os.strerror(errno.EIO)}")
        low, high = "gpu_min_freq_mhz", "gpu_freq_mhz"
        if (self._knob == low and float(text) > float(self._read(high))) or (
            self._knob == high and float(text) < float(self._read(low))
        ):
            raise ControlError(f"{self._knob}: {os.strerror(errno.EINVAL)}")


class FileBoard:
    """The board and what a test knows of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    @classmethod
    def as_found(cls, directory: Path) -> FileBoard:
        board = cls(directory)
        for knob, level in AS_FOUND.items():
            (directory / knob).write_text(format_level(level), encoding="ascii")
        return board

    def controls(self, on_step: Watch = _unwatched) -> dict[str, Control]:
        return {knob: FileControl(self.directory, knob, on_step) for knob in TABLES}

    def state(self) -> dict[str, str]:
        return {knob: (self.directory / knob).read_text(encoding="ascii") for knob in TABLES}

    @property
    def is_as_found(self) -> bool:
        return self.state() == {knob: format_level(level) for knob, level in AS_FOUND.items()}

    def fail_writes(self, knob: str, times: int) -> None:
        (self.directory / f"fault-{knob}").write_text(str(times))

    def clear_faults(self) -> None:
        for fault in self.directory.glob("fault-*"):
            fault.unlink(missing_ok=True)


def discover_file_board(
    root: Path, on_step: Watch = _unwatched, *, gpu: str | None = None, **_: object
) -> Discovered:
    """In place of `discovery.discover`: the board in `root`/board; that of a GPU in `root`/GPU, if any.

    As on a real machine, the CPU's clock is not the GPU's: it is that of `root`/board, whichever GPU is asked
    for.
    """
    if gpu is not None and not (root / gpu).is_dir():
        raise ControlError(f"'{gpu}' names no GPU")
    controls = FileBoard(root / "board").controls(on_step)
    if gpu is not None:
        controls = {**FileBoard(root / gpu).controls(on_step), "cpu_freq_mhz": controls["cpu_freq_mhz"]}
    return Discovered(
        identity=DeviceIdentity(
            "file:board" if gpu is None else f"nvidia:{gpu}",
            "file",
            "a board of files" if gpu is None else f"{gpu}, a GPU of files",
            Provenance.EMULATED,
            tables_digest(TABLES),
        ),
        controls=controls,
        is_writable=True,
        meters=(),
        no_meter=("it has none",),
        witness=BlindWitness(),
        caps=Caps(None, OperatorLimits()),
        notes=(),
        profile=None,
        gpu=gpu,
        memory=None,
        sysfs=Sysfs(root),
    )


class BlindWitness:
    """Sees nothing."""

    def begin(self) -> None: ...

    def end(self) -> Seen:
        return Seen({})
