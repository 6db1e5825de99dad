"""What every device must do under the executor, from the same anchor to the same original state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from polythrottle.configuration import Configuration, Knob
from polythrottle.measurement import EnergyReading
from polythrottle.objective import LatencySlo
from polythrottle.spaces import build_space
from polythrottle.studies import Assignment, Measured, MeasurementPlan
from polythrottle.trial import STOCK, Purpose, Trial
from polythrottle_agent.executor import Executor
from polythrottle_agent.holding import HeldDevice

if TYPE_CHECKING:
    from tests.conformance.conftest import MemberCase

PLAN = MeasurementPlan(min_queries=100, min_window_s=0.5)


def assignment(configuration: Configuration) -> Assignment:
    return Assignment(Trial(1, Purpose.SEARCH, configuration), PLAN)


def test_trials_are_measured_and_the_device_is_left_as_found(member_case: MemberCase) -> None:
    device = member_case.device
    slo = LatencySlo(member_case.statistic, limit_s=1.0)
    available = {name: Knob(name, control.levels) for name, control in device.controls.items()}
    choice = build_space(available, None, {}, None, device.recorded, device.workload.default_batch_size)
    found = {name: control.save() for name, control in device.controls.items()}
    lowest = choice.space.at(choice.space.indices()[0])
    with HeldDevice(device) as held:
        executor = Executor(device, held, fixed=dict(choice.fixed))
        for configuration in (choice.anchor, lowest, STOCK, choice.anchor):
            outcome = executor.run(assignment(configuration), slo)
            assert isinstance(outcome, Measured), outcome
            assert outcome.measurement.requested == configuration
            assert isinstance(outcome.measurement.energy, EnergyReading)
            assert outcome.measurement.energy.energy_j > 0
            if configuration != STOCK:
                assert outcome.measurement.accepted == configuration
    assert {name: control.save() for name, control in device.controls.items()} == found
    assert held.not_restored == ()


def test_its_identity_is_stable(member_case: MemberCase) -> None:
    identity = member_case.device.identity
    assert identity.id
    assert identity.board
    assert identity.label
    assert len(identity.tables_digest) == 64
