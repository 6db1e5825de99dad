from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "tables" / "convert.py"


@pytest.fixture(name="convert")
def _convert() -> ModuleType:
    spec = importlib.util.spec_from_file_location("convert", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def converted(
    convert: ModuleType, capsys: pytest.CaptureFixture[str], source: str, path: Path
) -> list[dict[str, str]]:
    assert convert.main([source, str(path), "--device", "d"]) == 0
    return list(csv.DictReader(capsys.readouterr().out.splitlines()))


def test_zeus(convert: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "dataset,network,batch_size,optimizer,power_limit,time_per_epoch,average_power\n"
        "squad,net,10,sgd,125,87.599,100\n"
    )
    (row,) = converted(convert, capsys, "zeus", path)
    assert (row["workload"], row["batch_size"], row["power_limit_w"]) == ("squad/net/sgd", "10", "125.0")
    assert float(row["latency_ms"]) == pytest.approx(10.0)
    assert float(row["energy_j"]) == pytest.approx(0.1)


def test_gpu_ptx_model(convert: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("DP,0,8\n810,595,36.5,48.0,1752.0\nDP,0,8\n3505,633,10,20,200\n")
    first, second = converted(convert, capsys, "gpu-ptx-model", path)
    assert (first["workload"], second["workload"]) == ("DP", "DP#2")
    assert (first["gpu_freq_mhz"], first["mem_freq_mhz"]) == ("595.0", "810.0")
    assert float(first["energy_j"]) == pytest.approx(1.752)


def test_kernel_tuner(convert: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    entry = {"nvml_gr_clock": 405, "time": 20.0, "nvml_power": 50.0, "times": [20.0, 20.0]}
    content = {
        "kernel_name": "k",
        "tune_params": {"nvml_gr_clock": [405, 600], "block": [1]},
        "cache": {"x": entry},
    }
    path.write_text(json.dumps(content))
    (row,) = converted(convert, capsys, "kernel-tuner", path)
    assert float(row["energy_j"]) == pytest.approx(1.0)
    assert row["n_repeats"] == "2"
    content["tune_params"]["block"] = [1, 2]  # type: ignore[index]
    path.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="only nvml_gr_clock may vary"):
        convert.main(["kernel-tuner", str(path), "--device", "d"])


def test_osldvfs(convert: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "bfs.csv"
    path.write_text(
        "CPU Frequencies,GPU Frequencies,Mem Frequencies,Real Time,ActivePower\n"
        "200000.0,600000000.0,165000000.0,2000.0,4.0\n"
    )
    (row,) = converted(convert, capsys, "osldvfs", path)
    clocks = [float(row[name]) for name in ("cpu_freq_mhz", "gpu_freq_mhz", "mem_freq_mhz")]
    assert clocks == [200.0, 600.0, 165.0]
    assert (row["workload"], float(row["energy_j"])) == ("bfs", 8.0)


def test_a_file_of_another_source_says_so(convert: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x,y\n1,2\n")
    with pytest.raises(SystemExit, match="is not a file of zeus"):
        convert.main(["zeus", str(path), "--device", "d"])
