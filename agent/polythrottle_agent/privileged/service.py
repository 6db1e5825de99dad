"""What the root helper does with each request. No sockets here: every rule can be tested by itself."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from polythrottle import __version__
from polythrottle.clock import Clock
from polythrottle.configuration import Level, format_level
from polythrottle.errors import InvalidInputError, PolythrottleError, StateError, did_you_mean
from polythrottle.profiles import tables_digest
from polythrottle.study import DeviceIdentity
from polythrottle_agent.ports import ControlError
from polythrottle_agent.privileged.custody import Custody
from polythrottle_agent.privileged.energy import CounterShelf
from polythrottle_agent.privileged.journal import Owner
from polythrottle_agent.privileged.keeper import state_key
from polythrottle_agent.privileged.lease import DEFAULT_TTL_S, HEARTBEATS_PER_TTL, LeaseBook
from polythrottle_agent.privileged.protocol import PROTOCOLS, Code, Message, Refusal, Window, check

log = logging.getLogger(__name__)

LONGEST_KEEP_S = 31 * 86400.0
STATES_PER_KNOB = 256
"""How many saved states of one knob a lease may come back to."""


@dataclass(frozen=True)
class Peer:
    """Who is at the other end of a connection, by the kernel's word."""

    connection: int
    pid: int
    uid: int
    gid: int = 0


@dataclass
class Connection:
    """What a connection has agreed on."""

    protocol: int | None = None


