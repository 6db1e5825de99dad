"""A scripted device: what it accepts, runs, reads and refuses is set by the test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest

from polythrottle.clock import VirtualClock
from polythrottle.configuration import Level
from polythrottle.errors import InvalidInputError
from polythrottle.measurement import LatencyReading, Provenance, Scope, Unavailable
from polythrottle.studies import MeasurementPlan
from polythrottle.study import DeviceIdentity
from polythrottle_agent.ports import ControlError, Device, EnergyWindow, MayEnd, Served


class ScriptedControl:
    """Holds one number. `refuses` maps a level to the error it gives; `rounds` to what is accepted."""

    def __init__(self, knob: str, levels: tuple[Level, ...], journal: list[str]) -> None:
        self.knob = knob
        self.levels = levels
        self.value: Level = levels[-1]
        self.refuses: dict[Level, Exception] = {}
        self.rounds: dict[Level, Level] = {}
        self.runs_at: Level | None = None
        self.restore_errors: list[Exception] = []
        self.journal = journal

    def save(self) -> Mapping[str, str]:
        return {"value": str(self.value)}

    def apply(self, level: Level) -> None:
        self.journal.append(f"{self.knob}={level}")
        if level in self.refuses:
            raise self.refuses[level]
        self.value = self.rounds.get(level, level)

    def accepted(self) -> Level:
        return self.value

    def observed(self) -> Level:
        return self.value if self.runs_at is None else self.runs_at

    def restore(self, saved: Mapping[str, str]) -> None:
        self.journal.append(f"{self.knob}<-{saved['value']}")
        if self.restore_errors:
            raise self.restore_errors.pop(0)
        self.value = next(level for level in self.levels if str(level) == saved["value"])


@dataclass
class ScriptedMeter:
    window: EnergyWindow | Unavailable = field(default_factory=lambda: EnergyWindow(50.0, 0.5, 2.0))
    provenance: Provenance = Provenance.EMULATED
    name: str = "scripted meter"
    scope: Scope = Scope.BOARD
    is_open: bool = False

    def begin(self) -> None:
        self.is_open = True

    def so_far(self) -> EnergyWindow | Unavailable:
        return self.window

    def end(self) -> EnergyWindow | Unavailable:
        self.is_open = False
        return self.window


def reading(latency_s: float = 0.02) -> LatencyReading:
    return LatencyReading(latency_s, 0.001, "p99", 100, True, Provenance.EMULATED)


@dataclass
class ScriptedWorkload:
    clock: VirtualClock
    served: Served = field(default_factory=lambda: Served(100, 2.0, reading()))
    during: Callable[[], None] | None = None
    warmed_up: list[int] = field(default_factory=list)
    name: str = "scripted workload"
    model_version: str = "1"
    batch_sizes: tuple[int, ...] = ()
    default_batch_size: int = 1

    def check_statistic(self, statistic: str) -> None:
        if statistic != "p99":
            raise InvalidInputError(f"Only p99, not {statistic}.")

    def warm_up(self, n_queries: int) -> None:
        self.warmed_up.append(n_queries)

    def serve(self, plan: MeasurementPlan, statistic: str, may_end: MayEnd | None = None) -> Served:  # noqa: ARG002
        if self.during is not None:
            self.during()
        self.clock.sleep(self.served.duration_s)
        return self.served


@dataclass
class Scripted:
    device: Device
    controls: dict[str, ScriptedControl]
    meter: ScriptedMeter
    workload: ScriptedWorkload
    clock: VirtualClock
    journal: list[str]


@pytest.fixture
def scripted() -> Scripted:
    journal: list[str] = []
    levels = {
        "gpu_min_freq_mhz": (100.0, 500.0, 900.0),
        "gpu_freq_mhz": (100.0, 500.0, 900.0),
        "mem_freq_mhz": (400.0, 800.0, "unlocked"),
    }
    controls = {knob: ScriptedControl(knob, values, journal) for knob, values in levels.items()}
    clock = VirtualClock()
    meter, workload = ScriptedMeter(), ScriptedWorkload(clock)
    identity = DeviceIdentity("scripted:1", "scripted", "scripted board", Provenance.EMULATED, "0" * 64)
    device = Device(identity, controls, meter, workload, clock, "as found")
    return Scripted(device, controls, meter, workload, clock, journal)


@pytest.fixture
def refusal() -> ControlError:
    return ControlError("device or resource busy")
