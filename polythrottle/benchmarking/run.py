"""One run of one strategy on one black box: what it measured, what it recommended, what that is worth."""

from __future__ import annotations

import math
import resource
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from polythrottle.benchmarking.strategies import BrokenInvariantError, Entrant, Player
from polythrottle.benchmarking.task import BlackBox, Condition, Goal, Reading, Task, observation
from polythrottle.optimizer.problem import Observation

BUDGET = 20
CONFIRM_REPEATS = 2
CONFIRM_ROUNDS = 3


def cpu_ms() -> float:
    """CPU time of this process so far, all threads, in ms."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return (usage.ru_utime + usage.ru_stime) * 1e3


@dataclass(frozen=True)
class RunKey:
    """What a run is. Two equal keys would play the same run, so one is enough."""

    task: str
    task_digest: str
    slo_factor: float
    condition: str
    strategy: str
    seed: int
    budget: int
    code: str

    def __str__(self) -> str:
        return "|".join(str(value) for value in asdict(self).values())


@dataclass(frozen=True)
class Row:
    """One finished run. All figures are of the truth, not of the readings.

    regrets[k - 1]: regret of the recommendation after k evaluations, as a share. to_5, to_2: evaluations
    until a feasible configuration within 5 % (2 %) of the optimum was measured, budget + 1 where none was.
    final_*: the recommendation after confirmation; final_excess is its latency over the SLO, relative.
    stop_at: evaluations when the stopping rule first fired (the budget where it did not). CPU times in ms.
    """

    key: str
    task: str
    family: str
    emulated: bool
    slo_factor: float
    condition: str
    strategy: str
    seed: int
    budget: int
    cells: list[int]
    regrets: list[float]
    to_5: int
    to_2: int
    violations: int
    final_cell: int
    final_excess: float
    final_regret: float
    stop_at: int
    stop_rule: str | None
    stop_regret: float
    setup_ms: float
    suggest_ms: list[float]


def _first_within(goal: Goal, cells: Sequence[int], margin: float, budget: int) -> int:
    for count, cell in enumerate(cells, start=1):
        if goal.within(cell, margin):
            return count
    return budget + 1


def _observations(task: Task, windows: dict[int, list[Reading]]) -> list[Observation]:
    return [observation(task, cell, readings) for cell, readings in windows.items()]


def confirmed(goal: Goal, box: BlackBox, player: Player, windows: dict[int, list[Reading]]) -> int:
    """The cell to install, confirmed in rounds as a study does it.

    Winner and runner-up are measured twice more beside the anchor; then whoever leads without having been
    confirmed, at most twice. Where nothing is safe enough in the end a study gives no answer; here the
    likeliest counts, so that giving none cannot help.
    """
    anchor = goal.task.anchor_cell
    settled = {anchor}
    for round_ in range(CONFIRM_ROUNDS):
        leaders = player.final(_observations(goal.task, windows))[: 1 if round_ else 2]
        contenders = [cell for cell in leaders if cell not in settled]
        if not contenders:
            break
        for cell in (anchor, *contenders):
            windows.setdefault(cell, []).extend(box.measure(cell) for _ in range(CONFIRM_REPEATS))
        settled.update(contenders)
    return player.final(_observations(goal.task, windows))[0]


def play(
    task: Task, slo_factor: float, condition: Condition, entrant: Entrant, seed: int, key: str, budget: int
) -> Row:
    """Play one run to the end of its budget.

    Raises:
        BrokenInvariantError: the strategy answered what it must never answer.
    """
    table = task.without_cells(condition.missing_share, seed) if condition.missing_share else task
    box_task = table
    if entrant.renames:
        table = table.renamed(entrant.renames)
    goal = Goal(table, slo_factor)
    box = BlackBox(box_task, condition, seed)
    started = cpu_ms()
    player = entrant.player(goal, seed)
    setup_ms = cpu_ms() - started

    windows: dict[int, list[Reading]] = {}
    cells: list[int] = []
    regrets: list[float] = []
    suggest_ms: list[float] = []
    stop_at, stop_rule = None, None
    for count in range(budget + 1):
        observations = _observations(table, windows)
        started = cpu_ms()
        move = player.ask(observations)
        suggest_ms.append(round(cpu_ms() - started, 2))
        if count:
            if not move.ranking or move.ranking[0] not in windows:
                raise BrokenInvariantError("recommended a configuration that was not measured")
            regrets.append(goal.regret(move.ranking[0]))
            if stop_at is None and move.stop_rule is not None:
                stop_at, stop_rule = count, move.stop_rule
        if move.cell is None or count == budget:
            break
        if move.cell in windows:
            raise BrokenInvariantError(f"proposed cell {move.cell} a second time")
        windows[move.cell] = box.trial(move.cell)
        cells.append(move.cell)
    if not cells:
        raise BrokenInvariantError("proposed nothing to measure")
    regrets += [regrets[-1]] * (budget - len(regrets))
    stopped = stop_at if stop_at is not None else len(cells)
    final = confirmed(goal, box, player, windows)
    row = Row(
        key=key,
        task=task.name,
        family=task.family,
        emulated=task.emulated,
        slo_factor=slo_factor,
        condition=condition.name,
        strategy=entrant.name,
        seed=seed,
        budget=budget,
        cells=cells,
        regrets=[round(regret, 6) for regret in regrets],
        to_5=_first_within(goal, cells, 0.05, budget),
        to_2=_first_within(goal, cells, 0.02, budget),
        violations=sum(goal.violates(cell) for cell in cells),
        final_cell=final,
        final_excess=goal.excess(final),
        final_regret=goal.regret(final),
        stop_at=stopped,
        stop_rule=stop_rule,
        stop_regret=regrets[stopped - 1],
        setup_ms=round(setup_ms, 1),
        suggest_ms=suggest_ms,
    )
    if not all(math.isfinite(value) for value in (*row.regrets, row.final_excess, row.final_regret)):
        raise BrokenInvariantError("a figure of the run is not finite")
    return row
