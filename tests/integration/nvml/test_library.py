"""The pretended library keeps the real one's rules, as unmodified nvidia-ml-py sees them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml
import pytest
from nvml_fake import (
    EVERYBODY,
    HW_THERMAL,
    NOBODY,
    ROOT_ONLY,
    SW_THERMAL,
    build,
    compiler,
    environment,
    run_python,
)

NVML_HEADER = "nvml.h"


@pytest.fixture
def gpu(machine: Callable[..., Any]) -> Callable[..., Any]:
    """Opens NVML by hand and returns the machine and the first GPU's handle."""

    def make(gpus: str) -> tuple[Any, Any]:
        found = machine(gpus)
        return found, pynvml.nvmlDeviceGetHandleByUUID(found.uuid)

    return make


@pytest.mark.parametrize("name", ["V100", "A100-40", "H100", "RTX"])
def test_lists_are_descending_and_belong_to_a_memory_clock(gpu: Any, name: str) -> None:
    _, handle = gpu(name)
    memory = pynvml.nvmlDeviceGetSupportedMemoryClocks(handle)
    assert memory == sorted(memory, reverse=True)
    graphics = pynvml.nvmlDeviceGetSupportedGraphicsClocks(handle, memory[0])
    assert graphics == sorted(graphics, reverse=True)
    assert len(graphics) > 80
    with pytest.raises(pynvml.NVMLError_NotFound):
        pynvml.nvmlDeviceGetSupportedGraphicsClocks(handle, memory[0] + 1)


def test_a_lock_is_rounded_to_a_step_and_runs_under_load_only(gpu: Any) -> None:
    machine, handle = gpu("H100")
    pynvml.nvmlDeviceSetGpuLockedClocks(handle, 1000, 1000)
    assert pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_GRAPHICS) == 345
    machine.fake.set(load=1)
    assert pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_GRAPHICS) == 990
    pynvml.nvmlDeviceResetGpuLockedClocks(handle)
    assert pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_GRAPHICS) == 1980


def test_locked_clocks_have_no_getter(library: Path) -> None:
    import ctypes

    exported = ctypes.CDLL(str(library / "libnvidia-ml.so.1"))
    assert hasattr(exported, "nvmlDeviceSetGpuLockedClocks")
    for name in ("nvmlDeviceGetGpuLockedClocks", "nvmlDeviceGetMemoryLockedClocks"):
        assert not hasattr(exported, name)


@pytest.mark.parametrize(
    ("name", "function", "arguments"),
    [
        ("P100", "nvmlDeviceSetGpuLockedClocks", (600, 700)),
        ("P100", "nvmlDeviceGetTotalEnergyConsumption", ()),
        ("V100", "nvmlDeviceSetMemoryLockedClocks", (877, 877)),
        ("RTX", "nvmlDeviceGetMigMode", ()),
        ("Orin", "nvmlDeviceGetPowerUsage", ()),
        ("Orin", "nvmlDeviceGetClockInfo", (0,)),
        ("Orin", "nvmlDeviceGetSupportedMemoryClocks", ()),
    ],
)
def test_what_an_architecture_lacks_is_not_supported(
    gpu: Any, name: str, function: str, arguments: tuple[int, ...]
) -> None:
    _, handle = gpu(name)
    with pytest.raises(pynvml.NVMLError_NotSupported):
        getattr(pynvml, function)(handle, *arguments)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("nvmlDeviceSetGpuLockedClocks", (1500, 1400)),
        ("nvmlDeviceSetGpuLockedClocks", (1400, 0xFFFFFF02)),
        ("nvmlDeviceSetMemoryLockedClocks", (2619, 1593)),
        ("nvmlDeviceSetPowerManagementLimit", (199_999,)),
        ("nvmlDeviceSetPowerManagementLimit", (700_001,)),
    ],
)
def test_bad_values_are_invalid_and_change_nothing(
    gpu: Any, function: str, arguments: tuple[int, ...]
) -> None:
    machine, handle = gpu("H100")
    before = machine.fake.settings()
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        getattr(pynvml, function)(handle, *arguments)
    assert machine.fake.settings() == before


SET = """
import pynvml as n
n.nvmlInit()
h = n.nvmlDeviceGetHandleByIndex(0)
try:
    n.{call}
    print("ok")
except n.NVMLError as e:
    print(type(e).__name__)
"""


