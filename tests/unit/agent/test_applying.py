"""Confirm or revert, on an emulated board and on a scripted one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from polythrottle.clock import VirtualClock
from polythrottle.configuration import Configuration
from polythrottle.errors import InvalidInputError
from polythrottle.measurement import LatencyReading, Measurement, Provenance, Unavailable
from polythrottle.objective import LatencySlo
from polythrottle.studies import Aborted, Failed, Measured
from polythrottle.study import DeviceIdentity
from polythrottle_agent.applying import Bare, Verdict, apply_or_revert, check_device, judge
from polythrottle_agent.audit import AuditLog
from polythrottle_agent.privileged.journal import Journal, Owner
from polythrottle_agent.privileged.on_disk import OnDisk
from tests.fakes.file_board import FileBoard

if TYPE_CHECKING:
    from tests.unit.agent.conftest import Scripted

SLO = LatencySlo("p99", limit_s=0.05)
BOARD = DeviceIdentity("jetson:orin-nano-8gb:1", "orin-nano-8gb", "an Orin Nano", Provenance.MEASURED, "abc")
NEW = Configuration.of({"gpu_freq_mhz": 500.0})


def never(_: str) -> bool:
    return False


def go_on() -> bool:
    return False


def test_a_configuration_that_meets_the_slo_is_held_for_its_time(scripted: Scripted) -> None:
    seen = []

    def watch() -> bool:
        seen.append((scripted.clock.now(), scripted.controls["gpu_freq_mhz"].value))
        return False

    done = apply_or_revert(scripted.device, NEW, SLO, never, 600.0, watch)
    assert done.verdict is Verdict.HELD
    assert seen[0][1] == 900.0, "asked before the first write, too"
    assert {value for _, value in seen[1:]} == {500.0}
    assert seen[-1][0] - seen[1][0] >= 599.0
    assert scripted.controls["gpu_freq_mhz"].value == 900.0


def test_one_that_misses_it_reverts_at_once(scripted: Scripted) -> None:
    done = apply_or_revert(scripted.device, NEW, replace(SLO, limit_s=0.001), never, 600.0, go_on)
    assert done.verdict is Verdict.REVERTED
    assert "missed" in done.reason
    assert scripted.clock.now() < 60.0
    assert scripted.controls["gpu_freq_mhz"].value == 900.0


def test_the_user_may_confirm_what_was_not_met(scripted: Scripted) -> None:
    asked: list[str] = []

    def yes(sentence: str) -> bool:
        asked.append(sentence)
        return True

    done = apply_or_revert(scripted.device, NEW, replace(SLO, limit_s=0.001), yes, 10.0, go_on)
    assert done.verdict is Verdict.HELD
    assert "user confirmed" in done.reason
    assert len(asked) == 1


def test_without_an_slo_only_the_user_can_confirm(scripted: Scripted) -> None:
    assert apply_or_revert(scripted.device, NEW, None, never, 10.0, go_on).verdict is Verdict.REVERTED
    assert apply_or_revert(scripted.device, NEW, None, lambda _: True, 10.0, go_on).verdict is Verdict.HELD


def test_a_hold_can_be_ended_early(scripted: Scripted) -> None:
    done = apply_or_revert(scripted.device, NEW, SLO, never, 600.0, lambda: scripted.clock.now() > 20.0)
    assert done.verdict is Verdict.HELD
    assert scripted.clock.now() < 30.0
    assert scripted.controls["gpu_freq_mhz"].value == 900.0


def test_nothing_can_be_kept_on_a_device_that_ends_with_the_process(scripted: Scripted) -> None:
    with pytest.raises(InvalidInputError, match="ends with its process"):
        apply_or_revert(scripted.device, NEW, SLO, never, None, go_on)
    assert scripted.controls["gpu_freq_mhz"].value == 900.0


def test_a_kept_configuration_stays_and_its_originals_with_it(tmp_path: Path) -> None:
    board = FileBoard.as_found(tmp_path / "board")
    journal = Journal(tmp_path, "boot", "file:board")
    keeping = OnDisk(journal, AuditLog(tmp_path), Owner("x", 0, 1))
    bare = Bare(BOARD, board.controls(), VirtualClock(), keeping)
    settings = Configuration.of({"gpu_freq_mhz": 408.0})
    done = apply_or_revert(bare, settings, None, lambda _: True, None, go_on)
    assert done.verdict is Verdict.KEPT
    assert board.state()["gpu_freq_mhz"] == "408"
    entry = journal.read()
    assert entry is not None
    assert entry.originals["gpu_freq_mhz"] == {"level": "612"}
    assert entry.kept


def outcome(latency: LatencyReading | Unavailable) -> Measured:
    return Measured(
        Measurement(NEW, NEW, NEW, Unavailable("no meter"), latency, started_s=0.0, duration_s=1.0)
    )


def reading(latency_s: float, error_s: float | None = 0.001, *, bounded: bool = True) -> LatencyReading:
    return LatencyReading(latency_s, error_s, "p99", 1000, bounded, Provenance.EMULATED)


@pytest.mark.parametrize(
    ("latency", "met"),
    [
        (reading(0.0479), True),
        (reading(0.0481), False),
        (reading(0.0499), False),
        (reading(0.06), False),
        (reading(0.01, bounded=False), None),
        (reading(0.01, None), None),
        (Unavailable("no query"), None),
    ],
)
def test_the_slo_is_met_only_with_room_for_the_error(
    latency: LatencyReading | Unavailable, met: bool | None
) -> None:
    assert judge(outcome(latency), SLO).met is met


def test_a_window_that_was_cut_short_misses_it() -> None:
    cut = Aborted(outcome(reading(0.2)).measurement, "p99 was above 100 ms after 50 queries")
    judgement = judge(cut, SLO)
    assert judgement.met is False
    assert "after 50 queries" in judgement.sentence


def test_a_trial_that_failed_meets_nothing() -> None:
    judgement = judge(Failed("EBUSY"), SLO)
    assert judgement.met is None
    assert "EBUSY" in judgement.sentence


def test_what_was_found_here_may_be_applied_here() -> None:
    assert check_device(BOARD, BOARD) is None
    assert check_device(replace(BOARD, tables_digest=""), BOARD) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"id": "jetson:orin-nano-8gb:2"}, "another device of the same board"),
        ({"tables_digest": "def"}, "the levels that an Orin Nano takes are others"),
        ({"id": "emulated:orin-nano-8gb", "provenance": Provenance.EMULATED}, "(emulated), and here is"),
    ],
)
def test_another_device_of_the_same_board_is_a_warning(changes: dict[str, Any], words: str) -> None:
    warning = check_device(replace(BOARD, **changes), BOARD)
    assert warning is not None
    assert words in warning


def test_another_board_is_refused_in_one_sentence() -> None:
    with pytest.raises(InvalidInputError, match=r"found on a TX2 \(tx2\), and here is an Orin Nano") as error:
        check_device(replace(BOARD, id="jetson:tx2:1", board="tx2", label="a TX2"), BOARD)
    assert "\n" not in str(error.value)


def test_a_signal_ends_the_trial_too(scripted: Scripted) -> None:
    done = apply_or_revert(scripted.device, NEW, SLO, never, 600.0, lambda: True)
    assert done.verdict is Verdict.REVERTED
    assert done.reason == "Stopped by the user."
    assert scripted.workload.warmed_up == []
    assert scripted.controls["gpu_freq_mhz"].value == 900.0
