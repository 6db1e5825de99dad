"""Emulated boards, calibrated to the PolyThrottle paper. Every number from here is emulated."""

from __future__ import annotations

from polythrottle.clock import Clock
from polythrottle_agent.emulation.boards import BOARDS
from polythrottle_agent.emulation.calibration import DEFAULT_WORKLOAD, WORKLOADS
from polythrottle_agent.load.options import Load
from polythrottle_agent.ports import Device

__all__ = ["BOARDS", "DEFAULT_WORKLOAD", "WORKLOADS", "open_emulated"]


def open_emulated(
    board: str, workload: str | None, clock: Clock, seed: int, load: Load | None = None
) -> Device:
    """See `polythrottle_agent.emulation.device.open_emulated`."""
    # Not at the top: that module imports the adapters, and they import this package's board.
    from polythrottle_agent.emulation.device import open_emulated

    return open_emulated(board, workload, clock, seed, load=load)