@dataclass
class Service:
    """One device, one lease. `clock` is monotonic; every call comes from one thread."""

    identity: DeviceIdentity
    custody: Custody
    clock: Clock
    notes: tuple[str, ...] = ()
    ttl_s: float = DEFAULT_TTL_S
    counters: CounterShelf | None = None
    protocols: Window = PROTOCOLS
    refresh_limits: Callable[[], None] = lambda: None
    """Reads the operator's limits anew; asked before anybody learns the levels or gets a lease."""
    _connections: dict[int, Connection] = field(default_factory=dict)
    _states: dict[str, dict[str, None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._leases = LeaseBook(self.clock, self.ttl_s)

    # Life of the helper

    def start(self) -> tuple[str, ...]:
        """Put back what an earlier helper left behind, kept or not: it is gone, and so is its promise.

        Returns:
            What could not be done, in sentences; so does `stop`.
        """
        return self._end_lease("the helper started")

    def stop(self) -> tuple[str, ...]:
        """Put everything back before the helper ends."""
        return self._end_lease("the helper stopped")

    def tick(self) -> None:
        """What time brings: silence, deadlines, retries, drift. To be called about once a second."""
        lease = self._leases.current
        if lease is not None and self._leases.silent():
            self._end_lease(f"{lease.owner.name} was silent for {self.ttl_s:g} s")
        self.custody.tick(self._leases.current is not None)

    # Connections

    def opened(self, peer: Peer) -> None:
        self._connections[peer.connection] = Connection()

    def closed(self, peer: Peer) -> None:
        """However it ended: exit, crash or kill."""
        self._connections.pop(peer.connection, None)
        lease = self._leases.current
        if lease is not None and self._leases.held_by(peer.connection):
            self._end_lease(f"{lease.owner.name} went away")

    def has_greeted(self, peer: Peer) -> bool:
        """Whether it has said hello, and was understood."""
        connection = self._connections.get(peer.connection)
        return connection is not None and connection.protocol is not None

    def answer(self, peer: Peer, message: Message) -> Message:
        """The answer to one request: `{"ok": true, …}`, or a code and a reason. Never raises."""
        try:
            return {"ok": True, **self._dispatch(peer, message)}
        except Refusal as refusal:
            return refused(refusal.code, refusal.reason)
        except InvalidInputError as error:
            return refused(Code.INVALID, str(error))
        except ControlError as error:
            return refused(Code.CONTROL, str(error))
        except (StateError, OSError) as error:
            return refused(Code.STATE, str(error))
        except PolythrottleError as error:
            return refused(Code.BUSY, str(error))
        except Exception:
            log.exception("a request of uid %d failed", peer.uid)
            return refused(Code.INTERNAL, "the helper failed at this; its log says how")

    def _dispatch(self, peer: Peer, message: Message) -> Message:
        verb = check(message)
        connection = self._connections[peer.connection]
        if verb == "hello":
            return self._hello(connection, message)
        if connection.protocol is None:
            raise Refusal(Code.PROTOCOL, "say hello first")
        self._leases.renew(peer.connection)
        handler = {
            "describe": self._describe,
            "status": self._status,
            "lease": self._lease,
            "heartbeat": self._heartbeat,
            "apply": self._apply,
            "accepted": self._accepted,
            "observed": self._observed,
            "save": self._save,
            "restore": self._restore,
            "keep": self._keep,
            "release": self._release,
            "put_back": self._put_back,
            "counters": self._energy_counters,
        }[verb]
        try:
            return handler(peer, message)
        finally:
            # The time the helper took over it is not the client's silence.
            self._leases.renew(peer.connection)

    # Verbs

    def _hello(self, connection: Connection, message: Message) -> Message:
        window = message["protocols"]
        if len(window) != 2 or not all(type(n) is int and 0 < n < 10_000 for n in window):
            raise Refusal(Code.MALFORMED, "protocols must be the oldest and the newest number")
        common = self.protocols.common(Window(*window))
        if common is None:
            raise Refusal(
                Code.PROTOCOL,
                f"this helper ({__version__}) speaks protocol {self.protocols}, the client "
                f"{Window(*window)}; install the same release of polythrottle for both, then "
                "restart polythrottle-helper",
            )
        connection.protocol = common
        return {"protocol": common, "helper": __version__, "ttl_s": self.ttl_s}

    def _describe(self, _peer: Peer, _message: Message) -> Message:
        notes = self.notes
        try:
            self.refresh_limits()
        except InvalidInputError as error:
            # They give no lease; but whoever wants everything put back has to be told what is served here.
            notes = (*notes, str(error))
        identity, controls = self.identity, self.custody.keeper.controls
        levels = {name: control.levels for name, control in controls.items()}
        return {
            "device": {
                "id": identity.id,
                "board": identity.board,
                "label": identity.label,
                "provenance": identity.provenance.value,
                # Of the tables as they are now: which memory rates can be locked is only known once tried.
                "tables_digest": tables_digest(levels),
            },
            "knobs": {name: list(table) for name, table in levels.items()},
            "notes": list(notes),
        }

    def _status(self, _peer: Peer, _message: Message) -> Message:
        lease, kept = self._leases.current, self.custody.kept
        entry = self.custody.on_disk.journal.read()
        now_s = self.clock.now()
        return {
            "lease": None
            if lease is None
            else {**_owner(lease.owner), "ends_in_s": round(lease.deadline_s - now_s, 1)},
            "kept": None
            if kept is None
            else {
                **_owner(kept.owner),
                "settings": dict(kept.settings),
                "reason": kept.reason,
                "ends_in_s": None if kept.deadline_s is None else round(kept.deadline_s - now_s, 1),
            },
            "journal": None
            if entry is None
            else {**_owner(entry.owner), "written_at": entry.written_at, "knobs": list(entry.originals)},
            "settings": dict(self.custody.settings),
            "not_restored": list(self.custody.owed.sentences),
            "drift": list(self.custody.drifts),
        }

    def _lease(self, peer: Peer, message: Message) -> Message:
        current = self._leases.current
        if current is not None:
            whose = "this connection" if self._leases.held_by(peer.connection) else str(current.owner)
            raise Refusal(Code.BUSY, f"the device is held by {whose}")
        kept = self.custody.kept
        if kept is not None:
            raise Refusal(
                Code.BUSY,
                f"{kept.owner} keeps a configuration on the device ({kept.reason}); "
                "run polythrottle restore first",
            )
        self.refresh_limits()
        owner = Owner(message["owner"], peer.uid, peer.pid)
        originals = self.custody.take(owner)
        self._leases.grant(peer.connection, owner)
        self._states = {}
        return {
            "ttl_s": self.ttl_s,
            "heartbeat_s": self.ttl_s / HEARTBEATS_PER_TTL,
            "originals": {knob: dict(state) for knob, state in originals.items()},
        }

    def _heartbeat(self, peer: Peer, _message: Message) -> Message:
        self._needs_lease(peer)
        return {"ttl_s": self.ttl_s, "drift": list(self.custody.drifts)}

    def _apply(self, peer: Peer, message: Message) -> Message:
        self._needs_lease(peer)
        settings = {self._knob(knob): self._level(knob, value) for knob, value in message["settings"].items()}
        self.custody.apply(settings, message["reason"])
        return {}

    def _accepted(self, _peer: Peer, message: Message) -> Message:
        return {"level": self.custody.keeper.controls[self._knob(message["knob"])].accepted()}

    def _observed(self, _peer: Peer, message: Message) -> Message:
        return {"level": self.custody.keeper.controls[self._knob(message["knob"])].observed()}

    def _save(self, peer: Peer, message: Message) -> Message:
        knob = self._knob(message["knob"])
        state = dict(self.custody.keeper.controls[knob].save())
        if self._leases.held_by(peer.connection):
            states = self._states.setdefault(knob, {})
            states.pop(state_key(state), None)
            states[state_key(state)] = None
            if len(states) > STATES_PER_KNOB:
                del states[next(iter(states))]
        return {"state": state}

    def _restore(self, peer: Peer, message: Message) -> Message:
        """Only to states that the device was in: no client can make one up."""
        self._needs_lease(peer)
        knob, state = self._knob(message["knob"]), message["state"]
        if not all(isinstance(value, str) for value in state.values()):
            raise Refusal(Code.MALFORMED, "restore: a state maps names to texts")
        if state != dict(self.custody.keeper.originals[knob]) and state_key(state) not in self._states.get(
            knob, {}
        ):
            raise Refusal(Code.CONTROL, f"{knob} was never saved in that state during this lease")
        return {"state": dict(self.custody.put_one_back(knob, state))}

    def _keep(self, peer: Peer, message: Message) -> Message:
        self._needs_lease(peer)
        for_s = message["for_s"]
        if for_s is not None and not 0 < for_s <= LONGEST_KEEP_S:
            raise Refusal(Code.INVALID, f"for_s must be above 0 and at most {LONGEST_KEEP_S:g}")
        lease = self._leases.current
        if lease is None or not self.custody.settings:
            raise Refusal(Code.INVALID, "nothing was applied that could be kept")
        self.custody.keep(lease.owner, for_s, message["reason"] or "confirmed")
        self._leases.end()
        return {"settings": dict(self.custody.settings)}

    def _release(self, peer: Peer, _message: Message) -> Message:
        self._needs_lease(peer)
        return {"not_restored": list(self._end_lease("the client let go"))}

    def _put_back(self, peer: Peer, message: Message) -> Message:
        """`polythrottle restore`: end what is kept, try again what is owed; with force end a lease too."""
        lease = self._leases.current
        if lease is not None and not self._leases.held_by(peer.connection):
            if not message["force"]:
                raise Refusal(
                    Code.BUSY, f"the device is held by {lease.owner}; stop it, or restore with --force"
                )
            if peer.uid not in (0, lease.owner.uid):
                raise Refusal(
                    Code.DENIED, f"the device is held by {lease.owner}; only they or root may end that"
                )
        return {
            "knobs": list(self.custody.to_put_back()),
            "not_restored": list(self._end_lease("asked for by polythrottle restore")),
        }

    def _energy_counters(self, _peer: Peer, _message: Message) -> Message:
        return {"counters": [] if self.counters is None else self.counters.describe()}

    # Parts

    def _needs_lease(self, peer: Peer) -> None:
        if not self._leases.held_by(peer.connection):
            raise Refusal(Code.NO_LEASE, "this client holds no lease: it ended, or was never granted")

    def _knob(self, knob: str) -> str:
        if knob not in self.custody.keeper.controls:
            known = did_you_mean(knob[:100], self.custody.keeper.controls)
            raise Refusal(Code.INVALID, f"the device has no knob {knob[:100]!r}; {known}")
        return knob

    def _level(self, knob: str, value: Any) -> Level:
        """The value as one of the knob's levels as they are now, within tables and caps."""
        levels = self.custody.keeper.controls[knob].levels
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if isinstance(value, str) or is_number:
            for level in levels:
                if level == value and isinstance(level, str) == isinstance(value, str):
                    return level
        known = ", ".join(format_level(level) for level in levels)
        raise Refusal(Code.INVALID, f"{knob} has no level {str(value)[:60]}; it takes {known[:400]}")

    def _end_lease(self, reason: str) -> tuple[str, ...]:
        self._leases.end()
        self.custody.put_back(reason)
        return self.custody.owed.sentences


def refused(code: Code, reason: str) -> Message:
    return {"ok": False, "code": code.value, "reason": reason[:2000]}


def _owner(owner: Owner) -> Message:
    return {"owner": owner.name, "uid": owner.uid, "pid": owner.pid}
