"""Faults on nodes, other programs that write, and a reboot."""

from __future__ import annotations

import errno
import subprocess
import threading
import time

import pytest

from polythrottle.errors import InvalidInputError
from polythrottle_agent.emulation.faults import Fault, FaultKind
from polythrottle_agent.emulation.mount import MountedBoard

from .conftest import errno_of, eventually, read, write


@pytest.mark.parametrize("kind", ["eio", "eacces", "ebusy", "einval", "etimedout", "enodata"])
def test_an_error_on_reading_and_writing_until_it_is_cleared(orin: MountedBoard, kind: str) -> None:
    path, code = orin.path("gpu/max_freq"), getattr(errno, kind.upper())
    orin.inject("gpu/max_freq", kind)
    assert errno_of(lambda: read(path)) == code
    assert errno_of(lambda: write(path, "510000000")) == code
    assert read(orin.path("gpu/min_freq")) == "306000000"
    orin.clear("gpu/max_freq")
    assert read(path) == "918000000"


def test_a_fault_on_writing_alone_after_some_calls_and_for_some(orin: MountedBoard) -> None:
    path = orin.path("gpu/max_freq")
    orin.inject("gpu/max_freq", Fault(FaultKind.EIO, on="write", skip=1, times=2))
    results = [errno_of(lambda: write(path, "510000000")) for _ in range(4)]
    assert results == [None, errno.EIO, errno.EIO, None]
    assert read(path) == "510000000"


def test_a_node_can_vanish_alone_or_with_its_directory(orin: MountedBoard) -> None:
    governor, directory = orin.path("gpu/governor"), orin.path("gpu/governor").parent
    orin.inject("gpu/governor", "enoent")
    assert not governor.exists()
    assert "governor" not in [node.name for node in directory.iterdir()]
    assert errno_of(lambda: write(governor, "performance")) == errno.ENOENT
    orin.clear()
    assert governor.exists()
    orin.inject("gpu", "enoent")
    assert not directory.exists()
    assert not (orin.root / "sys/class/devfreq/17000000.gpu/max_freq").exists()
    orin.clear()
    assert directory.exists()


def test_garbage_and_a_stuck_value(orin: MountedBoard) -> None:
    orin.inject("gpu/cur_freq", Fault(FaultKind.GARBAGE, text="n/a"))
    assert read(orin.path("gpu/cur_freq")) == "n/a"
    path = orin.path("gpu/max_freq")
    orin.inject("gpu/max_freq", "stuck")
    assert write(path, "510000000") == 9
    assert read(path) == "918000000"
    orin.clear()
    assert read(path) == "918000000"


def test_a_write_that_is_rejected_in_silence(orin: MountedBoard) -> None:
    orin.inject("cpu/policy0/scaling_max_freq", "silent")
    path = orin.path("cpu/policy0/scaling_max_freq")
    before = read(path)
    assert write(path, "960000") == 6
    time.sleep(0.08)
    assert read(path) == before


def test_a_call_that_hangs_leaves_the_rest_alone_and_ends_when_cleared(orin: MountedBoard) -> None:
    path = orin.path("emc/rate")
    orin.inject("emc/rate", "hang")
    texts: list[str] = []
    readers = [threading.Thread(target=lambda: texts.append(read(path)), daemon=True) for _ in range(12)]
    for reader in readers:
        reader.start()
    time.sleep(0.2)
    assert texts == []
    began = time.monotonic()
    assert read(orin.path("gpu/min_freq")) == "306000000"
    assert time.monotonic() - began < 1.0
    orin.clear("emc/rate")
    for reader in readers:
        reader.join(5.0)
    assert texts == ["204000000"] * 12


def test_a_hang_can_have_an_end(orin: MountedBoard) -> None:
    orin.inject("emc/rate", Fault(FaultKind.HANG, seconds=0.3))
    began = time.monotonic()
    assert read(orin.path("emc/rate")) == "204000000"
    assert 0.28 < time.monotonic() - began < 2.0


def test_a_hang_that_is_never_cleared_does_not_keep_the_mount(orin: MountedBoard) -> None:
    orin.inject("emc/rate", "hang")
    process = subprocess.Popen(["cat", str(orin.path("emc/rate"))], stdout=subprocess.DEVNULL)
    time.sleep(0.2)
    assert process.poll() is None
    orin.clear()
    assert process.wait(5.0) == 0


