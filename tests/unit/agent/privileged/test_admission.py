"""Connections to a real socket, by a server in this process: how many, and for how long without a word."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from polythrottle.clock import RealClock
from polythrottle_agent.privileged import server as server_module
from polythrottle_agent.privileged.admission import Access, Limits
from polythrottle_agent.privileged.server import Server, listen
from tests.unit.agent.privileged.conftest import Bench

Connect = Callable[[int], socket.socket]
USERS = tuple(range(2000, 2010))
HELLO = {"verb": "hello", "protocols": [1, 1], "client": "a test"}


@pytest.fixture
def connect(
    bench: Callable[..., Bench], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Connect]:
    """Connects as any user: what the kernel says of the other end is the one thing made up here."""
    uids: deque[int] = deque()  # in the order of the connections, which is that of their acceptance
    monkeypatch.setattr(server_module, "credentials", lambda _: (os.getpid(), uids.popleft(), 0))
    monkeypatch.setattr(server_module, "groups", lambda _: ())
    path = tmp_path / "s"
    opened: list[socket.socket] = []
    is_over = threading.Event()
    with listen(path, None) as listener:
        limits = Limits(connections=4, connections_per_user=2, hello_s=0.6)
        server = Server(bench().service, listener, Access(frozenset(USERS)), RealClock(), limits=limits)
        thread = threading.Thread(target=lambda: server.serve(is_over.is_set))
        thread.start()

        def connect(as_uid: int) -> socket.socket:
            uids.append(as_uid)
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(5)
            connection.connect(str(path))
            opened.append(connection)
            return connection

        yield connect
        is_over.set()
        thread.join()
    for connection in opened:
        connection.close()


def say_hello(connection: socket.socket) -> dict[str, object] | None:
    body = json.dumps(HELLO).encode()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # sent away: it hears why
        connection.sendall(struct.pack(">I", len(body)) + body)
    return hear(connection)


def hear(connection: socket.socket) -> dict[str, object] | None:
    """The next answer; None where the connection was closed."""
    try:
        head = connection.recv(4, socket.MSG_WAITALL)
        if len(head) < 4:
            return None
        answer: dict[str, object] = json.loads(
            connection.recv(struct.unpack(">I", head)[0], socket.MSG_WAITALL)
        )
    except ConnectionResetError:
        return None
    return answer


def is_let_in(connection: socket.socket) -> bool:
    answer = say_hello(connection)
    return answer is not None and answer["ok"] is True


def test_root_gets_in_whatever_others_do(connect: Connect) -> None:
    assert [is_let_in(connect(uid)) for uid in (2000, 2000, 2000, 2001, 2001, 2002)] == [
        True, True, False, True, True, False,
    ]  # fmt: skip
    assert all(is_let_in(connect(0)) for _ in range(10))


def test_roots_connections_take_nobodys_place(connect: Connect) -> None:
    assert all(is_let_in(connect(0)) for _ in range(10))
    assert is_let_in(connect(2000))


def test_who_says_nothing_is_sent_away_and_makes_room(connect: Connect) -> None:
    silent = [connect(uid) for uid in (2000, 2000, 2001, 2001)]
    assert not is_let_in(connect(2003))
    greeted_s = time.monotonic()
    answers = [hear(connection) for connection in silent]
    assert all(answer is not None and answer["code"] == "protocol" for answer in answers)
    assert "no hello within 0.6 s" in str(answers[0])
    assert time.monotonic() - greeted_s < 3.0
    assert is_let_in(connect(2003))


def test_who_said_hello_may_be_silent(connect: Connect) -> None:
    client = connect(2000)
    assert is_let_in(client)
    time.sleep(1.5)
    assert is_let_in(client)
