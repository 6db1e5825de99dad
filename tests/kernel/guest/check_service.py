"""Agent and helper under systemd: tuned, killed, hung, stopped, rebooted, and the clocks come back."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from hardware import LEVELS_KHZ, clock_khz, settings
from verdicts import check, expect, say, wait_for

UNIT = "polythrottle-helper.service"
SOCKET = Path("/run/polythrottle/helper.sock")
STATE = Path("/var/lib/polythrottle")
USER = "tuner"
"""An ordinary user who may connect to the helper."""

LEASE_S = 15.0
"""A client's silence that ends its lease, and so the longest that a clock may stay set after a hang."""


def systemctl(*arguments: str) -> str:
    return subprocess.run(["systemctl", *arguments], capture_output=True, text=True).stdout.strip()


def state() -> str:
    return systemctl("show", "-P", "ActiveState", UNIT)


def main_pid() -> int:
    return int(systemctl("show", "-P", "MainPID", UNIT) or 0)


def as_user(*command: str, log: str) -> subprocess.Popen[bytes]:
    """Starts a command as the ordinary user, in a session of its own."""
    output = open(f"/tmp/{log}", "wb")  # noqa: SIM115 - it lives as long as the process
    env = {**os.environ, "HOME": f"/home/{USER}", "COLUMNS": "120", "PYTHONPATH": "/opt/checks"}
    return subprocess.Popen(
        ["setpriv", "--reuid", USER, "--regid", USER, "--init-groups", *command],
        stdout=output, stderr=subprocess.STDOUT, env=env, cwd="/opt/checks", start_new_session=True,
    )  # fmt: skip


def tune(*more: str, log: str) -> subprocess.Popen[bytes]:
    return as_user(
        "python3", "/opt/checks/pstate_workload.py", "tune", "--device", "auto", "--latency-slo", "45ms",
        "--strategy", "random", "--knobs", "cpu_freq_mhz", "--meter", "command:/opt/checks/meter.sh",
        "--state-dir", f"/home/{USER}/{log}", *more, log=log,
    )  # fmt: skip


def tail(log: str) -> str:
    return Path(f"/tmp/{log}").read_text(errors="replace")[-300:]


def is_slowed() -> bool:
    """Whether a clock stands below the top, which only a client of the helper does here."""
    return any(
        int(value) < LEVELS_KHZ[0] for name, value in settings().items() if name.endswith("scaling_max_freq")
    )


def install() -> None:
    with check("service: the helper starts under systemd, and tells it when it is ready") as details:
        done = subprocess.run(["polythrottle", "install-service"], capture_output=True, text=True)
        if done.returncode == 0:
            details.append("units of the package")
        elif "No such command" in done.stderr:
            shutil.copy("/opt/checks/helper.service", f"/etc/systemd/system/{UNIT}")
            systemctl("daemon-reload")
            details.append("A STAND-IN FOR THE PACKAGE'S UNIT: this build has no install-service")
        else:
            expect(False, f"install-service: {done.stdout} {done.stderr}")
        systemctl("enable", UNIT)
        systemctl("start", UNIT)
        wait_for(lambda: state() == "active" and SOCKET.exists(), 40, "the start of the helper")
        mode = SOCKET.stat().st_mode & 0o777
        expect(mode == 0o660, f"its socket has mode {mode:o}")
        details.append(
            f"socket 0660 of group {SOCKET.stat().st_gid}, {systemctl('show', '-P', 'StatusText', UNIT)}"
        )


