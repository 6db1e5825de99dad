"""Emulated tables for the benchmark: random devices and workloads, drawn from seeds.

The optimiser's prior must not be tested on its own draws. So the parameters of the model family come from
other, mostly wider distributions than the ensemble's (log-normal shares, later knees, fractional
busy-waiting), and each table departs from the family by

- a smooth random field, 3 % sd, on log latency and another on log energy;
- steps from one memory level to the next, 1 % sd on latency and 2 % on energy;
- a quirk of its governor: one GPU level that really runs the next lower clock, or a GPU that loses a few per
  cent of its clock when CPU and GPU both run high.

Nothing here was chosen by looking at what the optimiser does with it.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polythrottle.benchmarking.tables import anchor_of
from polythrottle.benchmarking.task import BATCH_CAP, THREE_KNOB, Task
from polythrottle.configuration import Configuration, Knob, SearchSpace
from polythrottle.physics import DeviceModel, DomainPower, OperatingPoint, latency_and_power

Array = np.ndarray[Any, np.dtype[np.float64]]

FIELD_SD = 0.03
FIELD_WAVES = 32
FIELD_LENGTH = 0.45
"""Length scale of the field, in knob ranges (logarithmic)."""


class _ArrayOps:
    """The model family's functions on numpy arrays."""

    def maximum(self, a: Any, b: Any) -> Any:
        return np.maximum(a, b)

    def minimum(self, a: Any, b: Any) -> Any:
        return np.minimum(a, b)

    def power(self, base: Any, exponent: Any) -> Any:
        return np.power(base, exponent)

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        return np.where(condition, a, b)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _shares(rng: np.random.Generator, medians: Sequence[float], spread: float) -> list[float]:
    """Positive shares that sum to 1: normalised log-normals."""
    weights = np.array(medians) * np.exp(spread * rng.standard_normal(len(medians)))
    return [float(share) for share in weights / weights.sum()]


def _domain(rng: np.random.Generator, amplitude: float) -> DomainPower:
    return DomainPower(
        amplitude=amplitude,
        floor=rng.uniform(0.4, 0.98),
        knee=rng.uniform(0.0, 0.85),
        exponent=rng.uniform(0.6, 2.2),
        leakage=rng.beta(2.0, 6.0),
        clock_tree=rng.uniform(0.02, 0.7),
    )


def draw_device(rng: np.random.Generator) -> DeviceModel:
    """A random device and workload."""
    gpu, mem, cpu, cpu_mem, const = _shares(rng, (1.0, 0.7, 0.45, 0.15, 0.2), 1.3)
    gpu_power, mem_power, cpu_power, static = _shares(rng, (1.2, 0.55, 0.55, 0.8), 0.7)
    return DeviceModel(
        gpu_share=gpu,
        mem_share=mem,
        cpu_share=cpu,
        cpu_mem_share=cpu_mem,
        const_share=const,
        mem_exponent=rng.uniform(0.6, 1.15),
        bandwidth_limit=rng.uniform(0.0, 0.9),
        device_overlap=min(1.0 + rng.exponential(1.2), 6.0),
        host_overlap=min(1.0 + rng.exponential(0.9), 6.0),
        parallel=rng.beta(2.0, 2.0),
        fill=_log_uniform(rng, 0.02, 12.0),
        fill_sharpness=rng.uniform(1.0, 5.0),
        mem_fixed=rng.uniform(0.0, 1.0),
        cpu_fixed=rng.uniform(0.0, 1.0),
        const_fixed=rng.uniform(0.3, 1.0),
        cpu_intensity=rng.uniform(0.2, 1.0),
        spin=rng.uniform(0.3, 1.0) if rng.random() < 0.3 else 0.0,
        gpu=_domain(rng, gpu_power),
        mem=_domain(rng, mem_power),
        cpu=_domain(rng, cpu_power),
        static=static,
        mem_step=rng.uniform(0.05, 0.5) if rng.random() < 0.4 else 0.0,
        mem_step_at=rng.uniform(0.2, 0.95),
        cap_demand=_log_uniform(rng, 0.4, 1.6),
        core_power=rng.uniform(0.3, 0.9),
        sag=1.0,
    )


def _ladder(rng: np.random.Generator, count: int, highest: float, lowest_share: float) -> list[float]:
    """Clock levels with uneven spacing, as boards have them."""
    gaps = rng.uniform(0.5, 1.5, size=count - 1)
    rise = np.concatenate([[0.0], np.cumsum(gaps)]) / gaps.sum()
    return [round(float(highest * (lowest_share + (1.0 - lowest_share) * x)), 2) for x in rise]


def _field(rng: np.random.Generator, coordinates: Array) -> Array:
    """A smooth random function of points (N × d, each column in [0, 1]) with sd `FIELD_SD`: N values."""
    waves = rng.standard_normal((FIELD_WAVES, coordinates.shape[1])) / FIELD_LENGTH
    phases = rng.uniform(0.0, 2.0 * np.pi, size=FIELD_WAVES)
    amplitude = FIELD_SD * np.sqrt(2.0 / FIELD_WAVES) * rng.standard_normal(FIELD_WAVES)
    return np.asarray(np.cos(coordinates @ waves.T + phases) @ amplitude)


