"""Where a replay stands on its table: moved by its controls, read by its meter and workload."""

from __future__ import annotations

from polythrottle.configuration import Configuration, Level
from polythrottle_agent.recorded_table import RecordedRow, RecordedTable


class TablePosition:
    """The configuration that is set now. It may have no row: tables have missing cells."""

    def __init__(self, table: RecordedTable, start: Configuration) -> None:
        self.table = table
        self._settings: dict[str, Level] = dict(start.settings)

    def move(self, knob: str, level: Level) -> None:
        self._settings[knob] = level

    def level(self, knob: str) -> Level:
        return self._settings[knob]

    @property
    def configuration(self) -> Configuration:
        return Configuration.of(self._settings)

    @property
    def row(self) -> RecordedRow | None:
        return self.table.rows.get(self.configuration)

    @property
    def no_row(self) -> str:
        """Why nothing can be read here."""
        return f"{self.table.name} has no row for {self.configuration}"
