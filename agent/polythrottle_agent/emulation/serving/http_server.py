"""A small HTTP/1.1 server on asyncio: keep-alive, bodies with a length, one answer at a time a connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

MAX_HEAD = 16 * 1024
MAX_BODY = 16 * 1024 * 1024
"""Bytes; an image of a few megapixels, uncompressed, still fits."""

_HEAD_ENDS = b"\r\n\r\n"


@dataclass(frozen=True)
class Request:
    """`headers` by lower-case name; `query` holds the first value of each name."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Response:
    status: HTTPStatus
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, status: HTTPStatus, content: object, **headers: str) -> Response:
        """Anything as JSON. Header names with `_` for `-`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return cls(status, json.dumps(content).encode() + b"\n", headers=named)

    @classmethod
    def refusing(cls, status: HTTPStatus, sentence: str, **headers: str) -> Response:
        return cls.of(status, {"error": sentence}, **headers)


Handler = Callable[[Request], Awaitable[Response]]
"""Cancelled when the client goes away before the answer."""


class _Refused(Exception):
    """The bytes are no request that this server takes; the connection ends with the answer."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.response = Response.refusing(status, sentence)


class HttpConnection(asyncio.Protocol):
    """One connection. Requests that come before the last one is answered wait for their turn."""

    def __init__(self, handler: Handler, open_connections: set[HttpConnection]) -> None:
        self._handler = handler
        self._open = open_connections
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None
        self._answering: asyncio.Task[None] | None = None
        self._told_to_go_on = False

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for an answer here."""
        return self._answering is None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._open.add(self)

    def connection_lost(self, _exc: Exception | None) -> None:
        self._open.discard(self)
        self._transport = None
        if self._answering is not None:
            self._answering.cancel()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._answering is None:
            self._next()
        elif len(self._received) > MAX_HEAD + MAX_BODY and self._transport is not None:
            self._transport.pause_reading()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _next(self) -> None:
        """Begin to answer the next request, if all of it is here."""
        try:
            request = self._parsed()
        except _Refused as refused:
            self._write(refused.response, keep=False)
            return
        if request is not None:
            self._answering = asyncio.get_running_loop().create_task(self._answer(request))

    async def _answer(self, request: Request) -> None:
        try:
            response = await self._handler(request)
        except Exception:
            # The client hears of it, and the loop's exception handler shows it to whoever runs the server.
            self._answering = None
            refusing = Response.refusing(HTTPStatus.INTERNAL_SERVER_ERROR, "The server has a bug.")
            self._write(refusing, keep=False)
            raise
        self._answering = None
        self._write(response, keep=request.headers.get("connection", "").lower() != "close")
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
            self._next()

    def _write(self, response: Response, *, keep: bool) -> None:
        if self._transport is None:
            return
        headers = {
            "Content-Type": response.content_type,
            "Content-Length": str(len(response.body)),
            **response.headers,
            **({} if keep else {"Connection": "close"}),
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"HTTP/1.1 {response.status.value} {response.status.phrase}\r\n{lines}\r\n"
        self._transport.write(head.encode("latin-1") + response.body)
        if not keep:
            self._transport.close()

    def _parsed(self) -> Request | None:
        """The next request; None while a part of it is missing.

        Raises:
            _Refused: it is none, or too large.
        """
        end = self._received.find(_HEAD_ENDS)
        if end > MAX_HEAD or (end < 0 and len(self._received) > MAX_HEAD):
            raise _Refused(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"The head is larger than {MAX_HEAD} bytes."
            )
        if end < 0:
            return None
        first, _, rest = bytes(self._received[:end]).decode("latin-1").partition("\r\n")
        words = first.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            raise _Refused(HTTPStatus.BAD_REQUEST, "This is no HTTP/1.1 request.")
        headers = _headers(rest)
        length = _length(headers)
        begins = end + len(_HEAD_ENDS)
        if len(self._received) < begins + length:
            self._go_on(headers)
            return None
        body = bytes(self._received[begins : begins + length])
        del self._received[: begins + length]
        self._told_to_go_on = False
        if words[2] == "HTTP/1.0":
            headers.setdefault("connection", "close")
        try:
            target = urlsplit(words[1])
        except ValueError:
            raise _Refused(HTTPStatus.BAD_REQUEST, "The path of this request cannot be read.") from None
        query = {name: values[0] for name, values in parse_qs(target.query).items()}
        return Request(words[0], target.path, query, headers, body)

    def _go_on(self, headers: Mapping[str, str]) -> None:
        """Tell a client that asks before it sends its body."""
        if headers.get("expect", "").lower() == "100-continue" and not self._told_to_go_on:
            self._told_to_go_on = True
            if self._transport is not None:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def _headers(text: str) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in filter(None, text.split("\r\n")):
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise _Refused(HTTPStatus.BAD_REQUEST, "A header of this request cannot be read.")
        headers[name.lower()] = value.strip()
    return headers


def _length(headers: Mapping[str, str]) -> int:
    if "transfer-encoding" in headers:
        raise _Refused(HTTPStatus.LENGTH_REQUIRED, "Send the body with a Content-Length, not in chunks.")
    text = headers.get("content-length", "0")
    if not (text.isascii() and text.isdigit()):
        raise _Refused(HTTPStatus.BAD_REQUEST, "Content-Length is no number.")
    length = int(text)
    if length > MAX_BODY:
        raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body is larger than {MAX_BODY} bytes.")
    return length
