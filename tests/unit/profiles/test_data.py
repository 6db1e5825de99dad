"""Every profile against its schema, and against itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from polythrottle.profiles import PACKAGE, board_names, load_profile

FILES = resources.files(PACKAGE)
TABLES = {"cpu": "khz", "gpu_clock": "hz", "memory_clock": "hz"}
UNITS_PER_MHZ = {"khz": 1e3, "hz": 1e6}


def facts(board: str) -> dict[str, Any]:
    return dict(yaml.safe_load(FILES.joinpath(f"{board}.yaml").read_text(encoding="utf-8")))


def tables(board: str) -> Iterator[tuple[str, dict[str, Any]]]:
    content = facts(board)
    for block, unit in TABLES.items():
        for table in content[block]["tables"]:
            yield unit, table


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = json.loads(FILES.joinpath("profile.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def test_the_eleven_boards_are_there() -> None:
    assert board_names() == (
        "jetson-agx-orin-32gb",
        "jetson-agx-orin-64gb",
        "jetson-agx-thor",
        "jetson-agx-xavier",
        "jetson-orin-nano-4gb",
        "jetson-orin-nano-8gb",
        "jetson-orin-nx-16gb",
        "jetson-orin-nx-8gb",
        "jetson-tx2",
        "jetson-tx2-nx",
        "jetson-xavier-nx",
    )


@pytest.mark.parametrize("board", board_names())
def test_follows_the_schema(board: str, validator: Draft202012Validator) -> None:
    problems = [f"{list(e.absolute_path)}: {e.message}" for e in validator.iter_errors(facts(board))]
    assert problems == []
    assert facts(board)["board"] == board


def test_the_schema_refuses_what_it_does_not_know(validator: Draft202012Validator) -> None:
    content = facts("jetson-tx2")
    content["gpu_clock"]["tables"][0]["levels_hz"] = ["fast"]
    content["colour"] = "green"
    del content["power"]
    assert len(list(validator.iter_errors(content))) == 3


@pytest.mark.parametrize("board", board_names())
def test_native_units_agree_with_mhz_and_ascend(board: str) -> None:
    for unit, table in tables(board):
        for kind in ("levels", "known_points"):
            native, mhz = table[f"{kind}_{unit}"], table[f"{kind}_mhz"]
            assert (native is None) == (mhz is None)
            if native is None:
                continue
            assert native == sorted(set(native)), table["variant"]
            assert mhz == pytest.approx([value / UNITS_PER_MHZ[unit] for value in native], rel=1e-9)


@pytest.mark.parametrize("board", board_names())
def test_a_complete_table_has_levels_and_a_source(board: str) -> None:
    for unit, table in tables(board):
        assert table["complete"] == (table[f"levels_{unit}"] is not None)
        if table["complete"] or table[f"known_points_{unit}"] is not None:
            assert table["source"], table["variant"]
        assert not (table["complete"] and table[f"known_points_{unit}"])


@pytest.mark.parametrize("board", board_names())
def test_variants_are_named_once(board: str) -> None:
    content = facts(board)
    for block in TABLES:
        names = [table["variant"] for table in content[block]["tables"]]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("board", board_names())
def test_clusters_partition_the_cpus(board: str) -> None:
    cpu = facts(board)["cpu"]
    members = [c for cluster in cpu["clusters"] for c in cluster["cpus"]]
    assert sorted(members) == list(range(cpu["cores"]))
    assert all(cluster["policy_cpu"] == min(cluster["cpus"]) for cluster in cpu["clusters"])
    assert set(cpu["always_online"]) <= set(members)


@pytest.mark.parametrize("board", board_names())
def test_power_modes_fit_the_board(board: str) -> None:
    profile = load_profile(board)
    clusters = {cluster.nvpmodel_name: set(cluster.cpus) for cluster in profile.cpu_clusters}
    for model in profile.nvpmodels:
        ids = [mode.id for mode in model.modes]
        assert len(set(ids)) == len(ids)
        assert model.default_mode in ids
        for mode in model.modes:
            if mode.cpus_online is not None:
                assert set(mode.cpus_online) <= set(range(profile.cpu_cores))
                assert 0 in mode.cpus_online
            for name, _ in mode.cpu_caps_mhz or ():
                assert name == "each_core" or clusters[name] & set(mode.cpus_online or ()), (mode, name)


@pytest.mark.parametrize("board", board_names())
def test_no_cap_lies_above_the_highest_level(board: str) -> None:
    profile = load_profile(board)
    highest = {
        knob: max(table.freqs_mhz[-1] for table in found if table.freqs_mhz)
        for knob, found in profile.tables.items()
        if any(table.freqs_mhz for table in found) and all(table.complete for table in found)
    }
    for model in profile.nvpmodels:
        for mode in model.modes:
            caps = {
                "gpu_freq_mhz": mode.gpu_cap_mhz,
                "mem_freq_mhz": mode.mem_cap_mhz,
                "cpu_freq_mhz": max((cap for _, cap in mode.cpu_caps_mhz or ()), default=None),
            }
            for knob, cap in caps.items():
                if cap is not None and cap != float("inf") and knob in highest:
                    assert cap <= highest[knob], (mode.name, knob)


@pytest.mark.parametrize("board", board_names())
def test_the_total_is_one_of_the_rails(board: str) -> None:
    profile = load_profile(board)
    labels = {rail.label for rail in profile.power_rails}
    wanted = {profile.total_rail} if profile.total_rail else set(profile.total_summed_rails or ())
    assert wanted
    assert wanted <= labels


@pytest.mark.parametrize("board", board_names())
def test_current_resolution_is_40_microvolt_over_the_shunt(board: str) -> None:
    for rail in load_profile(board).power_rails:
        if rail.shunt_uohm is not None and rail.current_lsb_ma is not None:
            assert rail.current_lsb_ma == pytest.approx(40e3 / rail.shunt_uohm)


@pytest.mark.parametrize("board", board_names())
def test_is_plain_ascii_for_every_terminal(board: str) -> None:
    assert FILES.joinpath(f"{board}.yaml").read_text(encoding="utf-8").isascii()
