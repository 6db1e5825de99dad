"""What else holds on a machine: which board it is, its power mode, and who else sets clocks. Reads only."""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from polythrottle.profiles import BoardProfile, board_names, load_profile
from polythrottle_agent.sysfs import Sysfs

EMULATOR = "/.emulator"
"""A directory that only an emulated tree has: what is measured there is emulated."""

_PART = re.compile(r"\bp\d{4}-\d{4}\b")
_CODE_NAMES = {"quill": "jetson-tx2", "galen": "jetson-agx-xavier"}
"""NVIDIA's names of boards whose device tree may leave the module's part number out."""


def is_emulated(sysfs: Sysfs) -> bool:
    return sysfs.at(EMULATOR).is_dir()


def find_profile(sysfs: Sysfs) -> BoardProfile | None:
    """The profile of this board, by the module's part number in the device tree; None where it is unknown.

    The model string is not used: boards were seen that name another module.
    """
    compatible = sysfs.text_or_none(sysfs.at("/proc/device-tree/compatible"))
    if not compatible:
        return None
    parts = _PART.findall(compatible)
    by_part = _profiles_by_part()
    for part in parts:
        if part in by_part:
            return load_profile(by_part[part])
    for name in compatible.split("\0"):
        board = _CODE_NAMES.get(name.rpartition(",")[2])
        if board is not None:
            return load_profile(board)
    return None


@lru_cache(maxsize=1)
def _profiles_by_part() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in board_names():
        for text in load_profile(name).module_parts:
            found.update(dict.fromkeys(_PART.findall(text), name))
    return found


def model_name(sysfs: Sysfs) -> str | None:
    """What the machine calls itself: device tree, DMI, or its first CPU."""
    for path in ("/proc/device-tree/model", "/sys/class/dmi/id/product_name"):
        text = sysfs.text_or_none(sysfs.at(path))
        if text:
            return text
    return cpu_name(sysfs)


def cpu_name(sysfs: Sysfs) -> str | None:
    for line in (sysfs.text_or_none(sysfs.at("/proc/cpuinfo")) or "").splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip() == "model name":
            return " ".join(value.split())
    return None


def machine_key(sysfs: Sysfs) -> str:
    """Twelve hex digits that tell this machine from others and stay over reboots and reinstalls of ours.

    The serial number itself is not shown: it belongs to the owner.
    """
    for path in ("/proc/device-tree/serial-number", "/etc/machine-id"):
        text = sysfs.text_or_none(sysfs.at(path))
        if text:
            return hashlib.sha256(f"polythrottle:{text}".encode()).hexdigest()[:12]
    return "0" * 12


@dataclass(frozen=True)
class OtherController:
    """A program that may set clocks too. `harmless`: it is known not to touch ours."""

    name: str
    process: int | None
    harmless: bool
    advice: str


_KNOWN: tuple[tuple[str, tuple[str, ...], bool, str], ...] = (
    ("nvfancontrol", ("nvfancontrol",), True, "sets the fan only; keep its profile fixed while tuning"),
    ("nvpmodel", ("nvpmodel",), False, "changes the power mode; do not switch modes while tuning"),
    ("jetson_clocks", ("jetson_clocks",), False, "pins every clock; do not run it while tuning"),
    ("jtop", ("jtop",), False, "only reads, unless jetson_clocks is switched on in it; switch that off"),
    ("nvidia-powerd", ("nvidia-powerd",), False, "moves GPU power limits; stop nvidia-powerd while tuning"),
    ("tuned", ("tuned",), False, "sets governors and clocks; run `tuned-adm off` while tuning"),
    ("TLP", ("tlp",), False, "sets clocks when power changes; run `systemctl stop tlp` while tuning"),
    (
        "power-profiles-daemon",
        ("power-profiles-daemon",),
        False,
        "moves CPU limits and preferences; stop it while tuning",
    ),
    ("auto-cpufreq", ("auto-cpufreq",), False, "sets CPU clocks every few seconds; stop it while tuning"),
    ("thermald", ("thermald",), False, "lowers CPU limits when it is hot; note it, stopping it is unwise"),
    ("LACT", ("lactd", "lact"), False, "sets GPU clocks and limits; stop lactd while tuning"),
    ("DCGM", ("nv-hostengine",), False, "re-applies its own clocks if configured; see `dcgmi config --get`"),
    ("zeusd", ("zeusd",), False, "sets GPU clocks for its clients; stop it while tuning"),
)


def other_controllers(sysfs: Sysfs) -> tuple[OtherController, ...]:
    """Programs that run now and may move the same clocks, each once, with what to do about it."""
    running: dict[str, int] = {}
    for process in sysfs.entries(sysfs.at("/proc")):
        if process.name.isdigit():
            for name in _names(sysfs, process.name):
                running.setdefault(name, int(process.name))
    found = []
    for name, programs, harmless, advice in _KNOWN:
        pid = next((running[program] for program in programs if program in running), None)
        if pid is not None:
            found.append(OtherController(name, pid, harmless, advice))
    return tuple(found)


def _names(sysfs: Sysfs, process: str) -> Iterable[str]:
    """The program's name and, for scripts, the script's."""
    comm = sysfs.text_or_none(sysfs.at(f"/proc/{process}/comm"))
    if comm:
        yield comm
    line = sysfs.text_or_none(sysfs.at(f"/proc/{process}/cmdline")) or ""
    for word in line.split("\0")[:2]:
        if word:
            yield word.rpartition("/")[2]


def jetson_stats_context() -> tuple[str, ...]:
    """What a running jtop service adds, through jetson-stats' public client; nothing where there is none.

    Nothing depends on it: the package is an optional extra, and its service must be running.
    """
    try:
        client = importlib.import_module("jtop").jtop
    except ImportError:
        return ()
    try:
        with client() as jetson:
            if not jetson.ok():
                return ()
            return (
                f"jetson-stats: power mode {jetson.nvpmodel}, "
                f"jetson_clocks {'on' if jetson.jetson_clocks else 'off'}",
            )
    except Exception as error:  # its client raises errors of its own making, and versions differ in which
        return (f"jetson-stats is installed and gives nothing: {' '.join(str(error).split())}",)
