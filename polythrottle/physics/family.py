"""The model family: formulas only, generic over scalars and arrays.

Each quantity is a float or any array that broadcasts; `ops` supplies the few functions that differ.
Latency is in units of the workload's latency scale, power in units of its power scale: callers divide
by the values at an anchor, or multiply by a calibrated scale.

Shapes: with points laid out on the axes of a grid (each knob on its own axis) numpy's broadcasting
evaluates each term only on the axes it depends on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

Number = Any
"""A float, or an array that broadcasts with the others."""

CAP_LEVELS = 18
"""Clocks tried, from 100 % to 15 %, when a power cap binds."""
CAP_LOWEST = 0.15


class Ops(Protocol):
    """The functions that differ between floats and arrays."""

    def maximum(self, a: Number, b: Number) -> Number: ...
    def minimum(self, a: Number, b: Number) -> Number: ...
    def power(self, base: Number, exponent: Number) -> Number: ...
    def where(self, condition: Number, a: Number, b: Number) -> Number: ...


class ScalarOps:
    """Pure Python: the agent's path."""

    def maximum(self, a: float, b: float) -> float:
        return a if a > b else b

    def minimum(self, a: float, b: float) -> float:
        return a if a < b else b

    def power(self, base: float, exponent: float) -> float:
        return math.pow(base, exponent)

    def where(self, condition: bool, a: float, b: float) -> float:
        return a if condition else b


@dataclass(frozen=True)
class OperatingPoint:
    """Where a device runs, relative to its highest levels.

    cpu, gpu, mem: clock / highest clock, in (0, 1]. gpu_min: GPU floor / highest clock (0: no floor).
    batch: batch size / the anchor's. cores: cores online, of `cores_max`. cap: power limit / highest
    limit, or None where there is none. `largest_batch` is the space's largest `batch`.
    """

    cpu: Number = 1.0
    gpu: Number = 1.0
    mem: Number = 1.0
    gpu_min: Number = 0.0
    batch: Number = 1.0
    cores: Number = 1.0
    cores_max: float = 1.0
    cap: Number | None = None
    has_batch: bool = False
    largest_batch: float = 1.0
    has_gpu_min: bool = False


@dataclass(frozen=True)
class DomainPower:
    """Power of one clock domain (CPU, GPU or memory).

    amplitude: share of the device's power at full clock and use. Voltage is `floor` up to the knee and
    rises as a power `exponent` to 1 at full clock. leakage: share that scales with voltage alone;
    clock_tree: share of the dynamic part that an idle domain keeps.
    """

    amplitude: Number
    floor: Number
    knee: Number
    exponent: Number
    leakage: Number
    clock_tree: Number


@dataclass(frozen=True)
class DeviceModel:
    """Parameters of one workload on one device.

    Shares of latency at the anchor: gpu, mem, cpu, cpu_mem (host work bound by memory), const.
    """

    gpu_share: Number
    mem_share: Number
    cpu_share: Number
    cpu_mem_share: Number
    const_share: Number
    mem_exponent: Number
    """beta: memory time ~ clock^-beta."""
    bandwidth_limit: Number
    """kappa: a low GPU clock also throttles bandwidth; memory time is at least kappa / gpu."""
    device_overlap: Number
    """p-norm exponent of GPU and memory time: 1 adds them, large overlaps them."""
    host_overlap: Number
    """q-norm exponent of host and device time."""
    parallel: Number
    """Amdahl share of host work that more cores speed up."""
    fill: Number
    """k: batches below about k × the anchor's leave the GPU under-filled."""
    fill_sharpness: Number
    mem_fixed: Number
    """Share of memory traffic that does not grow with the batch (weights)."""
    cpu_fixed: Number
    const_fixed: Number
    cpu_intensity: Number
    spin: Number
    """1 where the host busy-waits for the GPU, else 0."""
    gpu: DomainPower
    mem: DomainPower
    cpu: DomainPower
    static: Number
    """Share of power that no knob changes."""
    mem_step: Number
    """Drop of memory power below `mem_step_at` (supply or PLL step between memory levels)."""
    mem_step_at: Number
    cap_demand: Number
    """What the anchor would draw, uncapped, over the highest power limit."""
    core_power: Number
    """Share of CPU power that scales with cores online."""
    sag: Number
    """Clock a GPU governor chooses at this load, over the maximum, when the floor lets it."""


@dataclass(frozen=True)
class _Times:
    gpu: Number
    mem: Number
    device: Number
    host: Number
    total: Number
    batch_work: Number
    cpu_batch_work: Number


def _batch_growth(batch: Number, fill: Number, sharpness: Number, ops: Ops) -> Number:
    """GPU work against batch, 1 at the anchor: flat while under-filled, then linear."""
    smooth = ops.power(ops.power(fill, sharpness) + ops.power(batch, sharpness), 1.0 / sharpness)
    at_anchor = ops.power(ops.power(fill, sharpness) + 1.0, 1.0 / sharpness)
    return smooth / at_anchor


def _effective_gpu(model: DeviceModel, point: OperatingPoint, ops: Ops) -> Number:
    """The clock that runs: what the governor picks, not below the floor."""
    if not point.has_gpu_min:
        return point.gpu
    return ops.maximum(point.gpu * model.sag, ops.minimum(point.gpu_min, point.gpu))


def _norm(a: Number, b: Number, exponent: Number, ops: Ops) -> Number:
    return ops.power(ops.power(a, exponent) + ops.power(b, exponent), 1.0 / exponent)


