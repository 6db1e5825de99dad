"""The report: one HTML file with everything inside, which opens offline and prints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from polythrottle import __version__
from polythrottle.configuration import SHORT_NAMES, format_level
from polythrottle.errors import PolythrottleError, StateError
from polythrottle.objective import EnergyObjective, format_energy, format_latency
from polythrottle.reporting.facts import (
    Outcome,
    TrialFacts,
    assumes_errors,
    metered_by,
    slo_limit_s,
    trial_facts,
)
from polythrottle.reporting.figure_parts import BLUE, GREEN, PURPLE
from polythrottle.reporting.figures import Plot, plots
from polythrottle.reporting.wording import (
    ASSUMED_ERRORS,
    PROVENANCES,
    PURPOSES,
    change_text,
    configuration_text,
    duration_text,
    energy_text,
    estimate_objective_text,
    latency_text,
    metered_text,
    objective_changes_text,
    payback_text,
    percent,
    probability_source,
    probability_text,
    slo_text,
    trials_text,
    verdict_text,
)
from polythrottle.study import Estimate, Result, Study, StudySpec
from polythrottle.suggestion import Prediction

_TONES = {Outcome.FEASIBLE: "ok", Outcome.UNFINISHED: "", Outcome.CANCELLED: ""}


def render_report(study: Study) -> str:
    """The study as one self-contained HTML page. Provenance is that of the study's device.

    Everything that is not the program's own text is escaped, and the page's policy forbids any request.

    Raises:
        PolythrottleError: the `report` extra is not installed.
    """
    try:
        import jinja2
        from markupsafe import Markup
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError as error:
        raise PolythrottleError(
            f"The HTML report needs {error.name}: install it with pip install 'polythrottle[report]'."
        ) from error
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(_resource("report.html.j2"))
    all_plots = plots(study)
    return template.render(
        **_context(study, all_plots),
        # These four are the program's own, or JSON in which no tag can start.
        css=Markup(_resource("report.css")),
        js=Markup(_resource("report.js")),
        plotly=Markup(get_plotlyjs() if all_plots else ""),
        figures=Markup(_script_json({plot.id: plot.figure for plot in all_plots}) if all_plots else ""),
    )


def write_report(study: Study, path: Path) -> None:
    """Render the report into a file.

    Raises:
        StateError: the file cannot be written.
    """
    page = render_report(study)
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise StateError(
            f"The report cannot be written to {path}: {error.strerror}; give another path with --report."
        ) from error


def _resource(name: str) -> str:
    return resources.files("polythrottle.reporting").joinpath("templates").joinpath(name).read_text("utf-8")


def _script_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _context(study: Study, all_plots: Sequence[Plot]) -> dict[str, Any]:
    spec = study.spec
    provenance = spec.device.provenance
    statistic = spec.slo.statistic
    facts = trial_facts(study)
    limit_s = slo_limit_s(study)
    return {
        "version": __version__,
        "title": _title(study),
        "provenance": provenance.value,
        "provenance_sentence": PROVENANCES[provenance],
        "answer": _answer(study.result, study.spec) if study.result is not None else None,
        "state": study.state.value,
        "state_reason": study.state_reason,
        "main_plots": [plot for plot in all_plots if not plot.id.startswith("slice-")],
        "slices": [plot for plot in all_plots if plot.id.startswith("slice-")],
        "headings": [
            "#",
            "Why",
            "Configuration",
            "Energy per query",
            f"{statistic} latency",
            "P(feasible)",
            "Predicted, then measured",
            "Outcome",
        ],
        "rows": [_row(one, limit_s) for one in facts],
        "study_facts": _study_facts(study),
    }


def _title(study: Study) -> str:
    spec = study.spec
    title = f"{spec.workload} on {spec.device.label}"
    provenance = spec.device.provenance.value
    return title if provenance in title else f"{title} ({provenance})"


def _answer(result: Result, spec: StudySpec) -> dict[str, Any]:
    subject = result.chosen or result.closest
    name = "" if result.chosen is not None else "Closest: "
    estimates = [
        (label, colour, estimate)
        for label, colour, estimate in (
            ("stock", BLUE, result.stock),
            ("max clocks", PURPLE, result.max_clocks),
            ("chosen", GREEN, result.chosen),
        )
        if estimate is not None
    ]
    highest = max((estimate.energy_j for _, _, estimate in estimates), default=1.0)
    return {
        "good": result.chosen is not None,
        "verdict": result.verdict.value.replace("_", " ").capitalize(),
        "meaning": verdict_text(result, spec),
        "configuration": name + _unbroken(configuration_text(subject.configuration)) if subject else "",
        "bars": [
            {
                "name": label,
                "colour": colour,
                "width": f"{100 * estimate.energy_j / highest:.1f}",
                "value": energy_text(estimate.energy_j, estimate.energy_error_j),
            }
            for label, colour, estimate in estimates
        ],
        "tiles": [
            *_saving_tiles(result),
            *_objective_tiles(result, spec),
            *_latency_tiles(result, subject, spec),
            *_cost_tiles(result),
        ],
    }


def _tile(label: str, number: str, text: str = "") -> dict[str, str]:
    return {"label": label, "number": number, "text": text}


def _saving_tiles(result: Result) -> list[dict[str, str]]:
    if result.chosen is None:
        return []
    return [
        _tile(f"Energy per query, against {name}", change_text(result.chosen, other))
        for name, other in (("stock", result.stock), ("max clocks", result.max_clocks))
        if other is not None
    ]


def _objective_tiles(result: Result, spec: StudySpec) -> list[dict[str, str]]:
    """None where the objective is the energy, which has its bars and tiles."""
    if result.chosen is None or spec.objective is EnergyObjective.ENERGY_PER_QUERY:
        return []
    value = estimate_objective_text(spec.objective, result.chosen)
    changes = objective_changes_text(spec.objective, result.chosen, result)
    return [_tile(f"{spec.objective.label.capitalize()}, the objective", value, changes)]


def _latency_tiles(result: Result, subject: Estimate | None, spec: StudySpec) -> list[dict[str, str]]:
    if subject is None:
        return []
    limit_s = result.slo.limit_s
    text = "" if limit_s is None else f"{slo_text(subject.latency_s, limit_s)} of {format_latency(limit_s)}"
    if result.p_feasible is not None:
        text += f"; P(feasible) {probability_text(result.p_feasible)}, {probability_source(result, spec)}"
    latency = latency_text(subject.latency_s, subject.latency_error_s)
    return [_tile(f"{result.slo.statistic} latency against the SLO", latency, text)]


def _cost_tiles(result: Result) -> list[dict[str, str]]:
    cost = "unknown" if result.search_energy_j is None else format_energy(result.search_energy_j)
    trials = f"{trials_text(result)}, {duration_text(result.search_time_s)} of device time"
    queries = result.payback_queries
    payback = payback_text(result) if queries is None else "served at the chosen configuration, not stock"
    return [
        _tile("Energy of the search", cost, trials),
        _tile("Paid back", "not" if queries is None else f"after {queries:,} queries", payback),
        _tile("Why it stopped", result.state.value, result.reason),
    ]


def _unbroken(configuration: str) -> str:
    """Line breaks only between knobs."""
    return " · ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in configuration.split(" · "))


def _row(facts: TrialFacts, limit_s: float | None) -> dict[str, Any]:
    trial = facts.trial
    prediction = facts.prediction
    latency = "–"
    if facts.latency_s is not None:
        latency = latency_text(facts.latency_s, facts.latency_error_s)
        if facts.outcome is Outcome.ABORTED:
            latency = f"≥ {format_latency(facts.latency_s)}"
    why = facts.why
    if why is not None:
        why = why.removeprefix(f"{facts.outcome.value}: ")
        why = None if why == facts.outcome.value else why
    if facts.outcome is Outcome.FEASIBLE and facts.latency_s is not None and limit_s is not None:
        margin = slo_text(facts.latency_s, limit_s)
        why = margin if why is None else f"{margin}; {why}"
    return {
        "number": trial.number,
        "purpose": PURPOSES[trial.purpose],
        "configuration": _unbroken(configuration_text(trial.configuration)),
        "notes": _row_notes(facts),
        "energy": "–" if facts.energy_j is None else energy_text(facts.energy_j, facts.energy_error_j),
        "latency": latency,
        "p_feasible": "–" if prediction is None else _probability(prediction.p_feasible),
        "predicted": [] if prediction is None else _predicted(prediction, facts),
        "state": facts.outcome.value,
        "tone": _TONES.get(facts.outcome, "no"),
        "why": None if why is None else why.replace(" %", "\N{NO-BREAK SPACE}%"),
    }


def _probability(probability: float) -> str:
    """Two decimals, and never a certainty."""
    if probability > 0.995:
        return "> 0.99"
    return "< 0.01" if probability < 0.005 else f"{probability:.2f}"


def _predicted(prediction: Prediction, facts: TrialFacts) -> list[str]:
    """`618 mJ ± 6.0 %, then -0.9 %` for energy and for latency."""
    lines = []
    for text, sd, predicted, measured in (
        (format_energy(prediction.energy_j), prediction.energy_sd, prediction.energy_j, facts.energy_j),
        (format_latency(prediction.latency_s), prediction.latency_sd, prediction.latency_s, facts.latency_s),
    ):
        line = f"{text} ± {percent(sd)}"
        if measured is not None and facts.outcome is not Outcome.ABORTED:
            line += f", then {percent(measured / predicted - 1.0, signed=True)}"
        lines.append(line)
    return lines


def _row_notes(facts: TrialFacts) -> list[str]:
    measurement = facts.trial.measurement
    if measurement is None:
        return []
    notes = list(measurement.notes)
    if not facts.bounded and facts.outcome is not Outcome.ABORTED:
        notes.append("too few queries to bound the latency statistic")
    return notes


def _study_facts(study: Study) -> list[tuple[str, str]]:
    spec = study.spec
    knobs = "; ".join(
        f"{SHORT_NAMES.get(knob.name, knob.name)} {len(knob.levels)} levels, "
        f"{format_level(knob.levels[0])} to {format_level(knob.levels[-1])} {knob.unit}".rstrip()
        for knob in spec.space.knobs
    )
    rows = [
        ("Device", f"{spec.device.label} ({spec.device.id}; {spec.device.board})"),
        ("Tables of levels", f"digest {spec.device.tables_digest[:16]}"),
        ("Workload", f"{spec.workload}, version {spec.model_version}"),
        ("Latency SLO", str(spec.slo)),
        ("Objective", spec.objective.label),
        ("Search space", f"{len(spec.space):,} configurations: {knobs}"),
    ]
    metered = metered_by(study)
    if metered is not None:
        rows.append(("Meter", metered_text(metered)))
    if spec.fixed:
        rows.append(
            ("Held fixed", ", ".join(f"{name} = {format_level(level)}" for name, level in spec.fixed))
        )
    rows += [
        ("Strategy", f"{spec.strategy.value}{', safe mode' if spec.safe else ''}, seed {spec.seed}"),
        ("Budget", f"{spec.max_trials} search trials"),
        ("Study", f"{study.id}, created {study.created_at}, {study.state.value}"),
        ("polythrottle", __version__),
    ]
    if assumes_errors(study):
        rows.append(("Errors", ASSUMED_ERRORS))
    rows += [("Note", note) for note in spec.notes]
    return rows
