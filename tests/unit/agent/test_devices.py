from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from polythrottle.clock import VirtualClock
from polythrottle.errors import ExitCode, InvalidInputError, NoDeviceError
from polythrottle.measurement import Provenance
from polythrottle_agent.devices import look_for_hardware, open_device


def file(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_auto_on_an_empty_machine_says_what_was_looked_for_and_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(NoDeviceError) as error:
        open_device("auto", None, 0, root=tmp_path)
    message = str(error.value)
    assert error.value.exit_code == ExitCode.NO_DEVICE == 3
    for wanted in ("No hardware here", "/sys/class/devfreq", "/proc/driver/nvidia/gpus", "cpufreq"):
        assert wanted in message
    assert "--device emulated:orin-nano-8gb" in message
    assert "--device replay:TABLE.csv" in message


def test_a_jetson_is_recognised_with_its_gpu_and_cpu_clocks(tmp_path: Path) -> None:
    file(tmp_path / "proc/device-tree/model", "NVIDIA Jetson Orin Nano Developer Kit\0")
    file(tmp_path / "sys/class/devfreq/17000000.gpu/device/of_node/name", "gpu\0")
    file(tmp_path / "sys/class/devfreq/mmc0/device/of_node/name", "sdhci\0")
    file(tmp_path / "sys/devices/system/cpu/cpufreq/policy0/scaling_driver", "tegra194\n")
    file(tmp_path / "sys/devices/system/cpu/cpufreq/policy4/scaling_driver", "tegra194\n")
    file(tmp_path / "sys/devices/system/cpu/cpufreq/boost", "1\n")
    jetson, gpu, cpus = (finding.found for finding in look_for_hardware(tmp_path))
    assert jetson == "NVIDIA Jetson Orin Nano Developer Kit with GPU node 17000000.gpu"
    assert gpu is None
    assert cpus == "2 CPU clock domains under tegra194"


def test_hardware_that_shows_no_level_is_refused_with_the_reasons(tmp_path: Path) -> None:
    file(tmp_path / "proc/device-tree/model", "NVIDIA Jetson Orin Nano Developer Kit\0")
    file(tmp_path / "sys/class/devfreq/17000000.gpu/device/of_node/name", "gpu\0")
    with pytest.raises(NoDeviceError) as error:
        open_device("auto", None, 0, root=tmp_path)
    message = str(error.value)
    assert "Nothing on NVIDIA Jetson Orin Nano Developer Kit can be set" in message
    assert "available_frequencies: it is not there" in message


def test_a_thor_is_known_by_its_devfreq_node(tmp_path: Path) -> None:
    (tmp_path / "sys/class/devfreq/gpu-gpc-0").mkdir(parents=True)
    found = look_for_hardware(tmp_path)[0].found
    assert found == "a board without a model name with GPU node gpu-gpc-0"


def test_the_root_can_be_named_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file(tmp_path / "proc/device-tree/model", "NVIDIA Jetson Elsewhere\0")
    monkeypatch.setenv("POLYTHROTTLE_SYSROOT", str(tmp_path))
    with pytest.raises(NoDeviceError, match="NVIDIA Jetson Elsewhere"):
        open_device("auto", None, 0)


def test_an_external_meter_is_for_hardware_only() -> None:
    with pytest.raises(InvalidInputError, match="has its own meter; leave --meter out"):
        open_device("emulated:tx2", None, 0, meter="file:/tmp/power")


@pytest.mark.parametrize(("spec", "ending"), [(None, ", without the nvidia-ml-py package"), (object(), "")])
def test_an_nvidia_gpu_is_found_by_its_pci_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: object, ending: str
) -> None:
    (tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0").mkdir(parents=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    assert look_for_hardware(tmp_path)[1].found == f"NVIDIA GPU 0000:01:00.0{ending}"


def test_a_driver_without_a_gpu_is_said_so(tmp_path: Path) -> None:
    file(tmp_path / "dev/nvidiactl", "")
    assert look_for_hardware(tmp_path)[1].found == "an NVIDIA driver (/dev/nvidiactl) that lists no GPU"


@pytest.mark.parametrize(
    "name", ["orin-nano-8gb", "orin-nano", "jetson-orin-nano-8gb", "Jetson_Orin_Nano_8GB"]
)
def test_an_emulated_board_goes_by_any_of_its_names(name: str) -> None:
    device = open_device(f"emulated:{name}", None, 0)
    assert device.identity.board == "orin-nano-8gb"
    assert device.identity.provenance is Provenance.EMULATED


def test_the_given_clock_and_workload_are_used() -> None:
    clock = VirtualClock()
    device = open_device("EMULATED:tx2", "bert-base", 0, clock)
    assert device.clock is clock
    assert device.workload.name == "bert-base"


def test_a_replayed_table_is_opened(tmp_path: Path) -> None:
    file(tmp_path / "t.csv", "gpu_freq_mhz,latency_ms,energy_j\n300,1,1\n600,0.7,1.2\n")
    assert open_device(f"replay:{tmp_path}/t.csv", None, 0).identity.provenance is Provenance.AS_RECORDED


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "emulatd:tx2",
            r"Unknown device 'emulatd:tx2'; did you mean emulated\? Write auto, emulated:BOARD or",
        ),
        ("", r"Unknown device ''; known: auto, emulated, replay\."),
        ("tx2", r"'tx2' is the name of a board; write emulated:tx2"),
        ("table.CSV", r"'table.CSV' looks like a table; write replay:table.CSV"),
        ("emulated:", r"'emulated:' is not complete; write for example emulated:orin-nano-8gb"),
        ("replay:", r"'replay:' is not complete; write for example replay:TABLE.csv"),
        ("auto:", r"'auto:' is not complete; write auto, or auto:UUID of a GPU"),
        ("emulated:tx3", r"Unknown board 'tx3'; did you mean tx2\?"),
        ("emulated:thor", r"jetson-agx-thor is not emulated yet; emulated are .*tx2"),
        ("replay:missing.csv", r"There is no table at missing.csv"),
    ],
)
def test_a_device_that_cannot_be_opened_is_refused_in_one_sentence(text: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message) as error:
        open_device(text, None, 0)
    assert "\n" not in str(error.value)


def test_the_emulated_boards_have_levels_that_were_published() -> None:
    from polythrottle.profiles import load_profile
    from polythrottle_agent.emulation.boards import BOARDS, board_named

    for name in BOARDS:
        board, profile = board_named(name), load_profile(name)
        for knob, levels in (
            ("cpu_freq_mhz", board.cpu_mhz),
            ("gpu_freq_mhz", board.gpu_mhz),
            ("mem_freq_mhz", board.mem_mhz),
        ):
            published = [table.freqs_mhz for table in profile.tables[knob]]
            assert levels in published, (name, knob)
