"""A laboratory: a device that is a formula, a suggester that walks the grid, and the loop between."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from polythrottle.clock import VirtualClock
from polythrottle.configuration import Configuration, Knob, SearchSpace
from polythrottle.measurement import EnergyReading, LatencyReading, Measurement, Provenance, Scope
from polythrottle.objective import EnergyObjective, LatencySlo
from polythrottle.optimizer.problem import FailedTrial, Observation
from polythrottle.optimizer.unmodelled import raw_ranking
from polythrottle.studies import Aborted, Assignment, Failed, Finished, Measured, Outcome
from polythrottle.study import DeviceIdentity, Study, StudySpec
from polythrottle.suggestion import StopAdvice, Suggestion
from polythrottle.trial import STOCK, Trial
from polythrottle_server.database import open_database
from polythrottle_server.protocol import Question
from polythrottle_server.studies import EmbeddedStudies

GPU = Knob.of("gpu_freq_mhz", [300, 450, 600, 750, 900])
MEMORY = Knob.of("mem_freq_mhz", [800, 1600])
BATCH = Knob.of("batch_size", [1, 2, 4])
ERROR = 0.004


@dataclass
class FormulaDevice:
    """20 ms at max clocks and batch 2; the least energy is at a middle clock. Counts what it ran."""

    error: float = ERROR
    stock_energy: float = 1.1
    stock_latency: float = 1.0
    slower_after: int | None = None
    slower_by: float = 1.0
    failing: Counter = field(default_factory=Counter)
    ran: list[Configuration] = field(default_factory=list)
    plans: list = field(default_factory=list)

    def latency_s(self, c: Configuration) -> float:
        gpu, mem = c.get("gpu_freq_mhz", 900.0), c.get("mem_freq_mhz", 1600.0)
        batch = c.get("batch_size", 2.0) / 2.0
        return 0.02 * (0.2 + 0.8 * batch) * (0.7 * 900 / gpu + 0.3 * 1600 / mem)

    def energy_j(self, c: Configuration) -> float:
        gpu, mem = c.get("gpu_freq_mhz", 900.0) / 900, c.get("mem_freq_mhz", 1600.0) / 1600
        power_w = 2.0 + 6.0 * gpu**3 + 2.0 * mem
        return power_w * self.latency_s(c) / (c.get("batch_size", 2.0) / 2.0)

    def measure(self, c: Configuration) -> Measurement:
        latency, energy = self.latency_s(c), self.energy_j(c)
        if c == STOCK:
            latency, energy = latency * self.stock_latency, energy * self.stock_energy
        if self.slower_after is not None and len(self.ran) > self.slower_after:
            latency, energy = latency * self.slower_by, energy * self.slower_by
        return Measurement(
            requested=c,
            accepted=c,
            observed=c,
            energy=EnergyReading(
                energy, self.error * energy, "formula", Scope.BOARD, Provenance.EMULATED, 10.0
            ),
            latency=LatencyReading(latency, self.error * latency, "p99", 1000, True, Provenance.EMULATED),
            started_s=10.0 * len(self.ran),
            duration_s=10.0,
            total_energy_j=1000 * energy,
        )

    def run(self, assignment: Assignment) -> Outcome:
        c = assignment.trial.configuration
        self.ran.append(c)
        self.plans.append(assignment.plan)
        if self.failing[c] > 0:
            self.failing[c] -= 1
            return Failed("the clock was refused")
        measurement = self.measure(c)
        limit_s = assignment.plan.abort_latency_s
        if limit_s is not None and measurement.latency.latency_s > limit_s:
            return Aborted(replace(measurement, aborted_reason="too slow"), "too slow")
        return Measured(measurement)


@dataclass
class WalkingSuggester:
    """Proposes the untried configurations in the grid's order; stops after so many observations."""

    stop_after: int | None = 6
    questions: list[Question] = field(default_factory=list)
    prepared: int = 0

    def prepare(self, problem, settings) -> None:  # noqa: ARG002
        self.prepared += 1

    def suggest(self, question: Question) -> Suggestion:
        self.questions.append(question)
        known = [o for o in question.observations if isinstance(o, Observation)]
        failed = Counter(o.configuration for o in question.observations if isinstance(o, FailedTrial))
        gone = {o.configuration for o in known} | {c for c, n in failed.items() if n >= 2}
        space = question.problem.space
        nearest_first = sorted(space.indices(), reverse=True)
        chosen = next((c for c in map(space.at, nearest_first) if c not in gone), None)
        stop = self.stop_after is not None and len(known) >= self.stop_after
        return Suggestion(
            chosen,
            "walk",
            ranking=raw_ranking(question.problem, known, question.settings.progress_p_feasible),
            stop=StopAdvice(stop, "enough seen", len(known), self.stop_after or 0),
        )


class Laboratory:
    """Builds specs and studies, and runs them."""

    Device = FormulaDevice
    Suggester = WalkingSuggester

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list = []

    def spec(self, slo: str = "30ms", *, batch: bool = False, **changes) -> StudySpec:
        space = SearchSpace((GPU, MEMORY, BATCH) if batch else (GPU, MEMORY))
        anchor = {**space.highest(), **({"batch_size": 2.0} if batch else {})}
        return StudySpec(
            device=DeviceIdentity("emulated:one", "board", "a formula", Provenance.EMULATED, "tables"),
            workload="formula",
            model_version="1",
            slo=LatencySlo.parse(slo),
            objective=EnergyObjective.ENERGY_PER_QUERY,
            space=space,
            anchor=Configuration.of(anchor),
            **changes,
        )

    def open(self, suggester=None, path: Path | None = None) -> EmbeddedStudies:
        return EmbeddedStudies(
            open_database(path or self.path),
            suggester or WalkingSuggester(),
            VirtualClock(),
            self.events.append,
        )

    def drive(self, studies, study: Study, device: FormulaDevice, trials: int = 200) -> Study:
        """Ask, run and tell until the study has ended or so many trials were run."""
        for _ in range(trials):
            answer = studies.ask(study.id)
            if isinstance(answer, Finished):
                return studies.get(study.id)
            trial = answer.trial
            assert studies.heartbeat(study.id, trial.number, trial.attempt)
            studies.tell(study.id, trial.number, trial.attempt, device.run(answer))
        return studies.get(study.id)

    def whole(self, device: FormulaDevice | None = None, suggester=None, **spec) -> Study:
        studies = self.open(suggester)
        return self.drive(studies, studies.create(self.spec(**spec)), device or FormulaDevice())

    @staticmethod
    def told(study: Study, *trials: Trial) -> Study:
        """The study with trials added, numbered on."""
        first = len(study.trials) + 1
        numbered = tuple(replace(t, number=first + i) for i, t in enumerate(trials))
        return replace(study, trials=(*study.trials, *numbered))


@pytest.fixture
def lab(tmp_path: Path) -> Laboratory:
    return Laboratory(tmp_path / "state" / "studies.sqlite3")
