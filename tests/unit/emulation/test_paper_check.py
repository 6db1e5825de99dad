from pathlib import Path

import pytest

from polythrottle.errors import InvalidInputError
from polythrottle_agent.emulation.paper_check import Row, main, spearman
from polythrottle_agent.emulation.surfaces import read_surfaces

HEADER = "gpu_MHz,mem_MHz,mean_energy\n"
NAME = "Orin_B7_fp16_bs8_mJ_hwlevels.csv"


def test_every_published_figure_is_met_or_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "emulator: PASS figures (n = 24)"
    judged = [line for line in lines if "  ok" in line or "excluded" in line]
    assert len(judged) == 24
    assert sum("excluded" in line for line in judged) == 1


def test_quick_takes_a_sample(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUICK", "1")
    assert main([]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "emulator: QUICK figures"


def test_a_surface_far_from_the_emulator_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Energy that rises towards low GPU clocks and high memory: the opposite of Orin B7."""
    rows = [
        f"{gpu},{mem},{cost}"
        for gpu, mem, cost in [(420.75, 3199, 10), (420.75, 2133, 9), (1300.5, 3199, 30), (828.75, 2133, 25)]
    ]
    (tmp_path / NAME).write_text(HEADER + "\n".join(rows), encoding="utf-8")
    assert main(["--tables", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "MISS" in out
    assert out.splitlines()[-1] == "emulator: FAIL figures (n = 27)"


def test_excluded_and_missed_rows_read_differently() -> None:
    assert Row("x", "1", "1", agrees=True).verdict == "ok"
    assert Row("x", "1", "2", agrees=False).verdict == "MISS"
    excluded = Row("x", "1", "2", agrees=False, excluded="why")
    assert excluded.verdict == "excluded: why"
    assert excluded.passes


def test_spearman_of_equal_and_opposite_orders() -> None:
    assert spearman([1.0, 5.0, 9.0], [2.0, 3.0, 4.0]) == 1.0
    assert spearman([1.0, 5.0, 9.0], [4.0, 3.0, 2.0]) == -1.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("gpu_MHz,mem_MHz\n420.75,2133\n", "no column mean_energy"),
        (HEADER, "no row"),
        (HEADER + "420.75,2133,abc\n", "line 2: not a number"),
        (HEADER + "420.75,2133\n", "line 2: not a number"),
        (HEADER + "420.75,2133,nan\n", "line 2: a value is not above zero"),
    ],
)
def test_a_bad_surface_is_refused_in_one_sentence(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / NAME).write_text(content, encoding="utf-8")
    with pytest.raises(InvalidInputError, match=message):
        read_surfaces(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tables", str(tmp_path)]) == 1
    assert "holds no energy surface" in capsys.readouterr().err


def test_a_level_the_board_lacks_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / NAME).write_text(HEADER + "421.0,2133,5\n420.75,2133,5\n", encoding="utf-8")
    assert main(["--tables", str(tmp_path)]) == 1
    assert "421" in capsys.readouterr().err
