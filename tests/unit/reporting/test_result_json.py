from __future__ import annotations

import json
from dataclasses import replace

import pytest

from polythrottle.objective import EnergyObjective
from polythrottle.reporting.result_json import RESULT_SCHEMA, result_json
from polythrottle.study import Study


def test_it_is_plain_json_and_names_its_schema(study: Study) -> None:
    assert study.result is not None
    document = json.loads(json.dumps(result_json(study.result, study), allow_nan=False))
    assert document["schema"] == RESULT_SCHEMA == "polythrottle-result/1"
    assert document["provenance"] == "emulated"
    assert document["verdict"] == "optimal"
    assert document["chosen"]["configuration"] == {
        "gpu_freq_mhz": 612,
        "mem_freq_mhz": 2133,
        "cpu_freq_mhz": 1036.8,
        "batch_size": 2,
    }
    assert document["saving"] == 1 - 0.6120 / 0.8124
    assert document["search"]["payback_queries"] == 45509
    assert document["slo"] == {"statistic": "p99", "limit_s": 0.05, "factor": None}


def test_the_objective_has_a_value_and_a_unit(study: Study, infeasible: Study) -> None:
    assert study.result is not None
    assert infeasible.result is not None
    document = result_json(study.result, study)
    assert (document["objective_value"], document["objective_unit"]) == (0.6120, "J")
    edp = replace(study, spec=replace(study.spec, objective=EnergyObjective.ENERGY_DELAY_PRODUCT))
    document = result_json(study.result, edp)
    assert document["objective_value"] == pytest.approx(0.6120 * 0.0453)
    assert document["objective_unit"] == "J·s"
    assert result_json(infeasible.result, infeasible)["objective_value"] is None


def test_unknown_is_null_and_never_zero(study: Study) -> None:
    assert study.result is not None
    trials = result_json(study.result, study)["trials"]
    assert [trial["number"] for trial in trials] == list(range(1, 15))
    aborted, failed = trials[4], trials[7]
    assert aborted["energy_j"] is None
    assert aborted["state"] == "aborted"
    assert failed["latency_s"] is None
    assert failed["reason"].startswith("failed: ")
    assert trials[0]["predicted"] is None
    assert trials[2]["predicted"]["p_feasible"] == 0.91


def test_without_a_choice_the_closest_is_there(infeasible: Study) -> None:
    assert infeasible.result is not None
    document = result_json(infeasible.result, infeasible)
    assert document["chosen"] is None
    assert document["saving"] is None
    assert document["closest"]["latency_s"] == 0.0242