def _columns(space: SearchSpace) -> dict[str, Array]:
    """Level of each knob at each point."""
    indices = np.array(space.indices())
    return {
        knob.name: np.array([knob.number(level) for level in knob.levels])[indices[:, axis]]
        for axis, knob in enumerate(space.knobs)
    }


def _row(space: SearchSpace, configuration: Configuration) -> int:
    return space.indices().index(space.index_of(configuration))


def _quirky_gpu(rng: np.random.Generator, gpu: Array, cpu: Array) -> Array:
    """GPU clocks that really run, given the ones asked for; both relative to the highest."""
    levels = np.unique(gpu)
    if rng.random() < 0.5:
        stuck = int(rng.integers(1, len(levels) - 1))
        return np.where(gpu == levels[stuck], levels[stuck - 1], gpu)
    loss = rng.uniform(0.03, 0.08)
    return np.where((gpu >= levels[-2]) & (cpu >= np.unique(cpu)[-2]), gpu * (1.0 - loss), gpu)


def _task(name: str, family: str, space: SearchSpace, rng: np.random.Generator) -> Task:
    columns = _columns(space)
    anchor = anchor_of(space)
    relative: Mapping[str, Array] = {n: column / column.max() for n, column in columns.items()}
    ones = np.ones(len(next(iter(columns.values()))))
    gpu = relative.get("gpu_freq_mhz", ones)
    has_batch = "batch_size" in columns
    batch = columns["batch_size"] / columns["batch_size"][_row(space, anchor)] if has_batch else ones
    if "gpu_freq_mhz" in columns:
        gpu = _quirky_gpu(rng, gpu, relative["cpu_freq_mhz"])
    point = OperatingPoint(
        cpu=relative.get("cpu_freq_mhz", ones),
        gpu=gpu,
        mem=relative.get("mem_freq_mhz", ones),
        batch=batch,
        cap=relative.get("power_limit_w"),
        has_batch=has_batch,
        largest_batch=float(batch.max()),
    )
    latency, power = latency_and_power(draw_device(rng), point, _ArrayOps())
    log_latency = np.log(latency) + np.log(_log_uniform(rng, 3e-3, 0.3))
    log_energy = log_latency + np.log(power) + np.log(_log_uniform(rng, 5.0, 300.0))
    if has_batch:
        log_energy = log_energy - np.log(columns["batch_size"])
    scaled = np.stack([np.log(c / c.min()) / np.log(c.max() / c.min()) for c in columns.values()], axis=1)
    log_latency = log_latency + _field(rng, scaled)
    log_energy = log_energy + _field(rng, scaled)
    if "mem_freq_mhz" in columns:
        levels, which = np.unique(columns["mem_freq_mhz"], return_inverse=True)
        log_latency = log_latency + 0.01 * rng.standard_normal(len(levels))[which]
        log_energy = log_energy + 0.02 * rng.standard_normal(len(levels))[which]
    return Task(
        name=name,
        family=family,
        source="generated",
        emulated=True,
        space=space,
        anchor=anchor,
        latency_s=tuple(np.exp(log_latency).tolist()),
        energy_j=tuple(np.exp(log_energy).tolist()),
    )


def three_knob(number: int) -> Task:
    """CPU × GPU × memory clock, about 1,000 points. The same number is the same table."""
    rng = np.random.default_rng([number, zlib.crc32(b"three-knob")])
    counts = [(8, 13, 10), (9, 12, 9), (7, 14, 11), (8, 13, 11), (10, 11, 9), (8, 16, 8)]
    n_cpu, n_gpu, n_mem = counts[number % len(counts)]
    space = SearchSpace(
        (
            Knob.of("cpu_freq_mhz", _ladder(rng, n_cpu, rng.uniform(1200, 2600), rng.uniform(0.08, 0.35))),
            Knob.of("gpu_freq_mhz", _ladder(rng, n_gpu, rng.uniform(600, 1600), rng.uniform(0.08, 0.3))),
            Knob.of("mem_freq_mhz", _ladder(rng, n_mem, rng.uniform(1300, 3300), rng.uniform(0.03, 0.3))),
        )
    )
    return _task(f"emulated/three-knob-{number}", THREE_KNOB, space, rng)


def batch_cap(number: int) -> Task:
    """Batch size × power cap, 56 to 96 points. The same number is the same table."""
    rng = np.random.default_rng([number, zlib.crc32(b"batch-cap")])
    smallest, n_batch, n_cap = int(rng.integers(0, 4)), int(rng.integers(8, 13)), int(rng.integers(7, 9))
    highest_w = float(rng.choice([165.0, 250.0, 300.0, 350.0, 400.0, 700.0]))
    caps = np.linspace(highest_w * rng.uniform(0.35, 0.5), highest_w, n_cap)
    space = SearchSpace(
        (
            Knob.of("batch_size", [float(2 ** (smallest + i)) for i in range(n_batch)]),
            Knob.of("power_limit_w", [float(round(cap)) for cap in caps.tolist()]),
        )
    )
    return _task(f"emulated/batch-cap-{number}", BATCH_CAP, space, rng)


def generated_tasks(three_knobs: int, batch_caps: int) -> list[Task]:
    return [three_knob(i) for i in range(three_knobs)] + [batch_cap(i) for i in range(batch_caps)]
