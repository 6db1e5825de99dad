"""Who carries queries to a service. One Protocol; HTTP, Triton, ONNX Runtime and others are its members.

A sender lives in one event loop between `open` and `close`, and one window has one such loop. It keeps no
clock and measures nothing: the driver does.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class Outcome(str, Enum):
    """How a request ended."""

    OK = "ok"
    ERROR = "error"
    TIMEOUT = "timeout"


@dataclass(frozen=True)
class Answer:
    """What a request got. `reason` says what was wrong in a few words without figures that change.

    Equal reasons are counted together, and the most frequent one is shown.
    """

    outcome: Outcome
    reason: str = ""

    @property
    def is_good(self) -> bool:
        return self.outcome is Outcome.OK

    @classmethod
    def error(cls, reason: str) -> Answer:
        return cls(Outcome.ERROR, reason)

    @classmethod
    def timeout(cls, reason: str) -> Answer:
        return cls(Outcome.TIMEOUT, reason)


GOOD = Answer(Outcome.OK)


class ServiceError(Exception):
    """A service cannot be asked at all: nobody listens, or the model is not there. The text says so."""


class Sender(Protocol):
    """Carries queries to one service."""

    @property
    def queries_per_request(self) -> int:
        """How many queries one request carries now. A knob may change it between windows, never within."""

    async def open(self, connections: int) -> None:
        """Get ready for up to `connections` requests at a time.

        Raises:
            ServiceError: the service cannot be asked at all.
        """

    async def send(self, n_queries: int) -> Answer:
        """Send one request of that many queries and wait for its answer.

        Never raises for what a service may do: refuse, fail, hang up, answer nonsense. It waits as long as
        it takes: the driver cancels what is too late, and a cancelled request leaves nothing behind that
        a later one could take for its own answer.
        """

    async def close(self) -> None:
        """Let go of everything. Never raises, also after an `open` that failed."""
