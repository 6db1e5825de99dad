"""GPU, memory and CPU clocks under both generations of kernels."""

from __future__ import annotations

import errno
import time

import pytest

from polythrottle_agent.emulation.machine import Options
from polythrottle_agent.emulation.mount import MountedBoard, mounted

from .conftest import errno_of, eventually, read, write

# GPU.


def test_on_4_9_a_minimum_above_the_maximum_is_refused_on_either_file(tx2: MountedBoard) -> None:
    low, high = tx2.path("gpu/min_freq"), tx2.path("gpu/max_freq")
    write(high, "624750000")
    assert errno_of(lambda: write(low, "726750000")) == errno.EINVAL
    write(low, "624750000")
    assert errno_of(lambda: write(high, "522750000")) == errno.EINVAL
    assert (read(low), read(high)) == ("624750000", "624750000")
    write(low, "0")
    write(high, "0")
    assert (read(low), read(high)) == ("114750000", "1300500000")


def test_from_5_10_on_it_is_accepted_and_the_maximum_wins(orin: MountedBoard) -> None:
    low, high = orin.path("gpu/min_freq"), orin.path("gpu/max_freq")
    write(low, "816000000")
    write(high, "510000000")
    assert (read(low), read(high)) == ("510000000", "510000000")
    write(high, "918000000")
    assert (read(low), read(high)) == ("816000000", "918000000")  # the request was kept
    write(low, "0")
    write(high, "0")
    assert (read(low), read(high)) == ("306000000", "1020000000")


def test_requests_are_kept_in_khz_down_for_the_minimum_and_up_for_the_maximum(orin: MountedBoard) -> None:
    write(orin.path("gpu/min_freq"), "408000999")
    write(orin.path("gpu/max_freq"), "612000001")
    assert read(orin.path("gpu/min_freq")) == "408000000"
    assert read(orin.path("gpu/max_freq")) == "612001000"


def test_a_clock_off_the_table_runs_at_the_next_level_up(tx2: MountedBoard) -> None:
    for node in ("gpu/min_freq", "gpu/max_freq"):
        write(tx2.path(node), "850000000")
    write(tx2.path("gpu/min_freq"), "850000000")
    assert read(tx2.path("gpu/max_freq")) == "850000000"
    tx2.machine.begin_batch()
    assert eventually(lambda: read(tx2.path("gpu/cur_freq")) == "854250000", 0.14)


def test_cur_freq_follows_a_lock_after_the_governors_poll() -> None:
    with mounted("orin-nano-8gb", workload="efficientnet-b7") as board:
        cur = board.path("gpu/cur_freq")
        board.machine.begin_batch()
        write(board.path("gpu/min_freq"), "918000000")
        board.machine.begin_batch()
        assert eventually(lambda: read(cur) == "918000000", 0.045)
        began = time.monotonic()
        board.machine.begin_batch()
        write(board.path("gpu/max_freq"), "510000000")
        assert read(board.path("gpu/max_freq")) == "510000000"  # the file at once
        assert eventually(lambda: read(cur) == "510000000", 0.1)
        assert 0.003 < time.monotonic() - began < 0.1


def test_between_floor_and_maximum_the_governor_moves_the_clock(orin: MountedBoard) -> None:
    levels = {int(level) for level in read(orin.path("gpu/available_frequencies")).split()}
    seen = set()
    for _ in range(40):
        orin.machine.begin_batch()
        seen.add(int(read(orin.path("gpu/cur_freq"))))
    assert len(seen) > 1
    assert seen <= levels
    time.sleep(0.12)
    assert read(orin.path("gpu/cur_freq")) == "306000000"


def test_a_gated_rail_shows_no_load_and_the_lowest_clock(orin: MountedBoard) -> None:
    write(orin.path("gpu/min_freq"), "714000000")
    assert eventually(lambda: read(orin.path("gpu-device/is_railgated")) == "yes")
    assert read(orin.path("gpu/cur_freq")) == "306000000"
    assert read(orin.path("gpu-device/load")) == "0"
    write(orin.path("gpu-device/railgate_enable"), "0")
    assert read(orin.path("gpu-device/is_railgated")) == "no"
    assert eventually(lambda: read(orin.path("gpu/cur_freq")) == "714000000")
    orin.machine.begin_batch()
    assert 900 <= int(read(orin.path("gpu-device/load"))) <= 1000


def test_an_arbiter_session_makes_devfreq_do_nothing(orin: MountedBoard) -> None:
    write(orin.path("gpu-device/railgate_enable"), "0")
    orin.machine.gpu.arbiter_holds = True
    write(orin.path("gpu/min_freq"), "816000000")
    time.sleep(0.06)
    assert read(orin.path("gpu/min_freq")) == "816000000"
    assert read(orin.path("gpu/cur_freq")) == "306000000"


