from __future__ import annotations

from dataclasses import replace

import pytest

from polythrottle.objective import EnergyObjective, format_energy, format_latency
from polythrottle.reporting.wording import (
    change_text,
    duration_text,
    energy_text,
    latency_text,
    objective_text,
    payback_text,
    percent,
    probability_text,
    slo_text,
    unit_for,
)
from polythrottle.study import Study


@pytest.mark.parametrize(
    ("energy_j", "error_j", "text"),
    [
        (0.6123, 0.0081, "612 ± 8 mJ"),
        (0.6123, 0.0014, "612.3 ± 1.4 mJ"),
        (0.6123, 0.023, "612 ± 23 mJ"),
        (1.5, 0.04, "1.50 ± 0.04 J"),
        (0.6123, None, "612.3 mJ"),
        (0.6123, 0.0, "612.3 mJ"),
        (0.6123, 1e-12, "612.3000 ± <0.0001 mJ"),
        (25_000.0, 800.0, "25.0 ± 0.8 kJ"),
    ],
)
def test_a_value_is_rounded_to_what_its_error_supports(
    energy_j: float, error_j: float | None, text: str
) -> None:
    assert energy_text(energy_j, error_j) == text


def test_latency_keeps_the_formatters_unit() -> None:
    assert latency_text(0.0452, 0.0004) == "45.2 ± 0.4 ms"


def test_a_change_carries_the_error_of_both(study: Study) -> None:
    assert study.result is not None
    chosen, stock = study.result.chosen, study.result.stock
    assert chosen is not None
    assert stock is not None
    assert change_text(chosen, stock) == "24.7 ± 1.0 % less"
    assert change_text(stock, chosen).endswith("% more")
    assert change_text(chosen, chosen) == "the same configuration"


def test_small_words() -> None:
    assert percent(0.0531) == "5.3 %"
    assert percent(0.0531, signed=True) == "+5.3 %"
    assert percent(2.34) == "234 %"
    assert [probability_text(p) for p in (0.95, 0.9996)] == ["0.950", "> 0.999"]
    assert slo_text(0.045, 0.05) == "10.0 % below the limit"
    assert slo_text(0.06, 0.05) == "20.0 % over the limit"
    assert [duration_text(s) for s in (12.0, 400.0, 7500.0, 7200.0)] == ["12 s", "7 min", "2 h 5 min", "2 h"]
    assert objective_text(EnergyObjective.ENERGY_DELAY_PRODUCT, 0.0277) == "0.0277 J·s"
    assert unit_for([0.2, 0.9], format_energy).name == "mJ"
    assert unit_for([0.2, 1.9], format_latency).name == "ms"


def test_what_is_never_paid_back_says_why(study: Study) -> None:
    result = study.result
    assert result is not None
    assert "45,509 queries" in payback_text(result)
    unpaid = replace(result, payback_queries=None)
    assert payback_text(unpaid) == "never: it saves nothing against stock"
    assert payback_text(replace(unpaid, chosen=None)) == "never: nothing was chosen"
    assert payback_text(replace(unpaid, stock=None)) == "unknown: stock could not be measured"
    assert "could not be measured" in payback_text(replace(unpaid, search_energy_j=None))
