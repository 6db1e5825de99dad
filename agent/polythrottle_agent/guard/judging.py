"""What one sample says, by the rules: what is over its limit, how surely, and what has passed. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from polythrottle.measurement import Unavailable
from polythrottle.objective import format_latency
from polythrottle_agent.guard.rules import GuardRules, RateBand
from polythrottle_agent.guard.samples import LatencyView, Rate, Sample, Traffic
from polythrottle_agent.guard.states import Cause

GROSS_SHARE = 0.5
"""A percentile is grossly missed where more than half of the last queries are late."""
GROSS_MEAN = 1.5
LEAST_RECENT = 5
RATE_SD = 3.0
CALM = 0.9
"""Of a limit: what lies below it has passed, so that nothing sways at the limit itself."""


@dataclass(frozen=True)
class Finding:
    """Something that is over its limit now. `patience_s`: how long it must be so before the guard acts."""

    cause: Cause
    sentence: str
    patience_s: float
    kind: str = ""
    """Tells two findings of one cause apart, which need not follow one another."""


def findings(sample: Sample, rules: GuardRules, band: RateBand | None) -> tuple[Finding, ...]:
    """Everything that is over its limit, the gravest first. `band` is in queries per second."""
    return (
        *_latency(sample.traffic, rules),
        *_health(sample, rules),
        *_rate(sample.traffic.rate, rules, band),
    )


def _latency(traffic: Traffic, rules: GuardRules) -> tuple[Finding, ...]:
    view, recent = traffic.latency, traffic.recent
    if isinstance(view, Unavailable):
        return (Finding(Cause.BLIND, f"latency cannot be seen: {view.reason}", rules.blind_s),)
    if not isinstance(view, LatencyView):
        return ()
    slo, limit_s = rules.slo, rules.limit_s
    if recent is not None and recent.n_queries >= LEAST_RECENT:
        if slo.quantile is None:
            gross = recent.value_s > GROSS_MEAN * limit_s
        else:
            gross = recent.share_over > GROSS_SHARE
        if gross:
            late = f"{recent.share_over:.0%} of the last {recent.n_queries} queries are over {_limit(rules)}"
            return (Finding(Cause.LATENCY, late, rules.patience_s, "surely"),)
    goes_on = recent is None or recent.value_s > limit_s
    if view.lower_s > limit_s and goes_on:
        text = f"{slo.statistic} is {_seconds(view.value_s)}, surely over {_limit(rules)}"
        return (Finding(Cause.LATENCY, text, rules.patience_s, "surely"),)
    if view.value_s > limit_s:
        now = _seconds(view.value_s)
        text = f"{slo.statistic} has been over {_limit(rules)} for {rules.persist_s:g} s: {now}"
        return (Finding(Cause.LATENCY, text, rules.persist_s, "by a little"),)
    return ()


def _health(sample: Sample, rules: GuardRules) -> tuple[Finding, ...]:
    health, found = sample.health, []
    limit_c = rules.max_temperature_c
    now_c = health.temperature_c
    if limit_c is not None and not isinstance(now_c, Unavailable) and now_c > limit_c:
        text = f"the device is at {now_c:.1f} °C, over {limit_c:g} °C"
        found.append(Finding(Cause.TEMPERATURE, text, rules.sustain_s))
    if rules.throttling and health.throttling:
        text = "; ".join(health.throttling)
        found.append(Finding(Cause.THROTTLING, text, rules.sustain_s))
    return tuple(found)


def _rate(rate: Rate | None, rules: GuardRules, band: RateBand | None) -> tuple[Finding, ...]:
    if rate is None or band is None:
        return ()
    if rate.per_s - RATE_SD * rate.error_per_s > band.high:
        text = f"{rate.per_s:.3g} queries arrive per second, above {band.high:.3g}"
        return (Finding(Cause.RATE_ABOVE, text, rules.rate_sustain_s),)
    if rate.per_s + RATE_SD * rate.error_per_s < band.low:
        text = f"{rate.per_s:.3g} queries arrive per second, below {band.low:.3g}"
        return (Finding(Cause.RATE_BELOW, text, rules.rate_below_sustain_s),)
    return ()


def has_passed(cause: Cause, sample: Sample, rules: GuardRules, band: RateBand | None) -> bool:
    """Whether a cause is gone, with room to the limit, and the SLO is met with room as well."""
    traffic, health = sample.traffic, sample.health
    view = traffic.latency
    if isinstance(view, Unavailable) or (
        isinstance(view, LatencyView) and view.value_s > CALM * rules.limit_s
    ):
        return False
    limit_c = rules.max_temperature_c
    cool = limit_c is None or (
        not isinstance(health.temperature_c, Unavailable) and health.temperature_c <= limit_c - rules.cooler_c
    )
    free = not rules.throttling or not health.throttling
    seen: Mapping[Cause, bool] = {
        Cause.TEMPERATURE: cool,
        # Nobody looking is no proof that nothing throttles.
        Cause.THROTTLING: health.throttling is not None,
        Cause.RATE_ABOVE: traffic.rate is not None,
    }
    few = band is None or traffic.rate is None or traffic.rate.per_s <= CALM * band.high
    return cool and free and few and seen.get(cause, True)


def _limit(rules: GuardRules) -> str:
    return format_latency(rules.limit_s)


def _seconds(latency_s: float) -> str:
    return "infinite: too many queries are lost" if latency_s == float("inf") else format_latency(latency_s)
