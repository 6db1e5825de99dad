from __future__ import annotations

from pathlib import Path

import pytest

from polythrottle.clock import VirtualClock
from polythrottle.configuration import Configuration
from polythrottle.errors import InvalidInputError
from polythrottle.measurement import EnergyReading, LatencyReading, Provenance, Scope, Unavailable
from polythrottle.objective import LatencySlo
from polythrottle.studies import Assignment, Failed, Measured, MeasurementPlan
from polythrottle.trial import Purpose, Trial
from polythrottle_agent.executor import Executor
from polythrottle_agent.holding import HeldDevice
from polythrottle_agent.ports import Device
from polythrottle_agent.replay import open_replay

PLAN = MeasurementPlan()
VALUES = {(b, p): (3.7 * b + 700.1 / p, 0.3 * b / 7 + p / 900) for b in (8, 16, 32) for p in (100, 175, 250)}


def table(directory: Path, *, without: tuple[tuple[int, int], ...] = (), extra: str = "") -> Path:
    lines = [
        "device,workload,batch_size,power_limit_w,latency_ms,latency_p95_ms,energy_j,n_repeats,latency_std"
    ]
    lines += [
        f"gpu,net,{b},{p},{latency!r},{1.1 * latency!r},{energy!r},4,0.5{extra}"
        for (b, p), (latency, energy) in VALUES.items()
        if (b, p) not in without
    ]
    path = directory / "recorded.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def run(device: Device, settings: dict[str, float], statistic: str = "recorded") -> object:
    trial = Trial(1, Purpose.SEARCH, Configuration.of(settings))
    with HeldDevice(device) as held:
        return Executor(device, held).run(Assignment(trial, PLAN), LatencySlo(statistic, limit_s=1.0))


def test_every_row_comes_back_exactly_and_labelled_as_recorded(tmp_path: Path) -> None:
    device = open_replay(table(tmp_path), None, VirtualClock())
    for (batch, cap), (latency_ms, energy_j) in VALUES.items():
        outcome = run(device, {"batch_size": float(batch), "power_limit_w": float(cap)})
        assert isinstance(outcome, Measured)
        energy, latency = outcome.measurement.energy, outcome.measurement.latency
        assert isinstance(energy, EnergyReading)
        assert isinstance(latency, LatencyReading)
        assert energy.energy_j == energy_j
        assert latency.latency_s == latency_ms / 1e3
        assert energy.provenance is latency.provenance is Provenance.AS_RECORDED
        assert energy.scope is Scope.RECORDED
        assert energy.standard_error_j is None
        assert latency.standard_error_s == 0.25e-3
        assert outcome.measurement.total_energy_j is None
        assert outcome.measurement.notes == ()


def test_a_percentile_is_the_table_s_own(tmp_path: Path) -> None:
    device = open_replay(table(tmp_path), None, VirtualClock())
    outcome = run(device, {"batch_size": 8.0, "power_limit_w": 100.0}, "p95")
    assert isinstance(outcome, Measured)
    latency = outcome.measurement.latency
    assert isinstance(latency, LatencyReading)
    assert latency.latency_s == 1.1 * VALUES[8, 100][0] / 1e3
    assert latency.statistic == "p95"
    # latency_std is the spread of latency_ms; nothing is known about the percentile's.
    assert latency.standard_error_s is None


@pytest.mark.parametrize("statistic", ["p99", "p50", "mean"])
def test_a_percentile_that_the_table_lacks_is_refused_in_one_sentence(tmp_path: Path, statistic: str) -> None:
    device = open_replay(table(tmp_path), None, VirtualClock())
    wanted = (
        f"recorded.csv holds no {statistic} latency, only recorded (latency_ms) and p95: "
        "write for example --latency-slo 'recorded<50ms' or 'recorded<1.2x'."
    )
    with pytest.raises(InvalidInputError) as error:
        device.workload.check_statistic(statistic)
    assert str(error.value) == wanted
    with pytest.raises(InvalidInputError, match="holds no"):
        run(device, {"batch_size": 8.0, "power_limit_w": 100.0}, statistic)


def test_it_stands_at_max_clocks_and_the_middle_batch(tmp_path: Path) -> None:
    device = open_replay(table(tmp_path), None, VirtualClock())
    assert dict(device.accepted()) == {"batch_size": 16.0, "power_limit_w": 250.0}
    assert device.workload.default_batch_size == 16
    assert device.workload.batch_sizes == (8, 16, 32)
    assert device.stock_note is None


def test_the_default_batch_may_be_given(tmp_path: Path) -> None:
    assert open_replay(table(tmp_path), None, VirtualClock(), 8).workload.default_batch_size == 8
    with pytest.raises(InvalidInputError, match="batch_size has no level 9; the nearest are 8 and 16"):
        open_replay(table(tmp_path), None, VirtualClock(), 9)


def test_a_default_batch_without_a_batch_column_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "clocks.csv"
    path.write_text("gpu_freq_mhz,latency_ms,energy_j\n300,1,1\n", encoding="utf-8")
    with pytest.raises(InvalidInputError, match="no column batch_size"):
        open_replay(path, None, VirtualClock(), 8)


def test_a_missing_cell_fails_the_trial_and_invents_nothing(tmp_path: Path) -> None:
    device = open_replay(table(tmp_path, without=((32, 100),)), None, VirtualClock())
    assert device.recorded is not None
    assert len(device.recorded) == 8
    outcome = run(device, {"batch_size": 32.0, "power_limit_w": 100.0})
    assert isinstance(outcome, Failed)
    assert outcome.reason == "no latency: recorded.csv has no row for batch 32 · cap 100 W"
    assert outcome.total_energy_j is None
    device.controls["batch_size"].apply(32.0)
    device.controls["power_limit_w"].apply(100.0)
    device.meter.begin()
    assert isinstance(device.meter.end(), Unavailable)


def test_time_passes_as_the_recording_took(tmp_path: Path) -> None:
    clock = VirtualClock()
    device = open_replay(table(tmp_path), None, clock)
    outcome = run(device, {"batch_size": 8.0, "power_limit_w": 100.0})
    assert isinstance(outcome, Measured)
    settle_s = 1.0
    assert outcome.measurement.duration_s == pytest.approx(settle_s + 4 * VALUES[8, 100][0] / 1e3)


def test_an_edited_table_is_another_device_and_model(tmp_path: Path) -> None:
    before = open_replay(table(tmp_path), None, VirtualClock())
    path = table(tmp_path)
    path.write_text(
        path.read_text(encoding="utf-8").replace("gpu,net,8,100,", "gpu,net,8,100,1"), encoding="utf-8"
    )
    after = open_replay(path, None, VirtualClock())
    assert before.identity.id != after.identity.id
    assert before.workload.model_version != after.workload.model_version
    assert before.identity.tables_digest == after.identity.tables_digest
