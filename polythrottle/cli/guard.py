"""`polythrottle guard`: watch live traffic under a configuration, and go back in time."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from polythrottle.cli import serving
from polythrottle.cli.durations import seconds
from polythrottle.cli.interrupts import Interrupts
from polythrottle.cli.studies import find_study
from polythrottle.cli.wanted import Wanted, matched, wanted
from polythrottle.configuration import Configuration, format_level
from polythrottle.errors import ExitCode, InvalidInputError
from polythrottle.objective import LatencySlo
from polythrottle.reporting.console import make_console, print_text
from polythrottle.study import Study

if TYPE_CHECKING:
    from polythrottle_agent.guard.events import GuardEvent
    from polythrottle_agent.guard.falling_back import Settings
    from polythrottle_agent.guard.opening import Guarded
    from polythrottle_agent.guard.rules import GuardRules, RateBand
    from polythrottle_agent.workloads.opening import WorkloadOptions

STOCK, MAX, NONE = "stock", "max", "none"
TRITON = "triton"
"""Watched by its metrics where no load is named, as are the workloads that never have one."""
USUAL_BAND, USUAL_WINDOW, USUAL_COOL_DOWN = "0.5x-1.5x", "30s", "10m"
USUAL_RETURNS, USUAL_RETUNE_EVERY = 3, "1h"
NOW = "\nThe guard stops."

_BAND = re.compile(r"^\s*(\d+(?:\.\d*)?)(x?)\s*-\s*(\d+(?:\.\d*)?)(x?)\s*$")
_PANEL = "What is watched for"


def guard(
    what: str = typer.Argument(
        metavar="STUDY|FILE", help="The configuration: a study, or a file as for polythrottle apply."
    ),
    watch: str | None = typer.Option(
        None,
        "--watch",
        help="What is served: watch:URL, vllm:URL, tgi:URL or triton:URL/MODEL for live traffic, or http:URL "
        "with --rate for queries of its own. Default: an emulated board's own.",
    ),
    slo: str | None = typer.Option(None, "--latency-slo", help="As a time. Default: the study's."),
    device: str | None = typer.Option(None, help="Default: the study's kind of device, else auto."),
    fall_back: list[str] = typer.Option(
        [],
        "--fall-back",
        help="Last known good: stock, max or a FILE. May be repeated: the next is for when that one misses "
        "the SLO too. Default: what the study measured as good.",
    ),
    rate: serving.RateOption = None,
    arrivals: serving.ArrivalsOption = "poisson",
    connections: serving.ConnectionsOption = serving.DEFAULT_CONNECTIONS,
    time_out: serving.TimeOutOption = serving.DEFAULT_TIME_OUT,
    method: serving.MethodOption = None,
    header: serving.HeaderOption = [],  # noqa: B006 - typer copies it
    body: serving.BodyOption = None,
    success: serving.SuccessOption = None,
    data: serving.DataOption = None,
    latency_metric: serving.LatencyMetricOption = None,
    metrics_url: serving.MetricsUrlOption = None,
    max_temperature: float | None = typer.Option(
        None, "--max-temperature", help="In °C, of the hottest part.", rich_help_panel=_PANEL
    ),
    rate_band: str = typer.Option(
        USUAL_BAND,
        "--rate-band",
        help="Arrival rates: times that of the first minute, or queries a second as in 10-40; or none.",
        rich_help_panel=_PANEL,
    ),
    throttling: bool = typer.Option(
        True, help="Whether throttling alone is a breach.", rich_help_panel=_PANEL
    ),
    window: str = typer.Option(USUAL_WINDOW, "--window", help="Of latency.", rich_help_panel=_PANEL),
    cool_down: str = typer.Option(
        USUAL_COOL_DOWN, "--cool-down", help="How long at least a fall back stays.", rich_help_panel=_PANEL
    ),
    returns: int = typer.Option(
        USUAL_RETURNS,
        min=0,
        help="How often at most to return when the cause has passed.",
        rich_help_panel=_PANEL,
    ),
    for_: str | None = typer.Option(None, "--for", help="Watch that long. Default: until interrupted."),
    retune: bool = typer.Option(
        False, "--retune", help="When another search is wanted, run it in safe mode and guard its answer."
    ),
    retune_every: str = typer.Option(
        USUAL_RETUNE_EVERY, "--retune-every", help="No search sooner than that."
    ),
    as_json: bool = typer.Option(False, "--json", help="One JSON object a line instead of sentences."),
    seed: int = typer.Option(0, min=0, help="Of emulated noise and of arrivals."),
    state_dir: Path | None = typer.Option(None, help="Where studies, and guard.jsonl, are kept."),
) -> None:
    """Watch the SLO, arrivals and heat; on a breach go back to the last known good within a second.

    Guards what apply --keep left in force, which then outlives it; or, where nothing is kept, applies the
    configuration itself and puts the device back at its end. It asks for another search where the workload
    has changed: a line in guard.jsonl, and with --retune the search itself.
    """
    if retune and Path(what).is_file():
        raise InvalidInputError("--retune needs a study, which says what to search; name one, not a file.")
    options = serving.workload_options(
        rate=rate,
        arrivals=arrivals,
        connections=connections,
        time_out=time_out,
        method=method,
        headers=header,
        body=body,
        success=success,
        data=data,
        latency_metric=latency_metric,
        metrics_url=metrics_url,
        watch=rate is None and _is_live(watch),
        seed=seed,
    )
    told = _Told(
        max_temperature=max_temperature,
        rate_band=_band(rate_band),
        throttling=throttling,
        window_s=seconds("--window", window),
        cool_down_s=seconds("--cool-down", cool_down),
        returns=returns,
        for_s=None if for_ is None else seconds("--for", for_),
        fall_back=tuple(fall_back),
        retune_every_s=seconds("--retune-every", retune_every) if retune else None,
        as_json=as_json,
    )
    guard_as_told(what, watch, options, told, slo=slo, device=device, seed=seed, state_dir=state_dir)


@dataclass(frozen=True)
class _Told:
    """What a user may say of a guard, with what is usual."""

    max_temperature: float | None = None
    rate_band: RateBand | None = None
    throttling: bool = True
    window_s: float = 30.0
    cool_down_s: float = 600.0
    returns: int = USUAL_RETURNS
    for_s: float | None = None
    fall_back: tuple[str, ...] = ()
    retune_every_s: float | None = None
    as_json: bool = False

    def rules(self, slo: LatencySlo) -> GuardRules:
        from polythrottle_agent.guard.rules import GuardRules

        return GuardRules(
            slo,
            window_s=self.window_s,
            max_temperature_c=self.max_temperature,
            throttling=self.throttling,
            rate_band=self.rate_band,
            cool_down_s=self.cool_down_s,
            max_returns=self.returns,
        )


def guard_as_told(
    what: str,
    watch: str | None,
    options: WorkloadOptions,
    told: _Told | None = None,
    *,
    slo: str | None = None,
    device: str | None = None,
    seed: int = 0,
    state_dir: Path | None = None,
) -> None:
    """Guard a study's answer or a file's levels; also what `polythrottle apply --keep --guard` goes on with.

    Raises:
        InvalidInputError: no SLO is known, or something cannot be read.
        PolythrottleError: as `polythrottle.guarding.run_guard` does.
        typer.Exit: with 1 where it ends while the last known good is in force.
    """
    told = told if told is not None else _Told(rate_band=_band(USUAL_BAND))
    asked = wanted(what, state_dir)
    limit = LatencySlo.parse(slo) if slo is not None else asked.slo
    if limit is None:
        raise InvalidInputError("Name the SLO to guard with --latency-slo, such as p99<50ms.")
    rules = told.rules(limit)
    study = None if Path(what).is_file() else find_study(what, state_dir)
    named = device or asked.device

    def reopen() -> Guarded:
        from polythrottle_agent.guard.opening import open_guarded

        return open_guarded(named, watch, options, seed)

    console = make_console()
    opened = reopen()
    _check_device(asked, opened, None if told.as_json else console)
    from polythrottle.api import default_state_dir
    from polythrottle.guarding import GuardTask, SearchAgain, guard_and_search, run_guard, same_again
    from polythrottle_agent.guard.events import GuardLog
    from polythrottle_agent.guard.runner import Ladder

    settings = matched(asked.settings, opened.controls, None if told.as_json else console)
    ladder = Ladder(settings, _known_good(told.fall_back, settings, study, limit, opened))
    directory = state_dir if state_dir is not None else default_state_dir()
    listeners = (_JsonLines() if told.as_json else _Sentences(console, opened), GuardLog(directory))
    task = GuardTask(opened, ladder, rules, None if study is None else study.id, listeners)
    with Interrupts(NOW, NOW) as interrupts:
        if told.retune_every_s is not None and study is not None:
            request = same_again(study, limit, named, watch, options)
            again = SearchAgain(request, directory, reopen, interrupts, every_s=told.retune_every_s)
            guarding = guard_and_search(task, again, told.for_s)
        else:
            guarding = run_guard(task, lambda: interrupts.after_trial, for_s=told.for_s)
    if guarding.status.rung > 0:
        raise typer.Exit(int(ExitCode.ERROR))


def _is_live(watch: str | None) -> bool:
    from polythrottle_agent.workloads.opening import ALWAYS_WATCHED

    scheme = (watch or "").partition(":")[0].strip().lower()
    return scheme == TRITON or scheme in ALWAYS_WATCHED


def _band(text: str) -> RateBand | None:
    """
    Raises:
        InvalidInputError: neither two numbers nor `none`.
    """
    from polythrottle_agent.guard.rules import RateBand

    if text.strip().lower() == NONE:
        return None
    match = _BAND.match(text)
    if match is None or match[2] != match[4]:
        raise InvalidInputError(
            f"--rate-band {text!r} cannot be read; write for example 0.5x-1.5x, 10-40 or none."
        )
    return RateBand(float(match[1]), float(match[3]), relative=bool(match[2]))


def _check_device(asked: Wanted, opened: Guarded, console: Console | None) -> None:
    from polythrottle_agent.applying import check_device

    warning = None if asked.tuned is None else check_device(asked.tuned, opened.identity)
    if warning is not None and console is not None:
        print_text(console, ("warning   ", "yellow"), f"{warning}.", indent=10)


def _known_good(
    named: tuple[str, ...], guarded: Configuration, study: Study | None, slo: LatencySlo, opened: Guarded
) -> tuple[Settings, ...]:
    """The ladder: what the user named, or what the study measured as good. Never what is guarded itself."""
    from polythrottle.guarding import known_good

    if not named:
        found: tuple[Settings, ...] = known_good(study, slo, tuple(opened.controls))
    else:
        found = tuple(_rung(text, guarded, opened) for text in named)
    return tuple(rung for rung in found if rung is None or dict(rung) != dict(guarded))


def _rung(text: str, guarded: Configuration, opened: Guarded) -> Settings:
    """
    Raises:
        InvalidInputError: neither `stock`, `max` nor a file of levels.
    """
    if text == STOCK:
        return None
    if text == MAX:
        highest = {k: [x for x in opened.controls[k].levels if not isinstance(x, str)] for k in guarded}
        return {k: max(numbers) for k, numbers in highest.items()}
    if not Path(text).is_file():
        raise InvalidInputError(f"--fall-back {text!r} is no file; write stock, max or the name of a file.")
    return matched(wanted(text, None).settings, opened.controls, None)


class _JsonLines:
    """Every event as it stands in guard.jsonl."""

    def told(self, event: GuardEvent) -> None:
        typer.echo(event.as_json())


class _Sentences:
    """What a person wants to know."""

    def __init__(self, console: Console, opened: Guarded) -> None:
        self._console = console
        self._label = opened.identity.label

    def told(self, event: GuardEvent) -> None:
        word, text, style = _words(event, self._label)
        print_text(self._console, (f"{word:<12}", style), text, indent=12)


def _words(event: GuardEvent, label: str) -> tuple[str, str, str]:
    """A word, a sentence and the word's style."""
    from polythrottle_agent.guard.events import Kind

    # `p99 is …` stays as it is written everywhere.
    keeps = re.match(r"p\d", event.reason) is not None
    reason = event.reason if keeps else event.reason[:1].upper() + event.reason[1:]
    levels = ", ".join(f"{k} {format_level(v)}" for k, v in (event.settings or {}).items())
    in_force = levels or "the device as it was found"
    took = "" if event.took_s is None else f" {event.took_s * 1e3:.0f} ms after that was seen"
    at = event.at[11:19]
    found = {
        Kind.STARTED: ("guarding", f"{label}: {in_force}.", "bold"),
        Kind.STATE: (event.state, f"{at} {reason}.", "dim"),
        Kind.FELL_BACK: ("fell back", f"{at} {reason}. In force{took}: {in_force}.", "bold red"),
        Kind.NOT_SWITCHED: ("error", f"{at} Could not switch: {event.reason}.", "bold red"),
        Kind.RETURNED: ("returned", f"{at} {reason}. In force again: {in_force}.", "bold"),
        Kind.NOTHING_SAFER: ("helpless", f"{at} {reason}.", "bold red"),
        Kind.SEARCH_WANTED: ("search", f"{at} Another search is wanted: {event.reason}.", "yellow"),
        Kind.SEARCH_ANSWERED: ("searched", f"{at} {reason}.", "bold"),
        Kind.STOPPED: ("stopped", f"{at} {reason}.", "dim"),
    }
    return found[event.event]
