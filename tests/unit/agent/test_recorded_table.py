from __future__ import annotations

import math
from pathlib import Path

import pytest

from polythrottle.configuration import UNLOCKED, Configuration
from polythrottle.errors import InvalidInputError
from polythrottle_agent.recorded_table import read_table

HEADER = "device,workload,gpu_freq_mhz,mem_freq_mhz,latency_ms,energy_j\n"
GOOD = (
    HEADER + "b,m,300,800,40.5,0.61\nb,m,900,800,20.3,0.73\nb,m,300,1600,35.1,0.66\nb,m,900,1600,14.2,0.81\n"
)


def write(directory: Path, content: str | bytes, name: str = "table.csv") -> Path:
    path = directory / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_reads_knobs_and_values_exactly(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, GOOD))
    assert [(knob.name, knob.levels) for knob in table.knobs] == [
        ("gpu_freq_mhz", (300.0, 900.0)),
        ("mem_freq_mhz", (800.0, 1600.0)),
    ]
    row = table.rows[Configuration.of({"gpu_freq_mhz": 900.0, "mem_freq_mhz": 800.0})]
    assert (row.latency_s["recorded"], row.energy_j, row.line) == (20.3 / 1e3, 0.73, 3)
    assert (row.latency_error_s, row.energy_error_j) == (None, None)
    assert (table.device, table.workload, table.statistics) == ("b", "m", ("recorded",))


def test_the_spread_of_repeats_becomes_a_standard_error(tmp_path: Path) -> None:
    content = "gpu_freq_mhz,latency_ms,energy_j,n_repeats,latency_std,energy_std\n"
    content += "300,40,1,16,2,0.4\n600,30,1,1,2,0.4\n900,20,1,,2,\n1200,10,1,16,0,\n"
    rows = list(read_table(write(tmp_path, content)).rows.values())
    assert [row.latency_error_s for row in rows] == [0.5e-3, None, None, None]
    assert [row.energy_error_j for row in rows] == [0.1, None, None, None]
    assert [row.recording_s for row in rows] == [0.64, 0.03, 0.02, 0.16]


def test_percentiles_and_the_mean_come_from_their_own_columns_only(tmp_path: Path) -> None:
    content = (
        "batch_size,latency_ms,latency_p99_ms,latency_p99.9_ms,latency_mean_ms,latency_p95_ms,energy_j\n"
    )
    content += "1,10,14,16,11,,0.5\n2,12,18,20,13,15,0.4\n"
    table = read_table(write(tmp_path, content))
    # latency_p95_ms lacks a value, so it is no statistic of this table.
    assert set(table.statistics) == {"recorded", "p99", "p99.9", "mean"}
    assert [row.latency_s["p99"] for row in table.rows.values()] == [14 / 1e3, 18 / 1e3]


def test_a_table_may_hold_percentiles_only(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "gpu_freq_mhz,latency_p99_ms,energy_j\n300,14,1\n600,12,1\n"))
    assert table.statistics == ("p99",)


def test_memory_may_be_unlocked(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "mem_freq_mhz,latency_ms,energy_j\n800,9,1\nUnlocked,8,1\n"))
    assert table.knobs[0].levels == (800.0, UNLOCKED)


def test_without_device_and_workload_the_file_names_both(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "gpu_freq_mhz,latency_ms,energy_j\n300,9,1\n", "orin.csv"))
    assert (table.device, table.workload) == ("orin", "orin")


def test_spreadsheet_exports_are_read(tmp_path: Path) -> None:
    crlf = "\ufeff" + GOOD.replace("\n", "\r\n") + "\r\n,,,,,\r\n"
    assert len(read_table(write(tmp_path, crlf)).rows) == 4


def test_an_empty_knob_column_is_no_knob(tmp_path: Path) -> None:
    content = "gpu_freq_mhz,batch_size,latency_ms,energy_j\n300,,9,1\n600,,8,1\n"
    assert [knob.name for knob in read_table(write(tmp_path, content)).knobs] == ["gpu_freq_mhz"]


def test_the_digest_follows_the_values(tmp_path: Path) -> None:
    one = read_table(write(tmp_path, GOOD))
    shuffled = HEADER + "\n".join(reversed(GOOD.splitlines()[1:])) + "\n"
    assert read_table(write(tmp_path, shuffled, "other.csv")).digest == one.digest
    assert read_table(write(tmp_path, GOOD.replace("0.61", "0.62"))).digest != one.digest


def several(tmp_path: Path) -> Path:
    content = "device,workload,gpu_freq_mhz,latency_ms,energy_j\n"
    content += "a,bert,300,1,1\na,b0,300,2,1\nb,bert,300,3,1\n"
    return write(tmp_path, content)


