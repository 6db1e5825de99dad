from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from polythrottle_agent.context import (
    find_profile,
    is_emulated,
    jetson_stats_context,
    machine_key,
    model_name,
    other_controllers,
)
from polythrottle_agent.sysfs import Sysfs


def put(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode())


@pytest.mark.parametrize(
    ("compatible", "board"),
    [
        ("nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0", "jetson-orin-nano-8gb"),
        ("nvidia,p3509-0000+p3767-0001\0nvidia,tegra234\0", "jetson-orin-nx-8gb"),
        ("nvidia,p3737-0000+p3701-0004\0nvidia,tegra234\0", "jetson-agx-orin-32gb"),
        ("nvidia,p2597-0000+p3310-1000\0nvidia,tegra186\0", "jetson-tx2"),
        ("nvidia,quill\0nvidia,tegra186\0", "jetson-tx2"),
        ("nvidia,p4071-0000+p3834-0008\0nvidia,tegra264\0", "jetson-agx-thor"),
        ("raspberrypi,4-model-b\0brcm,bcm2711\0", None),
        ("", None),
    ],
)
def test_a_board_is_known_by_the_part_number_of_its_module(
    tmp_path: Path, compatible: str, board: str | None
) -> None:
    put(tmp_path, "proc/device-tree/compatible", compatible)
    put(tmp_path, "proc/device-tree/model", "NVIDIA Orin NX Engineering Reference Developer Kit\0")
    profile = find_profile(Sysfs(tmp_path))
    assert (None if profile is None else profile.name) == board


def test_a_machine_is_told_apart_without_showing_its_serial_number(tmp_path: Path) -> None:
    put(tmp_path, "etc/machine-id", "0123456789abcdef\n")
    by_id = machine_key(Sysfs(tmp_path))
    put(tmp_path, "proc/device-tree/serial-number", "1420000000001\0")
    by_serial = machine_key(Sysfs(tmp_path))
    assert by_id != by_serial
    assert len(by_serial) == 12
    assert "1420000000001" not in by_serial
    put(tmp_path, "etc/machine-id", "another\n")
    assert machine_key(Sysfs(tmp_path)) == by_serial


def test_a_host_is_named_by_its_product_or_its_cpu(tmp_path: Path) -> None:
    put(tmp_path, "proc/cpuinfo", "processor\t: 0\nmodel name\t: AMD EPYC  7B13\n")
    assert model_name(Sysfs(tmp_path)) == "AMD EPYC 7B13"
    put(tmp_path, "sys/class/dmi/id/product_name", "PowerEdge R7525\n")
    assert model_name(Sysfs(tmp_path)) == "PowerEdge R7525"


def test_only_an_emulated_tree_is_emulated(tmp_path: Path) -> None:
    assert not is_emulated(Sysfs(tmp_path))
    (tmp_path / ".emulator").mkdir()
    assert is_emulated(Sysfs(tmp_path))


def test_other_controllers_are_found_by_name_and_by_script(tmp_path: Path) -> None:
    put(tmp_path, "proc/100/comm", "nvfancontrol\n")
    put(tmp_path, "proc/200/comm", "python3\n")
    put(tmp_path, "proc/200/cmdline", "/usr/bin/python3\0/usr/sbin/tuned\0--no-dbus\0")
    put(tmp_path, "proc/300/comm", "lactd\n")
    put(tmp_path, "proc/400/comm", "tunedd\n")
    put(tmp_path, "proc/sys/comm", "tlp\n")
    found = {other.name: other for other in other_controllers(Sysfs(tmp_path))}
    assert set(found) == {"nvfancontrol", "tuned", "LACT"}
    assert found["nvfancontrol"].harmless
    assert found["tuned"].process == 200
    assert not found["tuned"].harmless
    assert all(other.advice for other in found.values())


def fake_jtop(monkeypatch: pytest.MonkeyPatch, client: object) -> None:
    module = types.ModuleType("jtop")
    module.jtop = client  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "jtop", module)


def test_jetson_stats_adds_context_through_its_public_client(monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        nvpmodel = "25W"
        jetson_clocks = False

        def __enter__(self) -> Client:
            return self

        def __exit__(self, *_: object) -> None: ...

        def ok(self) -> bool:
            return True

    fake_jtop(monkeypatch, Client)
    assert jetson_stats_context() == ("jetson-stats: power mode 25W, jetson_clocks off",)


def test_nothing_depends_on_jetson_stats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jtop", None)
    assert jetson_stats_context() == ()

    def refuse() -> None:
        raise RuntimeError("The jtop.service is not active.\nRun it.")

    fake_jtop(monkeypatch, refuse)
    (note,) = jetson_stats_context()
    assert note == "jetson-stats is installed and gives nothing: The jtop.service is not active. Run it."
