"""One trial on one device: apply, read back, settle, warm up, measure, judge."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import Enum

from polythrottle.configuration import Configuration, Level, format_level
from polythrottle.errors import InvalidInputError, did_you_mean
from polythrottle.measurement import EnergyReading, Measurement, Provenance, Unavailable
from polythrottle.objective import LatencySlo
from polythrottle.studies import Aborted, Assignment, Failed, Measured, MeasurementPlan, Outcome
from polythrottle.trial import STOCK
from polythrottle_agent.holding import HeldDevice
from polythrottle_agent.ports import (
    ControlError,
    Device,
    EnergyWindow,
    MayEnd,
    Seen,
    Served,
    Workload,
    stages_of,
)

CLOCK_TOLERANCE = 0.02
"""A clock this close to the requested one is that clock: counters and dividers round."""

MOST_CHANCE_SD = 3.0
"""Standard deviations of a Poisson count by which the arrivals of a window may differ from their rate."""


class Phase(str, Enum):
    """What the executor is doing, for a progress line."""

    APPLYING = "applying"
    SETTLING = "settling"
    WARMING_UP = "warming up"
    MEASURING = "measuring"


class StopRequested(Exception):
    """The trial was given up, between two phases or in the middle of a window; it has no outcome."""


class Executor:
    """Runs trials.

    `fixed` is applied with every configuration, except with STOCK, which puts everything back as it was
    found. The device is left as the trial set it: `held` restores it.

    `at_once` is entered around what only waits and measures: a KeyboardInterrupt within gives the trial up.
    """

    def __init__(
        self,
        device: Device,
        held: HeldDevice,
        on_phase: Callable[[Phase], None] | None = None,
        *,
        fixed: Mapping[str, Level] | None = None,
        should_stop: Callable[[], bool] | None = None,
        at_once: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._device = device
        self._held = held
        self._on_phase = on_phase
        self._fixed = dict(fixed or {})
        self._should_stop = should_stop
        self._at_once = at_once

    def run(self, assignment: Assignment, slo: LatencySlo) -> Outcome:
        """Run a trial to its outcome.

        A configuration that cannot be set or measured is `Failed` with the reason. A device that accepted
        or ran other levels than requested is measured all the same: the three are kept, and noted.

        Raises:
            InvalidInputError: the workload cannot give the SLO's statistic.
            StopRequested: `should_stop` turned true, or `at_once` raised.
        """
        workload = self._workload(assignment.plan)
        workload.check_statistic(slo.statistic)
        configuration, plan = assignment.trial.configuration, assignment.plan
        started_s = self._device.clock.now()
        windows: list[EnergyWindow | Unavailable] = []
        try:
            with self._metered(windows):
                self._enter(Phase.APPLYING)
                if plan.stage is not None:
                    self._apply(STOCK)  # its knob is all that differs from the device as found
                self._apply(configuration)
                accepted = self._device.accepted()
                self._enter(Phase.SETTLING)
                with self._given_up(Phase.SETTLING):
                    self._device.clock.sleep(plan.settle_s)
                self._enter(Phase.WARMING_UP)
                with self._given_up(Phase.WARMING_UP):
                    workload.warm_up(plan.warmup_queries)
            self._enter(Phase.MEASURING)
            return self._measure(configuration, accepted, plan, slo, started_s, windows)
        except ControlError as error:
            return self._failed(f"{configuration or 'stock'}: {error}", started_s, windows)

    def _workload(self, plan: MeasurementPlan) -> Workload:
        """What is served: the workload, or a stage of it.

        Raises:
            InvalidInputError: the workload has no such stage.
        """
        workload = self._device.workload
        if plan.stage is None:
            return workload
        stages = stages_of(workload)
        if plan.stage not in stages:
            raise InvalidInputError(
                f"Workload {workload.name} has no stage {plan.stage!r}; {did_you_mean(plan.stage, stages)}"
            )
        return stages[plan.stage]

    def _failed(self, reason: str, started_s: float, windows: list[EnergyWindow | Unavailable]) -> Failed:
        """A failed trial costs time and energy too."""
        return Failed(reason, self._device.clock.now() - started_s, self._spent_j(windows))

    def _spent_j(self, windows: list[EnergyWindow | Unavailable]) -> float | None:
        if self._device.meter.provenance is Provenance.AS_RECORDED:
            return None  # what the recording cost is not in the table
        return _total(windows)

    @contextmanager
    def _metered(self, windows: list[EnergyWindow | Unavailable]) -> Iterator[None]:
        """A window around everything before the measurement: what a trial costs is more than its window."""
        self._device.meter.begin()
        try:
            yield
        finally:
            windows.append(self._device.meter.end())

    @contextmanager
    def _given_up(self, phase: Phase) -> Iterator[None]:
        """
        Raises:
            StopRequested: the user wants to stop now.
        """
        try:
            with self._at_once():
                yield
        except KeyboardInterrupt:
            raise StopRequested(phase.value) from None

    def _enter(self, phase: Phase) -> None:
        if self._should_stop is not None and self._should_stop():
            raise StopRequested(phase.value)
        if self._on_phase is not None:
            self._on_phase(phase)

    def _apply(self, configuration: Configuration) -> None:
        if configuration == STOCK:
            problems = self._held.restore()
            if problems:
                raise ControlError("; ".join(str(problem) for problem in problems))
            return
        try:
            self._held.apply({**self._fixed, **configuration})
        except InvalidInputError as error:
            # A level that the control does not take: the tables changed since the space was built.
            raise ControlError(str(error)) from error

    def _measure(
        self,
        configuration: Configuration,
        accepted: Configuration,
        plan: MeasurementPlan,
        slo: LatencySlo,
        started_s: float,
        windows: list[EnergyWindow | Unavailable],
    ) -> Outcome:
        device = self._device
        seen = Seen({})
        if device.witness is not None:
            device.witness.begin()
        device.meter.begin()
        try:
            serve = self._workload(plan).serve
            with self._given_up(Phase.MEASURING):
                served = serve(plan, slo.statistic, self._energy_is_known(plan))
            # Read before anything else: clocks fall as soon as the load is gone.
            observed = device.observed()
        finally:
            window = device.meter.end()
            windows.append(window)
            if device.witness is not None:
                seen = device.witness.end()
        # What ran during the window says more than what runs at its end.
        observed = Configuration.of({name: seen.observed.get(name, now) for name, now in observed.items()})
        duration_s = device.clock.now() - started_s
        requested = {**self._fixed, **configuration} if configuration != STOCK else {}
        total_j = self._spent_j(windows)

        def measurement(energy: EnergyReading | Unavailable) -> Measurement:
            return Measurement(
                requested=configuration,
                accepted=_only(accepted, configuration),
                observed=_only(observed, configuration),
                energy=energy,
                latency=served.latency,
                started_s=started_s,
                duration_s=duration_s,
                total_energy_j=total_j,
                aborted_reason=served.aborted_reason,
                notes=(
                    *_differences("accepted", requested, accepted),
                    *_differences("ran", requested, observed),
                    *served.notes,
                    *((f"queries lost: {served.lost}",) if served.lost.total else ()),
                    *seen.notes,
                ),
            )

        if served.void_reason is not None:
            return self._failed(f"the window is void: {served.void_reason}", started_s, windows)
        if isinstance(served.latency, Unavailable):
            return self._failed(f"no latency: {served.latency.reason}", started_s, windows)
        if served.aborted_reason is not None:
            reason = served.aborted_reason
            return Aborted(measurement(Unavailable(f"the window was cut short: {reason}")), reason)
        energy = self._energy_per_query(window, served)
        if isinstance(energy, Unavailable):
            return self._failed(f"no energy: {energy.reason}", started_s, windows)
        return Measured(measurement(energy))

    def _energy_is_known(self, plan: MeasurementPlan) -> MayEnd | None:
        """Whether the energy's standard error is as small as the plan wants; None where it wants nothing."""
        if plan.precision is None:
            return None
        precision, meter = plan.precision, self._device.meter

        def is_known() -> bool:
            window = meter.so_far()
            if isinstance(window, Unavailable) or window.energy_j <= 0:
                return False
            # A meter that never gives an error cannot be waited for.
            return window.standard_error_j is None or window.standard_error_j <= precision * window.energy_j

        return is_known

    def _energy_per_query(
        self, window: EnergyWindow | Unavailable, served: Served
    ) -> EnergyReading | Unavailable:
        """The window's whole energy, idle time included, over its good queries."""
        if isinstance(window, Unavailable):
            return window
        meter, n = self._device.meter, served.n_queries
        if n < 1:
            return Unavailable("no query was answered well in the window")
        if not math.isfinite(window.energy_j) or window.energy_j <= 0:
            return Unavailable(f"{meter.name} read {window.energy_j:g} J over {window.window_s:g} s")
        n_expected = _expected_queries(served, window.window_s)
        error_j = window.standard_error_j
        return EnergyReading(
            energy_j=window.energy_j / n_expected,
            standard_error_j=None if error_j is None else error_j / n_expected,
            meter=meter.name,
            scope=meter.scope,
            provenance=meter.provenance,
            window_s=window.window_s,
        )


