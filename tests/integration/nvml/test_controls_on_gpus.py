"""What the NVIDIA controls do to the hardware, and what they do when it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from nvml_fake import NOBODY

from polythrottle.configuration import UNLOCKED
from polythrottle.errors import InvalidInputError
from polythrottle_agent.controls.nvidia import nvidia_controls, nvidia_notes
from polythrottle_agent.limits import Limit, OperatorLimits
from polythrottle_agent.nvml.gpu import find_gpu
from polythrottle_agent.nvml.identity import nvidia_identity
from polythrottle_agent.nvml.session import NvmlError
from polythrottle_agent.ports import ControlError

Machines = Callable[..., Any]


def save_all(controls: Any) -> dict[str, Any]:
    return {name: dict(control.save()) for name, control in controls.items()}


def test_a_maximum_locks_the_gpu_and_a_held_floor_opens_the_range(machine: Machines) -> None:
    found = machine("H100")
    controls = nvidia_controls(found.session, found.uuid)
    controls["gpu_freq_mhz"].apply(1200.0)
    assert (found.fake.get("lock_min"), found.fake.get("lock_max")) == (1200, 1200)
    controls["gpu_min_freq_mhz"].apply(600.0)
    assert (found.fake.get("lock_min"), found.fake.get("lock_max")) == (600, 1200)
    controls["gpu_freq_mhz"].apply(1500.0)
    assert (found.fake.get("lock_min"), found.fake.get("lock_max")) == (600, 1500)
    with pytest.raises(ControlError, match="above the GPU's maximum"):
        controls["gpu_min_freq_mhz"].apply(1980.0)
    assert (found.fake.get("lock_min"), found.fake.get("lock_max")) == (600, 1500)


def test_what_runs_under_load_is_observed_and_a_lock_that_is_ignored_shows(machine: Machines) -> None:
    found = machine("H100")
    control = nvidia_controls(found.session, found.uuid)["gpu_freq_mhz"]
    found.fake.set(load=1)
    control.apply(900.0)
    assert control.observed() == 900.0
    found.fake.set(ignores_locks=1)
    assert control.accepted() == 900.0
    assert control.observed() == 1980.0


def test_memory_unlocked_is_not_memory_locked_at_the_top(machine: Machines) -> None:
    found = machine("H100")
    control = nvidia_controls(found.session, found.uuid)["mem_freq_mhz"]
    assert control.levels == (1593.0, 2619.0, UNLOCKED)
    control.apply(2619.0)
    assert (found.fake.get("memory_min"), found.fake.get("memory_max")) == (2619, 2619)
    control.apply(1593.0)
    assert control.observed() == 1593.0
    control.apply(UNLOCKED)
    assert found.fake.get("memory_max") == 0
    assert control.accepted() == UNLOCKED


@pytest.mark.parametrize("gpu", ["V100", "A100-40", "H100", "RTX"])
def test_every_setting_comes_back_persistence_and_an_odd_limit_included(machine: Machines, gpu: str) -> None:
    found = machine(gpu)
    found.fake.set(limit_mw=251_337)
    before = found.fake.settings()
    controls = nvidia_controls(found.session, found.uuid)
    originals = save_all(controls)
    for control in controls.values():
        control.apply(control.levels[0])
    assert found.fake.settings() != before
    assert found.fake.get("persistence") == 1
    for name, control in reversed(list(controls.items())):
        control.restore(originals[name])
    assert found.fake.settings() == before
    assert save_all(controls) == originals


def test_restore_works_from_a_process_that_knows_of_no_lock(machine: Machines) -> None:
    found = machine("H100")
    before = found.fake.settings()
    first = nvidia_controls(found.session, found.uuid)
    originals = save_all(first)
    first["gpu_freq_mhz"].apply(600.0)
    first["mem_freq_mhz"].apply(1593.0)
    first["power_limit_w"].apply(250.0)
    later = nvidia_controls(found.session, found.uuid)
    for name, control in later.items():
        control.restore(originals[name])
    assert found.fake.settings() == before
    # The lowered limit that the later process found first was ours: it is no cap any more.
    assert later["power_limit_w"].levels[-1] == 700.0


def test_a_cap_that_its_owner_moves_while_nothing_is_held_is_the_cap(machine: Machines) -> None:
    found = machine("H100")
    control = nvidia_controls(found.session, found.uuid)["power_limit_w"]
    assert control.levels[-1] == 700.0
    found.fake.set(limit_mw=400_000)
    original = control.save()
    assert control.levels[-1] == 400.0
    with pytest.raises(ControlError, match="400"):
        control.apply(700.0)
    control.apply(250.0)
    assert control.levels[-1] == 400.0
    control.restore(original)
    found.fake.set(limit_mw=500_000)
    assert control.levels[-1] == 500.0


def test_persistence_that_was_on_stays_on(machine: Machines) -> None:
    found = machine("H100")
    found.fake.set(persistence=1)
    control = nvidia_controls(found.session, found.uuid)["gpu_freq_mhz"]
    original = control.save()
    control.apply(600.0)
    control.restore(original)
    assert found.fake.get("persistence") == 1


def test_a_limit_below_the_default_is_somebody_s_cap(machine: Machines) -> None:
    found = machine("H100")
    found.fake.set(limit_mw=400_000)
    controls = nvidia_controls(found.session, found.uuid)
    assert controls["power_limit_w"].levels == (200.0, 250.0, 300.0, 350.0, 400.0)
    with pytest.raises(ControlError, match="400"):
        controls["power_limit_w"].apply(700.0)
    assert found.fake.get("limit_mw") == 400_000
    assert any(
        "400 W, below its default of 700 W" in note for note in nvidia_notes(found.session, found.uuid)
    )


def test_the_operator_s_limits_bound_every_knob(machine: Machines) -> None:
    found = machine("H100")
    limits = OperatorLimits(
        {"gpu_freq_mhz": Limit(600, 1200), "power_limit_w": Limit(0, 450), "mem_freq_mhz": Limit(0, 2000)},
        "limits.yaml",
    )
    controls = nvidia_controls(found.session, found.uuid, limits)
    assert controls["gpu_freq_mhz"].levels[0] == 600.0
    assert controls["gpu_freq_mhz"].levels[-1] == 1200.0
    assert controls["power_limit_w"].levels[-1] == 450.0
    assert controls["mem_freq_mhz"].levels == (1593.0,)
    with pytest.raises(InvalidInputError, match=r"limits\.yaml"):
        controls["gpu_freq_mhz"].apply(1980.0)


def test_mig_is_one_actuator_shared_by_all_and_refused(machine: Machines) -> None:
    found = machine("A100-40")
    before = nvidia_controls(found.session, found.uuid)
    found.fake.set(mig=1)
    assert nvidia_controls(found.session, found.uuid) == {}
    assert "MIG" in nvidia_notes(found.session, found.uuid)[0]
    with pytest.raises(ControlError, match="MIG"):
        before["gpu_freq_mhz"].apply(600.0)
    assert found.fake.get("lock_max") == 0
    allowed = nvidia_controls(found.session, found.uuid, allow_mig=True)
    allowed["gpu_freq_mhz"].apply(600.0)
    assert found.fake.get("lock_max") == 600


def test_mig_that_is_pending_is_refused_too(machine: Machines) -> None:
    found = machine("H100")
    found.fake.set(mig_pending=1)
    assert nvidia_controls(found.session, found.uuid) == {}


def test_without_permission_the_sentence_says_what_to_do(machine: Machines) -> None:
    found = machine("H100")
    control = nvidia_controls(found.session, found.uuid)["gpu_freq_mhz"]
    before = found.fake.settings()
    found.fake.set(permission=NOBODY)
    with pytest.raises(ControlError, match="needs root; run polythrottle-helper") as refusal:
        control.apply(900.0)
    assert "\n" not in str(refusal.value)
    assert found.fake.settings() == before
    assert control.accepted() == 1980.0


@pytest.mark.parametrize("code", [1, 2, 3, 4, 6, 13, 15, 18, 999])
@pytest.mark.parametrize(
    ("knob", "function"),
    [
        ("gpu_freq_mhz", "nvmlDeviceSetGpuLockedClocks"),
        ("mem_freq_mhz", "nvmlDeviceSetMemoryLockedClocks"),
        ("power_limit_w", "nvmlDeviceSetPowerManagementLimit"),
    ],
)
def test_every_nvml_error_is_a_control_error_of_one_sentence_and_what_was_held_stays(
    machine: Machines, knob: str, function: str, code: int
) -> None:
    found = machine("H100")
    controls = nvidia_controls(found.session, found.uuid)
    controls[knob].apply(controls[knob].levels[0])
    held, saved = found.fake.settings(), controls[knob].save()
    found.fake.inject(function, code, times=1)
    with pytest.raises(ControlError) as refusal:
        controls[knob].apply(controls[knob].levels[1])
    text = str(refusal.value)
    assert text.startswith(function)
    assert "\n" not in text
    assert text.count(found.uuid) == 1
    assert found.fake.settings() == held
    assert controls[knob].save() == saved
    controls[knob].apply(controls[knob].levels[1])  # and it goes on afterwards


def test_a_lost_gpu_that_comes_back_is_restored(machine: Machines) -> None:
    found = machine("H100,A100-40")
    controls = nvidia_controls(found.session, found.uuid)
    originals, before = save_all(controls), found.fake.settings()
    controls["gpu_freq_mhz"].apply(600.0)
    found.fake.set(lost=1)
    with pytest.raises(NvmlError, match="fallen off the bus"):
        controls["gpu_freq_mhz"].restore(originals["gpu_freq_mhz"])
    assert found.session.gpus() == (found.uuids[1],)
    found.fake.set(lost=0)
    controls["gpu_freq_mhz"].restore(originals["gpu_freq_mhz"])
    assert found.fake.settings() == before


def test_a_gpu_is_named_by_uuid_or_pci_address_and_never_by_index(machine: Machines) -> None:
    found = machine("H100,A100-40")
    for uuid in found.uuids:
        assert find_gpu(found.session, uuid) == uuid
    assert find_gpu(found.session, "0000:19:00.0") == found.uuids[1]
    assert find_gpu(found.session, "19:00.0") == found.uuids[1]
    for wrong in ("0", "1", "", "GPU-ffff"):
        with pytest.raises(NvmlError, match="names no GPU"):
            find_gpu(found.session, wrong)
    with pytest.raises(NvmlError, match="names several GPUs"):
        find_gpu(found.session, "GPU-5eed")


def test_settings_reach_the_gpu_that_is_named(machine: Machines) -> None:
    found = machine("H100,A100-40")
    nvidia_controls(found.session, found.uuids[1])["gpu_freq_mhz"].apply(600.0)
    assert found.fake.get("lock_max", 0) == 0
    assert found.fake.get("lock_max", 1) == 600


def test_identity_is_the_uuid_and_the_tables(machine: Machines) -> None:
    found = machine("H100,H100,A100-40")
    first, second, other = (nvidia_identity(found.session, uuid) for uuid in found.uuids)
    assert first.id == f"nvidia:{found.uuid}"
    assert first.board == "nvidia-h100-80gb-hbm3"
    assert "0000:18:00.0" in first.label
    assert first.id != second.id
    assert first.tables_digest == second.tables_digest != other.tables_digest
    found.fake.set(0, limit_mw=300_000)
    assert nvidia_identity(found.session, found.uuid) == first


@pytest.mark.parametrize(
    ("gpu", "words"),
    [
        ("P100", "needs Volta"),
        ("V100", "needs Ampere"),
        ("A100-40", "single memory clock"),
        ("Orin", "devfreq"),
    ],
)
def test_notes_say_what_is_missing(machine: Machines, gpu: str, words: str) -> None:
    found = machine(gpu)
    assert words in " ".join(nvidia_notes(found.session, found.uuid))
