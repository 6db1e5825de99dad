"""What the agent and the root helper say to each other: length-prefixed JSON over a Unix socket.

A message is four bytes of length, big-endian, and that many bytes of UTF-8 JSON: one object. The client
asks, the helper answers each request in order. `hello` comes first and settles the protocol's number.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

DEFAULT_SOCKET = Path("/run/polythrottle/helper.sock")
SOCKET_VARIABLE = "POLYTHROTTLE_HELPER_SOCKET"

MAX_MESSAGE_BYTES = 64 * 1024
"""A whole table of levels fits ten times over."""
HEADER = struct.Struct(">I")

Message = dict[str, Any]


@dataclass(frozen=True)
class Window:
    """The protocol numbers one side understands, both ends included."""

    oldest: int
    newest: int

    def common(self, other: Window) -> int | None:
        """The newest number that both understand."""
        newest = min(self.newest, other.newest)
        return newest if newest >= max(self.oldest, other.oldest) else None

    def __str__(self) -> str:
        return f"{self.oldest} to {self.newest}" if self.oldest != self.newest else str(self.newest)


PROTOCOLS = Window(1, 1)
"""A release that changes the protocol raises `newest` and keeps understanding the one before."""


class Code(str, Enum):
    """Why a request was refused."""

    MALFORMED = "malformed"
    UNKNOWN_VERB = "unknown_verb"
    INVALID = "invalid"
    """A value that is not in the device's tables, or above a cap."""
    DENIED = "denied"
    """Not for this user."""
    BUSY = "busy"
    """Somebody else holds the device."""
    NO_LEASE = "no_lease"
    CONTROL = "control"
    """The device refused."""
    STATE = "state"
    """Journal or audit log cannot be used, so nothing may be written."""
    TOO_MANY = "too_many"
    PROTOCOL = "protocol"
    INTERNAL = "internal"


class Refusal(Exception):
    """A request that is answered with a reason; nothing was done."""

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


VERBS: Mapping[str, Mapping[str, tuple[type, ...]]] = {
    "hello": {"protocols": (list,), "client": (str,)},
    "describe": {},
    "status": {},
    "lease": {"owner": (str,)},
    "heartbeat": {},
    "apply": {"settings": (dict,), "reason": (str,)},
    "accepted": {"knob": (str,)},
    "observed": {"knob": (str,)},
    "save": {"knob": (str,)},
    "restore": {"knob": (str,), "state": (dict,)},
    "keep": {"for_s": (int, float, type(None)), "reason": (str,)},
    "release": {},
    "counters": {},
    "put_back": {"force": (bool,)},
}
"""The closed list of verbs, each with all of its fields and their types. Every field must be there."""

LONGEST_WORD = 400


def encode(message: Mapping[str, Any]) -> bytes:
    body = json.dumps(message, separators=(",", ":"), allow_nan=False).encode()
    if len(body) > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of {len(body)} bytes is above {MAX_MESSAGE_BYTES}")
    return HEADER.pack(len(body)) + body


def decode(body: bytes) -> Message:
    """
    Raises:
        Refusal: not one JSON object.
    """
    try:
        message = json.loads(body.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_no_repeats)
    except (ValueError, RecursionError) as error:
        raise Refusal(Code.MALFORMED, f"not JSON: {error}") from error
    if not isinstance(message, dict):
        raise Refusal(Code.MALFORMED, "a message must be a JSON object")
    return message


def check(message: Message) -> str:
    """The verb of a request whose fields are exactly the ones it takes.

    Raises:
        Refusal: unknown verb; a field is missing, unknown, of the wrong type or far too long.
    """
    verb = message.get("verb")
    if not isinstance(verb, str) or verb not in VERBS:
        raise Refusal(Code.UNKNOWN_VERB, f"unknown verb {_short(verb)}; known: {', '.join(VERBS)}")
    fields = VERBS[verb]
    for name in message:
        if name != "verb" and name not in fields:
            raise Refusal(Code.MALFORMED, f"{verb} takes no field {_short(name)}")
    for name, types in fields.items():
        if name not in message:
            raise Refusal(Code.MALFORMED, f"{verb} needs the field {name}")
        value = message[name]
        # bool is an int to Python, and never one to us.
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise Refusal(Code.MALFORMED, f"{verb}: {name} is of the wrong type")
        if isinstance(value, str) and len(value) > LONGEST_WORD:
            raise Refusal(Code.MALFORMED, f"{verb}: {name} is longer than {LONGEST_WORD} characters")
        if isinstance(value, float) and not math.isfinite(value):
            raise Refusal(Code.MALFORMED, f"{verb}: {name} is not a finite number")
    return verb


def _short(value: object) -> str:
    return repr(value)[:60]


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _no_repeats(pairs: list[tuple[str, Any]]) -> Message:
    """Two readers of a repeated field could see two different requests."""
    message = dict(pairs)
    if len(message) != len(pairs):
        raise ValueError("a field is given twice")
    return message