def test_governors(orin: MountedBoard) -> None:
    governor = orin.path("gpu/governor")
    write(orin.path("gpu-device/railgate_enable"), "0")
    assert errno_of(lambda: write(governor, "warp")) == errno.EINVAL
    tunables = governor.parent / "nvhost_podgov"
    assert tunables.is_dir()
    write(governor, "performance\n")
    assert not tunables.exists()
    assert eventually(lambda: read(orin.path("gpu/cur_freq")) == "918000000")
    write(governor, "userspace")
    write(governor.parent / "userspace/set_freq", "510000000")
    assert eventually(lambda: read(orin.path("gpu/cur_freq")) == "510000000")


# Memory.


def emc(board: MountedBoard, **values: int) -> None:
    for name, value in values.items():
        write(board.path(f"emc/{name}"), f"{value}\n")


def test_a_memory_lock_on_jetpack_4(tx2: MountedBoard) -> None:
    rate = tx2.path("emc/rate")
    emc(tx2, rate=1331200000)
    assert read(rate) == "40800000"  # without the lock, demand decides
    emc(tx2, mrq_rate_locked=1, rate=1331200000, state=1)
    assert read(rate) == "1331200000"
    emc(tx2, rate=1000000000)
    assert read(rate) == "1062400000"  # up to what can be locked
    emc(tx2, rate=1866000000)
    assert read(rate) == "1600000000"  # nvpmodel's cap
    write(tx2.root / "sys/kernel/nvpmodel_emc_cap/emc_iso_cap", "0")
    emc(tx2, rate=1866000000)
    assert read(rate) == "1866000000"
    emc(tx2, mrq_rate_locked=0)
    assert read(rate) == "40800000"
    tx2.machine.begin_batch()
    assert read(rate) == "1866000000"


def test_from_jetpack_6_on_a_lock_holds_only_with_the_bandwidth_manager_halted(orin: MountedBoard) -> None:
    rate, halt = orin.path("emc/rate"), orin.root / "sys/kernel/debug/bpmp/debug/bwmgr/bwmgr_halt"
    emc(orin, mrq_rate_locked=1, rate=665600000, state=1)
    orin.machine.begin_batch()
    assert read(rate) == "3199000000"
    write(halt, "1")
    assert read(rate) == "665600000"
    emc(orin, rate=1701500000)
    assert read(rate) == "2133000000"
    orin.machine.disturb_emc("drifts", True)
    orin.machine.begin_batch()
    assert read(rate) == "3199000000"
    orin.machine.disturb_emc("drifts", False)
    assert read(rate) == "2133000000"


def test_caps_of_jetpack_6(orin: MountedBoard) -> None:
    cap = orin.root / "sys/kernel/nvpmodel_clk_cap/emc"
    write(orin.root / "sys/kernel/debug/bpmp/debug/bwmgr/bwmgr_halt", "1")
    emc(orin, mrq_rate_locked=1, rate=3199000000)
    write(cap, "2133000000")
    assert read(cap) == "2133000000"
    assert read(orin.path("emc/rate")) == "2133000000"
    write(cap, "0")  # is no way to lift it
    assert read(cap) == "204000000"
    write(cap, "3199000000")
    assert errno_of(lambda: write(cap, "-1")) == errno.EINVAL
    assert read(cap) == "3199000000"


def test_bpmp_refuses_in_silence(orin: MountedBoard) -> None:
    write(orin.root / "sys/kernel/debug/bpmp/debug/bwmgr/bwmgr_halt", "1")
    emc(orin, mrq_rate_locked=1, rate=665600000)
    assert write(orin.path("emc/rate"), "nonsense") == len("nonsense")
    assert read(orin.path("emc/rate")) == "665600000"
    orin.machine.disturb_emc("rejects", True)
    emc(orin, rate=2133000000)
    assert read(orin.path("emc/rate")) == "665600000"


def test_on_4_9_nonsense_is_refused_aloud(tx2: MountedBoard) -> None:
    assert errno_of(lambda: write(tx2.path("emc/rate"), "nonsense")) == errno.EINVAL


def test_a_board_that_is_stuck_below_what_its_files_say() -> None:
    with mounted("orin-nano-8gb", options=Options(mode="MAXN_SUPER", emc_stuck_mhz=2133.0)) as board:
        write(board.root / "sys/kernel/debug/bpmp/debug/bwmgr/bwmgr_halt", "1")
        emc(board, mrq_rate_locked=1, rate=3199000000)
        assert read(board.path("emc/max_rate")) == "3199000000"
        assert read(board.path("emc/rate")) == "2133000000"


