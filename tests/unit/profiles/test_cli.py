from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from polythrottle.cli.profiles import app
from polythrottle.errors import InvalidInputError
from polythrottle.profiles import board_names

WRITE_PROFILES = "from polythrottle.cli.profiles import app; app()"


def run(*args: str, columns: int = 100, encoding: str = "utf-8") -> str:
    """The command in a process of its own: the encoding of a terminal cannot be changed in place."""
    done = subprocess.run(
        [sys.executable, "-c", WRITE_PROFILES, *args],
        env={**os.environ, "COLUMNS": str(columns), "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode(encoding)


def test_list_names_every_board_with_its_levels() -> None:
    text = run("list")
    for board in board_names():
        assert board in text
    tx2 = next(line for line in text.splitlines() if line.startswith("jetson-tx2 "))
    assert "tegra186" in tx2
    assert "13 or 13 or 12" in tx2
    thor = next(line for line in text.splitlines() if line.startswith("jetson-agx-thor"))
    assert thor.count("not sourced") == 3


@pytest.mark.parametrize("args", [("list",), ("show", "xavier-nx"), ("show", "thor")])
def test_a_narrow_terminal_without_unicode_shows_everything(args: tuple[str, ...]) -> None:
    text = run(*args, columns=40, encoding="ascii")
    assert max(len(line) for line in text.splitlines()) <= 40
    assert "not sourced" in " ".join(text.split())
    assert "?" not in text


def test_show_prints_levels_caps_rails_and_sources() -> None:
    text = run("show", "tx2", columns=200)
    for wanted in ("114.75", "other list B", "MAXQ", "850 MHz", "VDD_IN", "softsys4ai/unicorn@4f50f9f"):
        assert wanted in text


def test_json_is_complete_and_parses() -> None:
    shown = json.loads(run("show", "tx2", "--json", columns=40))
    assert shown["gpu_clock"]["tables"][0]["levels_hz"][0] == 114750000
    listed = json.loads(run("list", "--json"))
    assert [entry["board"] for entry in listed] == list(board_names())


def test_an_unknown_board_is_an_error_with_close_matches() -> None:
    result = CliRunner().invoke(app, ["show", "tx3"])
    assert isinstance(result.exception, InvalidInputError)
    assert "did you mean tx2" in str(result.exception)
