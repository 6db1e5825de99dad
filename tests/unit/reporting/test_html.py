from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from polythrottle.errors import StateError
from polythrottle.measurement import EnergyReading, Provenance
from polythrottle.objective import EnergyObjective
from polythrottle.reporting.figures import plots
from polythrottle.reporting.html import render_report, write_report
from polythrottle.study import Strategy, Study
from polythrottle.trial import Purpose

pytest.importorskip("jinja2")
pytest.importorskip("plotly")


class _Page(HTMLParser):
    """What a browser would make of the page: its elements, and its text outside of scripts and styles."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._inside: str | None = None
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = tag
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside is None:
            self.text += data
        else:
            self.scripts[-1] += data

    def figures(self) -> dict[str, Any]:
        index = [attrs.get("id") for tag, attrs in self.elements if tag in ("script", "style")].index(
            "figures"
        )
        parsed: dict[str, Any] = json.loads(self.scripts[index])
        return parsed


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def test_the_page_holds_the_answer_and_the_reasons(study: Study) -> None:
    text = _plain(_Page(render_report(study)).text)
    for part in (
        "Optimal: the search converged and the winner was confirmed.",
        "GPU 612 MHz · memory 2133 MHz · CPU 1036.8 MHz · batch 2",
        "812 ± 9 mJ",
        "904 ± 7 mJ",
        "612 ± 4 mJ",
        "24.7 ± 1.0 % less",
        "45.30 ± 0.30 ms",
        "9.4 % below the limit of 50 ms",
        "9120 J",
        "after 45,509 queries",
        "P(within 2 %): 0.981 against 0.97",
    ):
        assert part in text


def test_the_table_says_why_each_rejected_trial_was_rejected(study: Study) -> None:
    text = _plain(_Page(render_report(study)).text)
    assert "over the SLO by 7.8 %" in text
    assert "p99 above 75 ms after 50 queries" in text
    assert "mem_freq_mhz read back 2133 after 665.6 was written" in text
    assert "601 mJ ± 6.0 %, then -0.5 %" in text, "predicted against measured"
    assert "≥ 97.2 ms" in text, "the latency of an aborted trial is a lower bound"


def test_the_page_says_why_a_cheaper_trial_was_not_chosen(cheaper: Study) -> None:
    assert "below the limit; P(feasible) 0.75 is below 0.95" in _plain(_Page(render_report(cheaper)).text)


def test_the_page_shows_an_objective_that_is_not_the_energy(study: Study) -> None:
    edp = replace(study, spec=replace(study.spec, objective=EnergyObjective.ENERGY_DELAY_PRODUCT))
    text = _plain(_Page(render_report(edp)).text)
    assert "Energy-delay product, the objective" in text
    assert "0.02772 J·s" in text
    assert "the objective" not in _plain(_Page(render_report(study)).text)


def test_the_page_says_whose_p_feasible_it_is(study: Study) -> None:
    assert "0.987, by the model" in _plain(_Page(render_report(study)).text)
    grid = replace(study, spec=replace(study.spec, strategy=Strategy.GRID))
    assert "0.987, by its readings" in _plain(_Page(render_report(grid)).text)


def test_one_file_that_asks_the_network_for_nothing(study: Study) -> None:
    page = _Page(render_report(study))
    for tag, attributes in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed"), tag
        assert not {"src", "href", "srcset", "onclick", "onload"} & set(attributes), tag
    policy = next(
        attributes["content"]
        for tag, attributes in page.elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_hostile_names_stay_text(hostile: Study) -> None:
    source = render_report(hostile)
    page = _Page(source)
    own = _Page(render_report(replace(hostile, spec=replace(hostile.spec, workload="w"))))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in own.elements], "no element was smuggled in"
    assert '<script>alert("x")' not in source
    assert "{{ 7*7 }}" in page.text, "a template in a name is not run"
    hover = next(
        text
        for trace in page.figures()["convergence"]["data"]
        for text in trace.get("hovertext", [])
        if "alert" in text
    )
    assert "<script" not in hover, "Plotly reads HTML in hover texts"
    assert "<script" in unescape(hover)


@pytest.mark.parametrize("provenance", list(Provenance))
def test_provenance_stands_in_title_banner_and_axes(study: Study, provenance: Provenance) -> None:
    device = replace(study.spec.device, provenance=provenance)
    source = render_report(replace(study, spec=replace(study.spec, device=device)))
    page = _Page(source)
    title = re.search(r"<title>(.*?)</title>", source)
    banner = re.search(r'<p class="banner"[^>]*>(.*?)</p>', source)
    assert title is not None
    assert banner is not None
    assert f"({provenance.value})" in title[1]
    assert banner[1].lower().startswith(provenance.value)
    for name, figure in page.figures().items():
        assert provenance.value in figure["layout"]["yaxis"]["title"]["text"], name
    assert provenance.value in page.figures()["tradeoff"]["layout"]["xaxis"]["title"]["text"]


def test_the_tradeoff_tells_every_kind_of_trial_apart(study: Study) -> None:
    figure = next(plot.figure for plot in plots(study) if plot.id == "tradeoff")
    traces = {trace["name"]: trace for trace in figure["data"]}
    assert set(traces) == {
        "Pareto front",
        "meets the SLO",
        "over the SLO",
        "max clocks",
        "stock",
        "chosen",
        "aborted",
    }
    looks = [(t["marker"]["symbol"], t["marker"]["color"]) for t in traces.values() if "marker" in t]
    assert len({symbol for symbol, _ in looks}) == len(looks), "told apart without colour"
    assert traces["chosen"]["x"] == [pytest.approx(45.3)]
    assert traces["chosen"]["y"] == [pytest.approx(612.0)]
    assert traces["meets the SLO"]["error_y"]["array"][0] == pytest.approx(7.2, abs=0.1)
    assert traces["stock"]["y"] == [pytest.approx(812.4)]
    assert figure["layout"]["shapes"][0]["x0"] == pytest.approx(50.0)
    assert "GPU 612 MHz" in traces["meets the SLO"]["hovertext"][0]


def test_convergence_holds_every_trial_and_the_best_so_far(study: Study) -> None:
    figure = next(plot.figure for plot in plots(study) if plot.id == "convergence")
    traces = {trace["name"]: trace for trace in figure["data"]}
    shown = sorted(x for trace in figure["data"] if trace["name"] != "best so far" for x in trace["x"])
    assert shown == list(range(1, 15))
    best = traces["best so far"]["y"]
    assert best[:9] == sorted(best[:9], reverse=True)
    assert best[-1] == pytest.approx(612.0, abs=0.5), "the mean of three windows"


def test_stock_is_the_mean_of_its_windows(study: Study) -> None:
    first = study.trials[0]
    assert first.measurement is not None
    assert isinstance(first.measurement.energy, EnergyReading)
    energy = replace(first.measurement.energy, energy_j=0.8324)
    second = replace(first, number=15, measurement=replace(first.measurement, energy=energy))
    figure = next(
        p.figure for p in plots(replace(study, trials=(*study.trials, second))) if p.id == "tradeoff"
    )
    stock = next(trace for trace in figure["data"] if trace["name"] == "stock")
    assert stock["y"] == [pytest.approx(822.4, abs=0.2)]


def test_max_clocks_are_one_series_whatever_they_were_measured_for(study: Study) -> None:
    again = replace(study.trials[11], number=15, purpose=Purpose.CONFIRM)
    more = replace(study, trials=(*study.trials, again))
    figure = next(plot.figure for plot in plots(more) if plot.id == "convergence")
    assert next(t["x"] for t in figure["data"] if t["name"] == "max clocks") == [2, 12, 15]


def test_convergence_shows_what_was_minimised(study: Study) -> None:
    edp = replace(study, spec=replace(study.spec, objective=EnergyObjective.ENERGY_DELAY_PRODUCT))
    figure = next(plot.figure for plot in plots(edp) if plot.id == "convergence")
    assert "energy-delay product (J·s, emulated)" in figure["layout"]["yaxis"]["title"]["text"]
    stock = next(trace for trace in figure["data"] if trace["name"] == "stock")
    assert stock["y"] == [pytest.approx(0.8124 * 0.0273)]


def test_a_wide_span_of_latency_gets_a_logarithmic_axis(study: Study) -> None:
    spec = replace(study.spec, slo=replace(study.spec.slo, limit_s=2.0))
    far = replace(study, spec=spec, result=None)
    figure = next(plot.figure for plot in plots(far) if plot.id == "tradeoff")
    assert figure["layout"]["xaxis"]["type"] == "log"
    assert figure["layout"]["annotations"][0]["x"] == pytest.approx(3.30103)


def test_a_study_under_way_and_an_empty_one_have_a_page(active: Study) -> None:
    text = _plain(_Page(render_report(active)).text)
    assert "No answer yet: the study is active" in text
    empty = _Page(render_report(replace(active, trials=())))
    assert "No trial has been run yet." in empty.text
    assert "figures" not in [attributes.get("id") for _, attributes in empty.elements]


def test_nothing_feasible_shows_the_closest(infeasible: Study) -> None:
    text = _plain(_Page(render_report(infeasible)).text)
    assert "No feasible found: nothing tried meets the SLO." in text
    assert "Closest: GPU 1020 MHz" in text
    assert "21.0 % over the limit of 20 ms" in text


def test_what_the_device_did_not_hold_is_shown(study: Study) -> None:
    trial = study.trials[5]
    assert trial.measurement is not None
    noted = replace(trial.measurement, notes=("gpu_freq_mhz: requested 612, ran 510",))
    moved = replace(trial, measurement=noted)
    changed = replace(study, trials=(*study.trials[:5], moved, *study.trials[6:]))
    assert "gpu_freq_mhz: requested 612, ran 510" in _plain(_Page(render_report(changed)).text)


def test_a_report_that_cannot_be_written_says_where(study: Study, tmp_path: Path) -> None:
    write_report(study, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text("utf-8").startswith("<!DOCTYPE html>")
    with pytest.raises(StateError, match=r"cannot be written to .*missing"):
        write_report(study, tmp_path / "missing" / "report.html")