def test_a_high_gpu_floor_moves_unlocked_memory(orin: MountedBoard) -> None:
    assert read(orin.path("emc/rate")) == "204000000"
    write(orin.path("gpu/min_freq"), "918000000")
    assert eventually(lambda: read(orin.path("emc/rate")) == "665600000")


# CPU.


def test_on_4_9_cpu_limits_hold_at_once_and_must_be_ordered(tx2: MountedBoard) -> None:
    low, high = tx2.path("cpu/policy0/scaling_min_freq"), tx2.path("cpu/policy0/scaling_max_freq")
    write(high, "960000")
    assert read(high) == "960000"
    assert errno_of(lambda: write(low, "1267200")) == errno.EINVAL
    write(low, "960000")
    assert errno_of(lambda: write(high, "806400")) == errno.EINVAL


def test_from_5_10_on_cpu_limits_hold_some_milliseconds_later(orin: MountedBoard) -> None:
    low, high = orin.path("cpu/policy0/scaling_min_freq"), orin.path("cpu/policy0/scaling_max_freq")
    before, waits = read(high), []
    for khz in ("1113600", "960000", "1190400", "883200"):
        began = time.monotonic()
        write(high, khz)
        stale = read(high)
        assert eventually(lambda khz=khz: read(high) == khz, 0.2)
        if stale != khz:
            waits.append(time.monotonic() - began)
            assert stale == before
        before = khz
    assert waits, "every limit held at once"
    assert max(waits) < 0.1
    write(low, "1344000")  # above the maximum: accepted, and the maximum wins
    assert eventually(lambda: read(low) == "883200")


def test_cpu_limits_off_the_table(orin: MountedBoard) -> None:
    low, high = orin.path("cpu/policy4/scaling_min_freq"), orin.path("cpu/policy4/scaling_max_freq")
    write(high, "999999")
    write(low, "800001")
    assert eventually(lambda: read(high) == "960000" and read(low) == "806400")
    write(high, "99999999")
    write(low, "1")
    assert eventually(lambda: read(high) == "1728000" and read(low) == "115200")
    assert read(orin.path("cpu/policy0/scaling_max_freq")) == "1344000"


@pytest.mark.parametrize(
    ("board", "policy", "code"),
    [("agx-thor", 4, "EBUSY"), ("orin-nano-8gb", 4, "EINVAL"), ("tx2", 1, "EINVAL")],
)
def test_a_policy_with_all_its_cpus_offline_cannot_be_written(board: str, policy: int, code: str) -> None:
    with mounted(board) as emulated:
        cpus = emulated.root / "sys/devices/system/cpu"
        base = cpus / f"cpufreq/policy{policy}"
        everyone = read(base / "related_cpus").split()
        write(cpus / f"cpu{everyone[0]}/online", "0")
        assert read(base / "affected_cpus").split() == everyone[1:]
        for cpu in everyone[1:]:
            write(cpus / f"cpu{cpu}/online", "0\n")
        assert errno_of(lambda: write(base / "scaling_max_freq", "960000")) == getattr(errno, code)
        assert not set(everyone) & set(read(cpus / "online").replace("-", ",").split(","))
        write(cpus / f"cpu{everyone[0]}/online", "1")
        assert errno_of(lambda: write(base / "scaling_max_freq", "960000")) is None


def test_cpu_0_stays_online(orin: MountedBoard) -> None:
    online = orin.root / "sys/devices/system/cpu/cpu0/online"
    assert errno_of(lambda: write(online, "0")) == errno.EPERM
    assert errno_of(lambda: write(online, "maybe")) == errno.EINVAL
    assert read(online) == "1"


def test_cpu_governors_and_setspeed(orin: MountedBoard) -> None:
    base = orin.path("cpu/policy0/scaling_governor").parent
    assert read(base / "scaling_governor") == "schedutil"
    assert errno_of(lambda: write(base / "scaling_governor", "warp")) == errno.EINVAL
    assert read(base / "scaling_setspeed") == "<unsupported>"
    assert errno_of(lambda: write(base / "scaling_setspeed", "960000")) == errno.EINVAL
    write(base / "scaling_governor", "userspace")
    write(base / "scaling_setspeed", "960000")
    assert read(base / "scaling_setspeed") == "960000"
    assert read(base / "scaling_cur_freq") == "960000"
    assert int(read(base / "cpuinfo_cur_freq")) == pytest.approx(960000, rel=0.005)
