from __future__ import annotations

import errno
import math
from collections.abc import Iterable
from pathlib import Path

import pytest

from polythrottle.clock import VirtualClock
from polythrottle_agent.bounds import Bounds
from polythrottle_agent.controls.cpu_clocks import CPU_KNOB, CpuClocks, find_policies, present_maxima
from polythrottle_agent.controls.cpu_cores import CORES_KNOB, CpuCores, online_cpus
from polythrottle_agent.limits import OperatorLimits
from polythrottle_agent.ports import ControlError
from polythrottle_agent.sysfs import Sysfs, SysfsError

CPU = "sys/devices/system/cpu"


def policy(
    root: Path,
    number: int,
    cpus: str,
    table: str | None,
    *,
    low: int = 300_000,
    high: int = 1_200_000,
    affected: str | None = None,
    **more: str,
) -> Path:
    directory = root / CPU / f"cpufreq/policy{number}"
    directory.mkdir(parents=True)
    files = {
        "related_cpus": cpus,
        "affected_cpus": cpus if affected is None else affected,
        "cpuinfo_min_freq": str(low),
        "cpuinfo_max_freq": str(high),
        "scaling_min_freq": str(low),
        "scaling_max_freq": str(high),
        "scaling_cur_freq": str(high),
        "scaling_governor": "schedutil",
        **more,
    }
    if table is not None:
        files["scaling_available_frequencies"] = table
    for name, text in files.items():
        (directory / name).write_text(f"{text}\n")
    return directory


def uncapped(_: Iterable[int]) -> float:
    return math.inf


def clocks(root: Path, cap: float = math.inf, sysfs: Sysfs | None = None) -> CpuClocks:
    policies = find_policies(sysfs or Sysfs(root), lambda _: cap)
    return CpuClocks(policies, Bounds.of(CPU_KNOB, OperatorLimits(), lambda: cap), VirtualClock())


def test_every_policy_is_pinned_at_the_level(tmp_path: Path) -> None:
    a = policy(tmp_path, 0, "0 1", "300000 600000 1200000")
    b = policy(tmp_path, 2, "2 3", "300000 600000 1200000")
    control = clocks(tmp_path)
    assert control.levels == (300.0, 600.0, 1200.0)
    control.apply(600.0)
    for directory in (a, b):
        assert (directory / "scaling_min_freq").read_text() == "600000\n"
        assert (directory / "scaling_max_freq").read_text() == "600000\n"
    assert control.accepted() == 600.0


def test_a_slower_cluster_takes_its_next_lower_level(tmp_path: Path) -> None:
    policy(tmp_path, 0, "0", "300000 1000000", high=1_000_000)
    big = policy(tmp_path, 4, "4", "400000 800000 2000000", low=400_000, high=2_000_000)
    control = clocks(tmp_path)
    assert control.levels == (400.0, 800.0, 2000.0)
    control.apply(800.0)
    assert (big / "scaling_max_freq").read_text() == "800000\n"
    assert (tmp_path / CPU / "cpufreq/policy0/scaling_max_freq").read_text() == "300000\n"
    assert control.accepted() == 800.0


def test_a_policy_that_stands_elsewhere_is_what_is_accepted(tmp_path: Path) -> None:
    policy(tmp_path, 0, "0", "300000 600000 1200000")
    other = policy(tmp_path, 1, "1", "300000 600000 1200000")
    control = clocks(tmp_path)
    control.apply(1200.0)
    (other / "scaling_max_freq").write_text("600000\n")
    assert control.accepted() == 600.0


def test_a_driver_without_a_table_has_steps_of_a_hundred_megahertz(tmp_path: Path) -> None:
    policy(tmp_path, 0, "0", None, low=400_000, high=750_000)
    assert clocks(tmp_path).levels == (400.0, 500.0, 600.0, 700.0, 750.0)


def test_the_ends_of_a_range_off_the_steps_are_levels_too(tmp_path: Path) -> None:
    policy(tmp_path, 0, "0", None, low=425_000, high=600_000)
    assert clocks(tmp_path).levels == (425.0, 500.0, 600.0)


def test_boost_levels_count_where_the_driver_s_range_has_them(tmp_path: Path) -> None:
    policy(
        tmp_path, 0, "0", "600000 900000", low=600_000, high=1_200_000, scaling_boost_frequencies="1200000"
    )
    assert clocks(tmp_path).levels == (600.0, 900.0, 1200.0)


def test_the_limits_are_written_in_the_order_that_keeps_them_ordered(tmp_path: Path) -> None:
    class Ordered(Sysfs):
        def write(self, path: Path, value: int | str) -> None:
            super().write(path, value)
            low = self.number(path.parent / "scaling_min_freq")
            assert low <= self.number(path.parent / "scaling_max_freq")

    policy(tmp_path, 0, "0", "300000 600000 1200000")
    control = clocks(tmp_path, sysfs=Ordered(tmp_path))
    for level in (300.0, 1200.0, 600.0, 300.0):
        control.apply(level)
    control.restore(
        {
            "policy0.scaling_min_freq": "600000",
            "policy0.scaling_max_freq": "1200000",
            "policy0.scaling_governor": "schedutil",
        }
    )
    assert control.accepted() == 1200.0


