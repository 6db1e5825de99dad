"""Pretended GPUs behind the real nvidia-ml-py."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from polythrottle_agent.nvml.session import NvmlSession

# Test modules are imported by path (`--import-mode=importlib`), so what they share must be findable.
sys.path.insert(0, str(Path(__file__).parents[2] / "fakes" / "nvml"))

from nvml_fake import FakeNvml, HardwareClock, build, compiler, environment


@dataclass
class Machine:
    """A machine with pretended GPUs, whose time stands still unless somebody sleeps on `clock`."""

    fake: FakeNvml
    session: NvmlSession
    clock: HardwareClock
    uuids: tuple[str, ...]

    @property
    def uuid(self) -> str:
        return self.uuids[0]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if compiler() is None:
        pytest.skip(
            "NVML WAS NOT TESTED: no C compiler to build the pretended library with (apt install gcc)"
        )
    pytest.importorskip("pynvml", reason="NVML WAS NOT TESTED: nvidia-ml-py is not installed")
    return tmp_path_factory.mktemp("nvml")


@pytest.fixture(scope="session")
def library(cache: Path) -> Path:
    """The folder that holds libnvidia-ml.so.1."""
    return build(cache)


@pytest.fixture
def machine(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Machine]]:
    """Call it with the GPUs' names, and optionally `manual=False` for real time."""
    made: list[Machine] = []

    def make(gpus: str = "H100", *, manual: bool = True) -> Machine:
        for name, value in environment(library, tmp_path / "gpus", gpus, manual_clock=manual).items():
            monkeypatch.setenv(name, value)
        fake = FakeNvml(library)
        fake.set(permission=1)  # so that the tests need no root; who may set is tested by itself
        session = NvmlSession()
        made.append(Machine(fake, session, HardwareClock(fake), session.gpus()))
        return made[-1]

    yield make
    for one in made:
        one.clock.stop()
    for thread in threading.enumerate():
        if thread.name.startswith("sampler"):
            thread.join(5)
    for one in made:
        one.session.close()
