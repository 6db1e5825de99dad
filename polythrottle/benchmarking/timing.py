"""How long a suggestion takes, in child processes on one core, and what importing polythrottle costs.

Times are CPU time of the child (all threads), which on one free core is wall time and on a busy machine
is not blurred by its neighbours.
"""

from __future__ import annotations

import json
import math
import os
import resource
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from polythrottle.benchmarking.campaign import single_threaded
from polythrottle.benchmarking.generated import draw_device
from polythrottle.benchmarking.run import cpu_ms
from polythrottle.benchmarking.tables import anchor_of
from polythrottle.clock import Clock
from polythrottle.configuration import AtMost, Configuration, Knob, SearchSpace
from polythrottle.optimizer.problem import Observation, OptimizerSettings, Problem
from polythrottle.physics import OperatingPoint, ScalarOps, latency_and_power

OBSERVATIONS = 20
REPEATS = 9
NOISE = 0.02


@dataclass(frozen=True)
class Timing:
    """Medians in ms of CPU time; None where the case could not run. Memory in MB (10^6 bytes)."""

    suggest_ms: float
    setup_ms: float
    suggest_large_ms: float
    setup_large_ms: float
    peak_large_mb: float
    gpsampler_ms: float | None
    import_ms: float
    import_loads_torch: bool
    algebra_ms: float
    wrapped_ms: float


def _clocks(count: int, lowest_mhz: float, highest_mhz: float) -> list[float]:
    return [round(float(level), 2) for level in np.linspace(lowest_mhz, highest_mhz, count)]


def space_of(points: int) -> SearchSpace:
    """The paper's TX2 space (GPU min × max × memory × batch: 5,005 points), or one of 50,000 points."""
    if points == 5005:
        return SearchSpace(
            (
                Knob.of("gpu_min_freq_mhz", _clocks(13, 114.75, 1300.5)),
                Knob.of("gpu_freq_mhz", _clocks(13, 114.75, 1300.5)),
                Knob.of("mem_freq_mhz", _clocks(11, 40.8, 1866.0)),
                Knob.of("batch_size", [1.0, 2.0, 4.0, 8.0, 16.0]),
            ),
            forbidden=(AtMost("gpu_min_freq_mhz", "gpu_freq_mhz"),),
        )
    if points == 50_000:
        return SearchSpace(
            (
                Knob.of("cpu_freq_mhz", _clocks(20, 115.2, 1984.0)),
                Knob.of("gpu_freq_mhz", _clocks(25, 114.75, 1300.5)),
                Knob.of("mem_freq_mhz", _clocks(10, 204.0, 3199.0)),
                Knob.of("batch_size", [float(2**i) for i in range(10)]),
            )
        )
    raise ValueError(f"no space of {points} points")


def _readings(
    space: SearchSpace, anchor: Configuration, rng: np.random.Generator
) -> tuple[list[Observation], float]:
    """The anchor and random others, as a random device would answer, and a limit 1.15 × the anchor's."""
    device = draw_device(rng)
    indices = space.indices()
    picks = [space.at(indices[i]) for i in rng.choice(len(indices), OBSERVATIONS, replace=False)]
    configurations = list(dict.fromkeys([anchor, *picks]))[:OBSERVATIONS]
    highest = {knob.name: knob.highest_number for knob in space.knobs}
    largest = highest["batch_size"] / float(anchor["batch_size"])
    entries = []
    for configuration in configurations:
        relative = {name: float(level) / highest[name] for name, level in configuration.items()}
        point = OperatingPoint(
            cpu=relative.get("cpu_freq_mhz", 1.0),
            gpu=relative["gpu_freq_mhz"],
            mem=relative["mem_freq_mhz"],
            gpu_min=relative.get("gpu_min_freq_mhz", 0.0),
            batch=float(configuration["batch_size"]) / float(anchor["batch_size"]),
            has_batch=True,
            largest_batch=largest,
            has_gpu_min="gpu_min_freq_mhz" in relative,
        )
        latency, power = latency_and_power(device, point, ScalarOps())
        noise = np.exp(NOISE * rng.standard_normal(2))
        energy = latency * power / float(configuration["batch_size"])
        entries.append(
            Observation(
                configuration,
                float(latency * noise[0]),
                NOISE,
                float(energy * noise[1]),
                NOISE,
            )
        )
    return entries, 1.15 * entries[0].latency_s


def _median_ms(action: Callable[[int], object]) -> float:
    """Median CPU time of calls 1 … REPEATS; call 0 warms up."""
    taken = []
    for repeat in range(REPEATS + 1):
        started = cpu_ms()
        action(repeat)
        taken.append(cpu_ms() - started)
    return statistics.median(taken[1:])


def measure_suggest(points: int) -> dict[str, float]:
    """Set-up and suggestion of `informed`, in this process; other readings each time."""
    from polythrottle.optimizer.suggest import build_prior, suggest

    space = space_of(points)
    anchor = anchor_of(space)
    settings = OptimizerSettings()
    cases = [_readings(space, anchor, np.random.default_rng(seed)) for seed in range(REPEATS + 1)]
    # Loading torch is no part of the set-up of a search.
    import torch

    torch.set_num_threads(1)
    started = cpu_ms()
    prior = build_prior(Problem(space, anchor, cases[0][1]), settings)
    setup_ms = cpu_ms() - started

    def ask(repeat: int) -> object:
        entries, limit_s = cases[repeat]
        return suggest(Problem(space, anchor, limit_s), prior, entries, (), settings, repeat)

    suggest_ms = _median_ms(ask)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return {"setup_ms": setup_ms, "suggest_ms": suggest_ms, "peak_mb": peak_mb}


