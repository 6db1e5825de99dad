"""HTTP/1.1 connections kept alive, on asyncio's transports and the httptools parser.

httpx takes more than a millisecond of a core for each request, this some 30 µs (`make bench-generator`). It
knows what load needs: one request at a time on a connection, whole bodies.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

import httptools

from polythrottle.errors import InvalidInputError

MAX_BODY = 64 * 1024 * 1024


class ConnectionTrouble(Exception):
    """No usable answer on this connection; the text says why, without figures that change."""


@dataclass(frozen=True)
class Response:
    """Status and whole body of one answer."""

    status: int
    body: bytes


@dataclass(frozen=True)
class Endpoint:
    """Where an `http:` or `https:` URL points to."""

    url: str
    host: str
    port: int
    tls: bool
    target: str
    """Path and query, as they stand in the request."""

    @classmethod
    def parse(cls, url: str) -> Endpoint:
        """
        Raises:
            InvalidInputError: not a URL of HTTP; a user name in it, which would stand in every report.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise InvalidInputError(f"URL {url!r} cannot be read ({error}).") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidInputError(f"URL {url!r} cannot be used; write for example http://localhost:8000/.")
        if parts.username is not None:
            raise InvalidInputError(
                f"The URL for {parts.hostname} holds a user name; give it as a header instead: "
                "--header 'Authorization: …'."
            )
        if any(ord(character) <= 32 or ord(character) > 126 for character in url):
            raise InvalidInputError(f"URL {url!r} holds characters that must be escaped with %.")
        tls = parts.scheme == "https"
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(url, parts.hostname, port or (443 if tls else 80), tls, target)

    @property
    def authority(self) -> str:
        """Host and port for the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


class HttpConnection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, *, keep_bodies: bool) -> None:
        """
        Args:
            keep_bodies: False drops what bodies hold; they are still read to their end.
        """
        self._loop = asyncio.get_running_loop()
        self._keep_bodies = keep_bodies
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Response] | None = None
        self._new_parser()
        self.is_usable = False

    def _new_parser(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._length = 0
        self._has_begun = self._has_head = self._knows_its_end = False

    async def ask(self, request: bytes) -> Response:
        """Send a whole request, wait for the whole answer.

        Raises:
            ConnectionTrouble: it was closed, or the answer is not HTTP. The connection is of no more use.
        """
        if not self.is_usable or self._transport is None or self._answer is not None:
            raise ConnectionTrouble("the connection is closed")
        self._answer = self._loop.create_future()
        self._transport.write(request)
        try:
            return await self._answer
        except asyncio.CancelledError:
            self.abort()  # an answer that comes late must not be taken for the next one's
            raise
        finally:
            self._answer = None

    def abort(self) -> None:
        """Close at once. Idempotent."""
        self.is_usable = False
        if self._transport is not None:
            self._transport.abort()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.is_usable = True

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():
            self.abort()  # bytes nobody asked for
            return
        self._has_begun = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._fail(str(cause) if isinstance(cause, ConnectionTrouble) else "the answer is not HTTP")

    def connection_lost(self, error: Exception | None) -> None:
        self.is_usable = False
        if self._has_head and not self._knows_its_end and error is None:
            self._complete()  # such a body ends where the connection does
        elif self._has_begun:
            self._fail("the connection was closed in the middle of an answer")
        else:
            self._fail("the connection was closed before an answer")

    # The parser's side

    def on_header(self, name: bytes, value: bytes) -> None:
        lowered = name.lower()
        if lowered == b"content-length" or (
            lowered == b"transfer-encoding" and value.lower().endswith(b"chunked")
        ):
            self._knows_its_end = True

    def on_headers_complete(self) -> None:
        self._has_head = True

    def on_body(self, body: bytes) -> None:
        self._length += len(body)
        if self._length > MAX_BODY:
            raise ConnectionTrouble(f"the answer is longer than {MAX_BODY // 1024**2} MiB")
        if self._keep_bodies:
            self._body.append(body)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() < 200:  # a word before the answer proper
            self._has_head = self._knows_its_end = False
            return
        if not self._parser.should_keep_alive():
            self.is_usable = False
        self._complete()

    def _complete(self) -> None:
        response = Response(self._parser.get_status_code(), b"".join(self._body))
        answer = self._answer
        self._new_parser()
        if answer is not None and not answer.done():
            answer.set_result(response)
        if not self.is_usable and self._transport is not None:
            self._transport.close()

    def _fail(self, reason: str) -> None:
        answer = self._answer
        if answer is not None and not answer.done():
            answer.set_exception(ConnectionTrouble(reason))
        self.abort()


class HttpPool:
    """Connections to one endpoint; the one that was used last is used next."""

    def __init__(self, endpoint: Endpoint, *, keep_bodies: bool, tls: ssl.SSLContext | None = None) -> None:
        """
        Args:
            tls: for `https`; None for the system's certificates.
        """
        self._endpoint = endpoint
        self._keep_bodies = keep_bodies
        self._tls = (tls or ssl.create_default_context()) if endpoint.tls else None
        self._idle: list[HttpConnection] = []
        self._all: set[HttpConnection] = set()

    async def open(self, connections: int) -> None:
        """Connect that many times.

        Raises:
            ConnectionTrouble: the first one failed. Later ones are tried again when they are needed.
        """
        self._idle.append(await self._connect())
        more = await asyncio.gather(
            *(self._connect() for _ in range(connections - 1)), return_exceptions=True
        )
        self._idle += [one for one in more if isinstance(one, HttpConnection)]
        other = next(
            (e for e in more if isinstance(e, BaseException) and not isinstance(e, ConnectionTrouble)), None
        )
        if other is not None:
            raise other

    async def ask(self, request: bytes) -> Response:
        """
        Raises:
            ConnectionTrouble: no connection, or no usable answer.
        """
        connection = self._free() or await self._connect()
        try:
            return await connection.ask(request)
        finally:
            if connection.is_usable:
                self._idle.append(connection)
            else:
                self._all.discard(connection)

    def close(self) -> None:
        for connection in self._all:
            connection.abort()
        self._idle.clear()
        self._all.clear()

    def _free(self) -> HttpConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable:
                return connection
            self._all.discard(connection)
        return None

    async def _connect(self) -> HttpConnection:
        endpoint = self._endpoint
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: HttpConnection(keep_bodies=self._keep_bodies),
                endpoint.host,
                endpoint.port,
                ssl=self._tls,
            )
        except ssl.SSLError as error:
            reason = getattr(error, "verify_message", "") or error.reason or "handshake failed"
            raise ConnectionTrouble(f"TLS failed ({reason})") from error
        except OSError as error:
            raise ConnectionTrouble(_why_not(error)) from error
        self._all.add(connection)
        return connection


def _why_not(error: OSError) -> str:
    if error.errno is not None:
        numbers, words = {error.errno}, error.strerror
    else:  # one for each address of a name, all in one text
        numbers = {int(number) for number in re.findall(r"\[Errno (\d+)\]", str(error))}
        words = os.strerror(min(numbers)) if len(numbers) == 1 else ""
    if numbers == {errno.ECONNREFUSED}:
        return "the connection was refused"
    return f"it cannot be connected to ({words})" if words else "it cannot be connected to"
