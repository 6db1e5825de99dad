from __future__ import annotations

import pytest

from polythrottle.clock import RealClock
from polythrottle.measurement import Provenance, Scope, Unavailable
from polythrottle.studies import MeasurementPlan
from polythrottle_agent.emulation.machine import Options
from polythrottle_agent.emulation.mount import MountedBoard
from polythrottle_agent.emulation.surroundings import Environment
from polythrottle_agent.ports import EnergyWindow, Meter, Seen
from polythrottle_agent.workloads.emulated_remote import RemoteEmulatedWorkload
from tests.integration.hardware.conftest import Mount, look

PLAN = MeasurementPlan(min_queries=20, min_window_s=2.5, max_window_s=2.6)


def window(board: MountedBoard, meter: Meter) -> tuple[EnergyWindow | Unavailable, float]:
    """What the meter read, and what the board's own counter says was drawn."""
    workload = RemoteEmulatedWorkload(board.root, RealClock())
    workload.warm_up(20)
    before_j = board.machine.energy_j()
    meter.begin()
    workload.serve(PLAN, "mean")
    read = meter.end()
    return read, board.machine.energy_j() - before_j


@pytest.mark.parametrize(
    ("board", "kernel"),
    [("tx2", "4.9"), ("xavier-nx", "5.10"), ("orin-nano-8gb", "5.15"), ("agx-thor", "6.8")],
)
def test_the_meter_reads_what_the_board_drew(mount: Mount, board: str, kernel: str) -> None:
    mounted = mount(board, kernel=kernel, workload="efficientnet-b4")
    (meter,) = look(mounted).meters
    assert (meter.scope, meter.provenance) == (Scope.MODULE, Provenance.EMULATED)
    read, truth_j = window(mounted, meter)
    assert isinstance(read, EnergyWindow), read
    # Thor's sensor has an offset, and every sensor its steps.
    assert read.energy_j == pytest.approx(truth_j, rel=0.06)
    assert read.standard_error_j is not None
    assert 0 < read.standard_error_j < 0.1 * read.energy_j


def test_a_sum_of_rails_is_what_the_rails_carry(mount: Mount) -> None:
    mounted = mount("agx-orin", kernel="5.15", workload="efficientnet-b4")
    (meter,) = look(mounted).meters
    assert "sum of VDD_GPU_SOC (1-0040) + VDD_CPU_CV" in meter.name
    read, truth_j = window(mounted, meter)
    assert isinstance(read, EnergyWindow), read
    # Rails behind regulators: less than the board's input, by no more than they lose.
    assert 0.7 * truth_j < read.energy_j < 1.02 * truth_j


@pytest.mark.parametrize("fault", ["EIO", "EAGAIN", "ETIMEDOUT", "ENODATA", "garbage"])
def test_a_sensor_that_fails_is_unavailable_and_never_zero(mount: Mount, fault: str) -> None:
    board = mount("orin-nano-8gb")
    found = look(board)
    (meter,) = found.meters
    sensor = next(board.root.glob("sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon*/curr1_input"))
    board.inject(f"/{sensor.relative_to(board.root)}", fault)
    read, _ = window(board, meter)
    assert isinstance(read, Unavailable)
    assert "readings failed" in read.reason


def test_a_sensor_that_fails_now_and_then_is_read_all_the_same(mount: Mount) -> None:
    from polythrottle_agent.emulation.faults import Fault

    board = mount("orin-nano-8gb", workload="efficientnet-b4")
    (meter,) = look(board).meters
    sensor = next(board.root.glob("sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon*/curr1_input"))
    from dataclasses import replace

    board.inject(f"/{sensor.relative_to(board.root)}", replace(Fault.named("EAGAIN"), times=3))
    read, truth_j = window(board, meter)
    assert isinstance(read, EnergyWindow), read
    assert read.energy_j == pytest.approx(truth_j, rel=0.06)


def test_hwmon_numbers_that_change_with_each_boot_do_not_matter(mount: Mount) -> None:
    names = set()
    for seed in range(4):
        (meter,) = look(mount("agx-orin", seed=seed)).meters
        names.add(meter.name)
    assert len(names) == 1


def seen(board: MountedBoard) -> Seen:
    found = look(board)
    workload = RemoteEmulatedWorkload(board.root, RealClock())
    found.witness.begin()
    workload.serve(PLAN, "mean")
    return found.witness.end()


def test_clocks_are_observed_while_the_board_works(mount: Mount) -> None:
    board = mount("orin-nano-8gb", workload="efficientnet-b4")
    look(board).controls["gpu_freq_mhz"].apply(612.0)
    look(board).controls["cpu_freq_mhz"].apply(729.6)
    found = seen(board)
    assert found.observed["gpu_freq_mhz"] == 612.0
    assert found.observed["cpu_freq_mhz"] == pytest.approx(729.6, rel=0.01)
    assert found.notes == ()


def test_a_hot_board_is_said_to_be_throttled(mount: Mount) -> None:
    board = mount("orin-nano-8gb", workload="efficientnet-b4")
    look(board).controls["gpu_freq_mhz"].apply(918.0)
    board.machine.heat(105.0, ambient_c=105.0)
    notes = " | ".join(seen(board).notes)
    assert "hot: " in notes
    assert "at or above 99 °C" in notes
    assert "cooling at work: devfreq-17000000.gpu" in notes
    assert "the GPU limit fell from" in notes


def test_over_current_is_counted(mount: Mount) -> None:
    board = mount(
        "orin-nano-8gb",
        workload="efficientnet-b4",
        options=Options(environment=Environment(overcurrent_w=5.0)),
    )
    notes = " | ".join(seen(board).notes)
    assert "instantaneous over-current events" in notes
