"""`python -m benchmarks.generator`: QUICK=1 measures for less long. Exit code 1: a limit is missed.

It needs a C compiler and wrk (Debian, Ubuntu: apt install gcc wrk).
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from benchmarks.generator.measuring import CONNECTIONS

RATE_LIMIT_PER_S = 2000.0
"""The generator must make at least so many requests a second on one core."""

LATE_LIMIT_US = 1000.0
"""p99 of its lateness, at half of the rate that it reaches, and at half of the one it must reach."""

HEADROOM = 3.0
"""The server must be able to answer so many times that rate, or it is the server that is measured."""

SERVER_CORE, CLIENT_CORE = 0, 1


REAL_TIME = ("chrt", "--rr", "10")


@cache
def may_go_first() -> bool:
    """Whether this user may run a process ahead of whatever else the machine does."""
    return subprocess.run([*REAL_TIME, "true"], capture_output=True, check=False).returncode == 0


def pinned(core: int, command: Sequence[str]) -> list[str]:
    """On one core; server and clients alike ahead of everything else, where that is allowed."""
    return ["taskset", "-c", str(core), *(REAL_TIME if may_go_first() else ()), *command]


@contextmanager
def server() -> Iterator[str]:
    """The C server, compiled, on a core of its own; its URL."""
    source = Path(__file__).with_name("server.c")
    with tempfile.TemporaryDirectory() as directory:
        binary = Path(directory) / "server"
        subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-o", str(binary), str(source)], check=True)
        with subprocess.Popen(pinned(SERVER_CORE, [str(binary)]), stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                yield f"http://127.0.0.1:{int(process.stdout.readline())}/infer"
            finally:
                process.kill()


def wrk(url: str, seconds: float) -> float:
    """Requests a second with as many connections as the generator's closed loop."""
    script = 'wrk.method="POST"\nwrk.body=\'{"inputs": [1, 2, 3]}\'\n'
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as lua:
        lua.write(script)
        lua.flush()
        command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{max(round(seconds), 1)}s", "-s", lua.name, url]
        done = subprocess.run(pinned(CLIENT_CORE, command), capture_output=True, text=True, check=True)
    found = re.search(r"Requests/sec:\s*([\d.]+)", done.stdout)
    if found is None or "Socket errors" in done.stdout or "Non-2xx" in done.stdout:
        raise SystemExit(f"generator: FAIL wrk said:\n{done.stdout}")
    return float(found[1])


def measured(what: str, url: str, seconds: float, rate_per_s: float | None = None) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.generator.measuring", what, url, str(seconds)]
    command += [] if rate_per_s is None else [str(rate_per_s)]
    done = subprocess.run(pinned(CLIENT_CORE, command), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"generator: FAIL the measuring process ended with:\n{done.stderr}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def median(runs: Sequence[dict[str, float]], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def main() -> int:
    missing = [name for name in ("cc", "wrk", "taskset", "chrt") if shutil.which(name) is None]
    if missing or (os.cpu_count() or 1) < 2:
        what = f"{', '.join(missing)} is not installed" if missing else "two processors are needed"
        print(f"generator: FAIL {what} (Debian, Ubuntu: apt install gcc wrk util-linux)")
        return 1
    quick = os.environ.get("QUICK") == "1"
    windows, seconds = (3, 2.0) if quick else (5, 10.0)
    with server() as url:
        wrk(url, 1.0)  # the first seconds of a server are not its best
        capacities, closed = [], []
        for _ in range(windows):
            capacities.append(wrk(url, seconds))
            closed.append(measured("closed", url, seconds))
        has_httpx = importlib.util.find_spec("httpx") is not None
        httpx = [
            measured("httpx", url, seconds) for _ in range((1 if quick else windows) if has_httpx else 0)
        ]
        peak_per_s = median(closed, "requests_per_s")
        rates = (RATE_LIMIT_PER_S / 2, round(peak_per_s / 2, -2))
        opened = {rate: [measured("open", url, seconds, rate) for _ in range(windows)] for rate in rates}
    return report(windows, seconds, capacities, closed, httpx, opened)


def report(
    windows: int,
    seconds: float,
    capacities: Sequence[float],
    closed: Sequence[dict[str, float]],
    httpx: Sequence[dict[str, float]],
    opened: dict[float, list[dict[str, float]]],
) -> int:
    peak_per_s = median(closed, "requests_per_s")
    capacity_per_s = statistics.median(capacities)
    print(
        f"machine     {platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}"
    )
    others = "server and clients go first" if may_go_first() else "server and clients share with it"
    print(f"load        {os.getloadavg()[0]:.1f} in the last minute, what else runs here included; {others}")
    print(f"server      C, epoll, one thread, on processor {SERVER_CORE}; every client on {CLIENT_CORE}")
    print()
    print(f"closed loop, {CONNECTIONS} connections  requests/s   of a core   µs of it a request")
    print(f"  wrk                        {capacity_per_s:>10,.0f}")
    rows = [("polythrottle", closed), *([("httpx", httpx)] if httpx else [])]
    for name, runs in rows:
        rate, share = median(runs, "requests_per_s"), median(runs, "core_share")
        print(f"  {name:<12}               {rate:>10,.0f}   {share:>8.0%}   {share / rate * 1e6:>18.0f}")
    print()
    print("open loop, Poisson           requests/s   of a core   lateness p50    p99      max µs")
    for rate, runs in opened.items():
        print(
            f"  polythrottle at {rate:>8,.0f}/s  {median(runs, 'requests_per_s'):>10,.0f}   "
            f"{median(runs, 'core_share'):>8.0%}   {median(runs, 'late_p50_us'):>12.0f}  "
            f"{median(runs, 'late_p99_us'):>6.0f}   {max(run['late_max_us'] for run in runs):>8.0f}"
        )
    late_us = max(median(runs, "late_p99_us") for runs in opened.values())
    lost = sum(run["lost"] for runs in (closed, *opened.values()) for run in runs)
    passed = (
        peak_per_s >= RATE_LIMIT_PER_S
        and capacity_per_s >= HEADROOM * RATE_LIMIT_PER_S
        and late_us < LATE_LIMIT_US
        and lost == 0
    )
    print()
    print(
        f"generator: {'PASS' if passed else 'FAIL'} {peak_per_s:,.0f} requests/s on one core (limit "
        f"{RATE_LIMIT_PER_S:,.0f}) of {capacity_per_s:,.0f} that the server can (limit "
        f"{HEADROOM * RATE_LIMIT_PER_S:,.0f}), "
        f"lateness p99 {late_us / 1e3:.2f} ms at half the rate (limit {LATE_LIMIT_US / 1e3:g} ms), "
        f"{lost:.0f} lost (n = {windows} windows of {seconds:g} s each)"
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
