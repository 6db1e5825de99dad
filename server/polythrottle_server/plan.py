"""How a trial is measured: long enough to bound the statistic, cut short where it hopelessly misses."""

from __future__ import annotations

from polythrottle.objective import LatencySlo
from polythrottle.studies import MeasurementPlan
from polythrottle.study import Study
from polythrottle.trial import Purpose, Trial
from polythrottle_server.evidence import resolved_slo
from polythrottle_server.protocol import smallest_batch

ABORT_FACTOR = 2.0
SAFE_ABORT_FACTOR = 1.5
"""Times the SLO's limit from which a window is cut short; the second one in safe mode."""


def min_queries(slo: LatencySlo) -> int:
    """Queries a window needs: ten beyond the quantile for the high ones (1,000 for p99)."""
    quantile = slo.quantile
    if quantile is None or quantile < 0.9:
        return 200
    if quantile < 0.99:
        return 400
    return round(10 / (1 - quantile))


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
    return MeasurementPlan(min_queries=min_queries(slo), abort_latency_s=abort_latency_s)
