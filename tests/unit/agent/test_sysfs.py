from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from polythrottle_agent.sysfs import Sysfs, SysfsError


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path)


def test_paths_lie_below_the_root_and_are_shown_without_it(sysfs: Sysfs, tmp_path: Path) -> None:
    path = sysfs.at("/sys/class/devfreq")
    assert path == tmp_path / "sys/class/devfreq"
    assert sysfs.shown(path) == "/sys/class/devfreq"


def test_strings_of_the_device_tree_lose_their_nul(sysfs: Sysfs) -> None:
    sysfs.at("model").write_bytes(b"NVIDIA Jetson\0")
    assert sysfs.text(sysfs.at("model")) == "NVIDIA Jetson"


def test_numbers_are_read_with_a_unit_in_brackets_left_out(sysfs: Sysfs) -> None:
    sysfs.at("rates").write_text("204000 665600 2133000 (kHz)\n")
    assert sysfs.numbers(sysfs.at("rates")) == (204000, 665600, 2133000)


@pytest.mark.parametrize("text", ["", "<unsupported>", "12 34", "0x10"])
def test_what_is_no_number_is_an_error_that_shows_the_text(sysfs: Sysfs, text: str) -> None:
    sysfs.at("rate").write_text(text)
    with pytest.raises(SysfsError, match=r"/rate reads .* no number") as error:
        sysfs.number(sysfs.at("rate"))
    assert error.value.code == 0
    assert sysfs.number_or_none(sysfs.at("rate")) is None


def test_a_write_replaces_a_longer_value(sysfs: Sysfs) -> None:
    sysfs.at("max_freq").write_text("1020000000\n")
    sysfs.write(sysfs.at("max_freq"), 306)
    assert sysfs.at("max_freq").read_text() == "306\n"


def test_a_write_never_makes_a_file(sysfs: Sysfs) -> None:
    with pytest.raises(SysfsError, match=r"cannot write 1 to /online: it is not there \(ENOENT\)"):
        sysfs.write(sysfs.at("online"), 1)
    assert not sysfs.at("online").exists()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EACCES, "permission denied"),
        (errno.EINVAL, "the kernel refuses"),
        (errno.EBUSY, "offline CPU"),
        (errno.EAGAIN, "powered off"),
        (errno.ENODATA, "disabled"),
        (errno.ETIMEDOUT, "did not answer"),
        (errno.EIO, "hardware failed"),
        (errno.EROFS, "read-only"),
        (errno.ENOSPC, "No space left"),
    ],
)
def test_every_errno_becomes_a_sentence_and_keeps_its_code(
    sysfs: Sysfs, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    sysfs.at("node").write_text("1\n")
    monkeypatch.setattr(os, "write", refuse)
    monkeypatch.setattr(os, "read", refuse)
    for call in (lambda: sysfs.write(sysfs.at("node"), 1), lambda: sysfs.text(sysfs.at("node"))):
        with pytest.raises(SysfsError, match=words) as error:
            call()
        assert error.value.code == code
        assert errno.errorcode[code] in str(error.value)
        assert "\n" not in str(error.value)


def test_a_file_without_a_write_bit_is_not_writable_not_even_for_root(sysfs: Sysfs) -> None:
    sysfs.at("online").write_text("0-5\n")
    sysfs.at("online").chmod(0o444)
    assert not sysfs.writable(sysfs.at("online"))
    sysfs.at("online").chmod(0o644)
    assert sysfs.writable(sysfs.at("online"))
    assert not sysfs.writable(sysfs.at("missing"))


def test_a_missing_directory_has_no_entries(sysfs: Sysfs) -> None:
    assert sysfs.entries(sysfs.at("/sys/class/devfreq")) == []
