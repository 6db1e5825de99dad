"""Hostile clients of a real helper's socket: refused with a reason, nothing written, nobody disturbed."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polythrottle_agent.privileged.protocol import MAX_MESSAGE_BYTES
from tests.integration.helper.conftest import REPOSITORY, Helper

NOBODY = 65534
NOT_ALLOWED = 65533
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: only root can act as another user")

AS_USER = """
import json, os, socket, struct, sys
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM); s.settimeout(10)
try:
    s.connect(sys.argv[1])
except OSError as error:
    print(json.dumps({"errno": error.errno})); sys.exit()
def say(message):
    body = json.dumps(message).encode()
    s.sendall(struct.pack(">I", len(body)) + body)
def hear():
    head = s.recv(4, socket.MSG_WAITALL)
    return json.loads(s.recv(struct.unpack(">I", head)[0], socket.MSG_WAITALL)) if len(head) == 4 else None
"""


def frame(message: object) -> bytes:
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    return struct.pack(">I", len(body)) + body


def hear(connection: socket.socket) -> dict[str, object] | None:
    """The next answer; None when the helper closed the connection."""
    head = connection.recv(4, socket.MSG_WAITALL)
    if len(head) < 4:
        return None
    (length,) = struct.unpack(">I", head)
    answer: dict[str, object] = json.loads(connection.recv(length, socket.MSG_WAITALL))
    return answer


def is_closed(connection: socket.socket) -> bool:
    with contextlib.suppress(ConnectionResetError):
        return connection.recv(1) == b""
    return True


HELLO = frame({"verb": "hello", "protocols": [1, 1], "client": "hostile"})


@pytest.fixture
def running(helper: Helper) -> Iterator[Helper]:
    helper.options = ("--lease-s", "30", "--allow-uid", str(NOBODY))
    helper.start()
    yield helper
    # However hostile the test was: still there, still answering, nothing written.
    with helper.client() as client:
        assert client.request("status")["lease"] is None
    assert helper.board.is_as_found


def as_user(helper: Helper, uid: int, script: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", AS_USER + script, str(helper.socket), str(uid)],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def open_to_all(helper: Helper) -> None:
    """As if somebody had opened the socket to everybody: its mode is not the only guard."""
    helper.socket.chmod(0o666)
    for directory in (helper.socket.parent, *helper.socket.parent.parents):
        if str(directory).startswith("/tmp/") and directory.stat().st_uid == os.getuid():
            directory.chmod(directory.stat().st_mode | 0o111)


@needs_root
def test_a_user_who_is_not_allowed_cannot_even_connect(running: Helper) -> None:
    open_to_all(running)
    running.socket.chmod(0o660)
    assert as_user(running, NOT_ALLOWED, "print(json.dumps({}))") == {"errno": 13}


@needs_root
def test_a_user_who_is_not_allowed_is_refused_even_where_the_socket_is_open(running: Helper) -> None:
    open_to_all(running)
    answer = as_user(running, NOT_ALLOWED, "print(json.dumps(hear()))")
    assert answer["code"] == "denied"
    assert "usermod -aG polythrottle" in str(answer["reason"])


@needs_root
def test_a_user_who_is_named_may_in(running: Helper) -> None:
    open_to_all(running)
    script = f"s.sendall({HELLO!r}); print(json.dumps(hear()))"
    assert as_user(running, NOBODY, script)["protocol"] == 1


@needs_root
def test_a_flood_of_requests_is_cut_off(running: Helper) -> None:
    open_to_all(running)
    script = f"""
s.sendall({HELLO!r}); hear(); n = 0
try:
    while True:
        say({{"verb": "status"}}); answer = hear(); n += 1
        if not answer["ok"]: break
except OSError as error: answer = {{"code": "too_many", "reason": str(error)}}
print(json.dumps({{**answer, "n": n}}))
"""
    answer = as_user(running, NOBODY, script)
    assert answer["code"] == "too_many"
    assert 900 <= int(str(answer["n"])) < 20_000


@needs_root
def test_a_flood_of_connections_is_cut_off_and_root_still_gets_in(running: Helper) -> None:
    open_to_all(running)
    script = f"""
