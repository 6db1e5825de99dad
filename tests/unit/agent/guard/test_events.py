"""The guard's log: what others find in it, and that no crash or full disk hurts it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from polythrottle.errors import StateError
from polythrottle_agent.guard import events
from polythrottle_agent.guard.events import GuardEvent, GuardLog, Kind, pending_requests, read_events


def event(kind: Kind, device: str = "jetson:one", reason: str = "because") -> GuardEvent:
    return GuardEvent("2026-01-02T03:04:05.678+00:00", kind, "watching", device, "latency", reason)


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    log = GuardLog(tmp_path)
    told = [
        event(Kind.STARTED),
        GuardEvent(
            "now", Kind.FELL_BACK, "cooling_down", "d", "blind", "…", "abc", {"gpu_freq_mhz": 612.0},
            1.5, 0.2, {"latency_s": "infinite", "n_queries": 3},
        ),
    ]  # fmt: skip
    for one in told:
        log.told(one)
    assert list(read_events(tmp_path)) == told
    first = json.loads(log.path.read_text().splitlines()[0])
    assert first["schema"] == "polythrottle-guard/1"


def test_a_request_stands_until_it_is_answered(tmp_path: Path) -> None:
    log = GuardLog(tmp_path)
    assert pending_requests(tmp_path) == ()
    for one in (
        event(Kind.SEARCH_WANTED, "a", "first"),
        event(Kind.SEARCH_WANTED, "b"),
        event(Kind.SEARCH_WANTED, "a", "second"),
        event(Kind.SEARCH_ANSWERED, "b"),
        event(Kind.STOPPED, "a"),
    ):
        log.told(one)
    assert [(e.device, e.reason) for e in pending_requests(tmp_path)] == [("a", "second")]
    assert pending_requests(tmp_path, "b") == ()


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"schema": "another/1"}', '{"schema": "polythrottle-guard/1"}', "\x00\xff"]
)
def test_a_line_that_makes_no_sense_is_skipped(tmp_path: Path, line: str) -> None:
    log = GuardLog(tmp_path)
    log.told(event(Kind.SEARCH_WANTED))
    with log.path.open("a") as file:
        file.write(line + "\n")
    log.told(event(Kind.STARTED))
    assert [e.event for e in read_events(tmp_path)] == [Kind.SEARCH_WANTED, Kind.STARTED]


def test_a_line_that_a_crash_cut_short_takes_no_other_with_it(tmp_path: Path) -> None:
    log = GuardLog(tmp_path)
    log.told(event(Kind.STARTED))
    with log.path.open("a") as file:
        file.write('{"schema": "polythro')
    log.told(event(Kind.SEARCH_WANTED))
    assert [e.event for e in read_events(tmp_path)] == [Kind.STARTED, Kind.SEARCH_WANTED]


def test_fields_of_a_newer_release_are_ignored(tmp_path: Path) -> None:
    content = {**json.loads(event(Kind.SEARCH_WANTED).as_json()), "colour": "red"}
    (tmp_path / events.FILE_NAME).write_text(json.dumps(content) + "\n")
    assert len(pending_requests(tmp_path)) == 1


def test_it_is_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "ROTATE_BYTES", 1000)
    log = GuardLog(tmp_path)
    for n in range(20):
        log.told(event(Kind.STATE, reason=f"{n}"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["guard.jsonl", "guard.jsonl.1"]
    seen = [e.reason for e in read_events(tmp_path)]
    assert seen == [f"{n}" for n in range(20)][-len(seen) :]


def test_a_directory_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="cannot be written"):
        GuardLog(tmp_path / "file" / "below").told(event(Kind.STARTED))
