"""The three families of adapters at the edge: what is written, what is read, who is served.

Every member of a family passes its conformance suite in tests/conformance/.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from polythrottle.clock import Clock
from polythrottle.configuration import Configuration, Level
from polythrottle.measurement import LatencyReading, Provenance, Scope, Unavailable
from polythrottle.studies import MeasurementPlan
from polythrottle.study import DeviceIdentity


class Control(Protocol):
    """Writes one knob. A write that succeeds proves nothing: read `accepted` back."""

    @property
    def knob(self) -> str: ...

    @property
    def levels(self) -> tuple[Level, ...]:
        """Every level this control can take, ascending, categories last."""

    def save(self) -> Mapping[str, str]:
        """The original state, as text that `restore` understands after a restart."""

    def apply(self, level: Level) -> None:
        """Ask for a level.

        Raises:
            InvalidInputError: not one of `levels`.
            ControlError: the device refused.
        """

    def accepted(self) -> Level:
        """What the device says it holds."""

    def observed(self) -> Level:
        """What runs now, under the present load."""

    def restore(self, saved: Mapping[str, str]) -> None:
        """Back to a saved state. Idempotent."""


class ControlError(Exception):
    """The device refused a level, or could not be read."""


Originals = Mapping[str, Mapping[str, str]]
"""The saved state of each control, by knob, as `Control.save` gave it."""


class Safekeeping(Protocol):
    """Where a device's originals outlive the process that is about to change it."""

    def pending(self) -> Originals:
        """What an interrupted run left behind and nobody has put back yet."""

    def take(self, originals: Originals) -> Originals:
        """Make originals safe before the first write.

        Returns the ones that hold: those that were kept before are never replaced.

        Raises:
            PolythrottleError: they cannot be made safe; nothing may be written then.
        """

    def writing(self, event: str, knob: str, old: Level | None, new: Level, reason: str) -> None:
        """Said before each write, and again (`refused`, `not_restored`) when one failed.

        Raises:
            ControlError: the write may not be made.
        """

    def release(self, back: Sequence[str]) -> None:
        """Let go of the device; the originals of these knobs are back."""

    def keep(self, for_s: float | None, reason: str) -> bool:
        """Let the settings outlive this process, for a time or until somebody restores.

        False: that cannot be arranged here for a limited time; the process must stay and restore by itself.

        Raises:
            PolythrottleError: the settings cannot outlive this process.
        """


@dataclass(frozen=True)
class EnergyWindow:
    """What a meter read over one window: total energy, its standard error and the window's length.

    `standard_error_j` is None where a recorded table gives none.
    """

    energy_j: float
    standard_error_j: float | None
    window_s: float


class Meter(Protocol):
    """Reads energy over a window."""

    @property
    def name(self) -> str: ...

    @property
    def scope(self) -> Scope: ...

    @property
    def provenance(self) -> Provenance: ...

    def begin(self) -> None:
        """Open a window."""

    def so_far(self) -> EnergyWindow | Unavailable:
        """What the open window has read until now; it stays open."""

    def end(self) -> EnergyWindow | Unavailable:
        """Close it. Unavailable says why nothing could be read; never 0 J."""


@dataclass(frozen=True)
class Seen:
    """What a witness saw of one window.

    `observed` holds the clocks that ran under load, by knob, for the controls that could be watched. `notes`
    are sentences for the measurement: throttling, and what else was odd.
    """

    observed: Mapping[str, Level]
    notes: tuple[str, ...] = ()


class Witness(Protocol):
    """Watches the device during a window. It only reads, and what it cannot read it leaves out."""

    def begin(self) -> None:
        """Start watching."""

    def end(self) -> Seen:
        """Stop watching. Never raises: evidence that is missing fails no trial."""


@dataclass(frozen=True)
class Lost:
    """Queries that were sent, or due, and not answered well. They count as infinitely late."""

    errors: int = 0
    timeouts: int = 0
    dropped: int = 0
    """Due while no connection was free to send them on."""

    @property
    def total(self) -> int:
        return self.errors + self.timeouts + self.dropped

    def __str__(self) -> str:
        parts = [(self.errors, "failed"), (self.timeouts, "timed out"), (self.dropped, "dropped")]
        return ", ".join(f"{n:,} {what}" for n, what in parts if n) or "none"


@dataclass(frozen=True)
class Served:
    """What a workload saw in one window. `latency` is the SLO's statistic, over lost queries too.

    `n_queries` are the good ones, that energy is divided by. `void_reason` says why the window proves
    nothing: the load itself could not be kept up. `notes` are sentences for the measurement. `rate_per_s` is
    how many queries are due a second in the long run, where a load of that rate was served.
    """

    n_queries: int
    duration_s: float
    latency: LatencyReading | Unavailable
    aborted_reason: str | None = None
    lost: Lost = Lost()
    void_reason: str | None = None
    notes: tuple[str, ...] = ()
    rate_per_s: float | None = None


MayEnd = Callable[[], bool]
"""Asked by a workload that has seen enough queries: whether the window may end, or has to grow."""


class Workload(Protocol):
    """Serves queries on the device, or drives whoever does."""

    @property
    def name(self) -> str: ...

    @property
    def model_version(self) -> str: ...

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Batch sizes it can be set to; empty where it has no such knob."""

    @property
    def default_batch_size(self) -> int: ...

    def check_statistic(self, statistic: str) -> None:
        """
        Raises:
            InvalidInputError: this workload cannot give that statistic; one sentence says what it can.
        """

    def warm_up(self, n_queries: int) -> None: ...

    def serve(self, plan: MeasurementPlan, statistic: str, may_end: MayEnd | None = None) -> Served:
        """Serve one window as the plan says, cut short by its abort rule.

        `may_end` is asked whenever the window has all that the plan wants, and before `max_window_s`.
        """


def stages_of(workload: Workload) -> Mapping[str, Workload]:
    """The stages that a workload can serve alone, by name; empty where it has none to tell apart."""
    return getattr(workload, "stages", {})


@dataclass(frozen=True)
class Device:
    """Everything the executor needs to run trials on one device.

    `stock_note` says in words what the device is like as found; None where that cannot be measured (a
    recorded table). `recorded` names the only configurations that exist, over all controls, for a recorded
    table; None on a device that can take any. `safekeeping` is None where the settings end with this process.
    `witness` is None where nothing can throttle and clocks are known without looking. `notes` are sentences
    that whoever tunes the device should know.
    """

    identity: DeviceIdentity
    controls: Mapping[str, Control]
    meter: Meter
    workload: Workload
    clock: Clock
    stock_note: str | None
    recorded: tuple[Configuration, ...] | None = None
    safekeeping: Safekeeping | None = None
    witness: Witness | None = None
    notes: tuple[str, ...] = ()

    def accepted(self) -> Configuration:
        return Configuration.of({name: control.accepted() for name, control in self.controls.items()})

    def observed(self) -> Configuration:
        return Configuration.of({name: control.observed() for name, control in self.controls.items()})