def run(stock: dict[str, str]) -> None:
    install()

    with check("service: somebody outside the group is turned away"):
        done = subprocess.run(
            ["setpriv", "--reuid", "nobody", "--clear-groups", "python3", "-c",
             "from polythrottle_agent.privileged.client import HelperClient; HelperClient()"],
            capture_output=True, text=True,
        )  # fmt: skip
        expect(done.returncode != 0 and "may not open" in done.stderr, done.stderr[-200:] or "it was let in")

    with check("tune: an ordinary user tunes through the helper, and the clocks are as found") as details:
        process = tune("--max-trials", "3", "--json", log="tune")
        slowest = LEVELS_KHZ[0]
        while process.poll() is None:
            slowest = min(slowest, clock_khz())
            time.sleep(0.1)
        expect(process.returncode == 0, f"exit {process.returncode}: {tail('tune')}")
        text = Path("/tmp/tune").read_text()
        answer = json.loads(text[text.index("{") :])
        expect(slowest < LEVELS_KHZ[0], "no clock was ever lowered")
        expect(settings() == stock, "the clocks are not as found")
        chosen = answer["chosen"]["configuration"]["cpu_freq_mhz"]
        details.append(f"{len(answer['trials'])} trials down to {slowest / 1e3:g} MHz, chose {chosen:g} MHz")

    with check("kill -9 of the agent: the helper puts the clocks back") as details:
        process = tune("--max-trials", "20", log="killed")
        wait_for(is_slowed, 60, f"a lowered clock ({tail('killed')})")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        took = wait_for(lambda: settings() == stock, LEASE_S, "the stock settings")
        expect(state() == "active", f"the helper is {state()}")
        details.append(f"after {took:.1f} s")

    with check(
        "kill -9 of the helper: systemd's ExecStopPost puts the clocks back, and restarts it"
    ) as details:
        client = hold()
        before = main_pid()
        os.kill(before, signal.SIGKILL)
        took = wait_for(lambda: settings() == stock, 30, "the stock settings")
        wait_for(lambda: state() == "active" and main_pid() not in (0, before), 30, "its restart")
        details.append(f"after {took:.1f} s")
        end(client)

    with check("a helper that hangs: the watchdog ends it, and the clocks come back") as details:
        client = hold()
        before = main_pid()
        os.kill(before, signal.SIGSTOP)
        took = wait_for(lambda: settings() == stock, 90, "the stock settings")
        wait_for(lambda: state() == "active" and main_pid() not in (0, before), 30, "its restart")
        details.append(f"after {took:.1f} s")
        end(client)

    with check("a client that hangs: its lease ends, and the clocks come back") as details:
        client = hold()
        os.killpg(client.pid, signal.SIGSTOP)
        took = wait_for(lambda: settings() == stock, LEASE_S + 10, "the stock settings")
        details.append(f"after {took:.1f} s")
        end(client)

    with check("systemctl stop of the helper puts the clocks back") as details:
        client = hold()
        began = time.monotonic()
        systemctl("stop", UNIT)
        expect(settings() == stock, "the clocks are not as found")
        details.append(f"after {time.monotonic() - began:.1f} s")
        end(client)
        systemctl("start", UNIT)
        wait_for(lambda: state() == "active", 40, "its start")

    with check("the audit log tells who set what") as details:
        log = "\n".join(path.read_text() for path in STATE.glob("audit*"))
        expect("cpu_freq_mhz" in log and "restore" in log, f"it holds {log[-200:]!r}")
        details.append(f"{len(log.splitlines())} lines")


def hold() -> subprocess.Popen[bytes]:
    client = as_user("python3", "/opt/checks/hold.py", log="held")
    wait_for(is_slowed, 40, f"a lowered clock ({tail('held') if Path('/tmp/held').exists() else ''})")
    return client


def end(client: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(client.pid, signal.SIGKILL)
    except ProcessLookupError:
        say("note", "the client had ended by itself")
    client.wait()


def before_power_failure() -> None:
    """Leaves a lowered clock and a journal behind, for the host to cut the power."""
    with check("before the power failure: a clock is held, and its original is on disk"):
        hold()
        expect(any(STATE.iterdir()), "there is no journal")


def restores() -> int:
    """How many restores the audit log holds."""
    lines = [line for path in STATE.glob("audit*") for line in path.read_text().splitlines()]
    return sum(json.loads(line)["event"] == "restore" for line in lines)


def after_power_failure(stock: dict[str, str], restores_before: int) -> None:
    with check(
        "after the power failure: the clocks are as found, and the old journal was not replayed"
    ) as details:
        wait_for(lambda: state() == "active", 60, "the start of the helper")
        expect(settings() == stock, f"the clocks are {settings()}")
        expect(restores() <= restores_before, f"{restores() - restores_before} restores were made since")
        details.append(f"{restores()} restores in the audit log, as before")

    with check("after the power failure: the device can be held again, from the right originals"):
        client = hold()
        end(client)
        wait_for(lambda: settings() == stock, LEASE_S, "the stock settings")
