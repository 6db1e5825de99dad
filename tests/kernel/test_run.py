"""What `make test-kernel` says where it cannot run, and what it makes of the guest's words."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
SKIPPED = 77
BEFORE_THE_TOOLS = ("bash", "dirname", "mkdir", "sha256sum", "cut", "sh")
"""What build.sh runs before it looks for what it needs."""


@pytest.fixture(scope="module")
def program() -> dict[str, Any]:
    return runpy.run_path(str(HERE / "run.py"), run_name="run")


def programs(directory: Path, user_id: int, *names: str) -> Path:
    """A directory for PATH: an `id` that says who we are, and links to these programs."""
    directory.mkdir()
    (directory / "id").write_text(f"#!/bin/sh\necho {user_id}\n")
    (directory / "id").chmod(0o755)
    for name in names:
        found = shutil.which(name)
        assert found is not None
        (directory / name).symlink_to(found)
    return directory


def skipped(path: str, cache: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(HERE / "run.py"), "--cache", str(cache)],
        capture_output=True, text=True, check=False, env={**os.environ, "PATH": path},
    )  # fmt: skip
    assert done.returncode == SKIPPED, done.stderr
    assert "THE KERNEL TESTS WERE SKIPPED" in done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_without_root_it_is_skipped_loudly(tmp_path: Path) -> None:
    directory = programs(tmp_path / "bin", 1000)
    assert "only be made by root" in skipped(f"{directory}:{os.environ['PATH']}", tmp_path / "cache")


def test_without_qemu_it_is_skipped_loudly_and_says_what_to_install(tmp_path: Path) -> None:
    directory = programs(tmp_path / "bin", 0, *BEFORE_THE_TOOLS)
    said = skipped(str(directory), tmp_path / "cache")
    assert "qemu-system-x86_64 is missing: apt-get install qemu-system-x86 " in said


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_a_skipped_make_test_kernel_is_no_failure(tmp_path: Path) -> None:
    directory = programs(tmp_path / "bin", 1000)
    done = subprocess.run(
        ["make", "--old-file", f"{sys.prefix}/.installed-all", "test-kernel", f"VENV={sys.prefix}",
         f"ARGS=--cache {tmp_path / 'cache'}"],
        capture_output=True, text=True, check=False, cwd=HERE.parent.parent,
        env={**os.environ, "PATH": f"{directory}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "THE KERNEL TESTS WERE SKIPPED" in done.stderr


def verdicts(passed: int, failed: int = 0) -> list[str]:
    return [f"VERDICT pass check {n}" for n in range(passed)] + [
        f"VERDICT fail check {n}: why" for n in range(failed)
    ]


def test_all_passed(program: dict[str, Any]) -> None:
    lines = [*verdicts(program["VERDICTS"]), program["DONE"]]
    assert program["judge"](lines, "tcg", 1.0) == 0


@pytest.mark.parametrize(
    ("missing", "failed", "is_done"),
    [(1, 1, True), (1, 0, True), (0, 0, False)],
    ids=["failed", "lost", "cut"],
)
def test_a_failed_a_lost_and_a_cut_run_fail(
    program: dict[str, Any], missing: int, failed: int, is_done: bool
) -> None:
    lines = verdicts(program["VERDICTS"] - missing, failed) + [program["DONE"]] * is_done
    assert program["judge"](lines, "tcg", 1.0) == 1


def test_it_counts_the_checks_that_there_are(program: dict[str, Any]) -> None:
    written = sum(path.read_text().count("with check(") for path in (HERE / "guest").glob("*.py"))
    assert program["VERDICTS"] == written
