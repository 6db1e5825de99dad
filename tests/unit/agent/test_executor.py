from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from polythrottle.configuration import Configuration, Level
from polythrottle.errors import InvalidInputError
from polythrottle.measurement import (
    EnergyReading,
    LatencyReading,
    Measurement,
    Provenance,
    Scope,
    Unavailable,
)
from polythrottle.objective import LatencySlo
from polythrottle.studies import Aborted, Assignment, Failed, Measured, MeasurementPlan, Outcome
from polythrottle.trial import STOCK, Purpose, Trial
from polythrottle_agent.executor import Executor, Phase, StopRequested
from polythrottle_agent.holding import HeldDevice
from polythrottle_agent.ports import ControlError, EnergyWindow, Lost, Seen, Served

if TYPE_CHECKING:
    from tests.unit.agent.conftest import Scripted

SLO = LatencySlo("p99", limit_s=0.05)
PLAN = MeasurementPlan(settle_s=1.5, warmup_queries=7)
LATENCY = LatencyReading(0.02, 0.001, "p99", 100, True, Provenance.EMULATED)


@pytest.fixture
def held(scripted: Scripted) -> Iterator[HeldDevice]:
    with HeldDevice(scripted.device) as holding:
        yield holding


def assignment(settings: dict[str, Level]) -> Assignment:
    return Assignment(Trial(1, Purpose.SEARCH, Configuration.of(settings)), PLAN)


def run(scripted: Scripted, held: HeldDevice, settings: dict[str, Level], **fixed: Level) -> Outcome:
    return Executor(scripted.device, held, fixed=fixed).run(assignment(settings), SLO)


def measured(outcome: Outcome) -> Measurement:
    assert isinstance(outcome, Measured), outcome
    return outcome.measurement


def failure(outcome: Outcome) -> str:
    assert isinstance(outcome, Failed), outcome
    return outcome.reason


def test_a_trial_is_applied_settled_warmed_up_and_measured(scripted: Scripted, held: HeldDevice) -> None:
    phases: list[Phase] = []
    executor = Executor(scripted.device, held, phases.append)
    measurement = measured(executor.run(assignment({"gpu_freq_mhz": 500.0, "mem_freq_mhz": 800.0}), SLO))
    assert phases == list(Phase)
    assert scripted.journal == ["gpu_freq_mhz=500.0", "mem_freq_mhz=800.0"]
    assert scripted.workload.warmed_up == [7]
    # The whole trial: 1.5 s to settle, then the window of 2 s.
    assert (measurement.started_s, measurement.duration_s) == (0.0, 3.5)
    assert dict(measurement.requested) == dict(measurement.accepted) == dict(measurement.observed)
    assert measurement.notes == ()
    # The meter's script says 50 J for each of the two windows: before the measurement, and it.
    assert measurement.total_energy_j == 100.0


@pytest.mark.parametrize(
    ("answered", "lost", "rate_per_s", "expected"),
    [
        (90, 0, 50.0, 100.0),  # 10 fewer than the rate brings in 2 s: chance
        (110, 0, 50.0, 100.0),
        (45, 45, 50.0, 50.0),  # half of what comes is lost, whatever came
        (60, 0, 50.0, 60.0),  # 4 standard deviations fewer: the service fell behind
        (150, 0, 50.0, 150.0),
        (90, 0, None, 90.0),
    ],
)
def test_energy_is_per_query_that_the_rate_brings_in_the_long_run(
    scripted: Scripted,
    held: HeldDevice,
    answered: int,
    lost: int,
    rate_per_s: float | None,
    expected: float,
) -> None:
    scripted.workload.served = Served(answered, 2.0, LATENCY, lost=Lost(errors=lost), rate_per_s=rate_per_s)
    scripted.meter.window = EnergyWindow(50.0, 2.0, 2.0)
    energy = measured(run(scripted, held, {"gpu_freq_mhz": 500.0})).energy
    assert isinstance(energy, EnergyReading)
    assert energy.energy_j == pytest.approx(50.0 / expected)
    assert energy.standard_error_j == pytest.approx(2.0 / expected)


