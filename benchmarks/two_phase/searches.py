"""Real searches on the emulated board, noise included: study, optimiser, executor, meter, as in `tune`."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.two_phase.landscape import Landscape
from polythrottle.clock import VirtualClock
from polythrottle.configuration import Knob
from polythrottle.objective import EnergyObjective, LatencySlo
from polythrottle.spaces import build_space
from polythrottle.studies import Finished
from polythrottle.study import FirstStage, Strategy, Study, StudySpec
from polythrottle_agent.emulation.device import open_emulated
from polythrottle_agent.emulation.preprocessing import STAGE, SUFFIX, CpuStage
from polythrottle_agent.executor import Executor
from polythrottle_agent.holding import HeldDevice
from polythrottle_agent.ports import Device
from polythrottle_agent.workloads.emulated_stages import StagedEmulatedWorkload
from polythrottle_server.database.opening import open_database
from polythrottle_server.studies import EmbeddedStudies
from polythrottle_server.suggesting import InProcessSuggester
from polythrottle_server.two_phase import MOST_LEVELS

SPLIT_TRIALS = 20
JOINT_TRIALS = SPLIT_TRIALS + MOST_LEVELS + 1
"""A joint search gets the trials that a first phase may take on top, though those take less time."""
TOLERANCE = 0.01
"""An answer that truly takes this much longer than allowed is counted as one that misses the SLO."""


@dataclass(frozen=True)
class Found:
    """What one search found: its true energy over the joint optimum's, whether it keeps the SLO, its cost."""

    loss: float
    keeps_slo: bool
    n_trials: int
    device_s: float


class Laboratory:
    """Runs searches on one landscape; a prior is built once for all seeds."""

    def __init__(self, landscape: Landscape, factor: float) -> None:
        self.landscape = landscape
        self.factor = factor
        self._suggester = InProcessSuggester()

    def search(self, strategy: Strategy, *, two_phase: bool, seed: int) -> Found:
        device = self._device(seed)
        spec = self._spec(device, strategy, seed)
        if two_phase:
            spec = replace(spec, first_stage=FirstStage(STAGE, "cpu_freq_mhz"), max_trials=SPLIT_TRIALS)
        with tempfile.TemporaryDirectory() as directory:
            database = open_database(Path(directory) / "studies.sqlite")
            studies = EmbeddedStudies(database, self._suggester, device.clock)
            with HeldDevice(device) as held:
                study = _run(studies, studies.create(spec), Executor(device, held))
            database.close()
        result = study.result
        assert result is not None
        chosen = self.landscape.of(result.chosen.configuration if result.chosen is not None else {})
        limit_s = self.factor * self.landscape.max_clocks.latency_s
        return Found(
            chosen.energy_j / self.landscape.joint(self.factor).energy_j - 1.0,
            chosen.latency_s <= limit_s * (1.0 + TOLERANCE),
            result.n_trials,
            result.search_time_s,
        )

    def _device(self, seed: int) -> Device:
        behaviour = self.landscape.behaviour
        name = f"{behaviour.calibration.workload}{SUFFIX}"
        device = open_emulated(behaviour.board.name, name, VirtualClock(), seed)
        assert isinstance(device.workload, StagedEmulatedWorkload)
        sized = device.workload.resized(CpuStage.of(behaviour, self.landscape.size))
        return replace(device, workload=sized)

    def _spec(self, device: Device, strategy: Strategy, seed: int) -> StudySpec:
        choice = build_space(
            {name: Knob(name, control.levels) for name, control in device.controls.items()},
            None,
            {},
            None,
            None,
            device.workload.default_batch_size,
        )
        return StudySpec(
            device=device.identity,
            workload=device.workload.name,
            model_version=device.workload.model_version,
            slo=LatencySlo("p99", factor=self.factor),
            objective=EnergyObjective.ENERGY_PER_QUERY,
            space=choice.space,
            anchor=choice.anchor,
            # Stock plays no part here: the answers are compared with the optimum.
            baseline=False,
            strategy=strategy,
            max_trials=JOINT_TRIALS,
            seed=seed,
        )


def _run(studies: EmbeddedStudies, study: Study, executor: Executor) -> Study:
    while True:
        assignment = studies.ask(study.id)
        if isinstance(assignment, Finished):
            return studies.get(study.id)
        trial = assignment.trial
        outcome = executor.run(assignment, study.spec.slo)
        study = studies.tell(study.id, trial.number, trial.attempt, outcome)
