"""The guard as a job: watch what is in force, fall back, and search again by itself where that is asked for.

Top floor, like `polythrottle.api`: it may import both the agent and the server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from polythrottle.api import Listener as TuneListener
from polythrottle.api import Stopping, TuneRequest, prepare, run
from polythrottle.configuration import Level, format_level
from polythrottle.errors import DeviceBusyError
from polythrottle.objective import LatencySlo
from polythrottle.spaces import LEVEL_SEPARATOR
from polythrottle.study import Estimate, Study, Verdict
from polythrottle.traffic import LiveOptions
from polythrottle_agent.guard.events import GuardEvent, Kind, Listener, now_utc
from polythrottle_agent.guard.falling_back import HeldSwitch, NotSwitched, Settings, Switch
from polythrottle_agent.guard.opening import Guarded
from polythrottle_agent.guard.rules import GuardRules
from polythrottle_agent.guard.runner import PERIOD_S, Guard, Ladder
from polythrottle_agent.guard.sources import source_of
from polythrottle_agent.guard.states import GuardState
from polythrottle_agent.holding import HeldDevice
from polythrottle_agent.workloads.opening import WorkloadOptions

WITHIN_SD = 1.645
"""Standard errors within the limit for 95 % confidence (one-sided) that the SLO is met."""
SEARCH_EVERY_S = 3600.0


@dataclass(frozen=True)
class GuardTask:
    """What to guard: a device that was opened, what may be in force on it, and the rules."""

    opened: Guarded
    ladder: Ladder
    rules: GuardRules
    study: str | None = None
    listeners: tuple[Listener, ...] = ()


def known_good(study: Study | None, slo: LatencySlo, controls: Sequence[str]) -> tuple[Settings, ...]:
    """The ladder by what a study measured: the device as found, then max clocks, each if it meets the SLO.

    The device as found also where nothing was measured: it is what the user had.
    """
    result = None if study is None else study.result
    if study is None or result is None:
        return (None,)
    rungs: list[Settings] = []
    stock, highest = result.stock, result.max_clocks
    if stock is None or _meets(stock, slo):
        rungs.append(None)
    if highest is not None and _meets(highest, slo):
        anchor = {k: v for k, v in study.spec.anchor.items() if k in controls}
        if anchor:
            rungs.append(anchor)
    return tuple(rungs) or (None,)


def _meets(found: Estimate, slo: LatencySlo) -> bool:
    return slo.limit_s is not None and found.latency_s + WITHIN_SD * found.latency_error_s <= slo.limit_s


def run_guard(
    task: GuardTask,
    should_stop: Callable[[], bool],
    *,
    for_s: float | None = None,
    until_wanted: Callable[[], bool] = lambda: False,
) -> Guard:
    """Guard what is kept on the device, which stays in force; or hold the configuration, and put it back.

    Raises:
        DeviceBusyError: something else is kept on the device, or somebody holds it.
        InvalidInputError: the workload cannot be guarded.
        ControlError: the device refused the configuration.
    """
    opened = task.opened
    source = source_of(opened.workload, task.rules, opened.clock, PERIOD_S)

    def watch(switch: Switch) -> Guard:
        guard = Guard(
            task.ladder,
            task.rules,
            source,
            opened.health,
            switch,
            opened.clock,
            device=opened.identity.id,
            study=task.study,
            listeners=task.listeners,
        )
        guard.run(should_stop, for_s=for_s, until_wanted=until_wanted)
        return guard

    if opened.kept is not None:
        _check_kept(opened.kept.settings, task.ladder.guarded or {})
        switch = opened.kept.switch()
        try:
            return watch(switch)
        finally:
            switch.close()
    held = HeldDevice(opened)
    with held:
        held.apply(task.ladder.guarded or {}, "polythrottle guard")
        return watch(HeldSwitch(held, opened.bring_back))


def same_again(
    study: Study, slo: LatencySlo, device: str, workload: str | None, options: WorkloadOptions
) -> TuneRequest:
    """The question of a study under the guarded SLO, to be asked of a device that now serves live traffic."""
    spec = study.spec
    knobs = tuple(
        f"{knob.name}={LEVEL_SEPARATOR.join(map(format_level, knob.levels))}" for knob in spec.space.knobs
    )
    return TuneRequest(
        slo=slo,
        device=device,
        workload=workload,
        knobs=knobs,
        fixed=tuple((knob, format_level(level)) for knob, level in spec.fixed),
        options=options,
        precision=spec.precision,
        strategy=spec.strategy,
        objective=spec.objective,
        max_trials=spec.max_trials,
        max_time_s=spec.max_time_s,
        live=LiveOptions(),
        seed=spec.seed,
    )


@dataclass(frozen=True)
class SearchAgain:
    """How to search again: what to ask, where studies are kept, and how the device is opened afterwards.

    No search begins sooner than `every_s` after the one before, or after the guard began.
    """

    request: TuneRequest
    state_dir: Path
    reopen: Callable[[], Guarded]
    stopping: Stopping
    listener: TuneListener | None = None
    every_s: float = SEARCH_EVERY_S


def guard_and_search(task: GuardTask, again: SearchAgain, for_s: float | None = None) -> Guard:
    """Guard, and whenever another search is wanted, run it and guard its answer.

    It ends when it is told to, when its time is up, and where the device as found is the best answer: then
    nothing is left to guard.

    Raises:
        PolythrottleError: as `run_guard` and `polythrottle.api.run` do.
    """
    searches = 0
    left_s = for_s
    while True:
        clock = task.opened.clock
        began_s = clock.now()
        guard = run_guard(
            task,
            lambda: again.stopping.after_trial,
            for_s=left_s,
            until_wanted=lambda: clock.now() - began_s >= again.every_s,  # noqa: B023 - used within
        )
        left_s = None if left_s is None else left_s - (clock.now() - began_s)
        wanted = guard.wanted
        over = left_s is not None and left_s <= 0
        if wanted is None or over or again.stopping.after_trial:
            return guard
        was_kept = task.opened.kept
        if was_kept is not None:
            _put_back(was_kept.switch(), wanted.reason)
        searches += 1
        seed = again.request.seed + searches
        study = run(
            prepare(replace(again.request, seed=seed)),
            again.state_dir,
            listener=again.listener,
            stopping=again.stopping,
        )
        following = _following(task, study, again, keep=was_kept is not None)
        for listener in task.listeners:
            listener.told(_answered(task, study))
        if following is None:
            return guard
        task = following


def _following(task: GuardTask, study: Study, again: SearchAgain, *, keep: bool) -> GuardTask | None:
    """The answer of a search, to be guarded next; None where it is the device as found, or nothing."""
    result = study.result
    if result is None or result.chosen is None or result.verdict is Verdict.KEEP_STOCK:
        return None
    opened = again.reopen()
    chosen = {**dict(study.spec.fixed), **result.chosen.configuration}
    settings = {knob: level for knob, level in chosen.items() if knob in opened.controls}
    if not settings:
        return None
    if keep:
        held = HeldDevice(opened)
        with held:
            held.apply(settings, f"study {study.id}")
            held.keep(None, f"the answer of study {study.id}")
        opened = again.reopen()
    ladder = Ladder(settings, known_good(study, result.slo, tuple(opened.controls)))
    return replace(task, opened=opened, ladder=ladder, study=study.id)


def _put_back(switch: Switch, reason: str) -> None:
    """
    Raises:
        DeviceBusyError: the device could not be put back as it was found.
    """
    try:
        switch.put(None, f"guard: before another search: {reason}")
    except NotSwitched as error:
        raise DeviceBusyError(f"The device cannot be searched: {error}.") from error
    finally:
        switch.close()


def _answered(task: GuardTask, study: Study) -> GuardEvent:
    verdict = "none" if study.result is None else study.result.verdict.value
    return GuardEvent(
        at=now_utc(),
        event=Kind.SEARCH_ANSWERED,
        state=GuardState.STOPPED.value,
        device=task.opened.identity.id,
        reason=f"study {study.id} ended: {verdict}",
        study=study.id,
    )


def _check_kept(kept: Mapping[str, Level], wanted: Mapping[str, Level]) -> None:
    """
    Raises:
        DeviceBusyError: what is kept on the device is not what is to be guarded.
    """
    others = [f"{k} {format_level(v)}" for k, v in kept.items() if wanted.get(k, v) != v or k not in wanted]
    missing = [k for k in wanted if k not in kept]
    if others or missing:
        found = ", ".join(f"{k} {format_level(v)}" for k, v in kept.items())
        raise DeviceBusyError(
            f"Another configuration is kept on the device ({found}); guard that one, or run polythrottle "
            "restore first."
        )
