"""Who answers the protocol's questions: the optimiser in this process, loaded on first use."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Protocol

from polythrottle.optimizer.problem import OptimizerSettings, Problem
from polythrottle.suggestion import Suggestion
from polythrottle_server.protocol import Question

if TYPE_CHECKING:
    from polythrottle.optimizer.suggest import Prior


class Suggester(Protocol):
    """Answers questions about one study or many."""

    def prepare(self, problem: Problem, settings: OptimizerSettings) -> None:
        """Begin what takes long, if it was not begun; returns at once."""

    def suggest(self, question: Question) -> Suggestion:
        """The same answer to the same question."""


_Key = tuple[object, ...]

POLL_S = 0.1
"""How long a wish to stop may go unnoticed while a prior is being built."""


class SuggestionInterrupted(Exception):
    """`should_stop` turned true before the suggestion could be made; nothing was written."""


class InProcessSuggester:
    """The optimiser in this process. A prior is built once per space, anchor and ensemble.

    `prepare` builds it on a thread of its own, while the first trials (max clocks) are measured.
    `should_stop` is asked while `suggest` waits for that.
    """

    def __init__(self, should_stop: Callable[[], bool] | None = None) -> None:
        self._should_stop = should_stop
        self._priors: dict[_Key, Future[Prior | None]] = {}
        self._lock = threading.Lock()

    def prepare(self, problem: Problem, settings: OptimizerSettings) -> None:
        self._prior(problem, settings)

    def suggest(self, question: Question) -> Suggestion:
        """Waits for the prior where it is still being built.

        Raises:
            InvalidInputError: the optimiser refuses an observation.
            SuggestionInterrupted: `should_stop` turned true meanwhile.
        """
        prior = self._awaited(self._prior(question.problem, question.settings))
        from polythrottle.optimizer.suggest import suggest

        return suggest(
            question.problem,
            prior,
            question.observations,
            question.pending,
            question.settings,
            question.seed,
        )

    def _awaited(self, future: Future[Prior | None]) -> Prior | None:
        # Building takes seconds, and the handler of a signal only sets a flag: it must be looked at.
        while self._should_stop is not None and not wait([future], POLL_S).done:
            if self._should_stop():
                raise SuggestionInterrupted("while the prior was being built")
        return future.result()

    def _prior(self, problem: Problem, settings: OptimizerSettings) -> Future[Prior | None]:
        key = (
            problem.space.digest,
            problem.anchor,
            problem.queued,
            settings.strategy,
            settings.members,
            settings.draw_seed,
        )
        with self._lock:
            future = self._priors.get(key)
            if future is None:
                future = self._priors[key] = Future()
                # A daemon: whoever stops the program now does not wait for a prior nobody will use.
                threading.Thread(
                    target=_build, args=(future, problem, settings), name="prior", daemon=True
                ).start()
            return future


def _build(future: Future[Prior | None], problem: Problem, settings: OptimizerSettings) -> None:
    try:
        from polythrottle.optimizer.suggest import build_prior

        future.set_result(build_prior(problem, settings))
    except BaseException as error:  # handed over to whoever asks, with its traceback
        future.set_exception(error)
