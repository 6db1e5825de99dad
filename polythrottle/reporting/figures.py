"""The report's plots as Plotly figures: plain dictionaries, so that no plotting library is imported.

A colour that starts with `--` is a CSS variable of the page, filled in by the browser, so that one figure
serves the light, the dark and the printed page. Series differ in symbol as well as colour (Okabe and Ito's
palette, https://jfly.uni-koeln.de/color/).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from polythrottle.configuration import SHORT_NAMES, Knob, format_level
from polythrottle.objective import EnergyObjective, format_energy, format_latency
from polythrottle.reporting.facts import (
    ConfigurationFacts,
    Outcome,
    TrialFacts,
    configuration_facts,
    pareto_front,
    slo_limit_s,
    trial_facts,
)
from polythrottle.reporting.figure_parts import (
    BLUE,
    PURPLE,
    STYLES,
    Figure,
    at_the_bottom,
    bars,
    configuration_series,
    estimate_of,
    landmark,
    layout_of,
    lines,
    ring,
    slo_label,
    vertical_line,
)
from polythrottle.reporting.wording import (
    PURPOSES,
    Unit,
    configuration_text,
    objective_text,
    unit_for,
)
from polythrottle.study import Estimate, Study
from polythrottle.trial import Purpose

_MEASURED = (Outcome.FEASIBLE, Outcome.OVER)
_LABELLED_LEVELS = 6
"""An axis with at most so many levels labels each of them."""
_LOG_SPAN = 12.0
"""An axis is logarithmic where its largest value is this many times its smallest."""


@dataclass(frozen=True)
class Plot:
    """A figure with what stands beside it: a heading, what to see in it, and its id on the page."""

    id: str
    title: str
    caption: str
    figure: Figure


def plots(study: Study) -> tuple[Plot, ...]:
    """Every plot that the study has data for; none before the first full measurement."""
    facts = tuple(f for f in trial_facts(study) if f.trial.purpose is not Purpose.STAGE)
    points = configuration_facts(facts)
    if not points:
        return ()
    return (
        Plot(
            "tradeoff",
            "Energy against latency",
            "Each point is one configuration, averaged over its windows; bars are one standard error. "
            "Left of the SLO line is allowed, and lower is better. The dotted line is the Pareto front: "
            "it joins what nothing tried beats in both. Aborted trials stand at the bottom: their latency "
            "is at least this and their energy is unknown.",
            tradeoff(study, facts, points),
        ),
        Plot(
            "convergence",
            "Convergence",
            f"The {study.spec.objective.label} of every trial, and the best so far that meets the SLO. "
            "Trials without an energy (aborted or failed) stand at the bottom.",
            convergence(study, facts),
        ),
        *(
            Plot(
                f"slice-{number}",
                f"Energy against {SHORT_NAMES.get(knob.name, knob.name)}",
                "The configurations that were measured, other knobs as they came.",
                knob_slice(study, points, knob),
            )
            for number, knob in enumerate(study.spec.space.knobs)
            if len({point.configuration.get(knob.name) for point in points}) > 1
        ),
    )


def tradeoff(study: Study, facts: Sequence[TrialFacts], points: Sequence[ConfigurationFacts]) -> Figure:
    """Energy per query against latency, with the SLO line and the Pareto front."""
    energy = unit_for((p.energy_j for p in points), format_energy)
    latency = unit_for((p.latency_s for p in points), format_latency)
    stock = _stock(facts)
    front = pareto_front(
        [*((p.latency_s, p.energy_j) for p in points), *((e.latency_s, e.energy_j) for e in stock)]
    )
    traces: list[Figure] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "Pareto front",
            "x": [x / latency.si for x, _ in front],
            "y": [y / energy.si for _, y in front],
            "line": {"color": "--muted", "width": 1.5, "dash": "dot", "shape": "hv"},
            "hoverinfo": "skip",
        }
    ]
    searched = [p for p in points if p.configuration != study.spec.anchor]
    for outcome in _MEASURED:
        chosen = [p for p in searched if p.outcome is outcome]
        if chosen:
            traces.append(configuration_series(chosen, outcome, latency, energy))
    anchors = [p for p in points if p.configuration == study.spec.anchor]
    traces += [landmark(estimate_of(p), "max clocks", "square", PURPLE, latency, energy) for p in anchors]
    traces += [landmark(e, "stock", "diamond", BLUE, latency, energy) for e in stock]
    if study.result is not None and study.result.chosen is not None:
        traces.append(ring(study.result.chosen, latency, energy))
    traces += at_the_bottom(
        [f for f in facts if f.outcome is Outcome.ABORTED and f.latency_s is not None],
        lambda f: (f.latency_s or 0.0) / latency.si,
    )
    limit_s = slo_limit_s(study)
    latencies = [p.latency_s for p in points] + ([limit_s] if limit_s is not None else [])
    provenance = study.spec.device.provenance.value
    layout = layout_of(
        x_title=f"{study.spec.slo.statistic} latency ({latency.name}, {provenance})",
        y_title=f"energy per query ({energy.name}, {provenance})",
    )
    if max(latencies) > _LOG_SPAN * min(latencies):
        layout["xaxis"]["type"] = "log"
    if limit_s is not None:
        layout["shapes"] = [vertical_line(limit_s / latency.si)]
        layout["annotations"] = [slo_label(limit_s, latency, logarithmic="type" in layout["xaxis"])]
    return {"data": traces, "layout": layout}


def convergence(study: Study, facts: Sequence[TrialFacts]) -> Figure:
    """The objective of each trial and the best so far that meets the SLO."""
    objective = study.spec.objective
    values = {
        f.trial.number: objective.of(f.energy_j, f.latency_s)
        for f in facts
        if f.energy_j is not None and f.latency_s is not None
    }
    unit = (
        unit_for(values.values(), format_energy)
        if objective is EnergyObjective.ENERGY_PER_QUERY
        else Unit("J·s", 1.0)
    )
    traces: list[Figure] = []
    best = [
        (f.trial.number, objective.of(f.best.energy_j, f.best.latency_s)) for f in facts if f.best is not None
    ]
    if best:
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "best so far",
                "x": [number for number, _ in best],
                "y": [value / unit.si for _, value in best],
                "line": {"color": "--ink", "width": 2, "shape": "hv"},
                "hoverinfo": "skip",
            }
        )
    anchor = study.spec.anchor
    measured = [f for f in facts if f.trial.number in values]
    stock = [f for f in measured if f.trial.purpose is Purpose.BASELINE]
    max_clocks = [f for f in measured if f.trial.configuration == anchor]
    rest = [f for f in measured if f not in stock and f not in max_clocks]
    for name, group, (symbol, colour) in (
        *((o.value, [f for f in rest if f.outcome is o], STYLES[o]) for o in _MEASURED),
        ("stock", stock, ("diamond", BLUE)),
        ("max clocks", max_clocks, ("square", PURPLE)),
    ):
        if group:
            traces.append(_trial_points(group, name, symbol, colour, values, unit, objective))
    for outcome in (Outcome.ABORTED, Outcome.FAILED):
        traces += at_the_bottom([f for f in facts if f.outcome is outcome], lambda f: f.trial.number)
    provenance = study.spec.device.provenance.value
    layout = layout_of(x_title="trial", y_title=f"{objective.label} ({unit.name}, {provenance})")
    layout["xaxis"].update({"dtick": max(1, len(facts) // 10), "range": [0.5, len(facts) + 0.5]})
    return {"data": traces, "layout": layout}


def knob_slice(study: Study, points: Sequence[ConfigurationFacts], knob: Knob) -> Figure:
    """Energy per query of the measured configurations against one knob's level."""
    energy = unit_for((p.energy_j for p in points), format_energy)
    categorical = any(isinstance(level, str) for level in knob.levels)
    traces: list[Figure] = []
    for outcome in _MEASURED:
        group = [p for p in points if p.outcome is outcome and knob.name in p.configuration]
        if not group:
            continue
        trace = configuration_series(group, outcome, Unit("", 1.0), energy)
        levels = [p.configuration[knob.name] for p in group]
        trace["x"] = [escape(format_level(level)) for level in levels] if categorical else list(levels)
        trace.pop("error_x")
        traces.append(trace)
    chosen = study.result.chosen if study.result is not None else None
    if chosen is not None and knob.name in chosen.configuration:
        level = chosen.configuration[knob.name]
        mark = ring(chosen, Unit("", 1.0), energy)
        mark["x"] = [escape(format_level(level)) if categorical else level]
        mark["marker"]["size"] = 18
        traces.append(mark)
    provenance = study.spec.device.provenance.value
    unit = f" ({knob.unit})" if knob.unit else ""
    layout = layout_of(
        x_title=f"{escape(SHORT_NAMES.get(knob.name, knob.name))}{unit}",
        y_title=f"energy ({energy.name}, {provenance})",
    )
    layout["showlegend"] = False
    if len(knob.levels) <= _LABELLED_LEVELS and not categorical:
        layout["xaxis"]["tickvals"] = list(knob.levels)
        layout["xaxis"]["ticktext"] = [format_level(level) for level in knob.levels]
    if categorical:
        names = [escape(format_level(level)) for level in knob.levels]
        layout["xaxis"].update({"type": "category", "categoryorder": "array", "categoryarray": names})
    return {"data": traces, "layout": layout}


