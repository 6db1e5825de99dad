from __future__ import annotations

import grp
import os
from pathlib import Path

import pytest

from polythrottle.errors import StateError
from polythrottle_agent.audit import FILE_NAME, AuditLog, Damaged, Record, read_audit
from polythrottle_agent.privileged.journal import Owner

OWNER = Owner("a run", 1000, 42)


def test_each_write_is_one_line_with_everything(tmp_path: Path) -> None:
    AuditLog(tmp_path).write("apply", OWNER, "trial", "gpu_freq_mhz", 612.0, "unlocked")
    (record,) = read_audit(tmp_path)
    assert isinstance(record, Record)
    assert (record.event, record.owner, record.uid, record.pid) == ("apply", "a run", 1000, 42)
    assert (record.knob, record.old, record.new, record.reason) == (
        "gpu_freq_mhz",
        612.0,
        "unlocked",
        "trial",
    )
    assert record.at.endswith("+00:00")


def test_nothing_that_was_written_is_ever_changed(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    log.write("apply", OWNER, "1")
    before = (tmp_path / FILE_NAME).read_bytes()
    log.write("apply", OWNER, "2")
    assert (tmp_path / FILE_NAME).read_bytes().startswith(before)


def test_a_line_that_a_crash_cut_short_takes_no_other_with_it(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    log.write("apply", OWNER, "first")
    with (tmp_path / FILE_NAME).open("ab") as file:
        file.write(b'{"at": "2026')
    log.write("apply", OWNER, "second")
    first, damaged, second = read_audit(tmp_path)
    assert isinstance(first, Record)
    assert damaged == Damaged(FILE_NAME, 2)
    assert isinstance(second, Record)
    assert second.reason == "second"


def test_it_is_rotated_and_read_in_order(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, rotate_bytes=400)
    for number in range(12):
        log.write("apply", OWNER, f"{number:02}")
    read = [record.reason for record in read_audit(tmp_path) if isinstance(record, Record)]
    assert len(list(tmp_path.iterdir())) > 2
    assert read == sorted(read)
    assert read[-1] == "11"


def test_no_log_is_an_empty_one(tmp_path: Path) -> None:
    assert list(read_audit(tmp_path)) == []


def test_a_log_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(StateError, match="cannot be read"):
        list(read_audit(tmp_path))


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / FILE_NAME).symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        AuditLog(tmp_path).write("apply", OWNER, "x")
    assert victim.read_text() == "precious"


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: only root may give a file to a group")
def test_the_members_of_the_group_may_read_it_whoever_made_it_and_after_a_rotation(tmp_path: Path) -> None:
    group = next(entry for entry in grp.getgrall() if entry.gr_gid not in (0, os.getegid()))
    log = AuditLog(tmp_path, rotate_bytes=10, group=group.gr_name)
    log.write("apply", OWNER, "1")
    log.write("apply", OWNER, "2")
    for path in (tmp_path / FILE_NAME, tmp_path / f"{FILE_NAME}.1"):
        assert path.stat().st_gid == group.gr_gid
        assert path.stat().st_mode & 0o777 == 0o640


def test_without_such_a_group_it_is_written_all_the_same(tmp_path: Path) -> None:
    AuditLog(tmp_path, group="no-such-group-here").write("apply", OWNER, "1")
    assert len(list(read_audit(tmp_path))) == 1
