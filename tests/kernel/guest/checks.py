"""Runs every check in the guest: before a power failure, and after it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import check_clocks
import check_service
from hardware import settings
from verdicts import check, expect

NOTES = Path("/var/lib/checks.json")
"""What the second boot must know of the first."""


def main() -> None:
    if NOTES.exists():
        check_service.after_power_failure(**json.loads(NOTES.read_text()))
        NOTES.unlink()
        print("\nCHECKS DONE", flush=True)
        subprocess.run(["systemctl", "start", "--no-block", "poweroff.target"], check=True)
        return
    with check("boot: systemd is process 1") as details:
        first = Path("/proc/1/comm").read_text().strip()
        expect(first == "systemd", f"process 1 is {first}")
        details.append(f"kernel {os.uname().release}")
    stock = settings()
    check_clocks.run()
    check_service.run(stock)
    check_service.before_power_failure()
    NOTES.write_text(json.dumps({"stock": stock, "restores_before": check_service.restores()}))
    # Only this program's own notes are made safe here; whether the journal is, is what is tested.
    with open(NOTES, "rb") as notes:
        os.fsync(notes.fileno())
    print("\nCUT THE POWER", flush=True)


main()
