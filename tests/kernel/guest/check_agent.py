"""The agent holds a clock under systemd while it, or the helper, is killed, hangs or is stopped."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from check_service import audited
from hardware import CPUFREQ, clock_khz, settings
from people import as_root
from units import AGENT, HELPER, PATIENCE_S, Unit, systemctl
from verdicts import check, expect, wait_for

HOLD = Path("/etc/polythrottle/hold.yaml")
HELD_MHZ = 1200
WATCHDOG_S = 8
"""Instead of the units' own minute, which would be most of the time that these checks take."""

SLACK_S = 45.0
"""What a busy machine without KVM may need on top; the time that it did take is printed."""

LONGER_THAN_RESTART_S = 5.0
"""An agent that starts again by itself does so after 2 s."""


def run(stock: dict[str, str]) -> None:
    with check("agent: holds what its file says, by the hardware's own word") as details:
        hold()
        details.append(AGENT.status)

    for unit in (HELPER, AGENT):
        unit.hurry_watchdog(WATCHDOG_S)
    systemctl("daemon-reload")  # from their next start on

    with check("kill -9 of the agent: the clocks come back, and it starts again and holds") as details:
        before = AGENT.main_pid
        os.kill(before, signal.SIGKILL)
        details.append(back(stock, SLACK_S))
        held_again(before)

    with check("kill -9 of the helper: ExecStopPost puts the clocks back; both start again") as details:
        before = HELPER.main_pid
        os.kill(before, signal.SIGKILL)
        details.append(back(stock, 2 * SLACK_S))
        HELPER.wait_until_ready(before)
        held_again()

    with check("an agent that hangs: the watchdog ends it, and the clocks come back") as details:
        before = AGENT.main_pid
        os.kill(before, signal.SIGSTOP)
        details.append(back(stock, WATCHDOG_S + SLACK_S))
        held_again(before)

    with check("a helper that hangs: the watchdog ends it, and the clocks come back") as details:
        before = HELPER.main_pid
        os.kill(before, signal.SIGSTOP)
        details.append(back(stock, WATCHDOG_S + 2 * SLACK_S))
        HELPER.wait_until_ready(before)
        held_again()

    with check("systemctl stop of the agent puts the clocks back") as details:
        details.append(stopped(AGENT, stock))

    with check("systemctl stop of the helper puts the clocks back, and it stays stopped") as details:
        hold()
        details.append(stopped(HELPER, stock))
        time.sleep(LONGER_THAN_RESTART_S)
        expect(HELPER.state == "inactive", f"{LONGER_THAN_RESTART_S:g} s later the helper is {HELPER.state}")
        expect(settings() == stock, f"{LONGER_THAN_RESTART_S:g} s later the clocks are set again")

    with check("restore --force: ends what somebody holds") as details:
        hold()  # which starts the helper too
        done = as_root("restore", "--force")
        expect(done.returncode == 0, f"exit {done.returncode}: {done.stderr}")
        details.append(back(stock, SLACK_S))

    with check("the audit log tells who set what") as details:
        events = audited()
        writes = [line for line in events if line.get("knob") == "cpu_freq_mhz"]
        expect(bool(writes), f"it holds {events[-2:]}")
        done = as_root("audit", "--knob", "cpu_freq_mhz", "--last", "1")
        expect(done.returncode == 0 and "cpu_freq_mhz" in done.stdout, f"{done.stdout[-200:]}{done.stderr}")
        details.append(f"{len(events)} lines, {len(writes)} of the CPU clock; {done.stdout}")


def hold() -> None:
    """Let the agent hold a clock, as an operator does.

    Raises:
        Failed: it does not.
    """
    HOLD.write_text(f"cpu_freq_mhz: {HELD_MHZ}\n")
    systemctl("reset-failed", AGENT.name, HELPER.name)
    systemctl("restart", AGENT.name)
    held_again()


def held_again(old_pid: int = 0) -> None:
    """Wait until the agent says that it holds, and see whether the hardware does."""
    held = (CPUFREQ / "policy0/scaling_max_freq", CPUFREQ / "policy0/scaling_min_freq")
    AGENT.wait_until_ready(old_pid)
    wait_for(lambda: all(int(file.read_text()) == HELD_MHZ * 1000 for file in held), PATIENCE_S, "the hold")
    expect(str(HELD_MHZ) in AGENT.status, f"the agent says {AGENT.status}")
    wait_for(lambda: clock_khz() == HELD_MHZ * 1000, 5, f"{HELD_MHZ} MHz")


def back(stock: dict[str, str], within_s: float) -> str:
    took = wait_for(lambda: settings() == stock, within_s, "the stock settings")
    return f"after {took:.1f} s"


def stopped(unit: Unit, stock: dict[str, str]) -> str:
    """Stop a service; the clocks must be back when that has returned."""
    began = time.monotonic()
    systemctl("stop", unit.name)
    expect(settings() == stock, f"the clocks are {settings()}")
    return f"after {time.monotonic() - began:.1f} s"
