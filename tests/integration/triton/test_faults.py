"""A study over a real Triton that is killed, hangs or refuses: a clear verdict, and everything is back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from polythrottle.api import open_studies
from polythrottle.clock import RealClock
from polythrottle.configuration import Configuration, Knob, SearchSpace
from polythrottle.measurement import Provenance
from polythrottle.objective import EnergyObjective, LatencySlo
from polythrottle.studies import Aborted, Assignment, Failed, Finished, Measured, MeasurementPlan, Outcome
from polythrottle.study import DeviceIdentity, Strategy, Study, StudySpec, Verdict
from polythrottle.trial import Purpose, Trial
from polythrottle_agent.executor import Executor, Phase
from polythrottle_agent.holding import HeldDevice
from polythrottle_agent.meters.external import open_external
from polythrottle_agent.ports import Device
from polythrottle_agent.workloads.triton_server import Address, TritonServer
from polythrottle_server.studies import EmbeddedStudies
from tests.integration.triton.conftest import opened
from tests.integration.triton.real_triton import Triton

SLO = LatencySlo("p50", limit_s=0.5)
PLAN = MeasurementPlan(settle_s=0.1, warmup_queries=5, min_queries=100, min_window_s=1.0, max_window_s=20.0)
IDENTITY = DeviceIdentity("a machine", "a machine", "a machine with a meter", Provenance.MEASURED, "none")


@pytest.fixture
def power(tmp_path: Path) -> Path:
    path = tmp_path / "power"
    path.write_text("7.5 W\n")
    return path


def device_of(triton: Triton, power: Path, **options: object) -> Device:
    clock = RealClock()
    options = {"rate_per_s": 60.0, "time_out_s": 2.0, **options}
    found = opened(triton.http("image"), **options)
    meter = open_external(f"file:{power}", clock)
    return Device(IDENTITY, found.controls, meter, found.workload, clock, "as found")


def spec_of(device: Device) -> StudySpec:
    control = device.controls["batch_size"]
    space = SearchSpace((Knob(control.knob, control.levels),))
    return StudySpec(
        IDENTITY,
        device.workload.name,
        device.workload.model_version,
        SLO,
        EnergyObjective.ENERGY_PER_QUERY,
        space,
        space.highest(),
        strategy=Strategy.RANDOM,
        max_trials=3,
    )


def config_of(triton: Triton) -> dict[str, object]:
    return TritonServer(Address.parse(triton.http("image"))).config()


def run_trial(
    device: Device, held: HeldDevice, trial: Trial, fault: Callable[[], None] | None = None
) -> Outcome:
    """One trial. `fault` happens half a second into its window, on a thread of its own."""
    timer = threading.Timer(0.5, fault or (lambda: None))

    def on_phase(phase: Phase) -> None:
        if phase is Phase.MEASURING:
            timer.start()

    outcome = Executor(device, held, on_phase).run(Assignment(trial, PLAN), SLO)
    timer.cancel()
    if timer.is_alive():
        timer.join()
    return outcome


class Run:
    """The loop of a study."""

    def __init__(self, studies: EmbeddedStudies, study_id: str, held: HeldDevice, device: Device) -> None:
        self._studies, self._id = studies, study_id
        self._device, self._held = device, held
        self.outcomes: list[Outcome] = []

    def step(self, fault: Callable[[], None] | None = None) -> bool:
        """One trial, with a fault in its window; False where there is nothing more to run."""
        assignment = self._studies.ask(self._id)
        if isinstance(assignment, Finished):
            return False
        trial = assignment.trial
        outcome = run_trial(self._device, self._held, trial, fault)
        self._studies.tell(self._id, trial.number, trial.attempt, outcome)
        self.outcomes.append(outcome)
        return True


@contextmanager
def running(
    device: Device, state_dir: Path, study: Study | None = None
) -> Iterator[tuple[Run, Study, HeldDevice]]:
    studies = open_studies(state_dir)
    study = studies.create(spec_of(device)) if study is None else study
    with HeldDevice(device) as held:
        yield Run(studies, study.id, held, device), study, held


def test_triton_is_killed_in_a_trial_and_the_study_goes_on_when_it_is_back(
    start_triton: Callable[..., Triton], power: Path, state_dir: Path
) -> None:
    triton = start_triton("image")
    original = config_of(triton)
    device = device_of(triton, power)
    with running(device, state_dir) as (run, study, held):
        while len(run.outcomes) < 4:
            assert run.step()
        assert all(isinstance(outcome, Measured) for outcome in run.outcomes)
        started_s = time.monotonic()
        run.step(triton.kill)
        failed = run.outcomes[-1]
        assert isinstance(failed, Failed)
        assert any(words in failed.reason for words in ("refused", "nobody listens", "closed")), failed.reason
        assert "\n" not in failed.reason
        assert time.monotonic() - started_s < 15
        run.step()
        assert isinstance(run.outcomes[-1], Failed)
        assert "nobody listens" in run.outcomes[-1].reason
    # Nothing could be put back, and it says so: a Triton that starts again loads its own configuration.
    (problem,) = held.not_restored
    assert problem.knob == "batch_size"
    assert "nobody listens" in problem.reason
    triton.start()
    assert config_of(triton) == original
    device = device_of(triton, power)
    with running(device, state_dir, study) as (run, study, held):
        while run.step():
            pass
        assert any(isinstance(outcome, Measured) for outcome in run.outcomes)
    assert not held.not_restored
    result = open_studies(state_dir).result(study.id)
    assert result.verdict in (Verdict.OPTIMAL, Verdict.BEST_FEASIBLE, Verdict.KEEP_STOCK)
    assert result.chosen is not None
    assert config_of(triton) == original
    assert not list((state_dir / "workloads").iterdir())


def run_one(
    device: Device, held: HeldDevice, size: float, fault: Callable[[], None] | None = None
) -> Outcome:
    trial = Trial(1, Purpose.SEARCH, Configuration.of({"batch_size": size}))
    return run_trial(device, held, trial, fault)


def test_a_size_that_does_not_load_fails_its_trial_only(
    start_triton: Callable[..., Triton], power: Path
) -> None:
    triton = start_triton("image")
    original = config_of(triton)
    device = device_of(triton, power, batch_sizes=(1, 8, 32))
    with HeldDevice(device) as held:
        refused = run_one(device, held, 32.0)
        assert isinstance(refused, Failed)
        assert "built for batches of 16" in refused.reason
        assert isinstance(run_one(device, held, 1.0), Measured)
    assert not held.not_restored
    assert config_of(triton) == original


def test_a_triton_that_hangs_in_a_trial_is_given_up(start_triton: Callable[..., Triton], power: Path) -> None:
    triton = start_triton("image")
    original = config_of(triton)
    device = device_of(triton, power)
    with HeldDevice(device) as held:
        assert isinstance(run_one(device, held, 2.0), Measured)
        started_s = time.monotonic()
        hung = run_one(device, held, 2.0, triton.freeze)
        assert isinstance(hung, Failed)
        assert "did not answer within 10 s" in hung.reason
        assert time.monotonic() - started_s < 60
        triton.thaw()
        assert isinstance(run_one(device, held, 2.0), Measured)
    assert not held.not_restored
    assert config_of(triton) == original


def test_a_model_that_breaks_in_a_trial_measures_nothing_cheap(
    start_triton: Callable[..., Triton], power: Path
) -> None:
    triton = start_triton("image")
    device = device_of(triton, power)
    with HeldDevice(device) as held:
        broken = run_one(device, held, 8.0, lambda: triton.break_model("image"))
        assert isinstance(broken, Aborted)
        assert any("queries lost" in note and "failed" in note for note in broken.measurement.notes)
        again = run_one(device, held, 8.0)
        assert isinstance(again, Failed)
        assert "the model is broken" in again.reason
        triton.mend_model("image")
        assert isinstance(run_one(device, held, 8.0), Measured)
