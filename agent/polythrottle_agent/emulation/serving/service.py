"""An HTTP inference service whose batches run on an emulated board.

| path | |
|---|---|
| `POST /infer` (or GET) | one request; its queries in `?queries=N` or in a JSON body's `queries`, else 1 |
| `GET /healthz` | 200 while it serves |
| `GET /metrics` | Prometheus text |
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from http import HTTPStatus

from polythrottle.clock import Clock
from polythrottle_agent.emulation.machine import Machine
from polythrottle_agent.emulation.serving.batcher import Batcher, Ticket
from polythrottle_agent.emulation.serving.http_server import Request, Response
from polythrottle_agent.emulation.serving.metrics import (
    BAD,
    CONTENT_TYPE,
    GIVEN_UP,
    OK,
    REFUSED,
    ServiceMetrics,
)

STOP_S = 10.0
"""How long a service that ends goes on serving what waits."""

INFER, HEALTH, METRICS = "/infer", "/healthz", "/metrics"


class InferenceService:
    """Answers requests with what the board's batches take. Its methods belong to the event loop.

    Args:
        machine: the board; its batch size is the most that is served together.
        queue_limit: queries that may wait; a request that would be one too many gets 503.
    """

    def __init__(self, machine: Machine, queue_limit: int) -> None:
        self._machine = machine
        self._clock: Clock = machine.board.clock
        self._loop = asyncio.get_running_loop()
        self._answers: dict[Ticket, asyncio.Future[None]] = {}
        workload = machine.board.behaviour.calibration.workload
        self.metrics = ServiceMetrics(workload, machine.layout.board)
        self._batcher = Batcher(machine, self._clock, queue_limit, self._from_the_batcher)

    @property
    def failure(self) -> BaseException | None:
        """Why it serves no more; None while it does."""
        return self._batcher.failure

    def start(self) -> None:
        self._batcher.start()

    async def stop(self) -> None:
        """Serve what waits, for STOP_S at most; then nothing more."""
        await asyncio.to_thread(self._batcher.stop, STOP_S)

    async def answer(self, request: Request) -> Response:
        """One request's answer."""
        if request.path == INFER:
            if request.method not in ("GET", "POST"):
                return _wrong_method("GET, POST")
            return await self._infer(request)
        if request.path not in (HEALTH, METRICS):
            return Response.refusing(
                HTTPStatus.NOT_FOUND,
                f"There is no {request.path} here, only {INFER}, {HEALTH} and {METRICS}.",
            )
        if request.method != "GET":
            return _wrong_method("GET")
        return self._health() if request.path == HEALTH else self._shown_metrics()

    async def _infer(self, request: Request) -> Response:
        n_queries = _queries_of(request)
        largest = self._machine.batch_size
        if n_queries is None or not 1 <= n_queries <= largest:
            return self._bad(largest)
        ticket = self._batcher.submit(n_queries)
        if ticket is None:
            return self._refusing()
        answered = self._answers[ticket] = self._loop.create_future()
        try:
            await answered
        except asyncio.CancelledError:
            self._batcher.withdraw(ticket)
            self.metrics.requests[GIVEN_UP] += 1
            raise
        finally:
            del self._answers[ticket]
        if ticket.too_large:
            return self._bad(self._machine.batch_size)
        return self._good(ticket) if ticket.batch else self._refusing()

    def _refusing(self) -> Response:
        self.metrics.requests[REFUSED] += 1
        sentence = "The queue is full, or the service is ending; try again."
        return Response.refusing(HTTPStatus.SERVICE_UNAVAILABLE, sentence, Retry_After="1")

    def _good(self, ticket: Ticket) -> Response:
        latency_s = self._clock.now() - ticket.arrived_s
        queued_s, served_s = ticket.began_s - ticket.arrived_s, ticket.ended_s - ticket.began_s
        metrics = self.metrics
        metrics.requests[OK] += 1
        metrics.queries += ticket.n_queries
        metrics.latency.observe(latency_s)
        metrics.queued.observe(queued_s)
        content = {
            "queries": ticket.n_queries,
            "batch": ticket.batch,
            "queued_ms": round(queued_s * 1e3, 3),
            "served_ms": round(served_s * 1e3, 3),
            "provenance": "emulated",
        }
        return Response.of(HTTPStatus.OK, content)

    def _bad(self, largest: int) -> Response:
        self.metrics.requests[BAD] += 1
        return Response.refusing(
            HTTPStatus.BAD_REQUEST, f"A request holds 1 to {largest} queries, which is the batch size now."
        )

    def _from_the_batcher(self, batch: list[Ticket]) -> None:
        # RuntimeError: the loop is closed, and nobody waits for an answer any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._hand_out, batch)

    def _hand_out(self, batch: list[Ticket]) -> None:
        if batch and batch[0].batch:
            self.metrics.batches += 1
            self.metrics.batch.observe(batch[0].batch)
            self.metrics.served.observe(batch[0].ended_s - batch[0].began_s)
        for ticket in batch:
            answered = self._answers.get(ticket)
            if answered is not None and not answered.done():
                answered.set_result(None)

    def _health(self) -> Response:
        if self.failure is not None:
            return Response.refusing(
                HTTPStatus.INTERNAL_SERVER_ERROR, f"The service has come to an end: {self.failure!r}."
            )
        model = self._machine.board.behaviour.calibration.workload
        return Response.of(HTTPStatus.OK, {"status": "ok", "model": model, "provenance": "emulated"})

    def _shown_metrics(self) -> Response:
        text = self.metrics.text(
            gauges={
                "inference_queue_queries": ("Queries that wait for their batch.", self._batcher.n_waiting),
                "inference_in_service_queries": ("Queries of the present batch.", self._batcher.n_in_service),
                "inference_batch_size": ("The most queries served together.", self._machine.batch_size),
            },
            counters={
                "emulated_board_energy_joules_total": (
                    "Energy of the emulated board since it was mounted, at rest too.",
                    self._machine.energy_j(),
                )
            },
        )
        return Response(HTTPStatus.OK, text.encode(), CONTENT_TYPE)


def _wrong_method(allowed: str) -> Response:
    return Response.refusing(
        HTTPStatus.METHOD_NOT_ALLOWED, f"This path takes {allowed.replace(', ', ' and ')}.", Allow=allowed
    )


def _queries_of(request: Request) -> int | None:
    """How many queries a request holds; None where what it says is no number."""
    value: object = request.query.get("queries")
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdigit() and len(value) < 10 else None
    if not request.headers.get("content-type", "").startswith("application/json"):
        return 1
    try:
        body = json.loads(request.body)
    except ValueError:
        return None
    value = body.get("queries", 1) if isinstance(body, dict) else 1
    return value if isinstance(value, int) and not isinstance(value, bool) else None
