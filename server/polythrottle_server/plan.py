"""How a trial is measured: long enough to bound the statistic, cut short where it hopelessly misses."""

from __future__ import annotations

import math

from polythrottle.objective import LatencySlo
from polythrottle.studies import MeasurementPlan
from polythrottle.study import Study
from polythrottle.trial import Purpose, Trial
from polythrottle_server import two_phase
from polythrottle_server.evidence import resolved_slo
from polythrottle_server.protocol import smallest_batch

ABORT_FACTOR = 2.0
SAFE_ABORT_FACTOR = 1.5
"""Times the SLO's limit from which a window is cut short; the second one in safe mode."""


LEAST_QUERIES = 200
EXPECTED_BEYOND = 10
"""Queries expected beyond a percentile for a window to bound it."""
USUAL_QUERIES = 1000
"""The longest a window may take is meant for so many; one that needs more may take longer in proportion."""


def min_queries(slo: LatencySlo) -> int:
    """Queries a window needs: ten beyond the quantile for the high ones (1,000 for p99)."""
    quantile = slo.quantile
    if quantile is None or quantile < 0.9:
        return LEAST_QUERIES
    # 1 - 0.9 is a little below 0.1: that must not ask for one query more.
    return max(LEAST_QUERIES, math.ceil(EXPECTED_BEYOND / (1.0 - quantile) - 1e-6))


def max_window_s(slo: LatencySlo) -> float:
    """The longest a window may take: enough for p99.9 too, where p99 has the usual limit."""
    return MeasurementPlan().max_window_s * max(1.0, min_queries(slo) / USUAL_QUERIES)


def plan_for(study: Study, trial: Trial) -> MeasurementPlan:
    """The plan of one trial.

    The device as found and max clocks are measured in full whatever they take: they are what everything
    is compared with, and where they miss the SLO the answer must say by how much.
    """
    slo = resolved_slo(study)
    spared = (study.spec.anchor, smallest_batch(study.spec))
    abort_latency_s = None
    if (
        trial.purpose in (Purpose.SEARCH, Purpose.CONFIRM)
        and trial.configuration not in spared
        and slo.limit_s is not None
    ):
        abort_latency_s = slo.limit_s * (SAFE_ABORT_FACTOR if study.spec.safe else ABORT_FACTOR)
    stage = study.spec.first_stage if trial.purpose is Purpose.STAGE else None
    part_s = None if stage is None else two_phase.limit_s(study)
    if part_s is not None:
        abort_latency_s = part_s * ABORT_FACTOR
    return MeasurementPlan(
        min_queries=min_queries(slo),
        max_window_s=max_window_s(slo),
        abort_latency_s=abort_latency_s,
        precision=study.spec.precision,
        stage=None if stage is None else stage.name,
    )
