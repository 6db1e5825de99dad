"""Why a GPU's clock is what it is: clock event reasons, and which of them spoil a measurement.

Bits of nvmlDeviceGetCurrentClocksEventReasons (nvml.h, API 13). The hardware slowdown bit also shows around
any change of clock, so that a single sighting, or one just after our own write, is no evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag

SETTLED_AFTER_S = 0.5
"""Sightings of a hardware slowdown sooner after the window began than this come from our own change."""

FEWEST_SIGHTINGS = 2
"""Consecutive samples that a reason must be seen in."""


class Reason(IntFlag):
    """One bit each."""

    IDLE = 0x1
    APPLICATION_CLOCKS = 0x2
    POWER_CAP = 0x4
    HW_SLOWDOWN = 0x8
    SYNC_BOOST = 0x10
    SW_THERMAL = 0x20
    HW_THERMAL = 0x40
    POWER_BRAKE = 0x80
    DISPLAY_CLOCKS = 0x100


SPOILING = {
    Reason.HW_SLOWDOWN: "the hardware slowed it down",
    Reason.SW_THERMAL: "the driver slowed it down because of its temperature",
    Reason.HW_THERMAL: "the hardware slowed it down because of its temperature",
    Reason.POWER_BRAKE: "the power supply's brake slowed it down",
}
"""What makes a window say nothing about the clock that was asked for."""

EXPECTED = {Reason.POWER_CAP: "the power limit held the clock down"}
"""What is data: with a low power limit it is what was asked for."""


@dataclass(frozen=True)
class ReasonSample:
    """The reasons at one moment, in seconds since the window began."""

    at_s: float
    reasons: int


@dataclass(frozen=True)
class ClockEvidence:
    """One reason that was seen, and in which share of the samples. `spoils`: it was not asked for."""

    reason: Reason
    share: float
    spoils: bool

    def __str__(self) -> str:
        words = SPOILING.get(self.reason) or EXPECTED[self.reason]
        return f"GPU: {words} in {self.share:.0%} of the samples"


def judged(samples: Sequence[ReasonSample]) -> tuple[ClockEvidence, ...]:
    """What a window's samples prove, the spoiling ones first."""
    found = []
    for reason in (*SPOILING, *EXPECTED):
        seen = [bool(sample.reasons & reason) and _counts(reason, sample) for sample in samples]
        if _longest_run(seen) >= FEWEST_SIGHTINGS:
            found.append(ClockEvidence(reason, sum(seen) / len(seen), reason in SPOILING))
    specific = [e for e in found if e.reason is not Reason.HW_SLOWDOWN and e.reason in SPOILING]
    # HW_SLOWDOWN is set together with its cause; alone it is all that is known.
    return tuple(e for e in found if e.reason is not Reason.HW_SLOWDOWN or not specific)


def _counts(reason: Reason, sample: ReasonSample) -> bool:
    return reason is not Reason.HW_SLOWDOWN or sample.at_s >= SETTLED_AFTER_S


def _longest_run(seen: Sequence[bool]) -> int:
    longest = run = 0
    for one in seen:
        run = run + 1 if one else 0
        longest = max(longest, run)
    return longest
