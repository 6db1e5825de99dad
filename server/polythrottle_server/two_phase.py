"""The first of two phases: a stage of the workload is tuned alone, by one knob, which is then held. Pure.

    highest level → other levels → the chosen one once more → the knob is held, the rest is searched

As in the PolyThrottle paper, which takes CPU pre-processing and the CPU clock out of the search; how it tunes
them it does not say. Here the optimiser is asked for one knob instead of all, with the stage's own readings.
Of the time that the SLO leaves at max clocks the stage may use half, and the rest of the workload has what
remains: of the rules that need nothing but those readings none did clearly better (benchmarks/two_phase).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from polythrottle.configuration import Configuration, Knob, Level, SearchSpace, format_level
from polythrottle.objective import format_energy, format_latency
from polythrottle.optimizer.problem import Evidence, OptimizerSettings, Problem
from polythrottle.spaces import BATCH
from polythrottle.study import Estimate, Strategy, Study
from polythrottle.suggestion import Suggestion
from polythrottle.trial import Purpose, Trial, TrialState
from polythrottle_server.budget import budget_stop
from polythrottle_server.evidence import estimate, estimate_of, evidence, failures, resolved_slo, window_of

MOST_LEVELS = 8
"""Levels of the knob that the first phase tries, unless every configuration is wanted."""

SHARE_OF_SLACK = 0.5
"""What the stage may use of the time between max clocks and the SLO."""

CHOSEN = "the stage's best level, once more"
"""Marks the trial whose level is held from then on: the decision stands in the rows."""

Ask = Callable[[Problem, tuple[Evidence, ...]], Suggestion]


def is_open(study: Study) -> bool:
    """Whether the first phase has yet to decide."""
    return study.spec.first_stage is not None and held_level(study) is None and not _is_hopeless(study)


def held_level(study: Study) -> Level | None:
    """The level that the first phase has decided on; None where it has not, or there is no such phase."""
    stage = study.spec.first_stage
    chosen = [t for t in _trials(study) if t.suggestion is not None and t.suggestion.provenance == CHOSEN]
    return chosen[-1].configuration[stage.knob] if stage is not None and chosen else None


def space_of(study: Study) -> SearchSpace:
    """What is searched now: the whole space, or what is left of it once the knob is held.

    Max clocks stay in it, as every search begins there, and so do they at the smallest batch.
    """
    space, stage, level = study.spec.space, study.spec.first_stage, held_level(study)
    if stage is None or level is None:
        return space
    axis, anchor = space.names.index(stage.knob), space.index_of(study.spec.anchor)
    levels = space.knobs[axis].levels
    kept = [i for i, each in enumerate(levels) if each == level or i == anchor[axis]]
    batch = space.names.index(BATCH) if BATCH in space.names else None
    landmarks = {anchor, tuple(0 if i == batch else x for i, x in enumerate(anchor))}
    cells = frozenset(
        tuple(kept.index(x) if i == axis else x for i, x in enumerate(index))
        for index in space.indices()
        if levels[index[axis]] == level or index in landmarks
    )
    held = Knob(stage.knob, tuple(levels[i] for i in kept))
    knobs = tuple(held if i == axis else other for i, other in enumerate(space.knobs))
    return SearchSpace(knobs, space.forbidden, cells)


def limit_s(study: Study) -> float | None:
    """How long the stage may take; None before it can be told."""
    whole, first = estimate(study, study.spec.anchor), _estimate(study, _top(study))
    slo_s = resolved_slo(study).limit_s
    if whole is None or first is None or slo_s is None:
        return None
    return first.latency_s + SHARE_OF_SLACK * max(slo_s - whole.latency_s, 0.0)


def next_trial(study: Study, ask: Ask) -> tuple[Configuration, Suggestion | None] | None:
    """The next level to try, with the suggestion; None where the first phase is over or there is none."""
    if not is_open(study):
        return None
    trials, top = _trials(study), _top(study)
    if trials and trials[-1].state is TrialState.FAILED:
        last = trials[-1]
        if failures(trials, last.configuration) < 2:
            return last.configuration, last.suggestion
    if _estimate(study, top) is None:
        return top, None
    suggestion = ask(_problem(study), _evidence(study))
    stops = suggestion.stop is not None and suggestion.stop.stop
    if not stops and suggestion.configuration is not None and not _is_enough(study):
        return suggestion.configuration, suggestion
    return _best(suggestion, top), replace(suggestion, provenance=CHOSEN)


def notes(study: Study) -> tuple[str, ...]:
    """What became of the first phase, in a sentence."""
    stage, level = study.spec.first_stage, held_level(study)
    if stage is None:
        return ()
    if level is None:
        trials = _trials(study)
        if not _is_hopeless(study):
            return ()
        why = (trials[-1].reason or "no reason was given").rstrip(".")
        return (
            f"The {stage.name} stage could not be measured alone ({why}); all knobs were searched together.",
        )
    held, first = _estimate(study, Configuration.of({stage.knob: level})), _estimate(study, _top(study))
    text = f"The first phase held {Configuration.of({stage.knob: level})}"
    if held is None or first is None:
        return (f"{text}.",)
    text += f": {stage.name} alone takes {_cost(held)} a query there"
    if held.configuration != first.configuration:
        text += f", {_cost(first)} at {format_level(first.configuration[stage.knob])}"
    return (f"{text}.",)


def _cost(found: Estimate) -> str:
    return f"{format_energy(found.energy_j)} and {format_latency(found.latency_s)}"


def _trials(study: Study) -> list[Trial]:
    return [t for t in study.of(Purpose.STAGE) if t.state is not TrialState.CANCELLED]


def _top(study: Study) -> Configuration:
    """The stage at the level it has at max clocks; everything else is as found."""
    stage = study.spec.first_stage
    assert stage is not None
    return Configuration.of({stage.knob: study.spec.anchor[stage.knob]})


def _is_hopeless(study: Study) -> bool:
    """Whether the stage cannot even be measured at its highest level."""
    return failures(_trials(study), _top(study)) >= 2 and _estimate(study, _top(study)) is None


def _estimate(study: Study, configuration: Configuration) -> Estimate | None:
    mine = (t for t in _trials(study) if t.configuration == configuration)
    return estimate_of(w for w in map(window_of, mine) if w is not None)


def _evidence(study: Study) -> tuple[Evidence, ...]:
    """What the optimiser learns of the stage: its trials as if they were a search of their own."""
    alone = tuple(replace(trial, purpose=Purpose.SEARCH) for trial in _trials(study))
    return tuple(evidence(replace(study, trials=alone)))


def _problem(study: Study) -> Problem:
    stage = study.spec.first_stage
    assert stage is not None
    space = SearchSpace((study.spec.space.knob(stage.knob),))
    return Problem(space, _top(study), limit_s(study), study.spec.objective)


def _is_enough(study: Study) -> bool:
    """Whether as many levels were tried as the first phase may, or time has run out."""
    tried = len({t.configuration for t in _trials(study)})
    every = study.spec.strategy is Strategy.GRID
    return (tried >= MOST_LEVELS and not every) or budget_stop(study, 0) is not None


def _best(suggestion: Suggestion, top: Configuration) -> Configuration:
    """The leader of the ranking where it likely keeps to the stage's limit, else the highest level."""
    leader = suggestion.ranking[0] if suggestion.ranking else None
    likely = leader is not None and leader.prediction.p_feasible >= OptimizerSettings().progress_p_feasible
    return leader.configuration if leader is not None and likely else top
