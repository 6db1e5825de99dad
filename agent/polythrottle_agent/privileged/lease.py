"""The one lease on a device: who may write now, and until when without a sign of life."""

from __future__ import annotations

from dataclasses import dataclass

from polythrottle.clock import Clock
from polythrottle_agent.privileged.journal import Owner

DEFAULT_TTL_S = 15.0
"""How long a holder may be silent."""
HEARTBEATS_PER_TTL = 3


@dataclass(frozen=True)
class Lease:
    """`connection` is whose it is; `deadline_s` on the helper's clock is when silence ends it."""

    connection: int
    owner: Owner
    deadline_s: float


class LeaseBook:
    """Grants at most one lease."""

    def __init__(self, clock: Clock, ttl_s: float = DEFAULT_TTL_S) -> None:
        self.ttl_s = ttl_s
        self._clock = clock
        self.current: Lease | None = None

    def grant(self, connection: int, owner: Owner) -> Lease:
        """The caller has made sure that nobody else holds one."""
        if self.current is not None and self.current.connection != connection:
            raise RuntimeError("a lease is already held")
        self.current = Lease(connection, owner, self._clock.now() + self.ttl_s)
        return self.current

    def held_by(self, connection: int) -> bool:
        return self.current is not None and self.current.connection == connection

    def renew(self, connection: int) -> None:
        """A sign of life from the holder."""
        if self.current is not None and self.current.connection == connection:
            self.grant(connection, self.current.owner)

    def silent(self) -> bool:
        """Whether the holder has been silent for too long."""
        return self.current is not None and self._clock.now() >= self.current.deadline_s

    def end(self) -> None:
        self.current = None
