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
