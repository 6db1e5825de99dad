from __future__ import annotations

from pathlib import Path

import pytest

from polythrottle.clock import VirtualClock
from polythrottle.configuration import Level
from polythrottle_agent.ports import Control
from polythrottle_agent.reconcile import ALWAYS_YIELD, Marks, Reconciler, Who
from tests.fakes.file_board import FileBoard

TOP: dict[str, Level] = {"gpu_freq_mhz": 612.0}
HALF: dict[str, Level] = {"gpu_freq_mhz": 510.0}
WANTED: dict[str, Level] = {"gpu_freq_mhz": 408.0, "mem_freq_mhz": 204.0}


class Scene:
    """A board that holds what is wanted, and a reconciler over it."""

    def __init__(self, directory: Path) -> None:
        self.board = FileBoard.as_found(directory)
        self.clock = VirtualClock()
        self.marks = Marks()
        self.controls: dict[str, Control] = self.board.controls()
        self.reconciler = Reconciler(self.controls, self.clock, lambda: self.marks)
        self.set(**WANTED)

    def set(self, **levels: Level) -> None:
        for knob, level in levels.items():
            self.controls[knob].apply(level)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_nothing_is_said_while_everything_holds(scene: Scene) -> None:
    scene.reconciler.want(WANTED)
    assert scene.reconciler.check().drifts == ()


@pytest.mark.parametrize(
    ("before", "after", "levels", "who", "word"),
    [
        (Marks("25W"), Marks("15W"), {"gpu_freq_mhz": 306.0}, Who.NVPMODEL, "25W → 15W"),
        (Marks("25W"), Marks("25W"), {"gpu_freq_mhz": 612.0}, Who.JETSON_CLOCKS, "highest"),
        (Marks(), Marks(), {"gpu_freq_mhz": 612.0}, Who.OTHER, ""),
        (Marks("25W"), Marks("25W"), {"gpu_freq_mhz": 510.0}, Who.OTHER, ""),
        (Marks(persistence=True), Marks(persistence=False), TOP, Who.PERSISTENCE, "unloaded"),
        (Marks(driver="1"), Marks(driver="2"), {"gpu_freq_mhz": 612.0}, Who.RESET, "anew"),
        (Marks(), Marks(others=("tuned",)), {"gpu_freq_mhz": 510.0}, Who.OTHER, "tuned"),
        (Marks(others=("tuned",)), Marks(others=("tuned", "LACT")), HALF, Who.OTHER, "LACT"),
    ],
)  # fmt: skip
def test_who_did_it(
    scene: Scene, before: Marks, after: Marks, levels: dict[str, Level], who: Who, word: str
) -> None:
    scene.marks = before
    scene.reconciler.want(WANTED)
    scene.marks = after
    scene.set(**levels)
    finding = scene.reconciler.check()
    assert [(drift.knob, drift.who) for drift in finding.drifts] == [("gpu_freq_mhz", who)]
    assert word in finding.drifts[0].detail
    assert "not 408" in str(finding.drifts[0])


def test_an_operators_choice_is_left_alone(scene: Scene) -> None:
    scene.marks = Marks("25W")
    scene.reconciler.want(WANTED)
    scene.marks = Marks("15W")
    scene.set(gpu_freq_mhz=306.0)
    finding = scene.reconciler.check()
    assert finding.reapply is None
    assert [drift.knob for drift in finding.yielded] == ["gpu_freq_mhz"]
    assert scene.reconciler.check().drifts == ()


def test_two_that_insist_do_not_fight_for_ever(scene: Scene) -> None:
    scene.reconciler.want(WANTED)
    written = 0
    for _ in range(100):
        scene.set(gpu_freq_mhz=510.0)
        scene.clock.sleep(5.0)
        finding = scene.reconciler.check()
        if finding.reapply:
            written += 1
            scene.set(**finding.reapply)
    assert written == 3


def test_a_rare_drift_is_mended_every_time(scene: Scene) -> None:
    scene.reconciler.want(WANTED)
    for _ in range(10):
        scene.set(gpu_freq_mhz=510.0)
        scene.clock.sleep(601.0)
        finding = scene.reconciler.check()
        assert finding.reapply == {"gpu_freq_mhz": 408.0}
        scene.set(**finding.reapply)


def test_during_a_run_drift_is_told_once_and_nothing_is_written(scene: Scene) -> None:
    scene.reconciler.want(WANTED, ALWAYS_YIELD)
    scene.set(gpu_freq_mhz=510.0)
    first = scene.reconciler.check()
    assert len(first.drifts) == 1
    assert first.reapply is None
    assert scene.reconciler.check().drifts == ()
    scene.set(gpu_freq_mhz=408.0)
    scene.reconciler.check()
    scene.set(gpu_freq_mhz=510.0)
    assert len(scene.reconciler.check().drifts) == 1


def test_a_knob_that_cannot_be_read_has_drifted(scene: Scene) -> None:
    scene.reconciler.want(WANTED)
    (scene.board.directory / "gpu_freq_mhz").unlink()
    assert "unreadable" in str(scene.reconciler.check().drifts[0])


def test_a_clock_that_reads_back_rounded_has_not_moved(scene: Scene) -> None:
    scene.reconciler.want(WANTED)
    (scene.board.directory / "gpu_freq_mhz").write_text("407.999")
    assert scene.reconciler.check().drifts == ()
