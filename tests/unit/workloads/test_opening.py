"""Which workload a text names, and what is said about one that cannot be used."""

from __future__ import annotations

import importlib
import sys

import pytest

from polythrottle.clock import VirtualClock
from polythrottle.errors import InvalidInputError
from polythrottle_agent.workloads.opening import OPENERS, WorkloadOptions, is_workload, open_workload


@pytest.mark.parametrize("scheme", sorted(OPENERS))
def test_every_kind_has_an_opener(scheme: str) -> None:
    module, _, function = OPENERS[scheme].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("text", ["", "http", "http:", "htp:localhost", "resnet50", "http:   ", ":x"])
def test_what_is_no_workload_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(InvalidInputError) as error:
        open_workload(text, WorkloadOptions(rate_per_s=1.0), VirtualClock())
    assert "\n" not in str(error.value)


def test_a_name_is_told_from_a_workload() -> None:
    assert is_workload("http:localhost")
    assert is_workload("TRITON:localhost/m")
    assert not is_workload("efficientnet-b4")
    assert not is_workload("http")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (WorkloadOptions(), "--rate"),
        (WorkloadOptions(rate_per_s=5.0, closed_loop=True), "closed loop"),
        (WorkloadOptions(rate_per_s=-5.0), "rate"),
        (WorkloadOptions(rate_per_s=5.0, arrivals="now and then"), "arrivals"),
        (WorkloadOptions(rate_per_s=5.0, watch=True), "--watch"),
        (WorkloadOptions(rate_per_s=5.0, method="HEAD"), "--method"),
        (WorkloadOptions(rate_per_s=5.0, method="G ET"), "--method"),
        (WorkloadOptions(rate_per_s=5.0, headers=("nonsense",)), "--header"),
        (WorkloadOptions(rate_per_s=5.0, headers=("X-A: b\r\nX-C: d",)), "--header"),
        (WorkloadOptions(rate_per_s=5.0, headers=("Host: other",)), "Host"),
        (WorkloadOptions(rate_per_s=5.0, body="{}", data="x"), "--data"),
        (WorkloadOptions(rate_per_s=5.0, data="/nowhere/at/all"), "--data"),
        (WorkloadOptions(rate_per_s=5.0, body="@/nowhere/at/all"), "--body"),
        (WorkloadOptions(rate_per_s=5.0, success="maybe"), "--success"),
        (WorkloadOptions(rate_per_s=5.0, success="status:ok"), "--success"),
        (WorkloadOptions(rate_per_s=5.0, success="regex:("), "--success"),
        (WorkloadOptions(rate_per_s=5.0, batch_sizes=(1, 2)), "--batch-sizes"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused_in_one_sentence(
    options: WorkloadOptions, words: str
) -> None:
    with pytest.raises(InvalidInputError, match=words) as error:
        open_workload("http:localhost:9/", options, VirtualClock())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "target", ["ftp://host/", "http://", "http://user:secret@host/", "http://host:99999/", "a b"]
)
def test_a_url_that_cannot_be_used_is_refused(target: str) -> None:
    with pytest.raises(InvalidInputError) as error:
        open_workload(f"http:{target}", WorkloadOptions(rate_per_s=5.0), VirtualClock())
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "field", [{"time_out_s": 0.0}, {"connections": 0}, {"batch_sizes": ()}, {"batch_sizes": (0,)}]
)
def test_options_that_make_no_sense_are_refused(field: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError):
        WorkloadOptions(**field)  # type: ignore[arg-type]


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("httptools", "polythrottle_agent"))]:
        if name.startswith("httptools") or name.endswith((".http", ".http_connection")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "httptools", None)
    with pytest.raises(InvalidInputError, match=r"needs httptools.*polythrottle\[http\]"):
        open_workload("http:localhost", WorkloadOptions(rate_per_s=1.0), VirtualClock())
