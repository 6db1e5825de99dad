"""The logic over plain files, with the order of writes recorded. Kernel rules: tests/integration/hardware."""

from __future__ import annotations

from pathlib import Path

import pytest

from polythrottle.errors import InvalidInputError
from polythrottle_agent.bounds import Bounds
from polythrottle_agent.controls.jetson_gpu import (
    GPU_KNOB,
    GPU_MIN_KNOB,
    GpuRange,
    JetsonGpuAlwaysOn,
    JetsonGpuMax,
    JetsonGpuMin,
    find_gpu_nodes,
)
from polythrottle_agent.limits import OperatorLimits
from polythrottle_agent.ports import ControlError
from polythrottle_agent.sysfs import Sysfs


class Recording(Sysfs):
    """Notes each write."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.writes: list[tuple[str, str]] = []

    def write(self, path: Path, value: int | str) -> None:
        self.writes.append((path.name, str(value)))
        super().write(path, value)


def node(root: Path, **files: str) -> Path:
    directory = root / "sys/class/devfreq/17000000.gpu"
    (directory / "device/of_node").mkdir(parents=True)
    content = {
        "available_frequencies": "306000000 408000000 612000000 624750000",
        "min_freq": "306000000",
        "max_freq": "624750000",
        "cur_freq": "408000000",
        "governor": "nvhost_podgov",
        **files,
    }
    for name, text in content.items():
        (directory / name).write_text(f"{text}\n")
    (directory / "device/of_node/name").write_text("gpu\0")
    (directory / "device/railgate_enable").write_text("1\n")
    return directory


def controls(
    sysfs: Sysfs, directory: Path, cap: float = float("inf")
) -> tuple[JetsonGpuMax, JetsonGpuMin, GpuRange]:
    gpu = GpuRange(sysfs, directory)
    none = OperatorLimits()
    return (
        JetsonGpuMax(gpu, Bounds.of(GPU_KNOB, none, lambda: cap)),
        JetsonGpuMin(gpu, Bounds.of(GPU_MIN_KNOB, none, lambda: cap)),
        gpu,
    )


def test_the_gpu_is_found_by_its_device_tree_name(tmp_path: Path) -> None:
    gpu = node(tmp_path)
    other = tmp_path / "sys/class/devfreq/15340000.vic"
    (other / "device/of_node").mkdir(parents=True)
    (other / "device/of_node/name").write_text("vic\0")
    (tmp_path / "sys/class/devfreq/gpu-nvd-0").mkdir()
    assert find_gpu_nodes(Sysfs(tmp_path)) == [gpu]


def test_thor_s_graphics_clock_is_found_by_its_fixed_name(tmp_path: Path) -> None:
    for name in ("gpu-gpc-0", "gpu-nvd-0", "bwmgr"):
        (tmp_path / "sys/class/devfreq" / name).mkdir(parents=True)
    assert [path.name for path in find_gpu_nodes(Sysfs(tmp_path))] == ["gpu-gpc-0"]


def test_levels_are_the_kernel_s_table_in_mhz(tmp_path: Path) -> None:
    high, low, _ = controls(Sysfs(tmp_path), node(tmp_path))
    assert high.levels == low.levels == (306.0, 408.0, 612.0, 624.75)


def test_a_node_without_a_table_gives_no_control(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="lists no clock levels"):
        GpuRange(Sysfs(tmp_path), node(tmp_path, available_frequencies=""))


def test_locking_takes_the_floor_along_and_keeps_the_ends_in_order(tmp_path: Path) -> None:
    sysfs = Recording(tmp_path)
    high, _, _ = controls(sysfs, node(tmp_path))
    high.apply(408.0)
    high.apply(612.0)
    high.apply(306.0)
    assert sysfs.writes == [
        *(("max_freq", "408000000"), ("min_freq", "408000000")),
        *(("max_freq", "612000000"), ("min_freq", "612000000")),
        *(("min_freq", "306000000"), ("max_freq", "306000000")),
    ]
    assert high.accepted() == 306.0


def test_a_held_floor_stays_where_the_maximum_allows_it(tmp_path: Path) -> None:
    high, low, _ = controls(Sysfs(tmp_path), node(tmp_path))
    low.apply(408.0)
    high.apply(612.0)
    assert (low.accepted(), high.accepted()) == (408.0, 612.0)
    high.apply(306.0)
    assert (low.accepted(), high.accepted()) == (306.0, 306.0)


def test_a_floor_above_the_maximum_is_refused_before_the_write(tmp_path: Path) -> None:
    sysfs = Recording(tmp_path)
    high, low, _ = controls(sysfs, node(tmp_path))
    high.apply(408.0)
    sysfs.writes.clear()
    with pytest.raises(ControlError, match="612 MHz is above the GPU's maximum of 408 MHz"):
        low.apply(612.0)
    assert sysfs.writes == []


def test_a_restored_floor_is_no_longer_held(tmp_path: Path) -> None:
    high, low, gpu = controls(Sysfs(tmp_path), node(tmp_path))
    original = low.save()
    low.apply(408.0)
    low.restore(original)
    assert not gpu.floor_is_held
    high.apply(612.0)
    assert low.accepted() == 612.0


def test_restore_puts_back_range_governor_and_rail_gating(tmp_path: Path) -> None:
    directory = node(tmp_path)
    high, _, _ = controls(Sysfs(tmp_path), directory)
    original = high.save()
    assert original == {
        "max_freq": "624750000",
        "min_freq": "306000000",
        "governor": "nvhost_podgov",
        "railgate_enable": "1",
    }
    high.apply(408.0)
    (directory / "governor").write_text("userspace\n")
    (directory / "device/railgate_enable").write_text("0\n")
    high.restore(original)
    assert high.save() == original


def test_locking_leaves_rail_gating_and_governor_alone(tmp_path: Path) -> None:
    sysfs = Recording(tmp_path)
    high, low, _ = controls(sysfs, node(tmp_path))
    high.apply(408.0)
    low.apply(306.0)
    assert {name for name, _ in sysfs.writes} == {"min_freq", "max_freq"}


@pytest.mark.parametrize("saved", [{}, {"max_freq": "1"}, {"max_freq": "x", "min_freq": "1"}])
def test_a_saved_state_without_both_ends_is_refused(tmp_path: Path, saved: dict[str, str]) -> None:
    sysfs = Recording(tmp_path)
    high, _, _ = controls(sysfs, node(tmp_path))
    with pytest.raises(ControlError, match="has no usable"):
        high.restore(saved)
    assert sysfs.writes == []


def test_the_cap_bounds_levels_and_writes(tmp_path: Path) -> None:
    sysfs = Recording(tmp_path)
    high, low, _ = controls(sysfs, node(tmp_path), cap=610.0)
    assert high.levels == low.levels == (306.0, 408.0)
    for control in (high, low):
        with pytest.raises(ControlError, match="allows 610 MHz at most"):
            control.apply(612.0)
        with pytest.raises(InvalidInputError):
            control.apply(500.0)
    assert sysfs.writes == []


def test_observed_is_the_clock_that_runs(tmp_path: Path) -> None:
    high, _, _ = controls(Sysfs(tmp_path), node(tmp_path))
    assert high.observed() == 408.0


def cooling(root: Path, kind: str, state: int) -> Path:
    directory = root / "sys/class/thermal/cooling_device0"
    directory.mkdir(parents=True)
    (directory / "type").write_text(f"{kind}\n")
    (directory / "cur_state").write_text(f"{state}\n")
    return directory / "cur_state"


def test_a_maximum_that_heat_may_have_lowered_is_no_original(tmp_path: Path) -> None:
    high, _, _ = controls(Sysfs(tmp_path), node(tmp_path, max_freq="408000000"))
    state = cooling(tmp_path, "devfreq-17000000.gpu", 2)
    with pytest.raises(ControlError, match=r"heat holds the GPU's clock down.*let the device cool"):
        high.save()
    state.write_text("0\n")
    assert high.save()["max_freq"] == "408000000"


def test_heat_elsewhere_or_a_full_range_is_no_reason_to_refuse(tmp_path: Path) -> None:
    high, _, _ = controls(Sysfs(tmp_path), node(tmp_path))
    state = cooling(tmp_path, "devfreq-17000000.gpu", 1)
    assert high.save()["max_freq"] == "624750000"
    (state.parent / "type").write_text("pwm-fan\n")
    high.apply(408.0)
    assert high.save()["max_freq"] == "408000000"


def test_a_companion_that_fails_keeps_no_clock_from_its_original(tmp_path: Path) -> None:
    class BrokenRailgate(Sysfs):
        def write(self, path: Path, value: int | str) -> None:
            if path.name == "railgate_enable":
                raise ControlError("cannot write railgate_enable")
            super().write(path, value)

    directory = node(tmp_path)
    high, _, _ = controls(BrokenRailgate(tmp_path), directory)
    original = high.save()
    high.apply(408.0)
    (directory / "device/railgate_enable").write_text("0\n")
    with pytest.raises(ControlError, match="railgate_enable"):
        high.restore(original)
    assert high.accepted() == 624.75


def test_the_rail_is_kept_on_and_left_to_the_driver_again(tmp_path: Path) -> None:
    directory = node(tmp_path)
    gpu = GpuRange(Sysfs(tmp_path), directory)
    assert JetsonGpuAlwaysOn.is_here(gpu)
    control = JetsonGpuAlwaysOn(gpu)
    original = control.save()
    assert control.accepted() == 0.0
    control.apply(1.0)
    assert (directory / "device/railgate_enable").read_text() == "0\n"
    assert control.accepted() == control.observed() == 1.0
    control.restore(original)
    assert (directory / "device/railgate_enable").read_text() == "1\n"
    with pytest.raises(InvalidInputError, match="no level 2"):
        control.apply(2.0)
    with pytest.raises(ControlError, match="no usable railgate_enable"):
        control.restore({})


def test_a_board_whose_rail_cannot_be_gated_has_no_such_knob(tmp_path: Path) -> None:
    directory = node(tmp_path)
    (directory / "device/railgate_enable").unlink()
    assert not JetsonGpuAlwaysOn.is_here(GpuRange(Sysfs(tmp_path), directory))


def test_another_maker_s_gpu_on_arm_is_no_jetson(tmp_path: Path) -> None:
    directory = node(tmp_path)
    compatible = directory / "device/of_node/compatible"
    compatible.write_bytes(b"arm,mali-valhall\0")
    assert find_gpu_nodes(Sysfs(tmp_path)) == []
    compatible.write_bytes(b"nvidia,ga10b\0")
    assert find_gpu_nodes(Sysfs(tmp_path)) == [directory]


def test_a_saved_range_comes_back_within_the_cap_of_the_mode_that_holds_now(tmp_path: Path) -> None:
    high, low, _ = controls(Sysfs(tmp_path), node(tmp_path), cap=500.0)
    saved = {"max_freq": "624750000", "min_freq": "612000000", "governor": "nvhost_podgov"}
    assert high.within_caps(saved) == {**saved, "max_freq": "408000000", "min_freq": "408000000"}
    assert low.within_caps({"min_freq": "306000000"}) == {"min_freq": "306000000"}
    nothing, _, _ = controls(Sysfs(tmp_path), tmp_path / "sys/class/devfreq/17000000.gpu", cap=200.0)
    with pytest.raises(ControlError, match="below every level"):
        nothing.within_caps(saved)
