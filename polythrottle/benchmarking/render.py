"""Tables on the screen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from polythrottle.benchmarking.campaign import Failure
from polythrottle.benchmarking.metrics import REGRET_AFTER, Reach, Share, Summary
from polythrottle.benchmarking.strategies import ENTRANTS
from polythrottle.benchmarking.tables import Skipped, describe
from polythrottle.benchmarking.targets import Summaries, Target, Verdict
from polythrottle.benchmarking.task import FAMILIES, Condition, Task

WIDTH = 180
"""Used where the output is no terminal, so that the tables stay whole in a file."""


def console() -> Console:
    screen = Console()
    return screen if screen.is_terminal else Console(width=WIDTH)


def _reach(reach: Reach) -> str:
    return f"{reach.median:g} / {reach.p90:.3g} / {reach.mean:.1f}"


def _share(share: Share) -> str:
    low, high = share.interval()
    return f"{share.value:.0%} ({low:.0%}–{high:.0%})"


def _label(strategy: str) -> str:
    return ENTRANTS[strategy].label


def _ordered(summaries: Iterable[Summary]) -> list[Summary]:
    """Normal before degraded, families and strategies as they are declared."""
    strategies = list(ENTRANTS)
    return sorted(
        summaries,
        key=lambda s: (s.condition != "normal", FAMILIES.index(s.family), strategies.index(s.strategy)),
    )


def _provenance(summaries: Sequence[Summary]) -> str:
    return "emulated tables" if all(s.emulated for s in summaries) else "recorded tables, noise added"


def show_tasks(screen: Console, tasks: Sequence[Task], skipped: Sequence[Skipped]) -> None:
    """Which tables are played, and which were skipped and why."""
    for family in FAMILIES:
        members = [task for task in tasks if task.family == family]
        if not members:
            continue
        screen.print(Text(f"{family}: {len(members)} {'table' if len(members) == 1 else 'tables'}"))
        for task in members:
            screen.print(Text(f"  {task.name}: {describe(task)}"))
    for skip in skipped:
        screen.print(Text(f"skipped {skip.where}: {skip.reason}"))


def show_summaries(screen: Console, summaries: Summaries, conditions: Sequence[Condition]) -> None:
    """One table for each family and condition, then one of the stopping rule."""
    for condition in conditions:
        for family in FAMILIES:
            members = _ordered(
                s for s in summaries.values() if (s.family, s.condition) == (family, condition.name)
            )
            if not members:
                continue
            title = f"{family}, {condition.label}, {_provenance(members)}: mean regret after … evaluations"
            table = Table(title=Text(title), title_justify="left")
            table.add_column("strategy", no_wrap=True)
            for heading in (
                "runs",
                *(f"@{after}" for after in REGRET_AFTER),
                "to 5 %\nmed / p90 / mean",
                "to 2 %\nmed / p90 / mean",
                "vio-\nlating",
                "final\nregret",
                "final meets\nSLO within 1 %",
                "CPU\nms",
            ):
                table.add_column(heading, justify="right", no_wrap=True)
            for summary in members:
                after = [summary.regret_after(k) for k in REGRET_AFTER]
                table.add_row(
                    _label(summary.strategy),
                    str(summary.n),
                    *("–" if value is None else f"{value:.1%}" for value in after),
                    _reach(summary.to_5),
                    _reach(summary.to_2),
                    f"{summary.violations:.1f}",
                    f"{summary.final_regret:.1%}",
                    _share(summary.slo_met),
                    f"{summary.suggest_ms:.0f}",
                )
            screen.print(table)
    _show_stopping(screen, summaries)


def _show_stopping(screen: Console, summaries: Summaries) -> None:
    members = _ordered(summary for summary in summaries.values() if summary.stop_fired.k)
    if not members:
        return
    table = Table(title="stopping rule, where it first fires", title_justify="left")
    for column in ("family", "condition", "strategy"):
        table.add_column(column)
    for column in ("runs", "fired", "mean trials", "mean regret", "within 5 %"):
        table.add_column(column, justify="right")
    for summary in members:
        table.add_row(
            summary.family,
            summary.condition,
            _label(summary.strategy),
            str(summary.n),
            f"{summary.stop_fired.value:.0%}",
            f"{summary.stop_trials:.1f}",
            f"{summary.stop_regret:.1%}",
            _share(summary.stop_within_5),
        )
    screen.print(table)


_STYLES = {Verdict.PASS: "green", Verdict.FAIL: "bold red"}


def show_targets(screen: Console, targets: Sequence[Target]) -> None:
    if not targets:
        return
    table = Table(title="targets", title_justify="left")
    table.add_column("requirement")
    table.add_column("figure")
    table.add_column("verdict")
    for target in targets:
        style = _STYLES.get(target.verdict, "dim")
        table.add_row(Text(target.requirement), Text(target.figure), Text(target.verdict.value, style=style))
    screen.print(table)


def show_failures(screen: Console, failures: Sequence[Failure], verbose: bool) -> None:
    for failure in failures[: None if verbose else 5]:
        screen.print(Text(f"broken: {failure.job}: {failure.reason}", style="bold red"))
        if verbose:
            screen.print(Text(failure.details))
    if len(failures) > 5 and not verbose:
        screen.print(Text(f"… and {len(failures) - 5} more broken runs; -v shows all with tracebacks."))
