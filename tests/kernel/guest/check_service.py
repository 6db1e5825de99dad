"""The helper under systemd, and an ordinary user who tunes through it: ends, is killed, hangs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

from hardware import LEVELS_KHZ, clock_khz, is_slowed, set_governor, settings
from people import PROGRAM, USER, as_root, as_stranger, said, tune
from units import AGENT, HELPER, PATIENCE_S, systemctl
from verdicts import check, expect, wait_for

SOCKET = Path("/run/polythrottle/helper.sock")
STATE = Path("/var/lib/polythrottle")

WATCHDOG = "1min"
EXPOSURE_AT_MOST = 3.0
"""systemd's own judgement of how open a service is, from 0 to 10."""


def run(stock: dict[str, str]) -> None:
    install()
    security()
    refusals(stock)
    # With a governor that follows the load, what is measured at the stock clock would be a matter of chance.
    set_governor("performance")
    tuning(settings())
    set_governor(stock["policy0/scaling_governor"])
    wait_for(lambda: settings() == stock, 2, "the governor")


def install() -> None:
    with check("install-service: agent and helper start, and tell systemd when they are ready") as details:
        done = as_root("install-service", "--agent")
        expect(done.returncode == 0, f"install-service: {done.stdout} {done.stderr}")
        for unit in (HELPER, AGENT):
            unit.wait_until_ready()
            expect(unit.property("WatchdogUSec") == WATCHDOG, f"{unit.name} has no watchdog")
            command = Path(f"/proc/{unit.main_pid}/cmdline").read_bytes().split(b"\0")[1].decode()
            expect(
                command == f"{Path(PROGRAM).parent}/{unit.name.removesuffix('.service')}", f"{command} runs"
            )
            expect(systemctl("is-enabled", unit.name) == "enabled", f"{unit.name} is not enabled")
            details.append(f"{unit.name}: {unit.status}")
        mode, group = SOCKET.stat().st_mode & 0o777, SOCKET.group()
        expect((mode, group) == (0o660, "polythrottle"), f"its socket has mode {mode:o} of group {group}")
        agent = Path(f"/proc/{AGENT.main_pid}/status").read_text()
        expect("\nCapEff:\t0000000000000000" in agent, "the agent has capabilities")
        expect("\nUid:\t0\t" not in agent, "the agent is root")
        subprocess.run(["usermod", "-aG", "polythrottle", USER], check=True)


def security() -> None:
    with check(f"systemd-analyze security: the agent's exposure is at most {EXPOSURE_AT_MOST}") as details:
        for unit, limit in ((AGENT, EXPOSURE_AT_MOST), (HELPER, None)):
            done = subprocess.run(
                ["systemd-analyze", "security", "--no-pager", unit.name],
                capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C.UTF-8"},
            )  # fmt: skip
            score = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
            expect(score is not None, f"{done.stdout[-200:]} {done.stderr}")
            assert score is not None
            details.append(f"{unit.name} {score[1]}")
            expect(limit is None or float(score[1]) <= limit, f"{unit.name} has {score[1]}")


def refusals(stock: dict[str, str]) -> None:
    with check("somebody outside the group is turned away") as details:
        done = as_stranger("restore")
        expect(done.returncode != 0 and "may not open" in done.stderr, done.stderr[-200:] or "it was let in")
        expect("Traceback" not in done.stderr, done.stderr[-200:])
        expect(settings() == stock, "something changed")
        details.append(done.stderr)

    with check("doctor: says that the clocks can be set through the helper") as details:
        report = json.loads(as_root("doctor", "--json").stdout)
        helper = [one for one in report["checks"] if "helper" in one["subject"].lower()]
        expect(bool(helper) and all(one["state"] == "ok" for one in helper), f"it says {report['checks']}")
        details.append("; ".join(f"{one['subject']}: {one['found']}" for one in helper))


def tuning(stock: dict[str, str]) -> None:
    with check("kill -9 of tune: the helper puts the clocks back") as details:
        process = tune(log="killed")
        try:
            wait_for(is_slowed, PATIENCE_S, f"a lowered clock ({said('killed')})")
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        took = wait_for(lambda: settings() == stock, PATIENCE_S, "the stock settings")
        expect(HELPER.state == "active", f"the helper is {HELPER.state}")
        details.append(f"after {took:.1f} s")

    with check("tune: an ordinary user tunes through the helper, and the clocks are as found") as details:
        process = tune("--resume", "--json", log="tune")
        slowest, give_up_s = LEVELS_KHZ[0], time.monotonic() + PATIENCE_S
        while process.poll() is None:
            slowest = min(slowest, clock_khz())
            if time.monotonic() > give_up_s:
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.1)
        expect(process.returncode == 0, f"exit {process.returncode}: {said('tune')}")
        text = Path("/tmp/tune").read_text()
        answer = json.loads(text[text.index("{") :])
        expect(slowest < LEVELS_KHZ[0], "no clock was ever lowered")
        expect(settings() == stock, "the clocks are not as found")
        # On a busy host the energies scatter so much that stock may be kept: that is an answer too.
        verdict, chosen = answer["verdict"], answer["chosen"]["configuration"]
        expect(verdict in ("optimal", "best_feasible", "keep_stock"), f"{verdict}: {said('tune')}")
        trials = [trial["purpose"] for trial in answer["trials"]]
        details.append(
            f"{', '.join(trials)}; down to {slowest / 1e3:g} MHz, {verdict} {chosen or ''}, "
            f"{answer['reason']}"
        )


def audited() -> list[dict[str, object]]:
    """What the audit log holds."""
    lines = [line for path in sorted(STATE.glob("audit*")) for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def restores() -> int:
    """How many restores the audit log holds."""
    return sum(line["event"] == "restore" for line in audited())
