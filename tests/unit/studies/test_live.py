"""Searching on live traffic: small steps first, nothing unlikely, and the rules between trials."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from polythrottle.clock import VirtualClock, WallClockOver
from polythrottle.configuration import Configuration, Knob, SearchSpace
from polythrottle.errors import InvalidInputError
from polythrottle.optimizer.problem import FailedTrial, OptimizerSettings
from polythrottle.study import Study, StudyState, Verdict
from polythrottle.suggestion import Prediction, StopAdvice, Suggestion
from polythrottle.traffic import LiveTraffic, QuietHours, nearest_in
from polythrottle.traffic_gate import TrafficGate, is_violation
from polythrottle.trial import STOCK, Purpose, Trial, TrialState
from polythrottle_server import codec
from polythrottle_server.budget import NOTHING_SAFE
from polythrottle_server.live import FIRST_REACH, met, out_of_reach, reach_of, step, within_reach
from polythrottle_server.protocol import Question, problem_of
from polythrottle_server.suggesting import InProcessSuggester
from tests.unit.studies.conftest import BATCH, GPU, MEMORY

SPACE = SearchSpace((GPU, MEMORY, BATCH))


def at(gpu: float, memory: float = 1600.0, batch: float = 2.0) -> Configuration:
    return Configuration.of({"gpu_freq_mhz": gpu, "mem_freq_mhz": memory, "batch_size": batch})


def live_spec(lab, slo: str = "40ms", start: Configuration | None = None, **changes):
    rules = LiveTraffic(start or at(900))
    return lab.spec(slo, batch=True, safe=True, live=rules, **changes)


def done(lab, purpose: Purpose, c: Configuration, state: TrialState = TrialState.COMPLETED) -> Trial:
    return Trial(1, purpose, c, state=state, measurement=lab.Device().measure(c))


def study_of(lab, *trials: Trial, **spec) -> Study:
    begun = Study("x", live_spec(lab, **spec), StudyState.ACTIVE, "now")
    return lab.told(begun, *trials)


def before_search(lab) -> tuple[Trial, ...]:
    stock, anchor = done(lab, Purpose.BASELINE, STOCK), done(lab, Purpose.ANCHOR, at(900))
    return stock, stock, anchor, anchor


# How far a step goes


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (at(900), at(900), 0.0),
        (at(900), at(450), math.log(2)),
        (at(450), at(900), 0.0),
        (at(900), at(450, 800), math.log(4)),
        (at(450), at(900, 800), math.log(2)),
        (at(900, batch=1.0), at(900, batch=4.0), math.log(4)),
        (at(900, batch=4.0), at(900, batch=1.0), math.log(4)),
    ],
)
def test_a_step_is_what_can_become_slower(one, other, expected: float) -> None:
    assert step(SPACE, one, other) == pytest.approx(expected)


def test_a_knob_of_unknown_effect_steps_by_its_levels() -> None:
    space = SearchSpace((Knob.of("threads", [0, 1, 8]),))
    one, other = (Configuration.of({"threads": n}) for n in (0.0, 8.0))
    assert step(space, one, other) == step(space, other, one) == pytest.approx(2 * FIRST_REACH)


def test_unlocked_is_as_fast_as_the_highest() -> None:
    space = SearchSpace((Knob("gpu_freq_mhz", (300.0, 900.0, "unlocked")),))
    highest, unlocked = (Configuration.of({"gpu_freq_mhz": x}) for x in (900.0, "unlocked"))
    assert step(space, highest, unlocked) == step(space, unlocked, highest) == 0.0


def test_the_reach_doubles_with_each_success_and_begins_anew_after_a_violation(lab) -> None:
    def reach(*states: TrialState) -> float:
        return reach_of(study_of(lab, *(done(lab, Purpose.SEARCH, at(750), s) for s in states)))

    good, missed, cut = TrialState.COMPLETED, TrialState.INFEASIBLE, TrialState.ABORTED
    assert reach() == FIRST_REACH
    assert reach(good, good) == 4 * FIRST_REACH
    assert reach(good, good, missed) == reach(cut) == FIRST_REACH
    assert reach(good, missed, good) == 2 * FIRST_REACH
    assert reach(TrialState.FAILED) == FIRST_REACH


def test_the_search_starts_from_what_is_in_force_where_that_meets_the_slo(lab) -> None:
    trials, start = before_search(lab), at(600)
    assert met(study_of(lab, *trials, start=start), 0.04) == (start, at(900))
    assert met(study_of(lab, *trials, start=start), 0.02) == (at(900),)  # neither surely: max clocks
    more = done(lab, Purpose.SEARCH, at(750))
    assert met(study_of(lab, *trials, more, start=start), 0.04) == (start, at(900), at(750))


def test_out_of_reach_is_what_no_good_configuration_is_near(lab) -> None:
    study = study_of(lab, *before_search(lab))
    question = asked(study)
    far = set(out_of_reach(study, question, FIRST_REACH))
    near = {SPACE.at(i) for i in SPACE.indices()} - far
    assert near == {at(900), at(750)}
    assert not out_of_reach(study, question, 100.0)


# What is suggested


def asked(study: Study) -> Question:
    return Question(problem_of(study), (), (), OptimizerSettings(safe=True), 1)


class Optimiser:
    """Wants the slowest that is allowed; `p` of it, and what it gains."""

    def __init__(self, p: float = 0.9, gain=lambda _: 0.1, stop=lambda _: False) -> None:
        self.p, self.gain, self.stop = p, gain, stop
        self.asked: list[set[Configuration]] = []

    def __call__(self, question: Question) -> Suggestion:
        twice = [e.configuration for e in question.observations if isinstance(e, FailedTrial)]
        excluded = {c for c in twice if twice.count(c) >= 2}
        open_ = [c for c in map(SPACE.at, SPACE.indices()) if c not in excluded and c != at(900)]
        self.asked.append(set(open_))
        if not open_:
            return Suggestion(None, NOTHING_SAFE)
        chosen = min(open_, key=lambda c: (c["gpu_freq_mhz"], c["mem_freq_mhz"], c["batch_size"]))
        return Suggestion(
            chosen,
            "safe mode",
            Prediction(1.0, 0.1, 0.03, 0.1, self.p),
            self.gain(chosen),
            stop=StopAdvice(self.stop(chosen), "enough", 1.0, 0.5),
        )


def test_the_first_step_is_a_small_one(lab) -> None:
    study, optimiser = study_of(lab, *before_search(lab)), Optimiser()
    found = within_reach(study, optimiser, False)(asked(study))
    assert found.configuration == at(750)
    assert "small step" in found.provenance
    assert optimiser.asked == [{at(750)}]


def test_where_nothing_near_is_worth_it_the_reach_grows(lab) -> None:
    optimiser = Optimiser(gain=lambda c: 0.1 if c["gpu_freq_mhz"] <= 450 else 0.001)
    study = study_of(lab, *before_search(lab))
    found = within_reach(study, optimiser, False)(asked(study))
    assert found.configuration["gpu_freq_mhz"] <= 450
    assert [len(a) for a in optimiser.asked] == sorted(len(a) for a in optimiser.asked)
    assert len(optimiser.asked) > 1


def test_only_the_whole_space_ends_a_search(lab) -> None:
    optimiser = Optimiser(stop=lambda _: True)
    study = study_of(lab, *before_search(lab))
    found = within_reach(study, optimiser, False)(asked(study))
    assert found.stop.stop
    assert len(optimiser.asked[-1]) == len(SPACE) - 1


def test_what_is_likelier_to_miss_than_safe_mode_allows_is_not_tried(lab) -> None:
    study = study_of(lab, *before_search(lab))
    found = within_reach(study, Optimiser(p=0.8), False)(asked(study))
    assert found.configuration is None
    assert found.provenance == NOTHING_SAFE


def test_without_live_traffic_and_for_the_last_ranking_nothing_changes(lab) -> None:
    study, optimiser = study_of(lab, *before_search(lab)), Optimiser()
    assert within_reach(study, optimiser, True) is optimiser
    other = replace(study, spec=replace(study.spec, live=None))
    assert within_reach(other, optimiser, False) is optimiser


def test_a_whole_search_goes_by_small_steps_and_finds_what_is_best(lab) -> None:
    """With the real optimiser: no trial is further from a good one than its reach, nothing misses the SLO."""
    studies = lab.open(InProcessSuggester())
    study = studies.create(live_spec(lab, "36ms", max_trials=20))
    device = lab.Device()
    study = lab.drive(studies, study, device)
    searched = study.of(Purpose.SEARCH)
    assert searched
    assert not any(is_violation(t) for t in study.trials)
    first = searched[0]
    assert step(SPACE, study.spec.anchor, first.configuration) <= 2 * FIRST_REACH
    assert study.result.verdict is Verdict.OPTIMAL
    best = min(
        (c for c in map(SPACE.at, SPACE.indices()) if device.latency_s(c) <= 0.036), key=device.energy_j
    )
    assert device.energy_j(study.result.chosen.configuration) <= 1.1 * device.energy_j(best)


def test_the_rules_are_kept_with_the_study(lab) -> None:
    rules = LiveTraffic(at(600), 2.0, QuietHours.parse("22:00-06:00"), 0.1, waits=False)
    spec = replace(live_spec(lab), live=rules)
    studies = lab.open()
    study = studies.create(spec)
    assert studies.get(study.id).spec.live == rules
    assert codec.spec_digest(spec) != codec.spec_digest(replace(spec, live=None))


# Rules


def test_a_device_that_holds_levels_between_those_of_the_space_starts_at_the_nearest() -> None:
    assert nearest_in(SPACE, {"gpu_freq_mhz": 610.0, "mem_freq_mhz": 1600.0, "batch_size": 1.0}) == at(
        600, 1600, 1
    )
    assert nearest_in(SPACE, {"gpu_freq_mhz": "unlocked"}) == at(900, 1600, 4)
    cells = SearchSpace(SPACE.knobs, (), frozenset({(0, 0, 0), (4, 1, 2)}))
    assert nearest_in(cells, {"gpu_freq_mhz": 750.0}) == at(900, 1600, 4)


@pytest.mark.parametrize("text", ["", "22-6", "24:00-06:00", "22:00-22:00", "22:60-06:00", "all night"])
def test_what_is_no_quiet_time(text: str) -> None:
    with pytest.raises(InvalidInputError, match=r"(?i)quiet hours"):
        QuietHours.parse(text)


@pytest.mark.parametrize(
    "changes", [{"violations_per_hour": -1.0}, {"canary_share": 0.0}, {"canary_share": 1.0}]
)
def test_rules_that_make_no_sense_are_refused(changes) -> None:
    with pytest.raises(InvalidInputError):
        LiveTraffic(at(900), **changes)


ZONE = timezone(timedelta(hours=2))


def clock_at(hour: int, minute: int = 0) -> datetime:
    return datetime(2026, 3, 14, hour, minute, tzinfo=ZONE)


@pytest.mark.parametrize(
    ("text", "now", "ends"),
    [
        ("22:00-06:00", clock_at(21, 59), None),
        ("22:00-06:00", clock_at(22), clock_at(6) + timedelta(days=1)),
        ("22:00-06:00", clock_at(3), clock_at(6)),
        ("22:00-06:00", clock_at(6), None),
        ("9:30-17:00", clock_at(12), clock_at(17)),
        ("9:30-17:00", clock_at(17), None),
        ("00:00-23:59", clock_at(23, 58), clock_at(23, 59)),
    ],
)
def test_when_quiet_hours_end(text: str, now: datetime, ends: datetime | None) -> None:
    hours = QuietHours.parse(text)
    assert hours.ends_after(now) == ends
    assert QuietHours.parse(str(hours)) == hours


class Surroundings:
    """A gate in virtual time, and what it did."""

    def __init__(self, rules: LiveTraffic, now: datetime, past=()) -> None:
        self.clock = VirtualClock(50.0)
        self.wall = WallClockOver(self.clock, now)
        self.told: list[str] = []
        self.put_back = 0
        self.stops = False
        self.gate = TrafficGate(
            rules, self.clock, self.wall, self._put_back, self.told.append, lambda: self.stops, past
        )

    def _put_back(self) -> None:
        self.put_back += 1


def violation(lab) -> Trial:
    return done(lab, Purpose.SEARCH, at(300), TrialState.ABORTED)


def test_quiet_hours_are_waited_through_with_the_device_as_found(lab) -> None:
    around = Surroundings(LiveTraffic(at(900), quiet_hours=QuietHours.parse("22:00-06:00")), clock_at(23))
    assert around.gate.before_trial(study_of(lab)) is None
    assert around.wall.now() == clock_at(6) + timedelta(days=1)
    assert around.put_back == 1
    assert around.told == ["these are the quiet hours 22:00-06:00; waiting until 06:00"]
    assert around.gate.before_trial(study_of(lab)) is None
    assert around.put_back == 1


def test_no_trial_begins_that_would_reach_into_them(lab) -> None:
    rules = LiveTraffic(at(900), quiet_hours=QuietHours.parse("22:00-06:00"))
    long = replace(
        done(lab, Purpose.SEARCH, at(750)),
        measurement=replace(lab.Device().measure(at(750)), duration_s=600.0),
    )
    around = Surroundings(rules, clock_at(21, 55))
    assert "would reach into" in around.gate.pause(study_of(lab, long)).reason
    short = Surroundings(rules, clock_at(21, 55))
    assert short.gate.pause(study_of(lab, done(lab, Purpose.SEARCH, at(750)))) is None


def test_whoever_does_not_want_to_wait_stops_with_the_reason(lab) -> None:
    rules = LiveTraffic(at(900), quiet_hours=QuietHours.parse("22:00-06:00"), waits=False)
    around = Surroundings(rules, clock_at(23))
    assert around.gate.before_trial(study_of(lab)) == "these are the quiet hours 22:00-06:00"
    assert around.put_back == 1


def test_a_wish_to_stop_ends_the_wait(lab) -> None:
    around = Surroundings(LiveTraffic(at(900), quiet_hours=QuietHours.parse("22:00-06:00")), clock_at(23))
    around.stops = True
    assert around.gate.before_trial(study_of(lab)) is None
    assert around.wall.now() == clock_at(23)


def test_after_a_violation_the_device_goes_back_at_once_and_the_budget_is_kept(lab) -> None:
    around = Surroundings(LiveTraffic(at(900), violations_per_hour=2.0), clock_at(12))
    gate, study = around.gate, study_of(lab)
    gate.after_trial(violation(lab))
    assert around.put_back == 1
    assert gate.pause(study) is None
    around.clock.sleep(600.0)
    gate.after_trial(violation(lab))
    assert gate.pause(study).until == clock_at(13)
    assert gate.before_trial(study) is None
    assert around.wall.now() == clock_at(13)
    assert around.told == ["2 trials missed the SLO in the last hour, as many as may; waiting until 13:00"]
    gate.after_trial(violation(lab))
    assert gate.pause(study).until == clock_at(13, 10)


@pytest.mark.parametrize("purpose", [Purpose.BASELINE, Purpose.ANCHOR, Purpose.DRIFT])
def test_what_the_user_has_today_is_no_violation_of_ours(lab, purpose: Purpose) -> None:
    assert not is_violation(done(lab, purpose, at(900), TrialState.INFEASIBLE))


def test_fewer_than_one_an_hour_is_one_in_so_many_hours(lab) -> None:
    around = Surroundings(LiveTraffic(at(900), violations_per_hour=0.25), clock_at(12))
    around.gate.after_trial(violation(lab))
    assert around.gate.pause(study_of(lab)).until == clock_at(16)


def test_where_none_may_miss_it_the_first_one_ends_the_study(lab) -> None:
    around = Surroundings(LiveTraffic(at(900), violations_per_hour=0.0), clock_at(12))
    assert around.gate.before_trial(study_of(lab)) is None
    around.gate.after_trial(violation(lab))
    assert around.gate.before_trial(study_of(lab)) == "a trial missed the SLO, and none may"


def test_violations_of_an_earlier_run_count(lab) -> None:
    past = [clock_at(11, 30), clock_at(11, 45), clock_at(9)]
    around = Surroundings(LiveTraffic(at(900), violations_per_hour=2.0), clock_at(12), past)
    assert around.gate.pause(study_of(lab)).until == clock_at(12, 30)
