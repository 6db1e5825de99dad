from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from polythrottle.benchmarking import command
from polythrottle.cli.bench import app


@pytest.fixture(name="options")
def _options(monkeypatch: pytest.MonkeyPatch) -> list[command.Options]:
    seen: list[command.Options] = []

    def run(options: command.Options, **_: Any) -> int:
        seen.append(options)
        return 1

    monkeypatch.setattr(command, "run", run)
    return seen


def test_options_reach_the_benchmark_and_its_code_the_shell(options: list[command.Options]) -> None:
    arguments = ["optimizer", "--tables", "t", "--peers", "--strategy", "flat", "-j", "2", "--no-timing"]
    result = CliRunner().invoke(app, arguments, env={"QUICK": ""})
    assert result.exit_code == 1
    assert options[0].tables == Path("t")
    assert (options[0].peers, options[0].strategies, options[0].jobs) == (True, ("flat",), 2)
    assert (options[0].timing, options[0].quick) == (False, False)


@pytest.mark.parametrize(("value", "quick"), [("1", True), ("0", False)])
def test_quick_by_environment(options: list[command.Options], value: str, quick: bool) -> None:
    CliRunner().invoke(app, ["optimizer"], env={"QUICK": value})
    assert options[0].quick is quick
