"""Triton's addresses and configurations, without a Triton."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from polythrottle.errors import InvalidInputError, StateError
from polythrottle_agent.ports import ControlError
from polythrottle_agent.workloads.triton_config import (
    batch_size_of,
    holds,
    model_digest,
    usual_sizes,
    why_no_knob,
    with_batch_size,
)
from polythrottle_agent.workloads.triton_original import KeptOriginal
from polythrottle_agent.workloads.triton_server import Address

CONFIG: dict[str, Any] = {
    "name": "m",
    "backend": "python",
    "max_batch_size": 12,
    "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [3, 8]}],
    "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [2]}],
    "dynamic_batching": {"preferred_batch_size": [4, 8], "max_queue_delay_microseconds": 300},
}


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("http://h:8000/m", Address("h", 8000, False, False, "m")),
        ("https://h/m", Address("h", 443, False, True, "m")),
        ("https://h/front/door/m/3", Address("h", 443, False, True, "m", "3", "front/door")),
        ("grpc://h/m", Address("h", 8001, True, False, "m")),
        ("grpcs://[::1]:9/m/12", Address("::1", 9, True, True, "m", "12")),
        ("h/m", Address("h", 8000, False, False, "m")),
        ("h:8001/m", Address("h", 8001, True, False, "m")),
        ("//h:8000/m", Address("h", 8000, False, False, "m")),
    ],
)
def test_an_address_is_read_and_written(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert Address.parse(address.target) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "h",
        "http://h",
        "http://h/",
        "http://h/3",
        "ftp://h/m",
        "http://h:99999/m",
        "grpc://h/a/m",
        "http:///m",
    ],
)
def test_what_is_no_address_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(InvalidInputError) as error:
        Address.parse(text)
    assert "\n" not in str(error.value)


def test_metrics_are_looked_for_on_the_usual_port() -> None:
    assert Address.parse("grpc://[::1]/m").metrics_url == "http://[::1]:8002/metrics"


def test_the_batch_size_is_set_and_all_else_is_kept() -> None:
    changed = with_batch_size(CONFIG, 2)
    assert changed["max_batch_size"] == 2
    assert changed["dynamic_batching"] == {"preferred_batch_size": [2], "max_queue_delay_microseconds": 300}
    assert {k: changed[k] for k in ("name", "backend", "input", "output")} == {
        k: CONFIG[k] for k in ("name", "backend", "input", "output")
    }
    assert CONFIG["max_batch_size"] == 12
    assert with_batch_size({"name": "m", "max_batch_size": 4}, 2)["dynamic_batching"] == {}


def test_what_triton_fills_in_does_not_count_as_another_configuration() -> None:
    wanted = with_batch_size({"name": "m", "max_batch_size": 4}, 2)
    filled_in = {**wanted, "dynamic_batching": {"preferred_batch_size": [2], "priority_levels": 0}}
    assert holds(filled_in, wanted)
    assert not holds({**filled_in, "max_batch_size": 3}, wanted)
    assert not holds({**filled_in, "name": "other"}, wanted)
    assert not holds({"name": "m", "max_batch_size": 2}, wanted)
    assert not holds(CONFIG, with_batch_size(CONFIG, 12))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"max_batch_size": 0}, "takes no batches"),
        ({"sequence_batching": {}}, "sequences"),
        ({"ensemble_scheduling": {"step": []}}, "ensemble"),
        ({"model_transaction_policy": {"decoupled": True}}, "decoupled"),
    ],
)
def test_some_models_have_no_knob(change: dict[str, Any], reason: str) -> None:
    found = why_no_knob({**CONFIG, **change})
    assert found is not None
    assert reason in found
    assert why_no_knob(CONFIG) is None


@pytest.mark.parametrize(
    ("limit", "sizes"), [(1, (1,)), (8, (1, 2, 4, 8)), (12, (1, 2, 4, 8, 12)), (0, (1,))]
)
def test_the_usual_sizes_end_with_the_model_s_own_limit(limit: int, sizes: tuple[int, ...]) -> None:
    assert usual_sizes({"max_batch_size": limit}) == sizes
    assert batch_size_of({"max_batch_size": limit}) == sizes[-1]


def test_a_model_is_the_same_over_http_and_grpc() -> None:
    over_grpc = {
        **CONFIG,
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": ["3", "8"]}],
        "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": ["2"]}],
        "max_batch_size": 2,
    }
    assert model_digest({**CONFIG, "platform": "", "metric_tags": {}}) == model_digest(over_grpc)
    assert model_digest({**CONFIG, "backend": "onnxruntime"}) != model_digest(CONFIG)


def kept(directory: Path) -> KeptOriginal:
    return KeptOriginal(directory, Address.parse("http://h:8000/m"))


def test_an_original_is_kept_until_it_is_back(tmp_path: Path) -> None:
    first = kept(tmp_path / "new")
    first.keep(CONFIG, 2)
    first.keep(with_batch_size(CONFIG, 2), 4)  # the second is not the original
    for size in (2, 4):
        assert kept(tmp_path / "new").left_behind(with_batch_size(CONFIG, size)) == CONFIG
    first.forget()
    assert kept(tmp_path / "new").left_behind(with_batch_size(CONFIG, 2)) is None


@pytest.mark.parametrize(
    "now", [CONFIG, with_batch_size(CONFIG, 8), {**with_batch_size(CONFIG, 2), "metric_tags": {"a": "b"}}]
)
def test_what_we_did_not_load_is_nobody_s_leftover(tmp_path: Path, now: dict[str, Any]) -> None:
    kept(tmp_path).keep(CONFIG, 2)
    again = kept(tmp_path)
    assert again.left_behind(now) is None
    assert not again.path.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema": "other"}', json.dumps({}).encode()])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    one = kept(tmp_path)
    one.path.write_bytes(content)
    with pytest.raises(StateError, match="restart Triton"):
        one.left_behind(CONFIG)


def test_nothing_is_promised_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ControlError, match="nothing is changed"):
        kept(tmp_path / "file").keep(CONFIG, 2)
