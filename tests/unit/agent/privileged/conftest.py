"""The helper's service in this process, over a board of files, with a clock that only a test moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from polythrottle.clock import VirtualClock
from polythrottle_agent.audit import AuditLog, Record, read_audit
from polythrottle_agent.privileged.custody import Custody
from polythrottle_agent.privileged.files import Files
from polythrottle_agent.privileged.journal import Journal, Owner
from polythrottle_agent.privileged.keeper import Keeper
from polythrottle_agent.privileged.on_disk import OnDisk
from polythrottle_agent.privileged.protocol import PROTOCOLS, Window
from polythrottle_agent.privileged.service import Peer, Service
from polythrottle_agent.reconcile import Marks, Reconciler
from tests.fakes.file_board import FileBoard, discover_file_board

BOOT = "5f0c3a1e-0000-4000-8000-000000000001"
HELPER = Owner("polythrottle-helper", 0, 1)


@dataclass
class Bench:
    """One helper and its board."""

    root: Path
    board: FileBoard
    clock: VirtualClock
    service: Service
    journal: Journal
    marks: list[Marks]
    peers: list[Peer] = field(default_factory=list)

    def peer(self, uid: int = 1000, *, greeted: bool = True) -> Peer:
        peer = Peer(len(self.peers) + 1, 4000 + len(self.peers), uid)
        self.peers.append(peer)
        self.service.opened(peer)
        if greeted:
            assert self.ask(peer, "hello", protocols=[1, 1], client="a test")["ok"]
        return peer

    def ask(self, peer: Peer, verb: str, **fields: Any) -> dict[str, Any]:
        return self.service.answer(peer, {"verb": verb, **fields})

    def holder(self, **settings: float | str) -> Peer:
        peer = self.peer()
        assert self.ask(peer, "lease", owner="a run")["ok"]
        if settings:
            assert self.ask(peer, "apply", settings=settings, reason="trial")["ok"]
        return peer

    def records(self, event: str) -> list[Record]:
        found = read_audit(self.root)
        return [record for record in found if isinstance(record, Record) and record.event == event]


@pytest.fixture
def bench(tmp_path: Path) -> Callable[..., Bench]:
    """A helper over the same directory each time it is called: a second call is a restart."""

    def make(boot: str = BOOT, files: Files | None = None, protocols: Window = PROTOCOLS) -> Bench:
        directory = tmp_path / "board"
        board = FileBoard(directory) if directory.exists() else FileBoard.as_found(directory)
        clock = VirtualClock()
        found = discover_file_board(tmp_path)
        journal = Journal(tmp_path, boot, found.identity.id, files)
        marks = [Marks()]
        on_disk = OnDisk(
            journal,
            AuditLog(tmp_path, files),
            HELPER,
            exclusive=False,
            power_mode=lambda: marks[0].power_mode,
        )
        service = Service(
            identity=found.identity,
            custody=Custody(
                Keeper(found.controls, clock, on_disk),
                on_disk,
                clock,
                Reconciler(found.controls, clock, lambda: marks[0]),
            ),
            clock=clock,
            ttl_s=15.0,
            protocols=protocols,
        )
        return Bench(tmp_path, board, clock, service, journal, marks)

    return make
