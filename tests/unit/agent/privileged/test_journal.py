from __future__ import annotations

import json
from pathlib import Path

import pytest

from polythrottle.errors import DeviceBusyError, StateError
from polythrottle_agent.privileged.files import TEMPORARY_SUFFIX, Files
from polythrottle_agent.privileged.journal import Journal, Owner, boot_id, kept_entries

OWNER = Owner("a run", 1000, 42)
DEVICE = "jetson:tx2:1"
GPU = {"gpu_freq_mhz": {"max_freq": "918000000"}}


def test_originals_are_on_disk_before_the_call_returns(tmp_path: Path) -> None:
    steps: list[str] = []
    journal = Journal(tmp_path, "boot", DEVICE, Files(steps.append))
    journal.add(OWNER, GPU)
    assert steps == [
        f"{when} {what} originals"
        for what in ("write", "fsync", "rename", "fsync directory")
        for when in ("before", "after")
    ]
    entry = Journal(tmp_path, "boot", DEVICE).read()
    assert entry is not None
    assert entry.originals == GPU
    assert entry.owner == OWNER
    assert not list(tmp_path.glob(f"*{TEMPORARY_SUFFIX}"))


def test_a_second_run_never_overwrites_an_original(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "boot", DEVICE)
    journal.add(OWNER, GPU)
    ours = {"gpu_freq_mhz": {"max_freq": "306000000"}, "mem_freq_mhz": {"rate": "204000000"}}
    entry = journal.add(Owner("another", 0, 43), ours)
    assert entry.originals == {**ours, **GPU}
    assert entry.owner.name == "another"


def test_what_is_back_is_forgotten_and_the_rest_stays(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "boot", DEVICE)
    journal.add(OWNER, {**GPU, "cpu_freq_mhz": {"max": "1"}})
    journal.forget(["gpu_freq_mhz"])
    entry = journal.read()
    assert entry is not None
    assert set(entry.originals) == {"cpu_freq_mhz"}
    journal.forget(["cpu_freq_mhz"])
    assert journal.read() is None
    assert not journal.path.exists()


def test_an_entry_of_an_earlier_boot_is_never_put_back(tmp_path: Path) -> None:
    Journal(tmp_path, "earlier", DEVICE).add(OWNER, GPU)
    journal = Journal(tmp_path, "now", DEVICE)
    assert journal.read() is None
    journal.add(OWNER, {"cpu_freq_mhz": {"max": "1"}})
    assert list(tmp_path.glob("originals-*")) == [journal.path]


def test_a_damaged_entry_of_an_earlier_boot_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "originals-earlier-1.json").write_text("{")
    journal = Journal(tmp_path, "now", DEVICE)
    journal.add(OWNER, GPU)
    assert list(tmp_path.glob("originals-*")) == [journal.path]


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"schema": "polythrottle-originals/1"}'])
def test_a_damaged_entry_stops_everything_and_says_what_to_do(tmp_path: Path, damage: str) -> None:
    journal = Journal(tmp_path, "boot", DEVICE)
    journal.add(OWNER, GPU)
    journal.path.write_text(damage)
    with pytest.raises(StateError, match=r"damaged .* reboot"):
        journal.read()
    with pytest.raises(StateError, match="damaged"):
        journal.add(OWNER, GPU)


def test_an_edited_entry_is_damaged(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "boot", DEVICE)
    journal.add(OWNER, GPU)
    edit(journal.path, originals={"gpu_freq_mhz": {"max_freq": "306000000"}})
    with pytest.raises(StateError, match="checksum"):
        journal.read()


def test_each_device_has_an_entry_of_its_own(tmp_path: Path) -> None:
    first, second = (Journal(tmp_path, "boot", f"GPU-{number}") for number in (1, 2))
    first.add(OWNER, GPU)
    second.add(OWNER, {"gpu_freq_mhz": {"max_freq": "1"}})
    first_entry = first.read()
    assert first_entry is not None
    assert first_entry.originals == GPU
    entries, problems = kept_entries(tmp_path, "boot")
    assert {entry.device_id: entry.originals for entry in entries} == {
        "GPU-1": GPU,
        "GPU-2": {"gpu_freq_mhz": {"max_freq": "1"}},
    }
    assert problems == ()
    first.forget(["gpu_freq_mhz"])
    assert first.read() is None
    assert second.read() is not None


def test_an_entry_that_names_another_device_is_damaged(tmp_path: Path) -> None:
    first, second = (Journal(tmp_path, "boot", f"GPU-{number}") for number in (1, 2))
    first.add(OWNER, GPU)
    first.path.rename(second.path)
    with pytest.raises(StateError, match="it is of GPU-1, not of GPU-2"):
        second.read()


@pytest.mark.parametrize("knob", ["cpu_freq_mhz", "cpu_cores"])
def test_what_the_machine_has_once_has_one_original(tmp_path: Path, knob: str) -> None:
    Journal(tmp_path, "boot", "GPU-1").add(OWNER, {**GPU, knob: {"x": "1"}})
    second = Journal(tmp_path, "boot", "GPU-2")
    with pytest.raises(DeviceBusyError, match=f"holds {knob}, which GPU-1 and GPU-2 share"):
        second.add(OWNER, {**GPU, knob: {"x": "2"}})
    assert second.read() is None
    second.add(OWNER, GPU)


def test_what_is_put_back_in_part_is_kept_no_more(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "boot", DEVICE)
    journal.add(OWNER, {**GPU, "mem_freq_mhz": {"rate": "1"}})
    journal.mark_kept("the SLO is met")
    journal.forget(["gpu_freq_mhz"])
    entry = journal.read()
    assert entry is not None
    assert entry.kept is None


def test_the_first_power_mode_stays_with_the_first_originals(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "boot", DEVICE)
    journal.add(OWNER, GPU, "15W (ID 0)")
    journal.add(Owner("another", 0, 43), {"mem_freq_mhz": {"rate": "1"}}, "7W (ID 1)")
    entry = journal.read()
    assert entry is not None
    assert entry.power_mode == "15W (ID 0)"


def test_a_journal_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    def full(step: str) -> None:
        if step == "before fsync originals":
            raise OSError(28, "No space left on device")

    with pytest.raises(StateError, match=r"cannot be written .*No space left.* nothing is changed"):
        Journal(tmp_path, "boot", DEVICE, Files(full)).add(OWNER, GPU)
    assert Journal(tmp_path, "boot", DEVICE).read() is None
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="cannot be written"):
        Journal(tmp_path / "file", "boot", DEVICE).add(OWNER, GPU)


def test_a_kept_entry_says_so_until_somebody_takes_the_device_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "boot", DEVICE)
    journal.add(OWNER, GPU)
    journal.mark_kept("the SLO is met")
    entry = journal.read()
    assert entry is not None
    assert entry.kept == "the SLO is met"
    assert entry.originals == GPU


def test_the_boot_is_the_roots_own_or_the_kernels(tmp_path: Path) -> None:
    assert boot_id(tmp_path) == boot_id()
    own = tmp_path / "proc/sys/kernel/random/boot_id"
    own.parent.mkdir(parents=True)
    own.write_text("abc\n")
    assert boot_id(tmp_path) == "abc"
