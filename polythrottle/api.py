"""The main job in Python: open a device, search, confirm, answer. The command line is a skin over this.

Loaded on first use, because it may import both the agent and the server.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import platformdirs

from polythrottle.clock import RealClock, VirtualClock
from polythrottle.configuration import Configuration, Knob
from polythrottle.errors import InvalidInputError
from polythrottle.live_search import gate_of, rules_for, with_canary_of
from polythrottle.objective import EnergyObjective, LatencySlo
from polythrottle.spaces import SpaceChoice, build_space
from polythrottle.studies import Finished
from polythrottle.study import Strategy, Study, StudySpec, StudyState
from polythrottle.traffic import LiveOptions, LiveTraffic
from polythrottle.traffic_gate import TrafficGate
from polythrottle.trial import Trial
from polythrottle_agent.devices import open_device
from polythrottle_agent.executor import Executor, Phase, StopRequested
from polythrottle_agent.holding import DeviceLock, HeldDevice
from polythrottle_agent.load.arrivals import Arrivals
from polythrottle_agent.ports import Device
from polythrottle_agent.stages import first_stage
from polythrottle_agent.workloads.opening import ALWAYS_WATCHED, WorkloadOptions
from polythrottle_server.database.opening import open_database
from polythrottle_server.studies import EmbeddedStudies
from polythrottle_server.suggesting import InProcessSuggester, SuggestionInterrupted

STATE_DIR_VARIABLE = "POLYTHROTTLE_STATE_DIR"
DATABASE = "polythrottle.sqlite"
PRECISION = 0.05
_RESUME_SEED_STEP = 1_000_003
"""An emulated device resumed after n trials must not repeat the noise of the first n."""


@dataclass(frozen=True)
class TuneRequest:
    """What to tune, and how.

    `knobs` may carry levels, as in `mem_freq_mhz=204/2133`. `meter` names an external meter for `auto`.
    `options` say how the workload is loaded. `precision`: how well each window has to know latency and
    energy, as a share; None: `PRECISION` on hardware, and fixed windows where nothing real is measured.
    """

    slo: LatencySlo
    device: str = "auto"
    workload: str | None = None
    meter: str | None = None
    knobs: tuple[str, ...] | None = None
    batch_sizes: tuple[int, ...] | None = None
    options: WorkloadOptions = field(default_factory=WorkloadOptions)
    precision: float | None = None
    fixed: tuple[tuple[str, str], ...] = ()
    strategy: Strategy = Strategy.INFORMED
    objective: EnergyObjective = EnergyObjective.ENERGY_PER_QUERY
    max_trials: int = 20
    max_time_s: float | None = None
    safe: bool = False
    keep_searching: bool = False
    two_phase: bool = False
    live: LiveOptions | None = None
    seed: int = 0

    @property
    def is_live(self) -> bool:
        """Whether the traffic is somebody's own: nothing is generated, and trials are felt."""
        return self.options.watch or (self.workload or "").partition(":")[0] in ALWAYS_WATCHED

    @property
    def live_options(self) -> LiveOptions | None:
        """What spares live traffic; None where a slow trial harms nobody."""
        return self.live or (LiveOptions() if self.is_live else None)


@dataclass(frozen=True)
class Prepared:
    """A device that was opened and what would be done with it. Nothing has been written yet."""

    request: TuneRequest
    device: Device
    choice: SpaceChoice
    spec: StudySpec

    @property
    def notes(self) -> tuple[str, ...]:
        return self.spec.notes


class Listener(Protocol):
    """Hears how a run goes."""

    def started(self, study: Study, device_label: str, notes: Sequence[str] = ()) -> None: ...

    def trial_started(self, trial: Trial) -> None: ...

    def trial_finished(self, trial: Trial, study: Study) -> None: ...


class Stopping(Protocol):
    """Whether the user wants to stop: after the trial, or now."""

    @property
    def after_trial(self) -> bool: ...

    @property
    def now(self) -> bool: ...

    def at_once(self) -> AbstractContextManager[None]:
        """Around what only waits and measures: within it, stopping now raises KeyboardInterrupt."""


class NeverStopping:
    """Runs to the end."""

    after_trial = False
    now = False

    def at_once(self) -> AbstractContextManager[None]:
        return nullcontext()


def default_state_dir() -> Path:
    """$POLYTHROTTLE_STATE_DIR, or the user's state directory."""
    named = os.environ.get(STATE_DIR_VARIABLE)
    return Path(named) if named else platformdirs.user_state_path("polythrottle")


