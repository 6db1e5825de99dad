"""The ensemble prior: the array path is the scalar path, in every storage it has."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest

from polythrottle.configuration import AtMost, Configuration, Knob, SearchSpace
from polythrottle.optimizer import prior as prior_module
from polythrottle.optimizer.ensemble import draw
from polythrottle.optimizer.grid import Grid
from polythrottle.optimizer.prior import EnsemblePrior
from polythrottle.physics import DeviceModel, DomainPower, OperatingPoint, ScalarOps, latency_and_power

MEMBERS = 40


@pytest.fixture
def grid() -> Grid:
    space = SearchSpace(
        (
            Knob.of("gpu_min_freq_mhz", [300, 900]),
            Knob.of("gpu_freq_mhz", [300, 600, 900]),
            Knob.of("mem_freq_mhz", [800, 1600, "unlocked"]),
            Knob.of("cpu_cores", [1, 2, 4]),
            Knob.of("batch_size", [1, 2, 4]),
            Knob.of("power_limit_w", [100, 200]),
            Knob.of("queue_depth", [1, 2]),
        ),
        (AtMost("gpu_min_freq_mhz", "gpu_freq_mhz"),),
    )
    return Grid(space, Configuration.of({**space.highest(), "batch_size": 2.0}))


def scalar(model: DeviceModel, member: int) -> DeviceModel:
    values = {}
    for field in fields(model):
        value = getattr(model, field.name)
        values[field.name] = (
            DomainPower(**{f.name: float(getattr(value, f.name)[member]) for f in fields(value)})
            if isinstance(value, DomainPower)
            else float(value[member])
        )
    return DeviceModel(**values)


def point(configuration: Configuration) -> OperatingPoint:
    def number(name: str, top: float) -> float:
        level = configuration[name]
        return top if isinstance(level, str) else level

    return OperatingPoint(
        gpu=number("gpu_freq_mhz", 900) / 900,
        mem=number("mem_freq_mhz", 1600) / 1600,
        gpu_min=number("gpu_min_freq_mhz", 900) / 900,
        batch=number("batch_size", 4) / 2,
        cores=number("cpu_cores", 4),
        cores_max=4.0,
        cap=number("power_limit_w", 200) / 200,
        has_batch=True,
        largest_batch=2.0,
        has_gpu_min=True,
    )


@pytest.mark.parametrize("dense", [True, False])
def test_arrays_and_scalars_agree(grid: Grid, monkeypatch: pytest.MonkeyPatch, dense: bool) -> None:
    if not dense:
        monkeypatch.setattr(prior_module, "DENSE_LIMIT", 0)
    built = EnsemblePrior(grid, 300, seed=3)
    assert (built._dense is not None) is dense
    model = draw(300, 3)
    rng = np.random.default_rng(0)
    members = np.array([1, 17, 250])
    surfaces = built.surfaces(members)
    for row in rng.integers(0, len(grid), 25).tolist():
        configuration = grid.configuration(row)
        columns = built.columns([row], [None])
        for k, member in enumerate(members.tolist()):
            one = scalar(model, member)
            latency, power = latency_and_power(one, point(configuration), ScalarOps())
            latency0, power0 = latency_and_power(one, point(grid.anchor), ScalarOps())
            batch = float(configuration["batch_size"]) / 2
            expected = (math.log(latency / latency0), math.log(power / power0 / batch))
            for o in range(2):
                assert surfaces[o, k, row] == pytest.approx(expected[o], abs=2e-4)
                assert columns[o, member, 0] == pytest.approx(expected[o], abs=2e-4)


def test_zero_at_the_anchor_and_blind_to_unknown_knobs(grid: Grid) -> None:
    built = EnsemblePrior(grid, MEMBERS, seed=0)
    surfaces = built.surfaces(np.arange(MEMBERS))
    assert np.abs(surfaces[:, :, grid.anchor_row]).max() < 1e-5
    other = grid.row(Configuration.of({**grid.anchor, "queue_depth": 1.0}))
    assert np.abs(surfaces[:, :, other]).max() < 1e-5
    assert built.wide


def test_the_factor_reproduces_the_covariance(grid: Grid) -> None:
    built = EnsemblePrior(grid, 400, seed=1)
    surfaces = built.surfaces(np.arange(400))
    for o in range(2):
        exact = np.cov(surfaces[o].T.astype(float), bias=True)
        low_rank = built.factors[o] @ built.factors[o].T
        assert np.abs(low_rank - exact).max() < 0.02 * np.abs(exact).max()


def test_draws_differ_by_seed_and_repeat_with_it() -> None:
    assert np.array_equal(draw(50, 5).gpu_share, draw(50, 5).gpu_share)
    assert not np.array_equal(draw(50, 5).gpu_share, draw(50, 6).gpu_share)


def test_a_table_with_missing_cells_keeps_only_its_cells() -> None:
    space = SearchSpace(
        (Knob.of("gpu_freq_mhz", [300, 600, 900]), Knob.of("batch_size", [1, 8])),
        cells=frozenset({(0, 0), (1, 1), (2, 0), (2, 1)}),
    )
    built = EnsemblePrior(Grid(space, space.highest()), MEMBERS, seed=0)
    assert built.mean.shape == (2, 4)
    with pytest.raises(KeyError):
        built.grid.row(Configuration.of({"gpu_freq_mhz": 300.0, "batch_size": 8.0}))
