"""What the optimiser answers: the next configuration, with its reasons."""

from __future__ import annotations

from dataclasses import dataclass

from polythrottle.configuration import Configuration


@dataclass(frozen=True)
class Prediction:
    """What the model expects of one configuration.

    `energy_sd` and `latency_sd` are standard deviations of the natural logarithm, so 0.02 is 2 %.
    """

    energy_j: float
    energy_sd: float
    latency_s: float
    latency_sd: float
    p_feasible: float


@dataclass(frozen=True)
class Candidate:
    """A configuration that was measured and could be recommended."""

    configuration: Configuration
    prediction: Prediction


@dataclass(frozen=True)
class StopAdvice:
    """Whether the search should stop, and by which rule.

    `remaining_gain` is the relative energy saving the model still expects from the next trial.
    """

    stop: bool
    rule: str
    value: float
    threshold: float
    remaining_gain: float | None = None

    def __str__(self) -> str:
        text = f"{self.rule} {self.value:.3g}, threshold {self.threshold:g}"
        if self.remaining_gain is not None and self.remaining_gain != self.value:
            text += f"; expected gain of another trial {self.remaining_gain:.1%}"
        return text


@dataclass(frozen=True)
class Suggestion:
    """The next configuration to try and what is known so far.

    `configuration` is None when nothing is left to try. `ranking` holds measured configurations that
    are safe to recommend, least expected energy first (or, when none is safe, the likeliest to be).
    """

    configuration: Configuration | None
    provenance: str
    prediction: Prediction | None = None
    expected_gain: float | None = None
    ranking: tuple[Candidate, ...] = ()
    stop: StopAdvice | None = None
    notes: tuple[str, ...] = ()
