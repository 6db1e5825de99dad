"""Runs every check in the guest, which boots three times: a reboot and a power failure lie between."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import check_agent
import check_clocks
import check_reboots
import check_service
from hardware import settings
from units import systemctl
from verdicts import check, expect

NOTES = Path("/var/lib/checks.json")
"""What the next boot must know of the ones before."""


def main() -> None:
    notes = json.loads(NOTES.read_text()) if NOTES.exists() else {"boot": 1}
    boot = notes.pop("boot")
    if boot == 1:
        first_boot()
    elif boot == 2:
        second_boot(**notes)
    else:
        third_boot(**notes)


def first_boot() -> None:
    with check("boot: systemd is process 1") as details:
        first = Path("/proc/1/comm").read_text().strip()
        expect(first == "systemd", f"process 1 is {first}")
        details.append(f"kernel {os.uname().release}")
    stock = settings()
    check_clocks.run()
    check_service.run(stock)
    check_agent.run(stock)
    check_reboots.before_reboot()
    note(boot=2, stock=stock)
    print("\nREBOOT", flush=True)
    systemctl("reboot", "--no-block")


def second_boot(stock: dict[str, str]) -> None:
    check_reboots.after_reboot(stock)
    check_reboots.before_power_failure()
    note(boot=3, stock=stock, restores_before=check_service.restores())
    print("\nCUT THE POWER", flush=True)


def third_boot(stock: dict[str, str], restores_before: int) -> None:
    check_reboots.after_power_failure(stock, restores_before)
    check_reboots.uninstall(stock)
    print("\nCHECKS DONE", flush=True)
    subprocess.run(["systemctl", "start", "--no-block", "poweroff.target"], check=True)


def note(**what: object) -> None:
    NOTES.write_text(json.dumps(what))
    # Only this program's own notes are made safe here; whether the journal is, is what is tested.
    with open(NOTES, "rb") as notes:
        os.fsync(notes.fileno())


main()