def test_an_offline_cluster_is_left_alone_and_comes_back_pinned(tmp_path: Path) -> None:
    policy(tmp_path, 0, "0", "300000 600000 1200000")
    off = policy(tmp_path, 1, "1", "300000 600000 1200000", affected="")
    control = clocks(tmp_path)
    assert "policy1.scaling_max_freq" not in control.save()
    control.apply(600.0)
    assert (off / "scaling_max_freq").read_text() == "1200000\n"
    (off / "affected_cpus").write_text("1\n")
    control.reassert()
    assert (off / "scaling_max_freq").read_text() == "600000\n"


def test_a_cluster_that_goes_offline_under_our_hands_is_no_failure(tmp_path: Path) -> None:
    class Leaving(Sysfs):
        def write(self, path: Path, value: int | str) -> None:
            if path.parent.name == "policy1":
                (path.parent / "affected_cpus").write_text("")
                raise SysfsError("busy", errno.EBUSY)
            super().write(path, value)

    policy(tmp_path, 0, "0", "300000 600000")
    policy(tmp_path, 1, "1", "300000 600000")
    control = clocks(tmp_path, sysfs=Leaving(tmp_path))
    control.apply(600.0)
    assert control.accepted() == 600.0


def test_another_error_of_a_cluster_is_one(tmp_path: Path) -> None:
    class Broken(Sysfs):
        def write(self, path: Path, value: int | str) -> None:  # noqa: ARG002
            raise SysfsError("broken", errno.EIO)

    policy(tmp_path, 0, "0", "300000 600000")
    with pytest.raises(ControlError, match="broken"):
        clocks(tmp_path, sysfs=Broken(tmp_path)).apply(600.0)


def test_one_policy_that_cannot_be_restored_does_not_keep_the_others(tmp_path: Path) -> None:
    class Broken(Sysfs):
        broken = False

        def write(self, path: Path, value: int | str) -> None:
            if self.broken and path.parent.name == "policy0":
                raise SysfsError("broken", errno.EIO)
            super().write(path, value)

    policy(tmp_path, 0, "0", "300000 600000")
    other = policy(tmp_path, 1, "1", "300000 600000", high=600_000)
    sysfs = Broken(tmp_path)
    control = clocks(tmp_path, sysfs=sysfs)
    original = control.save()
    control.apply(300.0)
    sysfs.broken = True
    with pytest.raises(ControlError, match="policy0: broken"):
        control.restore(original)
    assert (other / "scaling_max_freq").read_text() == "600000\n"


def test_the_cap_of_a_cluster_bounds_what_it_is_given(tmp_path: Path) -> None:
    policy(tmp_path, 0, "0", "300000 600000 1200000")
    second = policy(tmp_path, 1, "1", "300000 600000 1200000")
    caps = {0: math.inf, 1: 700.0}
    policies = find_policies(Sysfs(tmp_path), lambda cpus: min(caps[cpu] for cpu in cpus))
    control = CpuClocks(policies, Bounds.of(CPU_KNOB, OperatorLimits()), VirtualClock())
    control.apply(1200.0)
    assert (second / "scaling_max_freq").read_text() == "600000\n"
    assert control.accepted() == 1200.0


@pytest.mark.parametrize(
    "saved",
    [
        {},
        {"policy0.scaling_min_freq": "1"},
        {"policy0.scaling_min_freq": "1", "policy0.scaling_max_freq": ""},
    ],
)
def test_a_saved_state_without_limits_is_refused(tmp_path: Path, saved: dict[str, str]) -> None:
    policy(tmp_path, 0, "0", "300000 600000")
    with pytest.raises(ControlError):
        clocks(tmp_path).restore(saved)


def test_a_governor_that_was_changed_comes_back(tmp_path: Path) -> None:
    directory = policy(tmp_path, 0, "0", "300000 600000")
    control = clocks(tmp_path)
    original = control.save()
    (directory / "scaling_governor").write_text("performance\n")
    control.restore(original)
    assert (directory / "scaling_governor").read_text() == "schedutil\n"


def test_the_clock_is_the_measured_one_where_there_is_one(tmp_path: Path) -> None:
    directory = policy(tmp_path, 0, "0", "300000 600000", scaling_cur_freq="600000")
    control = clocks(tmp_path)
    assert control.observed() == 600.0
    (directory / "cpuinfo_cur_freq").write_text("<unknown>\n")
    assert control.observed() == 600.0
    (directory / "cpuinfo_cur_freq").write_text("597123\n")
    assert control.observed() == 597.123


def test_present_maxima_are_by_cpu(tmp_path: Path) -> None:
    policy(tmp_path, 0, "0 3", "300000 600000", scaling_max_freq="600000")
    assert present_maxima(Sysfs(tmp_path), {}) == {0: 600.0, 3: 600.0}


