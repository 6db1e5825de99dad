"""How often the guard falls back for nothing, and how soon it sees a slow service: queues in virtual time.

The window and the state machine are the guard's own; only the queue before them is simulated.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from polythrottle.measurement import Unavailable
from polythrottle.objective import LatencySlo
from polythrottle_agent.guard.machine import FallBackTo, advance, begun
from polythrottle_agent.guard.rules import GuardRules
from polythrottle_agent.guard.samples import Health, Sample
from polythrottle_agent.guard.sliding import SlidingWindow

SERVICE_S = 1 / 60
LOOK_S = 0.5
ROOM = 1.25
"""Times its own p99 that the SLO allows."""
CHANGE_S = 300.0
P99_QUERIES = 400_000
SERVICES = {"steady": "the same time each, within 3 %", "exponential": "exponential service times"}

Service = Callable[[random.Random, float], float]
"""The time of one query that begins at a moment."""

_HEALTHY = Health(Unavailable("simulated"), ())


@dataclass(frozen=True)
class Quiet:
    """A service that meets its SLO: hours watched, and fall backs in them."""

    service: str
    load: float
    hours: float
    fall_backs: int


@dataclass(frozen=True)
class Slower:
    """A service that became slower: seconds until the guard fell back; None: not in ten minutes."""

    ratio: float
    seconds: tuple[float | None, ...]


def service_of(kind: str, slower: float = 1.0) -> Service:
    """Slower by that ratio from `CHANGE_S` on."""

    def draw(rng: random.Random, began_s: float) -> float:
        base_s = SERVICE_S * (slower if began_s > CHANGE_S else 1.0)
        return base_s * (rng.expovariate(1.0) if kind == "exponential" else rng.gauss(1.0, 0.03))

    return draw


def queue(load: float, service: Service, seed: int) -> Iterator[tuple[float, float]]:
    """When each query is answered, and after how long: Poisson arrivals at one server."""
    rng = random.Random(seed)
    arrived_s = free_s = 0.0
    while True:
        arrived_s += rng.expovariate(load / SERVICE_S)
        began_s = max(arrived_s, free_s)
        free_s = began_s + service(rng, began_s)
        yield free_s, free_s - arrived_s


def p99_s(kind: str, load: float) -> float:
    """By simulation: of a steady service no formula is short."""
    answered = queue(load, service_of(kind), 0)
    latencies = sorted(latency_s for _, (_, latency_s) in zip(range(P99_QUERIES), answered, strict=False))
    return latencies[int(0.99 * P99_QUERIES)]


def falls_back_at(answered: Iterator[tuple[float, float]], limit_s: float, until_s: float) -> float | None:
    """The moment at which the guard falls back; None where it does not."""
    rules = GuardRules(LatencySlo("p99", limit_s=limit_s), rate_band=None)
    window = SlidingWindow(rules.slo, rules.window_s, rules.recent_s, 0.0)
    status, next_s = begun(0.0, 1), LOOK_S
    for done_s, latency_s in answered:
        while next_s <= done_s:
            step = advance(status, Sample(next_s, window.look(next_s), _HEALTHY), rules)
            if any(isinstance(action, FallBackTo) for action in step.actions):
                return next_s
            status, next_s = step.status, next_s + LOOK_S
        if done_s > until_s:
            return None
        window.add(done_s, latency_s)
    return None


def watch_quietly(kind: str, load: float, hours: float, limit_s: float) -> Quiet:
    """After a fall back the watch begins anew, with another seed."""
    left_s, fall_backs, seed = 3600.0 * hours, 0, 1
    while left_s > 0:
        fell_s = falls_back_at(queue(load, service_of(kind), seed), limit_s, left_s)
        fall_backs += fell_s is not None
        left_s -= left_s if fell_s is None else fell_s
        seed += 1
    return Quiet(kind, load, hours, fall_backs)


def become_slower(ratio: float, load: float, limit_s: float, times: int) -> Slower:
    found = []
    for seed in range(times):
        answered = queue(load, service_of("steady", ratio), seed)
        fell_s = falls_back_at(answered, limit_s, CHANGE_S + 600.0)
        found.append(None if fell_s is None else fell_s - CHANGE_S)
    return Slower(ratio, tuple(found))