def test_energy_per_query_is_the_window_s_energy_over_its_queries(
    scripted: Scripted, held: HeldDevice
) -> None:
    energy = measured(run(scripted, held, {"mem_freq_mhz": 400.0})).energy
    assert energy == EnergyReading(0.5, 0.005, "scripted meter", Scope.BOARD, Provenance.EMULATED, 2.0)


def test_an_error_that_is_not_known_stays_unknown(scripted: Scripted, held: HeldDevice) -> None:
    scripted.meter.window = EnergyWindow(50.0, None, 2.0)
    energy = measured(run(scripted, held, {"mem_freq_mhz": 400.0})).energy
    assert isinstance(energy, EnergyReading)
    assert energy.standard_error_j is None


def test_fixed_levels_are_applied_with_every_configuration(scripted: Scripted, held: HeldDevice) -> None:
    measurement = measured(run(scripted, held, {"gpu_freq_mhz": 500.0}, mem_freq_mhz=400.0))
    assert scripted.controls["mem_freq_mhz"].value == 400.0
    assert set(measurement.requested) == set(measurement.accepted) == {"gpu_freq_mhz"}


def test_stock_is_the_device_as_it_was_found(scripted: Scripted, held: HeldDevice) -> None:
    executor = Executor(scripted.device, held, fixed={"mem_freq_mhz": 400.0})
    measured(executor.run(assignment({"gpu_freq_mhz": 100.0}), SLO))
    measurement = measured(executor.run(Assignment(Trial(2, Purpose.BASELINE, STOCK), PLAN), SLO))
    assert measurement.requested == STOCK
    assert dict(measurement.accepted) == {
        "gpu_min_freq_mhz": 900.0,
        "gpu_freq_mhz": 900.0,
        "mem_freq_mhz": "unlocked",
    }


def test_stock_that_cannot_be_brought_back_is_failed(
    scripted: Scripted, held: HeldDevice, refusal: ControlError
) -> None:
    scripted.controls["mem_freq_mhz"].restore_errors = [refusal, refusal]
    outcome = run(scripted, held, {})
    assert isinstance(outcome, Failed)
    assert outcome.reason.startswith("stock: mem_freq_mhz was not restored")


def test_a_level_that_was_rounded_is_measured_and_noted(scripted: Scripted, held: HeldDevice) -> None:
    scripted.controls["mem_freq_mhz"].rounds[400.0] = 800.0
    measurement = measured(run(scripted, held, {"mem_freq_mhz": 400.0}))
    assert dict(measurement.requested) == {"mem_freq_mhz": 400.0}
    assert dict(measurement.accepted) == dict(measurement.observed) == {"mem_freq_mhz": 800.0}
    assert measurement.notes == (
        "mem_freq_mhz: requested 400, accepted 800",
        "mem_freq_mhz: requested 400, ran 800",
    )


def test_a_throttled_clock_is_measured_as_it_ran(scripted: Scripted, held: HeldDevice) -> None:
    scripted.controls["gpu_freq_mhz"].runs_at = 714.0
    measurement = measured(run(scripted, held, {"gpu_freq_mhz": 900.0}))
    assert dict(measurement.accepted) == {"gpu_freq_mhz": 900.0}
    assert dict(measurement.observed) == {"gpu_freq_mhz": 714.0}
    assert measurement.notes == ("gpu_freq_mhz: requested 900, ran 714",)


def test_a_clock_within_two_percent_is_the_requested_one(scripted: Scripted, held: HeldDevice) -> None:
    scripted.controls["gpu_freq_mhz"].runs_at = 893.0
    assert measured(run(scripted, held, {"gpu_freq_mhz": 900.0})).notes == ()


