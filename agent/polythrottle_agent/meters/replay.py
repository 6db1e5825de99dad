"""The energy of a recorded table: the row's own value, for one query."""

from __future__ import annotations

from polythrottle.measurement import Provenance, Scope, Unavailable
from polythrottle_agent.ports import EnergyWindow
from polythrottle_agent.table_position import TablePosition


class ReplayMeter:
    """Its window is one query, so that the energy per query is the table's to the last digit."""

    name = "recorded table"
    scope = Scope.RECORDED
    provenance = Provenance.AS_RECORDED

    def __init__(self, position: TablePosition) -> None:
        self._position = position
        self._open = False

    def begin(self) -> None:
        self._open = True

    def end(self) -> EnergyWindow | Unavailable:
        window = self.so_far()
        self._open = False
        return window

    def so_far(self) -> EnergyWindow | Unavailable:
        if not self._open:
            return Unavailable("no window was begun")
        row = self._position.row
        if row is None:
            return Unavailable(self._position.no_row)
        return EnergyWindow(row.energy_j, row.energy_error_j, row.recording_s)
