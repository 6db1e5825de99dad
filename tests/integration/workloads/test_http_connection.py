"""Connections to a real service: which answer belongs to which request."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from polythrottle.clock import RealClock
from polythrottle_agent.load.http_connection import ConnectionTrouble, Endpoint, HttpPool
from polythrottle_agent.load.loop import run_clocked

if TYPE_CHECKING:
    from tests.integration.workloads.conftest import Start


def request(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def test_the_answer_to_a_request_that_was_given_up_is_nobody_s(start_service: Start) -> None:
    address = start_service(0.0)

    async def main() -> list[bytes]:
        pool = HttpPool(Endpoint.parse(f"http://{address}/"), keep_bodies=True)
        await pool.open(1)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(pool.ask(request("/sleep/200")), 0.05)
        first = await pool.ask(request("/echo?number=1"))
        await asyncio.sleep(0.3)
        second = await pool.ask(request("/echo?number=2"))
        pool.close()
        return [first.body, second.body]

    first, second = run_clocked(main(), RealClock())
    assert b"number=1" in first
    assert b"number=2" in second


def test_many_at_a_time_get_their_own_answers(start_service: Start) -> None:
    address = start_service(0.0)

    async def main() -> list[bytes]:
        pool = HttpPool(Endpoint.parse(f"http://{address}/"), keep_bodies=True)
        await pool.open(8)
        answers = await asyncio.gather(*(pool.ask(request(f"/echo?number={n}x")) for n in range(100)))
        pool.close()
        return [answer.body for answer in answers]

    for n, body in enumerate(run_clocked(main(), RealClock())):
        assert f"number={n}x".encode() in body


def test_a_connection_that_the_service_closed_is_not_used_again(start_service: Start) -> None:
    address = start_service(0.0)

    async def main() -> None:
        pool = HttpPool(Endpoint.parse(f"http://{address}/"), keep_bodies=True)
        await pool.open(2)
        for _ in range(5):
            assert (await pool.ask(request("/once"))).status == 200
        with pytest.raises(ConnectionTrouble, match="before an answer"):
            await pool.ask(request("/close"))
        assert (await pool.ask(request("/ok"))).body == b'{"ok": true}'
        pool.close()

    run_clocked(main(), RealClock())


def test_bodies_that_nobody_reads_are_not_kept(start_service: Start) -> None:
    address = start_service(0.0)

    async def main() -> None:
        pool = HttpPool(Endpoint.parse(f"http://{address}/"), keep_bodies=False)
        await pool.open(1)
        for path in ("/ok", "/chunked", "/until-closed"):
            answer = await pool.ask(request(path))
            assert (answer.status, answer.body) == (200, b"")
        pool.close()

    run_clocked(main(), RealClock())
