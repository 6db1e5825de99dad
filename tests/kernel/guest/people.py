"""Who uses polythrottle in the guest: root, an ordinary user, and somebody who may not."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

PROGRAM = "/opt/polythrottle/bin/polythrottle"
USER = "tuner"


def as_root(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a polythrottle command to its end."""
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, check=False)


def as_stranger(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a polythrottle command as somebody outside the group polythrottle."""
    return subprocess.run(
        ["setpriv", "--reuid", "nobody", "--clear-groups", PROGRAM, *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def tune(*more: str, log: str) -> subprocess.Popen[bytes]:
    """Start to tune as the ordinary user, in a session of its own."""
    command = [
        PROGRAM, "tune", "--device", "auto", "--latency-slo", "mean<11ms", "--strategy", "random",
        "--workload", "command:/opt/checks/serve.py", "--meter", "command:/opt/checks/meter.sh",
        "--knobs", "cpu_freq_mhz=1500/2400", "--precision", "20%", *more,
    ]  # fmt: skip
    with open(f"/tmp/{log}", "wb") as output:
        return subprocess.Popen(
            ["setpriv", "--reuid", USER, "--regid", USER, "--init-groups", *command],
            stdout=output, stderr=subprocess.STDOUT, cwd="/tmp", start_new_session=True,
            env={**os.environ, "HOME": f"/home/{USER}", "COLUMNS": "120"},
        )  # fmt: skip


def said(log: str) -> str:
    """The last of what a command that was started with this log has printed."""
    return Path(f"/tmp/{log}").read_text(errors="replace")[-300:]
