"""The answer of a study, final or so far. Pure."""

from __future__ import annotations

import math
from dataclasses import replace

from polythrottle.optimizer.problem import OptimizerSettings
from polythrottle.study import Estimate, Result, Study, StudyState, Verdict
from polythrottle.suggestion import Suggestion
from polythrottle.trial import STOCK, Purpose, TrialState
from polythrottle_server import confirmation
from polythrottle_server.budget import device_time_s, search_configurations
from polythrottle_server.evidence import (
    FEASIBLE_SD,
    estimate,
    estimates,
    latency_of,
    meets,
    resolved_slo,
)

_PROGRESS = OptimizerSettings().progress_p_feasible


def conclude(study: Study, final: Suggestion | None = None) -> Result:
    """The result as the study stands, whatever its state.

    `final` is the optimiser's answer to everything that was measured, confirmations included; a
    configuration then has to be confirmed to be chosen. Without it (an interrupted study) the best
    so far comes from the last stored suggestion, with a lower bar, or from raw readings.
    """
    slo = resolved_slo(study)
    stock = estimate(study, STOCK)
    found = estimates(study)
    limit_s = slo.limit_s
    picked = None if limit_s is None else _pick(study, found, limit_s, final)
    chosen, p_feasible = picked if picked is not None else (None, None)
    keeps_stock = (
        limit_s is not None
        and stock is not None
        and meets(stock, limit_s)
        and (chosen is None or not _clearly_cheaper(study, chosen, stock))
    )
    if keeps_stock and stock is not None and limit_s is not None:
        chosen, p_feasible = stock, _p_feasible(stock, limit_s)
    energy_j = search_energy_j(study)
    reason = study.state_reason or "The study has not ended: this is the best so far."
    return Result(
        verdict=_verdict(study, keeps_stock, chosen),
        state=study.state,
        reason=" ".join((reason, *_unbounded(study, chosen))),
        chosen=chosen,
        stock=stock,
        max_clocks=estimate(study, study.spec.anchor),
        closest=min(found, key=lambda e: e.latency_s) if chosen is None and found else None,
        slo=slo,
        p_feasible=p_feasible,
        n_search_trials=len(search_configurations(study)),
        n_trials=sum(t.measurement is not None for t in study.trials),
        search_time_s=device_time_s(study),
        search_energy_j=energy_j,
        payback_queries=_payback(energy_j, stock, chosen),
    )


def search_energy_j(study: Study) -> float | None:
    """What all trials cost, failed ones included; None where one of them does not know."""
    costs = [t.cost_j for t in study.trials if t.measurement is not None or t.state is TrialState.FAILED]
    known = [cost for cost in costs if cost is not None]
    return sum(known) if costs and len(known) == len(costs) else None


def _verdict(study: Study, keeps_stock: bool, chosen: Estimate | None) -> Verdict:
    if chosen is None:
        return Verdict.NO_FEASIBLE_FOUND
    if keeps_stock and _searched(study):
        return Verdict.KEEP_STOCK
    # Stock that has beaten nothing but max clocks is the best so far, and no finding.
    return Verdict.OPTIMAL if study.state is StudyState.CONVERGED else Verdict.BEST_FEASIBLE


def _searched(study: Study) -> bool:
    """Whether anything but max clocks was tried against the device as found."""
    tried = (t for t in study.of(Purpose.SEARCH) if t.configuration != study.spec.anchor)
    return any(t.state.measured or t.state is TrialState.ABORTED for t in tried)


def _unbounded(study: Study, chosen: Estimate | None) -> tuple[str, ...]:
    """A sentence where a window of the answer was too short for the percentile."""
    if chosen is None:
        return ()
    mine = (t for t in study.trials if t.configuration == chosen.configuration and t.state.measured)
    readings = (latency_of(t.measurement) for t in mine)
    if all(reading is None or reading.bounded for reading in readings):
        return ()
    statistic = study.spec.slo.statistic
    name = statistic if study.spec.slo.quantile is not None else f"the {statistic} latency"
    return (f"The windows held too few queries to bound {name}.",)


def _pick(
    study: Study, found: tuple[Estimate, ...], limit_s: float, final: Suggestion | None
) -> tuple[Estimate, float] | None:
    """The configuration to install, with P(feasible)."""
    standing = {e.configuration: e for e in found if not confirmation.refuted(study, e.configuration)}
    if final is not None:
        standing = {c: e for c, e in standing.items() if confirmation.confirmed(study, c)}
    last, ranked_before = (final, math.inf) if final is not None else _last_suggestion(study)
    bar = confirmation.INSTALL if final is not None else _PROGRESS
    options: list[tuple[Estimate, float]] = []
    if last is not None:
        for candidate in last.ranking:
            e, p = standing.get(candidate.configuration), candidate.prediction.p_feasible
            if e is not None and p >= bar:
                options.append((e, p))
                break
    # The model has not seen what was measured after its last answer, nor is there always a model.
    fresh = {t.configuration for t in study.trials if t.number >= ranked_before}
    raw = [
        (e, _p_feasible(e, limit_s))
        for e in standing.values()
        if meets(e, limit_s) and (not options or e.configuration in fresh)
    ]
    return min(options + raw, key=lambda o: _value(study, o[0]), default=None)


def _last_suggestion(study: Study) -> tuple[Suggestion | None, float]:
    """The last suggestion that ranked anything, and the number of the trial it was made for."""
    for trial in reversed(study.trials):
        if trial.suggestion is not None and trial.suggestion.ranking:
            same = [t.number for t in study.trials if t.suggestion == trial.suggestion]
            return trial.suggestion, min(same)
    return None, math.inf


def _value(study: Study, e: Estimate) -> float:
    return study.spec.objective.of(e.energy_j, e.latency_s)


def _clearly_cheaper(study: Study, chosen: Estimate, stock: Estimate) -> bool:
    """By more than the error of the difference, at 95 % (one-sided)."""
    weight = study.spec.objective.latency_weight

    def error(e: Estimate) -> float:
        relative = math.hypot(e.energy_error_j / e.energy_j, weight * e.latency_error_s / e.latency_s)
        return relative * _value(study, e)

    difference = _value(study, stock) - _value(study, chosen)
    return difference > FEASIBLE_SD * math.hypot(error(stock), error(chosen))


def _p_feasible(e: Estimate, limit_s: float) -> float:
    """By its own readings: the normal probability that its true latency is within the limit."""
    return 0.5 * math.erfc((e.latency_s - limit_s) / (math.sqrt(2.0) * e.latency_error_s))


def _payback(energy_j: float | None, stock: Estimate | None, chosen: Estimate | None) -> int | None:
    if energy_j is None or stock is None or chosen is None or chosen.energy_j >= stock.energy_j:
        return None
    return math.ceil(energy_j / (stock.energy_j - chosen.energy_j))


def concluded(study: Study, state: StudyState, reason: str, final: Suggestion | None = None) -> Study:
    """The study in its last state, with its result."""
    ended = replace(study, state=state, state_reason=reason, result=None)
    return replace(ended, result=conclude(ended, final))
