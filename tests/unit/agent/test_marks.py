from __future__ import annotations

from pathlib import Path

from polythrottle_agent.marks import marks_of, persistence_of
from polythrottle_agent.ports import ControlError
from polythrottle_agent.sysfs import Sysfs
from tests.fakes.file_board import FileControl

CONF = """
< POWER_MODEL ID=0 NAME=15W >
GPU MAX_FREQ 612000000
< POWER_MODEL ID=1 NAME=25W >
GPU MAX_FREQ 918000000
< PM_CONFIG DEFAULT=1 >
"""


def put(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_the_power_mode_is_told_by_name(tmp_path: Path) -> None:
    put(tmp_path, "etc/nvpmodel.conf", CONF)
    assert marks_of(Sysfs(tmp_path)).power_mode == "25W (ID 1)"
    put(tmp_path, "var/lib/nvpmodel/status", "pmode:0000 fmode:quiet\n")
    assert marks_of(Sysfs(tmp_path)).power_mode == "15W (ID 0)"


def test_a_driver_that_is_loaded_anew_is_another_one(tmp_path: Path) -> None:
    assert marks_of(Sysfs(tmp_path)).driver is None
    module = tmp_path / "sys/module/nvidia"
    module.mkdir(parents=True)
    before = marks_of(Sysfs(tmp_path)).driver
    module.rename(tmp_path / "sys/module/old")
    module.mkdir()
    after = marks_of(Sysfs(tmp_path)).driver
    assert None not in (before, after)
    assert before != after


def test_programs_that_may_set_clocks_are_named_and_harmless_ones_are_not(tmp_path: Path) -> None:
    put(tmp_path, "proc/12/comm", "tuned\n")
    put(tmp_path, "proc/13/comm", "nvfancontrol\n")
    assert marks_of(Sysfs(tmp_path)).others == ("tuned",)


class Persistent(FileControl):
    """As a GPU's control, whose state has the persistence mode."""

    def __init__(self, mode: str | None) -> None:
        super().__init__(Path(), "gpu_freq_mhz")
        self._mode = mode

    def save(self) -> dict[str, str]:
        if self._mode is None:
            raise ControlError("GPU is lost")
        return {"maximum_mhz": "none", "persistence": self._mode}


def test_persistence_is_read_from_the_controls_that_can_be() -> None:
    assert persistence_of({"a": Persistent(None), "b": Persistent("1")}) is True
    assert persistence_of({"b": Persistent("0")}) is False
    assert persistence_of({"a": Persistent(None)}) is None
    assert persistence_of({}) is None
