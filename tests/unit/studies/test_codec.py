"""Values as JSON: read back equal, or refused."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polythrottle.configuration import AtMost, Configuration, Excluded, Knob, SearchSpace
from polythrottle.errors import InvalidInputError, StateError
from polythrottle.measurement import (
    EnergyReading,
    LatencyReading,
    Measurement,
    Provenance,
    Scope,
    Unavailable,
)
from polythrottle.study import StudySpec
from polythrottle.suggestion import Candidate, Prediction, StopAdvice, Suggestion
from polythrottle_server.codec import decode, encode, spec_digest

number = st.floats(allow_nan=False, allow_infinity=False)
level = st.one_of(st.floats(0, 1e6), st.just("unlocked"))
configuration = st.dictionaries(st.text(min_size=1), level, max_size=4).map(Configuration.of)
energy = st.one_of(
    st.builds(Unavailable, st.text()),
    st.builds(
        EnergyReading,
        number,
        st.one_of(st.none(), number),
        st.text(),
        st.sampled_from(Scope),
        st.sampled_from(Provenance),
        number,
    ),
)
latency = st.one_of(
    st.builds(Unavailable, st.text()),
    st.builds(
        LatencyReading,
        number,
        st.one_of(st.none(), number),
        st.text(),
        st.integers(0, 10**9),
        st.booleans(),
        st.sampled_from(Provenance),
    ),
)
measurement = st.builds(
    Measurement,
    configuration,
    configuration,
    configuration,
    energy,
    latency,
    number,
    number,
    st.one_of(st.none(), number),
    st.one_of(st.none(), st.text()),
    st.lists(st.text(), max_size=3).map(tuple),
)
prediction = st.builds(Prediction, number, number, number, number, number)
suggestion = st.builds(
    Suggestion,
    st.one_of(st.none(), configuration),
    st.text(),
    st.one_of(st.none(), prediction),
    st.one_of(st.none(), number),
    st.lists(st.builds(Candidate, configuration, prediction), max_size=3).map(tuple),
    st.one_of(st.none(), st.builds(StopAdvice, st.booleans(), st.text(), number, number)),
    st.lists(st.text(), max_size=3).map(tuple),
)


@given(measurement)
def test_a_measurement_reads_back_to_the_last_bit(value):
    assert decode(Measurement, json.loads(json.dumps(encode(Measurement, value)))) == value


@given(suggestion)
def test_a_suggestion_reads_back(value):
    assert decode(Suggestion, json.loads(json.dumps(encode(Suggestion, value)))) == value


def rich(lab) -> StudySpec:
    space = SearchSpace(
        (Knob.of("gpu_min_freq_mhz", [100, 200]), Knob("mem_freq_mhz", (800, 1600.0, "unlocked"))),
        (AtMost("gpu_min_freq_mhz", "gpu_freq_mhz"), Excluded((("mem_freq_mhz", 800),))),
        frozenset({(0, 2), (1, 2), (1, 1)}),
    )
    return replace(lab.spec(), space=space, anchor=space.highest(), fixed=(("cpu_cores", 4),), notes=("a",))


def test_a_spec_with_rules_cells_and_categories_reads_back(lab):
    spec = rich(lab)
    assert decode(StudySpec, encode(StudySpec, spec)) == spec


def test_equal_specs_share_a_digest_and_others_do_not(lab):
    spec = rich(lab)
    cells = frozenset(sorted(spec.space.cells, reverse=True))
    same = replace(spec, space=replace(spec.space, cells=cells), fixed=(("cpu_cores", 4.0),))
    assert spec_digest(spec) == spec_digest(same)
    for other in (replace(spec, seed=1), replace(spec, max_trials=3), replace(spec, model_version="2")):
        assert spec_digest(spec) != spec_digest(other)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_not_written(value):
    with pytest.raises(InvalidInputError, match="cannot be stored"):
        encode(Prediction, Prediction(value, 0.1, 0.1, 0.1, 0.5))


def test_a_wrong_type_in_memory_is_not_written():
    with pytest.raises(InvalidInputError, match="energy_j"):
        encode(Prediction, Prediction("much", 0.1, 0.1, 0.1, 0.5))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.pop("workload"), "workload"),
        (lambda d: d.update(seed="0"), "seed"),
        (lambda d: d.update(baseline=1), "baseline"),
        (lambda d: d.update(strategy="guess"), "strategy"),
        (lambda d: d["slo"].update(limit_s=None), "limit_s"),
        (lambda d: d["space"]["knobs"][0].update(levels=[2.0, 1.0]), "ascend"),
        (lambda d: d.update(flavour="sweet"), "flavour"),
        (lambda d: d["space"]["knobs"][1].update(colour="red"), r"space\.knobs\[1\]\.colour"),
    ],
)
def test_a_document_that_is_not_quite_ours_is_refused(lab, change, says):
    document = copy.deepcopy(encode(StudySpec, lab.spec()))
    change(document)
    with pytest.raises(StateError, match=says):
        decode(StudySpec, document)
