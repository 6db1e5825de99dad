"""The study protocol: from everything that was tried to what comes next. Pure, no input or output.

    baseline → max clocks → (reachable?) → (stage alone) → search ⇄ drift → confirm → conclude

The phase is worked out anew from the trials at every step, so a study that was killed, cancelled or
given a larger budget goes on from its rows alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby

from polythrottle.configuration import Configuration
from polythrottle.objective import format_latency
from polythrottle.optimizer.problem import Evidence, OptimizerSettings, Problem
from polythrottle.study import Study, StudySpec, StudyState
from polythrottle.suggestion import StopAdvice, Suggestion
from polythrottle.trial import STOCK, Purpose, Trial, TrialState
from polythrottle_server import confirmation, live, two_phase
from polythrottle_server.budget import (
    NOTHING_LEFT,
    NOTHING_SAFE,
    budget_stop,
    ended_by_budget,
    search_configurations,
)
from polythrottle_server.drift import another_window, drift_notes
from polythrottle_server.evidence import (
    clearly_misses,
    estimate,
    evidence,
    failure_weight,
    failures,
    meets,
    resolved_slo,
    window_of,
)
from polythrottle_server.verdict import conclude

__all__ = [
    "Conclude",
    "Question",
    "RunTrial",
    "conclude",
    "evidence",
    "gave_up",
    "next_step",
    "resolved_slo",
]

BASELINE_WINDOWS = 2
ANCHOR_WINDOWS = 2
ANCHOR_DIFFER_SD = 3.0
"""Combined standard errors between two anchor windows from which a third one decides."""
DRIFT_EVERY = 8
"""Search trials between two checks of max clocks."""
FAILURES_IN_A_ROW = 6
"""After so many the device, not the configurations, is at fault."""

SMALLEST_BATCH = "max clocks, smallest batch"
GIVING_UP = "once more, before giving up"


@dataclass(frozen=True)
class Question:
    """What the optimiser is asked. Everything that its answer depends on."""

    problem: Problem
    observations: tuple[Evidence, ...]
    pending: tuple[Configuration, ...]
    settings: OptimizerSettings
    seed: int


Consult = Callable[[Question], Suggestion]


@dataclass(frozen=True)
class RunTrial:
    """Run this next."""

    purpose: Purpose
    configuration: Configuration
    suggestion: Suggestion | None = None


@dataclass(frozen=True)
class Conclude:
    """The study has ended. `suggestion` holds the final ranking, where the optimiser was asked for one."""

    state: StudyState
    reason: str
    suggestion: Suggestion | None = None


Step = RunTrial | Conclude


def next_step(study: Study, consult: Consult) -> Step:
    """What to do next, given trials that have all finished; unfinished ones count as pending.

    `consult` is called three times at most, and not before the search begins or within a round of
    confirmations. The same study gives the same step.
    """
    for phase in (_gave_up, _baseline, _anchor, _reachable):
        step = phase(study)
        if step is not None:
            return step
    return _first_stage(study, consult) or _search(study, consult)


def problem_of(study: Study) -> Problem:
    spec = study.spec
    limit_s = resolved_slo(study).limit_s
    return Problem(two_phase.space_of(study), spec.anchor, limit_s, spec.objective, _queued(spec))


def _queued(spec: StudySpec) -> str | None:
    """The SLO's statistic, where queries arrive by themselves and wait for one another."""
    arrive = spec.load and not spec.load.startswith("closed loop")
    return spec.slo.statistic if arrive else None


def settings_of(spec: StudySpec) -> OptimizerSettings:
    return OptimizerSettings(strategy=spec.strategy, safe=spec.safe, draw_seed=spec.seed)


