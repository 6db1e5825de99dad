"""Due times have the rate and the spread that was asked for."""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path

import pytest

from polythrottle.errors import InvalidInputError
from polythrottle_agent.load.arrivals import Arrivals, Kind


def first(arrivals: Arrivals, n: int, seed: int = 0) -> list[float]:
    return list(itertools.islice(arrivals.times(seed), n))


@pytest.mark.parametrize("text", ["constant", "poisson", "burst:2/3", "burst:0.5/0"])
def test_the_mean_rate_is_the_one_asked_for(text: str) -> None:
    arrivals = Arrivals.parse(text, 50.0)
    times = first(arrivals, 20_000)
    assert len(times) / times[-1] == pytest.approx(50.0, rel=0.03)
    assert times == sorted(times)
    assert times[0] > 0


def test_constant_gaps_are_equal_and_do_not_drift() -> None:
    times = first(Arrivals.parse("constant", 3.0), 300_000)
    assert times[-1] == 100_000.0
    assert times[1] - times[0] == pytest.approx(1 / 3)


def test_poisson_gaps_are_exponential() -> None:
    times = first(Arrivals.parse("poisson", 100.0), 50_000)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert statistics.pstdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.03)
    # 1/e of exponential gaps are longer than their mean.
    assert sum(gap > 0.01 for gap in gaps) / len(gaps) == pytest.approx(0.3679, abs=0.01)


def test_seeds_repeat_and_differ() -> None:
    arrivals = Arrivals.parse("poisson", 10.0)
    assert first(arrivals, 100, seed=1) == first(arrivals, 100, seed=1)
    assert first(arrivals, 100, seed=1) != first(arrivals, 100, seed=2)


def test_a_burst_is_silent_in_its_pauses() -> None:
    times = first(Arrivals.parse("burst:1/4", 20.0), 5_000)
    assert all(time % 5.0 <= 1.0 for time in times)
    # All of it within a fifth of the time: five times the rate.
    within = [time for time in times if time < 1.0]
    assert 70 < len(within) < 130


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return f"trace:{path}"


def test_a_trace_runs_as_recorded_and_again_from_the_start(tmp_path: Path) -> None:
    arrivals = Arrivals.parse(write(tmp_path / "t.csv", "10.0\n10.5\n13.0\n"), None)
    assert arrivals.kind is Kind.TRACE
    assert arrivals.rate_per_s == pytest.approx(2 / 3)
    assert first(arrivals, 6) == pytest.approx([1.5, 2.0, 4.5, 6.0, 6.5, 9.0])


def test_a_trace_is_stretched_to_a_rate(tmp_path: Path) -> None:
    arrivals = Arrivals.parse(write(tmp_path / "t.csv", "10.0\n10.5\n13.0\n"), 2.0)
    assert first(arrivals, 3) == pytest.approx([0.5, 0.5 + 0.5 / 3, 1.5])


@pytest.mark.parametrize(
    "text",
    [
        "id,timestamp\na,2026-01-01T00:00:00Z\nb,2026-01-01T00:00:01Z\n",
        "timestamp\n1\n2\n",
        "when\n1\n\n2\n",
        "﻿0\n1\n",
        "5,x\n4,y\n",
    ],
)
def test_traces_come_with_headers_dates_and_blank_lines(tmp_path: Path, text: str) -> None:
    arrivals = Arrivals.parse(write(tmp_path / "t.csv", text), None)
    assert first(arrivals, 2) == pytest.approx([1.0, 2.0])


@pytest.mark.parametrize(
    "text", ["", "1\n", "time\n", "1\n1\n", "1\nsoon\n", "a,timestamp\n1\n2\n", "1\nnan\n2\n"]
)
def test_a_trace_without_moments_is_refused_in_one_sentence(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidInputError, match=r"t\.csv") as error:
        Arrivals.parse(write(tmp_path / "t.csv", text), None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("poison", 10.0),
        ("", 10.0),
        ("poisson", None),
        ("poisson", 0.0),
        ("poisson", -1.0),
        ("poisson", float("nan")),
        ("poisson", float("inf")),
        ("constant:5", 10.0),
        ("burst", 10.0),
        ("burst:2", 10.0),
        ("burst:0/2", 10.0),
        ("burst:1/-1", 10.0),
        ("burst:a/b", 10.0),
        ("trace:", 10.0),
        ("trace:/nowhere/at/all.csv", None),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_sentence(text: str, rate: float | None) -> None:
    with pytest.raises(InvalidInputError) as error:
        Arrivals.parse(text, rate)
    assert "\n" not in str(error.value)


def test_a_rate_that_a_trace_cannot_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="rate"):
        Arrivals.parse(write(tmp_path / "t.csv", "1\n2\n"), 0.0)
