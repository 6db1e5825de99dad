"""The helper's rules, one by one."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polythrottle_agent.privileged.files import Files
from polythrottle_agent.privileged.protocol import VERBS, Refusal, Window, check, decode, encode
from polythrottle_agent.reconcile import Marks
from tests.fakes.file_board import AS_FOUND, TABLES
from tests.unit.agent.privileged.conftest import BOOT, Bench

Make = Callable[..., Bench]


def test_hello_comes_first(bench: Make) -> None:
    b = bench()
    peer = b.peer(greeted=False)
    for verb, fields in (("describe", {}), ("lease", {"owner": "x"}), ("status", {})):
        answer = b.ask(peer, verb, **fields)
        assert answer["code"] == "protocol"


@pytest.mark.parametrize(
    ("helper", "client", "agreed"),
    [
        (Window(1, 1), (1, 1), 1),
        (Window(1, 2), (1, 1), 1),
        (Window(1, 2), (2, 3), 2),
        (Window(2, 3), (1, 2), 2),
        (Window(2, 3), (4, 5), None),
        (Window(4, 5), (2, 3), None),
    ],
)
def test_neighbouring_releases_agree_and_distant_ones_say_so(
    bench: Make, helper: Window, client: tuple[int, int], agreed: int | None
) -> None:
    b = bench(protocols=helper)
    answer = b.ask(b.peer(greeted=False), "hello", protocols=list(client), client="x")
    assert answer.get("protocol") == agreed
    if agreed is None:
        assert "install the same release" in answer["reason"]


def test_the_helper_says_what_can_be_set(bench: Make) -> None:
    b = bench()
    answer = b.ask(b.peer(), "describe")
    assert answer["knobs"]["mem_freq_mhz"] == [204.0, 2133.0, "unlocked"]
    assert answer["device"]["id"] == "file:board"


def test_silence_ends_a_lease_and_a_sign_of_life_does_not(bench: Make) -> None:
    b = bench()
    peer = b.holder(gpu_freq_mhz=408.0)
    for _ in range(5):
        b.clock.sleep(14.0)
        assert b.ask(peer, "heartbeat")["ok"]
        b.service.tick()
        assert not b.board.is_as_found
    b.clock.sleep(15.0)
    b.service.tick()
    assert b.board.is_as_found
    assert b.ask(peer, "heartbeat")["code"] == "no_lease"
    assert b.ask(peer, "apply", settings={"gpu_freq_mhz": 408.0}, reason="")["code"] == "no_lease"
    assert "silent for 15 s" in b.records("restore")[0].reason


def test_a_connection_that_goes_takes_its_lease_along(bench: Make) -> None:
    b = bench()
    peer = b.holder(gpu_freq_mhz=408.0)
    bystander = b.peer()
    b.service.closed(bystander)
    assert not b.board.is_as_found
    b.service.closed(peer)
    assert b.board.is_as_found
    assert b.journal.read() is None


def test_a_second_lease_has_to_wait(bench: Make) -> None:
    b = bench()
    first = b.holder()
    second = b.peer(uid=2000)
    refusal = b.ask(second, "lease", owner="another")
    assert refusal["code"] == "busy"
    assert "a run" in refusal["reason"]
    assert b.ask(first, "release")["ok"]
    assert b.ask(second, "lease", owner="another")["ok"]


def test_what_is_kept_outlives_its_client_until_its_time_is_up(bench: Make) -> None:
    b = bench()
    peer = b.holder(gpu_freq_mhz=408.0)
    assert b.ask(peer, "keep", for_s=600, reason="the SLO is met")["settings"] == {"gpu_freq_mhz": 408.0}
    b.service.closed(peer)
    b.clock.sleep(599.0)
    b.service.tick()
    assert b.board.state()["gpu_freq_mhz"] == "408"
    assert b.ask(b.peer(), "lease", owner="x")["code"] == "busy"
    b.clock.sleep(1.0)
    b.service.tick()
    assert b.board.is_as_found
    assert b.ask(b.peer(), "status")["kept"] is None
    assert b.ask(b.peer(), "lease", owner="x")["ok"]


def test_nothing_that_was_not_applied_can_be_kept(bench: Make) -> None:
    b = bench()
    peer = b.holder()
    assert b.ask(peer, "keep", for_s=None, reason="")["code"] == "invalid"
    b.ask(peer, "apply", settings={"gpu_freq_mhz": 408.0}, reason="")
    for for_s in (0, -1, 1e12):
        assert b.ask(peer, "keep", for_s=for_s, reason="")["code"] == "invalid"
    assert b.ask(b.peer(), "keep", for_s=None, reason="")["code"] == "no_lease"


def test_a_new_helper_puts_back_what_the_old_one_kept(bench: Make) -> None:
    old = bench()
    peer = old.holder(gpu_freq_mhz=408.0)
    old.ask(peer, "keep", for_s=None, reason="confirmed")
    new = bench()
    assert new.service.start() == ()
    assert new.board.is_as_found


def test_a_new_helper_after_a_reboot_touches_nothing(bench: Make) -> None:
    bench().holder(gpu_freq_mhz=408.0)
    new = bench(boot="another boot")
    new.service.start()
    assert new.board.state()["gpu_freq_mhz"] == "408"


def test_stopping_puts_back_and_a_second_time_does_nothing(bench: Make) -> None:
    b = bench()
    b.holder(gpu_freq_mhz=408.0)
    b.service.stop()
    assert b.board.is_as_found
    (b.board.directory / "gpu_freq_mhz").write_text("510")
    b.service.stop()
    assert b.board.state()["gpu_freq_mhz"] == "510", "what somebody set afterwards is not ours"


def test_what_could_not_be_put_back_is_tried_again_ever_more_rarely(bench: Make) -> None:
    b = bench()
    peer = b.holder(gpu_freq_mhz=408.0)
    b.board.fail_writes("gpu_freq_mhz", 10**6)
    answer = b.ask(peer, "release")
    assert "gpu_freq_mhz was not restored" in answer["not_restored"][0]
    tries = []
    for second in range(300):
        before = len(b.records("not_restored"))
        b.clock.sleep(1.0)
        b.service.tick()
        if len(b.records("not_restored")) > before:
            tries.append(second)
    assert 4 < len(tries) < 12
    b.board.clear_faults()
    b.clock.sleep(60.0)
    b.service.tick()
    assert b.board.is_as_found
    assert b.service.custody.owed.problems == ()


def test_only_the_owner_or_root_may_end_somebodys_lease(bench: Make) -> None:
    b = bench()
    b.holder(gpu_freq_mhz=408.0)
    assert b.ask(b.peer(uid=2000), "put_back", force=False)["code"] == "busy"
    assert b.ask(b.peer(uid=2000), "put_back", force=True)["code"] == "denied"
    assert not b.board.is_as_found
    assert b.ask(b.peer(uid=0), "put_back", force=True)["ok"]
    assert b.board.is_as_found


def test_a_journal_that_cannot_be_written_gives_no_lease(bench: Make) -> None:
    def full(step: str) -> None:
        if step == "before write originals":
            raise OSError(28, "No space left on device")

    b = bench(files=Files(full))
    peer = b.peer()
    answer = b.ask(peer, "lease", owner="x")
    assert answer["code"] == "state"
    assert "No space left" in answer["reason"]
    assert b.ask(peer, "apply", settings={"gpu_freq_mhz": 408.0}, reason="")["code"] == "no_lease"


def test_a_journal_that_is_deleted_meanwhile_loses_no_original(bench: Make) -> None:
    b = bench()
    peer = b.holder(gpu_freq_mhz=408.0)
    b.journal.path.unlink()
    b.ask(peer, "release")
    assert b.board.is_as_found


def test_a_journal_that_is_damaged_meanwhile_loses_no_original(bench: Make) -> None:
    b = bench()
    peer = b.holder(gpu_freq_mhz=408.0)
    b.journal.path.write_text("{")
    b.ask(peer, "release")
    assert b.board.is_as_found


def test_drift_of_what_is_kept_is_told_and_mended(bench: Make) -> None:
    b = bench()
    peer = b.holder(gpu_freq_mhz=408.0)
    b.marks[0] = Marks(others=("tuned",))
    b.ask(peer, "keep", for_s=None, reason="confirmed")
    (b.board.directory / "gpu_freq_mhz").write_text("612")
    b.clock.sleep(6.0)
    b.service.tick()
    assert b.board.state()["gpu_freq_mhz"] == "408"
    assert "another tool (running here: tuned)" in b.ask(b.peer(), "status")["drift"][0]
    assert b.records("drift")


def test_a_power_mode_that_changes_is_left_alone(bench: Make) -> None:
    b = bench()
    b.marks[0] = Marks(power_mode="25W")
    peer = b.holder(gpu_freq_mhz=408.0)
    b.ask(peer, "keep", for_s=None, reason="confirmed")
    b.marks[0] = Marks(power_mode="15W")
    (b.board.directory / "gpu_freq_mhz").write_text("306")
    b.clock.sleep(6.0)
    b.service.tick()
    assert b.board.state()["gpu_freq_mhz"] == "306"
    assert "nvpmodel" in b.records("yielded")[0].reason
    b.ask(b.peer(), "put_back", force=False)
    assert "run nvpmodel -m again" in b.ask(b.peer(), "status")["drift"][-1]


# Hostile clients

words = st.text(string.printable, max_size=40)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
paths = st.sampled_from(
    ["../../etc/passwd", "/sys/kernel/debug/x", "gpu_freq_mhz/../mem_freq_mhz", "gpu_freq_mhz\0", "", "."]
)
names = words | paths | st.sampled_from(list(TABLES))


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """Requests that look right, with contents that may not be."""
    verb = draw(st.sampled_from([verb for verb in VERBS if verb != "put_back"]) | words)
    fields: dict[str, Any] = {}
    for name in VERBS.get(verb, {}):
        if name == "settings":
            fields[name] = draw(st.dictionaries(names, anything, max_size=3) | anything)
        elif name in ("knob", "owner", "reason", "client"):
            fields[name] = draw(names | anything)
        else:
            fields[name] = draw(anything)
    if draw(st.booleans()) and draw(st.booleans()):
        fields[draw(words)] = draw(anything)
    return {"verb": verb, **fields}


def is_legal(request: dict[str, Any]) -> bool:
    """Whether this is an apply that every rule allows."""
    wanted = request.get("settings")
    return (
        request["verb"] == "apply"
        and isinstance(wanted, dict)
        and all(
            knob in TABLES and not isinstance(level, bool) and level in TABLES[knob]
            for knob, level in wanted.items()
        )
    )


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests())
def test_whatever_a_holder_asks_for_only_levels_of_the_table_are_written(
    bench: Make, request_: dict[str, Any]
) -> None:
    b = bench()
    peer = b.holder()
    answer = b.service.answer(peer, request_)
    json.dumps(answer)
    assert answer["ok"] or (answer["reason"] and answer["code"] != "internal")
    state = b.board.state()
    if not is_legal(request_):
        assert b.board.is_as_found
    for knob, text in state.items():
        assert text in [f"{level:g}" if isinstance(level, float) else level for level in TABLES[knob]]
    b.service.stop()
    assert b.board.is_as_found


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests())
def test_whatever_a_client_without_a_lease_asks_for_nothing_is_written(
    bench: Make, request_: dict[str, Any]
) -> None:
    b = bench()
    peer = b.peer()
    answer = b.service.answer(peer, request_)
    assert b.board.is_as_found
    assert answer["ok"] or answer["reason"]
    b.service.stop()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300) | anything.map(lambda value: json.dumps(value).encode()))
def test_whatever_arrives_is_a_message_or_refused(body: bytes) -> None:
    reason = None
    try:
        check(decode(body))
    except Refusal as refusal:
        reason = refusal.reason
    assert reason is None or reason


@pytest.mark.parametrize(
    "body",
    [
        b'{"verb": "heartbeat", "verb": "release"}',
        b'{"verb": NaN}',
        b'{"verb": "keep", "for_s": Infinity}',
        b"[" * 100_000,
        b'{"a":' * 5000,
        b'"hello"',
        b"\xff\xfe",
    ],
)
def test_json_with_two_meanings_is_refused(body: bytes) -> None:
    with pytest.raises(Refusal):
        decode(body)


@pytest.mark.parametrize(
    "message",
    [
        {"verb": "apply", "settings": {}, "reason": "", "path": "/sys"},
        {"verb": "apply", "settings": {}},
        {"verb": "apply", "settings": [], "reason": ""},
        {"verb": "lease", "owner": "x" * 401},
        {"verb": "lease", "owner": 1},
        {"verb": "put_back", "force": 1},
        {"verb": "keep", "for_s": True, "reason": ""},
        {"verb": "shell"},
        {"verb": ["apply"]},
        {},
    ],
)
def test_a_request_has_exactly_its_fields(message: dict[str, Any]) -> None:
    with pytest.raises(Refusal):
        check(message)


def test_a_client_cannot_forge_a_line_of_the_log(bench: Make) -> None:
    b = bench()
    peer = b.peer()
    b.ask(peer, "lease", owner='x\n{"at": "forged", "event": "apply"}')
    b.ask(peer, "apply", settings={"gpu_freq_mhz": 408.0}, reason="a\r\nb")
    assert [record.at for record in b.records("apply") if record.at == "forged"] == []
    assert b.records("apply")[0].reason == "a  b"


def test_messages_are_bounded() -> None:
    with pytest.raises(ValueError, match="above"):
        encode({"verb": "x" * 70_000})


def test_the_test_board_is_what_it_says(bench: Make) -> None:
    b = bench()
    assert b.board.is_as_found
    assert set(AS_FOUND) == set(TABLES)
    assert Path(b.journal.path).name.startswith(f"originals-{BOOT}-")