def _trial_points(
    group: Sequence[TrialFacts],
    name: str,
    symbol: str,
    colour: str,
    values: dict[int, float],
    unit: Unit,
    objective: EnergyObjective,
) -> Figure:
    heights = [values[f.trial.number] for f in group]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [f.trial.number for f in group],
        "y": [height / unit.si for height in heights],
        "error_y": bars(
            [
                height / unit.si * (f.energy_error_j or 0.0) / (f.energy_j or 1.0)
                for f, height in zip(group, heights, strict=True)
            ]
        ),
        "marker": {"symbol": symbol, "color": colour, "size": 10},
        "hovertext": [
            f"trial {f.trial.number}: {PURPOSES[f.trial.purpose]}<br>"
            f"{lines(configuration_text(f.trial.configuration))}<br>"
            f"{objective_text(objective, height)}" + (f"<br>{escape(f.why)}" if f.why else "")
            for f, height in zip(group, heights, strict=True)
        ],
        "hoverinfo": "text",
    }


def _stock(facts: Iterable[TrialFacts]) -> list[Estimate]:
    """The mean of all readings of the device as found; empty where there is none."""
    baseline = [f for f in facts if f.trial.purpose is Purpose.BASELINE]
    return [estimate_of(point) for point in configuration_facts(baseline, Purpose.BASELINE)]
