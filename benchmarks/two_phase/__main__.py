"""`python -m benchmarks.two_phase`: QUICK=1 takes a sample. Exit code 1: a claim of docs/two-phase.md fails.

Two parts. Without noise: what the best split costs against the joint optimum, by size of the CPU stage, model
and SLO. With noise: what real searches find, split and joint, by the paper's strategy and by the default one.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from dataclasses import dataclass
from itertools import product

from benchmarks.two_phase.landscape import EQUAL, Landscape, mean
from benchmarks.two_phase.searches import JOINT_TRIALS, SPLIT_TRIALS, Found, Laboratory
from polythrottle.study import Strategy

FACTORS = (1.1, 1.2, 1.5, 2.0, 10.0)
SIZES = (0.25, 1.0, 4.0, 16.0)
RULES: tuple[float | str, ...] = (EQUAL, 0.25, 0.5, 0.75, 1.0)
USED = 0.5
"""The rule of `polythrottle_server.two_phase`."""

SMALL_SHARE = 0.1
LOOSE, TIGHT = 1.5, 1.2
RIGHT_WITHIN = 0.02
"""Loss up to which a split is called right."""
WINS_BY = 0.02
"""Mean loss of the split from which the joint search is said to win."""

FOUND_WITHIN, FOUND_BY = 0.025, 0.01
"""The same for what searches find, which scatters by a percent or two."""


@dataclass(frozen=True)
class Claim:
    """A sentence of the docs, its figure, and whether the figure bears it out."""

    text: str
    figure: str
    holds: bool


def landscapes(quick: bool) -> list[Landscape]:
    boards = ["agx-orin"] if quick else ["agx-orin", "tx2"]
    models = ["efficientnet-b0", "efficientnet-b4", "efficientnet-b7"]
    return [Landscape(board, model, size) for board in boards for model in models for size in SIZES]


def exact(found: list[Landscape]) -> list[Claim]:
    """Print the losses without noise; what they show."""
    print("Energy that the best split costs over the joint optimum, without noise (emulated).")
    print("share: the CPU stage's part of a query's energy at max clocks; SLO: times the latency there.\n")
    print(f"  {'board, model':<26}{'images':>7}{'share':>7}" + "".join(f"{_slo(f):>9}" for f in FACTORS))
    losses: dict[float | str, list[float]] = {rule: [] for rule in RULES}
    right, wrong = [], []
    for land in found:
        row = []
        for factor in FACTORS:
            by_rule = {rule: land.split(factor, rule).loss for rule in RULES}
            for rule, loss in by_rule.items():
                losses[rule].append(loss)
            row.append(by_rule[USED])
            if factor >= LOOSE and land.share <= SMALL_SHARE:
                right.append(by_rule[USED])
            if factor <= TIGHT and land.share > SMALL_SHARE:
                wrong.append(by_rule[USED])
        name = f"{land.behaviour.board.name} {land.behaviour.calibration.workload}"
        print(f"  {name:<26}{land.size:>6g}×{land.share:>7.0%}" + "".join(f"{loss:>9.1%}" for loss in row))
    print("\n  what the stage may use of the slack      mean loss   worst")
    for rule in RULES:
        mark = "   <- used" if rule == USED else ""
        text = rule if isinstance(rule, str) else f"{rule:.0%}"
        print(f"    {text:<36} {mean(losses[rule]):>9.1%} {max(losses[rule]):>7.1%}{mark}")
    least = min(mean(losses[rule]) for rule in RULES)
    return [
        Claim(
            f"split is right: share ≤ {SMALL_SHARE:.0%}, SLO ≥ {LOOSE:g}x",
            f"mean loss {mean(right):.1%} of {len(right)}, worst {max(right):.1%}",
            mean(right) <= RIGHT_WITHIN,
        ),
        Claim(
            f"joint wins: share > {SMALL_SHARE:.0%}, SLO ≤ {TIGHT:g}x",
            f"mean loss of the split {mean(wrong):.1%} of {len(wrong)}, worst {max(wrong):.1%}",
            mean(wrong) >= WINS_BY,
        ),
        Claim(
            f"no other rule is clearly better than {USED:.0%} of the slack",
            f"{mean(losses[USED]):.1%} against {least:.1%} for the best of {len(RULES)}",
            mean(losses[USED]) <= least + 0.005,
        ),
    ]


def _slo(factor: float) -> str:
    return "none" if factor >= 10 else f"{factor:g}x"


@dataclass(frozen=True)
class Case:
    """A landscape and an SLO."""

    name: str
    board: str
    model: str
    size: float
    factor: float


APART = Case("apart", "agx-orin", "efficientnet-b4", 1.0, 1.5)
COUPLED = Case("coupled", "agx-orin", "efficientnet-b0", 4.0, 1.2)

N_SEEDS: dict[Strategy, tuple[int, int]] = {Strategy.INFORMED: (2, 10), Strategy.POLYTHROTTLE: (0, 5)}
"""By strategy: with QUICK=1, and in full."""


def searched(quick: bool) -> tuple[list[Claim], int]:
    """Print what searches find; what that shows, and how many there were."""
    print("\nSearches with noise (emulated), p99, means. loss: true energy over that of the joint optimum.")
    print(f"two phases: {SPLIT_TRIALS} search trials at most after the first one; joint: {JOINT_TRIALS}.\n")
    print(
        f"  {'case':<9}{'strategy':<14}{'search':<11}{'loss':>7}{'median':>8}{'keep SLO':>10}"
        f"{'trials':>8}{'device':>9}"
    )
    results: dict[tuple[Case, Strategy, bool], list[Found]] = {}
    for case in (APART, COUPLED):
        laboratory = Laboratory(Landscape(case.board, case.model, case.size), case.factor)
        for strategy, (few, many) in N_SEEDS.items():
            for two_phase in (True, False):
                seeds = range(few if quick else many)
                found = [laboratory.search(strategy, two_phase=two_phase, seed=seed) for seed in seeds]
                results[case, strategy, two_phase] = found
                if found:
                    _print_row(case.name, strategy, two_phase, found)

    def of(case: Case, two_phase: bool) -> list[Found]:
        return results[case, Strategy.INFORMED, two_phase]

    losses = {key: mean([f.loss for f in of(*key)]) for key in product((APART, COUPLED), (True, False))}
    claims = [
        Claim(
            "apart: two phases lose little",
            f"loss {losses[APART, True]:.1%} against {losses[APART, False]:.1%} jointly",
            losses[APART, True] - losses[APART, False] <= FOUND_WITHIN,
        ),
        Claim(
            "coupled: the joint search finds more",
            f"loss {losses[COUPLED, False]:.1%} against {losses[COUPLED, True]:.1%} split",
            losses[COUPLED, True] - losses[COUPLED, False] >= FOUND_BY,
        ),
    ]
    return claims, sum(map(len, results.values()))


def _print_row(name: str, strategy: Strategy, two_phase: bool, found: list[Found]) -> None:
    losses = [f.loss for f in found]
    print(
        f"  {name:<9}{strategy.value:<14}{'two phases' if two_phase else 'joint':<11}"
        f"{mean(losses):>7.1%}{statistics.median(losses):>8.1%}"
        f"{sum(f.keeps_slo for f in found):>7}/{len(found):<2}"
        f"{mean([f.n_trials for f in found]):>8.0f}{mean([f.device_s for f in found]):>7.0f} s",
        flush=True,
    )


def main() -> int:
    quick = os.environ.get("QUICK") == "1"
    began = time.monotonic()
    found = landscapes(quick)
    claims = exact(found)
    more, n_searches = searched(quick)
    print()
    for claim in (*claims, *more):
        print(f"  {'holds' if claim.holds else 'FAILS'}  {claim.text}: {claim.figure}")
    passed = all(claim.holds for claim in (*claims, *more))
    n = f"{len(found) * len(FACTORS)} splits without noise, {n_searches} searches"
    seconds = time.monotonic() - began
    print(f"two-phase: {'PASS' if passed else 'FAIL'} figures (n = {n}; {seconds:.0f} s)")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