def _times(model: DeviceModel, point: OperatingPoint, gpu: Number, ops: Ops) -> _Times:
    if point.has_batch:
        gpu_work = _batch_growth(point.batch, model.fill, model.fill_sharpness, ops)
        mem_work = model.mem_fixed + (1.0 - model.mem_fixed) * point.batch
        cpu_work = model.cpu_fixed + (1.0 - model.cpu_fixed) * point.batch
        const_work = model.const_fixed + (1.0 - model.const_fixed) * point.batch
    else:
        gpu_work = mem_work = cpu_work = const_work = 1.0
    cpu = point.cpu
    if point.cores_max > 1.0:
        serial = 1.0 - model.parallel
        cpu = cpu * (serial + model.parallel / point.cores_max) / (serial + model.parallel / point.cores)
    gpu_time = model.gpu_share * gpu_work / gpu
    mem_time = (model.mem_share * mem_work) * ops.maximum(
        ops.power(point.mem, -model.mem_exponent), model.bandwidth_limit / gpu
    )
    device = _norm(gpu_time, mem_time, model.device_overlap, ops)
    host = model.cpu_share * cpu_work / cpu + model.cpu_mem_share * cpu_work / point.mem
    total = _norm(device, host, model.host_overlap, ops) + model.const_share * const_work
    return _Times(gpu_time, mem_time, device, host, total, gpu_work, cpu_work)


def _voltage(domain: DomainPower, clock: Number, ops: Ops) -> Number:
    above = ops.maximum((clock - domain.knee) / (1.0 - domain.knee), 1e-9)
    return domain.floor + (1.0 - domain.floor) * ops.power(above, domain.exponent)


def _domain_power(domain: DomainPower, clock: Number, use: Number, ops: Ops) -> Number:
    """Leakage with voltage, dynamic with f·V²·use; amplitude not applied."""
    voltage = _voltage(domain, clock, ops)
    dynamic = (1.0 - domain.leakage) * clock * voltage * voltage
    return domain.leakage * voltage + dynamic * (domain.clock_tree + (1.0 - domain.clock_tree) * use)


def _power(model: DeviceModel, point: OperatingPoint, gpu: Number, times: _Times, ops: Ops) -> Number:
    gpu_use = ops.minimum(times.device / times.total, 1.0) * ops.minimum(
        ops.maximum(times.gpu / times.device, 0.25), 1.0
    )
    if point.has_batch:
        largest = _batch_growth(point.largest_batch, model.fill, model.fill_sharpness, ops)
        best_fill = point.largest_batch / largest
        gpu_use = gpu_use * ops.minimum(ops.maximum((point.batch / times.batch_work) / best_fill, 0.15), 1.0)
    mem_use = ops.minimum(
        (times.mem + model.cpu_mem_share * times.cpu_batch_work / point.mem) / times.total, 1.0
    )
    cpu_use = ops.maximum(ops.minimum(times.host / times.total, 1.0) * model.cpu_intensity, 0.8 * model.spin)
    return _total_power(model, point, gpu, (gpu_use, mem_use, cpu_use), ops)


def _total_power(
    model: DeviceModel, point: OperatingPoint, gpu: Number, use: tuple[Number, Number, Number], ops: Ops
) -> Number:
    """Power at given utilisations of GPU, memory and CPU."""
    gpu_use, mem_use, cpu_use = use
    below = ops.where(point.mem < model.mem_step_at, 1.0, 0.0)
    mem_step = 1.0 - model.mem_step * below
    static_step = 1.0 - 0.4 * model.mem_step * below
    cpu_power = model.cpu.amplitude * _domain_power(model.cpu, point.cpu, cpu_use, ops)
    if point.cores_max > 1.0:
        cpu_power = cpu_power * (1.0 - model.core_power * (1.0 - point.cores / point.cores_max))
    return (
        model.static * static_step
        + model.gpu.amplitude * _domain_power(model.gpu, gpu, gpu_use, ops)
        + model.mem.amplitude * mem_step * _domain_power(model.mem, point.mem, mem_use, ops)
        + cpu_power
    )


def idle_power(model: DeviceModel, point: OperatingPoint, ops: Ops) -> Number:
    """Power while nothing is served at these clocks: leakage and clock trees, in the model's units."""
    return _total_power(model, point, point.gpu, (0.0, 0.0, 0.0), ops)


def latency(model: DeviceModel, point: OperatingPoint, ops: Ops) -> Number:
    """Latency of one batch, uncapped, in the model's units."""
    return _times(model, point, _effective_gpu(model, point, ops), ops).total


def latency_and_power(model: DeviceModel, point: OperatingPoint, ops: Ops) -> tuple[Number, Number]:
    """Latency of one batch and power while it runs, in the model's units.

    Under a power cap the GPU runs at the highest of `CAP_LEVELS` clocks that stays within it.
    """
    gpu = _effective_gpu(model, point, ops)
    times = _times(model, point, gpu, ops)
    power = _power(model, point, gpu, times, ops)
    if point.cap is None:
        return times.total, power
    at_anchor = OperatingPoint(
        cores=point.cores_max,
        cores_max=point.cores_max,
        has_batch=point.has_batch,
        largest_batch=point.largest_batch,
    )
    anchor_times = _times(model, at_anchor, 1.0, ops)
    limit = point.cap * _power(model, at_anchor, 1.0, anchor_times, ops) / model.cap_demand
    total, capped, fits = times.total, power, power <= limit
    for step in range(CAP_LEVELS - 1, -1, -1):
        clock = ops.minimum(gpu, CAP_LOWEST + (1.0 - CAP_LOWEST) * step / (CAP_LEVELS - 1))
        lower_times = _times(model, point, clock, ops)
        lower_power = _power(model, point, clock, lower_times, ops)
        total = ops.where(fits, total, lower_times.total)
        capped = ops.where(fits, capped, lower_power)
        fits = fits | (lower_power <= limit)
    return total, ops.minimum(capped, 1.02 * limit)
