"""`onnx:FILE` in earnest: real models, the real ONNX Runtime, real child processes that are really killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from polythrottle.clock import RealClock
from polythrottle.configuration import Configuration
from polythrottle.errors import InvalidInputError
from polythrottle.measurement import LatencyReading, Provenance
from polythrottle.objective import LatencySlo
from polythrottle.studies import Assignment, Failed, Measured, MeasurementPlan
from polythrottle.study import DeviceIdentity
from polythrottle.trial import Purpose, Trial
from polythrottle_agent.executor import Executor
from polythrottle_agent.holding import HeldDevice
from polythrottle_agent.load.batching import BatchSize
from polythrottle_agent.load.sender import Answer
from polythrottle_agent.ports import ControlError, Device, stages_of
from polythrottle_agent.workloads.onnx_process import Model, ModelError, OnnxProcess
from polythrottle_agent.workloads.onnx_runtime import OnnxSender, OnnxWorkload
from polythrottle_agent.workloads.opening import Opened, WorkloadOptions, open_workload
from tests.unit.agent.conftest import ScriptedMeter

onnx = pytest.importorskip("onnx")
np = pytest.importorskip("numpy")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper  # noqa: E402 - it may be missing

PLAN = MeasurementPlan(settle_s=0.0, warmup_queries=4, min_queries=100, min_window_s=0.2, max_window_s=20.0)
RATED = WorkloadOptions(rate_per_s=100.0)
CLOSED = WorkloadOptions(closed_loop=True)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small models."""
    from polythrottle_agent.workloads.onnx_models import make

    folder = tmp_path_factory.mktemp("models")
    for kind in ("efficientnet", "bert"):
        (folder / f"{kind}.onnx").write_bytes(make(kind, "tiny").SerializeToString())
    return folder


