"""GPU profiles against their schema, against themselves, and against the pretended GPUs."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from polythrottle.errors import InvalidInputError
from polythrottle.gpu_profiles import FOLDER, gpu_names, load_gpu_profile
from polythrottle.profiles import PACKAGE, board_names

FILES = resources.files(PACKAGE).joinpath(FOLDER)


def facts(gpu: str) -> dict[str, Any]:
    return dict(yaml.safe_load(FILES.joinpath(f"{gpu}.yaml").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = json.loads(FILES.joinpath("gpu.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def test_v100_a100_and_h100_are_there_and_are_no_boards() -> None:
    assert {name.partition("-")[0] for name in gpu_names()} == {"v100", "a100", "h100"}
    assert not set(gpu_names()) & set(board_names())


@pytest.mark.parametrize("gpu", gpu_names())
def test_follows_the_schema(gpu: str, validator: Draft202012Validator) -> None:
    assert [f"{list(e.absolute_path)}: {e.message}" for e in validator.iter_errors(facts(gpu))] == []
    assert facts(gpu)["gpu"] == gpu


def test_the_schema_refuses_what_it_does_not_know(validator: Draft202012Validator) -> None:
    content = facts("a100-sxm4-40gb")
    content["colour"] = "green"
    content["power_limit_w"]["lowest"] = 0
    del content["supports"]
    assert len(list(validator.iter_errors(content))) == 3


@pytest.mark.parametrize("gpu", gpu_names())
def test_numbers_have_sources_and_are_in_order(gpu: str) -> None:
    content = facts(gpu)
    for block in ("graphics_clock", "memory_clock", "power_limit_w", "energy_counter"):
        numbers = [v for k, v in content[block].items() if k not in ("source", "note") and v is not None]
        assert bool(numbers) == (content[block]["source"] is not None), block
    profile = load_gpu_profile(gpu)
    known_w = [w for w in (profile.lowest_w, profile.default_w, profile.highest_w) if w is not None]
    assert known_w == sorted(known_w)
    if profile.memory_mhz is not None:
        assert max(profile.memory_mhz) == content["memory_clock"]["highest_mhz"]


@pytest.mark.parametrize("gpu", gpu_names())
def test_what_is_supported_follows_from_the_architecture(gpu: str) -> None:
    content = facts(gpu)
    newer = content["architecture"] != "volta"
    assert content["supports"]["memory_clock_lock"] == newer
    assert content["supports"]["mig"] == newer
    assert content["power_reading"]["averaged_s"] == (1 if content["architecture"] == "hopper" else 0)


def test_the_a100_s_table_is_the_published_one() -> None:
    table = load_gpu_profile("a100").graphics_mhz
    assert table is not None
    assert len(table) == 81
    assert (table[0], table[1], table[-1]) == (210.0, 225.0, 1410.0)
    assert load_gpu_profile("h100").graphics_mhz is None


@pytest.mark.parametrize("name", ["v100", "Tesla V100-SXM2-32GB", "V100_SXM2", "v100-sxm2-32gb"])
def test_a_gpu_is_found_by_any_of_its_names(name: str) -> None:
    assert load_gpu_profile(name).name == "v100-sxm2-32gb"


def test_an_unknown_gpu_is_refused_with_close_names() -> None:
    with pytest.raises(InvalidInputError, match="h100-pcie-80gb"):
        load_gpu_profile("h100-pci")


def test_names_are_unique() -> None:
    names = [n for gpu in gpu_names() for n in (gpu, *load_gpu_profile(gpu).aliases)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("gpu", gpu_names())
def test_is_plain_ascii_for_every_terminal(gpu: str) -> None:
    assert FILES.joinpath(f"{gpu}.yaml").read_text(encoding="utf-8").isascii()


def test_the_command_shows_all_or_one(capsys: pytest.CaptureFixture[str]) -> None:
    from polythrottle.cli.main import invoke

    assert invoke(["profiles", "gpus", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [entry["gpu"] for entry in listed] == list(gpu_names())
    assert invoke(["profiles", "gpus", "a100"]) == 0
    shown = capsys.readouterr().out
    assert "210 to 1410 MHz" in shown
    assert "source" in shown
    assert invoke(["profiles", "gpus", "a1000"]) == 1
    assert "No profile of a GPU" in capsys.readouterr().err
