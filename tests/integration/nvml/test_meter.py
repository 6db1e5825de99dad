"""Energy and evidence of pretended GPUs, against what they truly drew."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from nvml_fake import HW_THERMAL, SW_THERMAL

from polythrottle.clock import RealClock
from polythrottle.measurement import Scope, Unavailable
from polythrottle_agent.controls.nvidia import nvidia_controls
from polythrottle_agent.meters.nvidia import NvidiaCounterMeter, NvidiaPowerMeter, nvidia_meter
from polythrottle_agent.nvml.energy_ticks import EnergyTicks, Tick
from polythrottle_agent.nvml.events import Reason
from polythrottle_agent.nvml.gpu import Gpu
from polythrottle_agent.nvml.watch import power_source
from polythrottle_agent.ports import EnergyWindow

Machines = Callable[..., Any]


def measured(found: Any, meter: Any, load_s: float, idle_s: float = 0.0) -> tuple[Any, float]:
    """A window with a load and then none; what the meter read, and what was truly drawn in it."""
    meter.begin()
    true_mj = found.fake.get("energy_mj")
    found.fake.set(load=1)
    found.clock.sleep(load_s)
    found.fake.set(load=0)
    found.clock.sleep(idle_s)
    true_j = (found.fake.get("energy_mj") - true_mj) / 1e3
    return meter.end(), true_j


@pytest.mark.parametrize(("gpu", "period_s"), [("V100", 0.02), ("A100-40", 0.1), ("H100", 0.1)])
def test_the_refresh_period_is_measured(machine: Machines, gpu: str, period_s: float) -> None:
    found = machine(gpu)
    meter = nvidia_meter(found.session, found.uuid, found.clock)
    assert isinstance(meter, NvidiaCounterMeter)
    assert meter.refresh_s() == pytest.approx(period_s, abs=0.002)
    assert meter.scope is Scope.GPU


@pytest.mark.parametrize("gpu", ["V100", "A100-40", "H100", "RTX"])
def test_energy_is_right_within_three_standard_errors_wherever_the_window_falls(
    machine: Machines, gpu: str
) -> None:
    found = machine(gpu)
    meter = nvidia_meter(found.session, found.uuid, found.clock)
    rng = random.Random(7)
    for _ in range(12):
        found.clock.sleep(rng.uniform(1.5, 1.7))
        window, true_j = measured(found, meter, rng.uniform(2.0, 3.0))
        assert isinstance(window, EnergyWindow)
        assert abs(window.energy_j - true_j) < 3 * window.standard_error_j
        assert window.energy_j == pytest.approx(true_j, rel=0.01)
        assert window.standard_error_j < 0.03 * window.energy_j


def test_a_counter_read_carelessly_would_be_off_by_more(machine: Machines) -> None:
    """The alignment is worth having: reading at both ends as they fall errs by up to a refresh's energy."""
    found = machine("H100")
    gpu, rng, worst = Gpu(found.session, found.uuid), random.Random(7), 0.0
    found.fake.set(load=1)
    for _ in range(12):
        found.clock.sleep(rng.uniform(1.0, 1.1))
        before, true_mj = gpu.energy_mj(), found.fake.get("energy_mj")
        found.clock.sleep(rng.uniform(1.0, 1.2))
        true_j = found.fake.get("energy_mj") - true_mj
        assert before is not None
        worst = max(worst, abs((gpu.energy_mj() or 0) - before - true_j) / true_j)
    assert worst > 0.03


def test_a_load_that_ends_before_the_window_does(machine: Machines) -> None:
    found = machine("H100")
    meter = nvidia_meter(found.session, found.uuid, found.clock)
    found.clock.sleep(2)
    window, true_j = measured(found, meter, 2.0, idle_s=0.55)
    assert isinstance(window, EnergyWindow)
    assert abs(window.energy_j - true_j) < 3 * window.standard_error_j
    assert window.energy_j == pytest.approx(true_j, rel=0.02)


