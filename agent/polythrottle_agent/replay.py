"""A recorded table as a device: it returns the table's own values, labelled `as recorded`."""

from __future__ import annotations

from pathlib import Path

from polythrottle.clock import Clock
from polythrottle.configuration import Configuration, Level
from polythrottle.errors import InvalidInputError
from polythrottle.measurement import Provenance
from polythrottle.profiles import tables_digest
from polythrottle.spaces import BATCH, middle_level
from polythrottle.study import DeviceIdentity
from polythrottle_agent.controls.replay import ReplayControl
from polythrottle_agent.meters.replay import ReplayMeter
from polythrottle_agent.ports import Device
from polythrottle_agent.recorded_table import RecordedTable, read_table
from polythrottle_agent.table_position import TablePosition
from polythrottle_agent.workloads.replay import ReplayWorkload


def open_replay(
    path: str | Path, workload: str | None, clock: Clock, batch_default: int | None = None
) -> Device:
    """Replay one device and workload of a table.

    Args:
        path: the CSV file; docs/tables.md describes it.
        workload: which of the table's workloads (or `DEVICE:WORKLOAD`); None where it holds one.
        clock: moved on by what the recording must have taken; give a virtual one.
        batch_default: the batch size served today; None for the middle one.

    Raises:
        InvalidInputError: the table cannot be used; file, line and column are named.
    """
    table = read_table(Path(path), workload)
    start = _start(table, batch_default)
    position = TablePosition(table, start)
    batch = table.knob(BATCH)
    sizes = () if batch is None else tuple(int(batch.number(level)) for level in batch.levels)
    identity = DeviceIdentity(
        id=f"replay:{table.digest[:16]}",
        board=table.device,
        label=f"{table.device}, replayed from {table.name}",
        provenance=Provenance.AS_RECORDED,
        tables_digest=tables_digest({knob.name: knob.levels for knob in table.knobs}),
    )
    return Device(
        identity=identity,
        controls={knob.name: ReplayControl(knob, position) for knob in table.knobs},
        meter=ReplayMeter(position),
        workload=ReplayWorkload(position, clock, sizes, int(start[BATCH]) if sizes else 1),
        clock=clock,
        stock_note=None,
        recorded=tuple(table.rows),
    )


def _start(table: RecordedTable, batch_default: int | None) -> Configuration:
    """Where the replay stands before anything is set: highest levels, the default batch."""
    settings: dict[str, Level] = {knob.name: knob.highest_number for knob in table.knobs}
    batch = table.knob(BATCH)
    if batch is not None:
        settings[BATCH] = (
            middle_level(batch.levels) if batch_default is None else batch.match(str(batch_default))
        )
    elif batch_default is not None:
        raise InvalidInputError(f"{table.name} has no column {BATCH}; leave the default batch out.")
    return Configuration.of(settings)
