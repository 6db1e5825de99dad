"""Carries queries to a model in Triton, over HTTP or gRPC, one query a request: Triton makes the batches."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from polythrottle_agent.load.http_connection import ConnectionTrouble, Endpoint, HttpPool, Response
from polythrottle_agent.load.sender import GOOD, Answer, ServiceError
from polythrottle_agent.workloads.triton_inputs import Query, grpc_requests, http_requests
from polythrottle_agent.workloads.triton_server import Address

CONNECT_S = 10.0
MAX_MESSAGE = 2**31 - 1


class TritonHttpSender:
    """Over HTTP/1.1, tensors as raw bytes."""

    def __init__(self, address: Address, queries: Sequence[Query]) -> None:
        self._address = address
        self._requests = http_requests(address, queries)
        scheme = "https" if address.tls else "http"
        self._endpoint = Endpoint.parse(f"{scheme}://{address.base}")
        self._pool: HttpPool | None = None

    @property
    def queries_per_request(self) -> int:
        return 1

    async def open(self, connections: int) -> None:
        self._pool = HttpPool(self._endpoint, keep_bodies=True)
        try:
            await self._pool.open(connections)
        except ConnectionTrouble as error:
            raise ServiceError(f"at {self._endpoint.authority} {error}") from error

    async def send(self, n_queries: int) -> Answer:  # noqa: ARG002 - always one
        assert self._pool is not None
        try:
            response = await self._pool.ask(next(self._requests))
        except ConnectionTrouble as error:
            return Answer.error(str(error))
        return GOOD if response.status == 200 else Answer.error(_refusal(response))

    async def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None


class TritonGrpcSender:
    """Over one gRPC channel, whose connection carries all requests in flight."""

    def __init__(self, address: Address, queries: Sequence[Query]) -> None:
        self._address = address
        self._requests = grpc_requests(address, queries)
        self._channel: Any = None
        self._infer: Any = None

    @property
    def queries_per_request(self) -> int:
        return 1

    async def open(self, connections: int) -> None:  # noqa: ARG002 - one carries them all
        import grpc
        from tritonclient.grpc import service_pb2_grpc

        options = [
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            ("grpc.max_send_message_length", MAX_MESSAGE),
            ("grpc.use_local_subchannel_pool", 1),  # a channel of a window before must not be shared
        ]
        target = self._address.authority
        if self._address.tls:
            self._channel = grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(), options=options)
        else:
            self._channel = grpc.aio.insecure_channel(target, options=options)
        try:
            await asyncio.wait_for(self._channel.channel_ready(), CONNECT_S)
        except asyncio.TimeoutError:
            raise ServiceError(f"at {target} nobody answered gRPC within {CONNECT_S:g} s") from None
        self._infer = service_pb2_grpc.GRPCInferenceServiceStub(self._channel).ModelInfer

    async def send(self, n_queries: int) -> Answer:  # noqa: ARG002 - always one
        import grpc

        try:
            await self._infer(next(self._requests))
        except grpc.aio.AioRpcError as error:
            text = _first_line(error.details() or "")
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return Answer.timeout(text)
            return Answer.error(f"{error.code().name.lower().replace('_', ' ')}: {text}")
        return GOOD

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel = self._infer = None


def sender(address: Address, queries: Sequence[Query]) -> TritonHttpSender | TritonGrpcSender:
    """The one for the address."""
    return TritonGrpcSender(address, queries) if address.is_grpc else TritonHttpSender(address, queries)


def _refusal(response: Response) -> str:
    """What Triton says of a request that it did not answer well."""
    try:
        said = json.loads(response.body)["error"]
    except (ValueError, KeyError, TypeError):  # not Triton's own words
        return f"status {response.status}"
    return f"status {response.status}: {_first_line(str(said))}"


def _first_line(text: str) -> str:
    """What follows is where in the model's code it happened."""
    return (text.strip().splitlines() or [""])[0].rstrip(";. ")
