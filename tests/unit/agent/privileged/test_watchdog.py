"""One long request must not look like a helper that hangs."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

from polythrottle_agent.privileged.notify import Notifier
from polythrottle_agent.privileged.patient import PatientControl
from tests.fakes.file_board import FileControl
from tests.unit.agent.privileged.conftest import Bench

PATIENCE_S = 0.5


class Hanging(FileControl):
    """A driver that takes no restore until it is let go."""

    let_go: threading.Event

    def restore(self, saved: Mapping[str, str]) -> None:
        self.let_go.wait(30)
        super().restore(saved)


def test_the_watchdog_is_fed_while_one_driver_after_the_other_hangs(
    bench: Callable[..., Bench], tmp_path: Path
) -> None:
    systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    systemd.bind(str(tmp_path / "notify"))
    systemd.settimeout(5)
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "60000000"})
    b = bench()
    fed_s: list[float] = []
    is_over = threading.Event()

    def listen() -> None:
        while not is_over.is_set():
            if systemd.recv(100) == b"WATCHDOG=1":
                fed_s.append(time.monotonic())

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    let_go = threading.Event()
    controls = {}
    for knob in b.service.custody.keeper.controls:
        hanging = Hanging(b.board.directory, knob)
        hanging.let_go = let_go
        controls[knob] = PatientControl(hanging, PATIENCE_S, notifier.alive)
    b.service.custody.keeper.controls = controls
    peer = b.holder(gpu_freq_mhz=408.0)
    started_s = time.monotonic()
    answer = b.ask(peer, "release")
    took_s = time.monotonic() - started_s
    is_over.set()
    notifier.alive()
    listener.join()
    systemd.close()
    let_go.set()
    assert len(answer["not_restored"]) == len(controls)
    assert took_s > len(controls) * PATIENCE_S
    times = [started_s, *(t for t in fed_s if started_s <= t <= started_s + took_s), started_s + took_s]
    longest_s = max(after - before for before, after in pairwise(times))
    assert longest_s < 2 * PATIENCE_S
    for thread in threading.enumerate():
        if thread.name.startswith("control "):
            thread.join(5)
