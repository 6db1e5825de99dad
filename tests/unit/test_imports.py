"""Starting is cheap: nothing heavy is loaded before it is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "botorch", "gpytorch", "numpy", "scipy", "pandas", "fastapi", "plotly", "sqlmodel")
AGENT_NEVER = ("torch", "botorch", "gpytorch", "numpy", "scipy", "pandas", "fastapi")


def _loaded_by(module: str) -> set[str]:
    """Top-level modules in a fresh interpreter after one import."""
    script = f"import {module}, sys; print(*sorted(name for name in sys.modules if '.' not in name))"
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return set(finished.stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        "polythrottle",
        "polythrottle.study",
        "polythrottle.cli.main",
        "polythrottle.reporting.terminal",
        "polythrottle.reporting.html",
    ],
)
def test_importing_the_library_and_the_command_line_loads_nothing_heavy(module: str) -> None:
    assert not _loaded_by(module) & set(HEAVY)


@pytest.mark.parametrize(
    "module",
    [
        "polythrottle_agent",
        "polythrottle_agent.executor",
        "polythrottle_agent.devices",
        "polythrottle_device_profiles",
    ],
)
def test_the_agent_loads_no_array_library(module: str) -> None:
    assert not _loaded_by(module) & set(AGENT_NEVER)
