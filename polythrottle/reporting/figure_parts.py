"""The building blocks of the report's plots: styles, series, lines and axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from polythrottle.objective import format_latency
from polythrottle.reporting.facts import ConfigurationFacts, Outcome, TrialFacts
from polythrottle.reporting.wording import Unit, configuration_text, energy_text, latency_text
from polythrottle.study import Estimate

Figure = dict[str, Any]
"""A Plotly figure or a part of one."""

GREEN, VERMILION, ORANGE, BLUE, PURPLE = (
    "#009E73",
    "#D55E00",
    "#E69F00",
    "#0072B2",
    "#CC79A7",
)
STYLES = {
    Outcome.FEASIBLE: ("circle", GREEN),
    Outcome.OVER: ("x", VERMILION),
    Outcome.ABORTED: ("triangle-right-open", ORANGE),
    Outcome.FAILED: ("asterisk-open", "--ink"),
}


def configuration_series(
    points: Sequence[ConfigurationFacts], outcome: Outcome, latency: Unit, energy: Unit
) -> Figure:
    symbol, colour = STYLES[outcome]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": outcome.value,
        "x": [p.latency_s / latency.si for p in points],
        "y": [p.energy_j / energy.si for p in points],
        "error_x": bars([p.latency_error_s / latency.si for p in points]),
        "error_y": bars([p.energy_error_j / energy.si for p in points]),
        "marker": {"symbol": symbol, "color": colour, "size": 10},
        "hovertext": [hover(estimate_of(p), f"trial {', '.join(map(str, p.trials))}") for p in points],
        "hoverinfo": "text",
    }


def landmark(estimate: Estimate, name: str, symbol: str, colour: str, latency: Unit, energy: Unit) -> Figure:
    """A named point of comparison."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [estimate.latency_s / latency.si],
        "y": [estimate.energy_j / energy.si],
        "error_x": bars([estimate.latency_error_s / latency.si]),
        "error_y": bars([estimate.energy_error_j / energy.si]),
        "marker": {"symbol": symbol, "color": colour, "size": 13, "line": {"width": 1, "color": "--ink"}},
        "hovertext": [hover(estimate, name)],
        "hoverinfo": "text",
    }


def ring(chosen: Estimate, latency: Unit, energy: Unit) -> Figure:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "chosen",
        "x": [chosen.latency_s / latency.si],
        "y": [chosen.energy_j / energy.si],
        "marker": {"symbol": "circle-open", "color": "--ink", "size": 22, "line": {"width": 3}},
        "hovertext": [hover(chosen, "chosen")],
        "hoverinfo": "text",
    }


def at_the_bottom(group: Sequence[TrialFacts], x: Callable[[TrialFacts], float]) -> list[Figure]:
    """Trials without an energy, on an axis of their own along the bottom edge."""
    if not group:
        return []
    symbol, colour = STYLES[group[0].outcome]
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": group[0].outcome.value,
            "x": [x(f) for f in group],
            "y": [0.03] * len(group),
            "yaxis": "y2",
            "marker": {"symbol": symbol, "color": colour, "size": 11, "line": {"width": 2, "color": colour}},
            "hovertext": [
                f"trial {f.trial.number}<br>{lines(configuration_text(f.trial.configuration))}"
                f"<br>{escape(f.why or '')}"
                for f in group
            ],
            "hoverinfo": "text",
        }
    ]


def estimate_of(point: ConfigurationFacts) -> Estimate:
    return Estimate(
        point.configuration,
        point.energy_j,
        point.energy_error_j,
        point.latency_s,
        point.latency_error_s,
        len(point.trials),
    )


def hover(estimate: Estimate, title: str) -> str:
    """Plotly reads a little HTML in hover texts, so everything that came from outside is escaped."""
    return (
        f"<b>{escape(title)}</b><br>{lines(configuration_text(estimate.configuration))}<br>"
        f"{energy_text(estimate.energy_j, estimate.energy_error_j)} per query<br>"
        f"{latency_text(estimate.latency_s, estimate.latency_error_s)}"
    )


def lines(configuration: str) -> str:
    return escape(configuration).replace(" · ", "<br>")


def bars(errors: Sequence[float]) -> Figure:
    return {"type": "data", "array": list(errors), "thickness": 1.2, "width": 3, "color": "--muted"}


def vertical_line(x: float) -> Figure:
    return {
        "type": "line",
        "xref": "x",
        "yref": "paper",
        "x0": x,
        "x1": x,
        "y0": 0,
        "y1": 1,
        "line": {"color": VERMILION, "width": 2, "dash": "dash"},
    }


def slo_label(limit_s: float, latency: Unit, *, logarithmic: bool) -> Figure:
    x = limit_s / latency.si
    return {
        "xref": "x",
        "yref": "paper",
        # Annotations, unlike shapes, take a logarithmic axis in powers of ten.
        "x": math.log10(x) if logarithmic else x,
        "y": 1,
        "yanchor": "bottom",
        "text": f"SLO {format_latency(limit_s)}",
        "showarrow": False,
        "font": {"color": "--ink"},
    }


def layout_of(*, x_title: str, y_title: str) -> Figure:
    axis = {
        "gridcolor": "--grid",
        "linecolor": "--muted",
        "zeroline": False,
        "automargin": True,
        "ticks": "outside",
        "tickcolor": "--muted",
    }
    return {
        "xaxis": {**axis, "title": {"text": x_title, "standoff": 8}},
        "yaxis": {**axis, "title": {"text": y_title, "standoff": 8}},
        "yaxis2": {"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "--ink", "size": 14, "family": "system-ui, sans-serif"},
        "hoverlabel": {"bgcolor": "--surface", "bordercolor": "--muted", "font": {"color": "--ink"}},
        "legend": {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
        "margin": {"l": 60, "r": 16, "t": 28, "b": 40},
        "dragmode": False,
        "hovermode": "closest",
    }
