"""How a service is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from polythrottle_agent.load.arrivals import Arrivals

DEFAULT_CONNECTIONS = 64
DEFAULT_TIME_OUT_S = 10.0


@dataclass(frozen=True)
class Load:
    """Open loop with `arrivals`; closed loop, one request after the other on each connection, without.

    `connections` bounds the requests in flight. A query that was not answered `time_out_s` after it was due
    is lost. `seed` is of the arrivals: each window draws its own.
    """

    arrivals: Arrivals | None
    connections: int = DEFAULT_CONNECTIONS
    time_out_s: float = DEFAULT_TIME_OUT_S
    seed: int = 0

    def __str__(self) -> str:
        if self.arrivals is None:
            return f"closed loop on {self.connections} connections"
        return str(self.arrivals)