def open_studies(state_dir: Path, should_stop: Callable[[], bool] | None = None) -> EmbeddedStudies:
    """The studies kept in `state_dir`; made, and migrated, where needed.

    Where the database cannot be written it is opened to read. `should_stop` is asked while a suggestion
    has to wait.

    Raises:
        StateError: the database cannot be read, or neither be written nor read as it stands.
    """
    database = open_database(state_dir / DATABASE)
    return EmbeddedStudies(database, InProcessSuggester(should_stop), RealClock())


def prepare(request: TuneRequest) -> Prepared:
    """Open the device and lay out the search. Only reads.

    Raises:
        PolythrottleError: the device, a knob, a level or the SLO's statistic cannot be had.
    """
    device = _opened(request, request.seed)
    device.workload.check_statistic(request.slo.statistic)
    choice = build_space(
        {name: Knob(name, control.levels) for name, control in device.controls.items()},
        request.knobs,
        dict(request.fixed),
        request.batch_sizes,
        device.recorded,
        device.workload.default_batch_size,
    )
    live = rules_for(request.live_options, request.strategy, device, choice.space)
    spec = StudySpec(
        device=device.identity,
        workload=device.workload.name,
        model_version=device.workload.model_version,
        slo=request.slo,
        objective=request.objective,
        space=choice.space,
        anchor=choice.anchor,
        fixed=choice.fixed,
        baseline=device.stock_note is not None,
        strategy=request.strategy,
        safe=request.safe or live is not None,
        keep_searching=request.keep_searching,
        max_trials=request.max_trials,
        max_time_s=request.max_time_s,
        seed=request.seed,
        notes=(*device.notes, *choice.notes),
        load=_load_text(request),
        precision=request.precision or _usual_precision(device),
        first_stage=first_stage(device.workload, choice.space) if request.two_phase else None,
        live=live,
    )
    return Prepared(request, device, choice, spec)


def _opened(request: TuneRequest, seed: int) -> Device:
    return open_device(
        request.device,
        request.workload,
        seed,
        meter=request.meter,
        options=replace(request.options, seed=seed),
    )


def _load_text(request: TuneRequest) -> str:
    """The load in words: queries that arrive otherwise are another question."""
    options = request.options
    if request.is_live:
        return "live traffic"
    if options.closed_loop:
        return f"closed loop on {options.connections} connections"
    if options.rate_per_s is None and not options.arrivals.startswith("trace"):
        return ""
    return str(Arrivals.parse(options.arrivals, options.rate_per_s))


def _usual_precision(device: Device) -> float | None:
    return None if isinstance(device.clock, VirtualClock) else PRECISION


def run(
    prepared: Prepared,
    state_dir: Path,
    *,
    resume: bool = False,
    listener: Listener | None = None,
    stopping: Stopping | None = None,
    on_phase: Callable[[Phase], None] | None = None,
    on_wait: Callable[[str], None] | None = None,
) -> Study:
    """Run the study to its end, or until `stopping` says so; the device is left as it was found.

    A study that is stopped ends as cancelled, with the best so far as its result; `resume` goes on with it.

    Args:
        on_wait: told why, where a rule of live traffic makes the search wait.

    Raises:
        DeviceBusyError: another run holds the device.
        StateError: the state directory or the database cannot be used.
        InvalidInputError: there is nothing to resume.
    """
    stopping = stopping if stopping is not None else NeverStopping()
    with DeviceLock(state_dir, prepared.device.identity.id):
        studies = open_studies(state_dir, lambda: stopping.now)
        study = _resumed(studies, prepared) if resume else _fresh(studies, prepared.spec)
        device = prepared.device
        if study.trials:
            seed = prepared.request.seed + _RESUME_SEED_STEP * len(study.trials)
            device = _opened(prepared.request, seed)
        if listener is not None:
            listener.started(study, device.identity.label, prepared.notes)
        live = prepared.request.live_options
        with with_canary_of(live, device) as device, HeldDevice(device) as held:
            gate = gate_of(prepared.spec.live, studies, study, device, held, stopping, on_wait)
            executor = Executor(
                device,
                held,
                on_phase,
                fixed=dict(prepared.choice.fixed),
                should_stop=lambda: stopping.now,
                at_once=stopping.at_once,
            )
            return _loop(studies, study, executor, listener, stopping, gate)


def _fresh(studies: EmbeddedStudies, spec: StudySpec) -> Study:
    """A new study; one of the same spec that a killed run left active is closed, its trials kept."""
    for old in studies.list():
        if old.state is StudyState.ACTIVE and _same_question(old.spec, spec):
            studies.cancel(old.id, "A new run was started without --resume.")
    return studies.create(spec)


