"""`polythrottle bench`: how good the optimiser is, and how faithful the emulator."""

from __future__ import annotations

import os
from pathlib import Path

import typer

from polythrottle.errors import InvalidInputError

app = typer.Typer(
    help="Measure polythrottle itself: the optimiser on tables, the emulator against the paper.",
    no_args_is_help=True,
)


@app.command("optimizer")
def optimizer(
    tables: Path | None = typer.Option(
        None, "--tables", help="Replay the CSV tables in this directory. Default: emulated ones, from seeds."
    ),
    peers: bool = typer.Option(False, "--peers", help="Also BoTorch, Optuna TPE and GPSampler, and Ax."),
    seeds: int = typer.Option(10, "--seeds", help="Seeds of our strategies."),
    other_seeds: int = typer.Option(3, "--other-seeds", help="Seeds of the paper's, random and the peers."),
    jobs: int = typer.Option(1, "--jobs", "-j", help="Processes to play runs in."),
    out: Path = typer.Option(
        Path("benchmarks/results/optimizer.jsonl"), "--out", help="Where each finished run is kept."
    ),
    noise: float = typer.Option(0.02, "--noise", help="sd of a reading, relative; 0.02 is 2 %."),
    strategy: list[str] = typer.Option([], "--strategy", help="Only these strategies; may be repeated."),
    family: list[str] = typer.Option([], "--family", help="Only these families of tables."),
    generated: int = typer.Option(6, "--generated", help="Emulated tables of each family."),
    quick: bool = typer.Option(
        False, "--quick", help="A sample in under 50 s that only fails when something breaks. QUICK=1 too."
    ),
    timing: bool = typer.Option(True, "--timing/--no-timing", help="Also time suggestions and the import."),
    degraded: bool = typer.Option(
        True, "--degraded/--no-degraded", help="Also with 5 % noise, outliers and missing rows."
    ),
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Tracebacks of broken runs."),
) -> None:
    """Replay tables as black boxes and hold the optimiser against its targets.

    A run that was interrupted goes on where it was. Exits with 1 where a target is missed.
    """
    try:
        from polythrottle.benchmarking import command
    except ModuleNotFoundError as error:
        raise InvalidInputError(
            f"The benchmark needs {error.name}, which is not installed; install polythrottle[tune]."
        ) from error
    options = command.Options(
        tables=tables,
        peers=peers,
        seeds=seeds,
        other_seeds=other_seeds,
        jobs=jobs,
        out=out,
        noise=noise,
        strategies=tuple(strategy),
        families=tuple(family),
        generated=generated,
        quick=quick or os.environ.get("QUICK", "") not in ("", "0"),
        timing=timing,
        degraded=degraded,
        verbose=verbose,
    )
    raise typer.Exit(command.run(options))


@app.command(
    "emulator",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def emulator(context: typer.Context) -> None:
    """Print the emulated boards beside the PolyThrottle paper's figures."""
    from polythrottle_agent.emulation import paper_check

    raise typer.Exit(paper_check.main(context.args))
