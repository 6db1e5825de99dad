"""Which configurations are measured again before the answer is given. Pure.

A round interleaves max clocks with its contenders, so that a device that drifts meanwhile is seen. The
suggestion that a round began with is stored with each of its trials: its ranking names the contenders.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby

from polythrottle.configuration import Configuration
from polythrottle.measurement import Provenance
from polythrottle.optimizer.problem import OptimizerSettings
from polythrottle.study import Study, StudySpec
from polythrottle.suggestion import Candidate, Suggestion
from polythrottle.trial import Purpose, Trial, TrialState
from polythrottle_server.budget import budget_was_raised
from polythrottle_server.evidence import clearly_misses, estimate_of, failures, window_of

REPEATS = 2
MAX_ROUNDS = 3
"""The first with winner and runner-up, then at most two for a new leader."""
OPENING_CONTENDERS = 2
WORTH_CONFIRMING = 0.5
"""Least P(feasible) of a contender: below it more readings would only confirm that it misses."""

INSTALL = OptimizerSettings().install_p_feasible


@dataclass(frozen=True)
class Round:
    """One round: the suggestion it began with, its contenders and its trials so far."""

    suggestion: Suggestion
    contenders: tuple[Configuration, ...]
    trials: tuple[Trial, ...]

    def next(self, anchor: Configuration) -> Configuration | None:
        """What to measure next; None once every one has its repeats, or cannot have them."""
        for repeat in range(1, REPEATS + 1):
            for configuration in (anchor, *self.contenders):
                mine = [t for t in self.trials if t.configuration == configuration]
                done = sum(t.state is not TrialState.FAILED for t in mine)
                settled = configuration != anchor and any(t.state is TrialState.ABORTED for t in mine)
                if done < repeat and not settled and failures(mine, configuration) < 2:
                    return configuration
        return None


def rounds(study: Study) -> tuple[Round, ...]:
    """The rounds since the last search trial, without those that a larger budget has overtaken."""
    last_search = max((t.number for t in study.of(Purpose.SEARCH)), default=0)
    trials = [
        t
        for t in study.of(Purpose.CONFIRM)
        if t.number > last_search
        and t.state is not TrialState.CANCELLED
        and t.suggestion is not None
        and t.suggestion.stop is not None
        and not budget_was_raised(study.spec, t.suggestion.stop)
    ]
    found: list[Round] = []
    for suggestion, group in groupby(trials, key=lambda t: t.suggestion):
        assert suggestion is not None
        members = tuple(group)
        before = replace(study, trials=tuple(t for t in study.trials if t.number < members[0].number))
        count = OPENING_CONTENDERS if not found else 1
        found.append(Round(suggestion, _contenders(before, suggestion, count), members))
    return tuple(found)


def opening(study: Study, suggestion: Suggestion) -> Suggestion | None:
    """The suggestion to begin the first round with; None where nobody needs a confirmation."""
    if not _contenders(study, suggestion, OPENING_CONTENDERS):
        return None
    return _labelled(suggestion, 1)


def following(study: Study, suggestion: Suggestion, rounds_so_far: int) -> Suggestion | None:
    """The same for a later round: only a leader that was not confirmed calls for one."""
    if rounds_so_far >= MAX_ROUNDS or not _contenders(study, suggestion, 1):
        return None
    return _labelled(suggestion, rounds_so_far + 1)


def expected_windows(study: Study, suggestion: Suggestion) -> int:
    """How many windows the first round would take."""
    contenders = _contenders(study, suggestion, OPENING_CONTENDERS)
    return REPEATS * (1 + len(contenders)) if contenders else 0


def as_recorded(spec: StudySpec) -> bool:
    """Whether every reading is a row of a table, which gives the same value however often it is read."""
    return spec.device.provenance is Provenance.AS_RECORDED


def confirmed(study: Study, configuration: Configuration) -> bool:
    """Measured again as often as a confirmation asks. Max clocks always are.

    A recorded row needs no repeat, as none could teach anything.
    """
    if as_recorded(study.spec):
        return True
    repeats = [t for t in study.of(Purpose.CONFIRM) if t.configuration == configuration and t.state.measured]
    return configuration == study.spec.anchor or len(repeats) >= REPEATS


def refuted(study: Study, configuration: Configuration) -> bool:
    """Whether it is no answer, whatever the model says.

    That is one cut short for its latency, one that failed whenever it was confirmed, and one whose
    repeats clearly miss an absolute SLO as they were read. Drift is divided out to compare
    configurations, but queries are served by the device as it is now.
    """
    mine = [t for t in study.trials if t.configuration == configuration]
    confirms = [t for t in mine if t.purpose is Purpose.CONFIRM]
    if any(t.state is TrialState.ABORTED for t in mine) or failures(confirms, configuration) >= 2:
        return True
    as_read = estimate_of(w for w in map(window_of, confirms) if w is not None)
    limit_s = study.spec.slo.limit_s
    return as_read is not None and limit_s is not None and clearly_misses(as_read, limit_s)


def _contenders(study: Study, suggestion: Suggestion, count: int) -> tuple[Configuration, ...]:
    standing = [c for c in suggestion.ranking if not refuted(study, c.configuration)]
    leaders = [c for c in standing if _worth_confirming(c)][:count]
    return tuple(c.configuration for c in leaders if not confirmed(study, c.configuration))


def _worth_confirming(candidate: Candidate) -> bool:
    return candidate.prediction.p_feasible >= WORTH_CONFIRMING


def _labelled(suggestion: Suggestion, number: int) -> Suggestion:
    # The label also keeps two rounds apart whose suggestions are otherwise equal.
    return replace(suggestion, provenance=f"confirmation, round {number}")
