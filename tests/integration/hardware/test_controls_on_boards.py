from __future__ import annotations

import random
from pathlib import Path

import pytest

from polythrottle.configuration import UNLOCKED
from polythrottle.errors import InvalidInputError
from polythrottle_agent.emulation.machine import Options
from polythrottle_agent.emulation.mount import MountedBoard
from polythrottle_agent.hardware import state_directory
from polythrottle_agent.holding import HeldDevice
from polythrottle_agent.ports import ControlError
from tests.integration.hardware.conftest import Mount, look

BOARDS = [
    ("tx2", "4.9"),
    ("xavier-nx", "4.9"),
    ("xavier-nx", "5.10"),
    ("orin-nano-8gb", "5.10"),
    ("orin-nano-8gb", "5.15"),
    ("agx-orin", "5.10"),
    ("agx-orin", "6.8"),
    ("agx-thor", "6.8"),
]
JETSON_KNOBS = [
    "gpu_freq_mhz",
    "gpu_min_freq_mhz",
    "gpu_always_on",
    "mem_freq_mhz",
    "cpu_cores",
    "cpu_freq_mhz",
]


@pytest.mark.parametrize(("board", "kernel"), BOARDS)
def test_every_board_offers_its_knobs_and_each_level_is_taken_and_put_back(
    mount: Mount, board: str, kernel: str
) -> None:
    found = look(mount(board, kernel=kernel))
    # Thor's GPU is a PCI device without a rail of its own to gate.
    absent = {"gpu_always_on"} if board == "agx-thor" else set()
    assert list(found.controls) == [knob for knob in JETSON_KNOBS if knob not in absent]
    assert found.profile is not None
    assert found.profile.name.endswith(board.removesuffix("-8gb")) or board in found.profile.name
    for name, control in found.controls.items():
        original = control.save()
        numbers = control.levels
        for level in dict.fromkeys((numbers[0], numbers[len(numbers) // 2], numbers[-1], numbers[0])):
            control.apply(level)
            assert control.accepted() == level, name
        control.restore(original)
        assert _settled(control.save, original), name


def _settled(read: object, wanted: object) -> bool:
    """A limit of the CPU may come into force a moment later."""
    import time

    assert callable(read)
    for _ in range(100):
        if read() == wanted:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize(("board", "kernel"), [("tx2", "4.9"), ("orin-nano-8gb", "5.15")])
def test_any_order_of_configurations_is_taken_by_both_kinds_of_kernel(
    mount: Mount, board: str, kernel: str
) -> None:
    mounted = mount(board, kernel=kernel)
    found = look(mounted)
    names = ["gpu_min_freq_mhz", "gpu_freq_mhz"]
    levels = found.controls["gpu_freq_mhz"].levels
    original = {name: control.save() for name, control in found.controls.items()}
    rng = random.Random(3)
    from polythrottle_agent.privileged.keeper import Keeper

    keeper = Keeper({name: found.controls[name] for name in names}, mounted.board.clock)
    keeper.take()
    for _ in range(40):
        low, high = sorted(rng.choices(range(len(levels)), k=2))
        wanted = {names[0]: levels[low], names[1]: levels[high]}
        if rng.random() < 0.5:
            wanted.pop(names[0])
        keeper.apply(wanted)
        assert found.controls["gpu_freq_mhz"].accepted() == levels[high]
        if names[0] in wanted:
            assert found.controls["gpu_min_freq_mhz"].accepted() == levels[low]
    assert keeper.release() == ()
    assert {name: control.save() for name, control in found.controls.items()} == original


def test_a_gpu_whose_node_comes_late_is_waited_for(mount: Mount) -> None:
    from polythrottle_agent.discovery import discover

    board = mount("orin-nano-8gb", options=Options(gpu_appears_after_s=0.6))
    assert "gpu_freq_mhz" not in look(board).controls
    assert "gpu_freq_mhz" in discover(board.root, clock=board.board.clock, wait_s=3.0).controls


def test_a_mode_that_is_switched_while_we_run_bounds_the_next_write(mount: Mount) -> None:
    board = mount("orin-nano-8gb", options=Options(mode="MAXN_SUPER"))
    controls = look(board).controls
    assert controls["gpu_freq_mhz"].levels[-1] == 1020.0
    board.machine.set_mode("15W")
    with pytest.raises(ControlError, match="the power mode now allows 612 MHz at most"):
        controls["gpu_freq_mhz"].apply(1020.0)
    with pytest.raises(ControlError, match="allows 2133 MHz"):
        controls["mem_freq_mhz"].apply(3199.0)
    controls["gpu_freq_mhz"].apply(612.0)


def test_nothing_exceeds_the_power_mode_s_caps_on_any_knob(mount: Mount) -> None:
    board = mount("orin-nano-8gb", options=Options(mode="15W"))
    controls = look(board).controls
    assert controls["gpu_freq_mhz"].levels[-1] == 612.0
    assert controls["mem_freq_mhz"].levels[-2:] == (2133.0, UNLOCKED)
    assert controls["cpu_freq_mhz"].levels[-1] == 1497.6


def test_cores_that_the_mode_switched_off_stay_off(mount: Mount) -> None:
    board = mount("xavier-nx", options=Options(mode="MODE_10W_DESKTOP"))
    cores = look(board).controls["cpu_cores"]
    assert cores.levels == (1.0, 2.0, 3.0, 4.0)
    cores.apply(4.0)
    assert cores.accepted() == 4.0


def test_a_cluster_that_comes_back_online_is_pinned_like_the_others(mount: Mount) -> None:
    board = mount("orin-nano-8gb")
    controls = look(board).controls
    controls["cpu_cores"].apply(4.0)
    controls["cpu_freq_mhz"].apply(729.6)
    assert controls["cpu_freq_mhz"].accepted() == 729.6
    controls["cpu_cores"].apply(6.0)
    for policy in ("policy0", "policy4"):
        assert (board.path(f"cpu/{policy}") / "scaling_max_freq").read_text() == "729600\n"


def test_everything_comes_back_after_cores_and_clocks_were_changed_together(mount: Mount) -> None:
    board = mount("tx2")
    found = look(board)
    from polythrottle_agent.privileged.keeper import Keeper

    original = {name: control.save() for name, control in found.controls.items()}
    keeper = Keeper(found.controls, board.board.clock)
    keeper.take()
    keeper.apply({"cpu_cores": 1.0, "cpu_freq_mhz": 345.6, "mem_freq_mhz": 204.0, "gpu_freq_mhz": 114.75})
    assert keeper.release() == ()
    assert {name: control.save() for name, control in found.controls.items()} == original


def memory(board: MountedBoard, state_dir: Path | None = None):  # type: ignore[no-untyped-def]
    found = look(board, state_dir).memory
    assert found is not None
    return found


def test_a_silently_rejected_memory_rate_shows_in_what_is_accepted(mount: Mount) -> None:
    board = mount("orin-nano-8gb")
    control = memory(board)
    control.apply(2133.0)
    board.inject("emc/rate", "silent")
    control.apply(665.6)
    assert control.accepted() == 2133.0


def test_a_probe_finds_what_can_be_locked_and_is_forgotten_after_a_reboot(
    mount: Mount, tmp_path: Path
) -> None:
    board = mount("orin-nano-8gb", options=Options(emc_stuck_mhz=2133.0))
    control = memory(board, tmp_path)
    assert 3199.0 in control.levels  # what the profile says
    before = control.save()
    assert control.probe() == (204.0, 665.6, 2133.0)
    assert control.save() == before
    assert 3199.0 not in memory(board, tmp_path).levels
    assert memory(board, tmp_path).is_probed
    board.reboot()
    assert not memory(board, tmp_path).is_probed


def test_a_write_that_the_kernel_refuses_is_an_error_with_its_reason(mount: Mount) -> None:
    board = mount("orin-nano-8gb")
    controls = look(board).controls
    board.inject("gpu/max_freq", "EIO")
    with pytest.raises(ControlError, match=r"max_freq: the hardware failed \(EIO\)"):
        controls["gpu_freq_mhz"].apply(408.0)
    board.clear()
    controls["gpu_freq_mhz"].apply(408.0)
    assert controls["gpu_freq_mhz"].accepted() == 408.0


def test_a_stuck_limit_shows_in_what_is_accepted(mount: Mount) -> None:
    board = mount("orin-nano-8gb")
    controls = look(board).controls
    board.inject("gpu/max_freq", "stuck")
    controls["gpu_freq_mhz"].apply(408.0)
    assert controls["gpu_freq_mhz"].accepted() == 918.0


def test_levels_off_the_table_never_reach_the_kernel(mount: Mount) -> None:
    board = mount("orin-nano-8gb")
    before = board.path("gpu/max_freq").read_text()
    with pytest.raises(InvalidInputError):
        look(board).controls["gpu_freq_mhz"].apply(500.0)
    assert board.path("gpu/max_freq").read_text() == before


def test_a_whole_device_is_held_and_put_back_through_the_journal(
    mount: Mount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polythrottle_agent.devices import open_device

    monkeypatch.setenv("POLYTHROTTLE_STATE_DIR", str(tmp_path))
    board = mount("orin-nano-8gb")
    device = open_device("auto", None, 0, root=board.root)
    journal = state_directory(board.root)
    original = {name: control.save() for name, control in device.controls.items()}
    with HeldDevice(device) as held:
        held.apply({"gpu_freq_mhz": 408.0, "mem_freq_mhz": 665.6, "cpu_freq_mhz": 729.6, "batch_size": 4.0})
        assert list(journal.glob("originals-*.json"))
    assert held.not_restored == ()
    assert {name: control.save() for name, control in device.controls.items()} == original
    assert not list(journal.glob("originals-*.json"))