def trial_seed(spec: StudySpec, number: int) -> int:
    """A seed of 31 bits for one trial, the same on every machine."""
    digest = hashlib.sha256(f"{spec.seed}/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def gave_up(study: Study) -> str | None:
    """Why the protocol gave up because trials failed; None where it did not."""
    step = _gave_up(study) or _anchor(study)
    return step.reason if isinstance(step, Conclude) else None


# --- before the search ---------------------------------------------------------------------------


def _counted(study: Study, *purposes: Purpose) -> list[Trial]:
    """Trials of these purposes but the cancelled, which are as if they had never been."""
    return [trial for trial in study.of(*purposes) if trial.state is not TrialState.CANCELLED]


def _spoilt_weight(trial: Trial) -> int:
    """Failures, and windows cut short where nothing but a full one will do."""
    return 1 if trial.state is TrialState.ABORTED else failure_weight(trial)


def _spoilt_at_end(trials: list[Trial]) -> int:
    """Failures since the last window that was measured."""
    weight = 0
    for trial in reversed(trials):
        if trial.state.measured:
            break
        weight += _spoilt_weight(trial)
    return weight


def _gave_up(study: Study) -> Conclude | None:
    finished = [t for t in study.trials if t.state.finished and t.state is not TrialState.CANCELLED]
    last = finished[-FAILURES_IN_A_ROW:]
    if len(last) < FAILURES_IN_A_ROW or any(t.state is not TrialState.FAILED for t in last):
        return None
    return Conclude(
        StudyState.EXHAUSTED,
        f"{FAILURES_IN_A_ROW} trials in a row failed, the last one because: {_why(last[-1])}",
    )


def _why(trial: Trial) -> str:
    return (trial.reason or "no reason was given").rstrip(".") + "."


def _baseline(study: Study) -> RunTrial | None:
    trials = _counted(study, Purpose.BASELINE)
    windows = 1 if confirmation.as_recorded(study.spec) else BASELINE_WINDOWS
    wanted = study.spec.baseline and sum(map(_windows, trials)) < windows
    # A device that cannot be measured as found can still be tuned; only the comparison is lost.
    if wanted and sum(map(_spoilt_weight, trials)) < 2:
        return RunTrial(Purpose.BASELINE, STOCK)
    return None


def _windows(trial: Trial) -> int:
    """1 for a trial that was measured, or may yet be."""
    return int(trial.state.measured or not trial.state.finished)


def _anchor(study: Study) -> Step | None:
    trials = _counted(study, Purpose.ANCHOR)
    count = sum(map(_windows, trials))
    gone_wrong = _spoilt_at_end(trials) >= 2
    if count < (1 if confirmation.as_recorded(study.spec) else ANCHOR_WINDOWS):
        if gone_wrong:
            return Conclude(
                StudyState.EXHAUSTED, f"Max clocks could not be measured, twice: {_why(trials[-1])}"
            )
        return RunTrial(Purpose.ANCHOR, study.spec.anchor)
    if count == ANCHOR_WINDOWS and _differ(trials) and not gone_wrong:
        return RunTrial(Purpose.ANCHOR, study.spec.anchor)
    return None


def _differ(trials: list[Trial]) -> bool:
    found = [w for w in map(window_of, trials) if w is not None]
    if len(found) != ANCHOR_WINDOWS:
        return False
    a, b = found
    latency_sd = math.hypot(a.latency_error_s, b.latency_error_s)
    energy_sd = math.hypot(a.energy_error_j, b.energy_error_j)
    return (
        abs(a.latency_s - b.latency_s) > ANCHOR_DIFFER_SD * latency_sd
        or abs(a.energy_j - b.energy_j) > ANCHOR_DIFFER_SD * energy_sd
    )


def smallest_batch(spec: StudySpec) -> Configuration | None:
    """Max clocks at the smallest batch: the fastest configuration; None where it is no other one."""
    if "batch_size" not in spec.space.names:
        return None
    settings = {**spec.anchor, "batch_size": spec.space.knob("batch_size").levels[0]}
    small = Configuration.of(settings)
    return small if small != spec.anchor and small in spec.space else None


def _reachable(study: Study) -> Step | None:
    """Whether the SLO can be met at all: asked once, before the search begins."""
    limit_s = resolved_slo(study).limit_s
    small = smallest_batch(study.spec)
    searched = [t for t in _counted(study, Purpose.SEARCH) if t.configuration != small]
    anchor = estimate(study, study.spec.anchor)
    if limit_s is None or anchor is None or searched or not clearly_misses(anchor, limit_s):
        return None
    if small is not None:
        tried = [t for t in _counted(study, Purpose.SEARCH) if t.configuration == small]
        unusable = failures(tried, small) >= 2
        if not unusable and not any(t.state is not TrialState.FAILED for t in tried):
            return RunTrial(Purpose.SEARCH, small, Suggestion(small, SMALLEST_BATCH))
    if study.spec.keep_searching:
        return None
    smaller = None if small is None else estimate(study, small)
    best = min((e for e in (anchor, smaller) if e is not None), key=lambda e: e.latency_s)
    if not clearly_misses(best, limit_s):
        return None
    again = [
        t
        for t in _counted(study, Purpose.ANCHOR, Purpose.CONFIRM)
        if t.suggestion is not None and t.suggestion.provenance == GIVING_UP
    ]
    # One more reading of a table, or of max clocks against a share of themselves, would change nothing.
    settled = confirmation.as_recorded(study.spec) or (best is anchor and study.spec.slo.limit_s is None)
    if not settled and not any(_windows(t) for t in again) and sum(map(_spoilt_weight, again)) < 2:
        purpose = Purpose.ANCHOR if best is anchor else Purpose.CONFIRM
        return RunTrial(purpose, best.configuration, Suggestion(best.configuration, GIVING_UP))
    stock = estimate(study, STOCK)
    if stock is not None and meets(stock, limit_s):
        return Conclude(StudyState.EXHAUSTED, f"Only the device as found meets {study.spec.slo}.")
    return Conclude(
        StudyState.INFEASIBLE,
        f"Nothing meets {_slo_text(study)}: the fastest configuration ({best.configuration}) needs "
        f"{format_latency(best.latency_s)}.",
    )


def _slo_text(study: Study) -> str:
    """The SLO, and what a relative one comes to."""
    limit_s, slo = resolved_slo(study).limit_s, study.spec.slo
    relative = slo.limit_s is None and limit_s is not None
    return f"{slo} ({format_latency(limit_s)})" if relative and limit_s is not None else str(slo)


# --- the search ----------------------------------------------------------------------------------


def _first_stage(study: Study, consult: Consult) -> RunTrial | None:
    """A stage of the workload alone, where one is to be tuned first."""
    settings, seed = settings_of(study.spec), trial_seed(study.spec, len(study.trials) + 1)
    found = two_phase.next_trial(
        study, lambda problem, seen: consult(Question(problem, seen, (), settings, seed))
    )
    return None if found is None else RunTrial(Purpose.STAGE, *found)


def _search(study: Study, consult: Consult) -> Step:
    rounds = confirmation.rounds(study)
    if rounds:
        return _confirm(study, consult, rounds[0].suggestion, rounds)
    retry = _retry(study)
    if retry is not None:
        return retry
    suggestion = _consult(study, consult)
    stop = _stop(study, suggestion)
    if stop is not None:
        return _confirm(study, consult, replace(suggestion, stop=stop), ())
    if _drift_check_wanted(study):
        return RunTrial(Purpose.DRIFT, study.spec.anchor)
    assert suggestion.configuration is not None
    return RunTrial(Purpose.SEARCH, suggestion.configuration, suggestion)


def _consult(study: Study, consult: Consult, *, final: bool = False) -> Suggestion:
    settings = settings_of(study.spec)
    if final:
        settings = replace(settings, progress_p_feasible=settings.install_p_feasible)
    problem = problem_of(study)
    pending = [
        t.configuration for t in study.trials if not t.state.finished and t.configuration in problem.space
    ]
    suggestion = live.within_reach(study, consult, final)(
        Question(
            problem,
            tuple(evidence(study)),
            tuple(dict.fromkeys(pending)),
            settings,
            trial_seed(study.spec, len(study.trials) + 1),
        )
    )
    return replace(suggestion, notes=(*suggestion.notes, *drift_notes(study)))


def _stop(study: Study, suggestion: Suggestion) -> StopAdvice | None:
    """Why the search is over; None while it goes on."""
    if suggestion.stop is not None and suggestion.stop.stop:
        return suggestion.stop
    tried = len(search_configurations(study))
    if suggestion.configuration is None:
        rule = NOTHING_SAFE if suggestion.provenance == NOTHING_SAFE else NOTHING_LEFT
        return StopAdvice(True, rule, tried, tried)
    return budget_stop(study, confirmation.expected_windows(study, suggestion))


def _retry(study: Study) -> RunTrial | None:
    """A search trial that failed once is tried once more."""
    trials = _counted(study, Purpose.SEARCH)
    if trials and trials[-1].state is TrialState.FAILED:
        last = trials[-1]
        if failures(trials, last.configuration) < 2:
            return RunTrial(Purpose.SEARCH, last.configuration, last.suggestion)
    return None


def _drift_check_wanted(study: Study) -> bool:
    """Whether max clocks are to be measured now: a check is due, or the one begun is not over."""
    if confirmation.as_recorded(study.spec):
        return False
    trials = _counted(study, *Purpose)
    grouped = groupby(trials, lambda t: t.purpose is Purpose.DRIFT)
    checks = [list(group) for is_check, group in grouped if is_check]
    if not checks or trials[-1].purpose is not Purpose.DRIFT:
        return len(search_configurations(study)) // DRIFT_EVERY > len(checks)
    last = trials[-1]
    if not last.state.finished or sum(map(_spoilt_weight, checks[-1])) >= 2:
        return False
    return not last.state.measured or another_window(study)


# --- the confirmation ----------------------------------------------------------------------------


def _confirm(
    study: Study, consult: Consult, first: Suggestion, rounds: tuple[confirmation.Round, ...]
) -> Step:
    """Repeat winner and runner-up beside max clocks; then whoever took the lead by that."""
    stop = first.stop
    assert stop is not None
    if rounds:
        configuration = rounds[-1].next(study.spec.anchor)
        if configuration is not None:
            return RunTrial(Purpose.CONFIRM, configuration, rounds[-1].suggestion)
    else:
        opening = confirmation.opening(study, first)
        if opening is not None:
            return RunTrial(Purpose.CONFIRM, study.spec.anchor, opening)
    final = _consult(study, consult, final=True)
    # The reason why the search ended stays with every round, so that a larger budget is noticed.
    following = confirmation.following(study, replace(final, stop=stop), len(rounds))
    if following is not None:
        return RunTrial(Purpose.CONFIRM, study.spec.anchor, following)
    state = StudyState.EXHAUSTED if ended_by_budget(stop) else StudyState.CONVERGED
    reason = _ending(study, stop)
    if conclude(study, final).chosen is None:
        reason = f"Nothing that was tried meets {_slo_text(study)} with confidence. {reason}"
        if not ended_by_budget(stop) and stop.rule != NOTHING_SAFE:
            state = StudyState.INFEASIBLE
    if stop.rule == NOTHING_SAFE or (stop.rule == NOTHING_LEFT and state is StudyState.CONVERGED):
        state = StudyState.EXHAUSTED
    return Conclude(state, " ".join((reason, *two_phase.notes(study), *drift_notes(study))), final)


def _ending(study: Study, stop: StopAdvice) -> str:
    tried = len(search_configurations(study))
    trials = f"{tried} search trial{'' if tried == 1 else 's'}"
    if stop.rule == NOTHING_LEFT:
        return f"Every configuration was tried ({tried})."
    if stop.rule == NOTHING_SAFE:
        return f"Safe mode found nothing more that is safe enough to try after {trials}."
    if ended_by_budget(stop):
        return f"The {stop.rule} was used up after {trials}."
    return f"The stopping rule fired after {trials} ({stop})."
