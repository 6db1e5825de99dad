"""What a guard can be doing, the only legal moves between that, and why it acts."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class GuardState(str, Enum):
    WATCHING = "watching"
    """The guarded configuration is in force and nothing is wrong."""
    SUSPICIOUS = "suspicious"
    """Something is over its limit, and not for sure or not for long."""
    FALLING_BACK = "falling_back"
    """The last known good configuration is being written; tried again until it is."""
    COOLING_DOWN = "cooling_down"
    """It is in force. Nothing leads back yet."""
    FALLEN_BACK = "fallen_back"
    """It stays in force until a new configuration comes, or until the cause has passed."""
    RETURNING = "returning"
    """The cause has passed: the guarded configuration is being written again."""
    STOPPED = "stopped"


_S = GuardState

TRANSITIONS: Mapping[GuardState, frozenset[GuardState]] = {
    _S.WATCHING: frozenset({_S.SUSPICIOUS, _S.FALLING_BACK, _S.STOPPED}),
    _S.SUSPICIOUS: frozenset({_S.WATCHING, _S.FALLING_BACK, _S.STOPPED}),
    _S.FALLING_BACK: frozenset({_S.COOLING_DOWN, _S.STOPPED}),
    _S.COOLING_DOWN: frozenset({_S.FALLEN_BACK, _S.FALLING_BACK, _S.STOPPED}),
    _S.FALLEN_BACK: frozenset({_S.FALLING_BACK, _S.RETURNING, _S.STOPPED}),
    _S.RETURNING: frozenset({_S.WATCHING, _S.FALLING_BACK, _S.STOPPED}),
    _S.STOPPED: frozenset(),
}
"""The only legal moves. A state with none is final."""


class IllegalMoveError(Exception):
    """A guard was asked to make a move that the table does not hold."""


class Cause(str, Enum):
    """Why a guard falls back, or asks for another search."""

    LATENCY = "latency"
    """The SLO is missed."""
    BLIND = "blind"
    """Latency cannot be seen any more."""
    TEMPERATURE = "temperature"
    THROTTLING = "throttling"
    RATE_ABOVE = "rate_above"
    """More queries arrive than the configuration was chosen for."""
    RATE_BELOW = "rate_below"
    LATENCY_SHIFT = "latency_shift"
    """The same configuration has become slower or faster, within the SLO."""


FALLS_BACK = (Cause.LATENCY, Cause.BLIND, Cause.TEMPERATURE, Cause.THROTTLING, Cause.RATE_ABOVE)
"""The others are no danger to the SLO: they only ask for another search. In order of gravity."""

PASSES = frozenset({Cause.BLIND, Cause.TEMPERATURE, Cause.THROTTLING, Cause.RATE_ABOVE})
"""Causes that lie outside the configuration, after which it may return. One that missed the SLO may not."""

GOES_FURTHER = frozenset({Cause.LATENCY})
"""Causes that lead from one known good configuration to the next: another clock cools no board at once."""
