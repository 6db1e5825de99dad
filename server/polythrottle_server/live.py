"""Searching on live traffic: smallest step first, and never what is likely to miss the SLO. Pure.

A step is measured by how much slower it can make a query: the sum of the logarithms by which clocks, cores
and caps are lowered, and by which the batch size changes. Service time grows at most in proportion to each,
so a step of 0.2 makes a query at most 22 % slower than a configuration that met the SLO. What is faster is
no step.

The first steps are small; each trial that meets the SLO doubles the reach, and a violation takes it back to
the first. To the optimiser, what is out of reach is what cannot be applied.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from polythrottle.configuration import Configuration, Knob, SearchSpace
from polythrottle.optimizer.problem import FailedTrial
from polythrottle.study import Study
from polythrottle.suggestion import Suggestion
from polythrottle.traffic_gate import is_violation
from polythrottle.trial import STOCK, Purpose
from polythrottle_server.budget import NOTHING_SAFE
from polythrottle_server.evidence import estimate, estimates, meets

if TYPE_CHECKING:
    from polythrottle_server.protocol import Question

FIRST_REACH = 0.2
ABORT_FACTOR = 1.2
"""Times the SLO's limit from which a window on live traffic is cut short."""

FASTER_IS_SAFE = frozenset(
    {"gpu_freq_mhz", "gpu_min_freq_mhz", "mem_freq_mhz", "cpu_freq_mhz", "cpu_cores", "power_limit_w"}
)
"""Knobs of which a higher level never makes a query slower."""


def within_reach(
    study: Study, consult: Callable[[Question], Suggestion], final: bool
) -> Callable[[Question], Suggestion]:
    """Whom to ask: `consult`, and on live traffic one that only suggests what is within reach and safe.

    Where nothing within reach is worth a trial, the reach doubles until something is. A search ends only by
    what the optimiser says of the whole space.

    Args:
        final: the last question only asks for the ranking.
    """
    if study.spec.live is None or final:
        return consult

    def ask(question: Question) -> Suggestion:
        reach = reach_of(study)
        while True:
            outside = out_of_reach(study, question, reach)
            if not outside:
                return _bounded(consult(question), question)
            cannot = tuple(FailedTrial(c) for c in outside for _ in range(2))
            near = _bounded(
                consult(replace(question, observations=(*question.observations, *cannot))), question
            )
            if _is_worth_it(near, question):
                note = f"At most {reach:.2g} (log) slower than a configuration that met the SLO."
                return replace(near, provenance=f"{near.provenance}, small step", notes=(*near.notes, note))
            reach *= 2.0

    return ask


def reach_of(study: Study) -> float:
    """How far the next trial may go: doubled by each that met the SLO, the first again after a violation."""
    reach = FIRST_REACH
    for trial in study.of(Purpose.SEARCH, Purpose.CONFIRM):
        if is_violation(trial):
            reach = FIRST_REACH
        elif trial.state.measured and trial.purpose is Purpose.SEARCH:
            reach *= 2.0
    return reach


def out_of_reach(study: Study, question: Question, reach: float) -> tuple[Configuration, ...]:
    """What lies further than `reach` from every configuration that met the SLO."""
    space = question.problem.space
    centres = met(study, question.problem.latency_limit_s)
    found = []
    for index in space.indices():
        configuration = space.at(index)
        if all(step(space, centre, configuration) > reach for centre in centres):
            found.append(configuration)
    return tuple(found)


def met(study: Study, limit_s: float | None) -> tuple[Configuration, ...]:
    """Configurations that were measured as meeting the SLO; what is in force now, where stock does.

    Where none did: max clocks, from which every other one is a step into the dark.
    """
    space, live = study.spec.space, study.spec.live
    if limit_s is None:
        return (study.spec.anchor,)
    found = [e.configuration for e in estimates(study) if e.configuration in space and meets(e, limit_s)]
    stock = estimate(study, STOCK)
    if live is not None and live.start in space and stock is not None and meets(stock, limit_s):
        found.insert(0, live.start)
    return tuple(dict.fromkeys(found)) or (study.spec.anchor,)


def step(space: SearchSpace, one: Configuration, other: Configuration) -> float:
    """By how much, as a logarithm, a query can become slower on the way from one to the other; 0 or more."""
    return sum(_step(knob, one, other) for knob in space.knobs)


def _step(knob: Knob, one: Configuration, other: Configuration) -> float:
    before, after = knob.number(one[knob.name]), knob.number(other[knob.name])
    known = knob.name in FASTER_IS_SAFE or knob.name == "batch_size"
    if not known or min(before, after) <= 0.0:
        # Nothing is known of its effect: each level is a step of its own.
        ranks = [knob.levels.index(c[knob.name]) for c in (one, other)]
        return FIRST_REACH * abs(ranks[0] - ranks[1])
    slower = math.log(before / after)
    return max(slower, 0.0) if knob.name in FASTER_IS_SAFE else abs(slower)


def _is_worth_it(suggestion: Suggestion, question: Question) -> bool:
    if suggestion.configuration is None or (suggestion.stop is not None and suggestion.stop.stop):
        return False
    gain = suggestion.expected_gain
    return gain is None or gain >= question.settings.stop_expected_gain


def _bounded(suggestion: Suggestion, question: Question) -> Suggestion:
    """Nothing in place of a configuration that is likelier to miss the SLO than safe mode allows."""
    expected = suggestion.prediction
    if suggestion.configuration is None or expected is None:
        return suggestion
    if expected.p_feasible >= question.settings.safe_p_feasible:
        return suggestion
    return replace(
        suggestion, configuration=None, provenance=NOTHING_SAFE, prediction=None, expected_gain=None
    )
