"""`tune` on live traffic, in virtual time: it waits, stops, asks a canary, and says what is wrong."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.e2e.conftest import NANO, Command

pytestmark = pytest.mark.e2e

FEW = ("tune", "--latency-slo", "60ms", "--max-trials", "3", *NANO)


def around_now(hours: int = 3) -> str:
    """Quiet hours that it is now."""
    now = datetime.now()
    begins, ends = now - timedelta(hours=1), now + timedelta(hours=hours)
    return f"{begins:%H:%M}-{ends:%H:%M}"


def test_it_waits_through_quiet_hours_and_goes_by_small_steps(polythrottle: Command) -> None:
    ran = polythrottle(*FEW, "--quiet-hours", around_now(), "--json")
    assert ran.code == 0, ran.err
    assert "these are the quiet hours" in ran.err
    first = next(t for t in ran.json["trials"] if t["purpose"] == "search")
    assert first["configuration"]["gpu_freq_mhz"] >= 800
    assert first["state"] == "completed"


def test_it_stops_where_it_may_not_wait_and_goes_on_when_asked_to(polythrottle: Command) -> None:
    quiet = ("--quiet-hours", around_now(), "--no-waiting")
    ran = polythrottle(*FEW, *quiet, "--json")
    assert ran.json["state"] == "cancelled"
    assert "these are the quiet hours" in ran.json["reason"]
    again = polythrottle(*FEW, "--live", "--resume", "--json")
    assert again.json["study"] == ran.json["study"]
    assert again.json["chosen"] is not None


def test_every_configuration_meets_the_canary_first(polythrottle: Command, tmp_path: Path) -> None:
    shares, script = tmp_path / "shares", tmp_path / "split.py"
    script.write_text(f"import sys\nopen({str(shares)!r}, 'a').write(sys.argv[1] + ' ')\n")
    ran = polythrottle(
        *FEW, "--canary", "10%", "--canary-command", f"{sys.executable} {script} {{share}}", "--json"
    )
    assert ran.code == 0, ran.err
    told = shares.read_text().split()
    assert told[0] == told[-1] == "1"
    assert told.count("0.1") > len(ran.json["trials"])


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--quiet-hours", "at night"), "22:00-06:00"),
        (("--violations-per-hour", "many"), "--violations-per-hour"),
        (("--violations-per-hour", "-1"), "from 0 up"),
        (("--canary", "10%"), "needs both"),
        (("--canary", "ten", "--canary-command", "x {share}"), "--canary 'ten'"),
        (("--canary", "10%", "--canary-command", "x"), "takes no share"),
        (("--canary", "10%", "--canary-command", "/no/such {share}"), "could not be split"),
        (("--live", "--strategy", "grid"), "not for live traffic"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    polythrottle: Command, arguments: tuple[str, ...], word: str
) -> None:
    ran = polythrottle(*FEW, *arguments)
    assert ran.code == 1
    assert word in " ".join(ran.err.split())
    assert "Traceback" not in ran.err


def test_the_guard_searches_again_by_itself(polythrottle: Command, state_dir: Path) -> None:
    found = polythrottle("tune", "--latency-slo", "60ms", "--max-trials", "6", *NANO, "--json").json
    assert found["chosen"]["latency_s"] > 0.045
    ran = polythrottle(
        *("guard", "last", "--latency-slo", "45ms", "--retune", "--retune-every", "5s"),
        *("--for", "20m", "--json"),
    )
    events = [json.loads(line) for line in ran.out.splitlines()]
    kinds = [e["event"] for e in events if e["event"] != "state"]
    assert kinds[:6] == ["started", "fell_back", "search_wanted", "stopped", "search_answered", "started"]
    assert events[-1]["reason"] == "its time is up"
    assert ran.code == 0
    logged = [json.loads(line)["event"] for line in (state_dir / "guard.jsonl").read_text().splitlines()]
    assert logged.count("search_answered") == 1
