"""What is not done yet at the end of a lease: restores that fail, and a journal that cannot be told."""

from __future__ import annotations

from collections.abc import Callable

from polythrottle_agent.privileged.files import Files
from tests.unit.agent.privileged.conftest import Bench

Make = Callable[..., Bench]


def broken(*steps: str) -> tuple[Files, list[bool]]:
    """Files on a disk that fails at these steps while the switch is on."""
    is_broken = [False]

    def on_step(step: str) -> None:
        if is_broken[0] and step in steps:
            raise OSError(30, "Read-only file system")

    return Files(on_step), is_broken


def test_what_is_back_is_never_written_again_though_the_journal_could_not_be_told(bench: Make) -> None:
    files, is_broken = broken("before remove originals")
    b = bench(files=files)
    peer = b.holder(gpu_freq_mhz=408.0)
    is_broken[0] = True
    answer = b.ask(peer, "release")
    assert b.board.is_as_found
    assert "still holds originals that are back already" in answer["not_restored"][0]
    assert b.ask(peer, "status")["not_restored"] == answer["not_restored"]
    # What an operator sets from now on is theirs.
    (b.board.directory / "gpu_freq_mhz").write_text("510")
    for _ in range(100):
        b.clock.sleep(1.0)
        b.service.tick()
    refused = b.ask(peer, "lease", owner="a run")
    assert refused["code"] == "state"
    assert b.board.state()["gpu_freq_mhz"] == "510"
    is_broken[0] = False
    b.clock.sleep(60.0)
    b.service.tick()
    assert b.journal.read() is None
    assert b.ask(peer, "status")["not_restored"] == []
    assert bench().service.start() == ()
    assert b.board.state()["gpu_freq_mhz"] == "510"


def test_a_lease_forgets_first_what_the_journal_could_not_be_told(bench: Make) -> None:
    files, is_broken = broken("before remove originals")
    b = bench(files=files)
    peer = b.holder(gpu_freq_mhz=408.0)
    is_broken[0] = True
    b.ask(peer, "release")
    is_broken[0] = False
    (b.board.directory / "gpu_freq_mhz").write_text("510")
    assert b.ask(peer, "lease", owner="a run")["originals"]["gpu_freq_mhz"] == {"level": "510"}
    b.ask(peer, "apply", settings={"gpu_freq_mhz": 306.0}, reason="")
    b.ask(peer, "release")
    assert b.board.state()["gpu_freq_mhz"] == "510"


def test_only_what_failed_is_tried_again_while_the_journal_cannot_be_told(bench: Make) -> None:
    files, is_broken = broken("before rename originals", "before remove originals")
    b = bench(files=files)
    peer = b.holder(gpu_freq_mhz=408.0, mem_freq_mhz=204.0)
    b.board.fail_writes("gpu_freq_mhz", 10**6)
    is_broken[0] = True
    assert len(b.ask(peer, "release")["not_restored"]) == 2
    (b.board.directory / "mem_freq_mhz").write_text("2133")
    b.board.clear_faults()
    is_broken[0] = False
    b.clock.sleep(60.0)
    b.service.tick()
    assert b.board.state()["gpu_freq_mhz"] == "612"
    assert b.board.state()["mem_freq_mhz"] == "2133", "it was back, and somebody set it since"
    assert b.journal.read() is None


def test_a_journal_that_nobody_can_read_is_not_thrown_away(bench: Make) -> None:
    old = bench()
    old.holder(gpu_freq_mhz=408.0)
    content = old.journal.path.read_text()
    old.journal.path.write_text("{")
    new = bench()
    assert "damaged" in new.service.start()[0]
    assert new.journal.path.exists()
    # As where a disk answers again.
    new.journal.path.write_text(content)
    new.clock.sleep(60.0)
    new.service.tick()
    assert new.board.is_as_found
    assert new.journal.read() is None


def test_what_is_damaged_is_removed_once_all_of_it_is_back(bench: Make) -> None:
    b = bench()
    peer = b.holder(gpu_freq_mhz=408.0)
    b.journal.path.write_text("{")
    assert b.ask(peer, "release")["not_restored"] == []
    assert b.board.is_as_found
    assert b.ask(peer, "lease", owner="the next")["ok"]


def test_restore_works_with_a_damaged_journal_too(bench: Make) -> None:
    b = bench()
    peer = b.holder(gpu_freq_mhz=408.0)
    b.ask(peer, "keep", for_s=None, reason="confirmed")
    b.journal.path.write_text("{")
    answer = b.ask(b.peer(), "put_back", force=False)
    assert "gpu_freq_mhz" in answer["knobs"]
    assert b.board.is_as_found
