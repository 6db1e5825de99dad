"""Confirm or revert: a configuration stays only where the SLO was measured as met, or the user says so."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from polythrottle.clock import Clock
from polythrottle.configuration import Configuration
from polythrottle.errors import InvalidInputError
from polythrottle.measurement import Unavailable
from polythrottle.objective import LatencySlo
from polythrottle.profiles import resolve_board
from polythrottle.studies import Aborted, Assignment, Failed, MeasurementPlan, Outcome
from polythrottle.study import DeviceIdentity
from polythrottle.trial import Purpose, Trial
from polythrottle_agent.executor import Executor, StopRequested
from polythrottle_agent.holding import HeldDevice
from polythrottle_agent.ports import Control, ControlError, Device, Safekeeping

ERRORS_BELOW = 2.0
"""Standard errors that the measured latency must lie below the limit."""
MIN_QUERIES = 200
QUERIES_IN_TAIL = 10
ABORT_AT = 2.0
"""Times the limit: a configuration that misses it hopelessly is not served for a whole window."""

WATCH_S = 1.0


@dataclass(frozen=True)
class Bare:
    """A device without meter and workload: it can be set, and nothing can be measured on it."""

    identity: DeviceIdentity
    controls: Mapping[str, Control]
    clock: Clock
    safekeeping: Safekeeping | None


class Verdict(str, Enum):
    """What became of an applied configuration."""

    KEPT = "kept"
    """It outlives the command."""
    HELD = "held"
    """It was held for its time and is back as it was."""
    REVERTED = "reverted"


@dataclass(frozen=True)
class Applied:
    """`reason` says in one sentence what decided; `not_restored` what a revert could not put back."""

    verdict: Verdict
    reason: str
    not_restored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judgement:
    """Whether the SLO was measured as met. None: that could not be measured."""

    met: bool | None
    sentence: str


Confirm = Callable[[str], bool]
"""Asks the user, who is told what was measured. Silence is a no."""


def check_device(tuned: DeviceIdentity, here: DeviceIdentity) -> str | None:
    """Whether what was found on one device may be applied to another.

    Returns:
        A sentence for the user where they are of one kind and not the same; None where they are the same.

    Raises:
        InvalidInputError: another board, whose levels mean other speeds and other watts.
    """
    if _board(tuned.board) != _board(here.board):
        raise InvalidInputError(
            f"This was found on {tuned.label} ({tuned.board}), and here is {here.label} ({here.board}): "
            "a configuration is not applied to another board; tune this one."
        )
    if tuned.provenance is not here.provenance:
        return (
            f"this was found on {tuned.label} ({tuned.provenance.value}), and here is {here.label} "
            f"({here.provenance.value}): what is best there need not be best here"
        )
    if tuned.id != here.id:
        return (
            f"this was found on another device of the same board ({tuned.id}; here is {here.id}): "
            "what is best there need not be best here"
        )
    if tuned.tables_digest not in ("", here.tables_digest):
        return (
            f"the levels that {here.label} takes are others than when this was found: another power mode, "
            "other limits, or another release of its software"
        )
    return None


def _board(name: str) -> str:
    try:
        return resolve_board(name)
    except InvalidInputError:  # a board without a profile has only this name
        return name


def apply_or_revert(
    device: Device | Bare,
    configuration: Configuration,
    slo: LatencySlo | None,
    confirm: Confirm,
    for_s: float | None,
    should_stop: Callable[[], bool],
) -> Applied:
    """Apply, look whether the SLO is met, and keep it or put the device back.

    Args:
        slo: with an absolute limit; None where nobody named one.
        confirm: asked where the SLO was not measured as met.
        for_s: how long to hold the configuration; None: until somebody restores.
        should_stop: ends the trial, or a hold in this process, early; the device is put back.

    Raises:
        PolythrottleError: the device is held by somebody else, or a level is not in its tables.
    """
    held = HeldDevice(device)
    with held:
        try:
            judgement = _measured(device, held, configuration, slo, should_stop)
        except StopRequested:
            return _reverted(held, "Stopped by the user.")
        except ControlError as error:
            return _reverted(held, f"The device refused: {error}.")
        if should_stop():
            return _reverted(held, "Stopped by the user.")
        if judgement.met is not True and not confirm(judgement.sentence):
            return _reverted(held, f"{judgement.sentence} Nobody confirmed it.")
        reason = judgement.sentence if judgement.met else f"{judgement.sentence} The user confirmed it."
        if held.keep(for_s, reason.rstrip(".")):
            return Applied(Verdict.KEPT, reason)
        _hold(device.clock, for_s or 0.0, should_stop)
        problems = held.restore()
    return Applied(Verdict.HELD, reason, tuple(map(str, problems)))


def _reverted(held: HeldDevice, reason: str) -> Applied:
    return Applied(Verdict.REVERTED, reason, tuple(map(str, held.restore())))


def _measured(
    device: Device | Bare,
    held: HeldDevice,
    configuration: Configuration,
    slo: LatencySlo | None,
    should_stop: Callable[[], bool],
) -> Judgement:
    if isinstance(device, Bare) or slo is None:
        held.apply(configuration, "polythrottle apply")
        why = "no SLO was named" if slo is None else "this device has no workload to measure"
        return Judgement(None, f"Whether the SLO is met is not known: {why}.")
    trial = Trial(1, Purpose.CONFIRM, configuration)
    outcome = Executor(device, held, should_stop=should_stop).run(Assignment(trial, _plan(slo)), slo)
    return judge(outcome, slo)


def _plan(slo: LatencySlo) -> MeasurementPlan:
    quantile = slo.quantile
    tail = 0 if quantile is None else math.ceil(QUERIES_IN_TAIL / (1.0 - quantile))
    limit_s = slo.limit_s
    abort_s = None if limit_s is None else ABORT_AT * limit_s
    return MeasurementPlan(min_queries=max(MIN_QUERIES, tail), abort_latency_s=abort_s)


def judge(outcome: Outcome, slo: LatencySlo) -> Judgement:
    """Whether a window meets the SLO with room for its own error."""
    limit_s = slo.limit_s
    if limit_s is None:
        raise ValueError("the SLO must be resolved to seconds")
    if isinstance(outcome, Failed):
        return Judgement(None, f"Whether the SLO is met could not be measured: {outcome.reason}.")
    latency = outcome.measurement.latency
    if isinstance(latency, Unavailable):
        return Judgement(None, f"Whether the SLO is met could not be measured: {latency.reason}.")
    if latency.standard_error_s is None or not latency.bounded:
        return Judgement(None, f"The window is too short to tell whether {slo} is met.")
    value_ms, error_ms = latency.latency_s * 1e3, latency.standard_error_s * 1e3
    text = f"{slo.statistic} is {value_ms:.4g} ± {error_ms:.2g} ms"
    if isinstance(outcome, Aborted):
        return Judgement(False, f"The SLO ({slo}) is missed: {outcome.reason}.")
    if latency.latency_s + ERRORS_BELOW * latency.standard_error_s <= limit_s:
        return Judgement(True, f"The SLO ({slo}) is met: {text}.")
    sure = latency.latency_s - ERRORS_BELOW * latency.standard_error_s > limit_s
    return Judgement(False, f"The SLO ({slo}) is {'missed' if sure else 'not met with certainty'}: {text}.")


def _hold(clock: Clock, for_s: float, should_stop: Callable[[], bool]) -> None:
    ends_s = clock.now() + for_s
    while clock.now() < ends_s and not should_stop():
        clock.sleep(min(WATCH_S, ends_s - clock.now()))
