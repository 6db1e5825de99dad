"""The ensemble prior on a grid: what thousands of random devices would show, relative to the anchor.

Outputs are y^L = log latency and y^P = log(energy per query / latency) ("power per query"), each minus
its value at the anchor, so that log energy = y^L + y^P.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from polythrottle.optimizer.arrays import Array, ArrayOps
from polythrottle.optimizer.ensemble import draw, placed
from polythrottle.optimizer.grid import Grid
from polythrottle.optimizer.queueing import Queueing
from polythrottle.physics import OperatingPoint, latency_and_power

RANK = 40
"""Columns of the low-rank factor of the ensemble's covariance."""
DENSE_LIMIT = 30_000_000
"""Member × point values kept in memory (float32, two outputs: 240 MB); above, surfaces are made on demand."""
FACTOR_MEMBERS = 1000
"""Members that mean and factor are taken from where they are not kept: each costs a pass over the grid."""
LANDMARKS = 1000
"""Grid points that the factor's directions are found on."""
CHUNK = 1_000_000
_MEMO_SURFACES = 128
_QUEUE_SEED = 7_919
"""Keeps the arrivals' random numbers apart from the devices'."""


class EnsemblePrior:
    """M members on a grid of N points.

    Attributes:
        mean: (2, N) ensemble mean of y^L and y^P.
        factors: (2, N, RANK) with factors·factorsᵀ ≈ the ensemble's covariance.
        wide: True where a knob of the space is unknown to the physics.
    """

    def __init__(self, grid: Grid, members: int, seed: int, queued: str | None = None) -> None:
        """
        Args:
            queued: the SLO's statistic where queries arrive by themselves; None: back to back.
        """
        self.grid = grid
        self.members = members
        self.seed = seed
        self.wide = len(grid.known) < len(grid.space.names)
        self._model = draw(members, seed)
        self._ops = ArrayOps()
        self._queueing = None
        if queued is not None:
            batch = grid.anchor["batch_size"] if "batch_size" in grid.known else 1.0
            self._queueing = Queueing(members, seed + _QUEUE_SEED, queued, float(batch))
        self._at_anchor = self._evaluate(np.arange(members), grid.operating_points([grid.anchor]), 2)[:, :, 0]
        self._columns: dict[tuple[Any, ...], Array] = {}
        self._memo: dict[int, Array] = {}
        self._axes, self._shape = grid.operating_axes()
        self._product_rows = grid.product_rows()
        dense = members * len(grid) <= DENSE_LIMIT
        self._dense: Array | None = np.empty((2, members, len(grid)), dtype=np.float32) if dense else None
        self.mean, self.factors = self._mean_and_factors(members if dense else min(members, FACTOR_MEMBERS))

    def _mean_and_factors(self, count: int) -> tuple[Array, Array]:
        """Mean (2, N) and factor (2, N, RANK) of the first `count` members; fills the dense store.

        The leading directions among members are those of the landmarks' covariance; a second pass
        projects every grid point on them. Exact where the grid has no more points than landmarks.
        """
        points = len(self.grid)
        rng = np.random.default_rng(self.seed + 1)
        landmarks = np.sort(rng.permutation(points)[:LANDMARKS])
        at_landmarks = np.empty((2, count, len(landmarks)), dtype=np.float32)
        total = np.zeros((2, points))
        for chunk in self._chunks(np.arange(count)):
            surfaces = self._surfaces(chunk)
            total += surfaces.sum(axis=1, dtype=np.float64)
            at_landmarks[:, chunk] = surfaces[:, :, landmarks]
            if self._dense is not None:
                self._dense[:, chunk] = surfaces
        mean = total / count
        directions = [_directions(at_landmarks[o] - mean[o, landmarks].astype(np.float32)) for o in range(2)]
        factors = np.zeros((2, points, RANK))
        for chunk in self._chunks(np.arange(count)):
            surfaces = self.surfaces(chunk) if self._dense is not None else self._surfaces(chunk)
            for o in range(2):
                factors[o, :, : directions[o].shape[1]] += surfaces[o].T @ directions[o][chunk]
        return mean, factors / np.sqrt(count)

    def columns(self, rows: list[int], achieved: list[Mapping[str, Any] | None]) -> Array:
        """(2, M, n) of all members at n points: grid rows, or the clocks that ran where those are given."""
        found = []
        for row, clocks in zip(rows, achieved, strict=True):
            if clocks is None and self._dense is not None:
                found.append(self._dense[:, :, row])
                continue
            configuration = self.grid.configuration(row) if clocks is None else clocks
            key = tuple(configuration[name] for name in self.grid.known)
            if key not in self._columns:
                point = self.grid.operating_points([configuration])
                values = self._evaluate(np.arange(self.members), point, 2)[:, :, 0]
                self._columns[key] = values - self._at_anchor
            found.append(self._columns[key])
        return np.stack(found, axis=2).astype(np.float64)

    def surfaces(self, members: Array) -> Array:
        """(2, m, N) of the chosen members on the whole grid, float32."""
        if self._dense is not None:
            return self._dense[:, members]
        missing = np.asarray([m for m in members.tolist() if m not in self._memo], dtype=np.int64)
        if len(self._memo) + len(missing) > _MEMO_SURFACES:
            keep = set(members.tolist())
            self._memo = {m: surface for m, surface in self._memo.items() if m in keep}
        for chunk in self._chunks(missing):
            for member, surface in zip(chunk, np.moveaxis(self._surfaces(chunk), 1, 0), strict=True):
                self._memo[int(member)] = surface
        return np.stack([self._memo[m] for m in members.tolist()], axis=1)

    def _chunks(self, members: Array) -> Iterator[Array]:
        size = max(1, CHUNK // max(1, int(np.prod(self._shape))))
        for start in range(0, len(members), size):
            yield members[start : start + size]

    def _surfaces(self, members: Array) -> Array:
        values = self._evaluate(members, self._axes, 1 + len(self._shape))
        full = np.broadcast_to(values, (2, len(members), *self._shape)).reshape(2, len(members), -1)
        return np.asarray(full[:, :, self._product_rows] - self._at_anchor[:, members, None])

    def _evaluate(self, members: Array, point: OperatingPoint, ndim: int) -> Array:
        """(2, m, …) of y^L and y^P, not yet relative to the anchor."""
        model = placed(self._model, members, ndim)
        if self._queueing is not None:
            anchor = self.grid.operating_points([self.grid.anchor])
            log_latency, log_energy = self._queueing.outputs(members, ndim, model, point, anchor)
            log_power = log_energy - log_latency
        else:
            latency, power = latency_and_power(model, point, self._ops)
            log_latency, log_power = np.log(latency), np.log(power)
            if point.has_batch:
                log_power = log_power - np.log(np.asarray(point.batch, dtype=np.float32))
        log_latency, log_power = np.broadcast_arrays(log_latency, log_power)
        return np.stack([log_latency, log_power]).astype(np.float32)


def _directions(centred: Array) -> Array:
    """(M, ≤ RANK) orthonormal leading directions among members of (M, L) centred values."""
    rank = min(RANK, *centred.shape)
    variances, axes = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    largest = variances[-1] if len(variances) else 0.0
    # Directions without variance (one point, an insensitive output) would be divided by zero.
    kept = [k for k in range(len(variances) - rank, len(variances)) if variances[k] > 1e-9 * largest > 0]
    return np.asarray(
        (centred @ axes[:, kept].astype(np.float32)) / np.sqrt(variances[kept]).astype(np.float32)
    )
