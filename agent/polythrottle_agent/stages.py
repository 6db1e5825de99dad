"""Which stage of a workload the first of two phases tunes, and by which knob."""

from __future__ import annotations

from polythrottle.configuration import SearchSpace
from polythrottle.errors import InvalidInputError
from polythrottle.study import FirstStage
from polythrottle_agent.ports import Workload, stages_of

CPU_KNOB = "cpu_freq_mhz"


def first_stage(workload: Workload, space: SearchSpace) -> FirstStage:
    """The CPU stage before the model, tuned by the CPU clock, as in the PolyThrottle paper.

    Raises:
        InvalidInputError: the workload serves no stage alone, or the CPU clock is not searched.
    """
    stages = tuple(stages_of(workload))
    if not stages:
        raise InvalidInputError(
            f"--two-phase needs a workload with a CPU stage, and {workload.name} has none that could be "
            "measured alone; leave --two-phase out, or see docs/two-phase.md for workloads that have one."
        )
    if CPU_KNOB not in space.names or len(space.knob(CPU_KNOB).levels) < 2:
        raise InvalidInputError(
            f"--two-phase tunes {CPU_KNOB} first, and it is not searched here; add it to --knobs with two "
            "levels or more, or leave --two-phase out."
        )
    if len(space.names) < 2:
        raise InvalidInputError(
            f"--two-phase tunes {CPU_KNOB} first and the other knobs then, and there is no other one; "
            "leave --two-phase out."
        )
    return FirstStage(stages[0], CPU_KNOB)