@pytest.mark.parametrize(
    "call",
    [
        "nvmlDeviceSetGpuLockedClocks(h, 900, 900)",
        "nvmlDeviceResetGpuLockedClocks(h)",
        "nvmlDeviceSetMemoryLockedClocks(h, 1593, 1593)",
        "nvmlDeviceResetMemoryLockedClocks(h)",
        "nvmlDeviceSetPowerManagementLimit(h, 300000)",
        "nvmlDeviceSetPersistenceMode(h, 1)",
    ],
)
def test_setting_needs_root_and_reading_does_not(gpu: Any, library: Path, tmp_path: Path, call: str) -> None:
    machine, handle = gpu("H100")
    env = environment(library, tmp_path / "gpus", "H100", manual_clock=True)
    machine.fake.set(permission=NOBODY)
    assert run_python(SET.format(call=call), env).strip() == "NVMLError_NoPermission"
    assert pynvml.nvmlDeviceGetPowerUsage(handle) > 0
    machine.fake.set(permission=EVERYBODY)
    assert run_python(SET.format(call=call), env).strip() == "ok"
    machine.fake.set(permission=ROOT_ONLY)
    assert run_python(SET.format(call=call), env).strip() == (
        "ok" if os.geteuid() == 0 else "NVMLError_NoPermission"
    )


def test_another_process_sees_what_one_has_set(gpu: Any, library: Path, tmp_path: Path) -> None:
    machine, handle = gpu("A100-40")
    env = environment(library, tmp_path / "gpus", "A100-40", manual_clock=True)
    run_python(SET.format(call="nvmlDeviceSetGpuLockedClocks(h, 900, 900)"), env)
    machine.fake.set(load=1)
    assert pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM) == 900


def test_without_persistence_the_last_client_takes_the_settings_with_it(
    machine: Callable[..., Any], library: Path, tmp_path: Path
) -> None:
    found = machine("H100")
    found.session.close()
    env = environment(library, tmp_path / "gpus", "H100", manual_clock=True)
    run_python(SET.format(call="nvmlDeviceSetGpuLockedClocks(h, 900, 900)"), env)  # ends without nvmlShutdown
    assert found.session.gpus()
    assert found.fake.get("lock_max") == 0
    found.fake.set(persistence=1)
    found.session.close()
    run_python(SET.format(call="nvmlDeviceSetGpuLockedClocks(h, 900, 900)"), env)
    assert found.session.gpus()
    assert found.fake.get("lock_max") == 900


def test_a_driver_reload_drops_locks_limits_persistence_and_counters(gpu: Any) -> None:
    machine, handle = gpu("H100")
    pynvml.nvmlDeviceSetGpuLockedClocks(handle, 900, 900)
    pynvml.nvmlDeviceSetPowerManagementLimit(handle, 300_000)
    pynvml.nvmlDeviceSetPersistenceMode(handle, 1)
    machine.clock.sleep(2)
    assert pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) > 0
    machine.fake.reload_driver()
    assert machine.fake.settings() == {
        "lock_min": 0, "lock_max": 0, "memory_min": 0, "memory_max": 0, "limit_mw": 700_000, "persistence": 0,
    }  # fmt: skip
    assert pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) == 0


def test_power_and_energy_follow_the_clock(gpu: Any) -> None:
    machine, handle = gpu("H100")
    machine.fake.set(load=1)
    read = []
    for mhz in (600, 1200, 1980):
        pynvml.nvmlDeviceSetGpuLockedClocks(handle, mhz, mhz)
        machine.clock.sleep(2)
        before = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        machine.clock.sleep(1)
        watts = (pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) - before) / 1e3
        assert watts == pytest.approx(machine.fake.get("watts"), rel=1e-3)
        assert pynvml.nvmlDeviceGetPowerUsage(handle) == pytest.approx(watts * 1e3, rel=1e-3)
        read.append(watts)
    assert read == sorted(read)
    assert read[2] > 2 * read[0]


