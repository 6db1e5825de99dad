"""The batch size of a real Triton: set by its repository API, read back, put back, also after a crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from polythrottle.errors import InvalidInputError, StateError
from polythrottle.studies import MeasurementPlan
from polythrottle_agent.ports import Control, ControlError
from polythrottle_agent.workloads.triton_original import put_back_all
from polythrottle_agent.workloads.triton_server import Address, TritonServer
from tests.integration.triton.conftest import opened
from tests.integration.triton.real_triton import Triton

sys.path.insert(0, str(Path(__file__).parents[2] / "conformance"))

from test_controls import *  # noqa: F403

CASES = [(protocol, model) for protocol in ("http", "grpc") for model in ("image", "text")]


@dataclass
class Case:
    control: Control
    reopen: Callable[[], Control]
    device: Any = field(default_factory=SimpleNamespace)


def control_of(triton: Triton, protocol: str, model: str, **options: object) -> Control:
    return opened(getattr(triton, protocol)(model), **options).controls["batch_size"]


def server_of(triton: Triton, model: str, protocol: str = "http") -> TritonServer:
    return TritonServer(Address.parse(getattr(triton, protocol)(model)))


@pytest.fixture(params=CASES, ids="-".join)
def control_case(request: pytest.FixtureRequest, triton: Triton) -> Any:
    protocol, model = request.param
    server = server_of(triton, model, protocol)
    original = server.config()
    control = control_of(triton, protocol, model)
    device = SimpleNamespace(controls={control.knob: control})
    yield Case(control, lambda: control_of(triton, protocol, model), device)
    if server.config() != original:
        server.load(original)


def test_the_whole_configuration_is_sent_and_comes_back(triton: Triton) -> None:
    server = server_of(triton, "image")
    original = server.config()
    assert original["dynamic_batching"]["preferred_batch_size"] == [4, 8]
    control = control_of(triton, "http", "image")
    assert control.levels == (1.0, 2.0, 4.0, 8.0)
    saved = control.save()
    control.apply(2.0)
    now = server.config()
    assert now["max_batch_size"] == 2
    assert now["dynamic_batching"] == {**original["dynamic_batching"], "preferred_batch_size": [2]}
    assert {k: v for k, v in now.items() if k not in ("max_batch_size", "dynamic_batching")} == {
        k: v for k, v in original.items() if k not in ("max_batch_size", "dynamic_batching")
    }
    control.restore(saved)
    assert server.config() == original


def test_a_model_without_dynamic_batching_gains_it_for_the_time(triton: Triton) -> None:
    server = server_of(triton, "text")
    original = server.config()
    assert original.get("dynamic_batching") is None
    control = control_of(triton, "http", "text")
    saved = control.save()
    control.apply(4.0)
    assert server.config()["dynamic_batching"] is not None
    control.restore(saved)
    assert server.config() == original


def test_the_same_level_is_not_loaded_twice(triton: Triton) -> None:
    control = control_of(triton, "http", "text")
    saved = control.save()
    control.apply(2.0)
    server = server_of(triton, "text")
    opened(triton.http("text")).workload.warm_up(3)
    executed = server.executed()
    assert executed.n_queries >= 3
    control.apply(2.0)
    assert server.executed() == executed  # a reload would have begun anew
    control.restore(saved)


def test_batches_get_no_larger_than_the_knob_says(triton: Triton) -> None:
    found = opened(triton.http("image"), closed_loop=True, connections=16)
    control = found.controls["batch_size"]
    saved = control.save()
    sizes = {}
    for level in (1.0, 8.0):
        control.apply(level)
        served = found.workload.serve(MeasurementPlan(min_queries=300, max_window_s=15.0), "p50")
        sizes[level] = next(float(note.split()[4]) for note in served.notes if "batches of" in note)
    control.restore(saved)
    assert sizes[1.0] == 1.0
    assert 2.0 < sizes[8.0] <= 8.0


def test_a_reload_in_the_window_makes_it_void(triton: Triton) -> None:
    found = opened(triton.http("image"), rate_per_s=60.0)
    server = server_of(triton, "image")
    original = server.config()
    found.workload.warm_up(5)
    # Not the same one: Triton loads nothing where nothing changed.
    timer = threading.Timer(2.0, server.load, ({**original, "metric_tags": {"owner": "them"}},))
    timer.start()
    served = found.workload.serve(MeasurementPlan(min_queries=300, min_window_s=4.0), "p50")
    timer.join()
    server.load(original)
    assert served.void_reason is not None
    assert "loaded anew" in served.void_reason
    assert served.lost.total == 0  # it was away for no moment


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_size_that_does_not_load_leaves_the_one_before(triton: Triton, protocol: str) -> None:
    found = opened(getattr(triton, protocol)("image"), batch_sizes=(1, 8, 32))
    control = found.controls["batch_size"]
    saved = control.save()
    control.apply(1.0)
    with pytest.raises(ControlError, match=r"built for batches of 16.*still serves") as error:
        control.apply(32.0)
    assert "\n" not in str(error.value)
    assert control.accepted() == 1.0
    assert found.workload.serve(MeasurementPlan(min_queries=60, min_window_s=0.5), "p50").n_queries >= 60
    control.restore(saved)
    assert control.save() == saved


def test_somebody_else_s_configuration_is_left_alone(triton: Triton) -> None:
    server = server_of(triton, "image")
    original = server.config()
    control = control_of(triton, "http", "image")
    saved = control.save()
    control.apply(2.0)
    theirs = {**original, "max_batch_size": 16, "model_warmup": [], "metric_tags": {"owner": "them"}}
    server.load(theirs)
    try:
        for action in (lambda: control.apply(4.0), lambda: control.restore(saved)):
            with pytest.raises(ControlError, match="somebody loaded another configuration"):
                action()
        assert server.config()["metric_tags"] == {"owner": "them"}
    finally:
        server.load(original)


def test_a_model_without_batches_has_no_knob(triton: Triton) -> None:
    found = opened(triton.http("single"))
    assert not found.controls
    assert found.workload.batch_sizes == ()
    assert any("takes no batches" in note for note in found.notes)
    with pytest.raises(InvalidInputError, match="takes no batches"):
        opened(triton.http("single"), batch_sizes=(1, 2))


def test_a_triton_that_loads_nothing_has_no_knob(start_triton: Callable[..., Triton]) -> None:
    triton = start_triton("image", control="none")
    found = opened(triton.http("image"))
    assert not found.controls
    assert any("explicit model load / unload is not allowed" in note for note in found.notes)
    assert found.workload.serve(MeasurementPlan(min_queries=60, min_window_s=0.5), "p50").n_queries >= 60


KILLED = """
import os, signal, sys
from polythrottle.clock import RealClock
from polythrottle_agent.workloads.opening import WorkloadOptions, open_workload
found = open_workload("triton:" + sys.argv[1], WorkloadOptions(rate_per_s=40.0), RealClock())
control = found.controls["batch_size"]
control.save()
control.apply(2.0)
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_in_a_trial(triton: Triton) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, triton.http("image")], env=dict(os.environ), check=False, timeout=120
    )
    assert done.returncode == -signal.SIGKILL


