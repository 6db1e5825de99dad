"""A search on live traffic, tied together: its rules, the canary, and who keeps the rules between trials.

Top floor, like `polythrottle.api`, whose loop uses it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from polythrottle.clock import MachineWallClock, VirtualClock, WallClockOver
from polythrottle.configuration import SearchSpace
from polythrottle.errors import InvalidInputError
from polythrottle.study import Strategy, Study
from polythrottle.traffic import LiveOptions, LiveTraffic, nearest_in
from polythrottle.traffic_gate import VIOLATIONS, TrafficGate, is_violation
from polythrottle_agent.canary import CommandSplit, with_canary
from polythrottle_agent.holding import HeldDevice
from polythrottle_agent.ports import Device
from polythrottle_server.studies import EmbeddedStudies

if TYPE_CHECKING:
    from polythrottle.api import Stopping

log = logging.getLogger(__name__)

PREDICT = (Strategy.INFORMED, Strategy.FLAT)
"""Strategies that say of a trial, before it, how likely it is to miss the SLO."""


def rules_for(
    options: LiveOptions | None, strategy: Strategy, device: Device, space: SearchSpace
) -> LiveTraffic | None:
    """The rules of a study on live traffic, with what the device holds now as their start; None without.

    Raises:
        InvalidInputError: this search cannot be kept off what may miss the SLO, or a number makes no sense.
    """
    if options is None:
        return None
    if strategy not in PREDICT:
        raise InvalidInputError(
            f"Strategy {strategy.value} tries what it likes, so it is not for live traffic; use informed or "
            "flat."
        )
    if device.recorded is not None:
        raise InvalidInputError("A recorded table has no live traffic; leave the options for it out.")
    return options.starting_from(nearest_in(space, device.accepted()))


@contextmanager
def with_canary_of(options: LiveOptions | None, device: Device) -> Iterator[Device]:
    """The device; its workload on a share of the traffic first, where the user has a program for that.

    Raises:
        InvalidInputError: the command cannot be read.
        ControlError: the traffic cannot be split.
    """
    if options is None or options.canary_share is None or options.canary_command is None:
        yield device
        return
    split = CommandSplit(options.canary_command)
    with with_canary(device.workload, split, options.canary_share) as workload:
        yield replace(device, workload=workload)


def gate_of(
    rules: LiveTraffic | None,
    studies: EmbeddedStudies,
    study: Study,
    device: Device,
    held: HeldDevice,
    stopping: Stopping,
    on_wait: Callable[[str], None] | None,
) -> TrafficGate | None:
    """Who keeps the rules of live traffic between trials; None where there are none.

    Args:
        rules: of this run; a study that is resumed may have begun under others.
    """
    if rules is None:
        return None
    machine = MachineWallClock()
    is_virtual = isinstance(device.clock, VirtualClock)
    missed = {trial.number for trial in study.trials if is_violation(trial)}
    moves = studies.history(study.id)
    return TrafficGate(
        rules,
        device.clock,
        WallClockOver(device.clock, machine.now()) if is_virtual else machine,
        lambda: _put_back(held),
        on_wait or (lambda _: None),
        lambda: stopping.after_trial or stopping.now,
        [datetime.fromisoformat(m.at) for m in moves if m.number in missed and m.to_state in VIOLATIONS],
    )


def _put_back(held: HeldDevice) -> None:
    """What cannot be put back is tried again by whoever keeps the originals; the log says what it is."""
    for problem in held.restore():
        log.error("%s", problem)
