"""What every workload must do."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from polythrottle.errors import InvalidInputError
from polythrottle.measurement import LatencyReading
from polythrottle.studies import MeasurementPlan

if TYPE_CHECKING:
    from tests.conformance.conftest import MemberCase

PLAN = MeasurementPlan(min_queries=200, min_window_s=0.5)


def test_it_says_what_it_is(member_case: MemberCase) -> None:
    workload = member_case.device.workload
    assert workload.name
    assert workload.model_version


def test_its_batch_sizes_are_the_batch_control_s(member_case: MemberCase) -> None:
    workload, control = member_case.device.workload, member_case.device.controls.get("batch_size")
    assert (control is not None) == bool(workload.batch_sizes)
    if control is not None:
        assert tuple(control.levels) == workload.batch_sizes
        assert workload.default_batch_size in workload.batch_sizes
    assert workload.default_batch_size >= 1


def test_it_serves_queries_and_gives_the_statistic(member_case: MemberCase) -> None:
    device = member_case.device
    device.workload.check_statistic(member_case.statistic)
    before_s = device.clock.now()
    served = device.workload.serve(PLAN, member_case.statistic)
    assert served.n_queries >= 1
    assert served.aborted_reason is None
    assert isinstance(served.latency, LatencyReading)
    assert math.isfinite(served.latency.latency_s)
    assert served.latency.latency_s > 0
    assert served.latency.statistic == member_case.statistic
    assert served.latency.n_queries == served.n_queries
    assert served.latency.provenance is device.identity.provenance
    error_s = served.latency.standard_error_s
    assert error_s is None or 0 <= error_s < served.latency.latency_s
    took_s = device.clock.now() - before_s
    if member_case.takes_time:
        assert served.duration_s <= took_s <= 2 * served.duration_s + 1
    else:
        assert took_s == pytest.approx(served.duration_s)


@pytest.mark.parametrize("statistic", ["median", "p100", "p0", "", "p", "pp9"])
def test_a_statistic_it_cannot_give_is_refused_in_one_sentence(
    member_case: MemberCase, statistic: str
) -> None:
    with pytest.raises(InvalidInputError) as error:
        member_case.device.workload.check_statistic(statistic)
    assert "\n" not in str(error.value)


def test_it_takes_no_warm_up_of_nothing(member_case: MemberCase) -> None:
    before_s = member_case.device.clock.now()
    member_case.device.workload.warm_up(0)
    took_s = member_case.device.clock.now() - before_s
    assert took_s < 0.1 if member_case.takes_time else took_s == 0


def test_a_window_over_the_limit_is_cut_short(member_case: MemberCase) -> None:
    plan = MeasurementPlan(min_queries=5000, abort_latency_s=1e-9, abort_after_queries=20)
    served = member_case.device.workload.serve(plan, member_case.statistic)
    if not member_case.can_be_cut_short:
        assert served.aborted_reason is None
        return
    assert served.aborted_reason
    assert served.n_queries < 5000
    assert isinstance(served.latency, LatencyReading)
    assert not served.latency.bounded