def test_unknown_nodes_and_faults_are_named(orin: MountedBoard) -> None:
    with pytest.raises(InvalidInputError, match="no node 'gpu/max_fraq'"):
        orin.inject("gpu/max_fraq", "eio")
    with pytest.raises(InvalidInputError, match="No fault 'eioo'; known: eio"):
        orin.inject("gpu/max_freq", "eioo")
    with pytest.raises(InvalidInputError, match="Nobody can write"):
        orin.machine.write_as_other("gpu/cur_freq", "1")


def test_another_program_writes_our_node_over_and_over(orin: MountedBoard) -> None:
    path = orin.path("gpu/max_freq")
    orin.machine.write_as_other("gpu/max_freq", "408000000\n", after_s=0.1, every_s=0.1)
    write(path, "816000000")
    assert read(path) == "816000000"
    assert eventually(lambda: read(path) == "408000000", 0.3)
    write(path, "816000000")
    assert eventually(lambda: read(path) == "408000000", 0.3)


def test_nvpmodel_switches_the_mode(orin: MountedBoard) -> None:
    orin.machine.set_mode("15W", after_s=0.05)
    status = orin.root / "var/lib/nvpmodel/status"
    assert eventually(lambda: read(status) == "pmode:0000 fmode:quiet", 0.5)
    assert read(orin.path("gpu/max_freq")) == "612000000"
    assert read(orin.root / "sys/kernel/nvpmodel_clk_cap/emc") == "2133000000"
    assert eventually(lambda: read(orin.path("cpu/policy0/scaling_max_freq")) == "1497600")
    assert read(orin.path("cpu/policy0/scaling_min_freq")) == "729600"


def test_nvpmodel_takes_cores_off_line_and_rounds_down(tx2: MountedBoard) -> None:
    tx2.machine.set_mode("MAXQ")
    assert read(tx2.root / "sys/devices/system/cpu/online") == "0,3-5"
    assert read(tx2.path("gpu/max_freq")) == "726750000"  # the conf says 850 MHz
    assert read(tx2.path("cpu/policy0/scaling_max_freq")) == "1113600"  # the conf says 1200 MHz


def test_jetson_clocks_pins_everything_at_its_maximum(orin: MountedBoard) -> None:
    orin.machine.jetson_clocks()
    assert read(orin.path("gpu/min_freq")) == read(orin.path("gpu/max_freq")) == "918000000"
    assert read(orin.path("emc/mrq_rate_locked")) == "1"
    assert read(orin.path("emc/rate")) == "3199000000"
    assert read(orin.path("gpu-device/railgate_enable")) == "0"
    low, high = orin.path("cpu/policy4/scaling_min_freq"), orin.path("cpu/policy4/scaling_max_freq")
    assert eventually(lambda: read(low) == read(high) == "1344000")


def test_a_reboot_resets_all_but_nvpmodels_mode(orin: MountedBoard) -> None:
    boot_id = orin.root / "proc/sys/kernel/random/boot_id"
    first = read(boot_id)
    orin.machine.set_mode("15W")
    write(orin.path("gpu/max_freq"), "408000000")
    write(orin.path("gpu/min_freq"), "408000000")
    write(orin.root / "sys/kernel/debug/bpmp/debug/bwmgr/bwmgr_halt", "1")
    write(orin.path("emc/mrq_rate_locked"), "1")
    write(orin.root / "sys/devices/system/cpu/cpu5/online", "0")
    orin.machine.heat(100.0, ambient_c=100.0)
    orin.inject("gpu/governor", "eio")
    orin.reboot()
    assert read(boot_id) != first
    assert read(orin.path("gpu/max_freq")) == "612000000"
    assert read(orin.path("gpu/min_freq")) == "306000000"
    assert read(orin.path("gpu/governor")) == "nvhost_podgov"
    assert read(orin.path("emc/mrq_rate_locked")) == "0"
    assert read(orin.root / "sys/kernel/debug/bpmp/debug/bwmgr/bwmgr_halt") == "0"
    assert read(orin.root / "sys/devices/system/cpu/online") == "0-5"
    assert read(orin.root / "var/lib/nvpmodel/status") == "pmode:0000 fmode:quiet"
