"""The optimiser in this process: loaded late, prepared once and in the background."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from polythrottle.configuration import Configuration
from polythrottle.errors import InvalidInputError
from polythrottle.optimizer import suggest as door
from polythrottle.optimizer.problem import Observation, OptimizerSettings, Problem
from polythrottle.study import Strategy, StudyState, Verdict
from polythrottle.trial import TrialState
from polythrottle_server.protocol import Question
from polythrottle_server.suggesting import InProcessSuggester, SuggestionInterrupted

RANDOM = OptimizerSettings(strategy=Strategy.RANDOM)


def problem(lab, slo_s=0.04):
    spec = lab.spec()
    return Problem(spec.space, spec.anchor, slo_s)


def question(lab, **changes):
    spec = lab.spec()
    seen = Observation(spec.anchor, 0.02, 0.01, 0.2, 0.01)
    return replace(Question(problem(lab), (seen,), (), RANDOM, 7), **changes)


def test_importing_the_studies_loads_no_array_library():
    code = (
        "import sys, polythrottle_server.studies, polythrottle_server.suggesting\n"
        "print([m for m in ('torch', 'numpy', 'scipy', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_random_and_grid_run_a_whole_study_without_an_array_library(tmp_path):
    code = """
import importlib.util, pathlib, sys
loaded = importlib.util.spec_from_file_location("laboratory", sys.argv[1])
laboratory = importlib.util.module_from_spec(loaded)
sys.modules["laboratory"] = laboratory
loaded.loader.exec_module(laboratory)
from polythrottle.study import Strategy
from polythrottle_server.suggesting import InProcessSuggester, SuggestionInterrupted
for strategy in (Strategy.RANDOM, Strategy.GRID):
    lab = laboratory.Laboratory(pathlib.Path(sys.argv[2]) / strategy.value / "s.sqlite3")
    study = lab.whole(suggester=InProcessSuggester(), slo="40ms", strategy=strategy, max_trials=6)
    print(study.result.verdict.value, study.result.n_search_trials, "torch" in sys.modules)
"""
    conftest = __file__.replace("test_suggesting", "conftest")
    done = subprocess.run(
        [sys.executable, "-c", code, conftest, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:2] == ["best_feasible 6 False"] * 2


def test_prepare_returns_at_once_and_builds_once_for_each_space_anchor_and_ensemble(lab, monkeypatch):
    built, go = [], threading.Event()

    def slow(problem, settings):
        go.wait(10)
        built.append((problem, settings))

    monkeypatch.setattr(door, "build_prior", slow)
    suggester = InProcessSuggester()
    suggester.prepare(problem(lab), RANDOM)
    suggester.prepare(problem(lab, None), replace(RANDOM, safe=True))
    assert built == []
    go.set()
    # The limit, the objective and safe mode do not change a prior.
    first = suggester.suggest(question(lab))
    suggester.suggest(question(lab, problem=problem(lab, 0.03)))
    assert len(built) == 1
    suggester.suggest(question(lab, settings=replace(RANDOM, draw_seed=1)))
    other = Configuration.of({**lab.spec().anchor, "gpu_freq_mhz": 750.0})
    suggester.suggest(question(lab, problem=replace(problem(lab), anchor=other)))
    assert len(built) == 3
    assert suggester.suggest(question(lab)) == first


def test_a_prior_that_cannot_be_built_says_so_when_it_is_needed(lab, monkeypatch):
    def broken(_problem, _settings):
        raise InvalidInputError("The ensemble cannot be drawn.")

    monkeypatch.setattr(door, "build_prior", broken)
    suggester = InProcessSuggester()
    suggester.prepare(problem(lab), RANDOM)
    for _ in range(2):
        with pytest.raises(InvalidInputError, match="cannot be drawn"):
            suggester.suggest(question(lab))


def test_a_wish_to_stop_is_heard_while_the_prior_is_being_built(lab, monkeypatch):
    go, asked = threading.Event(), []
    monkeypatch.setattr(door, "build_prior", lambda *_: go.wait(60))

    def should_stop():
        asked.append(True)
        return len(asked) == 3

    studies = lab.open(InProcessSuggester(should_stop))
    study = studies.create(lab.spec("40ms", strategy=Strategy.RANDOM))
    try:
        with pytest.raises(SuggestionInterrupted):
            lab.drive(studies, study, lab.Device())
    finally:
        go.set()
    assert len(asked) == 3
    # Nothing was written: the study can be cancelled, and goes on later.
    assert [t.state for t in studies.get(study.id).trials] == [TrialState.COMPLETED] * 4
    studies.cancel(study.id, "Stopped by the user.")
    studies.resume(study.id)
    assert lab.drive(lab.open(), study, lab.Device()).result.verdict is Verdict.OPTIMAL


def test_a_prior_that_is_there_is_used_whatever_should_stop_says(lab):
    suggester = InProcessSuggester(lambda: False)
    assert suggester.suggest(question(lab)) == InProcessSuggester().suggest(question(lab))


@pytest.mark.parametrize("strategy", [Strategy.INFORMED, Strategy.FLAT, Strategy.POLYTHROTTLE])
def test_the_real_optimiser_runs_a_study_to_its_end(lab, strategy):
    pytest.importorskip("torch")
    study = lab.whole(suggester=InProcessSuggester(), slo="30ms", strategy=strategy, max_trials=8)
    assert study.state in (StudyState.CONVERGED, StudyState.EXHAUSTED)
    assert study.result.verdict in (Verdict.OPTIMAL, Verdict.BEST_FEASIBLE)
    assert study.result.chosen.latency_s <= 0.03
    assert study.result.p_feasible >= 0.95
    again = lab.__class__(lab.path.with_name("again.sqlite3"))
    twin = again.whole(suggester=InProcessSuggester(), slo="30ms", strategy=strategy, max_trials=8)
    assert [t.configuration for t in twin.trials] == [t.configuration for t in study.trials]
