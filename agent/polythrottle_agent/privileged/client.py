"""The agent's side of the helper: a client, controls that write through it, and the lease as safekeeping."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polythrottle import __version__
from polythrottle.configuration import Level, format_level
from polythrottle.errors import DeviceBusyError, InvalidInputError, PolythrottleError, StateError
from polythrottle.measurement import Provenance
from polythrottle.study import DeviceIdentity
from polythrottle_agent.ports import ControlError, Originals
from polythrottle_agent.privileged.protocol import (
    DEFAULT_SOCKET,
    HEADER,
    MAX_MESSAGE_BYTES,
    PROTOCOLS,
    SOCKET_VARIABLE,
    Code,
    Message,
    Window,
    encode,
)

log = logging.getLogger(__name__)

ANSWER_S = 90.0
"""A restore of every control over a driver that hangs may take this long."""


class HelperError(PolythrottleError):
    """The helper is not there, refused, or went away."""


class HelperRefusal(HelperError):
    """The helper answered with a reason. `code` says of what kind."""

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def socket_path() -> Path:
    """$POLYTHROTTLE_HELPER_SOCKET, or where the service listens."""
    return Path(os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET)


class HelperClient:
    """One connection to the helper. May be used from several threads; requests go one after the other.

    Raises:
        HelperError: nobody listens there, this user may not connect, or the releases are too far apart.
    """

    def __init__(
        self, path: Path | None = None, *, answer_s: float = ANSWER_S, protocols: Window = PROTOCOLS
    ) -> None:
        self.path = path if path is not None else socket_path()
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(answer_s)
        try:
            self._socket.connect(str(self.path))
            hello = self.request(
                "hello",
                protocols=[protocols.oldest, protocols.newest],
                client=f"polythrottle {__version__}",
            )
        except OSError as error:
            self._socket.close()
            raise HelperError(_cannot_connect(self.path, error)) from error
        except BaseException:
            self._socket.close()
            raise
        self.protocol = int(hello["protocol"])
        self.helper_version = str(hello["helper"])

    def close(self) -> None:
        """Ends a lease that this connection holds, too."""
        self._socket.close()

    def __enter__(self) -> HelperClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def request(self, verb: str, **fields: Any) -> Message:
        """Ask, and wait for the answer.

        Raises:
            HelperRefusal: the helper says no.
            HelperError: the connection broke, or the answer makes no sense.
        """
        try:
            with self._lock:
                self._socket.sendall(encode({"verb": verb, **fields}))
                answer = self._receive()
        except TimeoutError as error:
            # A late answer would be taken for that of the next request.
            self._socket.close()
            raise HelperError(f"The helper did not answer {verb} in time.") from error
        except OSError as error:
            if verb == "hello" and isinstance(error, (BrokenPipeError, ConnectionResetError)):
                answer = self._last_words(error)
            else:
                raise HelperError(f"The connection to the helper broke at {verb} ({error}).") from error
        if answer.get("ok") is True:
            return answer
        try:
            code = Code(answer.get("code"))
        except ValueError:  # a newer helper's code; its reason still says what is wrong
            code = Code.INTERNAL
        raise HelperRefusal(code, str(answer.get("reason", "no reason given")))

    def _last_words(self, error: OSError) -> Message:
        """A helper that sends somebody away says why before it closes; the request came too late for it."""
        try:
            return self._receive()
        except OSError:
            raise error from None

    def _receive(self) -> Message:
        (length,) = HEADER.unpack(self._read(HEADER.size))
        if length > MAX_MESSAGE_BYTES:
            raise HelperError(f"The helper sent {length} bytes at once; it is not polythrottle's.")
        try:
            answer = json.loads(self._read(length))
        except ValueError as error:
            raise HelperError(f"The helper's answer is not JSON: {error}.") from error
        if not isinstance(answer, dict):
            raise HelperError("The helper's answer is not an object.")
        return answer

    def _read(self, count: int) -> bytes:
        content = b""
        while len(content) < count:
            more = self._socket.recv(count - len(content))
            if not more:
                raise ConnectionResetError("it went away")
            content += more
        return content


def _cannot_connect(path: Path, error: OSError) -> str:
    if isinstance(error, PermissionError):
        return (
            f"This user may not open {path}; add them to the group polythrottle "
            "(sudo usermod -aG polythrottle $USER) and log in again."
        )
    if isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
        return (
            f"No polythrottle-helper listens on {path}; install it with sudo polythrottle install-service, "
            "or see systemctl status polythrottle-helper."
        )
    return f"The helper at {path} cannot be reached ({error})."


def as_control_error(error: HelperError) -> ControlError:
    return ControlError(str(error))


class HelperControl:
    """A control whose writes the helper makes, under the client's lease."""

    def __init__(self, client: HelperClient, knob: str, levels: tuple[Level, ...]) -> None:
        self._client = client
        self._knob = knob
        self._levels = levels
        self._restored: tuple[Mapping[str, str], Mapping[str, str]] | None = None

    @property
    def knob(self) -> str:
        return self._knob

    @property
    def levels(self) -> tuple[Level, ...]:
        return self._levels

    def save(self) -> Mapping[str, str]:
        return {str(k): str(v) for k, v in self._ask("save", knob=self._knob)["state"].items()}

    def apply(self, level: Level) -> None:
        if level not in self._levels:
            raise InvalidInputError(f"{self._knob} has no level {format_level(level)}.")
        self._ask("apply", settings={self._knob: level}, reason="trial")

    def accepted(self) -> Level:
        return _level(self._ask("accepted", knob=self._knob)["level"])

    def observed(self) -> Level:
        return _level(self._ask("observed", knob=self._knob)["level"])

    def restore(self, saved: Mapping[str, str]) -> None:
        answer = self._ask("restore", knob=self._knob, state=dict(saved))
        # An older helper does not tell.
        state = answer.get("state", saved)
        self._restored = dict(saved), {str(k): str(v) for k, v in state.items()}

    def restored_as(self, saved: Mapping[str, str]) -> Mapping[str, str]:
        """What the last `restore` of this state put back: less, where a new power mode allows no more."""
        asked, done = self._restored if self._restored is not None else (saved, saved)
        return done if dict(asked) == dict(saved) else saved

    def _ask(self, verb: str, **fields: Any) -> Message:
        """
        Raises:
            InvalidInputError: the helper knows no such level any more.
            ControlError: everything else that kept it from being done.
        """
        try:
            return self._client.request(verb, **fields)
        except HelperRefusal as refusal:
            if refusal.code is Code.INVALID:
                raise InvalidInputError(str(refusal)) from refusal
            raise as_control_error(refusal) from refusal
        except HelperError as error:
            raise as_control_error(error) from error


