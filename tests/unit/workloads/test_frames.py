"""Messages put together from pieces, and what is no message."""

from __future__ import annotations

import json
import random
import socket
import struct

import pytest

from polythrottle_agent.workloads.frames import MOST_BYTES, BadFrame, Frames, FrameSocket, frame

MESSAGES = [{"q": 1, "n": 2}, {}, {"text": "µ" * 500}, {"q": [1, 2, 3], "s": 0.25}]


def test_messages_survive_being_cut_anywhere() -> None:
    stream = b"".join(frame(message) for message in MESSAGES)
    rng = random.Random(1)
    for _ in range(50):
        cuts = sorted(rng.sample(range(1, len(stream)), 12))
        frames, found = Frames(), []
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            found += list(frames.feed(stream[start:end]))
        assert found == MESSAGES


@pytest.mark.parametrize(
    "piece",
    [
        struct.pack(">I", MOST_BYTES + 1),
        struct.pack(">I", 3) + b"{x}",
        struct.pack(">I", 2) + b"[]",
        b"GET / HTTP/1.1\r\n",
    ],
)
def test_what_is_no_message_is_refused(piece: bytes) -> None:
    with pytest.raises(BadFrame):
        list(Frames().feed(piece))


def test_a_socket_gives_whole_messages_and_then_its_end() -> None:
    ours, theirs = socket.socketpair()
    reader = FrameSocket(ours)
    writer = FrameSocket(theirs)
    for message in MESSAGES:
        writer.write(message)
    assert [reader.read() for _ in MESSAGES] == MESSAGES
    theirs.send(struct.pack(">I", 100) + json.dumps({}).encode())
    theirs.close()
    assert reader.read() is None
    ours.close()


def test_a_socket_with_a_time_out_does_not_wait_for_ever() -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(0.01)
    with pytest.raises(TimeoutError):
        FrameSocket(ours).read()
    ours.close()
    theirs.close()
