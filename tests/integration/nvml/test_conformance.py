"""The conformance suites of controls and meters, on every control of every pretended GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from polythrottle_agent.controls.nvidia import nvidia_controls
from polythrottle_agent.ports import Control

sys.path.insert(0, str(Path(__file__).parents[2] / "conformance"))

from test_controls import *  # noqa: F403

CASES = [
    ("V100", ("gpu_freq_mhz", "gpu_min_freq_mhz", "power_limit_w")),
    ("A100-40", ("gpu_freq_mhz", "gpu_min_freq_mhz", "power_limit_w")),
    ("H100", ("gpu_freq_mhz", "gpu_min_freq_mhz", "mem_freq_mhz", "power_limit_w")),
    ("RTX", ("gpu_freq_mhz", "gpu_min_freq_mhz", "mem_freq_mhz", "power_limit_w")),
    ("P100", ("power_limit_w",)),
]


@dataclass
class Case:
    control: Control
    reopen: Callable[[], Control]
    device: Any = field(default_factory=SimpleNamespace)


@pytest.fixture(params=[(gpu, knob) for gpu, knobs in CASES for knob in knobs], ids="-".join)
def control_case(request: pytest.FixtureRequest, machine: Callable[..., Any]) -> Case:
    gpu, knob = request.param
    found = machine(gpu)
    found.fake.set(load=1)
    controls = nvidia_controls(found.session, found.uuid)
    return Case(
        controls[knob],
        lambda: nvidia_controls(found.session, found.uuid)[knob],
        SimpleNamespace(controls=controls),
    )


@pytest.mark.parametrize(("gpu", "knobs"), [*CASES, ("Orin", ())])
def test_a_gpu_has_the_knobs_that_its_architecture_supports(
    machine: Callable[..., Any], gpu: str, knobs: tuple[str, ...]
) -> None:
    found = machine(gpu)
    assert tuple(nvidia_controls(found.session, found.uuid)) == knobs