def _level(value: object) -> Level:
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    raise ControlError(f"the helper answered {value!r} where a level was expected")


class Leased:
    """Safekeeping by the helper: it keeps the originals while this client holds its lease.

    A thread sends heartbeats. When this process ends, however it ends, the helper puts the device back.
    """

    def __init__(self, client: HelperClient, owner: str) -> None:
        self._client = client
        self._owner = owner
        self._ended = threading.Event()
        self._beats: threading.Thread | None = None
        self.drift: tuple[str, ...] = ()

    def pending(self) -> Originals:
        """The helper sees to what earlier runs left behind."""
        return {}

    def take(self, originals: Originals) -> Originals:
        """
        Raises:
            DeviceBusyError: somebody else holds the device.
            StateError: the helper cannot make the originals safe.
            HelperError: it is gone, or refuses for another reason.
        """
        try:
            granted = self._client.request("lease", owner=self._owner[:200])
        except HelperRefusal as refusal:
            text = f"The helper gives no lease: {refusal}."
            kind = {Code.BUSY: DeviceBusyError, Code.STATE: StateError}.get(refusal.code, HelperError)
            raise kind(text) from refusal
        self._ended.clear()
        self._beats = threading.Thread(
            target=self._beat, args=(float(granted["heartbeat_s"]),), name="lease", daemon=True
        )
        self._beats.start()
        return {**originals, **{str(k): dict(v) for k, v in granted["originals"].items()}}

    def writing(self, event: str, knob: str, old: Level | None, new: Level, reason: str) -> None:
        """The helper logs what it writes."""

    def release(self, back: Sequence[str]) -> None:  # noqa: ARG002 - the helper judges by itself
        """Give the lease back; the helper puts back what is not yet."""
        self._stop_beating()
        try:
            answer = self._client.request("release")
        except HelperRefusal as refusal:
            log.error("the lease had ended before it was given back: %s", refusal)
        except HelperError as error:
            log.error("%s It puts the device back by itself when it sees that we are gone.", error)
        else:
            for problem in answer["not_restored"]:
                log.error("%s", problem)

    def keep(self, for_s: float | None, reason: str) -> bool:
        """
        Raises:
            HelperError: the helper does not keep them.
        """
        self._client.request("keep", for_s=for_s, reason=reason[:400])
        self._stop_beating()
        return True

    def _stop_beating(self) -> None:
        self._ended.set()
        if self._beats is not None and self._beats is not threading.current_thread():
            self._beats.join()

    def _beat(self, interval_s: float) -> None:
        while not self._ended.wait(interval_s):
            try:
                answer = self._client.request("heartbeat")
            except HelperError as error:
                # Every further write is refused by the helper, so the run learns of it at once.
                log.error("the lease was lost: %s", error)
                return
            for text in answer["drift"]:
                if text not in self.drift:
                    log.warning("drift: %s", text)
            self.drift = tuple(answer["drift"])


def helper_device(client: HelperClient) -> tuple[DeviceIdentity, dict[str, HelperControl], tuple[str, ...]]:
    """What the helper can write: the device, its controls, and notes on what bounds them."""
    answer = client.request("describe")
    device = answer["device"]
    identity = DeviceIdentity(
        device["id"],
        device["board"],
        device["label"],
        Provenance(device["provenance"]),
        device["tables_digest"],
    )
    controls = {
        str(knob): HelperControl(client, str(knob), tuple(_level(level) for level in levels))
        for knob, levels in answer["knobs"].items()
    }
    return identity, controls, tuple(str(note) for note in answer["notes"])
