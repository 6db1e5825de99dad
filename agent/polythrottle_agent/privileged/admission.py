"""Who may connect to the helper, and how much each may ask for."""

from __future__ import annotations

import errno
import os
import pwd
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from polythrottle.clock import Clock
from polythrottle_agent.privileged.protocol import MAX_MESSAGE_BYTES

_PEER_CREDENTIALS = struct.Struct("3i")
_SO_PEERGROUPS = 59  # linux/asm-generic/socket.h; Python does not name it
_GROUPS_BYTES = 1024
"""The most that Python asks the kernel for: 256 groups."""


@dataclass(frozen=True)
class Access:
    """Who may talk to the helper. Root always may. The socket's mode says so too; this does not trust it."""

    uids: frozenset[int] = frozenset()
    gids: frozenset[int] = frozenset()

    def allows(self, uid: int, groups: Iterable[int]) -> bool:
        return uid == 0 or uid in self.uids or not self.gids.isdisjoint(groups)


@dataclass(frozen=True)
class Limits:
    """How much a client may ask for.

    A user has `burst` requests at once and `rate_hz` more each second; a connection costs
    `connection_cost` of them.
    """

    rate_hz: float = 500.0
    burst: float = 1000.0
    connection_cost: float = 10.0
    connections: int = 32
    """Of all users together but root, whose `polythrottle restore` must get in whatever they do."""
    connections_per_user: int = 8
    hello_s: float = 10.0
    """A client must have said hello by then."""
    message_s: float = 10.0
    """A message that began must have ended by then."""
    unread_bytes: int = 4 * MAX_MESSAGE_BYTES
    """Answers that a client does not fetch."""


@dataclass
class _Bucket:
    tokens: float
    filled_s: float


class Rates:
    """A token bucket for each user: a flood by one does not slow another down. Root needs no leave."""

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._buckets: dict[int, _Bucket] = {}

    def take(self, uid: int, cost: float) -> bool:
        if uid == 0:
            return True
        now_s = self._clock.now()
        bucket = self._buckets.setdefault(uid, _Bucket(self._limits.burst, now_s))
        bucket.tokens = min(
            self._limits.burst, bucket.tokens + (now_s - bucket.filled_s) * self._limits.rate_hz
        )
        bucket.filled_s = now_s
        if bucket.tokens < cost:
            return False
        bucket.tokens -= cost
        return True


def credentials(connection: socket.socket) -> tuple[int, int, int]:
    """pid, uid and gid of the other end, as they were when it connected."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    pid, uid, gid = _PEER_CREDENTIALS.unpack(raw)
    return pid, uid, gid


def groups(connection: socket.socket) -> tuple[int, ...]:
    """Supplementary groups of the other end; by the user database where the kernel does not tell them.

    It does not before 4.13, nor where they are more than fit.
    """
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES)
    except OSError as error:
        if error.errno not in (errno.ENOPROTOOPT, errno.ERANGE):
            raise
        _, uid, gid = credentials(connection)
        try:
            return tuple(os.getgrouplist(pwd.getpwuid(uid).pw_name, gid))
        except KeyError:  # a uid without a name is in no group of the database
            return ()
    return struct.unpack(f"{len(raw) // 4}I", raw)