def test_the_energy_counter_stands_still_between_refreshes(gpu: Any) -> None:
    machine, handle = gpu("H100")
    machine.fake.set(load=1)
    shown = set()
    for _ in range(95):
        shown.add(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        machine.fake.advance(0.01)
    assert 9 <= len(shown) <= 11  # 0.95 s of 100 ms refreshes


@pytest.mark.parametrize(
    ("name", "averages"), [("V100", False), ("A100-40", False), ("H100", True), ("RTX", True)]
)
def test_power_usage_is_a_one_second_average_from_ampere_on_but_not_on_ga100(
    gpu: Any, name: str, averages: bool
) -> None:
    machine, handle = gpu(name)
    machine.clock.sleep(3)
    machine.fake.set(load=1)
    machine.clock.sleep(0.5)
    full_mw = machine.fake.get("watts") * 1e3
    usage, field = pynvml.nvmlDeviceGetPowerUsage(handle), pynvml.nvmlDeviceGetFieldValues(handle, [186, 185])
    assert (usage < 0.8 * full_mw) == averages
    assert field[0].nvmlReturn == 0
    assert field[0].value.uiVal == pytest.approx(full_mw, rel=0.01)
    assert field[1].nvmlReturn == (0 if averages else pynvml.NVML_ERROR_NOT_SUPPORTED)
    machine.clock.sleep(1)
    assert pynvml.nvmlDeviceGetPowerUsage(handle) == pytest.approx(full_mw, rel=0.01)


def test_each_field_has_a_return_code_of_its_own(gpu: Any) -> None:
    machine, handle = gpu("H100")
    machine.fake.inject("field:186", pynvml.NVML_ERROR_UNKNOWN, times=1)
    values = pynvml.nvmlDeviceGetFieldValues(handle, [186, 83, (186, 1), 12345])
    assert [v.nvmlReturn for v in values] == [999, 0, 3, 3]
    assert pynvml.nvmlDeviceGetFieldValues(handle, [186])[0].nvmlReturn == 0


def test_a_power_limit_holds_the_clock_down_and_says_so(gpu: Any) -> None:
    machine, handle = gpu("H100")
    machine.fake.set(load=1)
    machine.clock.sleep(1)
    assert pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle) == 0
    pynvml.nvmlDeviceSetPowerManagementLimit(handle, 300_000)
    machine.clock.sleep(1)
    assert pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM) < 1980
    assert pynvml.nvmlDeviceGetPowerUsage(handle) <= 300_000
    assert pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle) == pynvml.nvmlClocksEventReasonSwPowerCap


def test_event_reasons_idle_heat_and_the_false_alarm_after_a_change(gpu: Any) -> None:
    machine, handle = gpu("H100")
    reasons = pynvml.nvmlDeviceGetCurrentClocksEventReasons
    assert reasons(handle) == pynvml.nvmlClocksEventReasonGpuIdle
    machine.fake.set(load=1)
    assert reasons(handle) == pynvml.nvmlClocksEventReasonHwSlowdown
    machine.clock.sleep(0.1)
    assert reasons(handle) == 0
    machine.fake.set(heat=SW_THERMAL)
    machine.clock.sleep(0.1)
    assert reasons(handle) == pynvml.nvmlClocksEventReasonSwThermalSlowdown
    machine.fake.set(heat=HW_THERMAL)
    machine.clock.sleep(0.1)
    assert reasons(handle) == 0x48


def test_errors_come_as_often_and_as_late_as_they_are_injected(gpu: Any) -> None:
    machine, handle = gpu("H100")
    machine.fake.inject("nvmlDeviceGetPowerUsage", pynvml.NVML_ERROR_UNKNOWN, skip=1, times=2)
    results = []
    for _ in range(4):
        try:
            results.append(pynvml.nvmlDeviceGetPowerUsage(handle) > 0)
        except pynvml.NVMLError_Unknown:
            results.append(False)
    assert results == [True, False, False, True]


def test_a_lost_gpu_is_lost_and_its_neighbour_is_not(machine: Callable[..., Any]) -> None:
    found = machine("H100,A100-40")
    handles = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in found.uuids]
    found.fake.set(0, lost=1)
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        pynvml.nvmlDeviceGetPowerUsage(handles[0])
    assert pynvml.nvmlDeviceGetPowerUsage(handles[1]) > 0


def test_under_mig_there_is_no_utilisation(gpu: Any) -> None:
    machine, handle = gpu("A100-40")
    assert pynvml.nvmlDeviceGetUtilizationRates(handle).gpu == 0
    machine.fake.set(mig=1)
    assert pynvml.nvmlDeviceGetMigMode(handle) == [1, 1]
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetUtilizationRates(handle)


def test_an_old_driver_lacks_functions(cache: Path, tmp_path: Path) -> None:
    env = environment(build(cache, old_driver=True), tmp_path / "old", "A100-40")
    printed = run_python(SET.format(call="nvmlDeviceSetMemoryLockedClocks(h, 1215, 1215)"), env)
    assert printed.strip() == "NVMLError_FunctionNotFound"


def test_prototypes_are_those_of_nvidia_s_header() -> None:
    """Only where NVIDIA's header is installed (for example by the PyPI package nvidia-nvml-dev)."""
    import subprocess

    from nvml_fake import SOURCES

    headers = [
        path
        for base in ("/usr/include", "/usr/local/cuda/include", *pynvml_neighbours())
        for path in Path(base).glob(f"**/{NVML_HEADER}")
    ]
    if not headers:
        pytest.skip("NVIDIA's nvml.h is not installed: prototypes were not compared")
    command = [str(compiler()), "-std=gnu11", "-DCHECK_ABI", f"-I{headers[0].parent}", "-fsyntax-only"]
    done = subprocess.run([*command, *map(str, SOURCES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def pynvml_neighbours() -> list[str]:
    return [str(Path(pynvml.__file__).parent / "nvidia")]
