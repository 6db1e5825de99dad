"""Who answers the protocol's questions: the optimiser in this process, loaded on first use."""

from __future__ import annotations

import threading
from concurrent.futures import Future
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


class InProcessSuggester:
    """The optimiser in this process. A prior is built once per space, anchor and ensemble.

    `prepare` builds it on a thread of its own, while the first trials (max clocks) are measured.
    """

    def __init__(self) -> None:
        self._priors: dict[_Key, Future[Prior | None]] = {}
        self._lock = threading.Lock()

    def prepare(self, problem: Problem, settings: OptimizerSettings) -> None:
        self._prior(problem, settings)

    def suggest(self, question: Question) -> Suggestion:
        """Waits for the prior where it is still being built.

        Raises:
            InvalidInputError: the optimiser refuses an observation.
        """
        prior = self._prior(question.problem, question.settings).result()
        from polythrottle.optimizer.suggest import suggest

        return suggest(
            question.problem,
            prior,
            question.observations,
            question.pending,
            question.settings,
            question.seed,
        )

    def _prior(self, problem: Problem, settings: OptimizerSettings) -> Future[Prior | None]:
        key = (
            problem.space.digest,
            problem.anchor,
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
