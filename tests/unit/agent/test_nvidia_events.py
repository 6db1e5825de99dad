"""Which clock event reasons count as evidence."""

from __future__ import annotations

import pytest

from polythrottle_agent.nvml.events import Reason, ReasonSample, judged


def samples(*reasons: int) -> list[ReasonSample]:
    """Ten a second."""
    return [ReasonSample(0.1 * i, mask) for i, mask in enumerate(reasons)]


def seen(*reasons: int) -> list[Reason]:
    return [evidence.reason for evidence in judged(samples(*reasons))]


def test_idle_and_application_clocks_are_no_evidence() -> None:
    assert seen(*[Reason.IDLE | Reason.APPLICATION_CLOCKS] * 20) == []


def test_the_slowdown_just_after_a_change_is_ours() -> None:
    assert seen(8, 8, 8, 8, 8, 0, 0, 0, 0, 0) == []


def test_one_sighting_is_chance_and_two_in_a_row_are_not() -> None:
    assert seen(*[0] * 10, 8, 0, 8, *[0] * 10) == []
    assert seen(*[0] * 10, 8, 8, *[0] * 10) == [Reason.HW_SLOWDOWN]


def test_the_cause_takes_the_place_of_the_slowdown_that_is_set_with_it() -> None:
    assert seen(*[0x48] * 20) == [Reason.HW_THERMAL]
    assert seen(*[0x88] * 20) == [Reason.POWER_BRAKE]


def test_a_power_cap_is_data_and_heat_spoils() -> None:
    found = judged(samples(*[0x24] * 10, *[0] * 10))
    assert [(e.reason, e.spoils, e.share) for e in found] == [
        (Reason.SW_THERMAL, True, 0.5),
        (Reason.POWER_CAP, False, 0.5),
    ]


@pytest.mark.parametrize(
    "mask", [Reason.HW_SLOWDOWN, Reason.SW_THERMAL, Reason.HW_THERMAL, Reason.POWER_BRAKE]
)
def test_evidence_reads_as_a_sentence(mask: Reason) -> None:
    (evidence,) = judged(samples(*[int(mask)] * 30))
    assert str(evidence).startswith("GPU: ")
    assert "%" in str(evidence)


def test_nothing_seen_proves_nothing() -> None:
    assert judged([]) == ()
