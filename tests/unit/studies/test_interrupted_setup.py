"""Ctrl-C twice while the optimiser is still being set up ends the run at once, with everything kept."""

from __future__ import annotations

import contextlib
import threading

from polythrottle.api import TuneRequest, open_studies, prepare, run
from polythrottle.objective import LatencySlo
from polythrottle.optimizer import suggest as door
from polythrottle.study import Strategy, StudyState


class Twice:
    """A user who presses Ctrl-C twice once the windows before the search are measured: hears and tells."""

    after_trial = False

    def __init__(self) -> None:
        self.finished = self.looks = 0

    @property
    def now(self) -> bool:
        self.looks += self.finished == 4
        return self.looks > 2

    def at_once(self):
        return contextlib.nullcontext()

    def started(self, study, device_label, notes=()) -> None: ...

    def trial_started(self, trial) -> None: ...

    def trial_finished(self, trial, study) -> None:  # noqa: ARG002
        self.finished += 1


def test_a_second_ctrl_c_is_heard_while_the_optimiser_is_set_up(tmp_path, monkeypatch):
    go = threading.Event()
    monkeypatch.setattr(door, "build_prior", lambda *_: go.wait(60))
    request = TuneRequest(
        LatencySlo.parse("50ms"),
        device="emulated:orin-nano-8gb",
        workload="efficientnet-b4",
        strategy=Strategy.RANDOM,
    )
    user = Twice()
    try:
        study = run(prepare(request), tmp_path, listener=user, stopping=user)
    finally:
        go.set()
    assert study.state is StudyState.CANCELLED
    assert study.result.reason == "Stopped by the user."
    assert len(study.trials) == user.finished == 4
    assert open_studies(tmp_path).get(study.id) == study
