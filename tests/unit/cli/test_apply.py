"""`polythrottle apply` and its neighbours: what a user may write, and what they hear when it is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from polythrottle.cli.durations import seconds
from polythrottle.cli.main import invoke
from polythrottle.errors import InvalidInputError

NANO = ("--device", "emulated:orin-nano-8gb")


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYTHROTTLE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("POLYTHROTTLE_HELPER_SOCKET", str(tmp_path / "no.sock"))
    monkeypatch.setenv("COLUMNS", "200")


def settings(tmp_path: Path, content: object) -> str:
    path = tmp_path / "settings.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("content", "levels"),
    [
        ({"gpu_freq_mhz": 612}, "GPU 612 MHz"),
        ("gpu_freq_mhz: 612\nmem_freq_mhz: unlocked\n", "GPU 612 MHz · memory unlocked"),
        (
            {"schema": "polythrottle-result/1", "chosen": {"configuration": {"gpu_freq_mhz": 612.0}}},
            "GPU 612 MHz",
        ),
    ],
)
def test_a_file_is_applied_held_and_put_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: object, levels: str
) -> None:
    code = invoke(["apply", settings(tmp_path, content), "--for", "10m", "--latency-slo", "200ms", *NANO])
    out = capsys.readouterr().out
    assert code == 0, out
    assert levels in out
    assert "held      The SLO (p99 ≤ 200 ms) is met" in out


def test_a_result_of_the_real_board_is_applied_to_the_emulated_one_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = {
        "schema": "polythrottle-result/1",
        "provenance": "measured",
        "device": {"id": "jetson:orin-nano-8gb:1", "board": "orin-nano-8gb", "label": "my board"},
        "chosen": {"configuration": {"gpu_freq_mhz": 612.0}},
    }
    code = invoke(["apply", settings(tmp_path, result), "--for", "10m", "--latency-slo", "200ms", *NANO])
    out = capsys.readouterr().out
    assert code == 0, out
    assert "warning   this was found on my board (measured), and here is" in out


def test_what_is_not_confirmed_reverts_with_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = invoke(["apply", settings(tmp_path, {"gpu_freq_mhz": 612}), "--for", "10m", *NANO])
    assert code == 1
    assert "Nobody confirmed it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "content", "word"),
    [
        ((), {"gpu_freq_mhz": 612}, "either --for TIME"),
        (("--for", "1m", "--keep"), {"gpu_freq_mhz": 612}, "either --for TIME"),
        (("--for", "10"), {"gpu_freq_mhz": 612}, "cannot be read"),
        (("--for", "1m", "--latency-slo", "1.2x"), {"gpu_freq_mhz": 612}, "must be a time"),
        (("--for", "1m"), {"gpu_freq_mhz": 611}, "no level 611"),
        (("--for", "1m"), {"gpu_freq": 612}, "did you mean gpu_freq_mhz"),
        (("--for", "1m"), {"gpu_freq_mhz": True}, "must be a number"),
        (("--for", "1m"), [1], "must map knobs"),
        (("--for", "1m"), "{", "is neither YAML nor JSON at line 1; write for example `gpu_freq_mhz: 612`"),
        (("--for", "1m"), "gpu_freq_mhz: 612\n\tmem: [", "is neither YAML nor JSON at line 2"),
        (
            ("--for", "1m"),
            {
                "schema": "polythrottle-result/1",
                "provenance": "measured",
                "device": {"id": "jetson:tx2:1", "board": "tx2", "label": "a TX2"},
                "chosen": {"configuration": {"gpu_freq_mhz": 612.0}},
            },
            "This was found on a TX2 (tx2), and here is",
        ),
        (("--for", "1m"), {"schema": "polythrottle-result/1", "chosen": None}, "must map knobs"),
        (("--keep", "--yes"), {"gpu_freq_mhz": 612}, "use --for"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    content: object,
    word: str,
) -> None:
    assert invoke(["apply", settings(tmp_path, content), *arguments, *NANO]) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert word in error
    assert error.startswith("error: ")


def test_a_file_or_study_that_is_not_there_is_said_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["apply", "nowhere.json", "--for", "1m"]) == 1
    assert "no file nowhere.json" in capsys.readouterr().err
    assert invoke(["apply", "last", "--for", "1m"]) == 1
    assert "No study is kept here" in capsys.readouterr().err


def test_with_nothing_held_restore_and_audit_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = ("--state-dir", str(tmp_path))
    for command, word in (("restore", "Nothing to put back"), ("audit", "Nothing in the audit log")):
        assert invoke([command, *directory]) == 0
        assert word in capsys.readouterr().out
    assert invoke(["restore", "--dry-run", *directory]) == 0
    assert "nothing to put back" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "expected"), [("90s", 90.0), ("10m", 600.0), ("1.5 h", 5400.0), ("2D", 172800.0)]
)
def test_durations(text: str, expected: float) -> None:
    assert seconds("--for", text) == expected


@pytest.mark.parametrize("text", ["", "10", "0s", "-1m", "1w", "1m30s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(InvalidInputError, match="--for"):
        seconds("--for", text)
