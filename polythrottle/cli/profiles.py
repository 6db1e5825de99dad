"""`polythrottle profiles`: the boards that are known, their levels, caps and where each fact comes from."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from polythrottle.cli import gpu_profiles
from polythrottle.configuration import SHORT_NAMES, format_level
from polythrottle.profiles import BoardProfile, LevelTable, NvpMode, board_names, load_profile
from polythrottle.reporting.console import make_console, print_text, printable

app = typer.Typer(
    no_args_is_help=True,
    help="Boards with a profile: levels of each clock, power modes and rails, each with its source.",
)

app.command("gpus")(gpu_profiles.gpus)

NOT_SOURCED = "not sourced"
TABLE_WIDTH = 80
"""Below this many columns each row is printed as a block of lines."""

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


@app.command("list")
def list_profiles(as_json: JsonOption = False) -> None:
    """List the boards: SoC, number of levels of each clock, and sources."""
    profiles = [load_profile(name) for name in board_names()]
    if as_json:
        typer.echo(json.dumps([_summary(profile) for profile in profiles], indent=2))
        return
    console = make_console()
    knobs = list(profiles[0].tables)
    rows = [
        [
            profile.name,
            profile.soc,
            *(_level_count(profile.tables[knob]) for knob in knobs),
            f"{len(profile.sources)}",
        ]
        for profile in profiles
    ]
    _print_rows(console, ["board", "SoC", *(f"{SHORT_NAMES[k]} levels" for k in knobs), "sources"], rows)
    print_text(
        console,
        f"{NOT_SOURCED}: no published list was found; nothing is guessed. "
        "A second number is another BSP's list. See `polythrottle profiles show BOARD`.",
    )


@app.command("show")
def show_profile(
    board: Annotated[str, typer.Argument(help="A board, for example tx2 or orin-nano-8gb.")],
    as_json: JsonOption = False,
) -> None:
    """Show one board: every table of levels, the power modes with their caps, the rails, the sources."""
    profile = load_profile(board)
    if as_json:
        typer.echo(json.dumps(profile.facts, indent=2))
        return
    console = make_console()
    print_text(console, (profile.display_name, "bold"), f" ({profile.name})")
    other_names = ", ".join(profile.aliases)
    for label, text in (
        ("also", other_names),
        ("SoC", profile.soc),
        ("GPU", profile.gpu),
        ("CPU", _clusters(profile)),
        ("modules", ", ".join(profile.module_parts)),
        ("JetPack", profile.jetpack),
        ("note", profile.note or ""),
    ):
        if text:
            print_text(console, f"{label}: {text}", indent=2)
    _heading(console, "Levels (MHz)")
    for knob, tables in profile.tables.items():
        for table in tables:
            print_text(console, (knob, "bold"), f" - {table.variant}: {_levels(table)}", indent=2)
            _print_origin(console, table.note, table.source, indent=4)
    for model in profile.nvpmodels:
        _heading(console, f"Power modes - {model.variant} ({model.conf_file})")
        columns = ["mode", "name", "CPUs", "CPU cap", "GPU cap", "memory cap"]
        _print_rows(console, columns, [_mode(mode, model.default_mode) for mode in model.modes])
        _print_origin(console, model.note, model.source, indent=2)
    _heading(console, "Power rails")
    columns = ["rail", "sensor", "bus", "address", "channel", "shunt", "covers"]
    _print_rows(console, columns, [_rail(profile, index) for index in range(len(profile.power_rails))])
    total = profile.total_rail or " + ".join(profile.total_summed_rails or ())
    print_text(console, f"total: {total}", indent=2)
    _heading(console, "Sources")
    for source in profile.sources:
        print_text(console, f"- {source}", indent=2)


def _summary(profile: BoardProfile) -> dict[str, Any]:
    return {
        "board": profile.name,
        "aliases": list(profile.aliases),
        "display_name": profile.display_name,
        "soc": profile.soc,
        "gpu": profile.gpu,
        "levels": {
            knob: {table.variant: table.freqs_mhz for table in tables}
            for knob, tables in profile.tables.items()
        },
        "sources": list(profile.sources),
    }


def _level_count(tables: Sequence[LevelTable]) -> str:
    counts = [str(len(table.freqs_mhz)) for table in tables if table.freqs_mhz is not None]
    return " or ".join(counts) if counts else NOT_SOURCED


def _levels(table: LevelTable) -> str:
    if table.freqs_mhz is not None:
        incomplete = "" if table.complete else " (incomplete)"
        return " ".join(format_level(level) for level in table.freqs_mhz) + incomplete
    if table.known_points_mhz is None:
        return NOT_SOURCED
    return f"{NOT_SOURCED}; certain are " + " ".join(format_level(x) for x in table.known_points_mhz)


def _clusters(profile: BoardProfile) -> str:
    return ", ".join(f"{c.name} (CPU {_span(c.cpus)})" for c in profile.cpu_clusters)


def _span(cpus: Sequence[int]) -> str:
    """`0-3` for consecutive CPUs, else `0,3,4`."""
    if len(cpus) > 1 and list(cpus) == list(range(cpus[0], cpus[-1] + 1)):
        return f"{cpus[0]}-{cpus[-1]}"
    return ",".join(str(cpu) for cpu in cpus)


def _cap(cap_mhz: float | None) -> str:
    if cap_mhz is None:
        return NOT_SOURCED
    return "none" if math.isinf(cap_mhz) else f"{cap_mhz:g} MHz"


def _mode(mode: NvpMode, default: int) -> list[str]:
    caps = mode.cpu_caps_mhz
    distinct = NOT_SOURCED if caps is None else ", ".join(dict.fromkeys(_cap(cap) for _, cap in caps))
    return [
        f"{mode.id} (default)" if mode.id == default else str(mode.id),
        mode.name,
        NOT_SOURCED if mode.cpus_online is None else _span(mode.cpus_online),
        distinct,
        _cap(mode.gpu_cap_mhz),
        _cap(mode.mem_cap_mhz),
    ]


def _rail(profile: BoardProfile, index: int) -> list[str]:
    rail = profile.power_rails[index]
    return [
        rail.label or "(no label)",
        rail.sensor,
        NOT_SOURCED if rail.i2c_bus is None else f"i2c-{rail.i2c_bus}",
        rail.address,
        str(rail.index),
        NOT_SOURCED if rail.shunt_uohm is None else f"{rail.shunt_uohm / 1000:g} mOhm",
        rail.covers or NOT_SOURCED,
    ]


def _print_origin(console: Console, note: str | None, source: str | None, indent: int) -> None:
    margin = " " * (indent - 2)
    if note is not None:
        print_text(console, f"{margin}note: {note}", indent=indent)
    print_text(console, f"{margin}source: {source or NOT_SOURCED}", indent=indent)


def _heading(console: Console, text: str) -> None:
    console.print()
    print_text(console, (text, "bold"))


def _print_rows(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table, or on a narrow terminal a block of lines for each row."""
    if console.width < TABLE_WIDTH:
        for row in rows:
            print_text(console, (row[0], "bold"))
            for column, cell in zip(columns[1:], row[1:], strict=True):
                print_text(console, f"  {column}: {cell}", indent=4)
        return
    table = Table(show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(printable(console, column), overflow="fold")
    for row in rows:
        table.add_row(*(printable(console, cell) for cell in row))
    console.print(table)
