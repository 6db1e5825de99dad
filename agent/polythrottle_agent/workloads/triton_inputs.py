"""Requests for a model in Triton, made once and sent again and again."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polythrottle.errors import InvalidInputError
from polythrottle_agent.workloads.triton_server import Address

REQUESTS = 16
"""Different requests that are made and sent in turn."""

_TYPES: Mapping[str, str] = {
    "FP16": "tensor(float16)",
    "FP32": "tensor(float)",
    "FP64": "tensor(double)",
    "INT8": "tensor(int8)",
    "INT16": "tensor(int16)",
    "INT32": "tensor(int32)",
    "INT64": "tensor(int64)",
    "UINT8": "tensor(uint8)",
    "UINT16": "tensor(uint16)",
    "UINT32": "tensor(uint32)",
    "UINT64": "tensor(uint64)",
    "BOOL": "tensor(bool)",
}


@dataclass(frozen=True)
class Tensor:
    """One input of one request."""

    name: str
    datatype: str
    array: Any


Query = tuple[Tensor, ...]


def make_queries(
    metadata: Mapping[str, Any], model: str, data: str | None, seed: int, n: int = REQUESTS
) -> tuple[Query, ...]:
    """Single queries for a model, from its metadata or from the arrays of an .npz file.

    Raises:
        InvalidInputError: no values can be made, or the file does not fit the model.
    """
    from polythrottle_agent.workloads.onnx_inputs import Input, Samples, Unusable

    datatypes = {one["name"]: one["datatype"] for one in metadata["inputs"]}
    inputs = [
        Input(one["name"], _TYPES.get(one["datatype"], one["datatype"]), _shape(one["shape"]))
        for one in metadata["inputs"]
    ]
    try:
        samples = Samples(inputs, None if data is None else Path(data).expanduser(), seed)
        prepared = [] if samples.images is None else [samples.prepare(i) for i in range(len(samples.images))]
        feeds = [samples.batch(1, prepared[i % len(prepared) :] if prepared else ()) for i in range(n)]
    except Unusable as error:
        raise InvalidInputError(f"Model {model}: {error}.") from error
    return tuple(
        tuple(Tensor(name, datatypes[name], array) for name, array in feed.items()) for feed in feeds
    )


def _shape(shape: Sequence[Any]) -> tuple[int | None, ...]:
    # Over gRPC numbers come as text.
    return tuple(None if int(size) < 0 else int(size) for size in shape)


def http_requests(address: Address, queries: Sequence[Query]) -> Iterator[bytes]:
    """The same queries as whole HTTP requests, tensors as raw bytes, without an end."""
    return itertools.cycle([_http_request(address, query) for query in queries])


def _http_request(address: Address, query: Query) -> bytes:
    import tritonclient.http as http_client

    inputs = []
    for tensor in query:
        one = http_client.InferInput(tensor.name, list(tensor.array.shape), tensor.datatype)
        one.set_data_from_numpy(tensor.array, binary_data=True)
        inputs.append(one)
    body, header_length = http_client.InferenceServerClient.generate_request_body(inputs)
    version = f"/versions/{address.version}" if address.version else ""
    prefix = f"/{address.prefix}" if address.prefix else ""
    lines = [
        f"POST {prefix}/v2/models/{address.model}{version}/infer HTTP/1.1",
        f"Host: {address.authority}",
        "Content-Type: application/octet-stream",
        f"Content-Length: {len(body)}",
    ]
    if header_length is not None:
        lines.append(f"Inference-Header-Content-Length: {header_length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + bytes(body)


def grpc_requests(address: Address, queries: Sequence[Query]) -> Iterator[Any]:
    """The same queries as gRPC messages, without an end."""
    from tritonclient.grpc import service_pb2

    messages = []
    for query in queries:
        message = service_pb2.ModelInferRequest(model_name=address.model, model_version=address.version)
        for tensor in query:
            message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.array.shape)
            message.raw_input_contents.append(tensor.array.tobytes())
        messages.append(message)
    return itertools.cycle(messages)
