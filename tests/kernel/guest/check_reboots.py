"""A reboot, a power failure and an uninstall while the agent holds a clock."""

from __future__ import annotations

import json
import time
from pathlib import Path

from check_agent import held_again, hold, stopped
from check_service import SOCKET, STATE, restores
from hardware import is_slowed, settings
from people import as_root
from units import AGENT, HELPER, systemctl
from verdicts import check, expect

LAST_LOOK = Path("/var/lib/last-look.json")


def before_reboot() -> None:
    with check("before the reboot: a clock is held"):
        held_again()


def after_reboot(stock: dict[str, str]) -> None:
    with check("reboot: the clocks were back before the machine went down") as details:
        seen = json.loads(LAST_LOOK.read_text())
        expect(seen == stock, f"at the last look they were {seen}")
        details.append(f"{restores()} restores in the audit log")

    with check("reboot: agent and helper start by themselves, and hold again") as details:
        held_again()
        details.append(AGENT.status)
        expect(len(list(STATE.glob("originals-*.json"))) == 1, "there is not one journal")


def before_power_failure() -> None:
    """Leaves a lowered clock and a journal behind, for the host to cut the power."""
    with check("before the power failure: a clock is held, and its original is on disk"):
        expect(is_slowed(), "no clock is held")
        expect(any(STATE.glob("originals-*.json")), "there is no journal")
        # So that the next boot shows what the helper does by itself.
        systemctl("disable", AGENT.name)


def after_power_failure(stock: dict[str, str], restores_before: int) -> None:
    with check("power failure: the clocks are as found, and the old journal was not replayed") as details:
        HELPER.wait_until_ready()
        expect(AGENT.state == "inactive", f"the agent is {AGENT.state}")
        expect(settings() == stock, f"the clocks are {settings()}")
        expect(restores() <= restores_before, f"{restores() - restores_before} restores were made since")
        details.append(f"{restores()} restores in the audit log, as before")

    with check("power failure: the device can be held again, from the right originals") as details:
        old = set(STATE.glob("originals-*.json"))
        hold()
        new = set(STATE.glob("originals-*.json"))
        expect(len(new) == 1 and not new & old, f"of the journals {old} there are {new}")
        details.append(stopped(AGENT, stock))


def uninstall(stock: dict[str, str]) -> None:
    with check("uninstall: puts the clocks back and leaves nothing but the audit log") as details:
        hold()
        began = time.monotonic()
        done = as_root("uninstall")
        expect(done.returncode == 0, f"exit {done.returncode}: {done.stdout} {done.stderr}")
        expect(settings() == stock, f"the clocks are {settings()}")
        details.append(f"after {time.monotonic() - began:.1f} s")
        for unit in (HELPER, AGENT):
            expect(unit.state == "inactive", f"{unit.name} is {unit.state}")
            expect(unit.property("LoadState") == "not-found", f"{unit.name} is still known")
        expect(not SOCKET.exists(), "the socket is still there")
        left = [str(path) for path in Path("/etc").rglob("*polythrottle*") if path.is_file()]
        expect(not left, f"left are {left}")
        expect(
            [path.name for path in STATE.glob("*.json*")] == ["audit.jsonl"], f"left {list(STATE.iterdir())}"
        )
