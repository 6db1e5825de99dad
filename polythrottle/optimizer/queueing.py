"""What random devices show where queries arrive by themselves: they wait, are batched, and leave idle time.

A member of the ensemble is a device with its service time and power. Here it also gets an arrival rate and a
kind of batching, both as unknown as the device is:

- the rate is log-uniform between `LEAST_LOAD` and `MOST_LOAD` of what max clocks serve one by one;
- most members form batches from whatever waits, up to the batch size; the others are sent full ones.

Percentiles come from a table of simulated queues (`queue_table`), energy per query from the time in which the
device is busy and the rest that it idles away.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from polythrottle.objective import LatencySlo
from polythrottle.optimizer.arrays import Array, ArrayOps
from polythrottle.optimizer.queue_table import BATCHES, CELLS, GROWTHS, LOADS, QUANTILES
from polythrottle.physics import DeviceModel, OperatingPoint, idle_power, latency_and_power

LEAST_LOAD, MOST_LOAD = 0.03, 1.0
DYNAMIC_SHARE = 0.9
"""Members whose batches form from what waits, as inference servers do; only a load generator fills them."""
BEYOND, MOST_BEYOND = 12.0, 6.0
"""Beyond the table's last load log latency rises by so much a unit of load, and by so much at most: a queue
that grows without end has no percentile, but a window of one looks worse the faster it grows."""


class QueueTable:
    """One statistic of latency, and the mean batch, over batch size, growth of a batch's time, and load."""

    def __init__(self, statistic: str) -> None:
        """
        Args:
            statistic: `mean` or `p50` to `p99.9`.
        """
        shape = (len(BATCHES), len(GROWTHS), len(LOADS))
        cells = np.log(np.asarray(CELLS)).reshape(*shape, -1)
        self._batch = cells[..., 0].astype(np.float32)
        self._latency = _of_statistic(cells, statistic).astype(np.float32)
        self._growths = np.asarray(GROWTHS, dtype=np.float32)
        self._loads = np.asarray(LOADS, dtype=np.float32)
        self._log_batches = np.log2(np.asarray(BATCHES, dtype=np.float32))

    def __call__(self, batch: Array, growth: Array, load: Array) -> tuple[Array, Array]:
        """log latency over the time of a batch of one, and log mean batch. The arguments broadcast.

        Args:
            batch: batch size, 1 to 32; sizes between the table's are interpolated.
            growth: (time of a full batch / time of a batch of one - 1) / (batch - 1), in [0, 1].
            load: arrival rate over the most that full batches can serve; beyond the table it is extrapolated.
        """
        beyond = np.minimum(BEYOND * np.maximum(load - self._loads[-1], 0.0), MOST_BEYOND)
        i, to_next_growth = _place(self._growths, growth)
        j, to_next_load = _place(self._loads, load)
        b, to_next_batch = _place(self._log_batches, np.log2(np.asarray(batch, dtype=np.float32)))

        def between(table: Array) -> Array:
            def at(row: Array) -> Array:
                low = table[row, i, j] * (1 - to_next_load) + table[row, i, j + 1] * to_next_load
                high = table[row, i + 1, j] * (1 - to_next_load) + table[row, i + 1, j + 1] * to_next_load
                return np.asarray(low * (1 - to_next_growth) + high * to_next_growth)

            return np.asarray(at(b) * (1 - to_next_batch) + at(b + 1) * to_next_batch)

        return between(self._latency) + beyond, between(self._batch)


def _place(nodes: Array, values: Array) -> tuple[Array, Array]:
    """Index of the node below, and how far it is to the next, in [0, 1]."""
    inside = np.clip(values, nodes[0], nodes[-1])
    index = np.clip(np.searchsorted(nodes, inside, side="right") - 1, 0, len(nodes) - 2)
    return index, (inside - nodes[index]) / (nodes[index + 1] - nodes[index])


def _of_statistic(cells: Array, statistic: str) -> Array:
    """The column of a statistic; quantiles between the table's over log(1 - q)."""
    quantile = None if statistic == "mean" else LatencySlo(statistic, limit_s=1.0).quantile
    if quantile is None:
        return np.asarray(cells[..., 1])
    known = [-math.log(1.0 - q) for q in QUANTILES]
    wanted = min(max(-math.log(1.0 - quantile), known[0]), known[-1])
    upper = max(next(k for k, at in enumerate(known) if at >= wanted), 1)
    share = (wanted - known[upper - 1]) / (known[upper] - known[upper - 1])
    return np.asarray(cells[..., 1 + upper] * (1.0 - share) + cells[..., 2 + upper] * share)


class Queueing:
    """Arrivals for M members."""

    def __init__(self, members: int, seed: int, statistic: str, anchor_batch: float) -> None:
        """
        Args:
            statistic: the SLO's.
            anchor_batch: queries in a batch where a point's `batch` is 1.
        """
        rng = np.random.default_rng(seed)
        logs = rng.uniform(math.log(LEAST_LOAD), math.log(MOST_LOAD), members)
        self._load = np.exp(logs).astype(np.float32)
        self._dynamic = rng.random(members) < DYNAMIC_SHARE
        self._table = QueueTable(statistic)
        self._anchor_batch = anchor_batch
        self._ops = ArrayOps()

    def outputs(
        self, members: Array, ndim: int, model: DeviceModel, point: OperatingPoint, anchor: OperatingPoint
    ) -> tuple[Array, Array]:
        """log latency and log energy per query, each up to a constant a member.

        Args:
            members: which of the M, on the first of `ndim` axes of `model`.
            point: where; `anchor`: max clocks, with the same axes.
        """
        shape = (-1, *([1] * (ndim - 1)))
        load = self._load[members].reshape(shape)
        dynamic = self._dynamic[members].reshape(shape)
        one_query = 1.0 / self._anchor_batch
        unit_s, _ = latency_and_power(model, replace(anchor, batch=one_query), self._ops)
        one_s, one_w = self._served(model, replace(point, batch=one_query), unit_s)
        full_s, full_w = self._served(model, point, unit_s)
        batch = np.maximum(np.asarray(point.batch, dtype=np.float32) * self._anchor_batch, 1.0)
        more = np.maximum(batch - 1.0, 1e-6)
        growth = np.where(batch > 1.0, (full_s / one_s - 1.0) / more, 0.0)
        # Batches that come full are to the queue what single queries are.
        log_wait, log_mean = self._table(
            np.where(dynamic, batch, 1.0), np.where(dynamic, growth, 0.0), load * full_s / batch
        )
        mean = np.where(dynamic, np.exp(log_mean), batch)
        towards_full = np.where(batch > 1.0, (mean - 1.0) / more, 0.0)
        busy_s = one_s + (full_s - one_s) * towards_full
        busy_j = one_s * one_w + (full_s * full_w - one_s * one_w) * towards_full
        idle_w = idle_power(model, point, self._ops)
        idle_s = np.maximum(1.0 / load - busy_s / mean, 0.0)
        log_latency = np.log(np.where(dynamic, one_s, full_s)) + log_wait
        return log_latency, np.log(busy_j / mean + idle_s * idle_w)

    def _served(self, model: DeviceModel, point: OperatingPoint, unit_s: Any) -> tuple[Any, Any]:
        """Time of a batch in units of one query's at max clocks, and power meanwhile."""
        seconds, watts = latency_and_power(model, point, self._ops)
        return seconds / unit_s, watts
