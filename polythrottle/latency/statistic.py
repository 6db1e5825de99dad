"""Which statistic of latency an SLO names."""

from __future__ import annotations

from polythrottle.errors import InvalidInputError
from polythrottle.objective import LatencySlo


def quantile_of(statistic: str, who: str = "This workload") -> float | None:
    """0.99 for `p99`, None for `mean`.

    Args:
        who: the subject of the error's sentence.

    Raises:
        InvalidInputError: neither a percentile nor `mean`.
    """
    if statistic == "mean":
        return None
    try:
        quantile = LatencySlo(statistic, limit_s=1.0).quantile
    except ValueError:
        quantile = None
    if quantile is None or not 0.0 < quantile < 1.0:
        raise InvalidInputError(f"{who} gives p50 to p99.9 or mean, not {statistic!r}.")
    return quantile
