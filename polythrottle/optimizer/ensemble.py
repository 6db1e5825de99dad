"""Random devices and workloads: the distributions of the physics family's parameters.

They are wide on purpose: no board and no table was looked at to choose them. docs/optimizer.md lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np

from polythrottle.optimizer.arrays import Array
from polythrottle.physics import DeviceModel, DomainPower


def draw(members: int, seed: int) -> DeviceModel:
    """`members` independent devices; each field of the result is a float32 array of shape (members,)."""
    rng = np.random.default_rng(seed)

    def uniform(low: float, high: float) -> Array:
        return rng.uniform(low, high, members)

    def log_uniform(low: float, high: float) -> Array:
        return np.exp(rng.uniform(np.log(low), np.log(high), members))

    def domain(amplitude: Array, floor: tuple[float, float]) -> DomainPower:
        return DomainPower(
            amplitude=amplitude,
            floor=uniform(*floor),
            knee=uniform(0.05, 0.75),
            exponent=uniform(0.8, 1.6),
            leakage=rng.beta(1.0, 4.0, members),
            clock_tree=uniform(0.05, 0.6),
        )

    shares = rng.dirichlet([0.5, 0.5, 0.5, 0.25, 0.3], members)
    # A workload is often insensitive to one clock altogether.
    for column, probability in ((0, 0.10), (1, 0.05), (2, 0.15)):
        shares[rng.random(members) < probability, column] *= 0.02
    shares = np.maximum(shares, 1e-4)
    shares /= shares.sum(axis=1, keepdims=True)
    amplitudes = rng.dirichlet([1.0, 0.7, 0.8, 1.2], members)
    stepped = rng.random(members) < 0.5
    sags = rng.random(members) < 0.5
    model = DeviceModel(
        gpu_share=shares[:, 0],
        mem_share=shares[:, 1],
        cpu_share=shares[:, 2],
        cpu_mem_share=shares[:, 3],
        const_share=shares[:, 4],
        mem_exponent=uniform(0.7, 1.1),
        bandwidth_limit=rng.beta(1.0, 1.5, members),
        device_overlap=log_uniform(1.0, 4.0),
        host_overlap=log_uniform(1.0, 4.0),
        parallel=uniform(0.0, 1.0),
        fill=log_uniform(0.02, 8.0),
        fill_sharpness=uniform(1.0, 4.0),
        mem_fixed=rng.beta(0.7, 1.2, members),
        cpu_fixed=uniform(0.0, 1.0),
        const_fixed=uniform(0.5, 1.0),
        cpu_intensity=uniform(0.3, 1.0),
        spin=(rng.random(members) < 0.25).astype(float),
        gpu=domain(amplitudes[:, 0], (0.45, 0.95)),
        mem=domain(amplitudes[:, 1], (0.6, 1.0)),
        cpu=domain(amplitudes[:, 2], (0.45, 0.95)),
        static=amplitudes[:, 3],
        mem_step=np.where(stepped, uniform(0.0, 0.45), 0.0),
        mem_step_at=uniform(0.3, 0.98),
        cap_demand=log_uniform(0.45, 1.4),
        core_power=uniform(0.0, 1.0),
        sag=np.where(sags, uniform(0.5, 1.0), 1.0),
    )
    return _mapped(model, lambda values: np.asarray(values, dtype=np.float32))


def placed(model: DeviceModel, members: Any, ndim: int) -> DeviceModel:
    """The chosen members on the first of `ndim` axes, ready to broadcast against points."""
    return _mapped(model, lambda values: values[members].reshape(-1, *([1] * (ndim - 1))))


def _mapped(model: DeviceModel, function: Any) -> DeviceModel:
    changes: dict[str, Any] = {}
    for field in fields(model):
        value = getattr(model, field.name)
        if isinstance(value, DomainPower):
            parts: Mapping[str, Any] = {f.name: function(getattr(value, f.name)) for f in fields(value)}
            changes[field.name] = DomainPower(**parts)
        else:
            changes[field.name] = function(value)
    return replace(model, **changes)
