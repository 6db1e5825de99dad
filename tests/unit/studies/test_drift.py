"""A device that changes during the search: seen at max clocks, and divided out of what follows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from polythrottle.optimizer.problem import Observation
from polythrottle.study import Study, StudyState, Verdict
from polythrottle.trial import Purpose, Trial, TrialState
from polythrottle_server.drift import corrections, drift_notes
from polythrottle_server.evidence import evidence, resolved_slo


def whole(lab, device, slo="3x"):
    return lab.whole(device, lab.Suggester(stop_after=22), slo=slo, batch=True, max_trials=40)


def test_max_clocks_are_measured_again_every_eight_search_trials(lab):
    study = whole(lab, lab.Device())
    numbers = [t.number for t in study.of(Purpose.DRIFT)]
    before = [sum(t.number < n for t in study.of(Purpose.SEARCH)) for n in numbers]
    assert before == [7, 15]  # max clocks are the first search trial
    assert corrections(study) == {}
    assert drift_notes(study) == ()


def test_a_steady_check_is_one_more_window_of_max_clocks(lab):
    study = whole(lab, lab.Device())
    anchor = study.spec.anchor
    windows = [t for t in study.trials if t.configuration == anchor]
    assert study.result.max_clocks.n_windows == len(windows) == 6


def test_later_observations_are_divided_by_the_drift(lab):
    slower = lab.Device(slower_after=2 + 2 + 7, slower_by=1.25)
    drifted, steady = whole(lab, slower), whole(lab, lab.Device())
    truth = {o.configuration: o for o in evidence(steady)}
    for observation in evidence(drifted):
        assert isinstance(observation, Observation)
        expected = truth[observation.configuration]
        assert observation.latency_s == pytest.approx(expected.latency_s, rel=1e-6)
        assert observation.energy_j == pytest.approx(expected.energy_j, rel=1e-6)
    assert drifted.result.chosen.configuration == steady.result.chosen.configuration


def test_the_note_says_so(lab):
    study = whole(lab, lab.Device(slower_after=2 + 2 + 7, slower_by=1.25))
    note = drift_notes(study)[0]
    assert "From trial 12 on" in note
    assert "+25.0% latency" in note
    later = [t for t in study.of(Purpose.SEARCH) if t.number > 12]
    assert all(note in t.suggestion.notes for t in later)
    assert note in study.result.reason


@pytest.mark.parametrize(("by", "error"), [(1.015, 1e-4), (1.05, 0.03)])
def test_a_small_or_uncertain_change_is_left_alone(lab, by, error):
    study = whole(lab, lab.Device(slower_after=11, slower_by=by, error=error))
    assert corrections(study) == {}


def test_drift_does_not_move_a_relative_slo(lab):
    study = whole(lab, lab.Device(slower_after=2 + 2 + 7, slower_by=1.25), slo="1.5x")
    assert resolved_slo(study).limit_s == pytest.approx(0.03)
    assert study.result.verdict is Verdict.OPTIMAL


def test_a_device_that_became_slower_is_judged_as_it_is_now_against_an_absolute_slo(lab):
    """Corrected, the cheapest still meets 60 ms; served now, it would not, and the next one is confirmed."""
    device = lab.Device(slower_after=26, slower_by=1.25)
    study = whole(lab, device, slo="60ms")
    relative = whole(lab, replace(device, ran=[], plans=[]))
    chosen, cheapest = study.result.chosen.configuration, relative.result.chosen.configuration
    assert device.latency_s(cheapest) <= 0.06 < 1.25 * device.latency_s(cheapest)
    assert 1.25 * device.latency_s(chosen) <= 0.06
    assert len(study.of(Purpose.CONFIRM)) > len(relative.of(Purpose.CONFIRM))


def test_a_check_that_fails_twice_is_given_up_until_the_next_one(lab):
    device = lab.Device()

    class Refuses(lab.Device):
        def run(self, assignment):
            if assignment.trial.purpose is Purpose.DRIFT:
                self.failing[assignment.trial.configuration] = 1
            return super().run(assignment)

    study = whole(lab, Refuses())
    checks = study.of(Purpose.DRIFT)
    assert [t.state for t in checks] == [TrialState.FAILED] * 4
    assert study.result.verdict is Verdict.OPTIMAL
    assert device.ran == []


def anchors(lab, *steps):
    """A study of max clocks alone: (purpose, factor on latency and energy) in order."""
    device, spec = lab.Device(), lab.spec()

    def trial(purpose, factor):
        slow = replace(device, slower_after=-1, slower_by=factor)
        return Trial(
            1, purpose, spec.anchor, state=TrialState.COMPLETED, measurement=slow.measure(spec.anchor)
        )

    start = [(Purpose.ANCHOR, 1.0), (Purpose.ANCHOR, 1.0)]
    return lab.told(Study("x", spec, StudyState.ACTIVE, "now"), *(trial(*step) for step in (*start, *steps)))


DRIFT, SEARCH = Purpose.DRIFT, Purpose.SEARCH


def test_a_correction_ends_when_max_clocks_are_back(lab):
    study = anchors(
        lab,
        *[(DRIFT, 1.1), (DRIFT, 1.1), (SEARCH, 1.1)],
        *[(DRIFT, 1.0), (DRIFT, 1.0), (SEARCH, 1.0)],
    )
    assert sorted(corrections(study)) == [3, 4, 5]
    assert corrections(study)[5].latency == pytest.approx(1.1)


def test_one_window_alone_never_counts_as_drift(lab):
    assert corrections(anchors(lab, (DRIFT, 5.0))) == {}
    assert corrections(anchors(lab, (DRIFT, 5.0), (SEARCH, 1.0))) == {}


def test_a_correction_in_force_stays_where_one_window_seems_to_be_back(lab):
    study = anchors(
        lab,
        *[(DRIFT, 1.1), (DRIFT, 1.1), (SEARCH, 1.1)],
        *[(DRIFT, 0.2), (DRIFT, 1.1), (DRIFT, 1.1), (SEARCH, 1.1)],
    )
    assert corrections(study)[9].latency == pytest.approx(1.1)


def test_of_three_windows_that_differ_the_middle_one_is_taken(lab):
    study = anchors(lab, (DRIFT, 1.3), (DRIFT, 1.1), (DRIFT, 1.2), (SEARCH, 1.2))
    assert corrections(study)[6].latency == pytest.approx(1.2)


def test_an_outlier_in_a_check_changes_no_later_reading(lab):
    """The check after 7 search trials reads five times too much, once; two more windows settle it."""

    class Glitch(lab.Device):
        def measure(self, c):
            self.slower_by = 5.0 if len(self.ran) == 12 else 1.0
            self.slower_after = 0
            return super().measure(c)

    odd, steady = whole(lab, Glitch()), whole(lab, lab.Device())
    checks = [t.number for t in odd.of(Purpose.DRIFT)]
    assert checks == [12, 13, 14, 22 + 1]
    assert corrections(odd) == {}
    assert drift_notes(odd) == ()
    truth = {o.configuration: o for o in evidence(steady)}
    for observation in evidence(odd):
        assert observation.latency_s == pytest.approx(truth[observation.configuration].latency_s)
    assert odd.result.max_clocks.energy_j == pytest.approx(steady.result.max_clocks.energy_j)
    assert odd.result.max_clocks.energy_error_j < 0.01 * odd.result.max_clocks.energy_j


def test_drift_that_two_windows_agree_on_is_measured_twice(lab):
    study = whole(lab, lab.Device(slower_after=2 + 2 + 7, slower_by=1.25))
    assert [t.number for t in study.of(Purpose.DRIFT)][:2] == [12, 13]
    assert corrections(study)[13].latency == pytest.approx(1.25)
