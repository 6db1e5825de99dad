"""Turns public measurements into tables for `polythrottle bench optimizer --tables DIR`.

    python benchmarks/tables/convert.py zeus summary_power_p100.csv --device p100 > DIR/zeus_p100.csv

Sources and licences are in README.md beside this file. The data stays outside the repository.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

Record = dict[str, object]

ZEUS_SAMPLES = {
    "cifar100": 50_000,
    "imagenet": 1_281_167,
    "librispeech": 281_241,
    "movielens-1m": 4_970_845,
    "sentiment140": 1_600_000,
    "squad": 87_599,
}
"""Samples in one epoch of each data set in the Zeus traces."""


def zeus(path: Path, device: str) -> Iterator[Record]:
    """Zeus, NSDI '23: `summary_power_*.csv`. One query is one sample, latency is one iteration."""
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["dataset"] not in ZEUS_SAMPLES:
                raise SystemExit(f"{path}: no number of samples is known for data set {row['dataset']!r}.")
            samples, batch = ZEUS_SAMPLES[row["dataset"]], int(row["batch_size"])
            epoch_s, power_w = float(row["time_per_epoch"]), float(row["average_power"])
            yield {
                "device": device,
                "workload": f"{row['dataset']}/{row['network']}/{row['optimizer']}",
                "batch_size": batch,
                "power_limit_w": float(row["power_limit"]),
                "latency_ms": 1e3 * epoch_s * batch / samples,
                "power_w": power_w,
                "energy_j": power_w * epoch_s / samples,
            }


def gpu_ptx_model(path: Path, device: str) -> Iterator[Record]:
    """gpuPTXModel: `aggregated_dataset_*.csv`. A line names a kernel; the lines after it hold memory and
    core clock (MHz), time (ms), power (W) and energy (mJ)."""
    kernel, seen = "", dict[str, int]()
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            fields = line.strip().split(",")
            if len(fields) == 3:
                seen[fields[0]] = seen.get(fields[0], 0) + 1
                kernel = fields[0] if seen[fields[0]] == 1 else f"{fields[0]}#{seen[fields[0]]}"
            elif len(fields) == 5 and kernel:
                memory, core, time_ms, power_w, energy_mj = map(float, fields)
                yield {
                    "device": device,
                    "workload": kernel,
                    "gpu_freq_mhz": core,
                    "mem_freq_mhz": memory,
                    "latency_ms": time_ms,
                    "power_w": power_w,
                    "energy_j": energy_mj / 1e3,
                }
            elif line.strip():
                raise SystemExit(f"{path}, line {number}: neither a kernel's name nor five numbers.")


def kernel_tuner(path: Path, device: str) -> Iterator[Record]:
    """Kernel Tuner cache files with `nvml_gr_clock` as the only parameter that varies."""
    content = json.loads(path.read_text(encoding="utf-8"))
    varying = [name for name, values in content["tune_params"].items() if len(values) > 1]
    if varying != ["nvml_gr_clock"]:
        raise SystemExit(f"{path}: only nvml_gr_clock may vary, here {', '.join(varying) or 'nothing'} does.")
    for entry in content["cache"].values():
        yield {
            "device": device,
            "workload": content["kernel_name"],
            "gpu_freq_mhz": entry["nvml_gr_clock"],
            "latency_ms": entry["time"],
            "power_w": entry["nvml_power"],
            "energy_j": entry["nvml_power"] * entry["time"] / 1e3,
            "n_repeats": len(entry["times"]),
        }


def osldvfs(path: Path, device: str) -> Iterator[Record]:
    """osldvfs: `combined_perf_pow.csv`. CPU clock in kHz, GPU and memory clock in Hz, time in ms.

    The file's stem names the workload.
    """
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            time_ms, power_w = float(row["Real Time"]), float(row["ActivePower"])
            yield {
                "device": device,
                "workload": path.stem,
                "cpu_freq_mhz": float(row["CPU Frequencies"]) / 1e3,
                "gpu_freq_mhz": float(row["GPU Frequencies"]) / 1e6,
                "mem_freq_mhz": float(row["Mem Frequencies"]) / 1e6,
                "latency_ms": time_ms,
                "power_w": power_w,
                "energy_j": power_w * time_ms / 1e3,
            }


CONVERTERS = {
    "zeus": zeus,
    "gpu-ptx-model": gpu_ptx_model,
    "kernel-tuner": kernel_tuner,
    "osldvfs": osldvfs,
}


def write(records: Iterable[Record]) -> int:
    """All records as CSV on standard output; returns how many."""
    count, writer = 0, None
    for record in records:
        if writer is None:
            writer = csv.DictWriter(sys.stdout, list(record))
            writer.writeheader()
        rounded = {k: float(f"{v:.7g}") if isinstance(v, float) else v for k, v in record.items()}
        writer.writerow(rounded)
        count += 1
    return count


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", choices=sorted(CONVERTERS))
    parser.add_argument("file", type=Path)
    parser.add_argument("--device", required=True, help="name of the device in the table")
    options = parser.parse_args(arguments)
    try:
        count = write(CONVERTERS[options.source](options.file, options.device))
    except (OSError, KeyError, ValueError) as error:
        raise SystemExit(f"{options.file} is not a file of {options.source}: {error!r}.") from error
    return 0 if count else 1


if __name__ == "__main__":
    sys.exit(main())
