"""The command line as a user runs it: in this process where that is enough, in its own where not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from polythrottle.cli.main import invoke

NANO = ("--device", "emulated:orin-nano-8gb", "--workload", "efficientnet-b4")


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Ran]


@pytest.fixture
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "state"
    monkeypatch.setenv("POLYTHROTTLE_STATE_DIR", str(path))
    monkeypatch.setenv("COLUMNS", "160")
    return path


@pytest.fixture
def polythrottle(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> Command:  # noqa: ARG001
    """Run a command in this process."""

    def run(*arguments: str) -> Ran:
        capsys.readouterr()
        code = invoke(list(arguments))
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture
def process(state_dir: Path) -> Command:
    """Run a command in a process of its own."""

    def run(*arguments: str, env: Mapping[str, str] | None = None) -> Ran:
        done = subprocess.run(
            [sys.executable, "-m", "polythrottle", *arguments],
            capture_output=True,
            env={**os.environ, "POLYTHROTTLE_STATE_DIR": str(state_dir), **(env or {})},
            timeout=240,
            check=False,
        )
        return Ran(done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8"))

    return run
