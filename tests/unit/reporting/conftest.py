"""A study as one run leaves it: every purpose and every way a trial can end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from polythrottle.configuration import Configuration, Knob, SearchSpace
from polythrottle.measurement import (
    EnergyReading,
    LatencyReading,
    Measurement,
    Provenance,
    Scope,
    Unavailable,
)
from polythrottle.objective import EnergyObjective, LatencySlo
from polythrottle.study import DeviceIdentity, Estimate, Result, Study, StudySpec, StudyState, Verdict
from polythrottle.suggestion import Candidate, Prediction, StopAdvice, Suggestion
from polythrottle.trial import STOCK, Purpose, Trial, TrialState

SPACE = SearchSpace(
    (
        Knob.of("gpu_freq_mhz", [306, 408, 510, 612, 714, 816, 918, 1020]),
        Knob.of("mem_freq_mhz", [665.6, 2133, 3199, "unlocked"]),
        Knob.of("cpu_freq_mhz", [729.6, 883.2, 1036.8, 1190.4, 1344, 1510.4]),
        Knob.of("batch_size", [1, 2, 4, 8]),
    )
)


def configuration(gpu: float, mem: float | str, cpu: float, batch: int) -> Configuration:
    return Configuration.of(
        {"gpu_freq_mhz": gpu, "mem_freq_mhz": mem, "cpu_freq_mhz": cpu, "batch_size": float(batch)}
    )


def measurement(
    at: Configuration,
    energy_mj: float | None,
    latency_ms: float,
    *,
    n_queries: int = 1000,
    aborted: str | None = None,
    provenance: Provenance = Provenance.EMULATED,
) -> Measurement:
    return Measurement(
        requested=at,
        accepted=at,
        observed=at,
        energy=Unavailable("the trial was cut short")
        if energy_mj is None
        else EnergyReading(
            energy_mj / 1e3, energy_mj * 1.1e-5, "emulated rail", Scope.MODULE, provenance, 20.0
        ),
        latency=LatencyReading(
            latency_ms / 1e3, latency_ms * 8e-6, "p99", n_queries, n_queries >= 1000, provenance
        ),
        started_s=0.0,
        duration_s=20.0,
        total_energy_j=None if energy_mj is None else energy_mj,
        aborted_reason=aborted,
    )


def suggestion(
    energy_mj: float, latency_ms: float, p_feasible: float, gain: float, at: Configuration
) -> Suggestion:
    return Suggestion(
        configuration=at,
        provenance="ensemble",
        prediction=Prediction(energy_mj / 1e3, 0.06, latency_ms / 1e3, 0.05, p_feasible),
        expected_gain=gain * 1.2,
        stop=StopAdvice(False, "P(within 2 %)", 0.4, 0.97, remaining_gain=gain),
    )


ANCHOR = configuration(1020, "unlocked", 1510.4, 1)
CHOSEN = configuration(612, 2133, 1036.8, 2)


def trials() -> tuple[Trial, ...]:
    done, over = TrialState.COMPLETED, TrialState.INFEASIBLE
    rows: list[Trial] = [
        Trial(1, Purpose.BASELINE, STOCK, done, measurement=measurement(STOCK, 812.4, 27.3)),
        Trial(2, Purpose.ANCHOR, ANCHOR, done, measurement=measurement(ANCHOR, 905.1, 24.1)),
    ]
    searched = [
        (configuration(612, 3199, 1190.4, 2), 655.0, 39.8, done, (690, 38.0, 0.91, 0.214)),
        (configuration(510, 2133, 883.2, 2), 598.0, 53.9, over, (601, 48.8, 0.62, 0.121)),
        (configuration(408, 665.6, 883.2, 4), None, 97.2, TrialState.ABORTED, (560, 60.0, 0.31, 0.094)),
        (CHOSEN, 612.3, 45.2, done, (618, 45.0, 0.88, 0.061)),
        (configuration(714, 2133, 883.2, 2), 634.7, 43.0, done, (622, 42.1, 0.95, 0.033)),
        (configuration(612, 665.6, 1036.8, 1), None, 0.0, TrialState.FAILED, (640, 41.0, 0.9, 0.027)),
        (configuration(816, 3199, 729.6, 4), 640.2, 58.4, over, (603, 49.9, 0.52, 0.018)),
        (configuration(510, 3199, 1036.8, 2), 609.9, 50.6, over, (607, 49.0, 0.68, 0.012)),
    ]
    for number, (at, energy, latency, state, predicted) in enumerate(searched, start=3):
        measured: Measurement | None = measurement(at, energy, latency or 1.0)
        reason = None
        if state is TrialState.ABORTED:
            measured = measurement(
                at, None, latency, aborted="p99 above 75 ms after 50 queries", n_queries=50
            )
        if state is TrialState.FAILED:
            measured, reason = None, "mem_freq_mhz read back 2133 after 665.6 was written"
        rows.append(
            Trial(
                number,
                Purpose.SEARCH,
                at,
                state,
                suggestion=suggestion(*predicted, at),
                measurement=measured,
                reason=reason,
            )
        )
    for purpose, at, energy, latency in (
        (Purpose.CONFIRM, CHOSEN, 609.8, 45.6),
        (Purpose.DRIFT, ANCHOR, 902.2, 24.3),
        (Purpose.CONFIRM, configuration(714, 2133, 883.2, 2), 631.2, 43.3),
        (Purpose.CONFIRM, CHOSEN, 614.0, 45.0),
    ):
        rows.append(Trial(len(rows) + 1, purpose, at, done, measurement=measurement(at, energy, latency)))
    return tuple(rows)


RESULT = Result(
    verdict=Verdict.OPTIMAL,
    state=StudyState.CONVERGED,
    reason="P(within 2 %): 0.981 against 0.97",
    chosen=Estimate(CHOSEN, 0.6120, 0.0041, 0.0453, 0.0003, 3),
    stock=Estimate(STOCK, 0.8124, 0.0089, 0.0273, 0.0002, 1),
    max_clocks=Estimate(ANCHOR, 0.9037, 0.0070, 0.0242, 0.0002, 2),
    closest=None,
    slo=LatencySlo("p99", limit_s=0.05),
    p_feasible=0.987,
    n_search_trials=9,
    n_trials=14,
    search_time_s=402.0,
    search_energy_j=9120.0,
    payback_queries=45509,
)

STUDY = Study(
    id="st-3f9a",
    spec=StudySpec(
        device=DeviceIdentity(
            "emulated:orin-nano-8gb",
            "orin-nano-8gb",
            "NVIDIA Jetson Orin Nano 8GB",
            Provenance.EMULATED,
            "9b1f04c2",
        ),
        workload="efficientnet-b4",
        model_version="1",
        slo=LatencySlo("p99", limit_s=0.05),
        objective=EnergyObjective.ENERGY_PER_QUERY,
        space=SPACE,
        anchor=ANCHOR,
        fixed=(("cpu_cores", 6.0),),
        notes=("The energy is that of the module, without the carrier board.",),
    ),
    state=StudyState.CONVERGED,
    created_at="2026-11-24T18:30:00Z",
    trials=trials(),
    state_reason="P(within 2 %): 0.981 against 0.97",
    result=RESULT,
)

HOSTILE = '<script>alert("x")</script>\x1b[31m</style>[bold]{{ 7*7 }}'


@pytest.fixture
def study() -> Study:
    return STUDY


@pytest.fixture
def active(study: Study) -> Study:
    """The same study while its sixth trial is the last."""
    return replace(study, state=StudyState.ACTIVE, trials=study.trials[:6], result=None, state_reason=None)


CHEAPER = configuration(510, 3199, 1190.4, 1)


def ranked(study: Study, *ranking: tuple[Configuration, float]) -> Study:
    """The study with its confirmations made for this ranking of (configuration, P(feasible))."""
    candidates = tuple(Candidate(at, Prediction(0.6, 0.02, 0.045, 0.02, p)) for at, p in ranking)
    began = Suggestion(None, "confirmation, round 1", ranking=candidates)
    return replace(
        study,
        trials=tuple(
            replace(t, suggestion=began) if t.purpose is Purpose.CONFIRM else t for t in study.trials
        ),
    )


@pytest.fixture
def cheaper(study: Study) -> Study:
    """The same study in which trial 7 is within the SLO and cheaper than the chosen one, but only just."""
    trial = replace(study.trials[6], configuration=CHEAPER, measurement=measurement(CHEAPER, 601.0, 49.2))
    changed = replace(study, trials=(*study.trials[:6], trial, *study.trials[7:]))
    return ranked(changed, (CHOSEN, 0.98), (CHEAPER, 0.75))


@pytest.fixture
def infeasible(study: Study) -> Study:
    """Max clocks already miss the SLO."""
    slo = LatencySlo("p99", limit_s=0.02)
    stock, anchor = study.trials[:2]
    return replace(
        study,
        spec=replace(study.spec, slo=slo),
        state=StudyState.INFEASIBLE,
        trials=(replace(stock, state=TrialState.INFEASIBLE), replace(anchor, state=TrialState.INFEASIBLE)),
        result=replace(
            RESULT,
            verdict=Verdict.NO_FEASIBLE_FOUND,
            state=StudyState.INFEASIBLE,
            reason="max clocks miss the SLO",
            chosen=None,
            closest=RESULT.max_clocks,
            slo=slo,
            p_feasible=None,
            payback_queries=None,
        ),
    )


@pytest.fixture
def hostile(study: Study) -> Study:
    """Names that try to break out of HTML, of JavaScript, of the template and of the terminal."""
    device = replace(study.spec.device, label=HOSTILE)
    failed = replace(study.trials[7], reason=HOSTILE)
    return replace(
        study,
        spec=replace(study.spec, workload=HOSTILE, device=device, notes=(HOSTILE,)),
        trials=(*study.trials[:7], failed, *study.trials[8:]),
        result=replace(RESULT, reason=HOSTILE),
    )
