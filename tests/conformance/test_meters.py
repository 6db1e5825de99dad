"""What every meter must do."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from polythrottle.measurement import Scope, Unavailable
from polythrottle.studies import MeasurementPlan
from polythrottle_agent.ports import EnergyWindow

if TYPE_CHECKING:
    from tests.conformance.conftest import MemberCase

PLAN = MeasurementPlan(min_queries=100, min_window_s=0.5)


def window(case: MemberCase) -> EnergyWindow | Unavailable:
    case.device.meter.begin()
    case.device.workload.serve(PLAN, case.statistic)
    return case.device.meter.end()


def test_it_says_what_it_is(member_case: MemberCase) -> None:
    meter = member_case.device.meter
    assert meter.name
    assert isinstance(meter.scope, Scope)
    assert meter.provenance is member_case.device.identity.provenance


def test_a_window_has_energy_and_length(member_case: MemberCase) -> None:
    read = window(member_case)
    assert isinstance(read, EnergyWindow)
    assert math.isfinite(read.energy_j)
    assert read.energy_j > 0
    assert read.window_s > 0
    if read.standard_error_j is not None:
        assert 0 < read.standard_error_j < read.energy_j


def test_without_a_window_it_says_why_and_never_zero(member_case: MemberCase) -> None:
    read = member_case.device.meter.end()
    assert isinstance(read, Unavailable)
    assert read.reason


def test_what_was_read_so_far_leaves_the_window_open(member_case: MemberCase) -> None:
    meter = member_case.device.meter
    assert isinstance(meter.so_far(), Unavailable)
    meter.begin()
    member_case.device.workload.serve(PLAN, member_case.statistic)
    so_far, read = meter.so_far(), meter.end()
    assert isinstance(so_far, EnergyWindow)
    assert isinstance(read, EnergyWindow)
    assert 0 < so_far.energy_j <= read.energy_j * 1.05
    assert isinstance(meter.so_far(), Unavailable)


def test_a_window_is_read_once(member_case: MemberCase) -> None:
    window(member_case)
    assert isinstance(member_case.device.meter.end(), Unavailable)


def test_windows_do_not_add_up(member_case: MemberCase) -> None:
    first, second = window(member_case), window(member_case)
    assert isinstance(first, EnergyWindow)
    assert isinstance(second, EnergyWindow)
    assert second.energy_j < 1.5 * first.energy_j
