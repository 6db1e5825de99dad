"""Runs the service: a socket that listens, an event loop in a thread of its own, and an orderly end."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass

from polythrottle.errors import PolythrottleError
from polythrottle_agent.emulation.machine import Machine
from polythrottle_agent.emulation.serving.http_server import HttpConnection
from polythrottle_agent.emulation.serving.service import INFER, InferenceService

DEFAULT_PORT = 8100
DEFAULT_QUEUE_LIMIT = 256
CLOSE_S = 0.05
"""How often an ending service looks whether its last answers are out."""


class ServiceError(PolythrottleError):
    """The service cannot listen where it should."""


@dataclass(frozen=True)
class RunningService:
    """A service that listens at `url`. `end` begins its end; it may be called from any thread."""

    url: str
    end: Callable[[], None]

    @property
    def infer_url(self) -> str:
        return f"{self.url}{INFER}"


@contextmanager
def serving(
    machine: Machine,
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    queue_limit: int = DEFAULT_QUEUE_LIMIT,
) -> Iterator[RunningService]:
    """Serve on a machine until the end of the block; what waits then is still answered.

    Meanwhile the machine's own `.emulator/batch` is busy: two that serve on one board would overlap.

    Args:
        port: 0 for any that is free.
        queue_limit: queries that may wait.

    Raises:
        ServiceError: it cannot listen there.
    """
    started: Future[RunningService] = Future()

    def run() -> None:
        try:
            asyncio.run(_serve(machine, host, port, queue_limit, started))
        except BaseException as error:  # told by whoever waits for the start
            if started.done():
                raise
            started.set_exception(error)

    thread = threading.Thread(target=run, name="emulated service", daemon=True)
    thread.start()
    try:
        service = started.result()
    except (OSError, OverflowError) as error:
        thread.join()
        number = error.errno if isinstance(error, OSError) else None
        # An unknown host has a number of another kind.
        reason = error if number is None or number not in errno.errorcode else os.strerror(number)
        raise ServiceError(f"Cannot listen at {host}:{port}: {reason}; choose another --port.") from None
    try:
        with machine.served_at(service.infer_url):
            yield service
    finally:
        service.end()
        thread.join()


async def _serve(
    machine: Machine, host: str, port: int, queue_limit: int, started: Future[RunningService]
) -> None:
    loop, ending = asyncio.get_running_loop(), asyncio.Event()
    service = InferenceService(machine, queue_limit)
    connections: set[HttpConnection] = set()
    server = await loop.create_server(
        lambda: HttpConnection(service.answer, connections), host, port, backlog=512
    )
    service.start()
    bound = server.sockets[0].getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    started.set_result(RunningService(f"http://{shown}:{bound}", lambda: _end(loop, ending)))
    await ending.wait()
    server.close()
    await service.stop()
    while any(not connection.is_idle for connection in connections):
        await asyncio.sleep(CLOSE_S)
    for connection in list(connections):
        connection.close()
    await asyncio.sleep(0)


def _end(loop: asyncio.AbstractEventLoop, ending: asyncio.Event) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(ending.set)
