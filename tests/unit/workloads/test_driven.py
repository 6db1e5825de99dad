"""What a driven workload makes of a window, in virtual time."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest

from polythrottle.clock import VirtualClock
from polythrottle.errors import InvalidInputError
from polythrottle.measurement import LatencyReading, Provenance, Unavailable
from polythrottle.studies import MeasurementPlan
from polythrottle_agent.load.arrivals import Arrivals
from polythrottle_agent.load.batching import BatchControl, BatchSize
from polythrottle_agent.load.options import Load
from polythrottle_agent.load.sender import GOOD, Answer, Sender
from polythrottle_agent.ports import ControlError, Served
from polythrottle_agent.workloads.driven import DrivenWorkload
from tests.fakes.queueing_service import QueueingService

PLAN = MeasurementPlan(min_queries=1000, min_window_s=2.0, max_window_s=60.0)
GUARDED = MeasurementPlan(min_queries=1000, min_window_s=2.0, max_window_s=60.0, abort_latency_s=0.1)


def workload(sender: Sender, rate_per_s: float | None = 100.0, **load: float) -> DrivenWorkload:
    arrivals = None if rate_per_s is None else Arrivals.parse("poisson", rate_per_s)
    return DrivenWorkload(
        "w",
        "1",
        sender,
        Load(arrivals, **load),
        VirtualClock(),
        provenance=Provenance.EMULATED,  # type: ignore[arg-type]
    )


def fixed(service_s: float) -> Callable[[int], float]:
    return lambda _: service_s


def reading(served: Served) -> LatencyReading:
    assert isinstance(served.latency, LatencyReading), served
    return served.latency


def test_a_window_over_an_m_d_1_queue_has_its_mean_latency() -> None:
    driven = workload(QueueingService(fixed(0.005)))
    served = driven.serve(MeasurementPlan(min_queries=20_000, max_window_s=1e4), "mean")
    # Pollaczek–Khinchine for deterministic service: s + s·ρ / (2·(1 − ρ)), here at ρ = 0.5.
    assert reading(served).latency_s == pytest.approx(0.0075, rel=0.03)
    assert served.lost.total == 0
    assert served.void_reason is None
    assert "requests in" in served.notes[0]
    report = driven.last_report
    assert report is not None
    assert len(report.latencies) == served.n_queries
    assert report.latencies.mean() == pytest.approx(reading(served).latency_s, rel=1e-3)
    assert served.duration_s == pytest.approx(200.0, rel=0.05)


def test_the_queries_that_are_counted_are_the_good_ones() -> None:
    rng = random.Random(1)
    service = QueueingService(
        fixed(0.002), answers=lambda: GOOD if rng.random() > 0.2 else Answer.error("status 500")
    )
    served = workload(service).serve(PLAN, "p50")
    total = served.n_queries + served.lost.errors
    assert served.lost.errors / total == pytest.approx(0.2, abs=0.04)
    assert reading(served).n_queries == served.n_queries
    assert any("status 500" in note for note in served.notes)


def test_failures_cannot_make_a_percentile_look_good() -> None:
    kinds = itertools.cycle([GOOD] * 19 + [Answer.error("status 500")])
    served = workload(QueueingService(fixed(0.002), answers=lambda: next(kinds))).serve(GUARDED, "p99")
    assert served.aborted_reason is not None
    assert not reading(served).bounded
    assert served.lost.errors > 0


def test_a_service_that_fails_every_query_has_no_latency() -> None:
    service = QueueingService(fixed(0.002), answers=lambda: Answer.error("status 503"))
    served = workload(service).serve(PLAN, "p99")
    assert isinstance(served.latency, Unavailable)
    assert "status 503" in served.latency.reason
    assert served.n_queries == 0
    assert served.aborted_reason is None
    assert served.duration_s < 3.0


def test_a_service_that_stalls_is_given_up_soon() -> None:
    quick = iter([0.01] * 100)
    service = QueueingService(lambda _: next(quick, 1e6), servers=1000)
    served = workload(service, connections=500).serve(GUARDED, "p99")
    assert served.aborted_reason is not None
    assert served.duration_s < 1.5 + 2.2
    assert reading(served).latency_s > 1.0
    assert not reading(served).bounded
    assert served.lost.timeouts > 50


def test_a_stall_that_leaves_few_unanswered_is_a_lower_bound_all_the_same() -> None:
    quick = iter([0.01] * 3000)
    plan = MeasurementPlan(min_queries=10_000, min_window_s=2.0, max_window_s=1e4, abort_latency_s=0.1)
    served = workload(
        QueueingService(lambda _: next(quick, 1e6), servers=1000), rate_per_s=5.0, connections=500
    ).serve(plan, "p99")
    assert served.aborted_reason is not None
    assert "nothing was answered for 2" in served.aborted_reason
    assert served.n_queries == 3000
    assert reading(served).latency_s > 2.0
    assert not reading(served).bounded


def test_a_service_that_is_too_slow_is_dropped_soon() -> None:
    served = workload(QueueingService(fixed(0.2), servers=100)).serve(GUARDED, "p99")
    assert served.aborted_reason is not None
    assert served.duration_s < 2.0
    assert reading(served).latency_s == pytest.approx(0.2, rel=0.01)


def test_a_slo_of_minutes_is_not_a_stall() -> None:
    plan = MeasurementPlan(min_queries=20, min_window_s=2.0, max_window_s=600.0, abort_latency_s=60.0)
    served = workload(QueueingService(fixed(30.0), servers=100), rate_per_s=1.0, time_out_s=120.0).serve(
        plan, "mean"
    )
    assert served.aborted_reason is None
    assert reading(served).latency_s == pytest.approx(30.0)


def test_a_service_that_is_gone_fails_the_window_in_words() -> None:
    served = workload(QueueingService(fixed(0.1), is_there=False)).serve(PLAN, "p99")
    assert isinstance(served.latency, Unavailable)
    assert "nobody listens" in served.latency.reason


def test_each_window_has_arrivals_of_its_own() -> None:
    service = QueueingService(fixed(0.004))
    driven = workload(service)
    values = {round(reading(driven.serve(PLAN, "mean")).latency_s, 7) for _ in range(3)}
    assert len(values) == 3
    assert driven.serve(PLAN, "mean").notes == ()
    assert not service.is_open


def test_a_window_grows_until_whoever_asks_is_content() -> None:
    asked = []

    def may_end() -> bool:
        asked.append(True)
        return len(asked) > 20

    served = workload(QueueingService(fixed(0.001))).serve(PLAN, "p50", may_end)
    assert len(asked) == 21
    assert served.n_queries > 1000


def test_a_closed_loop_counts_batches_as_the_plan_says() -> None:
    batch = BatchSize((1, 4))
    service = QueueingService(lambda n: 0.01 * n, per_request=4)
    driven = DrivenWorkload("w", "1", service, Load(None, connections=1), VirtualClock(), batch=batch)
    served = driven.serve(MeasurementPlan(min_queries=100, min_window_s=1.0), "p50")
    assert reading(served).latency_s == pytest.approx(0.04)
    assert served.n_queries == pytest.approx(25 * served.duration_s * 4, rel=0.02)
    assert served.n_queries >= 400  # batches count once towards the percentile


def test_it_warms_up_with_as_many_queries_as_asked() -> None:
    service = QueueingService(fixed(0.01), per_request=8)
    workload(service).warm_up(20)
    assert service.n_sent == 3
    workload(service).warm_up(0)
    assert service.n_sent == 3
    assert service.most_in_flight == 1


@pytest.mark.parametrize(
    ("service", "words"),
    [
        (QueueingService(fixed(0.01), is_there=False), "nobody listens"),
        (QueueingService(fixed(0.01), answers=lambda: Answer.error("status 404")), "status 404"),
        (QueueingService(fixed(1e6)), "no answer within"),
    ],
)
def test_a_service_that_does_not_work_is_said_at_warm_up(service: QueueingService, words: str) -> None:
    with pytest.raises(ControlError, match=words):
        workload(service, time_out_s=1.0).warm_up(20)
    assert service.n_sent <= 3
    with pytest.raises(InvalidInputError, match=words) as error:
        workload(service, time_out_s=1.0).check_service()
    assert "\n" not in str(error.value)


def test_a_slow_first_answer_is_no_trouble() -> None:
    kinds = iter([Answer.error("loading"), Answer.error("loading")])
    workload(QueueingService(fixed(0.01), answers=lambda: next(kinds, GOOD))).warm_up(5)


@pytest.mark.parametrize("statistic", ["median", "p100", "p0", "", "recorded"])
def test_a_statistic_it_cannot_give_is_refused(statistic: str) -> None:
    with pytest.raises(InvalidInputError):
        workload(QueueingService(fixed(0.1))).check_statistic(statistic)


def test_the_batch_control_sets_what_a_sender_reads() -> None:
    batch = BatchSize((4, 1, 2))
    control = BatchControl(batch)
    assert control.levels == (1.0, 2.0, 4.0)
    saved = control.save()
    control.apply(4.0)
    assert batch.value == 4
    control.restore(saved)
    assert control.accepted() == 1.0
    with pytest.raises(InvalidInputError):
        control.apply(3.0)
    for nonsense in ({}, {"batch": "x"}, {"batch": "0"}):
        with pytest.raises(ControlError):
            control.restore(nonsense)
