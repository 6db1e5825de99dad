"""What the figures are held against, and the verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from polythrottle.benchmarking.metrics import Share, Summary
from polythrottle.benchmarking.task import BATCH_CAP, THREE_KNOB
from polythrottle.benchmarking.timing import Timing

MIN_RUNS = 30
"""Runs below which no mean, median or p90 is judged."""
MIN_RECOMMENDATIONS = 150
"""Runs below which the share of recommendations that meet the SLO is not judged."""

Summaries = Mapping[tuple[str, str, str], Summary]
"""By (family, condition, strategy)."""


class Verdict(str, Enum):
    PASS = "PASS"
    FAIL = "FAIL"
    TOO_FEW = "not judged (too few)"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class Target:
    """One requirement and what came out."""

    requirement: str
    figure: str
    verdict: Verdict


def _at_most(requirement: str, value: float, limit: float, n: int, shown: str) -> Target:
    verdict = Verdict.PASS if value <= limit else Verdict.FAIL
    return Target(requirement, f"{shown} (n = {n})", Verdict.TOO_FEW if n < MIN_RUNS else verdict)


def _share(requirement: str, share: Share, least: float, min_n: int) -> Target:
    """Fails only where even the better end of the interval misses."""
    low, high = share.interval()
    shown = f"{share.value:.1%} of {share.n} (95 % interval {low:.1%} to {high:.1%})"
    verdict = Verdict.PASS if high >= least else Verdict.FAIL
    return Target(requirement, shown, Verdict.TOO_FEW if share.n < min_n else verdict)


def _regret(family: str, summary: Summary, after: int, limit: float) -> Target:
    name = f"{family}: mean regret after {after} ≤ {limit:.0%}"
    value = summary.regret_after(after)
    if value is None:
        return Target(name, "the budget is smaller", Verdict.NOT_RUN)
    return _at_most(name, value, limit, summary.n, f"{value:.1%}")


def _stopping(family: str, summary: Summary) -> list[Target]:
    return [
        _at_most(
            f"{family}: stopping rule, mean trials ≤ 10",
            summary.stop_trials,
            10.0,
            summary.n,
            f"{summary.stop_trials:.1f}",
        ),
        _at_most(
            f"{family}: stopping rule, mean regret ≤ 2.5 %",
            summary.stop_regret,
            0.025,
            summary.n,
            f"{summary.stop_regret:.1%}",
        ),
        _share(f"{family}: stopping rule, within 5 % ≥ 85 %", summary.stop_within_5, 0.85, MIN_RUNS),
    ]


def _ratio(requirement: str, ours: Summary, other: Summary | None, least: float) -> Target:
    if other is None:
        return Target(requirement, "the other did not play", Verdict.NOT_RUN)
    ratio = other.to_5.mean / ours.to_5.mean
    n = min(ours.n, other.n)
    shown = f"{ratio:.2f} × ({other.to_5.mean:.1f} against {ours.to_5.mean:.1f}, n = {other.n} and {ours.n})"
    verdict = Verdict.PASS if ratio >= least else Verdict.FAIL
    return Target(requirement, shown, Verdict.TOO_FEW if n < MIN_RUNS // 2 else verdict)


def _three_knob(summaries: Summaries, condition: str) -> list[Target]:
    family = THREE_KNOB
    ours = summaries.get((family, condition, "informed"))
    if ours is None:
        return []
    targets = [
        _at_most(
            f"{family}: evaluations to 5 %, median ≤ 5", ours.to_5.median, 5, ours.n, f"{ours.to_5.median:g}"
        ),
        _at_most(f"{family}: evaluations to 5 %, p90 ≤ 9", ours.to_5.p90, 9, ours.n, f"{ours.to_5.p90:.3g}"),
        _at_most(
            f"{family}: evaluations to 2 %, median ≤ 7", ours.to_2.median, 7, ours.n, f"{ours.to_2.median:g}"
        ),
        _regret(family, ours, 5, 0.07),
        _regret(family, ours, 10, 0.03),
        _regret(family, ours, 20, 0.02),
        _at_most(
            f"{family}: violating trials of 20 ≤ 6", ours.violations, 6.0, ours.n, f"{ours.violations:.2f}"
        ),
        _share(
            f"{family}: SLO met within 1 % after confirmation ≥ 98 %", ours.slo_met, 0.98, MIN_RECOMMENDATIONS
        ),
    ]
    safe = summaries.get((family, condition, "informed-safe"))
    if safe is not None:
        targets += [
            _at_most(
                f"{family}, safe mode: violating trials of 20 ≤ 2.5",
                safe.violations,
                2.5,
                safe.n,
                f"{safe.violations:.2f}",
            ),
            _at_most(
                f"{family}, safe mode: evaluations to 5 %, median ≤ 7",
                safe.to_5.median,
                7,
                safe.n,
                f"{safe.to_5.median:g}",
            ),
        ]
    paper = summaries.get((family, condition, "polythrottle"))
    botorch = summaries.get((family, condition, "botorch"))
    targets += [
        _ratio(f"{family}: mean evaluations to 5 %, ≥ 2 × better than the paper's", ours, paper, 2.0),
        _ratio(f"{family}: mean evaluations to 5 %, ≥ 1.5 × better than BoTorch", ours, botorch, 1.5),
        *_stopping(family, ours),
    ]
    return targets


def _batch_cap(summaries: Summaries, condition: str) -> list[Target]:
    family = BATCH_CAP
    ours = summaries.get((family, condition, "informed"))
    if ours is None:
        return []
    targets = [
        _at_most(
            f"{family}: evaluations to 5 %, median ≤ 6", ours.to_5.median, 6, ours.n, f"{ours.to_5.median:g}"
        ),
        _at_most(f"{family}: evaluations to 5 %, p90 ≤ 8", ours.to_5.p90, 8, ours.n, f"{ours.to_5.p90:.3g}"),
    ]
    unknown, flat = (summaries.get((family, condition, name)) for name in ("batch-unknown", "flat"))
    if unknown is not None and flat is not None:
        more = unknown.to_5.median - flat.to_5.median
        targets.append(
            _at_most(
                f"{family}, batch unknown: median at most 2 more than flat",
                more,
                2.0,
                min(unknown.n, flat.n),
                f"{more:+g} ({unknown.to_5.median:g} against {flat.to_5.median:g})",
            )
        )
    return targets + _stopping(family, ours)


def _degraded(summaries: Summaries, condition: str) -> list[Target]:
    found = [
        summary
        for (_, name, strategy), summary in summaries.items()
        if name == condition and strategy == "informed"
    ]
    if not found:
        return []
    share = Share(sum(s.slo_met.k for s in found), sum(s.slo_met.n for s in found))
    return [
        _share("degraded: SLO met within 1 % after confirmation ≥ 98 %", share, 0.98, MIN_RECOMMENDATIONS)
    ]


def _speed(timing: Timing) -> list[Target]:
    def judged(requirement: str, passed: bool, shown: str) -> Target:
        return Target(requirement, shown, Verdict.PASS if passed else Verdict.FAIL)

    targets = [
        judged(
            "suggestion, 20 observations, 5,005 points ≤ 150 ms",
            timing.suggest_ms <= 150,
            f"{timing.suggest_ms:.0f} ms (set-up {timing.setup_ms / 1e3:.1f} s)",
        )
    ]
    if timing.gpsampler_ms is None:
        targets.append(Target("suggestion ≤ 1.5 × Optuna's GPSampler", "no --peers", Verdict.NOT_RUN))
    else:
        ratio = timing.suggest_ms / timing.gpsampler_ms
        targets.append(
            judged(
                "suggestion ≤ 1.5 × Optuna's GPSampler",
                ratio <= 1.5,
                f"{ratio:.2f} × ({timing.suggest_ms:.0f} against {timing.gpsampler_ms:.0f} ms)",
            )
        )
    wrapper = timing.wrapped_ms / timing.algebra_ms
    return [
        *targets,
        judged(
            "acquisition: our algebra where BoTorch's mixture posterior costs > 1.3 × it",
            wrapper > 1.3,
            f"{wrapper:.0f} × ({timing.wrapped_ms:.0f} against {timing.algebra_ms:.1f} ms, 5,005 points)",
        ),
        judged(
            "suggestion, 50,000 points ≤ 1 s",
            timing.suggest_large_ms <= 1000,
            f"{timing.suggest_large_ms:.0f} ms",
        ),
        judged(
            "set-up, 50,000 points ≤ 60 s",
            timing.setup_large_ms <= 60_000,
            f"{timing.setup_large_ms / 1e3:.1f} s",
        ),
        judged(
            "peak memory, 50,000 points ≤ 1 GB",
            timing.peak_large_mb <= 1000,
            f"{timing.peak_large_mb:.0f} MB",
        ),
        judged(
            "import polythrottle ≤ 0.3 s, without torch",
            timing.import_ms <= 300 and not timing.import_loads_torch,
            f"{timing.import_ms:.0f} ms, {'loads' if timing.import_loads_torch else 'without'} torch",
        ),
    ]


def judge(summaries: Summaries, normal: str, degraded: str, timing: Timing | None) -> list[Target]:
    """Every requirement for which something was run.

    `normal` and `degraded` are the names of the two conditions.
    """
    return [
        *_three_knob(summaries, normal),
        *_batch_cap(summaries, normal),
        *_degraded(summaries, degraded),
        *([] if timing is None else _speed(timing)),
    ]


def last_line(targets: list[Target], n_runs: int, broken: int, quick: bool) -> tuple[str, int]:
    """The line that ends the output, and the exit code.

    QUICK where the sample is a quick one or nothing could be judged: then only broken runs fail.
    """
    verdicts = [target.verdict for target in targets]
    judged = Verdict.PASS in verdicts or Verdict.FAIL in verdicts
    failed = broken > 0 or (not quick and Verdict.FAIL in verdicts)
    if failed:
        word = "FAIL"
    elif quick or not judged:
        word = "QUICK"
    else:
        word = "PASS"
    return f"optimizer: {word} figures (n = {n_runs})", int(failed)
