from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from polythrottle.measurement import EnergyReading, LatencyReading
from polythrottle.objective import EnergyObjective
from polythrottle.reporting.console import PIPED_WIDTH, make_console
from polythrottle.reporting.terminal import ProgressScreen, show_result
from polythrottle.study import Strategy, Study, StudyState, Verdict


def _stream(encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict", newline="")


def _read(stream: io.TextIOWrapper) -> str:
    stream.flush()
    stream.seek(0)
    return stream.read()


def _run(study: Study, console: Console, notes: tuple[str, ...] = ()) -> None:
    """Show a whole run as `tune` does."""
    assert study.result is not None
    live = replace(study, state=StudyState.ACTIVE, result=None)
    with ProgressScreen(console) as screen:
        screen.started(replace(live, trials=()), study.spec.device.label, notes)
        for count, trial in enumerate(study.trials, start=1):
            screen.trial_started(trial)
            screen.trial_finished(trial, replace(live, trials=study.trials[:count]))
    show_result(study.result, study, console)


def _output(study: Study, *, width: int = 120, encoding: str = "utf-8", notes: tuple[str, ...] = ()) -> str:
    stream = _stream(encoding)
    _run(study, make_console(stream, width=width), notes)
    return _read(stream)


def _line(output: str, start: str) -> str:
    return next(line for line in output.splitlines() if line.lstrip().startswith(start))


def test_a_wide_terminal_gets_one_line_a_trial(study: Study) -> None:
    output = _output(study, width=100)
    line = _line(output, "4  search")
    for part in ("510", "2133", "883.2", "598 ± 7 mJ", "53.9 ms ✗ +7.8 %", "655 mJ #3", "12.1 %"):
        assert part in line
    assert "p99 ≤ 50 ms" in output
    assert "aborted: p99 above 75 ms after 50 queries" in output
    assert "failed: mem_freq_mhz read back 2133" in output


def test_the_answer_says_everything(study: Study) -> None:
    output = _output(study, width=120)
    answer = output[output.index("optimal (emulated)") :]
    for part in (
        "GPU 612 MHz · memory 2133 MHz · CPU 1036.8 MHz · batch 2",
        "stock        812 ± 9 mJ per query",
        "max clocks   904 ± 7 mJ per query",
        "chosen       612 ± 4 mJ per query: 24.7 ± 1.0 % less than stock",
        "p99 45.30 ± 0.30 ms of 50 ms allowed: 9.4 % below the limit",
        "9 search trials, 14 in all",
        "9120 J",
        "after 45,509 queries",
        "converged: P(within 2 %): 0.981 against 0.97",
        "emulated: not measured",
    ):
        assert part in answer


@pytest.mark.parametrize("width", [40, 60, 79, 100])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "cp1252"])
def test_no_line_is_wider_than_the_terminal_in_any_encoding(study: Study, width: int, encoding: str) -> None:
    output = _output(study, width=width, encoding=encoding, notes=("A long note on what limits this run.",))
    assert max(len(line) for line in output.splitlines()) <= width
    assert not any(line != line.rstrip() for line in output.splitlines())
    assert "emulated" in output
    assert "45,509" in output
    assert "?" not in output, "every character of ours has a stand-in"


def test_ascii_has_words_for_what_it_lacks(study: Study) -> None:
    output = _output(study, width=100, encoding="ascii")
    assert output.isascii()
    for part in ("p99 <= 50 ms", "812 +/- 9 mJ", "27.3 ms ok", "53.9 ms over +7.8 %"):
        assert part in output
    assert "GPU 612 MHz, memory 2133 MHz" in output


def test_a_quantity_is_not_torn_from_its_unit(study: Study) -> None:
    output = _output(study, width=40)
    for line in output.splitlines():
        assert not line.lstrip().startswith(("MHz", "mJ", "ms", "%", "±"))


def test_a_pipe_gets_no_escape_codes_and_long_lines(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    stream = _stream("utf-8")
    console = make_console(stream)
    assert console.width == PIPED_WIDTH
    _run(study, console)
    assert "\x1b" not in _read(stream)


def test_columns_rules_a_pipe_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "44")
    assert make_console(_stream("utf-8")).width == 44


class _Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("no_color", [True, False])
def test_no_color_is_honoured(study: Study, monkeypatch: pytest.MonkeyPatch, no_color: bool) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1" if no_color else "")
    stream = _Terminal(io.BytesIO(), encoding="utf-8", newline="")
    assert study.result is not None
    show_result(study.result, study, make_console(stream, width=100))
    assert ("\x1b[1;32m" not in _read(stream)) == no_color


