"""A picture of a machine's clocks, meters and drivers as one tar file: for a bug report, and for a test.

Unpacked, it is a tree that discovery can be pointed at. Serial numbers, addresses of networks and names of
users are not read.
"""

from __future__ import annotations

import io
import json
import os
import platform
import re
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polythrottle import __version__
from polythrottle_agent.ports import ControlError
from polythrottle_agent.sysfs import Sysfs

if TYPE_CHECKING:
    from polythrottle_agent.nvml.session import NvmlSession

PATTERNS = (
    "proc/device-tree/model",
    "proc/device-tree/compatible",
    "proc/version",
    "proc/cpuinfo",
    "proc/driver/nvidia/version",
    "etc/nv_tegra_release",
    "etc/nv_boot_control.conf",
    "etc/nvpmodel.conf",
    "var/lib/nvpmodel/status",
    "etc/polythrottle/limits.yaml",
    "sys/class/devfreq/*/*",
    "sys/class/devfreq/*/device/of_node/name",
    "sys/class/devfreq/*/device/railgate_enable",
    "sys/class/devfreq/*/device/power/control",
    "sys/devices/system/cpu/online",
    "sys/devices/system/cpu/present",
    "sys/devices/system/cpu/possible",
    "sys/devices/system/cpu/cpu[0-9]*/online",
    "sys/devices/system/cpu/cpufreq/*",
    "sys/devices/system/cpu/cpufreq/policy*/*",
    "sys/devices/system/cpu/intel_pstate/*",
    "sys/devices/system/cpu/amd_pstate/*",
    "sys/kernel/debug/bpmp/debug/clk/emc/*",
    "sys/kernel/debug/bpmp/debug/emc/possible_rates",
    "sys/kernel/debug/bpmp/debug/bwmgr/bwmgr_halt",
    "sys/kernel/nvpmodel_emc_cap/*",
    "sys/kernel/nvpmodel_clk_cap/*",
    "sys/class/hwmon/hwmon*/*",
    "sys/bus/i2c/drivers/ina3221x/*/iio*/*",
    "sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/*",
    "sys/bus/i2c/drivers/ina238/*/hwmon/hwmon*/*",
    "sys/class/powercap/*/*",
    "sys/class/thermal/thermal_zone*/*",
    "sys/class/thermal/cooling_device*/*",
    "sys/class/dmi/id/product_name",
)
NEVER = ("serial", "uuid", "asset_tag", "uevent")

PATIENCE_S = 2.0
"""A sensor on a bus that hangs must not keep the picture."""
MAX_FILE_BYTES = 256 * 1024
ENTRY_LIMIT = 4000

UUID = re.compile(r"GPU-[0-9a-fA-F-]{8,}")
SERIAL = re.compile(rb"^Serial[ \t]*:.*\n?", re.MULTILINE)
"""What names one device: NVML's errors carry the first, /proc/cpuinfo on 32-bit Arm the second."""

GPU_GETTERS = (
    "nvmlDeviceGetName",
    "nvmlDeviceGetSupportedMemoryClocks",
    "nvmlDeviceGetPowerManagementLimit",
    "nvmlDeviceGetPowerManagementLimitConstraints",
    "nvmlDeviceGetPowerManagementDefaultLimit",
    "nvmlDeviceGetPersistenceMode",
    "nvmlDeviceGetMigMode",
    "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetTotalEnergyConsumption",
    "nvmlDeviceGetCurrentClocksEventReasons",
)


@dataclass
class Snapshot:
    """What was put into the file. `unread` maps a path to the reason why it is not there."""

    path: Path
    files: int = 0
    unread: dict[str, str] = field(default_factory=dict)


def take_snapshot(path: Path, root: Path, nvml: Mapping[str, Any] | None = None) -> Snapshot:
    """Write the picture of the machine below `root`.

    Args:
        nvml: what `nvml_state` answered, where there is an NVIDIA driver.

    Raises:
        OSError: `path` cannot be written.
    """
    snapshot = Snapshot(path)
    with tarfile.open(path, "w:gz") as archive:
        for file in _files(root):
            name = str(file.relative_to(root))
            content = _read(file)
            if isinstance(content, str):
                snapshot.unread[name] = content
                continue
            _add(archive, name, SERIAL.sub(b"", content), file)
            snapshot.files += 1
        if nvml is not None:
            _add(archive, "nvml.json", json.dumps(nvml, indent=1).encode())
        about = {
            "schema": "polythrottle-snapshot/1",
            "polythrottle_version": __version__,
            "taken_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "kernel": platform.release(),
            "machine": platform.machine(),
            "as_root": os.geteuid() == 0,
            "files": snapshot.files,
            "unread": snapshot.unread,
        }
        _add(archive, "snapshot.json", json.dumps(about, indent=1).encode())
    return snapshot


def _files(root: Path) -> Iterator[Path]:
    seen: set[Path] = set()
    for pattern in PATTERNS:
        for path in sorted(root.glob(pattern)):
            if path in seen or any(word in path.name for word in NEVER) or not path.is_file():
                continue
            seen.add(path)
            yield path
            if len(seen) >= ENTRY_LIMIT:
                return


def _read(path: Path) -> bytes | str:
    """The file's content, or the reason why there is none."""

    def read() -> bytes | str:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                return os.read(descriptor, MAX_FILE_BYTES)
            finally:
                os.close(descriptor)
        except OSError as error:
            return error.strerror or str(error)

    return _within(PATIENCE_S, read, f"no answer within {PATIENCE_S:g} s")


def _within(patience_s: float, action: Callable[[], bytes | str], otherwise: str) -> bytes | str:
    answers: list[bytes | str] = []
    thread = threading.Thread(target=lambda: answers.append(action()), daemon=True)
    thread.start()
    thread.join(patience_s)
    return answers[0] if answers else otherwise


def _add(archive: tarfile.TarFile, name: str, content: bytes, like: Path | None = None) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    entry.mode = 0o644 if like is None else like.stat().st_mode & 0o777
    archive.addfile(entry, io.BytesIO(content))


def nvml_state(sysfs: Sysfs) -> Mapping[str, Any] | None:
    """What NVML answers about each GPU; None where no NVIDIA driver is loaded. Only getters are called."""
    from polythrottle_agent.discovery import NVIDIA_TRACES

    if not any(sysfs.at(path).exists() for path in NVIDIA_TRACES):
        return None
    from polythrottle_agent.nvml.session import NvmlSession

    try:
        with NvmlSession() as session:
            uuids = session.gpus()
            return {
                "driver": _answer(lambda: session.system("nvmlSystemGetDriverVersion")),
                "gpus": [_gpu_state(session, uuid) for uuid in uuids],
            }
    except (ControlError, ImportError) as error:
        return {"error": str(error)}


def _gpu_state(session: NvmlSession, uuid: str) -> Mapping[str, Any]:
    """Every getter's answer, and the table of graphics clocks under each memory clock."""
    state = {name: _answer(partial(session.call, uuid, name)) for name in GPU_GETTERS}
    memory_clocks = state["nvmlDeviceGetSupportedMemoryClocks"]
    table = "nvmlDeviceGetSupportedGraphicsClocks"
    if isinstance(memory_clocks, list):
        state[table] = {str(mhz): _answer(partial(session.call, uuid, table, mhz)) for mhz in memory_clocks}
    return state


def _answer(call: Callable[[], Any]) -> Any:
    try:
        value = call()
    except ControlError as error:
        return {"error": UUID.sub("GPU", str(error))}
    return _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value if isinstance(value, (int, float, str, bool, type(None))) else repr(value)
