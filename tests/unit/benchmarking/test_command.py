from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from polythrottle.benchmarking.command import Options, run
from polythrottle.benchmarking.timing import space_of
from polythrottle.errors import InvalidInputError

BASE = Options(strategies=("random",), generated=1, seeds=1, other_seeds=2, timing=False)


def printed(options: Options) -> tuple[int, str]:
    output = StringIO()
    code = run(options, screen=Console(file=output, width=180))
    return code, output.getvalue()


def test_prints_tables_targets_and_the_last_line(tmp_path: Path) -> None:
    code, text = printed(replace(BASE, out=tmp_path / "rows"))
    assert code == 0
    assert "three-knob, normal (2.0% noise), emulated tables" in text
    assert "batch-cap, normal" in text
    assert text.splitlines()[-1] == "optimizer: QUICK figures (n = 12)"
    assert len((tmp_path / "rows").read_text().splitlines()) == 12
    again = printed(replace(BASE, out=tmp_path / "rows"))
    assert "12 of 12 runs" in again[1]


def test_quick_keeps_no_rows(tmp_path: Path) -> None:
    code, text = printed(replace(BASE, out=tmp_path / "rows", quick=True))
    assert (code, text.splitlines()[-1]) == (0, "optimizer: QUICK figures (n = 2)")
    assert not (tmp_path / "rows").exists()


def test_degraded_plays_the_default_strategy_on_the_main_families(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polythrottle.benchmarking import command
    from polythrottle.benchmarking.campaign import Job

    played: list[Job] = []

    def remember(jobs, *_rest):  # type: ignore[no-untyped-def]
        played.extend(jobs)
        return [], [], 0

    monkeypatch.setattr(command, "run_all", remember)
    printed(replace(BASE, strategies=("informed", "random"), out=tmp_path / "rows"))
    degraded = [job for job in played if job.condition.name == "degraded"]
    assert {job.entrant.name for job in degraded} == {"informed"}
    assert {job.task.family for job in degraded} == {"three-knob", "batch-cap"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, "--seeds 0 is too small"),
        ({"noise": 1.5}, "--noise 1.5"),
        ({"families": ("three-knobs",)}, "did you mean three-knob"),
        ({"families": ("two-knob",)}, "No table of family two-knob"),
        ({"tables": Path("/nowhere")}, "not a directory"),
        ({"strategies": ("best",)}, "Unknown strategy 'best'"),
    ],
)
def test_bad_options(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        printed(replace(BASE, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("points", [5005, 50_000])
def test_spaces_of_the_timing(points: int) -> None:
    assert len(space_of(points)) == points
