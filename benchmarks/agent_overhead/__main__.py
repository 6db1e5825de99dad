"""`python -m benchmarks.agent_overhead`: QUICK=1 measures for less long. Exit code 1: a limit is exceeded."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile

SAMPLER_LIMIT = 0.01
"""Share of one core that the sampler may take at 10 readings a second."""

RSS_LIMIT_MB = 60.0
IMPORT_LIMIT_S = 0.4


def fresh_process(*arguments: str) -> dict[str, float]:
    """One measurement in a process of its own, so that nothing else is loaded there."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.agent_overhead.measuring", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""},
    )
    if done.returncode != 0:
        raise SystemExit(f"agent-overhead: FAIL the measuring process ended with:\n{done.stderr}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def main() -> int:
    quick = os.environ.get("QUICK") == "1"
    loads, windows, window_s = (3, 2, 2.0) if quick else (7, 5, 10.0)
    fresh_process("import")  # so that compiled files are there, as they are after an installation
    imports = [fresh_process("import")["import_s"] for _ in range(loads)]
    with tempfile.TemporaryDirectory() as root:
        samples = [fresh_process("sample", root, str(window_s)) for _ in range(windows)]
    import_s = statistics.median(imports)
    sampler = statistics.median(figures["sampler_share"] for figures in samples)
    witness = statistics.median(figures["witness_share"] for figures in samples)
    rss_mb = max(figures["rss_mb"] for figures in samples)
    readings = statistics.median(figures["readings_per_s"] for figures in samples)
    print(f"machine       {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(
        "tree          plain files in the layout of an AGX Orin: two INA3221, four rails, nine thermal zones"
    )
    print(f"sampler       {sampler:.2%} of a core at {readings:.1f} readings/s (limit {SAMPLER_LIMIT:.0%})")
    print(f"witness       {witness:.2%} of a core at 5 looks/s (no limit)")
    print(f"resident      {rss_mb:.1f} MB while both run (limit {RSS_LIMIT_MB:g} MB)")
    print(f"import        {import_s:.3f} s, median of {loads} (limit {IMPORT_LIMIT_S:g} s)")
    passed = sampler <= SAMPLER_LIMIT and rss_mb <= RSS_LIMIT_MB and import_s <= IMPORT_LIMIT_S
    print(
        f"agent-overhead: {'PASS' if passed else 'FAIL'} sampler {sampler:.2%} of a core, {rss_mb:.1f} MB, "
        f"import {import_s:.3f} s (n = {windows} windows of {window_s:g} s, {loads} imports)"
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