def test_a_counter_that_disagrees_with_power_gets_a_wider_error(machine: Machines) -> None:
    found = machine("H100")
    found.fake.set(load=1)
    found.clock.sleep(2)
    meter = nvidia_meter(found.session, found.uuid, found.clock)
    assert isinstance(meter, NvidiaCounterMeter)
    errors = []
    for gain in (1.0, 0.8):
        found.fake.set(counter_gain=gain)
        found.fake.reload_driver()
        found.fake.set(load=1)
        found.clock.sleep(2)
        meter.begin()
        found.clock.sleep(3)
        window = meter.end()
        assert isinstance(window, EnergyWindow)
        errors.append(window.standard_error_j / window.energy_j)
    assert errors[0] < 0.01
    assert errors[1] > 0.15


def test_the_self_check_compares_counter_and_power(machine: Machines) -> None:
    found = machine("H100")
    found.fake.set(load=1)
    found.clock.sleep(2)
    meter = nvidia_meter(found.session, found.uuid, found.clock)
    assert isinstance(meter, NvidiaCounterMeter)
    check = meter.self_check()
    assert check.agrees is True
    assert check.ratio == pytest.approx(1.0, abs=0.02)
    found.fake.set(counter_gain=1.75)
    found.fake.reload_driver()
    found.fake.set(load=1)
    found.clock.sleep(2)
    check = meter.self_check()
    assert check.ratio == pytest.approx(1 / 1.75, abs=0.05)


@pytest.mark.parametrize(
    ("gpu", "source", "covers_s"),
    [("P100", "instantaneous power", 0.1), ("RTX", "instantaneous power", 0.1)],
)
def test_instantaneous_power_comes_before_averaged(
    machine: Machines, gpu: str, source: str, covers_s: float
) -> None:
    found = machine(gpu)
    chosen = power_source(Gpu(found.session, found.uuid))
    assert chosen is not None
    assert (chosen.name, chosen.covers_s) == (source, covers_s)


@pytest.mark.parametrize(("gpu", "covers_s"), [("A100-40", 0.1), ("H100", 1.0)])
def test_without_power_fields_the_architecture_says_what_power_means(
    machine: Machines, gpu: str, covers_s: float
) -> None:
    found = machine(gpu)
    found.fake.inject("nvmlDeviceGetFieldValues", 13)
    chosen = power_source(Gpu(found.session, found.uuid))
    assert chosen is not None
    assert chosen.covers_s == covers_s


def test_a_gpu_without_a_counter_is_metered_by_its_power(machine: Machines) -> None:
    found = machine("P100")
    meter = nvidia_meter(found.session, found.uuid, found.clock)
    assert isinstance(meter, NvidiaPowerMeter)
    assert meter.name == "NVML instantaneous power, sampled"
    found.fake.set(load=1)
    found.clock.sleep(1)
    meter.begin()
    true_mj = found.fake.get("energy_mj")
    found.clock.sleep(3)
    window = meter.end()
    assert isinstance(window, EnergyWindow)
    assert window.energy_j == pytest.approx((found.fake.get("energy_mj") - true_mj) / 1e3, rel=0.02)


def test_a_power_window_too_short_is_unavailable(machine: Machines) -> None:
    found = machine("P100")
    meter = nvidia_meter(found.session, found.uuid, found.clock)
    meter.begin()
    found.clock.sleep(0.05)
    assert isinstance(meter.end(), Unavailable)


def test_where_nothing_can_be_read_it_says_so_and_never_zero(machine: Machines) -> None:
    found = machine("Orin")
    meter = nvidia_meter(found.session, found.uuid, found.clock)
    meter.begin()
    found.clock.sleep(1)
    read = meter.end()
    assert isinstance(read, Unavailable)
    assert "neither an energy counter nor a power reading" in read.reason


def test_a_window_is_read_once_and_only_after_it_was_opened(machine: Machines) -> None:
    found = machine("H100")
    meter = nvidia_meter(found.session, found.uuid, found.clock)
    assert isinstance(meter.end(), Unavailable)
    measured(found, meter, 1.0)
    assert isinstance(meter.end(), Unavailable)


def test_a_window_shorter_than_a_refresh_is_unavailable(machine: Machines) -> None:
    found = machine("H100")
    meter = nvidia_meter(found.session, found.uuid, found.clock)
    read, _ = measured(found, meter, 0.05)
    assert isinstance(read, Unavailable)
    assert "shorter than the counter's refresh" in read.reason


