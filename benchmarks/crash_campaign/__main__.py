"""The crash campaign: everything that can be killed is killed, and the board has to be as it was.

    python -m benchmarks.crash_campaign [--quick] [--kills N] [--seed S] [--board NAME …]

First each write, fsync, rename and request, before and after, one at a time; then kills at random moments
with faults on the board. Prints a table; the last line says PASS or FAIL, and the exit status is 1 on FAIL.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.crash_campaign.at_random import kill_at_random
from benchmarks.crash_campaign.enumerated import Row, Site, kill_everywhere
from benchmarks.crash_campaign.targets import FilesTarget, NvmlTarget, SysfsTarget, Target

KILLS = 1000
QUICK_KILLS = 18
QUICK_STRIDES = {"files": 13, "sysfs orin-nano-8gb 5.15": 90, "nvml H100": 25, "nvml H100 + A100-40": 60}

Make = Callable[[Path], Target]
BOARDS: dict[str, Make] = {
    "files": FilesTarget,
    "sysfs tx2 4.9": lambda d: SysfsTarget(d, "tx2", "4.9"),
    "sysfs orin-nano-8gb 5.15": lambda d: SysfsTarget(d, "orin-nano-8gb", "5.15"),
    "nvml H100": lambda d: NvmlTarget(d, "H100"),
    "nvml H100 + A100-40": lambda d: NvmlTarget(d, "H100", "A100-40"),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crash_campaign", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a sample of it, in under a minute")
    parser.add_argument(
        "--kills", type=int, help=f"kills at random moments, over all boards (default {KILLS})"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--board", action="append", choices=list(BOARDS), help="only this one; may be repeated"
    )
    options = parser.parse_args()
    # So that a board that was mounted is unmounted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    kills = options.kills if options.kills is not None else QUICK_KILLS if options.quick else KILLS
    rows: list[Row] = []
    skipped: list[str] = []
    started_s = time.monotonic()
    boards = options.board or list(QUICK_STRIDES if options.quick else BOARDS)
    for number, name in enumerate(boards):
        reason = _why_not(name)
        if reason is not None:
            skipped.append(name)
            print(f"NOT TESTED: {name}: {reason}", file=sys.stderr)
            continue
        share = kills // len(boards) + (number < kills % len(boards))
        rows += _campaign(name, QUICK_STRIDES.get(name, 90) if options.quick else 1, share, options.seed)
    return _report(rows, skipped, time.monotonic() - started_s)


def _why_not(name: str) -> str | None:
    if name.startswith("sysfs"):
        return SysfsTarget.why_not()
    return NvmlTarget.why_not() if name.startswith("nvml") else None


def _campaign(name: str, stride: int, kills: int, seed: int) -> list[Row]:
    directory = Path(tempfile.mkdtemp(prefix="polythrottle-crash-"))
    (directory / "board").mkdir()
    target = BOARDS[name](directory / "board")
    target.open()
    try:
        site = Site(target, directory)
        rows = []
        for row in _rows(site, stride, kills, seed):
            rows.append(row)
            wrong = f", {row.changed} changed, {row.lost} lost" if row.changed or row.lost else ""
            print(f"{row.board}: {row.killed}: {row.kills} kills{wrong}", file=sys.stderr, flush=True)
    finally:
        target.close()
    shutil.rmtree(directory)
    return rows


def _rows(site: Site, stride: int, kills: int, seed: int) -> Iterator[Row]:
    yield from kill_everywhere(site, seed, stride)
    yield kill_at_random(site, kills, seed)


def _report(rows: list[Row], skipped: list[str], took_s: float) -> int:
    print("| board | killed | kills | left changed | originals lost |")
    print("|---|---|---:|---:|---:|")
    for row in rows:
        print(f"| {row.board} | {row.killed} | {row.kills} | {row.changed} | {row.lost} |")
    for row in rows:
        for detail in row.details[:10]:
            print(detail)
    kills = sum(row.kills for row in rows)
    changed, lost = sum(row.changed for row in rows), sum(row.lost for row in rows)
    not_tested = f"; not tested: {', '.join(skipped)}" if skipped else ""
    passed = kills > 0 and changed == 0 and lost == 0
    print(
        f"crash-campaign: {'PASS' if passed else 'FAIL'} {changed} boards left changed, "
        f"{lost} originals lost in {took_s:.0f} s{not_tested} (n = {kills})"
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
