"""Calibration of the emulated boards: which physics, scales and noise stand for a workload on a board."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from polythrottle.physics import DeviceModel, DomainPower, OperatingPoint, ScalarOps, latency_and_power
from polythrottle_agent.emulation.boards import BATCH_SIZES

ANCHOR = OperatingPoint(has_batch=True, largest_batch=float(BATCH_SIZES[-1]))
"""Max clocks at batch 1: where `Calibration.latency_s` and `power_w` hold."""

WORKLOADS: tuple[str, ...] = ("efficientnet-b0", "efficientnet-b4", "efficientnet-b7", "bert-base")
"""Names of the emulated workloads, all in FP16."""

DEFAULT_WORKLOAD = "efficientnet-b4"


@dataclass(frozen=True)
class Noise:
    """How windows and queries scatter.

    scatter_one, scatter_many: standard deviation over mean of a window's energy at batch 1 and at the
    batch `many`; between them it goes with the logarithm of the batch. Most of it comes from rare large
    outliers, as in the paper's surfaces. jitter: standard deviation of the logarithm of one query's
    latency; `tail_share` of the queries take up to `tail_stretch` longer on top. The paper gives no
    latency distribution: these three are assumed.
    """

    scatter_one: float
    scatter_many: float
    many: int
    jitter: float = 0.035
    tail_share: float = 0.004
    tail_stretch: float = 0.5

    def scatter(self, batch: int) -> float:
        """Relative standard deviation of one window's energy."""
        weight = min(math.log(batch) / math.log(self.many), 1.0)
        return self.scatter_one + (self.scatter_many - self.scatter_one) * weight


@dataclass(frozen=True)
class Calibration:
    """A workload on a board.

    `latency_s` and `power_w` are those of max clocks at batch 1: they turn the model's units into
    seconds and watts. They are nominal: the paper's absolute values contradict one another by up to
    25 times, so only shapes and ratios were fitted. `stock_cpu` is the share of the highest CPU clock that
    the governor runs at as found, under this load.
    """

    board: str
    workload: str
    model: DeviceModel
    latency_s: float
    power_w: float
    noise: Noise
    stock_cpu: float = 0.8


def _resized(domain: DomainPower, size: float, top: float) -> DomainPower:
    """The same silicon, `size` times as much of it, with a highest clock of `top` times the original's.

    Exact: the voltage curve is cut at `top` and rescaled to 1 there, power at equal clocks stays
    `size` times the original's.
    """
    if top <= domain.knee:
        rise, knee = 0.0, 0.99
    else:
        rise = math.pow((top - domain.knee) / (1.0 - domain.knee), domain.exponent)
        knee = domain.knee / top
    voltage = domain.floor + (1.0 - domain.floor) * rise
    leakage = domain.leakage * voltage
    dynamic = (1.0 - domain.leakage) * top * voltage * voltage
    return replace(
        domain,
        amplitude=domain.amplitude * size * (leakage + dynamic),
        floor=domain.floor / voltage,
        knee=knee,
        leakage=leakage / (leakage + dynamic),
    )


@dataclass(frozen=True)
class Resizing:
    """How one board differs from another of the same architecture, each as a ratio to the other."""

    gpu_size: float
    gpu_top: float
    mem_width: float
    cpu_size: float
    cpu_top: float
    static: float


def extrapolated(source: Calibration, board: str, sizing: Resizing) -> Calibration:
    """A calibration for a board that nobody measured, from a sibling's.

    GPU time grows with the inverse of GPU size and clock (less where a batch did not fill the larger GPU),
    memory time with the inverse of the bus width, host time with the inverse of the CPU clock; power
    shrinks with size and along the voltage curve. A smaller GPU is busier: its governor sags half as far.
    """
    model = source.model
    fill = model.fill * sizing.gpu_size
    sharpness = model.fill_sharpness
    fuller = math.pow((1.0 + fill**sharpness) / (1.0 + model.fill**sharpness), 1.0 / sharpness)
    speed = sizing.gpu_size * sizing.gpu_top
    resized = replace(
        model,
        gpu_share=model.gpu_share * fuller / speed,
        mem_share=model.mem_share / sizing.mem_width,
        cpu_share=model.cpu_share / sizing.cpu_top,
        bandwidth_limit=min(model.bandwidth_limit * sizing.mem_width / speed, 1.0),
        fill=fill,
        gpu=_resized(model.gpu, sizing.gpu_size, sizing.gpu_top),
        mem=_resized(model.mem, sizing.mem_width, 1.0),
        cpu=_resized(model.cpu, sizing.cpu_size, sizing.cpu_top),
        static=model.static * sizing.static,
        sag=0.5 * (1.0 + model.sag),
    )
    old_latency, old_power = latency_and_power(model, ANCHOR, ScalarOps())
    new_latency, new_power = latency_and_power(resized, ANCHOR, ScalarOps())
    return replace(
        source,
        board=board,
        model=resized,
        latency_s=source.latency_s * new_latency / old_latency,
        power_w=source.power_w * new_power / old_power,
    )
