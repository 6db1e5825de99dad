"""`python -m benchmarks.live_traffic`: QUICK=1 runs fewer seeds. Exit code 1: too many miss the SLO."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from polythrottle.api import TuneRequest, prepare, run
from polythrottle.measurement import LatencyReading
from polythrottle.objective import LatencySlo
from polythrottle.study import Study
from polythrottle.traffic import LiveTraffic, nearest_in
from polythrottle.traffic_gate import is_violation
from polythrottle.trial import Purpose

BOARDS = ("orin-nano-8gb", "tx2")
SLOS = ("1.15x", "1.5x", "2.5x")
MODES = ("normal", "safe", "live")
LIMIT = 1.5
"""Trials that may miss the SLO on live traffic, in the mean over the runs."""


@dataclass(frozen=True)
class Outcome:
    """violations: how far over the SLO each trial that missed it was. saved: against stock."""

    violations: tuple[float, ...]
    searched: int
    saved: float | None


def once(board: str, slo: str, mode: str, seed: int) -> Outcome:
    request = TuneRequest(LatencySlo.parse(slo), f"emulated:{board}", seed=seed, safe=mode != "normal")
    prepared = prepare(request)
    if mode == "live":
        start = nearest_in(prepared.spec.space, prepared.device.accepted())
        rules = LiveTraffic(start, violations_per_hour=None)
        prepared = replace(prepared, spec=replace(prepared.spec, live=rules))
    with tempfile.TemporaryDirectory() as directory:
        study = run(prepared, Path(directory))
    return _outcome(study)


def _outcome(study: Study) -> Outcome:
    result = study.result
    assert result is not None
    limit_s = result.slo.limit_s
    readings = [t.measurement.latency for t in study.trials if is_violation(t) and t.measurement is not None]
    assert limit_s is not None
    over = [r.latency_s / limit_s for r in readings if isinstance(r, LatencyReading)]
    return Outcome(tuple(over), len(study.of(Purpose.SEARCH)), result.saving)


def main() -> int:
    seeds = 1 if os.environ.get("QUICK") == "1" else 3
    found = {
        mode: [once(board, slo, mode, seed) for board in BOARDS for slo in SLOS for seed in range(seeds)]
        for mode in MODES
    }
    print(f"boards        emulated {', '.join(BOARDS)}; p99 SLOs {', '.join(SLOS)}; {seeds} seeds each")
    for mode, runs in found.items():
        print(f"{mode:<13} {_words(runs)}")
    live = statistics.fmean(len(r.violations) for r in found["live"])
    normal = statistics.fmean(len(r.violations) for r in found["normal"])
    passed = live <= LIMIT
    print(
        f"live: {'PASS' if passed else 'FAIL'} {live:.2f} trials a run missed the SLO on live traffic, "
        f"{normal:.2f} without its rules, emulated (n = {len(found['live'])} runs each)"
    )
    return 0 if passed else 1


def _words(runs: list[Outcome]) -> str:
    saved = [r.saved for r in runs if r.saved is not None]
    worst = max((v for r in runs for v in r.violations), default=None)
    over = "" if worst is None else f", the worst at {worst:.2f} x the SLO"
    missed = statistics.fmean(len(r.violations) for r in runs)
    searched = statistics.fmean(r.searched for r in runs)
    return (
        f"{missed:.2f} trials a run miss the SLO{over}; {searched:.1f} search trials; "
        f"{statistics.fmean(saved):.1%} saved against stock"
    )


if __name__ == "__main__":
    sys.exit(main())
