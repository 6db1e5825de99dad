from __future__ import annotations

from pathlib import Path

import pytest

from polythrottle.benchmarking.tables import read_tables
from polythrottle.benchmarking.task import BATCH_CAP, TWO_KNOB
from polythrottle.errors import InvalidInputError

HEADER = "device,workload,gpu_freq_mhz,mem_freq_mhz,latency_ms,power_w,energy_j"


def rows(gpu_levels: int = 6, mem_levels: int = 4, workload: str = "net") -> list[str]:
    return [
        f"board,{workload},{100 * g},{10 * m},{1000 / (g * m)},5,{g + m / 10}"
        for g in range(1, gpu_levels + 1)
        for m in range(1, mem_levels + 1)
    ]


def write(directory: Path, lines: list[str], name: str = "table.csv", header: str = HEADER) -> None:
    (directory / name).write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")


def reason(directory: Path) -> str:
    with pytest.raises(InvalidInputError) as caught:
        read_tables(directory)
    return str(caught.value)


def test_reads_values_in_si_units_and_anchors_at_the_highest_levels(tmp_path: Path) -> None:
    write(tmp_path, list(reversed(rows())))
    (task,), skipped = read_tables(tmp_path)
    assert skipped == []
    assert (task.name, task.family, task.emulated) == ("board/net", TWO_KNOB, False)
    assert dict(task.anchor) == {"gpu_freq_mhz": 600.0, "mem_freq_mhz": 40.0}
    assert task.latency_s[task.anchor_cell] == pytest.approx(1 / 24)
    assert task.energy_j[task.anchor_cell] == pytest.approx(6.4)
    assert task.latency_s[0] == pytest.approx(1.0)


def test_each_device_and_workload_is_a_task(tmp_path: Path) -> None:
    write(tmp_path, rows() + rows(workload="other"))
    write(tmp_path, rows(), name="again.csv")
    tasks, _ = read_tables(tmp_path)
    names = sorted(task.name for task in tasks)
    assert names == ["board/net (again.csv)", "board/net (table.csv)", "board/other"]


def test_batch_cap_table_is_anchored_at_the_middle_batch(tmp_path: Path) -> None:
    header = "device,workload,batch_size,power_limit_w,latency_ms,energy_j"
    lines = [f"gpu,net,{2**b},{50 * c},{2**b / c},{c}" for b in range(6) for c in range(1, 5)]
    write(tmp_path, lines, header=header)
    (task,), _ = read_tables(tmp_path)
    assert task.family == BATCH_CAP
    assert dict(task.anchor) == {"batch_size": 8.0, "power_limit_w": 200.0}


def test_missing_cells_and_constant_or_empty_knobs(tmp_path: Path) -> None:
    header = "device,workload,gpu_freq_mhz,mem_freq_mhz,cpu_freq_mhz,batch_size,latency_ms,energy_j"
    lines = [f"b,n,{g},{m},,4,{10 / (g * m)},{g + m}" for g in range(1, 7) for m in range(1, 5)]
    del lines[3]
    write(tmp_path, lines, header=header)
    (task,), _ = read_tables(tmp_path)
    assert task.space.names == ("gpu_freq_mhz", "mem_freq_mhz")
    assert len(task.configurations) == 23


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda r: [*r, r[4]], "lines 6 and 26 have the same configuration"),
        (lambda r: [r[0].replace(",1000.0,", ",nan,"), *r[1:]], "line 2: latency_ms is nan"),
        (lambda r: [*r[:2], r[2].replace(",5,", ",5,fast"), *r[3:]], "line 4: energy_j is 'fast"),
        (lambda r: [r[0].replace("board,net,100,", "board,net,,"), *r[1:]], "gpu_freq_mhz is ''"),
        (lambda r: [r[0].replace(",1000.0,", ",-3,"), *r[1:]], "above zero"),
        (lambda r: r[:19], "19 rows; at least 20"),
        (lambda r: r[:-1], "no row for its anchor"),
    ],
)
def test_what_cannot_be_replayed_says_why(tmp_path: Path, change, expected: str) -> None:  # type: ignore[no-untyped-def]
    write(tmp_path, change(rows()))
    assert expected in reason(tmp_path)


def test_one_bad_group_does_not_stop_the_others(tmp_path: Path) -> None:
    bad = rows(workload="bad")
    write(tmp_path, [*rows(), *bad, bad[0]])
    tasks, skipped = read_tables(tmp_path)
    assert [task.name for task in tasks] == ["board/net"]
    assert "board/bad" in skipped[0].where


def test_foreign_files_are_skipped_with_the_missing_columns(tmp_path: Path) -> None:
    write(tmp_path, rows())
    write(tmp_path, ["1,2"], name="foreign.csv", header="gpu_MHz,energy")
    (tmp_path / "latin.csv").write_bytes(b"device,workload\n\xff\xfe,x\n")
    _, skipped = read_tables(tmp_path)
    assert "device, workload, latency_ms, energy_j" in skipped[0].reason
    assert "UTF-8" in skipped[1].reason


def test_no_directory_and_an_empty_one(tmp_path: Path) -> None:
    assert "no table that can be replayed" in reason(tmp_path)
    assert "not a directory" in reason(tmp_path / "absent")