def test_unlocked_runs_at_whatever_it_runs_at(scripted: Scripted, held: HeldDevice) -> None:
    scripted.controls["mem_freq_mhz"].runs_at = 800.0
    assert measured(run(scripted, held, {"mem_freq_mhz": "unlocked"})).notes == ()


def test_observed_is_read_while_the_window_is_open(scripted: Scripted, held: HeldDevice) -> None:
    open_when_read: list[bool] = []
    control = scripted.controls["gpu_freq_mhz"]
    observed = control.observed

    def spy() -> Level:
        open_when_read.append(scripted.meter.is_open)
        return observed()

    control.observed = spy  # type: ignore[method-assign]
    run(scripted, held, {"gpu_freq_mhz": 500.0})
    assert open_when_read == [True]


def test_a_refused_level_fails_the_trial_with_the_reason(
    scripted: Scripted, held: HeldDevice, refusal: ControlError
) -> None:
    scripted.controls["gpu_freq_mhz"].refuses[100.0] = refusal
    outcome = run(scripted, held, {"gpu_freq_mhz": 100.0})
    assert failure(outcome) == "GPU 100 MHz: gpu_freq_mhz = 100: device or resource busy"
    assert scripted.workload.warmed_up == []


def test_a_level_that_is_no_longer_there_fails_the_trial(scripted: Scripted, held: HeldDevice) -> None:
    scripted.controls["gpu_freq_mhz"].refuses[100.0] = InvalidInputError("No level 100.")
    assert failure(run(scripted, held, {"gpu_freq_mhz": 100.0})) == "GPU 100 MHz: No level 100."


@pytest.mark.parametrize(
    ("window", "reason"),
    [
        (Unavailable("the rail is off"), "no energy: the rail is off"),
        (EnergyWindow(0.0, 0.0, 2.0), "no energy: scripted meter read 0 J over 2 s"),
        (EnergyWindow(-0.4, 0.1, 2.0), "no energy: scripted meter read -0.4 J over 2 s"),
        (EnergyWindow(float("nan"), 0.1, 2.0), "no energy: scripted meter read nan J over 2 s"),
    ],
)
def test_energy_that_could_not_be_read_is_never_zero(
    scripted: Scripted, held: HeldDevice, window: EnergyWindow | Unavailable, reason: str
) -> None:
    scripted.meter.window = window
    outcome = run(scripted, held, {"gpu_freq_mhz": 500.0})
    assert failure(outcome) == reason
    assert isinstance(outcome, Failed)
    assert outcome.duration_s > 0
    assert outcome.total_energy_j is None or outcome.total_energy_j >= 0


def test_a_window_without_queries_or_latency_fails(scripted: Scripted, held: HeldDevice) -> None:
    scripted.workload.served = Served(0, 2.0, LATENCY)
    assert failure(run(scripted, held, {})) == "no energy: no query was answered well in the window"
    scripted.workload.served = Served(0, 2.0, Unavailable("the server is down"))
    assert failure(run(scripted, held, {})) == "no latency: the server is down"


def test_a_failed_trial_tells_what_it_cost(scripted: Scripted, held: HeldDevice) -> None:
    good = measured(run(scripted, held, {"gpu_freq_mhz": 500.0}))
    scripted.workload.served = Served(0, 2.0, Unavailable("the server is down"))
    outcome = run(scripted, held, {"gpu_freq_mhz": 500.0})
    assert isinstance(outcome, Failed)
    assert outcome.duration_s == good.duration_s > 0
    assert outcome.total_energy_j == good.total_energy_j > 0


def test_a_window_cut_short_keeps_its_latency_and_has_no_energy(scripted: Scripted, held: HeldDevice) -> None:
    scripted.workload.served = Served(50, 1.0, LATENCY, "p99 80 ms after 50 queries")
    outcome = run(scripted, held, {"gpu_freq_mhz": 100.0})
    assert isinstance(outcome, Aborted)
    assert outcome.reason == outcome.measurement.aborted_reason == "p99 80 ms after 50 queries"
    assert outcome.measurement.latency == LATENCY
    assert isinstance(outcome.measurement.energy, Unavailable)
    assert outcome.measurement.total_energy_j == 100.0