def measure_botorch(points: int) -> dict[str, float]:
    """The same acquisition on the same posterior: our algebra, and the surrogate as a BoTorch model."""
    import torch
    from botorch.acquisition.analytic import LogConstrainedExpectedImprovement

    from polythrottle.optimizer.acquisition import constrained_improvement
    from polythrottle.optimizer.botorch_model import ENERGY, LATENCY, MixtureModel
    from polythrottle.optimizer.informed import arrays_of
    from polythrottle.optimizer.prior import EnsemblePrior
    from polythrottle.optimizer.suggest import build_prior
    from polythrottle.optimizer.surrogate import KEPT_MEMBERS, MixtureSurrogate

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    space = space_of(points)
    entries, limit_s = _readings(space, anchor_of(space), np.random.default_rng(0))
    problem = Problem(space, anchor_of(space), limit_s)
    prior = build_prior(problem, OptimizerSettings())
    assert isinstance(prior, EnsemblePrior)
    data, origin = arrays_of(problem, prior, entries)
    posterior = MixtureSurrogate(prior).posterior(data)
    limit, incumbent = math.log(limit_s) - origin, float(data.log_latency.mean() + data.log_power.mean())
    coordinates = torch.from_numpy(prior.grid.coordinates)
    model = MixtureModel(posterior, coordinates, 0.0, KEPT_MEMBERS)
    acquisition = LogConstrainedExpectedImprovement(
        model, incumbent, objective_index=ENERGY, constraints={LATENCY: (None, limit)}, maximize=False
    )

    def wrapped(_: int) -> object:
        with torch.no_grad():
            return acquisition(coordinates.unsqueeze(1))

    algebra_ms = _median_ms(lambda _: constrained_improvement(posterior, limit, 0.0, incumbent))
    return {"algebra_ms": algebra_ms, "wrapped_ms": _median_ms(wrapped)}


def measure_gpsampler(points: int) -> dict[str, float]:
    """One `ask` of Optuna's GPSampler with a constraint, given the same readings."""
    import optuna
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = space_of(points)
    anchor = anchor_of(space)
    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        knob.name: optuna.distributions.IntDistribution(0, len(knob.levels) - 1) for knob in space.knobs
    }
    studies = []
    for seed in range(REPEATS + 1):
        entries, limit_s = _readings(space, anchor, np.random.default_rng(seed))
        sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=5, constraints_func=_constraint)
        study = optuna.create_study(sampler=sampler)
        for entry in entries:
            index = space.index_of(entry.configuration)
            study.enqueue_trial(dict(zip(space.names, index, strict=True)))
            trial = study.ask(distributions)
            trial.set_user_attr("constraint", math.log(entry.latency_s / limit_s))
            study.tell(trial, entry.energy_j)
        studies.append(study)
    return {"suggest_ms": _median_ms(lambda repeat: studies[repeat].ask(distributions))}


def _constraint(trial: Any) -> tuple[float]:
    return (float(trial.user_attrs["constraint"]),)


def _import_ms(clock: Clock) -> tuple[float, bool]:
    """Median wall time that `import polythrottle` adds to starting Python, and whether it loads torch."""

    def wall_ms(code: str) -> float:
        started_s = clock.now()
        subprocess.run([sys.executable, "-c", code], check=True)
        return (clock.now() - started_s) * 1e3

    pairs = [(wall_ms("import polythrottle"), wall_ms("pass")) for _ in range(7)]
    check = "import sys, polythrottle; sys.exit('torch' in sys.modules)"
    loads_torch = subprocess.run([sys.executable, "-c", check], check=False).returncode != 0
    return max(statistics.median(full - bare for full, bare in pairs), 0.0), loads_torch


def _child(case: str, points: int) -> dict[str, float]:
    with single_threaded():
        output = subprocess.run(
            [sys.executable, "-m", "polythrottle.benchmarking.timing", case, str(points)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    figures: dict[str, float] = json.loads(output.splitlines()[-1])
    return figures


def measure(clock: Clock, with_peers: bool) -> Timing:
    """All cases, one child after the other.

    Raises:
        subprocess.CalledProcessError: a child failed; its stderr says why.
    """
    usual, large = _child("suggest", 5005), _child("suggest", 50_000)
    acquisition = _child("botorch", 5005)
    import_ms, loads_torch = _import_ms(clock)
    return Timing(
        suggest_ms=usual["suggest_ms"],
        setup_ms=usual["setup_ms"],
        suggest_large_ms=large["suggest_ms"],
        setup_large_ms=large["setup_ms"],
        peak_large_mb=large["peak_mb"],
        gpsampler_ms=_child("gpsampler", 5005)["suggest_ms"] if with_peers else None,
        import_ms=import_ms,
        import_loads_torch=loads_torch,
        algebra_ms=acquisition["algebra_ms"],
        wrapped_ms=acquisition["wrapped_ms"],
    )


if __name__ == "__main__":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    measures = {"suggest": measure_suggest, "botorch": measure_botorch, "gpsampler": measure_gpsampler}
    print(json.dumps(measures[sys.argv[1]](int(sys.argv[2]))))
