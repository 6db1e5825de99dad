from __future__ import annotations

import pytest

from polythrottle.clock import VirtualClock
from polythrottle.measurement import Provenance, Scope, Unavailable
from polythrottle_agent.meters.self_check import compare
from polythrottle_agent.ports import EnergyWindow


class Fixed:
    scope = Scope.MODULE
    provenance = Provenance.MEASURED

    def __init__(self, name: str, watts: float | str, error: float | None = 0.0) -> None:
        self.name = name
        self._watts = watts
        self._error = error
        self.opened = 0

    def begin(self) -> None:
        self.opened += 1

    def so_far(self) -> EnergyWindow | Unavailable:
        return self.end()

    def end(self) -> EnergyWindow | Unavailable:
        if isinstance(self._watts, str):
            return Unavailable(self._watts)
        error = None if self._error is None else self._error * self._watts * 10.0
        return EnergyWindow(self._watts * 10.0, error, 10.0)


@pytest.mark.parametrize(
    ("counter_w", "polled_w", "error", "agrees"),
    [
        (100.0, 101.0, 0.0, True),
        (100.0, 104.9, 0.0, True),
        (100.0, 106.0, 0.0, False),
        (100.0, 106.0, 0.005, True),
        (37.4, 65.4, 0.01, False),
    ],
)
def test_two_meters_agree_within_tolerance_and_their_errors(
    counter_w: float, polled_w: float, error: float, agrees: bool
) -> None:
    clock = VirtualClock()
    found = compare(Fixed("counter", counter_w), Fixed("power", polled_w, error), clock)
    assert found.agrees is agrees
    assert found.ratio == pytest.approx(polled_w / counter_w)
    assert ("do not agree" in found.note) is not agrees
    assert clock.now() == 10.0


def test_a_meter_that_reads_nothing_is_not_compared() -> None:
    for counter, polled in (
        (Fixed("counter", "gone"), Fixed("power", 5.0)),
        (Fixed("counter", 5.0), Fixed("power", "gone")),
    ):
        found = compare(counter, polled, VirtualClock())
        assert found.agrees is None
        assert found.ratio is None
        assert "gone" in found.note


def test_a_counter_that_stands_still_does_not_agree() -> None:
    found = compare(Fixed("counter", 0.0), Fixed("power", 5.0, None), VirtualClock())
    assert found.agrees is False
    assert "counted nothing" in found.note
