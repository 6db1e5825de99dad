"""What the load was like: how much was sent, how late the generator was, what it cost, what went wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from polythrottle.latency.histogram import LatencyHistogram
from polythrottle.objective import format_latency
from polythrottle_agent.load.sender import Answer, Outcome
from polythrottle_agent.ports import Lost

LATENESS_LIMIT_S = 0.001
"""A generator that is this late (p99) is late in any case; above, it depends on the latency measured."""

LATENESS_SHARE = 0.1
"""Lateness may be this share of the latency that is measured."""

LATE_REQUESTS = 5
"""So many late ones, and 1 % of all, make a window void: fewer are an accident of the machine."""

BUSY_LIMIT = 0.9
"""Share of a core at which the generator itself is what the queries wait for."""

NOTEWORTHY = 0.5
"""Share of a limit from which a generator's own trouble is worth telling."""


@dataclass
class LoadReport:
    """One window of load.

    Args:
        duration_s: from its start to the last answer that counts.
        processor_s: processor time of the generator's thread.
        n_requests: sent.
        lost: queries not answered well, by kind.
        lateness: how late requests left: against their own schedule, once a connection was free. Empty for a
            closed loop, which has none.
        latencies: of the good queries.
        failures: how often which reason was given, in requests.
    """

    duration_s: float = 0.0
    processor_s: float = 0.0
    n_requests: int = 0
    lost: Lost = field(default_factory=Lost)
    lateness: LatencyHistogram = field(default_factory=LatencyHistogram)
    latencies: LatencyHistogram = field(default_factory=LatencyHistogram)
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def is_open_loop(self) -> bool:
        """Whether there was a schedule to be late against."""
        return len(self.lateness) > 0

    def late_s(self, quantile: float) -> float:
        """A quantile of lateness in seconds; 0 without a schedule."""
        return self.lateness.quantile(quantile) if self.is_open_loop else 0.0

    @property
    def busy_share(self) -> float:
        """Of one core, used by the generator."""
        return self.processor_s / self.duration_s if self.duration_s > 0 else 0.0

    def failed(self, answer: Answer, n_queries: int) -> None:
        """Count a request that was not answered well."""
        lost = self.lost
        if answer.outcome is Outcome.TIMEOUT:
            self.lost = Lost(lost.errors, lost.timeouts + n_queries, lost.dropped)
        else:
            self.lost = Lost(lost.errors + n_queries, lost.timeouts, lost.dropped)
        self.failures[answer.reason] += 1

    def dropped(self, n_queries: int) -> None:
        """Count queries that no connection was free for until they had timed out."""
        lost = self.lost
        self.lost = Lost(lost.errors, lost.timeouts, lost.dropped + n_queries)
        self.failures["no connection was free in time"] += 1

    @property
    def most_frequent_failure(self) -> str | None:
        """In words, with how often; None where all went well."""
        if not self.failures:
            return None
        ((reason, count),) = self.failures.most_common(1)
        return f"{reason} ({count:,} of {self.n_requests:,} requests)"

    def void_reason(self, latency_s: float | None) -> str | None:
        """Why the window proves nothing: the generator itself could not keep up. None: it could.

        Args:
            latency_s: the statistic that was measured; lateness is part of it.
        """
        late_s = self.late_s(0.99)
        limit_s = max(LATENESS_LIMIT_S, LATENESS_SHARE * (latency_s or 0.0))
        late_requests = self.lateness.share_above(limit_s) * len(self.lateness)
        if late_s > limit_s and late_requests >= LATE_REQUESTS - 0.5:
            return (
                f"the load generator could not keep up: p99 of its lateness was {format_latency(late_s)}, "
                f"more than {format_latency(limit_s)}; lower --rate, or free a processor for it"
            )
        if self.busy_share > BUSY_LIMIT:
            used = f"the load generator could not keep up: it used {self.busy_share:.0%} of a processor"
            if not self.is_open_loop:
                return f"{used}, so that the peak is its own and not the service's"
            return f"{used}; lower --rate"
        return None

    @property
    def is_noteworthy(self) -> bool:
        """Whether the generator came near a limit."""
        return self.late_s(0.99) > NOTEWORTHY * LATENESS_LIMIT_S or self.busy_share > NOTEWORTHY * BUSY_LIMIT

    def __str__(self) -> str:
        late = ""
        if self.is_open_loop:
            late = f"was {format_latency(self.late_s(0.99))} late (p99) and "
        return (
            f"{self.n_requests:,} requests in {self.duration_s:.3g} s; the generator {late}used "
            f"{self.busy_share:.1%} of a processor"
        )