kept, answer = [], None
for n in range(500):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM); s.settimeout(10)
    s.connect(sys.argv[1]); kept.append(s)
    try:
        s.sendall({HELLO!r}); answer = hear()
    except OSError as error: answer = {{"ok": False, "code": "too_many"}}
    if answer is None or not answer["ok"]: break
print(json.dumps({{**(answer or {{"code": "too_many"}}), "n": n}}))
"""
    answer = as_user(running, NOBODY, script)
    assert answer["code"] == "too_many"
    assert int(str(answer["n"])) <= 8


def test_an_oversized_message_is_refused_before_it_is_read(running: Helper) -> None:
    for length in (0, MAX_MESSAGE_BYTES + 1, 2**31, 2**32 - 1):
        with running.raw() as connection:
            connection.sendall(struct.pack(">I", length) + b"x" * 100)
            answer = hear(connection)
            assert answer is not None
            assert answer["code"] == "malformed"
            assert is_closed(connection)


def test_a_message_that_never_ends_does_not_hold_up_others(running: Helper) -> None:
    with running.raw() as slow:
        slow.sendall(struct.pack(">I", 1000) + b'{"verb"')
        started = time.monotonic()
        with running.client() as client:
            client.request("describe")
        assert time.monotonic() - started < 2.0


def test_answers_that_nobody_fetches_end_the_connection(running: Helper) -> None:
    with running.raw() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(HELLO)
        requests = frame({"verb": "describe"}) * 20_000
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            connection.sendall(requests)


def test_what_comes_after_garbage_is_not_obeyed(running: Helper) -> None:
    with running.raw() as connection:
        lease = frame({"verb": "lease", "owner": "x"})
        apply = frame({"verb": "apply", "settings": {"gpu_freq_mhz": 408.0}, "reason": ""})
        connection.sendall(HELLO + frame(b"garbage") + lease + apply)
        answers = []
        with contextlib.suppress(ConnectionResetError):
            while (answer := hear(connection)) is not None:
                answers.append(answer)
        assert [answer["ok"] for answer in answers] == [True, False]


@pytest.mark.parametrize("verb", ["write", "exec", "Apply", "apply ", "", "../apply", "__init__", "_apply"])
def test_unknown_verbs_are_refused_with_the_known_ones(running: Helper, verb: str) -> None:
    with running.raw() as connection:
        connection.sendall(HELLO + frame({"verb": verb}))
        hear(connection)
        answer = hear(connection)
        assert answer is not None
        assert answer["code"] == "unknown_verb"
        assert "heartbeat" in str(answer["reason"])


@pytest.mark.parametrize(
    "knob",
    ["../../../etc/shadow", "/sys/power/state", "gpu_freq_mhz/../../x", "gpu_freq_mhz\0", "GPU_FREQ_MHZ", ""],
)
def test_a_knob_is_a_name_and_never_a_path(running: Helper, knob: str) -> None:
    before = sorted(str(path) for path in running.root.rglob("*"))
    with running.raw() as connection:
        connection.sendall(HELLO + frame({"verb": "lease", "owner": "x"}))
        hear(connection)
        hear(connection)
        for request in (
            {"verb": "apply", "settings": {knob: 408.0}, "reason": ""},
            {"verb": "restore", "knob": knob, "state": {"level": "408"}},
            {"verb": "save", "knob": knob},
        ):
            connection.sendall(frame(request))
            answer = hear(connection)
            assert answer is not None
            assert answer["code"] == "invalid"
    running.until(lambda: running.board.is_as_found)
    new = {str(path) for path in running.root.rglob("*")} - set(before)
    assert all(Path(path).name.startswith(("audit", "originals", "locks", "journals.lock")) for path in new)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=5), st.booleans())
def test_random_bytes_get_a_reason_or_nothing(running: Helper, chunks: list[bytes], framed: bool) -> None:
    with running.raw() as connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for chunk in chunks:
            connection.sendall(frame(chunk) if framed else chunk)
        connection.shutdown(socket.SHUT_WR)
        while (answer := hear(connection)) is not None:
            assert answer["ok"] is False
            assert answer["reason"]
    assert running.board.is_as_found


def test_the_repository_is_where_the_tests_think() -> None:
    assert (REPOSITORY / "pyproject.toml").is_file()
