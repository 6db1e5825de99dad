"""The helper's socket: who may connect, how much they may say, and the loop around the service.

One thread: a write to the device never runs beside another, and a request is answered before the next.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import selectors
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from polythrottle.clock import Clock
from polythrottle.errors import StateError
from polythrottle_agent.privileged.admission import Access, Limits, Rates, credentials, groups
from polythrottle_agent.privileged.notify import Notifier
from polythrottle_agent.privileged.protocol import (
    HEADER,
    MAX_MESSAGE_BYTES,
    Code,
    Message,
    Refusal,
    decode,
    encode,
)
from polythrottle_agent.privileged.service import Peer, Service, refused

log = logging.getLogger(__name__)

TICK_S = 0.5
SOCKET_MODE = 0o660


@dataclass
class _Client:
    socket: socket.socket
    peer: Peer
    opened_s: float
    received: bytearray = field(default_factory=bytearray)
    to_send: bytearray = field(default_factory=bytearray)
    began_s: float | None = None
    is_closing: bool = False


class _Waker:
    """Lets a signal end a wait at once; without it the loop would notice only at its next round."""

    def __init__(self) -> None:
        self.reader, self._writer = socket.socketpair()
        self.reader.setblocking(False)
        self._writer.setblocking(False)
        self._before = -1
        self._is_set = threading.current_thread() is threading.main_thread()
        if self._is_set:
            self._before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self.reader.recv(64):
                pass

    def close(self) -> None:
        if self._is_set:
            signal.set_wakeup_fd(self._before)
        self.reader.close()
        self._writer.close()


class Server:
    """Serves `service` on a Unix socket until `stop` says so."""

    def __init__(
        self,
        service: Service,
        listener: socket.socket,
        access: Access,
        clock: Clock,
        notifier: Notifier | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._service = service
        self._listener = listener
        self._access = access
        self._clock = clock
        self._notifier = notifier if notifier is not None else Notifier({})
        self._limits = limits if limits is not None else Limits()
        self._rates = Rates(self._limits, clock)
        self._clients: dict[int, _Client] = {}
        self._last_connection = 0
        self._selector = selectors.DefaultSelector()

    def serve(self, should_stop: Callable[[], bool]) -> None:
        """Answer until `should_stop`, which is asked at least every half second."""
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        watchdog_s = self._notifier.watchdog_s
        wait_s = TICK_S if watchdog_s is None else min(TICK_S, watchdog_s / 4)
        next_tick_s = self._clock.now()
        waker = _Waker()
        self._selector.register(waker.reader, selectors.EVENT_READ)
        try:
            while not should_stop():
                for key, events in self._selector.select(wait_s):
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.fileobj is waker.reader:
                        waker.drain()
                    else:
                        self._serve_client(key.data, events)
                if self._clock.now() >= next_tick_s:
                    self._drop_slow_clients()
                    # After every waiting heartbeat was read: a helper that was busy must not call its
                    # client silent.
                    self._service.tick()
                    next_tick_s = self._clock.now() + wait_s
                self._notifier.alive()
        finally:
            for client in list(self._clients.values()):
                self._close(client)
            self._selector.close()
            waker.close()

    # Connections

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            log.error("a connection could not be taken: %s", error)
            return
        connection.setblocking(False)
        self._last_connection += 1
        try:
            pid, uid, gid = credentials(connection)
            client = _Client(connection, Peer(self._last_connection, pid, uid, gid), self._clock.now())
            reason = self._not_welcome(connection, client.peer)
        except OSError as error:
            log.warning("refused a connection whose user the kernel does not tell: %s", error)
            connection.close()
            return
        if reason is not None:
            log.warning("refused process %d of uid %d: %s", pid, uid, reason.reason)
            with contextlib.suppress(OSError):  # it is being sent away: whether it hears why is its affair
                connection.send(encode(refused(reason.code, reason.reason)))
            connection.close()
            return
        self._clients[client.peer.connection] = client
        self._service.opened(client.peer)
        self._selector.register(connection, selectors.EVENT_READ, client)

    def _not_welcome(self, connection: socket.socket, peer: Peer) -> Refusal | None:
        if not self._access.allows(peer.uid, (peer.gid, *groups(connection))):
            return Refusal(
                Code.DENIED,
                f"uid {peer.uid} may not use the helper; add the user to the group polythrottle "
                "(sudo usermod -aG polythrottle USER) and log in again",
            )
        if not self._rates.take(peer.uid, self._limits.connection_cost):
            return Refusal(Code.TOO_MANY, "too many connections in a short time")
        if peer.uid == 0:
            return None
        others = [client.peer.uid for client in self._clients.values() if client.peer.uid != 0]
        if (
            len(others) >= self._limits.connections
            or others.count(peer.uid) >= self._limits.connections_per_user
        ):
            return Refusal(Code.TOO_MANY, "too many connections at once")
        return None

    def _serve_client(self, client: _Client, events: int) -> None:
        if client.peer.connection not in self._clients:
            return  # closed earlier in this round
        try:
            if events & selectors.EVENT_WRITE:
                self._flush(client)
            if events & selectors.EVENT_READ and not client.is_closing:
                self._receive(client)
        except OSError as error:
            log.debug("connection %d ended: %s", client.peer.connection, error)
            self._close(client)

    def _receive(self, client: _Client) -> None:
        try:
            received = client.socket.recv(MAX_MESSAGE_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        if not received:
            self._close(client)
            return
        client.received += received
        while len(client.received) >= HEADER.size and not client.is_closing:
            (length,) = HEADER.unpack_from(client.received)
            if not 0 < length <= MAX_MESSAGE_BYTES:
                self._send_away(
                    client, Code.MALFORMED, f"a message has 1 to {MAX_MESSAGE_BYTES} bytes, not {length}"
                )
                return
            if len(client.received) < HEADER.size + length:
                break
            body = bytes(client.received[HEADER.size : HEADER.size + length])
            del client.received[: HEADER.size + length]
            client.began_s = None
            self._answer(client, body)
            if client.peer.connection not in self._clients:
                return
        if client.received and client.began_s is None:
            client.began_s = self._clock.now()

    def _answer(self, client: _Client, body: bytes) -> None:
        if not self._rates.take(client.peer.uid, 1.0):
            self._send_away(client, Code.TOO_MANY, "too many requests in a short time")
            return
        try:
            message = decode(body)
        except Refusal as refusal:
            self._send_away(client, refusal.code, refusal.reason)
            return
        self._send(client, self._service.answer(client.peer, message))

    def _send(self, client: _Client, answer: Message) -> None:
        try:
            client.to_send += encode(answer)
        except ValueError as error:
            client.to_send += encode(refused(Code.INTERNAL, f"the answer cannot be sent: {error}"))
        if len(client.to_send) > self._limits.unread_bytes:
            log.warning("process %d of uid %d does not read its answers", client.peer.pid, client.peer.uid)
            self._close(client)
            return
        self._flush(client)

    def _flush(self, client: _Client) -> None:
        with contextlib.suppress(BlockingIOError, InterruptedError):
            while client.to_send:
                sent = client.socket.send(client.to_send)
                del client.to_send[:sent]
        if client.is_closing and not client.to_send:
            self._close(client)
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.to_send else 0)
        self._selector.modify(client.socket, events, client)

    def _send_away(self, client: _Client, code: Code, reason: str) -> None:
        """Answer with the reason and close: what follows in the stream cannot be trusted."""
        log.warning("process %d of uid %d: %s", client.peer.pid, client.peer.uid, reason)
        client.is_closing = True
        client.began_s = self._clock.now()
        self._send(client, refused(code, reason))

    def _drop_slow_clients(self) -> None:
        now_s = self._clock.now()
        for client in list(self._clients.values()):
            is_late = now_s - client.opened_s > self._limits.hello_s and not client.is_closing
            if is_late and not self._service.has_greeted(client.peer) and not _has_unread(client):
                self._send_away(client, Code.PROTOCOL, f"no hello within {self._limits.hello_s:g} s")
            elif client.began_s is not None and now_s - client.began_s > self._limits.message_s:
                log.warning("process %d of uid %d never ends its message", client.peer.pid, client.peer.uid)
                self._close(client)

    def _close(self, client: _Client) -> None:
        if self._clients.pop(client.peer.connection, None) is None:
            return
        self._selector.unregister(client.socket)
        client.socket.close()
        self._service.closed(client.peer)


def _has_unread(client: _Client) -> bool:
    """Whether it has said something that a busy helper did not come to yet."""
    try:
        return bool(client.socket.recv(1, socket.MSG_PEEK))
    except OSError:
        return False


def listen(path: Path, gid: int | None) -> socket.socket:
    """A socket at `path` that only root and the group may open.

    Raises:
        StateError: another helper listens there, or the socket cannot be made.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _remove_stale(path)
        # Nobody may connect between bind and chmod.
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        if gid is not None:
            os.chown(path, -1, gid)
        os.chmod(path, SOCKET_MODE)
        listener.listen(16)
    except OSError as error:
        listener.close()
        raise StateError(f"The socket {path} cannot be made ({error.strerror or error}).") from error
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_stale(path: Path) -> None:
    """Only a socket that nobody listens on is removed."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
    raise StateError(f"Another polythrottle-helper listens on {path} already; stop it first.")
