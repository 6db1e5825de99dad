"""What is killed: a run that writes the device itself, the helper, its client, a restore."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.crash_campaign.targets import Target, Watch, configurations
from polythrottle.clock import RealClock
from polythrottle.errors import PolythrottleError
from polythrottle_agent.audit import AuditLog
from polythrottle_agent.ports import ControlError
from polythrottle_agent.privileged.client import HelperClient, Leased, helper_device
from polythrottle_agent.privileged.files import Files
from polythrottle_agent.privileged.journal import Journal, Owner, boot_id
from polythrottle_agent.privileged.keeper import Keeper
from polythrottle_agent.privileged.main import main
from polythrottle_agent.privileged.on_disk import OnDisk

ENDLESS = 10**9


def direct(
    target: Target,
    state: Path,
    seed: int,
    watch: Watch,
    trials: int,
    gpus: Sequence[str | None] | None = None,
) -> Callable[[], int]:
    """Root without a helper: take, try configurations, look at stock in between, put everything back.

    Of several devices, all are held at the same time, each with a journal of its own.
    """

    def run() -> int:
        keepers = []
        for gpu in target.gpus if gpus is None else gpus:
            found = target.discover(watch, state, gpu)
            files = Files(watch)
            on_disk = OnDisk(
                Journal(state, boot_id(target.root), found.identity.id, files),
                AuditLog(state, files),
                Owner.this_process("crash campaign"),
            )
            keepers.append(Keeper(found.controls, RealClock(), on_disk))
            keepers[-1].take()
            _try_configurations(keepers[-1], seed, trials)
        problems = [problem for keeper in keepers for problem in keeper.release()]
        return 1 if problems else 0

    return run


def helper(
    target: Target, state: Path, socket: Path, watch: Watch, lease_s: float = 10.0
) -> Callable[[], int]:
    """polythrottle-helper, over the same board and state."""

    def run() -> int:
        return main(
            [
                *_arguments(target, state),
                *("--socket", str(socket), "--lease-s", str(lease_s), "--no-probe"),
                *(() if target.gpus[0] is None else ("--gpu", target.gpus[0])),
            ],
            discovering=lambda *_, **named: target.discover(watch, state, named.get("gpu")),
            files=Files(watch),
        )

    return run


def restore(target: Target, state: Path, watch: Watch) -> Callable[[], int]:
    """What ExecStopPost and `polythrottle restore` do: every device that has a journal."""

    def run() -> int:
        return main(
            [*_arguments(target, state), "--restore"],
            discovering=lambda *_, **named: target.discover(watch, state, named.get("gpu")),
            files=Files(watch),
        )

    return run


def client(socket: Path, seed: int, watch: Watch, trials: int) -> Callable[[], int]:
    """An unprivileged run through the helper."""

    class Watched(HelperClient):
        def request(self, verb: str, **fields: Any) -> dict[str, Any]:
            if verb == "heartbeat":  # sent by the clock: how many there are differs from run to run
                return super().request(verb, **fields)
            watch(f"before request {verb}")
            answer = super().request(verb, **fields)
            watch(f"after request {verb}")
            return answer

    def run() -> int:
        connection = Watched(socket, answer_s=30)
        _, controls, _ = helper_device(connection)
        keeper = Keeper(controls, RealClock(), Leased(connection, "crash campaign"))
        keeper.take()
        _try_configurations(keeper, seed, trials)
        keeper.release()
        return 0

    return run


def _try_configurations(keeper: Keeper, seed: int, trials: int) -> None:
    """Refusals are part of the game: with faults injected, some levels are not taken."""
    chance = random.Random(seed)
    for number in range(trials):
        try:
            (levels,) = configurations(keeper, chance, 1)
            keeper.apply(levels, f"trial {number}")
            if number % 3 == 0:
                keeper.restore("stock")
                keeper.apply(levels, f"trial {number}, again")
        except (ControlError, PolythrottleError) as error:
            print(f"trial {number}: {error}", file=sys.stderr)
            if "connection" in str(error):
                return  # the helper is gone; there is nobody to ask


def _arguments(target: Target, state: Path) -> list[str]:
    return ["--root", str(target.root), "--state-dir", str(state)]
