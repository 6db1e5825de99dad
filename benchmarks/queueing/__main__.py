"""Simulates one server with dynamic batching and prints what the optimiser interpolates in.

    python -m benchmarks.queueing > polythrottle/optimizer/queue_table.py

Poisson arrivals, one batch in service, no wait for a fuller batch; a batch of k takes 1 + r (k - 1), so that
time is in units of a batch of one. r = 0: batches are free; r = 1: they save nothing.
"""

from __future__ import annotations

import random
import sys
from multiprocessing import Pool

BATCHES = (1, 2, 4, 8, 16, 32)
GROWTHS = (0.0, 0.1, 0.25, 0.45, 0.7, 1.0)
LOADS = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.87, 0.93, 0.97)
"""Arrival rate over the most that full batches can serve."""
QUANTILES = (0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
N_QUERIES = 400_000
WARM_UP = 0.1

Cell = tuple[int, float, float]


def simulate(cell: Cell) -> tuple[float, ...]:
    """Mean batch, mean latency and the quantiles of latency."""
    batch, growth, load = cell
    service = [0.0] + [1.0 + growth * (k - 1) for k in range(1, batch + 1)]
    rate = load * batch / service[batch]
    draw = random.Random(1).expovariate  # the same arrivals everywhere: neighbours differ smoothly
    waiting: list[float] = []
    latencies: list[float] = []
    first = n_batches = 0
    now, due = 0.0, draw(rate)
    while len(latencies) < N_QUERIES:
        if first == len(waiting):
            now = max(now, due)
        while due <= now:
            waiting.append(due)
            due += draw(rate)
        size = min(batch, len(waiting) - first)
        now += service[size]
        n_batches += 1
        latencies.extend(now - arrived for arrived in waiting[first : first + size])
        first += size
        if first > 10_000:
            del waiting[:first]
            first = 0
    steady = sorted(latencies[int(WARM_UP * N_QUERIES) :])
    quantiles = (steady[round(q * (len(steady) - 1))] for q in QUANTILES)
    return (len(latencies) / n_batches, sum(steady) / len(steady), *quantiles)


def main() -> int:
    cells = [(b, r, u) for b in BATCHES for r in GROWTHS for u in LOADS]
    # A batch of one grows by nothing: one row stands for all.
    wanted = [cell for cell in cells if cell[0] > 1 or cell[1] == 0.0]
    with Pool() as pool:
        found = dict(zip(wanted, pool.map(simulate, wanted, chunksize=4), strict=True))
    print('"""Queueing with dynamic batching: written by `python -m benchmarks.queueing`, not by hand.\n')
    print("Each cell: mean batch, mean latency, and the quantiles of latency, in units of a batch of one.")
    print('"""\n\nfrom __future__ import annotations\n')
    for name, values in (
        ("BATCHES", BATCHES),
        ("GROWTHS", GROWTHS),
        ("LOADS", LOADS),
        ("QUANTILES", QUANTILES),
    ):
        print(f"{name} = {values}")
    print("\nCELLS: tuple[tuple[float, ...], ...] = (")
    for batch, growth, load in cells:
        row = found[(batch, growth if batch > 1 else 0.0, load)]
        print(f"    ({', '.join(f'{value:.4g}' for value in row)}),")
    print(')\n"""By batch, then growth, then load."""')
    print(f"{len(wanted)} cells simulated", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
