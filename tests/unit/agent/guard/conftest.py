"""Samples, by hand."""

from __future__ import annotations

import math

import pytest

from polythrottle.measurement import Unavailable
from polythrottle.objective import LatencySlo
from polythrottle_agent.guard.rules import GuardRules
from polythrottle_agent.guard.samples import Group, Health, LatencyView, Rate, Recent, Sample, Traffic

LIMIT_S = 0.1


def latency(value_s: float, *, spread: float = 0.1, n: int = 3000) -> Traffic:
    """A window whose bounds lie `spread` around its value, and whose last moments are alike."""
    share = 0.0 if value_s <= LIMIT_S else 0.02
    return Traffic(
        LatencyView(value_s, value_s * (1 - spread), value_s * (1 + spread), n), Recent(value_s, share, 200)
    )


def gross() -> Traffic:
    return Traffic(LatencyView(1.0, 0.5, math.inf, 100), Recent(1.0, 0.9, 50))


def with_rate(traffic: Traffic, per_s: float, error: float = 0.1) -> Traffic:
    return Traffic(traffic.latency, traffic.recent, Rate(per_s, error), traffic.groups)


def with_group(traffic: Traffic, at_s: float, median_s: float) -> Traffic:
    return Traffic(traffic.latency, traffic.recent, traffic.rate, (Group(at_s, median_s, 500),))


def sample(
    at_s: float, traffic: Traffic, temperature_c: float | None = 50.0, throttling: tuple[str, ...] = ()
) -> Sample:
    shown = Unavailable("none") if temperature_c is None else temperature_c
    return Sample(at_s, traffic, Health(shown, throttling))


@pytest.fixture
def rules() -> GuardRules:
    return GuardRules(LatencySlo("p99", limit_s=LIMIT_S), max_temperature_c=85.0)
