"""`polythrottle profiles gpus`: the data-centre GPUs that are known, and where each fact comes from."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from polythrottle.configuration import format_level
from polythrottle.gpu_profiles import GpuProfile, gpu_names, load_gpu_profile
from polythrottle.reporting.console import make_console, print_text

NOT_SOURCED = "not sourced"


def gpus(
    gpu: Annotated[str | None, typer.Argument(help="One GPU, for example h100; all without it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """List the GPUs with a profile, or show one: clock ranges, power limits, what is supported, sources."""
    profiles = [load_gpu_profile(name) for name in (gpu_names() if gpu is None else (gpu,))]
    if as_json:
        facts = [profile.facts for profile in profiles]
        typer.echo(json.dumps(facts if gpu is None else facts[0], indent=2))
        return
    console = make_console()
    for profile in profiles:
        print_text(console, (profile.display_name, "bold"), f" ({profile.name})")
        for line in _lines(profile):
            print_text(console, line, indent=2)
        if gpu is not None:
            for source in profile.sources:
                print_text(console, f"- source: {source}", indent=2)
    if gpu is None:
        print_text(console, f"{NOT_SOURCED}: nothing was published that could be found; nothing is guessed.")


def _lines(profile: GpuProfile) -> list[str]:
    facts = profile.facts
    memory = facts["memory_clock"]
    levels = profile.memory_mhz
    return [
        f"GPU clock: {_number(profile.lowest_mhz)} to {_number(profile.highest_mhz)} MHz, "
        f"step {_number(profile.step_mhz)}",
        f"memory clock: {_number(memory['highest_mhz'])} MHz at most, levels "
        + (NOT_SOURCED if levels is None else " ".join(map(format_level, levels))),
        f"power limit: {_number(profile.lowest_w)} to {_number(profile.highest_w)} W, "
        f"default {_number(profile.default_w)}",
        f"memory clock can be locked: {'yes' if facts['supports']['memory_clock_lock'] else 'no'}",
        f"refresh of the energy counter: {_number(facts['energy_counter']['refresh_ms'], ' ms')}",
    ]


def _number(value: float | None, unit: str = "") -> str:
    return NOT_SOURCED if value is None else f"{format_level(float(value))}{unit}"
