"""Bad input gets one clear sentence, an exit code, and never a traceback."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.e2e.conftest import NANO, Command
from tests.e2e.test_tune import write_table


def check(ran_err: str, *parts: str) -> None:
    assert ran_err.startswith("error: ")
    assert "Traceback" not in ran_err
    for part in parts:
        assert part in ran_err


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--device", "emulated:orin-nono"), ("orin-nono", "orin-nano")),
        (("--device", "emulated:"), ("emulated:orin-nano-8gb",)),
        (("--device", "emulate:tx2"), ("did you mean emulated",)),
        (("--device", "tx2"), ("emulated:tx2",)),
        ((*NANO[:2], "--workload", "efficientnet-b5"), ("efficientnet-b4",)),
        ((*NANO, "--knobs", "gpu_freq"), ("gpu_freq_mhz",)),
        ((*NANO, "--fix", "memfreq=2133"), ("mem_freq_mhz",)),
        ((*NANO, "--fix", "mem_freq_mhz=2000"), ("2133",)),
        ((*NANO, "--fix", "mem_freq_mhz"), ("knob=value",)),
        ((*NANO, "--fix", "batch_size=2", "--fix", "batch_size=4"), ("batch_size", "fixed twice")),
        ((*NANO, "--fix", "batch_size=1_0"), ("batch_size", "1_0")),
        ((*NANO, "--knobs", "cpu_freq_mhz="), ("empty level", "cpu_freq_mhz=115.2/192", "1651.2, 1728")),
        ((*NANO, "--knobs", "cpu_freq_mhz=883.2/"), ("empty level", "cpu_freq_mhz")),
        ((*NANO, "--knobs", "cpu_freq_mhz=zzz"), ("'zzz'", "115.2, 192, 268.8")),
        ((*NANO, "--batch-sizes", "1,x"), ("--batch-sizes",)),
        ((*NANO, "--batch-sizes", "3"), ("batch_size",)),
        ((*NANO, "--max-time", "soon"), ("--max-time",)),
        ((*NANO, "--max-trials", "0"), ("--max-trials",)),
        ((*NANO, "--strategy", "informd"), ("informed",)),
        ((*NANO, "--report", "/nowhere/at/all.html"), ("/nowhere/at/all.html", "directory")),
        ((*NANO, "--resume"), ("no study to resume",)),
        (("--device", "replay:/no/such.csv"), ("/no/such.csv",)),
        (("--device", f"replay:/{'x' * 300}.csv"), ("cannot be read", "CSV file")),
        ((*NANO, "--report", f"/tmp/{'x' * 300}.html"), ("--report", "cannot be used")),
        ((*NANO, "--nonsense"), ("--nonsense",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_options(polythrottle: Command, arguments: tuple[str, ...], parts: tuple[str, ...]) -> None:
    ran = polythrottle("tune", "--latency-slo", "50ms", *arguments)
    assert ran.code == 1
    check(ran.err, *parts)
    assert ran.out == ""


@pytest.mark.parametrize("slo", ["50", "0ms", "-5ms", "fast", "p0<50ms", "p100<50ms", "nanms", ""])
def test_slo(polythrottle: Command, slo: str) -> None:
    ran = polythrottle("tune", f"--latency-slo={slo}", *NANO)
    assert ran.code == 1
    check(ran.err, "SLO", "50ms" if slo not in ("p0<50ms", "p100<50ms") else "percentile")


def test_missing_slo(polythrottle: Command) -> None:
    ran = polythrottle("tune")
    assert ran.code == 1
    check(ran.err, "--latency-slo")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda text: text.replace("energy_j", "joules"), ("energy_j",)),
        (lambda text: text + text.splitlines()[-1] + "\n", ("lines 16 and 17",)),
        (
            lambda text: text.replace("bench,net,300,800,", "bench,net,300,800,nan", 1),
            ("line 2", "latency_ms"),
        ),
        (lambda text: text.replace("bench,net,500,800", "bench,net,fast,800"), ("fast", "gpu_freq_mhz")),
        (lambda text: text.splitlines()[0] + "\n", ("no row",)),
        (lambda _: "", ("empty",)),
    ],
    ids=["missing column", "duplicate row", "NaN", "string", "no rows", "empty"],
)
def test_tables(polythrottle: Command, tmp_path: Path, change: object, parts: tuple[str, ...]) -> None:
    table = write_table(tmp_path / "table.csv")
    assert callable(change)
    table.write_text(change(table.read_text()))
    ran = polythrottle("tune", "--latency-slo", "recorded<1.3x", "--device", f"replay:{table}")
    assert ran.code == 1
    check(ran.err, "table.csv", *parts)


def test_corrupt_database(polythrottle: Command, state_dir: Path) -> None:
    state_dir.mkdir()
    database = state_dir / "polythrottle.sqlite"
    database.write_bytes(b"this is not a database, it only looks like a file" * 100)
    before = database.read_bytes()
    for command in (
        ("tune", "--latency-slo", "50ms", *NANO),
        ("studies", "list"),
        ("studies", "show", "last"),
    ):
        ran = polythrottle(*command)
        assert ran.code == 1
        check(ran.err, str(database))
    assert database.read_bytes() == before


def test_state_directory_that_cannot_be_written(
    polythrottle: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("POLYTHROTTLE_STATE_DIR", str(tmp_path / "file" / "state"))
    ran = polythrottle("tune", "--latency-slo", "50ms", *NANO)
    assert ran.code == 1
    check(ran.err, str(tmp_path / "file"), "state directory")


@pytest.mark.skipif(os.getuid() == 0, reason="root writes where others may not")
def test_read_only_state_directory(polythrottle: Command, state_dir: Path) -> None:
    state_dir.mkdir(mode=0o555)
    ran = polythrottle("tune", "--latency-slo", "50ms", *NANO)
    assert ran.code == 1
    check(ran.err, str(state_dir))


@pytest.mark.parametrize("exists", [True, False])
def test_a_report_that_could_not_be_written_is_refused_before_the_first_trial(
    polythrottle: Command, state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    path = tmp_path / "report.html"
    if exists:
        path.write_text("an older report")
    forbidden = path if exists else tmp_path
    monkeypatch.setattr(os, "access", lambda at, mode: Path(at) != forbidden or not mode & os.W_OK)
    ran = polythrottle("tune", "--latency-slo", "50ms", *NANO, "--report", str(path))
    assert ran.code == 1
    check(ran.err, str(forbidden), "cannot be written")
    assert not state_dir.exists()


@pytest.mark.parametrize("command", [("list",), ("show", "last"), ("export", "last")])
def test_a_state_directory_that_cannot_be_looked_into(
    polythrottle: Command, tmp_path: Path, command: tuple[str, ...]
) -> None:
    # A name that is too long fails as one without access does, for root too.
    ran = polythrottle("studies", *command, "--state-dir", str(tmp_path / ("x" * 300)))
    assert ran.code == 1
    check(ran.err, "state directory", "--state-dir")


@pytest.mark.parametrize("command", [("show", "nope"), ("export", "nope"), ("show", "last")])
def test_no_such_study(polythrottle: Command, command: tuple[str, ...]) -> None:
    ran = polythrottle("studies", *command)
    assert ran.code == 1
    check(ran.err, "tune")


def test_unknown_profile(polythrottle: Command) -> None:
    ran = polythrottle("profiles", "show", "orin-nan")
    assert ran.code == 1
    check(ran.err, "orin-nano")


def test_a_narrow_terminal_that_is_not_utf8(process: Command) -> None:
    ran = process(
        *("tune", "--latency-slo", "50ms", *NANO, "--max-trials", "3"),
        env={"COLUMNS": "40", "LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    )
    assert ran.code == 0, ran.err
    assert ran.out.isascii()
    assert max(map(len, ran.out.splitlines())) <= 40
    assert "emulated" in ran.out
    bad = process("tune", "--latency-slo", "≤", env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert bad.code == 1
    assert bad.err.isascii()
