"""Paths, modes, errnos and how numbers are read (hardware notes: the kernel's answers, file by file)."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from polythrottle_agent.emulation.boards import SYSFS_BOARDS
from polythrottle_agent.emulation.layouts import kernels_of, layout_of
from polythrottle_agent.emulation.machine import Options
from polythrottle_agent.emulation.mount import MountedBoard, mounted

from .conftest import as_nobody, errno_of, eventually, read, write

GPU_NAMES = ("gv11b", "gp10b", "ga10b", "gb10b", "gpu")
EVERY = [(board, kernel) for board in SYSFS_BOARDS for kernel in kernels_of(board)]


@pytest.mark.parametrize(("board", "kernel"), EVERY)
def test_the_gpu_is_found_as_other_tools_find_it(board: str, kernel: str) -> None:
    with mounted(board, kernel=kernel) as emulated:
        found = []
        for node in sorted((emulated.root / "sys/class/devfreq").iterdir()):
            assert node.is_symlink()
            of_node = node / "device/of_node/name"
            if of_node.exists():
                raw = of_node.read_bytes()
                assert raw.endswith(b"\0")
                if raw.rstrip(b"\0").decode() in GPU_NAMES:
                    found.append(node)
            elif node.name == "gpu-gpc-0":
                found.append(node)
        assert len(found) == 1
        levels = [int(level) for level in read(found[0] / "available_frequencies").split()]
        assert levels == sorted(levels)
        assert levels == [round(mhz * 1e6) for mhz in layout_of(board, kernel).gpu_mhz]
        assert read(found[0] / "governor") == "nvhost_podgov"
        for path in emulated.root.rglob("*"):
            assert path.exists(), f"{path} is a link to nothing"


@pytest.mark.parametrize(
    ("board", "kernel", "path"),
    [
        ("tx2", "4.9", "sys/devices/17000000.gp10b/devfreq/17000000.gp10b/max_freq"),
        ("tx2", "4.9", "sys/devices/gpu.0/devfreq/17000000.gp10b/max_freq"),
        ("tx2", "4.9", "sys/devices/gpu.0/load"),
        ("xavier-nx", "5.10", "sys/devices/17000000.gv11b/devfreq_dev/max_freq"),
        ("agx-orin", "5.10", "sys/devices/gpu.0/devfreq/17000000.ga10b/max_freq"),
        ("orin-nano-8gb", "5.15", "sys/devices/platform/17000000.gpu/devfreq_dev/max_freq"),
        ("orin-nano-8gb", "5.15", "sys/devices/platform/bus@0/17000000.gpu/devfreq/17000000.gpu/max_freq"),
        ("agx-thor", "6.8", "sys/class/devfreq/gpu-nvd-0/max_freq"),
        ("agx-thor", "6.8", "sys/bus/pci/devices/0000:01:00.0/power/control"),
        ("agx-thor", "6.8", "sys/class/devfreq/bwmgr/cur_freq"),
        ("tx2", "4.9", "sys/bus/i2c/drivers/ina3221x/0-0041/iio_device/rail_name_0"),
        ("tx2", "4.9", "sys/kernel/nvpmodel_emc_cap/emc_iso_cap"),
        ("orin-nano-8gb", "5.15", "sys/kernel/nvpmodel_clk_cap/emc"),
        ("orin-nano-8gb", "5.15", "sys/kernel/debug/bpmp/debug/bwmgr/bwmgr_halt"),
    ],
)
def test_a_path_of_that_board(board: str, kernel: str, path: str) -> None:
    with mounted(board, kernel=kernel) as emulated:
        assert read(emulated.root / path) != ""


def test_modes_are_those_of_the_kernel(tx2: MountedBoard) -> None:
    def mode(path: str) -> int:
        return stat.S_IMODE((tx2.root / path).stat().st_mode)

    gpu = "sys/class/devfreq/17000000.gp10b"
    assert mode(f"{gpu}/min_freq") == 0o644
    assert mode(f"{gpu}/cur_freq") == 0o444
    assert mode("sys/kernel/nvpmodel_emc_cap/emc_iso_cap") == 0o660
    assert mode("sys/kernel/debug") == 0o700
    assert mode("sys/kernel/debug/bpmp/debug/clk/emc/max_rate") == 0o400
    assert mode("sys/kernel/debug/bpmp/debug/clk/emc/rate") == 0o600
    assert mode("sys/devices/system/cpu/cpufreq/policy0/cpuinfo_cur_freq") == 0o400


@pytest.mark.skipif(os.geteuid() != 0, reason="only root passes over the owner's bits")
def test_a_file_nobody_may_write_is_refused_to_root_too(orin: MountedBoard) -> None:
    for node in ("gpu/cur_freq", "gpu/available_frequencies", "/sys/devices/system/cpu/online"):
        assert errno_of(lambda node=node: write(orin.path(node), "1")) == errno.EACCES
    read(orin.path("cpu/policy0/cpuinfo_cur_freq"))


def test_files_cannot_be_made_or_removed(orin: MountedBoard) -> None:
    directory = orin.path("gpu/min_freq").parent
    assert errno_of(lambda: (directory / "other").write_text("1")) == errno.EACCES
    assert errno_of(lambda: (directory / "min_freq").unlink()) == errno.EPERM
    assert errno_of(lambda: (directory / "other").mkdir()) == errno.EPERM


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become nobody")
def test_an_unprivileged_user_reads_what_is_open_to_all_and_no_more(tx2: MountedBoard) -> None:
    gpu = "sys/class/devfreq/17000000.gp10b/max_freq"
    reads = {
        gpu: True,
        "sys/kernel/nvpmodel_emc_cap/emc_iso_cap": False,
        "sys/kernel/debug/bpmp/debug/clk/emc/rate": False,
        "sys/devices/system/cpu/cpufreq/policy0/cpuinfo_cur_freq": False,
        ".emulator/batch": True,
    }
    writes = {gpu: False, ".emulator/control": False, ".emulator/window": True}
    for script, files in (('cat "$1"', reads), ('echo 1 > "$1"', writes)):
        for path, allowed in files.items():
            done = as_nobody(script, str(tx2.root / path))
            assert (done.returncode == 0) == allowed, (script, path, done.stderr)
            assert allowed or "Permission denied" in done.stderr


def test_a_group_can_be_given_a_file_as_udev_does(orin: MountedBoard) -> None:
    path = orin.path("gpu/max_freq")
    os.chmod(path, 0o664)
    assert stat.S_IMODE(path.stat().st_mode) == 0o664
    if os.geteuid() == 0:
        os.chown(path, -1, 1234)
        assert path.stat().st_gid == 1234


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        (b"510000000", True),
        (b"510000000\n", True),
        (b"510000000 foo", True),
        (b"  510000000", True),
        (b"abc", False),
        (b"\n", False),
        (b"-5", False),
        (b"0x1e65fb80", False),
    ],
)
def test_devfreq_reads_a_number_as_sscanf_does(orin: MountedBoard, text: bytes, accepted: bool) -> None:
    path = orin.path("gpu/max_freq")
    if text.startswith(b"0x"):  # sscanf stops at the x: a 0, which means no limit
        assert write(path, text) == len(text)
        assert read(path) == "1020000000"
        return
    refused = errno_of(lambda: write(path, text))
    assert refused == (None if accepted else errno.EINVAL)
    assert read(path) == ("510000000" if accepted else "918000000")


@pytest.mark.parametrize(
    ("kernel", "text", "accepted"),
    [
        ("5.10", b"1190400 foo", True),
        ("6.8", b"1190400 foo", False),
        ("6.8", b"0x122a00", True),
        ("6.8", b"1190400\n", True),
        ("6.8", b"1190400\n\n", False),
        ("6.8", b"\n", False),
        ("6.8", b"99999999999999999999999", False),
    ],
)
def test_cpufreq_reads_a_number_as_its_kernel_does(kernel: str, text: bytes, accepted: bool) -> None:
    with mounted("agx-orin", kernel=kernel) as agx:
        path = agx.path("cpu/policy0/scaling_max_freq")
        refused = errno_of(lambda: write(path, text))
        if accepted:
            assert refused is None
            assert eventually(lambda: read(path) == "1190400")
        else:
            assert refused in (errno.EINVAL, errno.ERANGE)


def test_an_empty_write_is_a_success_that_does_nothing(orin: MountedBoard) -> None:
    path = orin.path("gpu/max_freq")
    before = read(path)
    assert write(path, b"") == 0
    path.write_text("")
    assert read(path) == before


def test_a_write_is_cut_at_a_page_and_the_offset_does_not_count(orin: MountedBoard) -> None:
    path = orin.path("gpu/max_freq")
    assert write(path, b"510000000" + b" " * 9000) == 4096
    assert read(path) == "510000000"
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, b"612000000")
        os.write(descriptor, b"714000000")  # appended or not, each write is a whole value
    finally:
        os.close(descriptor)
    assert read(path) == "714000000"


def test_a_value_split_over_two_writes_is_two_values(orin: MountedBoard) -> None:
    path = orin.path("gpu/max_freq")
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, b"7140")
        os.write(descriptor, b"00000")
    finally:
        os.close(descriptor)
    assert read(path) == "1020000000"  # the second write was a 0: no limit


def test_reading_ends_in_a_newline_and_starts_anew_at_offset_zero(orin: MountedBoard) -> None:
    path = orin.path("gpu/max_freq")
    assert path.read_bytes() == b"918000000\n"
    with path.open("rb", buffering=0) as file:
        assert file.read(3) == b"918"
        assert file.read(100) == b"000000\n"
        write(path, "510000000")
        file.seek(0)
        assert file.read(100) == b"510000000\n"


def test_shell_redirection_works(orin: MountedBoard, tmp_path: Path) -> None:
    path = orin.path("gpu/max_freq")
    assert os.system(f"echo 510000000 > '{path}'") == 0
    assert read(path) == "510000000"
    assert os.system(f"echo abc > '{path}' 2> '{tmp_path / 'said'}'") != 0


def test_the_gpu_can_appear_late() -> None:
    with mounted("orin-nano-8gb", options=Options(gpu_appears_after_s=0.4)) as orin:
        directory = orin.root / "sys/class/devfreq"
        assert [node.name for node in directory.iterdir()] == ["15340000.vic"]
        assert not (directory / "17000000.gpu/max_freq").exists()
        assert eventually(lambda: (directory / "17000000.gpu/max_freq").exists())


def test_hwmon_numbers_differ_between_boots_and_seeds() -> None:
    seen = set()
    for seed in range(4):
        with mounted("orin-nano-8gb", seed=seed) as orin:
            for _ in range(2):
                names = {read(node / "name"): node.name for node in (orin.root / "sys/class/hwmon").iterdir()}
                assert set(names) == {"ina3221", "soctherm_oc"}
                seen.add(names["ina3221"])
                orin.reboot()
    assert len(seen) > 1


def test_identity_files(orin: MountedBoard) -> None:
    model = (orin.root / "proc/device-tree/model").read_bytes()
    assert model.startswith(b"NVIDIA Jetson Orin Nano")
    assert model.endswith(b"\0")
    assert b"p3767-0005" in (orin.root / "proc/device-tree/compatible").read_bytes()
    assert read(orin.root / "etc/nv_tegra_release").startswith("# R36")
    assert read(orin.root / "var/lib/nvpmodel/status") == "pmode:0001 fmode:quiet"
    conf = (orin.root / "etc/nvpmodel.conf").read_text()
    assert "< POWER_MODEL ID=2 NAME=MAXN_SUPER >" in conf
    assert "EMC MAX_FREQ 3199000000" in conf
