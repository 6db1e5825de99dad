"""One measurement, in a process of its own on one core. Prints its figures as JSON.

python -m benchmarks.generator.measuring closed|open|httpx URL SECONDS [RATE]
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from polythrottle.clock import RealClock
from polythrottle.studies import MeasurementPlan
from polythrottle_agent.workloads.driven import DrivenWorkload
from polythrottle_agent.workloads.opening import WorkloadOptions, open_workload

CONNECTIONS = 16
BODY = '{"inputs": [1, 2, 3]}'


def generator(url: str, seconds: float, rate_per_s: float | None) -> dict[str, float]:
    """A window as a trial has it: arrivals, latencies, judging and all. Closed loop without a rate."""
    options = WorkloadOptions(
        rate_per_s=rate_per_s,
        closed_loop=rate_per_s is None,
        connections=CONNECTIONS if rate_per_s is None else 64,
        body=BODY,
        success="json:ok",
    )
    workload = open_workload(f"http:{url}", options, RealClock()).workload
    assert isinstance(workload, DrivenWorkload)
    workload.warm_up(200)
    used_s = time.process_time()
    served = workload.serve(MeasurementPlan(min_queries=1, min_window_s=seconds, max_window_s=seconds), "p99")
    used_s = time.process_time() - used_s
    report = workload.last_report
    assert report is not None
    return {
        "requests_per_s": report.n_requests / report.duration_s,
        "lost": served.lost.total,
        "core_share": used_s / report.duration_s,
        "late_p50_us": report.late_s(0.5) * 1e6,
        "late_p99_us": report.late_s(0.99) * 1e6,
        "late_max_us": report.late_s(1.0) * 1e6,
        "void": float(served.void_reason is not None),
    }


def httpx_closed(url: str, seconds: float) -> dict[str, float]:
    """The same closed loop with httpx, which is what the generator's own connections are there instead of."""
    import httpx

    async def main() -> int:
        count = 0
        limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
        async with httpx.AsyncClient(limits=limits) as client:

            async def ask() -> None:
                nonlocal count
                while time.monotonic() < until_s:
                    answer = await client.post(url, content=BODY)
                    count += answer.json()["ok"]

            until_s = time.monotonic() + seconds
            await asyncio.gather(*(ask() for _ in range(CONNECTIONS)))
        return count

    began_s, used_s = time.monotonic(), time.process_time()
    count = asyncio.run(main())
    lasted_s = time.monotonic() - began_s
    return {
        "requests_per_s": count / lasted_s,
        "lost": 0,
        "core_share": (time.process_time() - used_s) / lasted_s,
    }


def main() -> None:
    what, url, seconds, *rate = sys.argv[1:]
    if what == "httpx":
        figures = httpx_closed(url, float(seconds))
    else:
        figures = generator(url, float(seconds), float(rate[0]) if what == "open" else None)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
