"""What every control must do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from polythrottle.configuration import Knob
from polythrottle.errors import InvalidInputError
from polythrottle_agent.executor import CLOCK_TOLERANCE
from polythrottle_agent.ports import ControlError

if TYPE_CHECKING:
    from tests.conformance.conftest import ControlCase


def test_it_is_listed_under_its_own_name(control_case: ControlCase) -> None:
    assert control_case.device.controls[control_case.control.knob] is control_case.control


def test_its_levels_make_a_knob(control_case: ControlCase) -> None:
    control = control_case.control
    assert Knob(control.knob, control.levels).levels == control.levels
    assert all(isinstance(level, (float, str)) for level in control.levels)


def test_each_level_is_accepted_when_asked_for(control_case: ControlCase) -> None:
    control = control_case.control
    for level in (*control.levels, *reversed(control.levels)):
        control.apply(level)
        assert control.accepted() == level
        control.apply(level)
        assert control.accepted() == level


def test_what_runs_lies_within_the_levels(control_case: ControlCase) -> None:
    control = control_case.control
    knob = Knob(control.knob, control.levels)
    lowest = min(knob.number(level) for level in control.levels)
    for level in control.levels:
        control.apply(level)
        observed = knob.number(control.observed())
        # A clock that is measured is off by what counters and dividers round.
        assert lowest * (1 - CLOCK_TOLERANCE) <= observed <= knob.highest_number * (1 + CLOCK_TOLERANCE)


@pytest.mark.parametrize("level", [-1.0, 12345678.9, "no such level"])
def test_a_level_it_does_not_have_is_refused_and_changes_nothing(
    control_case: ControlCase, level: float | str
) -> None:
    control = control_case.control
    before = control.save()
    with pytest.raises(InvalidInputError, match=control.knob):
        control.apply(level)
    assert control.save() == before


def test_restore_brings_back_what_was_saved(control_case: ControlCase) -> None:
    control = control_case.control
    original = control.save()
    for level in control.levels:
        control.apply(level)
        control.restore(original)
        assert control.save() == original


def test_restore_is_idempotent(control_case: ControlCase) -> None:
    control = control_case.control
    original = control.save()
    control.apply(control.levels[0])
    control.restore(original)
    control.restore(original)
    assert control.save() == original


def test_a_saved_state_is_text_that_another_process_understands(control_case: ControlCase) -> None:
    # Opened before anything is written: a device does not count CPUs that were off when it was opened.
    control, again = control_case.control, control_case.reopen()
    control.apply(control.levels[0])
    saved = control.save()
    assert all(isinstance(key, str) and isinstance(value, str) for key, value in saved.items())
    again.apply(again.levels[-1])
    again.restore(saved)
    assert again.save() == saved
    assert again.accepted() == control.levels[0]


def test_saving_does_not_follow_later_writes(control_case: ControlCase) -> None:
    control = control_case.control
    control.apply(control.levels[0])
    saved = control.save()
    copy = dict(saved)
    control.apply(control.levels[-1])
    assert saved == copy


def test_a_saved_state_of_something_else_is_refused(control_case: ControlCase) -> None:
    with pytest.raises(ControlError):
        control_case.control.restore({"something else": "1"})
