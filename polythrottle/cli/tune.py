"""`polythrottle tune`: the whole loop on one machine."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from polythrottle.cli import live_options, serving
from polythrottle.cli.durations import seconds
from polythrottle.cli.interrupts import Interrupts
from polythrottle.configuration import format_level
from polythrottle.errors import ExitCode, InvalidInputError
from polythrottle.objective import EnergyObjective, LatencySlo
from polythrottle.reporting.console import make_console, print_text
from polythrottle.reporting.terminal import ProgressScreen, show_result
from polythrottle.study import Strategy, StudyState, Verdict
from polythrottle.trial import Trial

if TYPE_CHECKING:
    from polythrottle.api import Prepared

_SHARE = re.compile(r"^\s*(\d+(?:\.\d*)?)\s*%\s*$")


def tune(
    latency_slo: str = typer.Option(
        ...,
        "--latency-slo",
        help="Such as 50ms, 'p95<50ms' or 1.2x (of max clocks). Default percentile: p99.",
    ),
    device: str = typer.Option("auto", help="auto, auto:GPU-UUID, emulated:BOARD or replay:TABLE.csv."),
    workload: serving.WorkloadOption = None,
    rate: serving.RateOption = None,
    arrivals: serving.ArrivalsOption = "poisson",
    closed_loop: serving.ClosedLoopOption = False,
    connections: serving.ConnectionsOption = serving.DEFAULT_CONNECTIONS,
    time_out: serving.TimeOutOption = serving.DEFAULT_TIME_OUT,
    method: serving.MethodOption = None,
    header: serving.HeaderOption = [],  # noqa: B006 - typer copies it
    body: serving.BodyOption = None,
    success: serving.SuccessOption = None,
    data: serving.DataOption = None,
    watch: serving.WatchOption = False,
    latency_metric: serving.LatencyMetricOption = None,
    metrics_url: serving.MetricsUrlOption = None,
    rate_from: serving.RateFromOption = None,
    meter: str | None = typer.Option(
        None, help="An external meter for auto: file:PATH or command:'PROGRAM ARGUMENTS'."
    ),
    knobs: str | None = typer.Option(
        None, help="Knobs to search, by comma; levels too, as in mem_freq_mhz=204/2133. Default: the usual."
    ),
    batch_sizes: str | None = typer.Option(None, help="Batch sizes to try, by comma."),
    fix: list[str] = typer.Option([], help="Hold a knob: --fix knob=value. May be repeated."),
    precision: str | None = typer.Option(
        None,
        help="Windows grow until latency and energy are this well known, such as 3%. Default: 5%.",
    ),
    live: live_options.LiveOption = False,
    violations_per_hour: live_options.ViolationsOption = None,
    quiet_hours: live_options.QuietHoursOption = None,
    canary: live_options.CanaryOption = None,
    canary_command: live_options.CanaryCommandOption = None,
    no_waiting: live_options.NoWaitingOption = False,
    two_phase: bool = typer.Option(
        False, "--two-phase", help="Tune the CPU stage before the model alone first, then the rest."
    ),
    strategy: Strategy = typer.Option(Strategy.INFORMED, help="How the next configuration is chosen."),
    objective: EnergyObjective = typer.Option(
        EnergyObjective.ENERGY_PER_QUERY, help="energy per query, or edp (energy-delay product)."
    ),
    max_trials: int = typer.Option(20, min=1, help="Search trials at most, max clocks included."),
    max_time: str | None = typer.Option(None, help="Device time at most, such as 90s, 10m or 1h."),
    safe: bool = typer.Option(False, "--safe", help="Avoid trials that may miss the SLO; slower."),
    keep_searching: bool = typer.Option(
        False, "--keep-searching", help="Search even where max clocks miss the SLO."
    ),
    resume: bool = typer.Option(False, "--resume", help="Go on with the study of the same command."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Say what would be touched; touch nothing."),
    as_json: bool = typer.Option(False, "--json", help="The answer as JSON on stdout; progress on stderr."),
    report: Path | None = typer.Option(None, help="Write an HTML report to this file."),
    seed: int = typer.Option(0, min=0, help="Of random choices and emulated noise."),
    state_dir: Path | None = typer.Option(
        None, help="Where studies are kept. Default: $POLYTHROTTLE_STATE_DIR or the user's state directory."
    ),
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Why each configuration was chosen."),
) -> None:
    """Find the configuration with the least energy per query that meets the SLO.

    Measures the device as found and at max clocks, searches, confirms the winner, and puts the device
    back. Ctrl-C once ends after the running trial, twice ends now.
    """
    slo = LatencySlo.parse(latency_slo)
    max_time_s = None if max_time is None else seconds("--max-time", max_time)
    fixed = _all_fixed(fix)
    sizes = None if batch_sizes is None else _sizes(batch_sizes)
    if report is not None:
        check_report(report)
    _need_the_extra(strategy)
    from polythrottle.api import TuneRequest, default_state_dir, prepare, run

    request = TuneRequest(
        slo=slo,
        device=device,
        workload=workload,
        meter=meter,
        knobs=None if knobs is None else tuple(part for part in knobs.split(",") if part.strip()),
        batch_sizes=sizes,
        options=serving.workload_options(
            rate=rate,
            arrivals=arrivals,
            closed_loop=closed_loop,
            connections=connections,
            time_out=time_out,
            batch_sizes=sizes,
            method=method,
            headers=header,
            body=body,
            success=success,
            data=data,
            watch=watch,
            latency_metric=latency_metric,
            metrics_url=metrics_url,
            rate_from=rate_from,
            seed=seed,
        ),
        precision=None if precision is None else _share("--precision", precision),
        two_phase=two_phase,
        live=live_options.parsed(
            live or watch, violations_per_hour, quiet_hours, canary, canary_command, no_waiting
        ),
        fixed=fixed,
        strategy=strategy,
        objective=objective,
        max_trials=max_trials,
        max_time_s=max_time_s,
        safe=safe,
        keep_searching=keep_searching,
        seed=seed,
    )
    prepared = prepare(request)
    directory = state_dir if state_dir is not None else default_state_dir()
    console = make_console(sys.stderr) if as_json else make_console()
    if dry_run:
        _show_plan(prepared, directory, console, as_json)
        return
    screen = _VerboseScreen(console) if verbose else ProgressScreen(console)
    with Interrupts() as interrupts, screen:
        study = run(
            prepared, directory, resume=resume, listener=screen, stopping=interrupts, on_wait=screen.waiting
        )
    if study.result is None:
        raise RuntimeError("a study that has ended must have a result")
    if as_json:
        from polythrottle.reporting.result_json import result_json

        typer.echo(json.dumps(result_json(study.result, study), indent=2))
    else:
        show_result(study.result, study, console)
    if report is not None:
        from polythrottle.reporting.html import write_report

        write_report(study, report)
        print_text(console, f"report: {report}")
    # A Ctrl-C that came too late to stop anything takes nothing from the answer.
    if interrupts.after_trial and study.state is StudyState.CANCELLED:
        raise typer.Exit(int(ExitCode.INTERRUPTED))
    if study.result.verdict is Verdict.NO_FEASIBLE_FOUND:
        raise typer.Exit(int(ExitCode.INFEASIBLE))


class _VerboseScreen(ProgressScreen):
    """Also says why each trial was chosen and what was expected of it."""

    def trial_started(self, trial: Trial) -> None:
        super().trial_started(trial)
        suggestion = trial.suggestion
        if suggestion is None:
            return
        self.stop()
        text = f"trial {trial.number}: {suggestion.provenance}"
        p = suggestion.prediction if suggestion.configuration == trial.configuration else None
        if p is not None:
            text += (
                f"; expects {p.energy_j:.4g} J ± {p.energy_sd:.1%}, {p.latency_s * 1e3:.4g} ms "
                f"± {p.latency_sd:.1%}, P(feasible) {p.p_feasible:.2f}"
            )
        if p is not None and suggestion.expected_gain is not None:
            text += f"; expected gain {suggestion.expected_gain:.2%}"
        if suggestion.stop is not None:
            text += f"; {suggestion.stop}"
        print_text(self.console, (text, "dim"), indent=4)


def _need_the_extra(strategy: Strategy) -> None:
    """
    Raises:
        InvalidInputError: a package that the study or its strategy needs is not installed.
    """
    from importlib.util import find_spec

    needed = ["sqlmodel", "alembic"]
    if strategy not in (Strategy.RANDOM, Strategy.GRID):
        needed += ["torch", "botorch"]
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise InvalidInputError(
            f"Strategy {strategy.value} needs {', '.join(missing)}, which is not installed; "
            "run pip install 'polythrottle[tune]'."
        )


def _share(option: str, text: str) -> float:
    """A percentage as a share of 1."""
    match = _SHARE.match(text)
    if match is None or not 0 < float(match[1]) < 100:
        raise InvalidInputError(f"{option} {text!r} cannot be read; write a percentage such as 3%.")
    return float(match[1]) / 100


def _fixed(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or not value.strip():
        raise InvalidInputError(f"--fix {text!r} cannot be read; write knob=value, as in batch_size=4.")
    return name.strip(), value.strip()


def _all_fixed(texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    fixed = [_fixed(text) for text in texts]
    names = [name for name, _ in fixed]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise InvalidInputError(f"Knob {repeated} is fixed twice; fix it once.")
    return tuple(fixed)


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise InvalidInputError(f"--batch-sizes {text!r} cannot be read; write for example 1,2,4.")
    return sizes


def check_report(path: Path) -> None:
    """Before an hour of trials, not after it.

    Raises:
        InvalidInputError: the report could not be written there, or its packages are missing.
    """
    from importlib.util import find_spec

    directory = path.absolute().parent
    try:
        if not directory.is_dir():
            raise InvalidInputError(f"--report {path}: its directory does not exist; create it first.")
        if path.is_dir():
            raise InvalidInputError(f"--report {path} is a directory; name a file.")
        target = path if path.exists() else directory
    except OSError as error:
        raise InvalidInputError(
            f"--report {path} cannot be used ({error.strerror}); name another file."
        ) from error
    if not os.access(target, os.W_OK if target is path else os.W_OK | os.X_OK):
        raise InvalidInputError(f"--report {path}: {target} cannot be written to; name another file.")
    missing = [name for name in ("jinja2", "plotly") if find_spec(name) is None]
    if missing:
        raise InvalidInputError(
            f"--report needs {', '.join(missing)}, which is not installed; "
            "run pip install 'polythrottle[report]'."
        )


def _show_plan(prepared: Prepared, directory: Path, console: Console, as_json: bool) -> None:
    """What a run would write, and where."""
    from polythrottle.api import DATABASE

    spec = prepared.spec
    writes: list[tuple[str, Sequence[str]]] = [
        (knob.name, [format_level(level) for level in knob.levels]) for knob in spec.space.knobs
    ]
    if as_json:
        plan = {
            "schema": "polythrottle-plan/1",
            "device": spec.device.id,
            "provenance": spec.device.provenance.value,
            "workload": spec.workload,
            "slo": str(spec.slo),
            "configurations": len(spec.space),
            "knobs": dict(writes),
            "fixed": dict(spec.fixed),
            "anchor": dict(spec.anchor.settings),
            "max_trials": spec.max_trials,
            "files": [str(directory / DATABASE), str(directory / "locks")],
            "notes": list(prepared.notes),
        }
        typer.echo(json.dumps(plan, indent=2))
        return
    print_text(console, ("dry run", "bold"), ": nothing was written. A run would")
    print_text(console, "  tune      ", f"{spec.device.label}, {spec.workload}, {spec.slo}", indent=12)
    for name, levels in writes:
        print_text(console, "  write     ", f"{name}: {', '.join(levels)}", indent=12)
    for name, level in spec.fixed:
        print_text(console, "  hold      ", f"{name} = {format_level(level)}", indent=12)
    if prepared.device.stock_note is not None:
        print_text(console, "  put back  ", prepared.device.stock_note, indent=12)
    print_text(
        console,
        "  measure   ",
        f"{'stock, ' if spec.baseline else ''}max clocks ({spec.anchor}), at most {spec.max_trials} of "
        f"{len(spec.space):,} configurations, then confirm",
        indent=12,
    )
    print_text(console, "  keep      ", f"{directory / DATABASE}, a lock in {directory / 'locks'}", indent=12)
    for note in prepared.notes:
        print_text(console, "  note      ", note, indent=12)
