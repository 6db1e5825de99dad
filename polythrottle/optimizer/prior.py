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
from polythrottle.physics import OperatingPoint, latency_and_power

RANK = 40
"""Columns of the low-rank factor of the ensemble's covariance."""
DENSE_LIMIT = 20_000_000
"""Member × point values kept in memory (float32, two outputs: 160 MB); above, surfaces are made on demand."""
CHUNK = 2_000_000
_MEMO_SURFACES = 256


class EnsemblePrior:
    """M members on a grid of N points.

    Attributes:
        mean: (2, N) ensemble mean of y^L and y^P.
        factors: (2, N, RANK) with factors·factorsᵀ ≈ the ensemble's covariance.
        wide: True where a knob of the space is unknown to the physics.
    """

    def __init__(self, grid: Grid, members: int, seed: int) -> None:
        self.grid = grid
        self.members = members
        self.seed = seed
        self.wide = len(grid.known) < len(grid.space.names)
        self._model = draw(members, seed)
        self._ops = ArrayOps()
        self._at_anchor = self._evaluate(np.arange(members), grid.operating_points([grid.anchor]), 2)[:, :, 0]
        self._columns: dict[tuple[Any, ...], Array] = {}
        self._memo: dict[int, Array] = {}
        self._axes, self._shape = grid.operating_axes()
        self._product_rows = grid.product_rows()
        kept = min(members, max(200, DENSE_LIMIT // len(grid)))
        self._dense: Array | None = None
        surfaces = np.empty((2, kept, len(grid)), dtype=np.float32)
        for chunk in self._chunks(np.arange(kept)):
            surfaces[:, chunk] = self._surfaces(chunk)
        self.mean: Array = surfaces.mean(axis=1, dtype=np.float64)
        rng = np.random.default_rng(seed + 1)
        self.factors: Array = np.stack([_low_rank(surfaces[o], self.mean[o], rng) for o in range(2)])
        if kept == members:
            self._dense = surfaces

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
        latency, power = latency_and_power(model, point, self._ops)
        log_latency, log_power = np.log(latency), np.log(power)
        if point.has_batch:
            log_power = log_power - np.log(np.asarray(point.batch, dtype=np.float32))
        log_latency, log_power = np.broadcast_arrays(log_latency, log_power)
        return np.stack([log_latency, log_power]).astype(np.float32)


def _low_rank(surfaces: Array, mean: Array, rng: np.random.Generator) -> Array:
    """(N, RANK) factor of the covariance of (M, N) surfaces: a randomised SVD with one power step."""
    centred = surfaces - mean.astype(np.float32)
    members, points = centred.shape
    rank = min(RANK, points, members)
    sketch = rng.standard_normal((points, min(rank + 12, points))).astype(np.float32)
    basis, _ = np.linalg.qr(centred.T @ (centred @ sketch))
    basis, _ = np.linalg.qr(centred.T @ (centred @ basis))
    _, singular, right = np.linalg.svd(centred @ basis, full_matrices=False)
    factor = (basis @ right.T)[:, :rank] * (singular[:rank] / np.sqrt(members))
    return np.pad(factor, ((0, 0), (0, RANK - rank))).astype(np.float64)