def test_the_spinner_ends_with_the_screen_and_takes_ascii(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = _Terminal(io.BytesIO(), encoding="ascii", newline="")
    with ProgressScreen(make_console(stream, width=60)) as screen:
        screen.trial_started(study.trials[2])
    output = _read(stream)
    assert "3 search: GPU 612 MHz" in output
    assert output.count("\x1b[?25l") == output.count("\x1b[?25h") == 1, "the cursor comes back"


def test_hostile_names_reach_no_terminal(hostile: Study) -> None:
    output = _output(hostile, width=120)
    assert "\x1b" not in output
    assert "[bold]" in output, "markup in a name is shown, not obeyed"


def test_nothing_feasible_names_the_closest(infeasible: Study) -> None:
    output = _output(infeasible, width=120)
    assert "no feasible found (emulated)" in output
    assert "closest      GPU 1020 MHz" in output
    assert "21.0 % over the limit" in output
    assert "never: nothing was chosen" in output


def test_a_relative_slo_shows_its_limit_once_known(study: Study) -> None:
    assert study.result is not None
    slo = replace(study.spec.slo, limit_s=None, factor=2.0)
    output = _output(replace(study, spec=replace(study.spec, slo=slo)), width=100)
    assert "with p99 ≤ 2x" in output
    stock_line_heading = _line(output, "#")
    assert "p99 ≤ 2x" in stock_line_heading, "max clocks are not measured yet when the heading is printed"


def test_a_window_too_short_says_so_once(study: Study) -> None:
    trials = []
    for trial in study.trials:
        measurement = trial.measurement
        if measurement is not None and isinstance(measurement.latency, LatencyReading):
            latency = replace(measurement.latency, n_queries=412, bounded=False)
            measurement = replace(measurement, latency=latency)
        trials.append(replace(trial, measurement=measurement))
    output = _output(replace(study, trials=tuple(trials)), width=120)
    assert output.count("p99 of 412 queries, too few to bound it") == 1
    assert "45.2 ms ✓ unsure" in output


def test_going_on_after_an_interruption_says_how_much_is_done(active: Study) -> None:
    stream = _stream("utf-8")
    ProgressScreen(make_console(stream, width=100)).started(active, "a board")
    assert "after 6 finished trials" in _read(stream)


def test_looking_at_a_study_is_no_resumption(study: Study) -> None:
    stream = _stream("utf-8")
    ProgressScreen(make_console(stream, width=100)).started(study, "a board", live=False)
    output = _read(stream)
    assert "st-3f9a" in output
    assert "resumed" not in output


def test_p_feasible_says_whose_it_is(study: Study) -> None:
    assert study.result is not None
    assert "P(feasible)  0.987, by the model" in _output(study)
    random = replace(study, spec=replace(study.spec, strategy=Strategy.RANDOM))
    assert "P(feasible)  0.987, by its readings" in _output(random)
    kept = replace(study, result=replace(study.result, verdict=Verdict.KEEP_STOCK, chosen=study.result.stock))
    assert "P(feasible)  0.987, by its readings" in _output(kept)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_objective_is_shown_where_it_is_not_the_energy(study: Study, encoding: str) -> None:
    edp = replace(study, spec=replace(study.spec, objective=EnergyObjective.ENERGY_DELAY_PRODUCT))
    unit = "J·s" if encoding == "utf-8" else "J*s"
    output = _output(edp, width=110, encoding=encoding)
    assert f"0.02181 {unit} #2" in _line(output, "3  search"), "the best so far, which is by this objective"
    answer = _line(output, "objective")
    assert f"energy-delay product 0.02772 {unit}: 25.0 % more than stock" in answer
    assert max(len(line) for line in _output(edp, width=40).splitlines()) <= 40
    assert "objective" not in _output(study)[-2000:]


def test_a_cancelled_study_says_how_to_go_on(study: Study) -> None:
    assert study.result is not None
    stream = _stream("utf-8")
    show_result(replace(study.result, state=StudyState.CANCELLED), study, make_console(stream, width=100))
    assert "--resume" in _read(stream)


def test_an_assumed_error_is_said_to_be_assumed(study: Study) -> None:
    assert "assumed" not in _output(study)
    anchor = study.trials[1]
    assert anchor.measurement is not None
    assert isinstance(anchor.measurement.energy, EnergyReading)
    bare = replace(anchor.measurement.energy, standard_error_j=None)
    recorded = replace(anchor, measurement=replace(anchor.measurement, energy=bare))
    output = _output(replace(study, trials=(recorded,)))
    assert "905.1 mJ " in output, "no error is shown for the reading itself"
    assert "2 % was assumed" in output
