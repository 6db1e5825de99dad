"""The optimiser as a pure function: what every strategy promises, degenerate input included."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from polythrottle.configuration import Configuration, Knob, SearchSpace
from polythrottle.errors import InvalidInputError
from polythrottle.objective import EnergyObjective
from polythrottle.optimizer.problem import (
    Evidence,
    FailedTrial,
    Observation,
    OptimizerSettings,
    Problem,
)
from polythrottle.optimizer.suggest import build_prior, suggest
from polythrottle.study import Strategy
from polythrottle.suggestion import Suggestion

MEMBERS = 600
ALL = list(Strategy)
MODELLED = [Strategy.INFORMED, Strategy.FLAT]
Observe = Callable[[Configuration], Observation]


def settings(strategy: Strategy, **changes: object) -> OptimizerSettings:
    return replace(OptimizerSettings(strategy=strategy, members=MEMBERS), **changes)  # type: ignore[arg-type]


def search(problem: Problem, chosen: OptimizerSettings, observe: Observe, n: int) -> list[Suggestion]:
    """n rounds of suggest and observe, noise-free; the suggestions."""
    prior = build_prior(problem, chosen)
    observations: list[Evidence] = []
    answers = []
    for round_ in range(n):
        answer = suggest(problem, prior, observations, (), chosen, seed=round_)
        answers.append(answer)
        if answer.configuration is None:
            break
        observations.append(observe(answer.configuration))
    answers.append(suggest(problem, prior, observations, (), chosen, seed=n))
    return answers


@pytest.mark.parametrize("strategy", ALL)
def test_same_arguments_same_suggestion(problem: Problem, observe: Observe, strategy: Strategy) -> None:
    chosen = settings(strategy)
    observations = [observe(problem.anchor)] + [
        observe(problem.space.at(index)) for index in problem.space.indices()[3:60:9]
    ]
    first, second = (
        suggest(problem, build_prior(problem, chosen), observations, (), chosen, seed=7) for _ in range(2)
    )
    assert first == second
    assert first.configuration in problem.space
    assert first.configuration not in {o.configuration for o in observations}


@pytest.mark.parametrize("strategy", MODELLED)
def test_max_clocks_come_first(problem: Problem, strategy: Strategy) -> None:
    chosen = settings(strategy)
    answer = suggest(problem, build_prior(problem, chosen), [], (), chosen, seed=0)
    assert answer.configuration == problem.anchor


@pytest.mark.parametrize("strategy", MODELLED)
def test_finds_the_constrained_optimum(
    problem: Problem, observe: Observe, truth: Callable[..., tuple[float, float]], strategy: Strategy
) -> None:
    assert problem.latency_limit_s is not None
    feasible = [
        energy
        for latency, energy in map(truth, map(problem.space.at, problem.space.indices()))
        if latency <= problem.latency_limit_s
    ]
    answers = search(problem, settings(strategy), observe, 12)
    best = answers[-1].ranking[0]
    latency_s, energy_j = truth(best.configuration)
    assert latency_s <= problem.latency_limit_s
    assert energy_j <= 1.05 * min(feasible)
    assert best.prediction.energy_j == pytest.approx(energy_j, rel=0.05)


def test_the_paper_starts_with_five_random_points_and_never_stops(problem: Problem, observe: Observe) -> None:
    answers = search(problem, settings(Strategy.POLYTHROTTLE), observe, 8)
    assert [a.provenance for a in answers[:5]] == ["random start"] * 5
    assert answers[5].provenance == "EI × PF, ξ = 0.1"
    assert all(a.stop is None for a in answers)


def test_explains_itself(problem: Problem, observe: Observe) -> None:
    answer = search(problem, settings(Strategy.INFORMED), observe, 5)[-1]
    assert answer.prediction is not None
    assert 0.0 <= answer.prediction.p_feasible <= 1.0
    assert answer.prediction.energy_sd > 0
    assert answer.prediction.latency_sd > 0
    assert answer.expected_gain is not None
    assert answer.expected_gain >= 0
    assert answer.stop is not None
    assert "P(within 2 %" in str(answer.stop)


@pytest.mark.parametrize("strategy", ALL)
def test_each_configuration_is_proposed_once_until_none_is_left(strategy: Strategy) -> None:
    space = SearchSpace((Knob.of("gpu_freq_mhz", [300, 600, 900]), Knob.of("mem_freq_mhz", [800, 1600])))
    problem = Problem(space, space.highest(), 1.0)

    def observe(configuration: Configuration) -> Observation:
        gpu = float(configuration["gpu_freq_mhz"])
        return Observation(configuration, 10.0 / gpu, 0.01, 1.0 + gpu / 900, 0.01)

    answers = search(problem, settings(strategy), observe, 10)
    proposed = [a.configuration for a in answers if a.configuration is not None]
    assert len(proposed) == len(set(proposed)) == 6
    assert answers[-1].configuration is None


@pytest.mark.parametrize("strategy", ALL)
def test_one_level_only(strategy: Strategy) -> None:
    space = SearchSpace((Knob.of("gpu_freq_mhz", [900]),))
    problem = Problem(space, space.highest(), 1.0)
    answers = search(problem, settings(strategy), lambda c: Observation(c, 0.5, 0.01, 1.0, 0.01), 3)
    assert answers[0].configuration == space.highest()
    assert answers[-1].configuration is None
    assert answers[-1].ranking[0].configuration == space.highest()


@pytest.mark.parametrize("strategy", ALL)
@pytest.mark.parametrize("limit_s", [1e-6, 1e6], ids=["all infeasible", "all feasible"])
def test_constant_outputs(space: SearchSpace, strategy: Strategy, limit_s: float) -> None:
    problem = Problem(space, space.highest(), limit_s)
    answers = search(problem, settings(strategy), lambda c: Observation(c, 0.02, 0.01, 1.0, 0.01), 8)
    assert all(a.configuration is not None for a in answers)
    assert answers[-1].ranking
    likely = answers[-1].ranking[0].prediction.p_feasible
    assert likely > 0.9 if limit_s > 1 else likely < 0.1


@pytest.mark.parametrize("strategy", ALL)
def test_exact_readings_do_not_break_the_algebra(
    space: SearchSpace, observe: Observe, strategy: Strategy
) -> None:
    problem = Problem(space, space.highest(), 0.03)
    answers = search(
        problem,
        settings(strategy),
        lambda c: replace(observe(c), latency_error=0.0, energy_error=0.0),
        8,
    )
    assert answers[-1].configuration is not None


@pytest.mark.parametrize("field", ["latency_s", "latency_error", "energy_j", "energy_error"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(space: SearchSpace, field: str, value: float) -> None:
    values: dict[str, float] = {
        "latency_s": 0.02,
        "latency_error": 0.01,
        "energy_j": 1.0,
        "energy_error": 0.01,
    }
    values[field] = value
    with pytest.raises(InvalidInputError, match="not finite"):
        Observation(space.highest(), **values)


def test_an_observation_off_the_space_is_refused(problem: Problem, observe: Observe) -> None:
    chosen = settings(Strategy.RANDOM)
    stranger = Observation(Configuration.of({"gpu_freq_mhz": 1.0}), 0.02, 0.01, 1.0, 0.01)
    with pytest.raises(InvalidInputError, match="not in the search space"):
        suggest(problem, None, [stranger], (), chosen, seed=0)
    with pytest.raises(InvalidInputError, match="observed twice"):
        suggest(problem, None, [observe(problem.anchor)] * 2, (), chosen, seed=0)


@pytest.mark.parametrize("strategy", MODELLED)
def test_pending_trials_are_not_proposed_again_and_count(
    problem: Problem, observe: Observe, strategy: Strategy
) -> None:
    chosen = settings(strategy)
    prior = build_prior(problem, chosen)
    observations = [observe(problem.anchor)]
    first = suggest(problem, prior, observations, (), chosen, seed=0).configuration
    assert first is not None
    second = suggest(problem, prior, observations, (first,), chosen, seed=0).configuration
    assert second not in (first, problem.anchor, None)


def test_an_aborted_trial_teaches_that_its_surroundings_are_slow(problem: Problem, observe: Observe) -> None:
    chosen = settings(Strategy.INFORMED)
    prior = build_prior(problem, chosen)
    slow = Configuration.of({**problem.anchor, "gpu_freq_mhz": 600.0})
    slower = Configuration.of({**problem.anchor, "gpu_freq_mhz": 450.0})
    assert problem.latency_limit_s is not None
    observations = [observe(problem.anchor)]
    aborted = Observation(slow, 2.0 * problem.latency_limit_s, 0.02, None, None)

    def p_feasible(evidence: list[Evidence]) -> float:
        from polythrottle.optimizer.informed import _view, arrays_of
        from polythrottle.optimizer.prior import EnsemblePrior
        from polythrottle.optimizer.surrogate import MixtureSurrogate

        assert isinstance(prior, EnsemblePrior)
        known = [e for e in evidence if isinstance(e, Observation)]
        data, origin = arrays_of(problem, prior, known)
        view = _view(problem, MixtureSurrogate(prior).posterior(data), [], origin)
        return float(view.p_feasible[prior.grid.row(slower)])

    assert p_feasible([*observations, aborted]) < 0.5 * p_feasible(list(observations))
    answer = suggest(problem, prior, [*observations, aborted], (), chosen, seed=0)
    assert answer.configuration not in (slow, slower)
    assert slow not in {candidate.configuration for candidate in answer.ranking}


@pytest.mark.parametrize("strategy", ALL)
def test_a_configuration_that_failed_twice_is_given_up(
    problem: Problem, observe: Observe, strategy: Strategy
) -> None:
    chosen = settings(strategy)
    prior = build_prior(problem, chosen)
    observations: list[Evidence] = [observe(problem.anchor)]
    wanted = suggest(problem, prior, observations, (), chosen, seed=1).configuration
    assert wanted is not None
    once = [*observations, FailedTrial(wanted)]
    assert suggest(problem, prior, once, (), chosen, seed=1).configuration == wanted
    assert suggest(problem, prior, [*once, FailedTrial(wanted)], (), chosen, seed=1).configuration != wanted


def test_safe_mode_asks_more_of_each_trial(problem: Problem, observe: Observe) -> None:
    def violations(safe: bool) -> int:
        answers = search(problem, settings(Strategy.INFORMED, safe=safe), observe, 15)
        tried = [a.configuration for a in answers[:-1] if a.configuration is not None]
        assert problem.latency_limit_s is not None
        return sum(observe(c).latency_s > problem.latency_limit_s for c in tried)

    assert violations(safe=True) < violations(safe=False)


def test_energy_delay_product_prefers_faster(
    problem: Problem, observe: Observe, truth: Callable[..., tuple[float, float]]
) -> None:
    loose = replace(problem, latency_limit_s=10.0)
    energy = search(loose, settings(Strategy.INFORMED), observe, 10)[-1].ranking[0].configuration
    product = (
        search(
            replace(loose, objective=EnergyObjective.ENERGY_DELAY_PRODUCT),
            settings(Strategy.INFORMED),
            observe,
            10,
        )[-1]
        .ranking[0]
        .configuration
    )
    assert truth(product)[0] < truth(energy)[0]


def test_clocks_that_ran_are_what_is_learnt_from(problem: Problem, observe: Observe) -> None:
    """A trial whose GPU was throttled to 600 MHz must not teach that 1050 MHz is slow."""
    problem = replace(problem, latency_limit_s=1.0)
    chosen = settings(Strategy.INFORMED)
    prior = build_prior(problem, chosen)
    asked = Configuration.of({**problem.anchor, "gpu_freq_mhz": 1050.0})
    ran = Configuration.of({**problem.anchor, "gpu_freq_mhz": 600.0})
    throttled = replace(observe(ran), configuration=asked)
    base = [observe(problem.anchor)]

    def belief(observation: Observation) -> float:
        ranking = suggest(problem, prior, [*base, observation], (), chosen, seed=0).ranking
        return next(c.prediction.latency_s for c in ranking if c.configuration == asked)

    told, untold = belief(replace(throttled, achieved=ran)), belief(throttled)
    assert told < 0.9 * untold
    assert told == pytest.approx(observe(asked).latency_s, rel=0.15)


def test_unknown_knobs_are_learnt_from_data_alone() -> None:
    """With no knob the physics knows, `informed` falls back to the Gaussian processes."""
    space = SearchSpace((Knob.of("queue_depth", [1, 2, 4, 8, 16, 32]), Knob.of("streams", [1, 2, 3, 4])))
    problem = Problem(space, space.highest(), 1.0)

    def observe(configuration: Configuration) -> Observation:
        depth, streams = float(configuration["queue_depth"]), float(configuration["streams"])
        return Observation(
            configuration, 0.02 * depth, 0.01, 1.0 / (1 + 0.3 * depth) + 0.05 * (streams - 2) ** 2, 0.01
        )

    best = search(problem, settings(Strategy.INFORMED), observe, 14)[-1].ranking[0].configuration
    assert best["streams"] == 2
    assert float(best["queue_depth"]) >= 16
