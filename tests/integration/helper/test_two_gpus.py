"""Two GPUs in one machine: what is kept of one is never written to the other, and all of it comes back."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from polythrottle.clock import RealClock
from polythrottle_agent.privileged.client import Leased, helper_device
from polythrottle_agent.privileged.keeper import Keeper
from tests.integration.helper.gpus import Gpus, why_not

pytest.importorskip("pynvml", reason="NOT TESTED: nvidia-ml-py is not installed")
pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpus]:
    for name in ("FAKE_NVML_STATE", "FAKE_NVML_GPUS", "LD_LIBRARY_PATH"):
        monkeypatch.setenv(name, "")  # so that they are undone
    gpus = Gpus.on(tmp_path, "H100,A100-40")
    yield gpus
    gpus.close()


def test_a_run_on_one_gpu_leaves_what_a_dead_run_kept_of_the_other(gpus: Gpus) -> None:
    before = gpus.states
    gpus.killed_while_it_holds(0, gpu_freq_mhz=1200, power_limit_w=400)
    changed = gpus.state(0)
    assert changed != before[0]
    device = ("--device", f"auto:{gpus.uuids[1]}")
    done = gpus.run("apply", gpus.file(power_limit_w=100), "--for", "1s", "--yes", *device)
    assert done.returncode == 0, done.stderr
    assert gpus.state(1) == before[1], "it got the other one's"
    assert gpus.state(0) == changed
    assert gpus.run("restore").returncode == 0
    assert gpus.states == before
    assert gpus.journals == []


def test_restore_puts_every_gpu_back_and_says_which(gpus: Gpus) -> None:
    before = gpus.states
    gpus.killed_while_it_holds(0, gpu_freq_mhz=1200)
    gpus.killed_while_it_holds(1, power_limit_w=100)
    assert len(gpus.journals) == 2
    dry = gpus.run("restore", "--dry-run").stdout
    assert dry.count("nothing was written") == 2
    assert "H100" in dry
    assert "A100" in dry
    done = gpus.run("restore")
    assert done.returncode == 0, done.stderr
    assert "gpu_freq_mhz, gpu_min_freq_mhz, power_limit_w of NVIDIA A100" in done.stdout
    assert gpus.states == before
    assert "Nothing to put back" in gpus.run("restore").stdout


def test_one_gpu_can_be_put_back_alone(gpus: Gpus) -> None:
    before = gpus.states
    gpus.killed_while_it_holds(0, gpu_freq_mhz=1200)
    gpus.killed_while_it_holds(1, power_limit_w=100)
    assert gpus.run("restore", "--gpu", gpus.uuids[1]).returncode == 0
    assert gpus.state(1) == before[1]
    assert gpus.state(0) != before[0]


def test_the_helper_has_to_be_told_which_and_says_how(gpus: Gpus) -> None:
    process = gpus.helper()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"as in --gpu {gpus.uuids[0]} (polythrottle install-service takes --gpu too)" in errors
    assert "--device" not in errors
    found = gpus.run("doctor").stdout
    assert f"--gpu {gpus.uuids[0]}" in found


@pytest.mark.parametrize("named", [True, False])
def test_what_runs_after_a_killed_helper_finds_its_gpu_by_the_journal(gpus: Gpus, named: bool) -> None:
    before = gpus.states
    process = gpus.helper("--gpu", gpus.uuids[1])
    with gpus.client() as client:
        keeper = Keeper(helper_device(client)[1], RealClock(), Leased(client, "a run"))
        keeper.take()
        keeper.apply({"gpu_freq_mhz": 900.0})
        process.kill()
        process.wait()
    assert gpus.state(1) != before[1]
    after = gpus.helper("--restore", *(("--gpu", gpus.uuids[1]) if named else ()))
    assert after.wait(30) == 0
    assert gpus.states == before


def test_restore_beside_a_helper_puts_the_other_gpu_back_too(gpus: Gpus) -> None:
    before = gpus.states
    gpus.killed_while_it_holds(0, gpu_freq_mhz=1200)
    process = gpus.helper("--gpu", gpus.uuids[1])
    gpus.client().close()
    assert gpus.state(0) != before[0], "the helper serves the other GPU"
    device = ("--device", f"auto:{gpus.uuids[1]}")
    done = gpus.run("apply", gpus.file(gpu_freq_mhz=900), "--keep", "--yes", *device)
    assert done.returncode == 0, done.stderr
    assert gpus.state(1) != before[1]
    done = gpus.run("restore")
    assert done.returncode == 0, done.stderr
    assert gpus.states == before
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


def test_root_may_run_on_a_gpu_that_the_helper_does_not_serve_and_its_end_changes_nothing_there(
    gpus: Gpus,
) -> None:
    before = gpus.states
    process = gpus.helper("--gpu", gpus.uuids[1])
    gpus.client().close()
    gpus.killed_while_it_holds(0, gpu_freq_mhz=1200)
    held = gpus.state(0)
    process.kill()
    process.wait()
    assert gpus.helper("--restore", "--gpu", gpus.uuids[1]).wait(30) == 0
    assert gpus.state(0) == held
    assert gpus.run("restore").returncode == 0
    assert gpus.states == before
