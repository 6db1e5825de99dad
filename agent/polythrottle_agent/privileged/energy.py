"""Energy counters that only root may read, for clients of the helper.

The kernel closed RAPL to users because power read finely enough gives away what other programs compute
(CVE-2020-8694). So the helper reads the counters at most every `REFRESH_S`, whoever asks how often, and says
so: to a client the counters tick that slowly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from polythrottle.clock import Clock
from polythrottle.measurement import Provenance
from polythrottle_agent.meters.power import Counter, CounterMeter
from polythrottle_agent.meters.rapl import meter_of
from polythrottle_agent.ports import ControlError
from polythrottle_agent.privileged.client import HelperClient, HelperError, HelperRefusal
from polythrottle_agent.privileged.protocol import Code, Message

REFRESH_S = 0.05


class CounterShelf:
    """The helper's side: its counters, read at most every `REFRESH_S`."""

    def __init__(self, counters: Sequence[Counter], clock: Clock) -> None:
        self._counters = tuple(counters)
        self._clock = clock
        self._read_s: float | None = None
        self._joules: tuple[float, ...] = ()

    def describe(self) -> list[Message]:
        """Name, reading, range, step and tick of each.

        Raises:
            ControlError: one cannot be read.
        """
        now_s = self._clock.now()
        if self._read_s is None or now_s - self._read_s >= REFRESH_S:
            self._joules = tuple(counter.read_j() for counter in self._counters)
            self._read_s = now_s
        return [
            {
                "name": counter.name,
                "energy_j": joules,
                "range_j": counter.range_j,
                "step_j": counter.step_j,
                "tick_s": max(counter.tick_s, REFRESH_S),
            }
            for counter, joules in zip(self._counters, self._joules, strict=True)
        ]


def helper_meter(client: HelperClient, clock: Clock, provenance: Provenance) -> CounterMeter | None:
    """A meter over the helper's counters; None where it has none, or is of a release without them.

    Raises:
        ControlError: they cannot be read.
    """
    try:
        described = client.request("counters")["counters"]
    except HelperRefusal as refusal:
        if refusal.code is Code.UNKNOWN_VERB:
            return None
        raise ControlError(str(refusal)) from refusal
    except HelperError as error:
        raise ControlError(str(error)) from error
    counters = [
        Counter(
            str(one["name"]),
            _reader(client, str(one["name"])),
            None if one["range_j"] is None else float(one["range_j"]),
            float(one["step_j"]),
            float(one["tick_s"]),
        )
        for one in described
    ]
    return meter_of(counters, clock, provenance) if counters else None


def _reader(client: HelperClient, name: str) -> Callable[[], float]:
    def read_j() -> float:
        try:
            described = client.request("counters")["counters"]
        except HelperError as error:
            raise ControlError(str(error)) from error
        for one in described:
            if one["name"] == name:
                return float(one["energy_j"])
        raise ControlError(f"the helper has no counter {name} any more")

    return read_j
