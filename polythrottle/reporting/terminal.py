"""The screens of `polythrottle tune`: one line a trial while it searches, then the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType

from rich.console import Console
from rich.status import Status
from rich.text import Text

from polythrottle import __version__
from polythrottle.configuration import SHORT_NAMES, format_level
from polythrottle.measurement import LatencyReading, Provenance
from polythrottle.objective import EnergyObjective, format_energy, format_latency
from polythrottle.reporting.console import make_console, print_text, printable
from polythrottle.reporting.facts import (
    Outcome,
    TrialFacts,
    assumes_errors,
    metered_by,
    slo_limit_s,
    trial_facts,
)
from polythrottle.reporting.wording import (
    ASSUMED_ERRORS,
    PURPOSES,
    change_text,
    configuration_text,
    duration_text,
    energy_text,
    estimate_objective_text,
    latency_text,
    metered_text,
    objective_changes_text,
    objective_text,
    payback_text,
    percent,
    probability_source,
    probability_text,
    slo_text,
    trials_text,
    verdict_text,
)
from polythrottle.study import Estimate, Result, Study, StudySpec, StudyState, Verdict
from polythrottle.trial import Purpose, Trial

_GAP = "  "
_SHORT_PURPOSES = {**PURPOSES, Purpose.ANCHOR: "max", Purpose.DRIFT: "drift"}
_PURPOSE_WIDTH = max(len(word) for word in _SHORT_PURPOSES.values())
_ENERGY_WIDTH = 13
_LATENCY_WIDTH = 18
_BEST_WIDTHS = {EnergyObjective.ENERGY_PER_QUERY: 12, EnergyObjective.ENERGY_DELAY_PRODUCT: 17}
_GAIN_WIDTH = 6
_LABEL_WIDTH = 13

_MARKS = {Outcome.FEASIBLE: ("✓", "green"), Outcome.OVER: ("✗", "red"), Outcome.ABORTED: ("✗", "red")}


class ProgressScreen:
    """Shows a study while it runs. Use it as a context manager, so that no spinner outlives an error.

    Where the terminal is wide enough the trials form a table with a column for each knob; in a narrower
    one each trial takes a few indented lines.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console if console is not None else make_console()
        self._status: Status | None = None
        self._header_shown = False
        self._unbounded_said = False

    def __enter__(self) -> ProgressScreen:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the spinner away. Harmless where there is none."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def started(
        self, study: Study, device_label: str, notes: Sequence[str] = (), *, live: bool = True
    ) -> None:
        """Say what is searched, on what, and what is known to limit the answer.

        `live` is False where a stored study is only looked at: its finished trials are then no resumption.
        """
        spec = study.spec
        provenance = spec.device.provenance
        heading: list[str | tuple[str, str]] = [(f"polythrottle {__version__}", "bold")]
        if provenance is not Provenance.MEASURED:
            heading.append((f" · {provenance.value}", "bold yellow"))
        print_text(self.console, *heading)
        # The rules may make counting slow on a large grid; the product before them is exact without rules.
        size = len(spec.space)
        knobs = " × ".join(f"{SHORT_NAMES.get(k.name, k.name)} {len(k.levels)}" for k in spec.space.knobs)
        fixed = ", ".join(f"{name}={format_level(level)}" for name, level in spec.fixed)
        rows = [
            ("device", device_label),
            ("workload", f"{spec.workload} (version {spec.model_version})"),
            ("goal", f"least {spec.objective.label} with {spec.slo}"),
            ("searches", f"{size:,} configurations: {knobs}" + (f"; fixed: {fixed}" if fixed else "")),
            (
                "strategy",
                f"{spec.strategy.value}{', safe' if spec.safe else ''}{_first_phase(spec)}, "
                f"at most {spec.max_trials} "
                f"search trial{'' if spec.max_trials == 1 else 's'}, seed {spec.seed}",
            ),
            ("study", study.id),
        ]
        for label, text in rows:
            print_text(self.console, (f"{label:<10}", "dim"), text, indent=10)
        for note in notes:
            print_text(self.console, (f"{'note':<10}", "yellow"), note, indent=10)
        done = sum(trial.state.finished for trial in study.trials)
        if live and done:
            print_text(
                self.console,
                (f"{'resumed':<10}", "dim"),
                f"after {done} finished trial{'s'[: done != 1]}",
                indent=10,
            )
        self.console.print()

    def trial_started(self, trial: Trial) -> None:
        """A spinner with what is being tried, where somebody watches."""
        self.stop()
        if not self.console.is_terminal or self.console.is_dumb_terminal:
            return
        text = f"{trial.number} {PURPOSES[trial.purpose]}: {configuration_text(trial.configuration)}"
        # Cropped, not shortened with an ellipsis, which an ASCII terminal cannot show.
        line = Text(printable(self.console, text), no_wrap=True, overflow="crop")
        self._status = self.console.status(line, spinner="line")
        self._status.start()

    def waiting(self, why: str) -> None:
        """A rule of live traffic makes the search wait."""
        self.stop()
        print_text(self.console, (f"{'waiting':<10}", "yellow"), why, indent=10)

    def trial_finished(self, trial: Trial, study: Study) -> None:
        """One line: number, purpose, what was tried, energy, latency against the SLO, best, gain left."""
        self.stop()
        # Of a study that has ended all trials are known, and with them why this one was not chosen.
        others = [other for other in study.trials if other.number != trial.number]
        trials = tuple(sorted((*others, trial), key=lambda other: other.number))
        facts = next(f for f in trial_facts(replace(study, trials=trials)) if f.trial is trial)
        if self._wide(study):
            if not self._header_shown:
                self._print_header(study)
                self._header_shown = True
            self._print_row(facts, study)
        else:
            self._print_stacked(facts, study)

    def _wide(self, study: Study) -> bool:
        return self._row_width(study) <= self.console.width

    def _knob_columns(self, study: Study) -> list[tuple[str, str, int]]:
        """(knob, heading, width) of every knob searched."""
        columns = []
        for knob in study.spec.space.knobs:
            heading = SHORT_NAMES.get(knob.name, knob.name)
            width = max(len(heading), *(len(format_level(level)) for level in knob.levels))
            columns.append((knob.name, heading, width))
        return columns

    def _row_width(self, study: Study) -> int:
        knobs = [width for _, _, width in self._knob_columns(study)]
        best = _BEST_WIDTHS[study.spec.objective]
        columns = [2, _PURPOSE_WIDTH, _ENERGY_WIDTH, _LATENCY_WIDTH, best, _GAIN_WIDTH]
        return sum(columns) + len(_GAP) * len(columns) + sum(knobs) + len(knobs) - 1

    def _print_header(self, study: Study) -> None:
        knobs = " ".join(f"{heading:>{width}}" for _, heading, width in self._knob_columns(study))
        cells = [
            f"{'#':>2}",
            f"{'why':<{_PURPOSE_WIDTH}}",
            printable(self.console, knobs),
            f"{'energy/query':<{_ENERGY_WIDTH}}",
            f"{self._slo_heading(study):<{_LATENCY_WIDTH}}",
            f"{'best so far':<{_BEST_WIDTHS[study.spec.objective]}}",
            f"{'gain':>{_GAIN_WIDTH}}",
        ]
        self.console.print(Text(_GAP.join(cells), style="bold"), overflow="fold")

    def _slo_heading(self, study: Study) -> str:
        limit_s = slo_limit_s(study)
        slo = replace(study.spec.slo, limit_s=limit_s, factor=None) if limit_s is not None else study.spec.slo
        return printable(self.console, str(slo))

    def _print_row(self, facts: TrialFacts, study: Study) -> None:
        trial = facts.trial
        line = Text(f"{trial.number:>2}{_GAP}{_SHORT_PURPOSES[trial.purpose]:<{_PURPOSE_WIDTH}}{_GAP}")
        knobs = []
        for name, _, width in self._knob_columns(study):
            level = trial.configuration.get(name)
            knobs.append(f"{printable(self.console, '-' if level is None else format_level(level)):>{width}}")
        line.append(" ".join(knobs))
        self._cell(line, self._energy(facts), "", _ENERGY_WIDTH)
        self._cell(line, *self._latency(facts, study), _LATENCY_WIDTH)
        self._cell(line, self._best(facts, study), "bold", _BEST_WIDTHS[study.spec.objective])
        line.append(f"{_GAP}{self._gain(facts):>{_GAIN_WIDTH}}", style="dim")
        line.rstrip()
        self.console.print(line, overflow="fold")
        self._print_why(facts)

    def _cell(self, line: Text, text: str, style: str, width: int) -> None:
        line.append(_GAP)
        line.append(f"{printable(self.console, text):<{width}}", style=style)

    def _print_stacked(self, facts: TrialFacts, study: Study) -> None:
        trial = facts.trial
        head = f"{trial.number:>2} {PURPOSES[trial.purpose]}: "
        print_text(self.console, (head, "bold"), configuration_text(trial.configuration), indent=3)
        latency, style = self._latency(facts, study)
        latency = f"{study.spec.slo.statistic} {latency}"
        print_text(self.console, f"   {self._energy(facts)} · ", (latency, style), indent=3)
        print_text(
            self.console,
            "   best ",
            (self._best(facts, study), "bold"),
            (f" · gain left {self._gain(facts)}", "dim"),
            indent=3,
        )
        self._print_why(facts)

    def _print_why(self, facts: TrialFacts) -> None:
        # A trial over the SLO already shows by how much.
        if facts.why is not None and facts.outcome is not Outcome.OVER:
            print_text(self.console, "     ", (facts.why, "yellow"), indent=5)
        measurement = facts.trial.measurement
        if measurement is None:
            return
        latency = measurement.latency
        aborted = facts.outcome is Outcome.ABORTED
        if isinstance(latency, LatencyReading) and not (latency.bounded or aborted or self._unbounded_said):
            text = f"unsure: {latency.statistic} of {latency.n_queries} queries, too few to bound it"
            print_text(self.console, "     ", (text, "yellow"), indent=5)
            self._unbounded_said = True
        for note in measurement.notes:
            print_text(self.console, "     ", (f"note: {note}", "yellow"), indent=5)

    def _energy(self, facts: TrialFacts) -> str:
        if facts.energy_j is None:
            return "no energy"
        return energy_text(facts.energy_j, facts.energy_error_j)

    def _latency(self, facts: TrialFacts, study: Study) -> tuple[str, str]:
        """The latency with its mark, and the mark's style."""
        mark, style = _MARKS.get(facts.outcome, ("", "yellow"))
        if facts.latency_s is None:
            return facts.outcome.value, "yellow"
        limit_s = slo_limit_s(study)
        text = f"{format_latency(facts.latency_s)} {mark}".rstrip()
        if facts.outcome is Outcome.ABORTED:
            return f">{text} cut", style
        whole = facts.trial.purpose is not Purpose.STAGE
        if facts.outcome is Outcome.OVER and limit_s is not None and whole:
            text += f" {percent(facts.latency_s / limit_s - 1.0, signed=True)}"
        if not facts.bounded:
            text += " unsure"
        return text, style

    def _best(self, facts: TrialFacts, study: Study) -> str:
        """Its mean over all windows so far, and the trial that first tried it."""
        best = facts.best
        if best is None:
            return "none"
        objective = study.spec.objective
        value = objective_text(objective, objective.of(best.energy_j, best.latency_s))
        return f"{value} #{best.trials[0]}"

    def _gain(self, facts: TrialFacts) -> str:
        gain = facts.expected_gain
        return "-" if gain is None else percent(gain)


