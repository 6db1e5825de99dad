"""Trials of one stage alone are shown as what they are, and never beside those of the whole workload."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from polythrottle.configuration import Configuration
from polythrottle.reporting.facts import Outcome, configuration_facts, trial_facts
from polythrottle.reporting.figures import plots
from polythrottle.reporting.html import write_report
from polythrottle.reporting.result_json import result_json
from polythrottle.reporting.terminal import ProgressScreen
from polythrottle.reporting.wording import PURPOSES
from polythrottle.study import FirstStage, Study
from polythrottle.trial import Purpose, Trial, TrialState
from tests.unit.reporting.conftest import measurement

# Far cheaper and faster than any whole query: wherever they are taken for one, it shows.
ALONE = ((1510.4, 19.5, 0.75, TrialState.COMPLETED), (883.2, 12.5, 1.69, TrialState.INFEASIBLE))


@pytest.fixture
def staged(study: Study) -> Study:
    """The same study with a first phase after max clocks."""
    more = []
    for cpu, energy_mj, latency_ms, state in ALONE:
        at = Configuration.of({"cpu_freq_mhz": cpu})
        more.append(Trial(0, Purpose.STAGE, at, state, measurement=measurement(at, energy_mj, latency_ms)))
    trials = [*study.trials[:2], *more, *study.trials[2:]]
    return replace(
        study,
        spec=replace(study.spec, first_stage=FirstStage("preprocessing", "cpu_freq_mhz")),
        trials=tuple(replace(trial, number=i) for i, trial in enumerate(trials, start=1)),
    )


def test_every_purpose_has_a_word() -> None:
    assert set(PURPOSES) == set(Purpose)


def test_a_stage_is_no_configuration_of_the_space(study: Study, staged: Study) -> None:
    plain, with_stage = trial_facts(study), trial_facts(staged)
    assert [p.configuration for p in configuration_facts(with_stage)] == [
        p.configuration for p in configuration_facts(plain)
    ]
    assert [f.best and f.best.energy_j for f in with_stage if f.trial.purpose is not Purpose.STAGE] == [
        f.best and f.best.energy_j for f in plain
    ]


def test_a_stage_over_its_part_is_not_said_to_be_over_the_slo(staged: Study) -> None:
    over = next(f for f in trial_facts(staged) if f.trial.number == 4)
    assert over.outcome is Outcome.OVER
    assert over.why == "over its part of the SLO"


def test_no_plot_shows_a_stage(study: Study, staged: Study) -> None:
    def least(of: Study) -> list[float]:
        energies = []
        for plot in plots(of):
            for trace in plot.figure["data"]:
                energies += [y for y in trace.get("y", []) if isinstance(y, float) and y > 0]
        return sorted(energies)[:5]

    assert len(plots(staged)) == len(plots(study))
    assert least(staged) == pytest.approx(least(study))


@pytest.mark.parametrize("width", [70, 200])
def test_the_screen_shows_the_knob_that_was_set(staged: Study, width: int) -> None:
    out = io.StringIO()
    screen = ProgressScreen(Console(file=out, width=width))
    for trial in staged.trials[:5]:
        screen.trial_finished(trial, staged)
    text = out.getvalue()
    assert "stage" in text
    assert "883.2" in text
    assert "1.69 ms" in text
    # 1.69 ms is far below the SLO of the whole: no share of it is claimed.
    line = next(line for line in text.splitlines() if "1.69 ms" in line)
    assert "%" not in line.split("1.69 ms")[1].split("mJ")[0]


def test_json_and_report_can_be_written(staged: Study, tmp_path) -> None:
    assert staged.result is not None
    tree = json.loads(json.dumps(result_json(staged.result, staged)))
    alone = [t for t in tree["trials"] if t["purpose"] == "stage"]
    assert [t["configuration"] for t in alone] == [{"cpu_freq_mhz": 1510.4}, {"cpu_freq_mhz": 883.2}]
    write_report(staged, tmp_path / "report.html")
    assert "stage" in (tmp_path / "report.html").read_text(encoding="utf-8")
