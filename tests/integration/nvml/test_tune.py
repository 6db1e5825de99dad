"""`polythrottle tune --device auto` on pretended GPUs: from discovery to the answer, and all put back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nvml_fake import environment

COMMAND = Path(__file__).parents[2] / "fakes" / "nvml" / "polythrottle_on_a_fake_gpu.py"

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="GPU CLOCKS WERE NOT TUNED: NVML's setters need root"
)


@pytest.fixture
def sysroot(tmp_path: Path) -> Path:
    """A machine with an NVIDIA driver and nothing else."""
    (tmp_path / "root" / "dev").mkdir(parents=True)
    (tmp_path / "root" / "dev" / "nvidiactl").touch()
    return tmp_path / "root"


@pytest.fixture
def start(library: Path, tmp_path: Path, sysroot: Path) -> Callable[..., subprocess.Popen[str]]:
    def run(gpus: str, *arguments: str) -> subprocess.Popen[str]:
        env = {
            **os.environ,
            **environment(library, tmp_path / "gpus", gpus, manual_clock=True),
            "POLYTHROTTLE_SYSROOT": str(sysroot),
            "POLYTHROTTLE_STATE_DIR": str(tmp_path / "state"),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "160",
        }
        return subprocess.Popen(
            [sys.executable, str(COMMAND), str(library), *arguments],
            env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    return run


TUNE = ("tune", "--device", "auto", "--latency-slo", "12ms", "--strategy", "random", "--json")


@pytest.mark.parametrize(
    ("gpu", "levels"), [("V100", "997/1530"), ("A100-40", "915/1410"), ("H100", "1290/1980")]
)
def test_it_saves_energy_within_the_slo_and_leaves_the_gpu_as_found(
    machine: Callable[..., Any], start: Any, gpu: str, levels: str
) -> None:
    found = machine(gpu)
    found.fake.set(limit_mw=found.fake.get("limit_mw") - 1)
    before = found.fake.settings()
    process = start(gpu, *TUNE[:-3], "--strategy", "grid", "--json", "--knobs", f"gpu_freq_mhz={levels}")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    answer = json.loads(out)
    assert answer["device"]["id"] == f"nvidia:{found.uuid}"
    assert answer["provenance"] == "measured"
    assert answer["saving"] > 0.1
    assert answer["chosen"]["latency_s"] < 0.012
    assert all(
        0 < trial["energy_error_j"] < 0.02 * trial["energy_j"]
        for trial in answer["trials"]
        if trial["state"] == "completed"
    )
    assert found.fake.settings() == before
    assert found.fake.get("load") == 0


def test_several_gpus_are_told_apart_by_uuid(machine: Callable[..., Any], start: Any) -> None:
    found = machine("H100,A100-40")
    process = start("H100,A100-40", *TUNE)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert all(uuid in err for uuid in found.uuids)
    second = ("tune", "--device", f"auto:{found.uuids[1]}", *TUNE[3:], "--max-trials", "3")
    process = start("H100,A100-40", *second)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "A100" in out


def test_mig_is_refused_with_the_reason(machine: Callable[..., Any], start: Any) -> None:
    machine("H100").fake.set(mig=1)
    process = start("H100", *TUNE)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "MIG" in err
    assert "Traceback" not in err


def test_after_kill_9_the_next_run_puts_the_gpu_back_first(machine: Callable[..., Any], start: Any) -> None:
    found = machine("H100")
    found.fake.set(limit_mw=651_000, persistence=1)
    before = found.fake.settings()
    process = start("H100", *TUNE, "--knobs", "gpu_freq_mhz,power_limit_w,mem_freq_mhz")
    deadline = time.monotonic() + 60
    while found.fake.settings() == before:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=10)
    assert found.fake.settings() != before
    process = start("H100", *TUNE, "--max-trials", "2")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert found.fake.settings() == before
