"""Searches on emulated boards with fixed windows and with early abort: seconds spent violating the SLO."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from polythrottle.clock import VirtualClock
from polythrottle.configuration import Configuration, Knob
from polythrottle.measurement import LatencyReading, Measurement
from polythrottle.objective import EnergyObjective, LatencySlo
from polythrottle.spaces import build_space
from polythrottle.studies import Finished, MeasurementPlan
from polythrottle.study import StudySpec
from polythrottle.trial import Purpose, Trial
from polythrottle_agent.controls.emulated import EmulatedControl
from polythrottle_agent.emulation.behaviour import Behaviour
from polythrottle_agent.emulation.board import EmulatedBoard
from polythrottle_agent.emulation.device import open_emulated
from polythrottle_agent.executor import Executor
from polythrottle_agent.holding import HeldDevice
from polythrottle_agent.load.arrivals import Arrivals, Kind
from polythrottle_agent.load.options import Load
from polythrottle_agent.ports import Workload
from polythrottle_agent.workloads.emulated import EmulatedWorkload
from polythrottle_agent.workloads.emulated_queue import QueuedEmulatedWorkload
from polythrottle_server.database.opening import open_database
from polythrottle_server.studies import EmbeddedStudies
from polythrottle_server.suggesting import InProcessSuggester

STATISTIC = "p99"
TOLERANCE = 0.01
"""A configuration violates where its true latency is more than this above the limit."""
TRUTH_QUERIES = 20_000

PlanRule = Callable[[MeasurementPlan, float], MeasurementPlan]
"""Makes a trial's plan of the study's, given the SLO's limit in seconds."""


def fixed(plan: MeasurementPlan, _: float) -> MeasurementPlan:
    """Every window in full, as long as its statistic needs."""
    return replace(plan, abort_latency_s=None, precision=None)


def aborting_at(factor: float) -> PlanRule:
    """The same windows, cut short by the sequential test at a multiple of the limit."""

    def rule(plan: MeasurementPlan, limit_s: float) -> MeasurementPlan:
        spared = plan.abort_latency_s is None
        return replace(plan, abort_latency_s=None if spared else factor * limit_s, precision=None)

    return rule


@dataclass(frozen=True)
class Case:
    """What is searched. `load` is the share of max clocks' capacity that arrives; None: back to back."""

    board: str
    workload: str
    factor: float
    load: float | None

    @property
    def name(self) -> str:
        how = "back to back" if self.load is None else f"Poisson, load {self.load:g}"
        return f"{self.board} {self.workload}, {how}, {self.factor:g}x"


@dataclass(frozen=True)
class Truth:
    """One configuration. `latency_s` is inf where it loses more queries than the statistic allows."""

    latency_s: float
    energy_j: float


@dataclass(frozen=True)
class Found:
    """One search: seconds of trials, those in violating configurations, and what came out of it."""

    violating_s: float
    trials_s: float
    n_trials: int
    n_violating: int
    n_cut: int
    n_cut_wrongly: int
    energy_j: float | None
    keeps_slo: bool


