"""One real Triton for all tests that do it no harm, and fresh ones for those that do."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from polythrottle.clock import RealClock
from polythrottle_agent.workloads.opening import Opened, WorkloadOptions, open_workload
from tests.integration.triton.real_triton import CannotBeHad, Triton, unpacked

NEEDS = ("tritonclient", "onnxruntime", "onnx", "numpy")


@pytest.fixture(scope="session")
def home() -> Path:
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"NO TRITON: {', '.join(missing)} is missing (pip install 'polythrottle[triton,onnx]')")
    try:
        return unpacked()
    except CannotBeHad as error:
        pytest.skip(f"NO TRITON: {error}")


@pytest.fixture(scope="session")
def triton(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    found = Triton(home, tmp_path_factory.mktemp("triton"), "image", "text", "single")
    found.start()
    yield found
    found.close()


@pytest.fixture
def start_triton(home: Path, tmp_path: Path) -> Iterator[Callable[..., Triton]]:
    """Starts a Triton that a test may kill."""
    with ExitStack() as stack:

        def start(*models: str, control: str = "explicit") -> Triton:
            directory = tmp_path / f"triton-{control}"
            directory.mkdir()
            found = Triton(home, directory, *models, control=control)
            stack.callback(found.close)
            found.start()
            return found

        yield start


@pytest.fixture(autouse=True)
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "state"
    monkeypatch.setenv("POLYTHROTTLE_STATE_DIR", str(path))
    return path


def opened(target: str, **options: object) -> Opened:
    """A workload under a gentle load, unless told otherwise."""
    if not (options.get("watch") or options.get("closed_loop")):
        options.setdefault("rate_per_s", 40.0)
    return open_workload(f"triton:{target}", WorkloadOptions(**options), RealClock())  # type: ignore[arg-type]
