"""The meter of an emulated board: its energy counter, read at both ends of a window."""

from __future__ import annotations

from polythrottle.measurement import Provenance, Scope, Unavailable
from polythrottle_agent.emulation.board import EmulatedBoard
from polythrottle_agent.ports import EnergyWindow


class EmulatedMeter:
    """Energy of the whole emulated module.

    The standard error is what windows of one configuration scatter by, outliers included: a counter
    cannot see by itself whether something else ran.
    """

    def __init__(self, board: EmulatedBoard) -> None:
        self._board = board
        self._begin: tuple[float, float] | None = None

    @property
    def name(self) -> str:
        return "emulated module energy counter"

    @property
    def scope(self) -> Scope:
        return Scope.MODULE

    @property
    def provenance(self) -> Provenance:
        return Provenance.EMULATED

    def begin(self) -> None:
        self._begin = self._board.clock.now(), self._board.energy_counter_j()

    def end(self) -> EnergyWindow | Unavailable:
        window = self.so_far()
        self._begin = None
        return window

    def so_far(self) -> EnergyWindow | Unavailable:
        if self._begin is None:
            return Unavailable("the meter's window was never opened")
        began_s, began_j = self._begin
        window_s = self._board.clock.now() - began_s
        if window_s <= 0:
            return Unavailable("the meter's window has no length")
        energy_j = self._board.energy_counter_j() - began_j
        return EnergyWindow(energy_j, self._board.energy_scatter * energy_j, window_s)
