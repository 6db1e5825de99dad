"""A knob that the physics does not know, such as the threads of ONNX Runtime, is learnt from data alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from polythrottle.configuration import UNITS, Configuration, Knob, SearchSpace
from polythrottle.measurement import EnergyReading, LatencyReading, Measurement, Provenance, Scope
from polythrottle.spaces import build_space
from polythrottle.studies import Assignment, Measured, Outcome
from polythrottle.study import Strategy
from polythrottle_server.suggesting import InProcessSuggester

THREADS = Knob.of("intra_op_threads", [1, 2, 3, 4, 5, 6, 7, 8])
BATCH = Knob.of("batch_size", [1, 2, 4])
CPU = Knob.of("cpu_freq_mhz", [600, 900, 1200, 1500, 1800])
ERROR = 0.004


class ThreadedDevice:
    """Threads help with Amdahl's law and cost power each: the least energy is at three or four of them."""

    def truth(self, c: Configuration) -> tuple[float, float]:
        threads, batch = float(c.get("intra_op_threads", 8.0)), float(c.get("batch_size", 1.0))
        clock = float(c.get("cpu_freq_mhz", 1800.0)) / 1800.0
        seconds = 0.01 * (0.3 + 0.7 * batch) * (0.2 + 0.8 / threads) / clock
        watts = 4.0 + 1.2 * threads * clock**2.5
        return seconds, seconds * watts / batch

    def run(self, assignment: Assignment) -> Outcome:
        c = assignment.trial.configuration
        seconds, joules = self.truth(c)
        return Measured(
            Measurement(
                requested=c,
                accepted=c,
                observed=c,
                energy=EnergyReading(joules, ERROR * joules, "formula", Scope.CPU, Provenance.EMULATED, 10.0),
                latency=LatencyReading(seconds, ERROR * seconds, "p99", 1000, True, Provenance.EMULATED),
                started_s=0.0,
                duration_s=10.0,
                total_energy_j=1000 * joules,
            )
        )


@pytest.mark.parametrize("strategy", [Strategy.INFORMED, Strategy.FLAT, Strategy.POLYTHROTTLE])
@pytest.mark.parametrize("knobs", [(THREADS,), (BATCH, THREADS), (CPU, BATCH, THREADS)], ids=len)
def test_threads_are_searched_alone_and_beside_what_the_physics_knows(lab, strategy, knobs):
    assert THREADS.name not in UNITS
    space, device = SearchSpace(knobs), ThreadedDevice()
    anchor = Configuration.of({**space.highest(), **({"batch_size": 1.0} if BATCH in knobs else {})})
    spec = replace(lab.spec("12ms", strategy=strategy), space=space, anchor=anchor, max_trials=14)
    studies = lab.open(InProcessSuggester())
    study = lab.drive(studies, studies.create(spec), device)
    assert study.result is not None
    assert study.result.chosen is not None
    found = device.truth(study.result.chosen.configuration)[1]
    allowed = [c for c in map(space.at, space.indices()) if device.truth(c)[0] <= 0.012]
    best = min(device.truth(c)[1] for c in allowed)
    worst = device.truth(anchor)[1]
    # The others are only asked to work; the default to come near the optimum.
    assert found <= worst
    if strategy is Strategy.INFORMED:
        assert found <= 1.05 * best


def test_threads_are_searched_unless_the_user_chooses_otherwise():
    available = {knob.name: knob for knob in (CPU, BATCH, THREADS)}
    choice = build_space(available, None, {}, None, None, 1)
    assert choice.space.names == ("cpu_freq_mhz", "batch_size", "intra_op_threads")
    assert choice.anchor["intra_op_threads"] == 8.0
    assert "threads 8" in str(choice.anchor)
    fewer = build_space(available, ["cpu_freq_mhz"], {"intra_op_threads": "2"}, None, None, 1)
    assert fewer.fixed == (("intra_op_threads", 2.0),)
