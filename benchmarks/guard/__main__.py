"""`python -m benchmarks.guard`: QUICK=1 breaches less often. Exit code 1: a clock came back too late."""

from __future__ import annotations

import os
import platform
import statistics
import sys

from benchmarks.guard.scenario import BOARD, FLOOD, KEPT, RATE, SLO, breach, scene, why_not
from benchmarks.guard.simulated import ROOM, SERVICES, become_slower, p99_s, watch_quietly

LIMIT_S = 1.0
"""From the detection until the clock files read as before."""


def main() -> int:
    reason = why_not()
    if reason is not None:
        print(f"guard: FAIL it could not be run: {reason} (n = 0)")
        return 1
    times = 3 if os.environ.get("QUICK") == "1" else 15
    with scene() as found:
        breaches = [breach(found) for _ in range(times)]
    simulate(0.25 if times == 3 else 4.0)
    clocks = [b.clocks_s for b in breaches]
    confirmed = [b.confirmed_s for b in breaches]
    kept = ", ".join(f"{knob} {level:g}" for knob, level in KEPT.items())
    load = os.getloadavg()[0]
    print(f"machine       {platform.machine()}, {os.cpu_count()} cores, load {load:.1f}")
    print(f"board         emulated {BOARD} behind FUSE, a process of its own; {kept} kept by the helper")
    print(f"load          {RATE:g} queries/s from the guard under {SLO}, then {FLOOD:g} queries/s more")
    print(f"first breach  {breaches[0].reason}")
    print(f"clocks back   {_figures(clocks)} after the detection (limit {LIMIT_S * 1e3:.0f} ms)")
    print(f"all read back {_figures(confirmed)} (no limit: every control, changed or not)")
    passed = max(clocks) < LIMIT_S
    print(
        f"guard: {'PASS' if passed else 'FAIL'} clocks back {_figures(clocks)} after the detection, emulated "
        f"(n = {times} breaches)"
    )
    return 0 if passed else 1


def simulate(hours: float) -> None:
    """Print what no emulated board is needed for."""
    for kind in SERVICES:
        for load in (0.5, 0.7, 0.8):
            quiet = watch_quietly(kind, load, hours, ROOM * p99_s(kind, load))
            print(
                f"quiet         {SERVICES[kind]}, load {load:g}, SLO {ROOM:g} x its p99: "
                f"{quiet.fall_backs} fall backs in {hours:g} h"
            )
    limit_s = ROOM * p99_s("steady", 0.65)
    for ratio in (1.2, 1.5, 2.0, 4.0):
        slower = become_slower(ratio, 0.65, limit_s, 6)
        seen = ", ".join("never" if one is None else f"{one:.1f}" for one in slower.seconds)
        print(f"slower        by {ratio:g} at load .65: fell back after {seen} s")


def _figures(values: list[float]) -> str:
    return f"{statistics.median(values) * 1e3:.0f} ms in the median, {max(values) * 1e3:.0f} ms at most"


if __name__ == "__main__":
    sys.exit(main())
