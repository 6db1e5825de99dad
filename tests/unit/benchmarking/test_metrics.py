from __future__ import annotations

from dataclasses import replace

import pytest

from polythrottle.benchmarking.metrics import Reach, Share, Summary, grouped, summarise
from polythrottle.benchmarking.run import Row
from polythrottle.benchmarking.targets import Target, Verdict, judge, last_line
from polythrottle.benchmarking.task import BATCH_CAP, THREE_KNOB
from polythrottle.benchmarking.timing import Timing


def row(**changes: object) -> Row:
    base = Row(
        key="k",
        task="t",
        family=THREE_KNOB,
        emulated=True,
        slo_factor=1.15,
        condition="normal",
        strategy="informed",
        seed=0,
        budget=20,
        cells=list(range(20)),
        regrets=[0.5, 0.4, 0.3, 0.2, 0.06] + [0.01] * 15,
        to_5=4,
        to_2=6,
        violations=5,
        final_cell=3,
        final_excess=-0.01,
        final_regret=0.01,
        stop_at=9,
        stop_rule="p",
        stop_regret=0.01,
        setup_ms=100.0,
        suggest_ms=[1.0] + [20.0] * 20,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def targets(rows: list[Row], timing: Timing | None = None) -> dict[str, Target]:
    return {t.requirement: t for t in judge(grouped(rows), "normal", "degraded", timing)}


def verdict(found: dict[str, Target], words: str) -> Verdict:
    (target,) = [target for name, target in found.items() if words in name]
    return target.verdict


def test_wilson_interval_against_known_values() -> None:
    low, high = Share(8, 10).interval()
    assert (low, high) == (pytest.approx(0.490, abs=1e-3), pytest.approx(0.943, abs=1e-3))
    assert Share(0, 10).interval()[0] == 0.0
    assert Share(10, 10).interval() == (pytest.approx(0.722, abs=1e-3), 1.0)


def test_reach_counts_not_reached_as_given() -> None:
    reach = Reach.of([3, 5, 21])
    assert (reach.median, reach.mean) == (5.0, pytest.approx(29 / 3))
    assert reach.p90 == pytest.approx(17.8)


def test_summary_averages_runs() -> None:
    summary = summarise([row(), row(regrets=[0.1] * 20, final_excess=0.02, violations=7, stop_regret=0.2)])
    assert summary.regret_after(5) == pytest.approx(0.08)
    assert summary.regret_after(4) is None
    assert (summary.slo_met.k, summary.slo_met.n) == (1, 2)
    assert summary.violations == 6.0
    assert summary.stop_within_5.k == 1
    assert summary.suggest_ms == 20.0


def test_rows_group_by_family_condition_and_strategy() -> None:
    rows = [row(), row(family=BATCH_CAP), row(strategy="flat"), row(condition="degraded"), row()]
    groups: dict[tuple[str, str, str], Summary] = grouped(rows)
    assert groups[THREE_KNOB, "normal", "informed"].n == 2
    assert len(groups) == 4


def test_good_figures_pass_and_bad_ones_fail() -> None:
    good = targets([row() for _ in range(150)])
    for words in ("median ≤ 5", "p90 ≤ 9", "after 5 ", "after 10", "of 20 ≤ 6", "SLO met", "mean trials"):
        assert verdict(good, words) is Verdict.PASS, words
    bad = targets([row(to_5=21, to_2=21, violations=9, regrets=[0.5] * 20, stop_at=12) for _ in range(150)])
    for words in ("median ≤ 5", "p90 ≤ 9", "after 5 ", "after 10", "of 20 ≤ 6", "mean trials"):
        assert verdict(bad, words) is Verdict.FAIL, words


def test_too_few_runs_are_not_judged() -> None:
    few = targets([row(to_5=21) for _ in range(29)])
    assert verdict(few, "median ≤ 5") is Verdict.TOO_FEW
    assert verdict(targets([row() for _ in range(149)]), "SLO met") is Verdict.TOO_FEW


def test_a_share_fails_only_when_its_better_end_misses() -> None:
    def rows(bad: int) -> list[Row]:
        return [row(final_excess=0.05 if i < bad else 0.0) for i in range(150)]

    assert verdict(targets(rows(6)), "SLO met") is Verdict.PASS  # 96 %, interval reaches 98.2 %
    assert verdict(targets(rows(8)), "SLO met") is Verdict.FAIL


def test_ratios_need_the_other_strategy() -> None:
    ours = [row() for _ in range(30)]
    assert verdict(targets(ours), "the paper's") is Verdict.NOT_RUN
    slow = [row(strategy="polythrottle", to_5=8) for _ in range(18)]
    assert verdict(targets(ours + slow), "the paper's") is Verdict.PASS
    quick = [row(strategy="polythrottle", to_5=7) for _ in range(18)]
    assert verdict(targets(ours + quick), "the paper's") is Verdict.FAIL


def test_batch_unknown_is_held_against_flat() -> None:
    def rows(unknown: int) -> list[Row]:
        names = {"informed": 5, "batch-unknown": unknown, "flat": 7}
        return [
            row(strategy=name, family=BATCH_CAP, to_5=count)
            for name, count in names.items()
            for _ in range(30)
        ]

    assert verdict(targets(rows(9)), "batch unknown") is Verdict.PASS
    assert verdict(targets(rows(10)), "batch unknown") is Verdict.FAIL


def test_speed_targets() -> None:
    fast = Timing(50.0, 2000.0, 400.0, 5000.0, 900.0, 45.0, 120.0, False, algebra_ms=4.0, wrapped_ms=200.0)
    assert {t.verdict for t in targets([], fast).values()} == {Verdict.PASS}
    slow = replace(fast, suggest_ms=160.0, peak_large_mb=1100.0, import_loads_torch=True)
    failing = [t for t in targets([], slow).values() if t.verdict is Verdict.FAIL]
    assert len(failing) == 4
    alone = targets([], replace(fast, gpsampler_ms=None))
    assert verdict(alone, "GPSampler") is Verdict.NOT_RUN


def test_last_line() -> None:
    good, bad = Target("a", "1", Verdict.PASS), Target("b", "2", Verdict.FAIL)
    few = Target("c", "3", Verdict.TOO_FEW)
    assert last_line([good, few], 7, 0, quick=False) == ("optimizer: PASS figures (n = 7)", 0)
    assert last_line([good, bad], 7, 0, quick=False) == ("optimizer: FAIL figures (n = 7)", 1)
    assert last_line([good, bad], 7, 0, quick=True) == ("optimizer: QUICK figures (n = 7)", 0)
    assert last_line([few], 7, 0, quick=False) == ("optimizer: QUICK figures (n = 7)", 0)
    assert last_line([good], 7, 1, quick=True) == ("optimizer: FAIL figures (n = 7)", 1)