class Ground:
    """A case whose truth is known; a prior is built once for all its searches."""

    def __init__(self, case: Case, suggester: InProcessSuggester) -> None:
        self.case = case
        self._suggester = suggester
        self._truths: dict[Configuration, Truth] = {}
        noisy = Behaviour.of(case.board, case.workload)
        noise = replace(noisy.calibration.noise, scatter_one=0.0, scatter_many=0.0)
        self._behaviour = replace(noisy, calibration=replace(noisy.calibration, noise=noise))
        device = open_emulated(case.board, case.workload, VirtualClock(), 0)
        self._choice = build_space(
            {name: Knob(name, control.levels) for name, control in device.controls.items()},
            None,
            {},
            None,
            None,
            device.workload.default_batch_size,
        )
        self._arrivals = None
        if case.load is not None:
            board = self._board(self._choice.anchor)
            seconds, _ = board.behaviour.latency_and_power(board.point_under_load())
            self._arrivals = Arrivals(Kind.POISSON, case.load * board.nodes.batch / seconds)
        self.limit_s = case.factor * self.truth(self._choice.anchor).latency_s

    def truth(self, configuration: Configuration) -> Truth:
        """Under the case's load, from one long window without noise between windows."""
        if configuration not in self._truths:
            board = self._board(configuration)
            workload = self._workload(board)
            workload.warm_up(TRUTH_QUERIES // 20)
            began_j = board.energy_counter_j()
            plan = MeasurementPlan(min_queries=TRUTH_QUERIES, max_window_s=math.inf)
            served = workload.serve(plan, STATISTIC)
            spent_j = board.energy_counter_j() - began_j
            reading = served.latency
            latency_s = math.inf
            if isinstance(reading, LatencyReading) and served.aborted_reason is None:
                latency_s = reading.latency_s
            self._truths[configuration] = Truth(latency_s, spent_j / max(served.n_queries, 1))
        return self._truths[configuration]

    def _board(self, configuration: Configuration) -> EmulatedBoard:
        board = EmulatedBoard(self._behaviour, VirtualClock(), 0)
        for knob, level in configuration.items():
            EmulatedControl(board, knob).apply(level)
        return board

    def _workload(self, board: EmulatedBoard) -> Workload:
        if self._arrivals is None:
            return EmulatedWorkload(board)
        return QueuedEmulatedWorkload(board, Load(self._arrivals))

    def search(self, rule: PlanRule, seed: int) -> Found:
        case = self.case
        load = Load(self._arrivals, seed=seed)
        device = open_emulated(case.board, case.workload, VirtualClock(), seed, load=load)
        spec = StudySpec(
            device=device.identity,
            workload=device.workload.name,
            model_version=device.workload.model_version,
            slo=LatencySlo(STATISTIC, limit_s=self.limit_s),
            objective=EnergyObjective.ENERGY_PER_QUERY,
            space=self._choice.space,
            anchor=self._choice.anchor,
            baseline=False,
            seed=seed,
        )
        with tempfile.TemporaryDirectory() as directory:
            database = open_database(Path(directory) / "studies.sqlite")
            studies = EmbeddedStudies(database, self._suggester, device.clock)
            study = studies.create(spec)
            with HeldDevice(device) as held:
                executor = Executor(device, held)
                while not isinstance(given := studies.ask(study.id), Finished):
                    trial = given.trial
                    planned = replace(given, plan=rule(given.plan, self.limit_s))
                    outcome = executor.run(planned, spec.slo)
                    study = studies.tell(study.id, trial.number, trial.attempt, outcome)
            study = studies.get(study.id)
            database.close()
        assert study.result is not None
        chosen = study.result.chosen
        return self._found(study.trials, None if chosen is None else chosen.configuration)

    def _found(self, trials: tuple[Trial, ...], chosen: Configuration | None) -> Found:
        violating_s = trials_s = 0.0
        n = n_violating = n_cut = n_cut_wrongly = 0
        for trial in trials:
            measured = trial.measurement
            if trial.purpose is Purpose.ANCHOR or not isinstance(measured, Measurement):
                continue
            truth_s = self.truth(trial.configuration).latency_s
            violates = truth_s > (1.0 + TOLERANCE) * self.limit_s
            n += 1
            trials_s += measured.duration_s
            n_violating += violates
            violating_s += measured.duration_s if violates else 0.0
            cut = measured.aborted_reason is not None
            n_cut += cut
            n_cut_wrongly += cut and truth_s <= self.limit_s
        best = None if chosen is None else self.truth(chosen)
        return Found(
            violating_s,
            trials_s,
            n,
            n_violating,
            n_cut,
            n_cut_wrongly,
            None if best is None else best.energy_j,
            best is not None and best.latency_s <= (1.0 + TOLERANCE) * self.limit_s,
        )
