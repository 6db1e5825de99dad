"""A small table and scripted strategies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from polythrottle.benchmarking.strategies import Move
from polythrottle.benchmarking.task import THREE_KNOB, Task
from polythrottle.configuration import Configuration, Knob, SearchSpace
from polythrottle.optimizer.problem import Observation


def small_task(name: str = "board/model") -> Task:
    """GPU clock 1–5 × memory clock 1–2. Latency 10 / (gpu · mem) s, energy gpu + mem J; anchor (5, 2)."""
    space = SearchSpace(
        (Knob.of("gpu_freq_mhz", [1, 2, 3, 4, 5]), Knob.of("mem_freq_mhz", [1, 2])),
    )
    levels = [(gpu, mem) for gpu in (1, 2, 3, 4, 5) for mem in (1, 2)]
    return Task(
        name=name,
        family=THREE_KNOB,
        source="test",
        emulated=True,
        space=space,
        anchor=Configuration.of({"gpu_freq_mhz": 5.0, "mem_freq_mhz": 2.0}),
        latency_s=tuple(10.0 / (gpu * mem) for gpu, mem in levels),
        energy_j=tuple(float(gpu + mem) for gpu, mem in levels),
    )


@dataclass
class ScriptedPlayer:
    """Measures these cells in turn and recommends the first of `prefers` that was measured."""

    task: Task
    cells: Sequence[int]
    prefers: Sequence[int]
    stops_at: int | None = None

    def ask(self, observations: Sequence[Observation]) -> Move:
        count = len(observations)
        return Move(
            cell=self.cells[count] if count < len(self.cells) else None,
            ranking=self.final(observations),
            stop_rule="scripted" if self.stops_at is not None and count >= self.stops_at else None,
        )

    def final(self, observations: Sequence[Observation]) -> tuple[int, ...]:
        measured = {self.task.cells[entry.configuration] for entry in observations}
        return tuple(cell for cell in self.prefers if cell in measured)