def test_the_original_is_known_after_a_crash(triton: Triton) -> None:
    server = server_of(triton, "image")
    original = server.config()
    killed_in_a_trial(triton)
    assert server.config()["max_batch_size"] == 2
    found = opened(triton.http("image"))
    assert any("interrupted run" in note for note in found.notes)
    control = found.controls["batch_size"]
    assert control.levels == (1.0, 2.0, 4.0, 8.0)
    assert found.workload.default_batch_size == 8
    saved = control.save()
    control.apply(4.0)
    control.restore(saved)
    assert server.config() == original
    assert not opened(triton.http("image")).notes


def test_what_a_crash_left_is_put_back_by_restore(triton: Triton, state_dir: Path) -> None:
    server = server_of(triton, "image")
    original = server.config()
    killed_in_a_trial(triton)
    (back,) = put_back_all()
    assert back.problem is None
    assert back.target == triton.http("image")
    assert server.config() == original
    assert list(put_back_all()) == []
    assert not list((state_dir / "workloads").iterdir())


def test_a_triton_that_was_started_again_owes_nothing(start_triton: Callable[..., Triton]) -> None:
    triton = start_triton("image")
    killed_in_a_trial(triton)
    triton.kill()
    (gone,) = put_back_all()
    assert gone.problem == "nobody listens there"
    triton.start()
    found = opened(triton.http("image"))
    assert not found.notes
    assert found.controls["batch_size"].accepted() == 8.0
    assert list(put_back_all()) == []


def test_a_damaged_file_is_refused_with_a_way_out(triton: Triton, state_dir: Path) -> None:
    control = control_of(triton, "http", "image")
    saved = control.save()
    control.apply(2.0)
    (path,) = (state_dir / "workloads").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:40])
    with pytest.raises(StateError, match="restart Triton"):
        opened(triton.http("image"))
    with pytest.raises(StateError, match="restart Triton"):
        list(put_back_all())
    path.write_bytes(whole)
    control.restore(saved)
    assert not path.exists()


def test_a_state_directory_that_cannot_be_written_stops_the_first_write(
    triton: Triton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("POLYTHROTTLE_STATE_DIR", str(tmp_path / "a file"))
    control = control_of(triton, "http", "image")
    with pytest.raises(ControlError, match="nothing is changed in Triton"):
        control.apply(2.0)
    assert control.accepted() == 8.0


def test_a_triton_that_hangs_is_given_up_in_time(start_triton: Callable[..., Triton]) -> None:
    triton = start_triton("image")
    for protocol in ("http", "grpc"):
        address = Address.parse(getattr(triton, protocol)("image"))
        server = TritonServer(address, time_out_s=1.0, load_time_out_s=1.0)
        config = server.config()
        triton.freeze()
        time.sleep(0.2)  # until the signal has reached every thread
        started_s = time.monotonic()
        for action in (server.config, server.metadata, lambda config=config, s=server: s.load(config)):
            with pytest.raises(Exception, match="did not answer within 1 s"):
                action()
        assert time.monotonic() - started_s < 10
        triton.thaw()
        assert server.is_ready()
