"""A knob of a recorded table: setting it chooses the row."""

from __future__ import annotations

from collections.abc import Mapping

from polythrottle.configuration import Knob, Level, format_level
from polythrottle.errors import InvalidInputError
from polythrottle_agent.ports import ControlError
from polythrottle_agent.table_position import TablePosition


class ReplayControl:
    """One knob column. What is requested is always accepted and observed."""

    def __init__(self, knob: Knob, position: TablePosition) -> None:
        self._knob = knob
        self._position = position

    @property
    def knob(self) -> str:
        return self._knob.name

    @property
    def levels(self) -> tuple[Level, ...]:
        return self._knob.levels

    def save(self) -> Mapping[str, str]:
        level = self.accepted()
        # repr, not format_level: the text must give back the very same number.
        return {self.knob: level if isinstance(level, str) else repr(level)}

    def apply(self, level: Level) -> None:
        if level not in self.levels:
            raise InvalidInputError(f"The table has no {self.knob} of {format_level(level)}.")
        self._position.move(self.knob, level)

    def accepted(self) -> Level:
        return self._position.level(self.knob)

    def observed(self) -> Level:
        return self._position.level(self.knob)

    def restore(self, saved: Mapping[str, str]) -> None:
        text = saved.get(self.knob)
        for level in self.levels:
            if text == (level if isinstance(level, str) else repr(level)):
                self._position.move(self.knob, level)
                return
        raise ControlError(f"the saved state of {self.knob} is {text!r}, which the table does not have")
