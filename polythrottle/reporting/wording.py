"""Numbers and outcomes in words, the same on the screen, in the report and in messages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from polythrottle.configuration import Configuration
from polythrottle.measurement import ASSUMED_RELATIVE_ERROR, EnergyReading, Provenance, Scope
from polythrottle.objective import EnergyObjective, format_energy, format_latency
from polythrottle.study import Estimate, Result, Strategy, StudySpec, StudyState, Verdict
from polythrottle.trial import STOCK, Purpose

SI_OF_UNIT: Mapping[str, float] = {
    "kJ": 1e3,
    "J": 1.0,
    "mJ": 1e-3,
    "µJ": 1e-6,
    "s": 1.0,
    "ms": 1e-3,
    "µs": 1e-6,
}
"""What one of each printed unit is in joules or seconds."""

PURPOSES: Mapping[Purpose, str] = {
    Purpose.BASELINE: "stock",
    Purpose.ANCHOR: "max clocks",
    Purpose.STAGE: "stage",
    Purpose.SEARCH: "search",
    Purpose.CONFIRM: "confirm",
    Purpose.DRIFT: "drift check",
}

VERDICTS: Mapping[Verdict, str] = {
    Verdict.OPTIMAL: "the search converged and the winner was confirmed",
    Verdict.BEST_FEASIBLE: "the best that meets the SLO so far; the search ended before it converged",
    Verdict.KEEP_STOCK: "nothing tried beats the device as it was found",
    Verdict.NO_FEASIBLE_FOUND: "nothing tried meets the SLO",
}

PROVENANCES: Mapping[Provenance, str] = {
    Provenance.MEASURED: "Measured: every number was read on the device itself.",
    Provenance.EMULATED: "Emulated: every number comes from a model of the device, none from hardware.",
    Provenance.AS_RECORDED: "As recorded: every number comes from a recorded table; no device was touched.",
    Provenance.ESTIMATED: "Estimated: the numbers are estimates, not measurements.",
}

ASSUMED_ERRORS = (
    f"where a reading has no error of its own, {100 * ASSUMED_RELATIVE_ERROR:g} % was assumed for one window"
)

_MOST_DECIMALS = 4


@dataclass(frozen=True)
class Unit:
    """A unit to print in; `si` is what one of it is in joules or seconds."""

    name: str
    si: float


def unit_for(values: Iterable[float], formatter: Callable[[float], str]) -> Unit:
    """The one unit that suits all values of an axis or a column: that of the largest."""
    name = formatter(max(values, default=1.0)).rsplit(" ", 1)[1]
    return Unit(name, SI_OF_UNIT[name])


def with_error(value: float, error: float | None, formatter: Callable[[float], str]) -> str:
    """`612.3 ± 1.4 mJ`: the value rounded to what its standard error supports, in the formatter's unit.

    The error keeps one digit, or two where the first is 1 or 2. Without an error the value stands alone.
    """
    text = formatter(value)
    if error is None or not error > 0:
        return text
    unit = text.rsplit(" ", 1)[1]
    scaled, scaled_error = value / SI_OF_UNIT[unit], error / SI_OF_UNIT[unit]
    exponent = math.floor(math.log10(scaled_error))
    digits = 2 if scaled_error / 10.0**exponent < 3 else 1
    decimals = min(max(digits - 1 - exponent, 0), _MOST_DECIMALS)
    shown = f"{scaled_error:.{decimals}f}"
    if float(shown) == 0:
        shown = f"<{10.0**-decimals:.{decimals}f}"
    return f"{scaled:.{decimals}f} ± {shown} {unit}"


def energy_text(energy_j: float, error_j: float | None) -> str:
    return with_error(energy_j, error_j, format_energy)


def metered_text(reading: EnergyReading) -> str:
    """Which meter, and what its energy covers."""
    if reading.scope is Scope.RECORDED:
        return f"{reading.meter}: whatever its author metered"
    return f"{reading.meter}: energy of the {reading.scope.value}"


def latency_text(latency_s: float, error_s: float | None) -> str:
    return with_error(latency_s, error_s, format_latency)


def objective_unit(objective: EnergyObjective) -> str:
    """SI unit of the objective per query."""
    return "J·s" if objective is EnergyObjective.ENERGY_DELAY_PRODUCT else "J"


def objective_text(objective: EnergyObjective, value: float) -> str:
    """The value of the objective with its unit: J per query, or J·s."""
    if objective is EnergyObjective.ENERGY_PER_QUERY:
        return format_energy(value)
    return f"{value:.4g} {objective_unit(objective)}"


def configuration_text(configuration: Configuration) -> str:
    return str(configuration) if len(configuration) else "as found (nothing set)"


def percent(ratio: float, *, signed: bool = False) -> str:
    """0.0531 as `5.3 %`; small ones keep a digit."""
    value = 100.0 * ratio
    decimals = 0 if abs(value) >= 100 else 1
    return f"{value:+.{decimals}f} %" if signed else f"{value:.{decimals}f} %"


def probability_text(probability: float) -> str:
    """Never a certainty: 0.9997 is `> 0.999`."""
    if probability > 0.999:
        return "> 0.999"
    return f"{probability:.3f}"


def probability_source(result: Result, spec: StudySpec) -> str:
    """What P(feasible) of the answer rests on. Stock, and a strategy without a model, have only readings."""
    unmodelled = spec.strategy in (Strategy.RANDOM, Strategy.GRID)
    stock = result.chosen is not None and result.chosen.configuration == STOCK
    readings = unmodelled or stock or result.verdict is Verdict.KEEP_STOCK
    return "by its readings" if readings else "by the model"


def verdict_text(result: Result, spec: StudySpec) -> str:
    """What the verdict means for this study: a recorded value is never said to be confirmed."""
    if result.verdict is Verdict.OPTIMAL and spec.device.provenance is Provenance.AS_RECORDED:
        return "the search converged; recorded values were read once, as a repeat could not confirm them"
    if result.verdict is Verdict.BEST_FEASIBLE and result.state is StudyState.ACTIVE:
        return "the best that meets the SLO so far; the study has not ended"
    return VERDICTS[result.verdict]


def trials_text(result: Result) -> str:
    plural = "" if result.n_search_trials == 1 else "s"
    return f"{result.n_search_trials} search trial{plural}, {result.n_trials} in all"


def duration_text(duration_s: float) -> str:
    if duration_s < 90:
        return f"{duration_s:.3g} s"
    minutes = round(duration_s / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def change_text(new: Estimate, old: Estimate) -> str:
    """How much less (or more) energy `new` takes than `old`, with the standard error of the ratio."""
    ratio = new.energy_j / old.energy_j
    error = ratio * math.hypot(new.energy_error_j / new.energy_j, old.energy_error_j / old.energy_j)
    if new.configuration == old.configuration:
        return "the same configuration"
    word = "less" if ratio <= 1 else "more"
    return f"{abs(1 - ratio) * 100:.1f} ± {max(error * 100, 0.1):.1f} % {word}"


def estimate_objective_text(objective: EnergyObjective, estimate: Estimate) -> str:
    return objective_text(objective, objective.of(estimate.energy_j, estimate.latency_s))


def objective_changes_text(objective: EnergyObjective, chosen: Estimate, result: Result) -> str:
    """How much less (or more) the objective of `chosen` is than that of stock and of max clocks."""
    value = objective.of(chosen.energy_j, chosen.latency_s)
    changes = []
    for name, other in (("stock", result.stock), ("max clocks", result.max_clocks)):
        if other is not None and other.configuration != chosen.configuration:
            ratio = value / objective.of(other.energy_j, other.latency_s)
            changes.append(f"{percent(abs(1 - ratio))} {'less' if ratio <= 1 else 'more'} than {name}")
    return ", ".join(changes)


def slo_text(latency_s: float, limit_s: float) -> str:
    """Where a latency stands against the limit."""
    margin = latency_s / limit_s - 1.0
    if margin > 0:
        return f"{percent(margin)} over the limit"
    return f"{percent(-margin)} below the limit"


def payback_text(result: Result) -> str:
    """After how many queries the search has paid for itself, or why it never does."""
    if result.payback_queries is not None:
        return f"after {result.payback_queries:,} queries at the chosen configuration instead of stock"
    if result.chosen is None:
        return "never: nothing was chosen"
    if result.stock is None:
        return "unknown: stock could not be measured"
    if result.search_energy_j is None:
        return "unknown: the energy of the search could not be measured"
    return "never: it saves nothing against stock"
