"""The answer as JSON, schema `polythrottle-result/1` (documented in docs/cli.md)."""

from __future__ import annotations

from typing import Any

from polythrottle import __version__
from polythrottle.configuration import Configuration, Level
from polythrottle.reporting.facts import TrialFacts, metered_by, trial_facts
from polythrottle.reporting.wording import objective_unit
from polythrottle.study import Estimate, Result, Study

RESULT_SCHEMA = "polythrottle-result/1"
"""Fields are only ever added under this name; a changed meaning gets the next number."""


def result_json(result: Result, study: Study) -> dict[str, Any]:
    """Everything `tune --json` prints: plain JSON types, SI units in the names, null for what is unknown."""
    spec, metered = study.spec, metered_by(study)
    return {
        "schema": RESULT_SCHEMA,
        "polythrottle_version": __version__,
        "provenance": spec.device.provenance.value,
        "study": study.id,
        "device": {"id": spec.device.id, "board": spec.device.board, "label": spec.device.label},
        "meter": None if metered is None else {"name": metered.meter, "scope": metered.scope.value},
        "workload": spec.workload,
        "model_version": spec.model_version,
        "slo": {
            "statistic": result.slo.statistic,
            "limit_s": result.slo.limit_s,
            "factor": spec.slo.factor,
        },
        "objective": spec.objective.value,
        "objective_value": None
        if result.chosen is None
        else spec.objective.of(result.chosen.energy_j, result.chosen.latency_s),
        "objective_unit": objective_unit(spec.objective),
        "strategy": spec.strategy.value,
        "seed": spec.seed,
        "verdict": result.verdict.value,
        "state": result.state.value,
        "reason": result.reason,
        "chosen": _estimate(result.chosen),
        "stock": _estimate(result.stock),
        "max_clocks": _estimate(result.max_clocks),
        "closest": _estimate(result.closest),
        "saving": result.saving,
        "p_feasible": result.p_feasible,
        "search": {
            "n_search_trials": result.n_search_trials,
            "n_trials": result.n_trials,
            "time_s": result.search_time_s,
            "energy_j": result.search_energy_j,
            "payback_queries": result.payback_queries,
        },
        "trials": [_trial(facts) for facts in trial_facts(study)],
        "notes": list(spec.notes),
    }


def _configuration(configuration: Configuration) -> dict[str, Level]:
    return dict(configuration.settings)


def _estimate(estimate: Estimate | None) -> dict[str, Any] | None:
    if estimate is None:
        return None
    return {
        "configuration": _configuration(estimate.configuration),
        "energy_j": estimate.energy_j,
        "energy_error_j": estimate.energy_error_j,
        "latency_s": estimate.latency_s,
        "latency_error_s": estimate.latency_error_s,
        "n_windows": estimate.n_windows,
    }


def _trial(facts: TrialFacts) -> dict[str, Any]:
    trial = facts.trial
    prediction = facts.prediction
    return {
        "number": trial.number,
        "purpose": trial.purpose.value,
        "state": trial.state.value,
        "configuration": _configuration(trial.configuration),
        "energy_j": facts.energy_j,
        "energy_error_j": facts.energy_error_j,
        "latency_s": facts.latency_s,
        "latency_error_s": facts.latency_error_s,
        "latency_bounded": facts.bounded,
        "latency_upper_s": facts.latency_upper_s,
        "predicted": None
        if prediction is None
        else {
            "energy_j": prediction.energy_j,
            "energy_sd": prediction.energy_sd,
            "latency_s": prediction.latency_s,
            "latency_sd": prediction.latency_sd,
            "p_feasible": prediction.p_feasible,
        },
        "reason": facts.why,
        "notes": [] if trial.measurement is None else list(trial.measurement.notes),
    }