def test_a_recorded_table_does_not_say_what_its_recording_cost(scripted: Scripted, held: HeldDevice) -> None:
    scripted.meter.provenance = Provenance.AS_RECORDED
    assert measured(run(scripted, held, {})).total_energy_j is None


def test_a_statistic_that_the_workload_lacks_is_refused_before_any_write(
    scripted: Scripted, held: HeldDevice
) -> None:
    with pytest.raises(InvalidInputError, match="Only p99"):
        Executor(scripted.device, held).run(
            assignment({"gpu_freq_mhz": 100.0}), LatencySlo("p95", limit_s=1.0)
        )
    assert scripted.journal == []


@pytest.mark.parametrize("phases_before", range(len(Phase)))
def test_a_stop_request_ends_the_trial_between_phases(
    scripted: Scripted, held: HeldDevice, phases_before: int
) -> None:
    calls = itertools.count()
    executor = Executor(scripted.device, held, should_stop=lambda: next(calls) >= phases_before)
    with pytest.raises(StopRequested, match=list(Phase)[phases_before].value):
        executor.run(assignment({"gpu_freq_mhz": 100.0}), SLO)
    assert not scripted.meter.is_open


@pytest.mark.parametrize(
    ("error", "seen"), [(KeyboardInterrupt, StopRequested), (RuntimeError, RuntimeError)]
)
def test_an_interrupted_window_is_closed(
    scripted: Scripted, held: HeldDevice, error: type[BaseException], seen: type[BaseException]
) -> None:
    def interrupt() -> None:
        raise error

    scripted.workload.during = interrupt
    with pytest.raises(seen):
        run(scripted, held, {"gpu_freq_mhz": 100.0})
    assert not scripted.meter.is_open


def test_a_control_that_fails_under_load_fails_the_trial(
    scripted: Scripted, held: HeldDevice, refusal: ControlError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Level:
        raise refusal

    monkeypatch.setattr(scripted.controls["gpu_freq_mhz"], "observed", fail)
    outcome = run(scripted, held, {"gpu_freq_mhz": 500.0})
    assert failure(outcome) == "GPU 500 MHz: device or resource busy"
    assert not scripted.meter.is_open


class ScriptedWitness:
    """Saw what the test says, and notes when it was asked."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        self.calls: list[str] = []

    def begin(self) -> None:
        self.calls.append("begin")

    def end(self) -> Seen:
        self.calls.append("end")
        return self.seen


def test_what_ran_during_the_window_goes_before_what_runs_at_its_end(
    scripted: Scripted, held: HeldDevice
) -> None:
    witness = ScriptedWitness(
        Seen({"gpu_freq_mhz": 500.0, "cpu_freq_mhz": 1.0}, ("throttled: the board is hot",))
    )
    device = dataclasses.replace(scripted.device, witness=witness)
    scripted.controls["gpu_freq_mhz"].runs_at = 100.0
    outcome = Executor(device, held).run(assignment({"gpu_freq_mhz": 900.0}), SLO)
    measurement = measured(outcome)
    assert measurement.observed == Configuration.of({"gpu_freq_mhz": 500.0})
    assert measurement.notes == (
        "gpu_freq_mhz: requested 900, ran 500",
        "throttled: the board is hot",
    )
    assert witness.calls == ["begin", "end"]


def test_the_witness_stops_watching_where_the_workload_fails(scripted: Scripted, held: HeldDevice) -> None:
    witness = ScriptedWitness(Seen({}))
    device = dataclasses.replace(scripted.device, witness=witness)

    def fail() -> None:
        raise ControlError("gone")

    scripted.workload.during = fail
    assert isinstance(Executor(device, held).run(assignment({"gpu_freq_mhz": 900.0}), SLO), Failed)
    assert witness.calls == ["begin", "end"]