def save(path: Path, nodes: list, inputs: list, outputs: list, weights: list | None = None) -> Path:
    """A model of one's own making; not checked, as some are meant to be wrong."""
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializer=weights or [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def floats(name: str, *shape: int | str | None):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def open_it(path: Path, options: WorkloadOptions = RATED) -> Opened:
    return open_workload(f"onnx:{path}", options, RealClock())


def refused(path: Path, options: WorkloadOptions = RATED) -> str:
    with pytest.raises(InvalidInputError) as error:
        open_it(path, options)
    text = str(error.value)
    assert text.endswith(".")
    assert "\n" not in text
    assert "Traceback" not in text
    return text


def eventually(holds: Callable[[], bool], within_s: float = 20.0) -> bool:
    until = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def child_of(opened: Opened) -> OnnxProcess:
    assert isinstance(opened.workload, OnnxWorkload)
    return opened.workload._process


# What is served


@pytest.mark.parametrize("kind", ["efficientnet", "bert"])
def test_a_model_is_served_at_a_rate_with_inputs_from_its_signature(models: Path, kind: str) -> None:
    opened = open_it(models / f"{kind}.onnx")
    workload = opened.workload
    assert workload.name == f"onnx:{kind}.onnx"
    assert workload.batch_sizes == (1, 2, 4, 8, 16)
    assert opened.load == "Poisson arrivals at 100/s"
    workload.warm_up(10)
    served = workload.serve(PLAN, "p95")
    assert isinstance(served.latency, LatencyReading), served
    assert served.latency.provenance is Provenance.MEASURED
    assert served.n_queries >= 100
    assert served.lost.total == 0
    assert isinstance(workload, OnnxWorkload)
    times = workload.service_times
    assert times.n_queries >= served.n_queries
    assert times.mean_s is not None
    assert 0 < times.mean_s < 0.5


def test_in_a_closed_loop_each_request_is_one_full_batch(models: Path) -> None:
    opened = open_it(models / "efficientnet.onnx", CLOSED)
    opened.controls["batch_size"].apply(4.0)
    opened.workload.warm_up(8)
    served = opened.workload.serve(PLAN, "mean")
    assert served.n_queries % 4 == 0
    assert isinstance(opened.workload, OnnxWorkload)
    assert opened.workload.service_times.mean_batch == 4.0
    # One batch in flight: its latency is its share of the window, and not that of many that wait.
    assert isinstance(served.latency, LatencyReading)
    assert served.latency.latency_s <= 1.2 * served.duration_s / (served.n_queries / 4)


def test_what_waits_is_served_together_up_to_the_batch_size(models: Path) -> None:
    """Twelve queries at once: a first one or more, then full batches, never more than allowed."""
    process = OnnxProcess(Model(models / "bert.onnx"), threads=1)
    sender = OnnxSender(process, BatchSize((1, 4), 4))
    sizes = []

    async def burst() -> list[Answer]:
        await sender.open(12)
        add = sender.times.add
        sender.times.add = lambda n, seconds: (sizes.append(n), add(n, seconds))  # type: ignore[method-assign]
        try:
            return await asyncio.gather(*(sender.send(1) for _ in range(12)))
        finally:
            await sender.close()

    answers = asyncio.run(burst())
    process.stop()
    assert all(answer.is_good for answer in answers)
    assert sum(sizes) == 12
    assert max(sizes) == 4
    assert len(sizes) <= 6


def test_it_says_where_a_latency_is_mostly_waiting(models: Path) -> None:
    """Sixteen queries at a time, served one by one."""
    opened = open_it(models / "bert.onnx", replace(CLOSED, connections=16))
    opened.workload.warm_up(4)
    served = opened.workload.serve(PLAN, "mean")
    assert any("most of the latency is waiting: the model takes" in note for note in served.notes)


def test_a_query_that_is_given_up_is_withdrawn_and_no_later_one_gets_its_answer(models: Path) -> None:
    process = OnnxProcess(Model(models / "bert.onnx"), threads=1)
    sender = OnnxSender(process, BatchSize((), 1))

    async def main() -> None:
        await sender.open(4)
        for _ in range(20):
            late = [asyncio.ensure_future(sender.send(1)) for _ in range(4)]
            await asyncio.sleep(0)
            for task in late:
                task.cancel()
            assert (await asyncio.wait_for(sender.send(1), 20.0)).is_good
        assert not sender._flying
        await sender.close()
        # What is still on its way from before does not disturb the next window.
        await sender.open(1)
        assert (await asyncio.wait_for(sender.send(1), 20.0)).is_good
        await sender.close()

    asyncio.run(main())
    process.stop()


def test_a_model_of_one_fixed_batch_has_no_batch_knob(tmp_path: Path) -> None:
    path = save(
        tmp_path / "fixed.onnx",
        [helper.make_node("Relu", ["x"], ["y"])],
        [floats("x", 4, 8)],
        [floats("y", 4, 8)],
    )
    opened = open_it(path)
    assert "batch_size" not in opened.controls
    assert opened.workload.batch_sizes == ()
    assert opened.workload.default_batch_size == 4
    assert opened.workload.serve(PLAN, "mean").n_queries >= 100
    text = refused(path, replace(RATED, batch_sizes=(1, 2)))
    assert "takes batches of 4 and no other size" in text


def test_the_version_is_that_of_the_file(models: Path, tmp_path: Path) -> None:
    same = tmp_path / "same.onnx"
    same.write_bytes((models / "bert.onnx").read_bytes())
    one, other = open_it(models / "bert.onnx").workload, open_it(same).workload
    assert one.model_version == other.model_version
    assert open_it(models / "efficientnet.onnx").workload.model_version != one.model_version


def test_samples_of_the_user_s_own_are_served(tmp_path: Path) -> None:
    path = save(
        tmp_path / "own.onnx",
        [helper.make_node("Relu", ["x"], ["y"])],
        [floats("x", "batch", "features")],
        [floats("y", "batch", "features")],
    )
    assert "give samples with --data FILE.npz" in refused(path)
    np.savez(tmp_path / "samples.npz", x=np.zeros((3, 7), "float32"))
    options = replace(RATED, data=str(tmp_path / "samples.npz"))
    assert open_it(path, options).workload.serve(PLAN, "mean").n_queries >= 100
    np.savez(tmp_path / "samples.npz", z=np.zeros((3, 7)), y=np.zeros(3))
    assert "holds 'y', but the model's inputs are x" in refused(path, options)


def test_this_process_never_loads_an_array_library(models: Path) -> None:
    script = (
        "import sys; from polythrottle.clock import RealClock; "
        "from polythrottle_agent.workloads.opening import WorkloadOptions, open_workload; "
        f"open_workload('onnx:{models / 'bert.onnx'}', WorkloadOptions(rate_per_s=9.0), RealClock())"
        ".workload.warm_up(1); "
        "print({'numpy', 'onnxruntime', 'onnx', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "set()"


# Threads


def test_the_threads_knob_changes_how_many_the_child_has(models: Path) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("a single processor has no such knob")
    opened = open_it(models / "bert.onnx")
    control, process = opened.controls["intra_op_threads"], child_of(opened)

    def n_threads() -> int:
        opened.workload.warm_up(1)
        return len(os.listdir(f"/proc/{process.pid}/task"))

    cores = len(os.sched_getaffinity(0))
    assert control.levels == tuple(float(n) for n in range(1, cores + 1))
    assert control.accepted() == cores
    saved = control.save()
    many = n_threads()
    control.apply(1.0)
    assert control.accepted() == control.observed() == 1.0
    assert n_threads() == many - (cores - 1)
    control.restore(saved)
    assert control.accepted() == cores
    assert n_threads() == many


def test_a_number_of_threads_it_does_not_have_is_refused(models: Path) -> None:
    control = open_it(models / "bert.onnx").controls.get("intra_op_threads")
    if control is None:
        pytest.skip("a single processor has no such knob")
    for level in (0.0, 1.5, 1e6):
        with pytest.raises(InvalidInputError):
            control.apply(level)
    with pytest.raises(ControlError):
        control.restore({})


# What cannot be served


def test_a_file_that_is_not_there_or_no_model_is_refused(tmp_path: Path) -> None:
    assert "polythrottle models make" in refused(tmp_path / "missing.onnx")
    assert "is a directory" in refused(tmp_path)
    text = tmp_path / "text.onnx"
    text.write_text("hello")
    assert "it is not an ONNX model, or it is damaged" in refused(text)
    empty = tmp_path / "empty.onnx"
    empty.touch()
    assert "cannot be served" in refused(empty)


def test_half_a_model_is_refused(models: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.onnx"
    whole = (models / "efficientnet.onnx").read_bytes()
    half.write_bytes(whole[: len(whole) // 2])
    assert "cannot be served" in refused(half)


def test_an_operator_that_onnx_runtime_does_not_know_is_named(tmp_path: Path) -> None:
    path = save(
        tmp_path / "unknown.onnx",
        [helper.make_node("Frobnicate", ["x"], ["y"])],
        [floats("x", "batch", 8)],
        [floats("y", "batch", 8)],
    )
    assert "Frobnicate" in refused(path)


def test_an_option_that_means_nothing_here_is_refused(models: Path) -> None:
    assert "takes no --" in refused(models / "bert.onnx", replace(RATED, method="POST"))
    with pytest.raises(InvalidInputError, match="How many queries arrive"):
        open_it(models / "bert.onnx", WorkloadOptions())


def test_a_model_that_fails_on_its_inputs_says_so_in_the_warm_up(tmp_path: Path) -> None:
    """Token ids beyond a tiny vocabulary: only running it shows."""
    table = helper.make_tensor("table", TensorProto.FLOAT, [4, 2], [0.0] * 8)
    path = save(
        tmp_path / "vocabulary.onnx",
        [helper.make_node("Gather", ["table", "input_ids"], ["y"])],
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [floats("y", "batch", "sequence", 2)],
        [table],
    )
    with pytest.raises(ControlError) as error:
        open_it(path).workload.warm_up(1)
    assert "cannot be served in batches of 1" in str(error.value)
    assert "\n" not in str(error.value)


def test_too_little_memory_is_said_and_the_process_lives_on(tmp_path: Path) -> None:
    """An outer product: a megabyte in, gigabytes out, under a limit that the model itself fits in."""
    path = save(
        tmp_path / "hungry.onnx",
        [
            helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["t", "x"], ["y"]),
        ],
        [floats("x", "batch", 1, 8192)],
        [floats("y", "batch", 8192, 8192)],
    )
    process = OnnxProcess(Model(path, memory_limit=3 << 30), threads=1)
    process.start()
    pid = process.pid
    with pytest.raises(ModelError) as error:
        process.warm_up(64, 1)
    assert str(error.value) == "there is not enough memory"
    assert process.pid == pid
    assert process.death() is None
    process.warm_up(1, 1)
    process.stop()


# A child that dies


def trial(plan: MeasurementPlan = PLAN) -> Assignment:
    return Assignment(Trial(1, Purpose.SEARCH, Configuration.of({"batch_size": 2.0})), plan)


@pytest.fixture
def device(models: Path) -> Iterator[Device]:
    opened = open_it(models / "bert.onnx")
    identity = DeviceIdentity("test:onnx", "test", "this machine", Provenance.MEASURED, "0" * 64)
    yield Device(identity, opened.controls, ScriptedMeter(), opened.workload, RealClock(), None)
    child_of(opened).stop()


def run(device: Device, plan: MeasurementPlan = PLAN):
    with HeldDevice(device) as held:
        return Executor(device, held).run(trial(plan), LatencySlo("p95", limit_s=10.0))


def test_a_child_that_is_killed_in_a_window_fails_the_trial_and_the_next_one_runs(device: Device) -> None:
    workload = device.workload
    assert isinstance(workload, OnnxWorkload)
    process = workload._process
    first = process.pid
    assert first is not None
    stopper = threading.Timer(1.0, os.kill, (first, signal.SIGKILL))
    stopper.start()
    long = replace(PLAN, min_queries=100_000, min_window_s=20.0)
    began = time.monotonic()
    outcome = run(device, long)
    assert isinstance(outcome, Failed), outcome
    assert "the ONNX Runtime process was killed" in outcome.reason
    assert "\n" not in outcome.reason
    assert time.monotonic() - began < 15.0
    again = run(device)
    assert isinstance(again, Measured), again
    assert process.pid not in (None, first)


@pytest.mark.parametrize(
    ("number", "says"), [(signal.SIGKILL, "was killed"), (signal.SIGSEGV, "crashed (SIGSEGV)")]
)
def test_how_a_child_died_is_said(models: Path, number: signal.Signals, says: str) -> None:
    process = OnnxProcess(Model(models / "bert.onnx"), threads=1)
    process.start()
    assert process.pid is not None
    os.kill(process.pid, number)
    with pytest.raises(ModelError, match="ONNX Runtime process") as error:
        process._ask({"do": "warm_up", "batches": 1})
    assert says in str(error.value)
    assert says in str(process.death())
    process.stop()


def test_a_child_ends_with_its_parent_however_that_ends(models: Path) -> None:
    script = (
        "import time; from pathlib import Path; "
        "from polythrottle_agent.workloads.onnx_process import Model, OnnxProcess; "
        f"process = OnnxProcess(Model(Path({str(models / 'bert.onnx')!r})), 1); process.start(); "
        "print(process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert is_alive(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert eventually(lambda: not is_alive(pid))


def test_a_workload_that_is_forgotten_takes_its_child_along(models: Path) -> None:
    opened = open_it(models / "bert.onnx")
    pid = child_of(opened).pid
    assert pid is not None
    assert is_alive(pid)
    del opened
    assert eventually(lambda: not is_alive(pid))


def test_the_kernel_is_told_whom_to_take_first(models: Path) -> None:
    opened = open_it(models / "bert.onnx")
    score = Path(f"/proc/{child_of(opened).pid}/oom_score_adj").read_text().strip()
    if score == Path("/proc/self/oom_score_adj").read_text().strip():
        pytest.skip("this system does not let a process volunteer")
    assert score == "1000"


# Pre-processing


@pytest.fixture
def pictured(models: Path, tmp_path: Path) -> Opened:
    file = tmp_path / "pictures.npz"
    pixels = np.random.default_rng(1).integers(0, 256, (2, 240, 320, 3)).astype("uint8")
    np.savez(file, image=pixels)
    return open_it(models / "efficientnet.onnx", replace(RATED, rate_per_s=40.0, data=str(file)))


def test_raw_pictures_make_a_cpu_stage_that_can_be_served_alone(pictured: Opened) -> None:
    stages = stages_of(pictured.workload)
    assert list(stages) == ["preprocessing"]
    alone = stages["preprocessing"]
    assert alone.batch_sizes == ()
    pictured.workload.warm_up(4)
    whole, part = pictured.workload.serve(PLAN, "mean"), alone.serve(PLAN, "mean")
    assert isinstance(whole.latency, LatencyReading), whole
    assert isinstance(part.latency, LatencyReading), part
    assert part.lost.total == whole.lost.total == 0
    assert isinstance(alone, OnnxWorkload)
    assert alone.service_times.mean_batch == 1.0


def test_a_model_without_raw_pictures_has_no_stage(models: Path) -> None:
    assert stages_of(open_it(models / "efficientnet.onnx").workload) == {}