def _resumed(studies: EmbeddedStudies, prepared: Prepared) -> Study:
    """The newest study that asks the same question, active again."""
    spec = prepared.spec
    found = [study for study in studies.list() if _same_question(study.spec, spec)]
    if not found:
        raise InvalidInputError(
            "There is no study to resume with this device, workload, SLO, knobs and seed; "
            "run the same command without --resume, or see polythrottle studies list."
        )
    study = found[-1]
    more_trials = max(spec.max_trials, study.spec.max_trials)
    if study.state is StudyState.ACTIVE:
        return studies.resume(study.id, max_trials=more_trials, max_time_s=spec.max_time_s)
    if study.state in (StudyState.CANCELLED, StudyState.EXHAUSTED):
        # A budget that is not larger was used up: None lets the study raise it by as much again.
        larger = more_trials if more_trials > study.spec.max_trials else None
        longer = _longer(spec.max_time_s, study.spec.max_time_s)
        return studies.resume(study.id, max_trials=larger, max_time_s=longer)
    return study


def _longer(asked_s: float | None, had_s: float | None) -> float | None:
    return asked_s if asked_s is not None and (had_s is None or asked_s > had_s) else None


def _same_question(one: StudySpec, other: StudySpec) -> bool:
    """Equal but for the budget, which a resumed run may raise."""

    def bare(spec: StudySpec) -> StudySpec:
        return replace(spec, max_trials=1, max_time_s=None, notes=(), live=_bare_live(spec.live))

    return bare(one) == bare(other)


def _bare_live(live: LiveTraffic | None) -> LiveTraffic | None:
    """Rules may change between runs, and what the device holds when one is resumed starts nothing anew."""
    return None if live is None else LiveTraffic(Configuration.of({}))


def _loop(
    studies: EmbeddedStudies,
    study: Study,
    executor: Executor,
    listener: Listener | None,
    stopping: Stopping,
    gate: TrafficGate | None,
) -> Study:
    """ask → apply → settle → measure → tell, until there is an answer."""
    while True:
        if stopping.after_trial or stopping.now:
            return studies.cancel(study.id, "Stopped by the user.")
        forbidden = None if gate is None else gate.before_trial(study)
        if forbidden is not None:
            return studies.cancel(study.id, f"Live traffic comes first: {forbidden}.")
        if stopping.after_trial or stopping.now:
            continue
        try:
            assignment = studies.ask(study.id)
        except SuggestionInterrupted:
            return studies.cancel(study.id, "Stopped by the user.")
        if isinstance(assignment, Finished):
            return studies.get(study.id)
        trial = assignment.trial
        if listener is not None:
            listener.trial_started(trial)
        studies.heartbeat(study.id, trial.number, trial.attempt)
        try:
            outcome = executor.run(assignment, study.spec.slo)
        except StopRequested:
            return studies.cancel(study.id, "Stopped by the user in the middle of a trial.")
        study = studies.tell(study.id, trial.number, trial.attempt, outcome)
        told = next(t for t in study.trials if t.number == trial.number)
        if gate is not None:
            gate.after_trial(told)
        if listener is not None:
            listener.trial_finished(told, study)


def tune(
    latency_slo: str,
    device: str = "auto",
    *,
    workload: str | None = None,
    knobs: Sequence[str] | None = None,
    batch_sizes: Sequence[int] | None = None,
    fixed: Mapping[str, str] | None = None,
    strategy: Strategy | str = Strategy.INFORMED,
    objective: EnergyObjective | str = EnergyObjective.ENERGY_PER_QUERY,
    max_trials: int = 20,
    max_time_s: float | None = None,
    safe: bool = False,
    two_phase: bool = False,
    options: WorkloadOptions | None = None,
    precision: float | None = None,
    seed: int = 0,
    resume: bool = False,
    state_dir: Path | None = None,
) -> Study:
    """Find the configuration with the least energy per query that meets `latency_slo`.

    The answer is in the study's `result`. The same as `polythrottle tune` on the command line.

    Raises:
        PolythrottleError: something the caller can mend; the message says what and how.
    """
    request = TuneRequest(
        slo=LatencySlo.parse(latency_slo),
        device=device,
        workload=workload,
        knobs=None if knobs is None else tuple(knobs),
        batch_sizes=None if batch_sizes is None else tuple(batch_sizes),
        fixed=tuple((fixed or {}).items()),
        strategy=Strategy(strategy),
        objective=EnergyObjective(objective),
        max_trials=max_trials,
        max_time_s=max_time_s,
        safe=safe,
        two_phase=two_phase,
        options=options or WorkloadOptions(),
        precision=precision,
        seed=seed,
    )
    return run(prepare(request), state_dir or default_state_dir(), resume=resume)
