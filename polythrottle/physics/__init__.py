"""Latency and power of a device running a workload, as one model family.

The optimiser's ensemble prior and the emulated board evaluate the same functions: `ScalarOps` makes
them pure Python for the agent, the optimiser passes arrays of members × points.
"""

from polythrottle.physics.family import (
    DeviceModel,
    DomainPower,
    OperatingPoint,
    ScalarOps,
    idle_power,
    latency,
    latency_and_power,
)

__all__ = [
    "DeviceModel",
    "DomainPower",
    "OperatingPoint",
    "ScalarOps",
    "idle_power",
    "latency",
    "latency_and_power",
]