def test_a_driver_reload_within_the_window_is_noticed(machine: Machines) -> None:
    found = machine("H100")
    found.clock.sleep(5)
    meter = nvidia_meter(found.session, found.uuid, found.clock)
    meter.begin()
    found.clock.sleep(1)
    found.fake.reload_driver()
    found.clock.sleep(1)
    read = meter.end()
    assert isinstance(read, Unavailable)
    assert "driver was reloaded" in read.reason


def test_a_counter_that_stands_still_is_unavailable(machine: Machines) -> None:
    found = machine("H100")
    found.fake.set(counter_gain=0)
    meter = nvidia_meter(found.session, found.uuid, found.clock)
    read, _ = measured(found, meter, 1.0)
    assert isinstance(read, Unavailable)
    assert "stood still" in read.reason


@pytest.mark.parametrize("when", ["before", "within"])
def test_a_gpu_that_is_lost_ends_the_window_with_a_reason(machine: Machines, when: str) -> None:
    found = machine("H100")
    meter = nvidia_meter(found.session, found.uuid, found.clock)
    if when == "before":
        found.fake.set(lost=1)
    meter.begin()
    found.clock.sleep(0.5)
    found.fake.set(lost=1)
    read = meter.end()
    assert isinstance(read, Unavailable)
    assert "fallen off the bus" in read.reason
    found.fake.set(lost=0)
    window, _ = measured(found, meter, 1.0)
    assert isinstance(window, EnergyWindow)


def test_the_window_s_clock_is_that_under_load(machine: Machines) -> None:
    found = machine("H100")
    controls = nvidia_controls(found.session, found.uuid)
    controls["gpu_freq_mhz"].apply(1200.0)
    controls["mem_freq_mhz"].apply(1593.0)
    meter = nvidia_meter(found.session, found.uuid, found.clock)
    measured(found, meter, 2.0)
    assert meter.watched is not None
    assert (meter.watched.graphics_mhz, meter.watched.memory_mhz) == (1200.0, 1593.0)
    assert meter.watched.evidence == ()


@pytest.mark.parametrize(
    ("heat", "reason"), [(SW_THERMAL, Reason.SW_THERMAL), (HW_THERMAL, Reason.HW_THERMAL)]
)
def test_throttling_is_evidence_against_the_window(machine: Machines, heat: int, reason: Reason) -> None:
    found = machine("H100")
    found.fake.set(heat=heat)
    meter = nvidia_meter(found.session, found.uuid, found.clock)
    measured(found, meter, 2.0)
    assert meter.watched is not None
    evidence = meter.watched.evidence
    assert [(e.reason, e.spoils) for e in evidence] == [(reason, True)]
    assert "temperature" in str(evidence[0])


def test_a_power_limit_that_bites_is_data(machine: Machines) -> None:
    found = machine("H100")
    nvidia_controls(found.session, found.uuid)["power_limit_w"].apply(300.0)
    meter = nvidia_meter(found.session, found.uuid, found.clock)
    measured(found, meter, 2.0)
    assert meter.watched is not None
    assert [(e.reason, e.spoils) for e in meter.watched.evidence] == [(Reason.POWER_CAP, False)]


def test_in_real_time(machine: Machines) -> None:
    found = machine("V100", manual=False)
    meter = nvidia_meter(found.session, found.uuid, RealClock())
    found.fake.set(load=1)
    meter.begin()
    true_mj = found.fake.get("energy_mj")
    RealClock().sleep(0.6)
    true_j = (found.fake.get("energy_mj") - true_mj) / 1e3
    window = meter.end()
    assert isinstance(window, EnergyWindow)
    assert window.energy_j == pytest.approx(true_j, rel=0.06)


def test_a_counter_that_goes_back_while_a_refresh_is_awaited_is_noticed_at_once(machine: Machines) -> None:
    found = machine("H100")
    found.fake.set(load=1)
    found.clock.sleep(3)
    ticks = EnergyTicks(Gpu(found.session, found.uuid), found.clock)
    before = ticks.read()
    assert isinstance(before, Tick)
    found.fake.reload_driver()
    began_s = found.clock.now()
    read = ticks.next_tick(before)
    assert isinstance(read, Unavailable)
    assert "driver was reloaded" in read.reason
    assert found.clock.now() - began_s < 0.1
