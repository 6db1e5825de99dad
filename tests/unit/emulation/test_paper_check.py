from pathlib import Path

import pytest

from polythrottle.errors import InvalidInputError
from polythrottle_agent.emulation import paper, paper_details
from polythrottle_agent.emulation.paper_check import main, spearman
from polythrottle_agent.emulation.paper_rows import Row, level_row
from polythrottle_agent.emulation.surfaces import read_surfaces

HEADER = "gpu_MHz,mem_MHz,mean_energy\n"
NAME = "Orin_B7_fp16_bs8_mJ_hwlevels.csv"


def test_every_published_figure_is_met_or_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "emulator: PASS 48 agree, 3 missed as known, 3 excluded (n = 54)"
    for verdict, count in (("  ok", 48), ("  known miss: ", 3), ("  excluded: ", 3), ("MISS", 0)):
        assert sum(verdict in line for line in lines) == count
    assert sum(line.endswith("<= 6.0 %") for line in lines) == 6


def test_fig_2_keeps_the_fast_ends_that_the_fit_was_made_with() -> None:
    first = paper.FIGURE_2["tx2", "efficientnet-b4"][0]
    assert (first.batch, first.latency) == (2, 1.7)
    assert first.energy == pytest.approx(0.758 / 0.857)
    assert [point.batch for point in paper.FIGURE_2["agx-orin", "efficientnet-b7"]] == [2, 4, 8]


def test_a_front_that_left_the_paper_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    """The known misses and the exclusion are those of single fronts, not of all."""
    fronts = {
        key: {
            batch: tuple(paper.FrontPoint(1.5 * p.latency, 0.3 * p.energy_j) for p in front)
            if batch > 1
            else front
            for batch, front in by_batch.items()
        }
        for key, by_batch in paper.FIGURE_2_FRONTS.items()
    }
    monkeypatch.setattr(paper, "FIGURE_2_FRONTS", fronts)
    missed = {row.what for row in paper_details.figure_2().rows if row.verdict == "MISS"}
    assert "tx2 efficientnet-b4, batch 8, least latency" in missed
    assert "tx2 efficientnet-b4, batch 8, saved along the front" in missed
    assert len(missed) == 5 + 4


def test_a_level_beside_the_one_nearest_to_the_paper_s_agrees() -> None:
    levels = (806.4, 883.2, 960.0, 1036.8)
    assert [level_row("x", levels, i, 900.0).agrees for i in range(4)] == [True, True, True, False]


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
    assert out.splitlines()[-1] == "emulator: FAIL 49 agree, 2 missed, 3 missed as known, 3 excluded (n = 57)"


def test_excluded_and_missed_rows_read_differently() -> None:
    assert Row("x", "1", "1", agrees=True).verdict == "ok"
    assert Row("x", "1", "2", agrees=False).verdict == "MISS"
    excluded = Row("x", "1", "2", agrees=False, excluded="why")
    assert excluded.verdict == "excluded: why"
    assert excluded.passes
    known = Row("x", "1", "2", agrees=False, known="how")
    assert known.verdict == "known miss: how"
    assert known.passes
    assert not Row("x", "1", "2", agrees=False).passes


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