@pytest.mark.parametrize(
    ("workload", "latency_s"), [("b0", 2 / 1e3), ("a:bert", 1 / 1e3), ("b:bert", 3 / 1e3), ("a:b0", 2 / 1e3)]
)
def test_one_workload_is_chosen(tmp_path: Path, workload: str, latency_s: float) -> None:
    rows = read_table(several(tmp_path), workload).rows.values()
    assert [row.latency_s["recorded"] for row in rows] == [latency_s]


@pytest.mark.parametrize(
    ("workload", "message"),
    [
        (None, r"holds 3 workloads; choose one with --workload: a:bert, a:b0, b:bert\."),
        ("bert", r"workload bert of 2 devices; choose with --workload: a:bert, b:bert\."),
        ("a:brt", r"no workload 'a:brt'; did you mean a:bert"),
    ],
)
def test_the_choice_is_asked_for(tmp_path: Path, workload: str | None, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        read_table(several(tmp_path), workload)


ROW = "b,m,300,800,{},{}\n"
ONE_KNOB = "gpu_freq_mhz,latency_ms,energy_j\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"table.csv is empty"),
        (HEADER, r"no row below its columns"),
        ("a,b\n1,2\n", r"line 1: no column for a knob .* or latency_ms or energy_j; its columns are: a, b"),
        ("gpu_freq_mhz,energy_j\n300,1\n", r"line 1: no column for latency_ms"),
        ("gpu_freq_mhz,latency_ms\n300,1\n", r"line 1: no column for energy_j"),
        (
            "gpu_freq_mhz,latency_ms,power_w\n300,1,5\n",
            r"there is power_w but no column energy_j; add it as J",
        ),
        ("gpu_freq_mhz,gpu_freq_mhz,latency_ms,energy_j\n", r"column gpu_freq_mhz appears twice"),
        ("gpu_freq_mhz;latency_ms;energy_j\n300;1;1\n", r"line 1: no column for a knob"),
        (HEADER + ROW.format("nan", 1), r"table.csv, line 2: latency_ms is nan; it must be finite"),
        (HEADER + ROW.format(1, "NaN"), r"line 2: energy_j is NaN; it must be finite"),
        (HEADER + ROW.format("inf", 1), r"line 2: latency_ms is inf"),
        (HEADER + ROW.format("fast", 1), r"line 2: latency_ms is 'fast'; give a number"),
        (HEADER + ROW.format("1_0", 1), r"line 2: latency_ms is '1_0'; give a number"),
        (ONE_KNOB + "3_00,1,1\n", r"line 2: gpu_freq_mhz is '3_00'; give a number"),
        (HEADER + ROW.format("12 ms", 1), r"line 2: latency_ms is '12 ms'"),
        (HEADER + ROW.format(-1, 1), r"line 2: latency_ms is -1; it must be above zero"),
        (HEADER + ROW.format(1, 0), r"line 2: energy_j is 0; it must be above zero"),
        (HEADER + ROW.format(1, ""), r"line 2: energy_j is empty"),
        (HEADER + ROW.format("", 1), r"line 2: latency_ms is empty"),
        (HEADER + ROW.format(1, 1) + "b,m,,800,1,1\n", r"line 3: gpu_freq_mhz is empty"),
        (HEADER + "b,m,-300,800,1,1\n", r"line 2: gpu_freq_mhz is -300; it must be 0 or more"),
        (HEADER + "b,m,300,800,1\n", r"line 2: 5 cells where line 1 names 6 columns"),
        (HEADER + ROW.format(1, 1) * 2, r"lines 2 and 3 hold the same configuration \(GPU 300 MHz"),
        ("batch_size,latency_ms,energy_j\n1.5,1,1\n", r"batch_size is 1.5; it must be a whole number"),
        (ONE_KNOB.replace("\n", ",n_repeats\n") + "300,1,1,0\n", r"n_repeats is 0"),
        (ONE_KNOB + 'x"300,1,1\n"unclosed', r"line \d: not a CSV"),
        (
            ONE_KNOB.encode() + b"\xff\xfe,1,1\n",
            r"table.csv is not UTF-8 \(byte 33\); save it as a CSV in UTF-8",
        ),
        (ONE_KNOB + "\0,1,1\n", r"table.csv, line 2"),
        (HEADER + "b,m,,,1,1\n", r"no knob for m: its knob columns are empty"),
    ],
)
def test_a_bad_table_is_refused_in_one_sentence(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message) as error:
        read_table(write(tmp_path, content))
    assert "\n" not in str(error.value)


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="is not a file"):
        read_table(tmp_path)
    with pytest.raises(InvalidInputError, match="There is no table at"):
        read_table(tmp_path / "missing.csv")


def test_numbers_are_parsed_to_the_nearest_float(tmp_path: Path) -> None:
    value = 0.1 + 0.2
    content = f"gpu_freq_mhz,latency_ms,energy_j\n300,{value!r},{math.pi!r}\n"
    row = next(iter(read_table(write(tmp_path, content)).rows.values()))
    assert row.energy_j == math.pi
    assert row.latency_s["recorded"] == value / 1e3
