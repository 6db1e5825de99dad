"""A restore after nvpmodel changed the mode: nobody's cap is exceeded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from polythrottle.clock import VirtualClock
from polythrottle_agent.privileged.keeper import Keeper
from polythrottle_agent.privileged.patient import PatientControl
from polythrottle_agent.reconcile import Marks
from tests.fakes.file_board import FileBoard, FileControl
from tests.unit.agent.privileged.conftest import Bench

Make = Callable[..., Bench]


class CappedControl(FileControl):
    """A clock that the power mode caps."""

    cap = math.inf

    def within_caps(self, saved: Mapping[str, str]) -> Mapping[str, str]:
        return {"level": f"{min(float(saved['level']), self.cap):g}"}


@pytest.fixture
def capped(bench: Make, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Bench]:
    def make() -> Bench:
        b = bench()
        monkeypatch.setattr(CappedControl, "cap", math.inf)
        controls = {
            **b.service.custody.keeper.controls,
            "gpu_freq_mhz": PatientControl(CappedControl(b.board.directory, "gpu_freq_mhz")),
        }
        b.service.custody.keeper.controls = controls
        b.marks[0] = Marks(power_mode="25W")
        return b

    return make


def test_a_restore_under_another_power_mode_stays_below_its_cap(capped: Callable[[], Bench]) -> None:
    b = capped()
    peer = b.holder(gpu_freq_mhz=306.0)
    b.marks[0], CappedControl.cap = Marks(power_mode="15W"), 408.0
    assert b.ask(peer, "release")["not_restored"] == []
    assert b.board.state()["gpu_freq_mhz"] == "408"
    (record,) = [r for r in b.records("restore") if r.knob == "gpu_freq_mhz"]
    assert record.new == "level = 408"
    assert "held within power mode 15W, it was 25W" in record.reason
    drift = b.ask(b.peer(), "status")["drift"][-1]
    assert "run nvpmodel -m again" in drift
    assert "level = 408, not 612" in drift
    assert b.journal.read() is None


def test_under_the_same_power_mode_everything_comes_back_as_it_was(capped: Callable[[], Bench]) -> None:
    b = capped()
    peer = b.holder(gpu_freq_mhz=306.0)
    CappedControl.cap = 408.0
    b.ask(peer, "release")
    assert b.board.is_as_found


def test_a_new_helper_knows_the_mode_that_the_old_one_saved_under(capped: Callable[[], Bench]) -> None:
    capped().holder(gpu_freq_mhz=306.0)
    new = capped()
    new.marks[0], CappedControl.cap = Marks(power_mode="15W"), 510.0
    assert new.service.start() == ()
    assert new.board.state()["gpu_freq_mhz"] == "510"


def test_a_client_hears_what_was_put_back_instead(capped: Callable[[], Bench]) -> None:
    b = capped()
    peer = b.peer()
    originals = b.ask(peer, "lease", owner="a run")["originals"]
    b.ask(peer, "apply", settings={"gpu_freq_mhz": 306.0}, reason="")
    b.marks[0], CappedControl.cap = Marks(power_mode="15W"), 408.0
    answer = b.ask(peer, "restore", knob="gpu_freq_mhz", state=originals["gpu_freq_mhz"])
    assert answer["state"] == {"level": "408"}


class ByAHelper(FileControl):
    """Whoever writes for it keeps 612 out, and tells."""

    def restore(self, saved: Mapping[str, str]) -> None:
        super().restore({"level": "408"} if saved == {"level": "612"} else saved)

    def restored_as(self, saved: Mapping[str, str]) -> Mapping[str, str]:
        return {"level": "408"} if saved == {"level": "612"} else saved


def test_what_a_helper_held_within_the_caps_counts_as_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    board = FileBoard.as_found(tmp_path / "board")
    controls = {**board.controls(), "gpu_freq_mhz": ByAHelper(board.directory, "gpu_freq_mhz")}
    keeper = Keeper(controls, VirtualClock())
    keeper.take()
    keeper.apply({"gpu_freq_mhz": 306.0})
    assert keeper.restore() == ()
    assert board.state()["gpu_freq_mhz"] == "408"
    assert "within the power mode's caps: level = 408, not 612" in caplog.text