def _expected_queries(served: Served, window_s: float) -> float:
    """Good queries that such a window holds in the long run: what its energy is divided by.

    How many queries happen to arrive in one window scatters, by 7 % of 200 Poisson arrivals, and the energy
    per query would scatter with them; the rate that was asked for does not. Where the count is further from
    it than chance explains, the service fell behind or the load is no steady one: what was answered counts.
    """
    answered = served.n_queries + served.lost.total
    if served.rate_per_s is None or answered < 1:
        return float(served.n_queries)
    due = served.rate_per_s * window_s
    if abs(answered - due) > MOST_CHANCE_SD * math.sqrt(due):
        return float(served.n_queries)
    return due * served.n_queries / answered


def _total(windows: Sequence[EnergyWindow | Unavailable]) -> float | None:
    """J over all windows; None where one could not be read, or read what cannot be."""
    known = [window.energy_j for window in windows if not isinstance(window, Unavailable)]
    if len(known) < len(windows) or any(not math.isfinite(j) or j < 0 for j in known):
        return None
    return sum(known)


def _only(levels: Configuration, configuration: Configuration) -> Configuration:
    """The levels of the trial's own knobs; of all knobs for STOCK."""
    if configuration == STOCK:
        return levels
    return Configuration.of({name: levels[name] for name in configuration})


def _differences(verb: str, requested: Mapping[str, Level], got: Configuration) -> list[str]:
    return [
        f"{name}: requested {format_level(level)}, {verb} {format_level(got[name])}"
        for name, level in requested.items()
        if not _same(level, got[name])
    ]


def _same(requested: Level, got: Level) -> bool:
    if isinstance(requested, str) or isinstance(got, str):
        # Under a governor's own choice (`unlocked`) any clock is what was asked for.
        return isinstance(requested, str)
    return math.isclose(requested, got, rel_tol=CLOCK_TOLERANCE)
