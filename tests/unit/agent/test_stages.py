"""Which stage is tuned first, and the executor's part in it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from polythrottle.clock import VirtualClock
from polythrottle.configuration import Configuration, Knob, SearchSpace
from polythrottle.errors import InvalidInputError
from polythrottle.objective import LatencySlo
from polythrottle.studies import Assignment, Measured, MeasurementPlan
from polythrottle.study import FirstStage
from polythrottle.trial import Purpose, Trial
from polythrottle_agent.devices import open_device
from polythrottle_agent.executor import Executor
from polythrottle_agent.holding import HeldDevice
from polythrottle_agent.ports import Served
from polythrottle_agent.stages import first_stage
from tests.unit.agent.conftest import ScriptedWorkload, reading

if TYPE_CHECKING:
    from tests.unit.agent.conftest import Scripted

CPU = Knob.of("cpu_freq_mhz", [500, 1000])
GPU = Knob.of("gpu_freq_mhz", [300, 900])
SLO = LatencySlo("p99", limit_s=0.05)


def workload(name: str):
    return open_device("emulated:agx-orin", name, 1, VirtualClock()).workload


def test_a_workload_with_a_cpu_stage_is_tuned_by_the_cpu_clock_first() -> None:
    space = SearchSpace((GPU, CPU))
    assert first_stage(workload("efficientnet-b0+preprocessing"), space) == FirstStage(
        "preprocessing", "cpu_freq_mhz"
    )


@pytest.mark.parametrize(
    ("name", "knobs", "says"),
    [
        ("efficientnet-b0", (GPU, CPU), "has none that could be measured alone"),
        ("efficientnet-b0+preprocessing", (GPU,), "add it to --knobs"),
        ("efficientnet-b0+preprocessing", (GPU, Knob.of("cpu_freq_mhz", [500])), "add it to --knobs"),
        ("efficientnet-b0+preprocessing", (CPU,), "there is no other one"),
    ],
)
def test_what_cannot_be_tuned_in_two_phases_is_refused_in_one_sentence(
    name: str, knobs: tuple[Knob, ...], says: str
) -> None:
    with pytest.raises(InvalidInputError, match=says) as error:
        first_stage(workload(name), SearchSpace(knobs))
    assert "--two-phase" in str(error.value)
    assert "\n" not in str(error.value)


# The executor


class Staged(ScriptedWorkload):
    """A scripted workload with a stage of its own script."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(clock)
        self.alone = ScriptedWorkload(clock, Served(500, 1.0, reading(0.003)))

    @property
    def stages(self):
        return {"preprocessing": self.alone}


def assignment(stage: str | None) -> Assignment:
    plan = MeasurementPlan(settle_s=0.0, warmup_queries=7, stage=stage)
    return Assignment(Trial(1, Purpose.STAGE, Configuration.of({"gpu_freq_mhz": 500.0})), plan)


def test_a_stage_is_served_alone_with_everything_else_as_found(scripted: Scripted) -> None:
    staged = Staged(scripted.clock)
    device = dataclasses.replace(scripted.device, workload=staged)
    with HeldDevice(device) as held:
        executor = Executor(device, held)
        held.apply({"mem_freq_mhz": 400.0})
        outcome = executor.run(assignment("preprocessing"), SLO)
        assert isinstance(outcome, Measured), outcome
        # Memory, which the trial does not name, is back where it was found.
        assert scripted.controls["mem_freq_mhz"].value == "unlocked"
        assert scripted.controls["gpu_freq_mhz"].value == 500.0
    assert staged.alone.warmed_up == [7]
    assert staged.warmed_up == []
    assert outcome.measurement.latency == reading(0.003)
    assert set(outcome.measurement.accepted) == {"gpu_freq_mhz"}


def test_what_is_fixed_stays_fixed_while_a_stage_is_served(scripted: Scripted) -> None:
    device = dataclasses.replace(scripted.device, workload=Staged(scripted.clock))
    with HeldDevice(device) as held:
        executor = Executor(device, held, fixed={"mem_freq_mhz": 400.0})
        assert isinstance(executor.run(assignment("preprocessing"), SLO), Measured)
        assert scripted.controls["mem_freq_mhz"].value == 400.0


def test_a_trial_of_the_whole_does_not_put_anything_back(scripted: Scripted) -> None:
    device = dataclasses.replace(scripted.device, workload=Staged(scripted.clock))
    with HeldDevice(device) as held:
        held.apply({"mem_freq_mhz": 400.0})
        Executor(device, held).run(assignment(None), SLO)
        assert scripted.controls["mem_freq_mhz"].value == 400.0


def test_a_stage_that_is_not_there_is_refused(scripted: Scripted) -> None:
    for each in (scripted.device.workload, Staged(scripted.clock)):
        device = dataclasses.replace(scripted.device, workload=each)
        with HeldDevice(device) as held, pytest.raises(InvalidInputError, match="no stage 'decoding'"):
            Executor(device, held).run(assignment("decoding"), SLO)
