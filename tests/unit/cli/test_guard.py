"""`polythrottle guard` on an emulated board: what it does, and what it says when it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from polythrottle.cli.main import invoke

NANO = ("--device", "emulated:orin-nano-8gb")


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYTHROTTLE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("POLYTHROTTLE_HELPER_SOCKET", str(tmp_path / "no.sock"))
    monkeypatch.setenv("COLUMNS", "200")


def settings(tmp_path: Path, content: object, name: str = "settings.json") -> str:
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def test_a_configuration_that_is_fast_enough_is_held(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = settings(tmp_path, {"gpu_freq_mhz": 612})
    assert invoke(["guard", file, "--latency-slo", "300ms", "--for", "2m", *NANO]) == 0
    out = capsys.readouterr().out
    assert "guarding" in out
    assert "gpu_freq_mhz 612" in out
    assert "fell back" not in out


def test_one_that_misses_the_slo_falls_back_and_asks_for_a_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = settings(tmp_path, {"gpu_freq_mhz": 306})
    assert invoke(["guard", file, "--latency-slo", "60ms", "--for", "1m", "--json", *NANO]) == 1
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kinds = [e["event"] for e in events if e["event"] != "state"]
    assert kinds == ["started", "fell_back", "search_wanted", "stopped"]
    fell = next(e for e in events if e["event"] == "fell_back")
    assert fell["settings"] == {}
    assert fell["took_s"] < 1.0
    log = (tmp_path / "state" / "guard.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in log] == events


def test_the_ladder_can_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = settings(tmp_path, {"gpu_freq_mhz": 306})
    other = settings(tmp_path, {"gpu_freq_mhz": 612}, "other.json")
    ladder = ("--fall-back", other, "--fall-back", "max")
    code = invoke(["guard", file, "--latency-slo", "5ms", "--for", "3m", "--json", *ladder, *NANO])
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert code == 1
    fell = [e["settings"] for e in events if e["event"] == "fell_back"]
    assert fell[0] == {"gpu_freq_mhz": 612.0}
    assert fell[1]["gpu_freq_mhz"] > 900.0
    assert [e["event"] for e in events].count("nothing_safer") == 1


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "--latency-slo"),
        (("--latency-slo", "1.2x"), "as a time"),
        (("--latency-slo", "50ms", "--rate-band", "wide"), "--rate-band"),
        (("--latency-slo", "50ms", "--rate-band", "2x-1x"), "must rise"),
        (("--latency-slo", "50ms", "--rate-band", "0.5x-20"), "--rate-band"),
        (("--latency-slo", "50ms", "--fall-back", "nowhere.json"), "--fall-back"),
        (("--latency-slo", "50ms", "--cool-down", "soon"), "--cool-down"),
        (("--latency-slo", "50ms", "--retune"), "needs a study"),
        (("--latency-slo", "50ms", "--watch", "no-such-workload"), "no-such-workload"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], word: str
) -> None:
    file = settings(tmp_path, {"gpu_freq_mhz": 612})
    assert invoke(["guard", file, "--for", "1m", *arguments, *NANO]) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert word in error
    assert error.startswith("error: ")


def test_a_recorded_table_serves_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = settings(tmp_path, {"gpu_freq_mhz": 612})
    code = invoke(["guard", file, "--latency-slo", "50ms", "--device", "replay:table.csv"])
    assert code == 1
    assert "nothing to guard" in capsys.readouterr().err


def test_guard_goes_with_keep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = settings(tmp_path, {"gpu_freq_mhz": 612})
    assert invoke(["apply", file, "--for", "1m", "--guard", *NANO]) == 1
    assert "--guard goes with --keep" in capsys.readouterr().err
