"""The workload of a recorded table: nobody is served, the row's latency is returned."""

from __future__ import annotations

import re

from polythrottle.clock import Clock
from polythrottle.errors import InvalidInputError
from polythrottle.measurement import LatencyReading, Provenance, Unavailable
from polythrottle.studies import MeasurementPlan
from polythrottle_agent.ports import MayEnd, Served
from polythrottle_agent.recorded_table import RECORDED
from polythrottle_agent.table_position import TablePosition


class ReplayWorkload:
    """Returns recorded latencies. There is no traffic to protect, so no window is cut short."""

    def __init__(
        self, position: TablePosition, clock: Clock, batch_sizes: tuple[int, ...], default_batch_size: int
    ) -> None:
        self._position = position
        self._clock = clock
        self._batch_sizes = batch_sizes
        self._default_batch_size = default_batch_size

    @property
    def name(self) -> str:
        return self._position.table.workload

    @property
    def model_version(self) -> str:
        """Names the table's content: an edited table starts another study."""
        return f"table-{self._position.table.digest[:12]}"

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        return self._batch_sizes

    @property
    def default_batch_size(self) -> int:
        return self._default_batch_size

    def check_statistic(self, statistic: str) -> None:
        table = self._position.table
        if _normal(statistic) in table.statistics:
            return
        known = " and ".join(
            f"{name} (latency_ms)" if name == RECORDED else name for name in table.statistics
        )
        example = RECORDED if RECORDED in table.statistics else table.statistics[-1]
        raise InvalidInputError(
            f"{table.name} holds no {statistic} latency, only {known}: "
            f"write for example --latency-slo '{example}<50ms' or '{example}<1.2x'."
        )

    def warm_up(self, n_queries: int) -> None:  # noqa: ARG002 - a table is never cold
        return None

    def serve(self, plan: MeasurementPlan, statistic: str, may_end: MayEnd | None = None) -> Served:  # noqa: ARG002
        self.check_statistic(statistic)
        row = self._position.row
        if row is None:
            return Served(0, 0.0, Unavailable(self._position.no_row))
        self._clock.sleep(row.recording_s)
        name = _normal(statistic)
        reading = LatencyReading(
            latency_s=row.latency_s[name],
            standard_error_s=row.latency_error_s if name == RECORDED else None,
            statistic=statistic,
            n_queries=1,
            bounded=True,
            provenance=Provenance.AS_RECORDED,
        )
        return Served(1, row.recording_s, reading)


def _normal(statistic: str) -> str:
    """`p99.0` and `p99` are the same statistic."""
    match = re.fullmatch(r"p(\d{1,2}\.\d+)", statistic)
    return f"p{float(match[1]):g}" if match else statistic
