"""`polythrottle tune` end to end on emulated boards and recorded tables."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import NANO, Command


def write_table(path: Path, **columns: Any) -> Path:
    """A small recorded table: 5 GPU × 3 memory levels, with an optimum inside."""
    rows = []
    for gpu in (300, 500, 700, 900, 1100):
        for mem in (800, 1600, 3200):
            latency_ms = 10 * math.hypot(0.8 * 1100 / gpu, 0.3 * 3200 / mem)
            power_w = 4 + 9 * (gpu / 1100) ** 2.5 + 2 * mem / 3200
            rows.append(
                {
                    "device": "bench",
                    "workload": "net",
                    "gpu_freq_mhz": gpu,
                    "mem_freq_mhz": mem,
                    "latency_ms": round(latency_ms, 4),
                    "energy_j": round(power_w * latency_ms / 1000, 6),
                    **columns,
                }
            )
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_the_main_job(polythrottle: Command) -> None:
    ran = polythrottle("tune", "--latency-slo", "50ms", *NANO)
    assert ran.code == 0, ran.err
    assert "emulated" in ran.out
    for part in (
        "stock",
        "max clocks",
        "chosen",
        "less than stock",
        "paid back",
        "stopped",
        "p99",
        "search cost",
    ):
        assert part in ran.out
    assert ran.out.count(" search ") >= 3
    assert "±" in ran.out


def test_the_answer_is_right_and_the_same_for_a_seed(polythrottle: Command) -> None:
    first = polythrottle("tune", "--latency-slo", "50ms", *NANO, "--json", "--seed", "3").json
    again = polythrottle("tune", "--latency-slo", "50ms", *NANO, "--json", "--seed", "3").json
    assert first["verdict"] == "optimal"
    assert first["chosen"] == again["chosen"]
    assert first["chosen"]["latency_s"] <= 0.050
    assert first["chosen"]["energy_j"] < 0.8 * first["max_clocks"]["energy_j"]
    assert first["provenance"] == "emulated"


@pytest.mark.parametrize("strategy", ["informed", "polythrottle", "flat", "random", "grid"])
def test_every_strategy_ends_with_an_answer(polythrottle: Command, tmp_path: Path, strategy: str) -> None:
    table = write_table(tmp_path / "table.csv")
    ran = polythrottle(
        "tune",
        "--latency-slo",
        "recorded<1.3x",
        "--device",
        f"replay:{table}",
        "--strategy",
        strategy,
        "--json",
    )
    assert ran.code == 0, ran.err
    assert ran.json["chosen"]["latency_s"] <= ran.json["slo"]["limit_s"]


def test_a_table_returns_its_own_values_as_recorded(polythrottle: Command, tmp_path: Path) -> None:
    table = write_table(tmp_path / "table.csv")
    ran = polythrottle("tune", "--latency-slo", "recorded<1.3x", "--device", f"replay:{table}", "--json")
    with table.open() as file:
        recorded = {(float(r["gpu_freq_mhz"]), float(r["mem_freq_mhz"])): r for r in csv.DictReader(file)}
    chosen = ran.json["chosen"]
    row = recorded[chosen["configuration"]["gpu_freq_mhz"], chosen["configuration"]["mem_freq_mhz"]]
    assert chosen["energy_j"] == pytest.approx(float(row["energy_j"]), rel=1e-12)
    assert chosen["latency_s"] == pytest.approx(float(row["latency_ms"]) / 1e3, rel=1e-12)
    limit_ms = 1.3 * float(recorded[1100.0, 3200.0]["latency_ms"])
    best = min(float(r["energy_j"]) for r in recorded.values() if float(r["latency_ms"]) <= limit_ms)
    assert chosen["energy_j"] <= 1.05 * best
    assert ran.json["provenance"] == "as recorded"


def test_a_percentile_that_a_table_lacks_is_refused(polythrottle: Command, tmp_path: Path) -> None:
    ran = polythrottle(
        "tune", "--latency-slo", "50ms", "--device", f"replay:{write_table(tmp_path / 't.csv')}"
    )
    assert ran.code == 1
    assert "p99" in ran.err
    assert "recorded<50ms" in ran.err
    with_p99 = write_table(tmp_path / "p99.csv", latency_p99_ms=12)
    assert polythrottle("tune", "--latency-slo", "50ms", "--device", f"replay:{with_p99}").code == 0


def test_options(polythrottle: Command) -> None:
    ran = polythrottle(
        "tune",
        *("--latency-slo", "p95<1.5x", *NANO, "--json", "--max-trials", "5", "--objective", "edp", "--safe"),
        *("--knobs", "gpu_freq_mhz,mem_freq_mhz=2133/3199", "--fix", "batch_size=1"),
    )
    assert ran.code == 0, ran.err
    chosen = ran.json["chosen"]["configuration"]
    assert set(chosen) == {"gpu_freq_mhz", "mem_freq_mhz"}
    assert chosen["mem_freq_mhz"] in (2133, 3199)
    assert ran.json["search"]["n_search_trials"] <= 5
    assert ran.json["slo"]["statistic"] == "p95"


def test_the_energy_delay_product_is_shown(polythrottle: Command) -> None:
    search = ("--max-trials", "4", "--objective", "edp", "--strategy", "random")
    ran = polythrottle("tune", "--latency-slo", "p95<1.5x", *NANO, *search)
    assert ran.code == 0, ran.err
    assert re.search(r"objective +energy-delay product [\d.]+ J·s", ran.out)
    assert re.search(r"  [\d.]+ J·s #\d+", ran.out), "the best so far"
    answer = polythrottle("tune", "--latency-slo", "p95<1.5x", *NANO, *search, "--json").json
    assert answer["objective_unit"] == "J·s"
    chosen = answer["chosen"]
    assert answer["objective_value"] == pytest.approx(chosen["energy_j"] * chosen["latency_s"])


def test_max_time_bounds_the_search(polythrottle: Command) -> None:
    short = polythrottle("tune", "--latency-slo", "50ms", *NANO, "--json", "--max-time", "200s").json
    long = polythrottle("tune", "--latency-slo", "50ms", *NANO, "--json", "--max-time", "2h").json
    assert short["search"]["n_search_trials"] < long["search"]["n_search_trials"]
    assert short["state"] == "exhausted"


def test_an_slo_that_max_clocks_miss(polythrottle: Command) -> None:
    ran = polythrottle("tune", "--latency-slo", "1ms", *NANO, "--json")
    assert ran.code == 2
    assert ran.json["verdict"] == "no_feasible_found"
    assert ran.json["state"] == "infeasible"
    assert ran.json["closest"]["latency_s"] > 0.001
    assert ran.json["closest"]["configuration"]["gpu_freq_mhz"] == 1020
    screen = polythrottle("tune", "--latency-slo", "1ms", *NANO)
    assert screen.code == 2
    assert "closest" in screen.out


def test_dry_run_touches_nothing(polythrottle: Command, state_dir: Path) -> None:
    ran = polythrottle("tune", "--latency-slo", "50ms", *NANO, "--dry-run")
    assert ran.code == 0
    assert "nothing was written" in ran.out
    assert "gpu_freq_mhz: 306, 408" in ran.out
    assert not state_dir.exists()
    assert polythrottle("tune", "--latency-slo", "50ms", *NANO, "--dry-run", "--json").json["anchor"]


def test_auto_without_hardware_says_what_to_run(polythrottle: Command) -> None:
    ran = polythrottle("tune", "--latency-slo", "50ms")
    assert ran.code == 3
    assert "emulated:orin-nano-8gb" in ran.err
    assert ran.out == ""


def test_studies_and_report(polythrottle: Command, tmp_path: Path) -> None:
    assert "No study" in polythrottle("studies", "list").out
    tuned = polythrottle(
        "tune", "--latency-slo", "50ms", *NANO, "--json", "--report", str(tmp_path / "first.html")
    )
    assert (tmp_path / "first.html").stat().st_size > 100_000
    study = tuned.json["study"]
    listed = polythrottle("studies", "list", "--json").json
    assert [row["study"] for row in listed] == [study]
    shown = polythrottle("studies", "show", study[:4])
    assert "optimal (emulated)" in shown.out
    assert "resumed" not in shown.out, "nothing goes on when a finished study is shown"
    assert polythrottle("studies", "show", "last", "--json").json["chosen"] == tuned.json["chosen"]
    exported = polythrottle("studies", "export", "last").json
    assert len(exported["trials"]) == tuned.json["search"]["n_trials"]
    assert polythrottle("report", study, "-o", str(tmp_path / "again.html")).code == 0
    html = (tmp_path / "again.html").read_text()
    assert "emulated" in html
    assert "<script src=" not in html


def test_verbose_gives_reasons(polythrottle: Command) -> None:
    ran = polythrottle("tune", "--latency-slo", "50ms", *NANO, "-v", "--max-trials", "4")
    assert "expected improvement × P(feasible); expects" in ran.out


def test_a_short_window_says_that_it_cannot_bound_the_percentile(polythrottle: Command) -> None:
    # So slow that the longest window holds too few queries for p99.
    slow = ("--device", "emulated:tx2", "--workload", "efficientnet-b7", "--fix", "batch_size=1")
    ran = polythrottle("tune", "--latency-slo", "5s", *slow, "--max-trials", "2", "--strategy", "random")
    assert "unsure" in ran.out
    assert "too few to bound it" in ran.out
