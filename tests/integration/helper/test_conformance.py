"""The controls' conformance suite, on controls whose writes a helper in another process makes."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from polythrottle.clock import RealClock
from polythrottle_agent.ports import Control
from polythrottle_agent.privileged.client import Leased, helper_device
from polythrottle_agent.privileged.keeper import Keeper
from tests.fakes.file_board import TABLES
from tests.integration.helper.conftest import Helper

sys.path.insert(0, str(Path(__file__).parents[2] / "conformance"))

from test_controls import *  # noqa: F403


@dataclass
class Case:
    control: Control
    reopen: Callable[[], Control]
    device: SimpleNamespace


@pytest.fixture(scope="module")
def one_helper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Helper]:
    helper = Helper(tmp_path_factory.mktemp("helper"))
    helper.start()
    yield helper
    helper.kill(signal.SIGTERM)
    assert helper.board.is_as_found


@pytest.fixture(params=list(TABLES))
def control_case(request: pytest.FixtureRequest, one_helper: Helper) -> Iterator[Case]:
    with one_helper.client() as client:
        _, controls, _ = helper_device(client)
        keeper = Keeper(controls, RealClock(), Leased(client, "conformance"))
        keeper.take()
        yield Case(
            controls[request.param],
            lambda: helper_device(client)[1][request.param],
            SimpleNamespace(controls=controls),
        )
        keeper.release()
    assert one_helper.board.is_as_found
