"""The stand-ins for NVIDIA's tools, run as programs from the mounted tree."""

from __future__ import annotations

import subprocess
from pathlib import Path

from polythrottle_agent.emulation.mount import MountedBoard, mounted

from .conftest import eventually, read


def run(tool: Path, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [str(tool), *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=20)


def test_nvpmodel_says_and_switches_the_mode(orin: MountedBoard) -> None:
    nvpmodel = orin.root / "usr/sbin/nvpmodel"
    assert run(nvpmodel, "-q").stdout.splitlines()[-2:] == ["NV Power Mode: 25W", "1"]
    assert run(nvpmodel, "-m", "2").returncode == 0
    assert run(nvpmodel, "-q").stdout.splitlines()[-2:] == ["NV Power Mode: MAXN_SUPER", "2"]
    assert read(orin.path("gpu/max_freq")) == "1020000000"
    assert run(nvpmodel, "-m", "9").returncode != 0


def test_nvpmodel_asks_before_a_change_that_takes_a_reboot() -> None:
    with mounted("orin-nano-8gb", kernel="5.10") as stock:
        nvpmodel, boot_id = stock.root / "usr/sbin/nvpmodel", stock.root / "proc/sys/kernel/random/boot_id"
        before = read(boot_id)
        declined = run(nvpmodel, "-m", "1", stdin="no\n")
        assert declined.returncode != 0
        assert "DO YOU WANT TO REBOOT NOW?" in declined.stdout
        assert "optMask is 1" in declined.stdout
        assert read(boot_id) == before
        assert run(nvpmodel, "-m", "1", stdin="YES\n").returncode == 0
        assert read(boot_id) != before
        assert run(nvpmodel, "-q").stdout.splitlines()[-1] == "1"


def test_jetson_clocks_shows_and_pins(orin: MountedBoard) -> None:
    tool = orin.root / "usr/bin/jetson_clocks"
    shown = run(tool, "--show").stdout
    assert "cpu5: Online=1 Governor=schedutil MinFreq=729600 MaxFreq=1344000" in shown
    assert "GPU MinFreq=306000000 MaxFreq=918000000" in shown
    assert "FreqOverride=0" in shown
    assert run(tool).returncode == 0
    assert read(orin.path("gpu/min_freq")) == "918000000"
    assert eventually(lambda: "FreqOverride=1" in run(tool, "--show").stdout)


def test_tegrastats_prints_rails(orin: MountedBoard) -> None:
    tool = orin.root / "usr/bin/tegrastats"
    with subprocess.Popen([str(tool), "--interval", "100"], stdout=subprocess.PIPE, text=True) as stats:
        assert stats.stdout is not None
        line = stats.stdout.readline()
        stats.kill()
    assert "VDD_IN " in line
    assert "mW/" in line
    assert "GR3D_FREQ 0%@[306]" in line