def _first_phase(spec: StudySpec) -> str:
    stage = spec.first_stage
    return "" if stage is None else f", {stage.name} by {SHORT_NAMES.get(stage.knob, stage.knob)} first"


def show_result(result: Result, study: Study, console: Console | None = None) -> None:
    """The answer: what to set, what it saves, what the search cost, why it stopped, and the verdict."""
    console = console if console is not None else make_console()
    provenance = study.spec.device.provenance
    tag = "" if provenance is Provenance.MEASURED else f" ({provenance.value})"
    good = result.chosen is not None
    console.print()
    print_text(
        console,
        (f"{result.verdict.value.replace('_', ' ')}{tag}", "bold green" if good else "bold red"),
        f": {verdict_text(result, study.spec)}",
        indent=2,
    )
    for label, text in _result_rows(result, study):
        print_text(console, (f"{label:<{_LABEL_WIDTH}}", "dim"), text, indent=_LABEL_WIDTH)


def _result_rows(result: Result, study: Study) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    limit_s = result.slo.limit_s
    if result.chosen is not None:
        rows.append(("set", configuration_text(result.chosen.configuration)))
    elif result.closest is not None:
        rows.append(("closest", configuration_text(result.closest.configuration)))
        rows.append(("", _latency_line(result.closest, result.slo.statistic, limit_s)))
    for label, estimate in (("stock", result.stock), ("max clocks", result.max_clocks)):
        if estimate is not None:
            rows.append((label, f"{_energy_line(estimate)}, {_latency_line(estimate, result.slo.statistic)}"))
    if result.chosen is not None:
        rows.append(("chosen", f"{_energy_line(result.chosen)}{_changes(result.chosen, result)}"))
        rows.append(("latency", _latency_line(result.chosen, result.slo.statistic, limit_s)))
        if study.spec.objective is not EnergyObjective.ENERGY_PER_QUERY:
            rows.append(("objective", _objective_line(result.chosen, result, study.spec.objective)))
    if result.p_feasible is not None:
        rows.append(
            (
                "P(feasible)",
                f"{probability_text(result.p_feasible)}, {probability_source(result, study.spec)}",
            )
        )
    cost = "energy unknown" if result.search_energy_j is None else format_energy(result.search_energy_j)
    rows += [
        (
            "search cost",
            f"{trials_text(result)}; {duration_text(result.search_time_s)} of device time; {cost}",
        ),
        ("paid back", payback_text(result)),
        ("stopped", f"{result.state.value}: {result.reason}"),
    ]
    some_are_left = result.n_search_trials < len(study.spec.space)
    if result.state is StudyState.CANCELLED or (result.state is StudyState.EXHAUSTED and some_are_left):
        rows.append(("go on", "the same command with --resume"))
    if result.verdict is Verdict.NO_FEASIBLE_FOUND:
        rows.append(("what to do", "allow more latency, or give a smaller batch size or another model"))
    metered = metered_by(study)
    if metered is not None:
        rows.append(("meter", metered_text(metered)))
    if assumes_errors(study):
        rows.append(("errors", ASSUMED_ERRORS))
    if study.spec.device.provenance is not Provenance.MEASURED:
        rows.append(("provenance", f"{study.spec.device.provenance.value}: not measured on this machine"))
    return rows


def _energy_line(estimate: Estimate) -> str:
    return f"{energy_text(estimate.energy_j, estimate.energy_error_j)} per query"


def _latency_line(estimate: Estimate, statistic: str, limit_s: float | None = None) -> str:
    text = f"{statistic} {latency_text(estimate.latency_s, estimate.latency_error_s)}"
    if limit_s is None:
        return text
    return f"{text} of {format_latency(limit_s)} allowed: {slo_text(estimate.latency_s, limit_s)}"


def _objective_line(chosen: Estimate, result: Result, objective: EnergyObjective) -> str:
    changes = objective_changes_text(objective, chosen, result)
    text = f"{objective.label} {estimate_objective_text(objective, chosen)}"
    return f"{text}: {changes}" if changes else text


def _changes(chosen: Estimate, result: Result) -> str:
    changes = [
        f"{change_text(chosen, other)} than {name}"
        for name, other in (("stock", result.stock), ("max clocks", result.max_clocks))
        if other is not None and other.configuration != chosen.configuration
    ]
    return f": {', '.join(changes)}" if changes else ""