def test_a_kept_original_goes_before_what_holds_now(tmp_path: Path) -> None:
    policy(tmp_path, 0, "0", "300000 600000", scaling_max_freq="300000")
    assert present_maxima(Sysfs(tmp_path), {"policy0.scaling_max_freq": "600000"}) == {0: 600.0}


def cpus(root: Path, count: int, **states: str) -> None:
    for cpu in range(count):
        directory = root / CPU / f"cpu{cpu}"
        directory.mkdir(parents=True)
        if cpu:
            (directory / "online").write_text(f"{states.get(f'cpu{cpu}', '1')}\n")


def cores(root: Path, usable: frozenset[int] | None = None) -> CpuCores:
    sysfs = Sysfs(root)
    return CpuCores(sysfs, usable or online_cpus(sysfs), Bounds.of(CORES_KNOB, OperatorLimits()))


def running(root: Path) -> set[int]:
    return set(online_cpus(Sysfs(root)))


def test_cores_are_taken_cluster_by_cluster_and_cpu0_is_never_switched(tmp_path: Path) -> None:
    policy(tmp_path, 0, "0 3 4 5", "1 2")
    policy(tmp_path, 1, "1 2", "1 2")
    cpus(tmp_path, 6)
    control = cores(tmp_path)
    assert control.levels == (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    seen = []
    for level in reversed(control.levels):
        control.apply(level)
        assert control.accepted() == level
        seen.append(running(tmp_path))
    assert seen == [{0, 1, 2, 3, 4, 5}, {0, 1, 3, 4, 5}, {0, 3, 4, 5}, {0, 3, 4}, {0, 3}, {0}]


def test_a_cpu_that_may_not_run_is_never_switched_on(tmp_path: Path) -> None:
    cpus(tmp_path, 4, cpu3="0")
    control = cores(tmp_path)
    assert control.levels == (1.0, 2.0, 3.0)
    control.apply(3.0)
    assert running(tmp_path) == {0, 1, 2}


def test_restore_brings_back_which_ones_ran(tmp_path: Path) -> None:
    cpus(tmp_path, 4, cpu2="0")
    control = cores(tmp_path)
    original = control.save()
    control.apply(1.0)
    control.restore(original)
    assert running(tmp_path) == {0, 1, 3}
    with pytest.raises(ControlError, match="lacks cpu2"):
        control.restore({"cpu1": "1"})


def test_clocks_are_set_again_when_cores_come_back(tmp_path: Path) -> None:
    cpus(tmp_path, 3)
    called: list[int] = []
    sysfs = Sysfs(tmp_path)
    control = CpuCores(
        sysfs,
        online_cpus(sysfs),
        Bounds.of(CORES_KNOB, OperatorLimits()),
        lambda: called.append(len(online_cpus(sysfs))),
    )
    control.apply(1.0)
    assert called == []
    control.apply(3.0)
    assert called == [3]
    control.apply(3.0)
    assert called == [3]


def test_a_machine_whose_cpus_have_no_switch_has_no_such_control(tmp_path: Path) -> None:
    for cpu in range(4):
        (tmp_path / CPU / f"cpu{cpu}").mkdir(parents=True)
    with pytest.raises(ControlError, match="no CPU can be switched off"):
        cores(tmp_path)


def test_a_maximum_that_heat_may_have_lowered_is_no_original(tmp_path: Path) -> None:
    policy(tmp_path, 0, "0 1", "300000 600000 1200000", scaling_max_freq="600000")
    cooling = tmp_path / "sys/class/thermal/cooling_device3"
    cooling.mkdir(parents=True)
    (cooling / "type").write_text("cpufreq-cpu0\n")
    (cooling / "cur_state").write_text("1\n")
    control = clocks(tmp_path)
    with pytest.raises(ControlError, match="heat holds the CPU's clock down"):
        control.save()
    (cooling / "cur_state").write_text("0\n")
    assert control.save()["policy0.scaling_max_freq"] == "600000"


def test_a_saved_state_comes_back_within_the_cap_of_the_mode_that_holds_now(tmp_path: Path) -> None:
    policy(tmp_path, 0, "0 1", "300000 600000 1200000")
    saved = clocks(tmp_path).save()
    held = clocks(tmp_path, cap=700.0).within_caps(saved)
    assert held == {**saved, "policy0.scaling_max_freq": "600000"}
    assert clocks(tmp_path).within_caps(saved) == saved


def test_a_cpu_that_the_mode_switches_off_stays_off(tmp_path: Path) -> None:
    for cpu in range(3):
        (tmp_path / CPU / f"cpu{cpu}").mkdir(parents=True)
        (tmp_path / CPU / f"cpu{cpu}/online").write_text("1\n")
    bounds = Bounds.of(CORES_KNOB, OperatorLimits())
    control = CpuCores(Sysfs(tmp_path), frozenset({0, 1, 2}), bounds, allowed_now=lambda: frozenset({0, 1}))
    assert control.within_caps({"cpu1": "1", "cpu2": "1"}) == {"cpu1": "1", "cpu2": "0"}
