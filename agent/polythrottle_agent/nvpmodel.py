"""nvpmodel's power mode: context and a cap. Its files are read; its mode is never changed.

Conf format: headers of NVIDIA's own conf files. `nvpmodel` is not run: it may prompt for a reboot.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from polythrottle_agent.sysfs import Sysfs

CONF = "/etc/nvpmodel.conf"
STATUS = "/var/lib/nvpmodel/status"
EMC_ISO_CAP = "/sys/kernel/nvpmodel_emc_cap/emc_iso_cap"
"""JetPack 4 and 5, Hz. 0: uncapped. Reads back what was written last."""

EMC_CLK_CAP = "/sys/kernel/nvpmodel_clk_cap/emc"
"""JetPack 6 and later, Hz. Reads the highest rate in force."""

_SECTION = re.compile(r"<\s*(PARAM|POWER_MODEL|PM_CONFIG|FAN_CONFIG)\b(.*?)>")
_FIELD = re.compile(r"(\w+)=(\S+)")
_CPU = re.compile(r"/cpu(\d+)/")
_PMODE = re.compile(r"pmode:(\d+)")


INT_MAX = 2**31 - 1


@dataclass(frozen=True)
class Mode:
    """One power mode. Caps in MHz; inf: the mode says that there is none. None: it says nothing.

    `cpu_mhz` maps a CPU number to the cap of its clock, as far as the mode names it. `cpus_online` and
    `cpus_offline` are the CPUs that the mode switches on and off.
    """

    id: int
    name: str
    gpu_mhz: float | None = None
    mem_mhz: float | None = None
    cpu_mhz: Mapping[int, float] = field(default_factory=dict)
    cpus_online: frozenset[int] = frozenset()
    cpus_offline: frozenset[int] = frozenset()


@dataclass(frozen=True)
class _Line:
    """One setting of a mode: the value for the node behind `path`, on a newer kernel behind `path_next`."""

    param: str
    argument: str
    path: str
    value: str


def parse_conf(text: str) -> tuple[tuple[Mode, ...], int | None]:
    """The modes of a conf file, and the one it names as the default."""
    paths: dict[tuple[str, str], str] = {}
    lines: dict[tuple[int, str], list[_Line]] = {}
    default: int | None = None
    mode: tuple[int, str] | None = None
    param = ""
    for raw in text.splitlines():
        line = raw.partition("#")[0].strip()
        section = _SECTION.match(line)
        if section is not None:
            fields: dict[str, str] = dict(_FIELD.findall(section[2]))
            param = ""
            mode = None
            if section[1] == "PARAM":
                param = fields.get("NAME", "")
            elif section[1] == "POWER_MODEL" and fields.get("ID", "").isdigit():
                id_ = str(fields["ID"])
                mode = (int(id_), str(fields.get("NAME", id_)))
                lines[mode] = []
            elif section[1] == "PM_CONFIG" and fields.get("DEFAULT", "").isdigit():
                default = int(fields["DEFAULT"])
            continue
        words = line.split()
        if param and len(words) >= 2:
            paths[param, words[0]] = words[1]
        elif mode is not None and len(words) == 2 and words[0].startswith("/"):
            # The oldest confs name the node itself.
            lines[mode].append(_Line("", "", words[0], words[1]))
        elif mode is not None and len(words) >= 3:
            name, argument = words[0], words[1]
            path = paths.get((name, argument), paths.get((name, f"{argument}_KNEXT"), ""))
            lines[mode].append(_Line(name, argument, path, words[2]))
    return tuple(_mode(id_, name, settings) for (id_, name), settings in lines.items()), default


def _mode(id_: int, name: str, settings: list[_Line]) -> Mode:
    gpu: float | None = None
    mem: float | None = None
    cpu: dict[int, float] = {}
    online: set[int] = set()
    offline: set[int] = set()
    for line in settings:
        number = _number(line.value)
        is_maximum = line.argument == "MAX_FREQ" or line.path.endswith(("max_freq", "/emc", "emc_iso_cap"))
        if line.path.endswith("/online") and number is not None:
            (online if number else offline).update(int(n) for n in _CPU.findall(line.path))
        elif line.argument.startswith("CORE_") and number is not None:
            (online if number else offline).add(int(line.argument.removeprefix("CORE_")))
        elif number is None or not is_maximum:
            continue  # masks, switches and floors are no caps
        elif line.param == "EMC" or line.path.endswith(("/emc", "emc_iso_cap")):
            mem = number / 1e6 if number > 0 else math.inf
        elif "scaling_max_freq" in line.path:
            cap = number / 1e3 if number > 0 else math.inf
            cpu.update((int(n), cap) for n in _CPU.findall(line.path))
        elif line.param == "GPU" or (not line.param and "devfreq" in line.path):
            gpu = number / 1e6 if number > 0 else math.inf
    return Mode(id_, name, gpu, mem, cpu, frozenset(online), frozenset(offline))


def _number(text: str) -> int | None:
    """-1 and INT_MAX, which it becomes, mean no limit."""
    try:
        value = int(text)
    except ValueError:
        return None
    return -1 if value == INT_MAX else value


class NvpModel:
    """The power mode in force, read anew each time: `nvpmodel -m` may run beside us."""

    def __init__(self, sysfs: Sysfs) -> None:
        self._sysfs = sysfs
        self._parsed: tuple[str, tuple[Mode, ...], int | None] | None = None

    @property
    def is_here(self) -> bool:
        """Whether this machine has nvpmodel's files; others have no such cap."""
        return self._sysfs.text_or_none(self._sysfs.at(CONF)) is not None

    def mode(self) -> Mode | None:
        """The mode in force; None where it cannot be told."""
        conf = self._sysfs.text_or_none(self._sysfs.at(CONF))
        if conf is None:
            return None
        if self._parsed is None or self._parsed[0] != conf:
            self._parsed = (conf, *parse_conf(conf))
        _, modes, default = self._parsed
        status = _PMODE.search(self._sysfs.text_or_none(self._sysfs.at(STATUS)) or "")
        wanted = int(status[1]) if status is not None else default
        return next((mode for mode in modes if mode.id == wanted), None)

    def memory_cap_mhz(self) -> float:
        """The memory clock nobody may exceed: the mode's, or the node's where that is lower."""
        mode = self.mode()
        caps = [*self._cap_nodes()]
        if mode is not None and mode.mem_mhz is not None:
            caps.append(mode.mem_mhz)
        return min(caps, default=math.inf)

    def _cap_nodes(self) -> Iterator[float]:
        for path in (EMC_ISO_CAP, EMC_CLK_CAP):
            value = self._sysfs.number_or_none(self._sysfs.at(path))
            if value is not None and value > 0:
                yield value / 1e6
