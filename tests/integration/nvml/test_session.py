"""The session opens late, closes, opens again, and turns what is missing into one sentence."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nvml_fake import environment, run_python

from polythrottle_agent.nvml.gpu import Gpu
from polythrottle_agent.nvml.session import NvmlError, NvmlSession

SAY_ERROR = """
from polythrottle_agent.nvml.session import NvmlError, NvmlSession
try:
    print(NvmlSession().gpus())
except NvmlError as error:
    print(error)
"""


def test_without_a_driver_it_says_what_to_install() -> None:
    printed = run_python(SAY_ERROR, {"LD_LIBRARY_PATH": "", "FAKE_NVML_STATE": ""})
    if "GPU-" in printed:
        pytest.skip("this machine has an NVIDIA driver")
    assert printed.strip() == "nvmlInit: libnvidia-ml.so.1 was not found; install the NVIDIA driver."


def test_without_a_loaded_driver_it_says_so(library: Path) -> None:
    printed = run_python(SAY_ERROR, {"LD_LIBRARY_PATH": str(library), "FAKE_NVML_STATE": ""})
    assert "driver is not loaded" in printed


def test_without_the_binding_it_says_what_to_install() -> None:
    def load() -> Any:
        raise ModuleNotFoundError("No module named 'pynvml'")

    with pytest.raises(NvmlError, match=r"pip install 'polythrottle\[nvidia\]'"):
        NvmlSession(load).gpus()


def test_nothing_is_opened_before_it_is_needed_and_closing_twice_is_harmless() -> None:
    opened: list[str] = []

    def load() -> Any:
        opened.append("opened")
        raise ModuleNotFoundError("pynvml")

    session = NvmlSession(load)
    session.close()
    session.close()
    assert opened == []


def test_a_closed_session_opens_again(machine: Callable[..., Any]) -> None:
    found = machine("H100")
    found.session.close()
    assert found.session.gpus() == found.uuids
    assert Gpu(found.session, found.uuid).facts.name == "NVIDIA H100 80GB HBM3"


def test_after_somebody_else_s_shutdown_the_next_call_opens_again(machine: Callable[..., Any]) -> None:
    found = machine("H100")
    found.fake.inject("nvmlDeviceGetPowerUsage", 1, times=1)
    gpu = Gpu(found.session, found.uuid)
    with pytest.raises(NvmlError, match="nvmlDeviceGetPowerUsage"):
        gpu.power_usage_w()
    assert gpu.power_usage_w() is not None


def test_a_forked_child_opens_a_session_of_its_own(machine: Callable[..., Any]) -> None:
    found = machine("H100")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # nothing of pytest may run in the child
        try:
            os.write(writer, repr(found.session.gpus()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    assert os.read(reader, 4096).decode() == repr(found.uuids)
    os.close(reader)


def test_an_unknown_function_of_the_binding_counts_as_unsupported(machine: Callable[..., Any]) -> None:
    found = machine("H100")
    with pytest.raises(NvmlError, match="nvidia-ml-py lacks it") as error:
        found.session.call(found.uuid, "nvmlDeviceGetSomethingNew")
    assert error.value.is_unsupported


def test_an_unknown_gpu_is_one_sentence(machine: Callable[..., Any]) -> None:
    found = machine("H100")
    with pytest.raises(NvmlError, match="no such GPU"):
        found.session.call("GPU-none", "nvmlDeviceGetName")


def test_an_old_driver_s_throttle_reasons_are_read(cache: Path, tmp_path: Path) -> None:
    from nvml_fake import build

    code = """
from polythrottle_agent.nvml.session import NvmlSession
from polythrottle_agent.nvml.gpu import Gpu
session = NvmlSession()
gpu = Gpu(session, session.gpus()[0])
print(gpu.event_reasons(), gpu.power_field_w(186), gpu.power_usage_w() > 0)
"""
    printed = run_python(code, environment(build(cache, old_driver=True), tmp_path / "old", "A100-40"))
    assert printed.split() == ["1", "None", "True"]
