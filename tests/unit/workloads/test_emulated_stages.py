"""`efficientnet-b0+preprocessing` on an emulated board: both stages, each alone and together."""

from __future__ import annotations

import pytest

from polythrottle.clock import VirtualClock
from polythrottle.errors import InvalidInputError
from polythrottle.measurement import LatencyReading, Provenance
from polythrottle.studies import MeasurementPlan
from polythrottle_agent.devices import open_device
from polythrottle_agent.emulation.preprocessing import CpuStage, pipelined
from polythrottle_agent.ports import Device, EnergyWindow, Workload, stages_of
from polythrottle_agent.workloads.emulated_stages import StagedEmulatedWorkload
from polythrottle_agent.workloads.opening import WorkloadOptions

NAME = "efficientnet-b0+preprocessing"
PLAN = MeasurementPlan(min_queries=2000, min_window_s=1.0)


def board(name: str = NAME, seed: int = 1) -> Device:
    return open_device("emulated:agx-orin", name, seed, VirtualClock())


def set_to(device: Device, **levels: float) -> Device:
    for knob, level in levels.items():
        device.controls[knob].apply(level)
    return device


def measured(device: Device, workload: Workload) -> tuple[float, float]:
    """Mean latency in seconds, and joules a query; the device's own meter reads."""
    device.meter.begin()
    served = workload.serve(PLAN, "mean")
    window = device.meter.end()
    assert isinstance(window, EnergyWindow)
    assert isinstance(served.latency, LatencyReading)
    assert window.window_s == pytest.approx(served.duration_s)
    return served.latency.latency_s, window.energy_j / served.n_queries


def stage_of(device: Device) -> tuple[CpuStage, Workload]:
    workload = device.workload
    assert isinstance(workload, StagedEmulatedWorkload)
    return workload._stage, stages_of(workload)["preprocessing"]


@pytest.mark.parametrize("cpu_mhz", [883.2, 2201.6])
def test_the_stage_alone_costs_what_its_physics_say(cpu_mhz: float) -> None:
    device = set_to(board(), cpu_freq_mhz=cpu_mhz)
    physics, alone = stage_of(device)
    latency_s, energy_j = measured(device, alone)
    assert latency_s == pytest.approx(physics.image_s(cpu_mhz), rel=0.05)
    assert energy_j == pytest.approx(physics.alone_j(cpu_mhz), rel=0.15)


@pytest.mark.parametrize(("cpu_mhz", "batch"), [(883.2, 1), (2201.6, 1), (1420.8, 4)])
def test_both_stages_overlap(cpu_mhz: float, batch: int) -> None:
    device = set_to(
        board(), cpu_freq_mhz=cpu_mhz, gpu_freq_mhz=828.75, mem_freq_mhz=3199.0, batch_size=float(batch)
    )
    physics, _ = stage_of(device)
    point = physics.behaviour.point(cpu_mhz=cpu_mhz, gpu_mhz=828.75, mem_mhz=3199.0, batch=batch)
    both = pipelined(physics, cpu_mhz, point)
    latency_s, energy_j = measured(device, device.workload)
    assert latency_s == pytest.approx(both.latency_s, rel=0.05)
    assert energy_j == pytest.approx(both.energy_j / batch, rel=0.15)
    served = device.workload.serve(PLAN, "mean")
    assert served.n_queries / served.duration_s == pytest.approx(batch / both.period_s, rel=0.08)


def test_the_stage_takes_time_that_the_model_alone_does_not() -> None:
    whole, model = board(), board("efficientnet-b0")
    for device in (whole, model):
        set_to(device, cpu_freq_mhz=2201.6, gpu_freq_mhz=1300.5, mem_freq_mhz=3199.0)
    staged_s, staged_j = measured(whole, whole.workload)
    bare_s, bare_j = measured(model, model.workload)
    physics, _ = stage_of(whole)
    assert staged_s - bare_s == pytest.approx(physics.image_s(2201.6), rel=0.3)
    assert staged_j > bare_j


def test_it_is_emulated_and_says_which_it_is() -> None:
    device = board()
    assert device.workload.name == NAME
    assert "emulated" in device.workload.model_version
    _, alone = stage_of(device)
    assert "preprocessing alone" in alone.name
    reading = alone.serve(PLAN, "p95").latency
    assert isinstance(reading, LatencyReading)
    assert reading.provenance is Provenance.EMULATED


def test_warming_up_takes_time_and_nothing_takes_none() -> None:
    device = board()
    device.workload.warm_up(0)
    assert device.clock.now() == 0
    device.workload.warm_up(20)
    assert device.clock.now() > 0


def test_the_same_seed_gives_the_same_window() -> None:
    one, other, third = (board(seed=s).workload.serve(PLAN, "p95") for s in (1, 1, 2))
    assert one == other
    assert one != third


def test_a_window_over_the_limit_is_cut_short() -> None:
    plan = MeasurementPlan(min_queries=5000, abort_latency_s=1e-6, abort_after_queries=20)
    served = board().workload.serve(plan, "p95")
    assert served.aborted_reason
    assert served.n_queries < 5000


def test_a_window_grows_until_latency_and_energy_are_known() -> None:
    device = board()
    calls: list[float] = []

    def may_end() -> bool:
        so_far = device.meter.so_far()
        assert isinstance(so_far, EnergyWindow)
        calls.append(so_far.energy_j)
        return len(calls) >= 3

    device.meter.begin()
    device.workload.serve(MeasurementPlan(min_queries=10, min_window_s=0.0), "mean", may_end)
    assert calls == sorted(calls)
    assert len(set(calls)) == 3


def test_images_of_another_size_are_another_version() -> None:
    device = board()
    workload = device.workload
    assert isinstance(workload, StagedEmulatedWorkload)
    larger = workload.resized(CpuStage.of(workload._stage.behaviour, 4.0))
    assert larger.model_version != workload.model_version
    assert larger.serve(PLAN, "mean").duration_s > 1.0


def test_bert_has_no_images_and_a_rate_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="no CPU stage"):
        board("bert-base+preprocessing")
    with pytest.raises(InvalidInputError, match="leave --rate out"):
        open_device("emulated:agx-orin", NAME, 1, VirtualClock(), options=WorkloadOptions(rate_per_s=10.0))
    with pytest.raises(InvalidInputError, match="did you mean"):
        board("efficientnet-b44+preprocessing")


def test_a_workload_without_a_stage_has_none() -> None:
    assert stages_of(board("efficientnet-b0").workload) == {}
