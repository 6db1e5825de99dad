"""Messages over a stream socket: the length in four bytes, then JSON. Never pickle."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from typing import Any

Message = dict[str, Any]

_LENGTH = struct.Struct(">I")
MOST_BYTES = 1 << 20
"""Larger than any message of ours: whoever announces more speaks another language."""


class BadFrame(Exception):
    """What came is no message."""


def frame(message: Message) -> bytes:
    """The message as bytes for the wire."""
    content = json.dumps(message).encode()
    return _LENGTH.pack(len(content)) + content


class Frames:
    """Puts messages together from whatever pieces a stream delivers."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, piece: bytes) -> Iterator[Message]:
        """The messages that are whole now.

        Raises:
            BadFrame: what came is no message.
        """
        self._bytes += piece
        while len(self._bytes) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._bytes)
            if length > MOST_BYTES:
                raise BadFrame(f"a message of {length} bytes was announced")
            end = _LENGTH.size + length
            if len(self._bytes) < end:
                return
            content = bytes(self._bytes[_LENGTH.size : end])
            del self._bytes[:end]
            try:
                message = json.loads(content)
            except ValueError as error:
                raise BadFrame("a message is not JSON") from error
            if not isinstance(message, dict):
                raise BadFrame("a message is not an object")
            yield message


class FrameSocket:
    """Whole messages over a blocking socket; read by one thread at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._frames = Frames()
        self._ready: list[Message] = []

    def write(self, message: Message) -> None:
        """
        Raises:
            OSError: nobody is there any more.
        """
        self.sock.sendall(frame(message))

    def read(self) -> Message | None:
        """The next message; None when the other end has gone.

        Raises:
            TimeoutError: the socket has a time-out and it has passed.
            BadFrame: what came is no message.
        """
        while not self._ready:
            try:
                piece = self.sock.recv(1 << 16)
            except ConnectionError:  # an end that was killed and one that closed are the same
                return None
            if not piece:
                return None
            self._ready.extend(self._frames.feed(piece))
        return self._ready.pop(0)
