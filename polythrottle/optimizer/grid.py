"""A search space as arrays: level indices, coordinates for kernels, operating points for the physics."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from polythrottle.configuration import UNITS, Configuration, Knob, SearchSpace
from polythrottle.optimizer.arrays import Array
from polythrottle.physics import OperatingPoint

UNLOCKED_COORDINATE = 1.15
"""Where a kernel sees a category such as `unlocked`: beside the highest number, not on it."""


class Grid:
    """The N allowed points of a space over d knobs.

    Attributes:
        indices: (N, d) level indices.
        coordinates: (N, d) log of each knob scaled to [0, 1] over its levels; what kernels see.
        anchor_row: row of the anchor.
        known: names of the knobs the physics knows.
    """

    def __init__(self, space: SearchSpace, anchor: Configuration) -> None:
        self.space = space
        self.anchor = anchor
        self.indices: Array = np.asarray(space.indices(), dtype=np.int64)
        self._rows = {tuple(index): row for row, index in enumerate(self.indices.tolist())}
        per_knob = [_coordinates(knob) for knob in space.knobs]
        self.coordinates: Array = np.stack([c[self.indices[:, k]] for k, c in enumerate(per_knob)], axis=1)
        self.anchor_row = self.row(anchor)
        self.known = tuple(name for name in space.names if name in UNITS)

    def __len__(self) -> int:
        return len(self.indices)

    def row(self, configuration: Mapping[str, Any]) -> int:
        """Row of a configuration; KeyError or ValueError when it is not in the space."""
        return self._rows[self.space.index_of(configuration)]

    def configuration(self, row: int) -> Configuration:
        return self.space.at(self.indices[row].tolist())

    @cached_property
    def axes_are_dense(self) -> bool:
        """Whether evaluating the full product of levels wastes little."""
        return self.space.size_before_rules <= 4 * len(self) or self.space.cells is None

    def operating_axes(self) -> tuple[OperatingPoint, tuple[int, ...]]:
        """The product of the known knobs' levels, each on its own axis after the members' axis.

        Returns the point, and the shape (levels per known knob).
        """
        knobs = [self.space.knob(name) for name in self.known]
        shape = tuple(len(knob.levels) for knob in knobs)
        values = {}
        for axis, knob in enumerate(knobs):
            placed = [1] * (1 + len(knobs))
            placed[1 + axis] = len(knob.levels)
            numbers = np.asarray([knob.number(level) for level in knob.levels], dtype=np.float32)
            values[knob.name] = numbers.reshape(placed)
        return self._operating_point(values), shape

    def product_rows(self) -> Array:
        """(N,) position of each grid point in the flattened product of the known knobs' levels."""
        columns = [self.space.names.index(name) for name in self.known]
        shape = tuple(len(self.space.knobs[k].levels) for k in columns)
        return np.asarray(np.ravel_multi_index(tuple(self.indices[:, columns].T), shape))

    def operating_points(self, configurations: list[Mapping[str, Any]]) -> OperatingPoint:
        """Given configurations, on the grid or off it, along one axis after the members' axis: (1, n)."""
        values = {}
        for name in self.known:
            knob = self.space.knob(name)
            numbers = [knob.number(configuration[name]) for configuration in configurations]
            values[name] = np.asarray(numbers, dtype=np.float32).reshape(1, -1)
        return self._operating_point(values)

    def _operating_point(self, values: Mapping[str, Array]) -> OperatingPoint:
        def relative(name: str) -> Any:
            if name not in values:
                return 1.0
            return np.maximum(values[name] / self.space.knob(name).highest_number, 1e-3)

        anchor_batch = 1.0
        if "batch_size" in values:
            batch = self.space.knob("batch_size")
            anchor_batch = max(batch.number(self.anchor["batch_size"]), 1e-9)
        cores_max = self.space.knob("cpu_cores").highest_number if "cpu_cores" in values else 1.0
        gpu_min: Any = 0.0
        if "gpu_min_freq_mhz" in values:
            # The floor is relative to the same top clock as the ceiling.
            top = self.space.knob("gpu_min_freq_mhz").highest_number
            if "gpu_freq_mhz" in values:
                top = max(top, self.space.knob("gpu_freq_mhz").highest_number)
            gpu_min = values["gpu_min_freq_mhz"] / top
        return OperatingPoint(
            cpu=relative("cpu_freq_mhz"),
            gpu=relative("gpu_freq_mhz"),
            mem=relative("mem_freq_mhz"),
            gpu_min=gpu_min,
            batch=values["batch_size"] / anchor_batch if "batch_size" in values else 1.0,
            cores=np.maximum(values["cpu_cores"], 1e-3) if "cpu_cores" in values else 1.0,
            cores_max=max(cores_max, 1.0),
            cap=relative("power_limit_w") if "power_limit_w" in values else None,
            has_batch="batch_size" in values,
            largest_batch=(
                self.space.knob("batch_size").highest_number / anchor_batch if "batch_size" in values else 1.0
            ),
            has_gpu_min="gpu_min_freq_mhz" in values,
        )


def _coordinates(knob: Knob) -> Array:
    """One coordinate per level."""
    numbers = np.asarray([level for level in knob.levels if not isinstance(level, str)], dtype=np.float64)
    if len(numbers) == 1:
        scaled = np.zeros(1)
    elif numbers[0] > 0:
        logs = np.log(numbers)
        scaled = (logs - logs[0]) / (logs[-1] - logs[0])
    else:
        scaled = (numbers - numbers[0]) / (numbers[-1] - numbers[0])
    categories = len(knob.levels) - len(numbers)
    return np.concatenate([scaled, UNLOCKED_COORDINATE + 0.15 * np.arange(categories)])
