"""Real services in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

SERVICE = Path(__file__).parents[2] / "fakes/http_service.py"


class Start(Protocol):
    def __call__(self, service_ms: float = 2.0, *certificate: Path) -> str: ...


@pytest.fixture
def start_service() -> Iterator[Start]:
    """Starts an HTTP service with a service time in milliseconds; gives `host:port`."""
    with ExitStack() as stack:

        def start(service_ms: float = 2.0, *certificate: Path) -> str:
            command = [sys.executable, SERVICE, str(service_ms), *certificate]
            process = subprocess.Popen(command, stdout=subprocess.PIPE)
            stack.callback(process.wait)
            stack.callback(process.kill)
            assert process.stdout is not None
            stack.callback(process.stdout.close)
            return f"127.0.0.1:{int(process.stdout.readline())}"

        yield start
