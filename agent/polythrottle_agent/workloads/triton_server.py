"""The control side of a Triton Inference Server, over HTTP or gRPC: what it serves, and loading models."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from polythrottle.errors import InvalidInputError

HTTP_PORT, GRPC_PORT, METRICS_PORT = 8000, 8001, 8002
TIME_OUT_S = 10.0
LOAD_TIME_OUT_S = 300.0
"""A large engine takes its time to load."""

_NO_MODEL = "polythrottle-asks-whether-models-can-be-loaded"
_FORM = "write for example triton:http://localhost:8000/MODEL or triton:grpc://localhost:8001/MODEL"
_SCHEMES: Mapping[str, tuple[bool, bool]] = {
    "http": (False, False),
    "https": (False, True),
    "grpc": (True, False),
    "grpcs": (True, True),
}


class TritonError(Exception):
    """Triton refused, or is not there. The text is in its own words where it said something.

    `is_gone`: nobody listens there.
    """

    def __init__(self, text: str, *, is_gone: bool = False) -> None:
        super().__init__(text)
        self.is_gone = is_gone


@dataclass(frozen=True)
class Address:
    """Where one model of one Triton is served. `prefix` is a path in front of a proxied HTTP API."""

    host: str
    port: int
    is_grpc: bool
    tls: bool
    model: str
    version: str = ""
    prefix: str = ""

    @classmethod
    def parse(cls, target: str) -> Address:
        """Read `http://HOST:PORT/MODEL` or `grpc://HOST:PORT/MODEL/VERSION`.

        Without a scheme it is HTTP, and gRPC at its usual port 8001.

        Raises:
            InvalidInputError: no such address, or no model in it.
        """
        has_scheme = "://" in target
        try:
            parts = urlsplit(target if has_scheme else f"http://{target.removeprefix('//')}")
            port = parts.port
        except ValueError as error:
            raise InvalidInputError(
                f"Triton's address {target!r} cannot be read ({error}); {_FORM}."
            ) from error
        path = [part for part in parts.path.split("/") if part]
        if parts.scheme not in _SCHEMES or not parts.hostname or parts.query or parts.username is not None:
            raise InvalidInputError(f"Triton's address {target!r} cannot be used; {_FORM}.")
        if not path or (len(path) == 1 and path[0].isdecimal()):
            raise InvalidInputError(f"Triton's address {target!r} names no model; {_FORM}.")
        is_grpc, tls = _SCHEMES[parts.scheme]
        if not has_scheme and port == GRPC_PORT:
            is_grpc = True
        version = path.pop() if len(path) > 1 and path[-1].isdecimal() else ""
        model = path.pop()
        if is_grpc and path:
            raise InvalidInputError(f"Triton's address {target!r} has a path, which gRPC has not; {_FORM}.")
        default = GRPC_PORT if is_grpc else 443 if tls else HTTP_PORT
        return cls(parts.hostname, port or default, is_grpc, tls, model, version, "/".join(path))

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def base(self) -> str:
        """As the client library wants it: no scheme."""
        return f"{self.authority}/{self.prefix}" if self.prefix else self.authority

    @property
    def metrics_url(self) -> str:
        """Where its metrics usually are."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{METRICS_PORT}/metrics"

    @property
    def target(self) -> str:
        """As `parse` reads it."""
        scheme = {value: name for name, value in _SCHEMES.items()}[self.is_grpc, self.tls]
        version = f"/{self.version}" if self.version else ""
        return f"{scheme}://{self.base}/{self.model}{version}"

    def __str__(self) -> str:
        return f"Triton at {self.authority}"


@dataclass(frozen=True)
class Executed:
    """Requests that were answered well, queries in them that were worked on, and in how many batches."""

    n_requests: int
    n_queries: int
    n_batches: int


class TritonServer:
    """One connection a call: calls are rare, and the HTTP client must not be shared between threads."""

    def __init__(
        self, address: Address, *, time_out_s: float = TIME_OUT_S, load_time_out_s: float = LOAD_TIME_OUT_S
    ) -> None:
        """
        Raises:
            InvalidInputError: the client library is not installed.
        """
        self.address = address
        self._time_out_s = time_out_s
        self._load_time_out_s = load_time_out_s
        try:
            for part in ("http", "grpc"):
                importlib.import_module(f"tritonclient.{part}")
        except ImportError as error:
            raise InvalidInputError(
                f"{address} needs the Triton client ({error}); pip install 'polythrottle[triton]'."
            ) from error

    def metadata(self) -> Mapping[str, Any]:
        """`inputs` with name, datatype and shape, `versions`.

        Raises:
            TritonError: no such model, or nobody answers.
        """
        with self._client(self._time_out_s) as (client, more):
            found: Mapping[str, Any] = client.get_model_metadata(
                self.address.model, self.address.version, **more
            )
        return found

    def config(self) -> dict[str, Any]:
        """The configuration of the model as it is loaded.

        Raises:
            TritonError: no such model, or nobody answers.
        """
        with self._client(self._time_out_s) as (client, more):
            found = client.get_model_config(self.address.model, self.address.version, **more)
        config: dict[str, Any] = found["config"] if self.address.is_grpc else found
        return config

    def load(self, config: Mapping[str, Any]) -> None:
        """Load the model with this configuration, which replaces the whole of the one in its repository.

        Raises:
            TritonError: Triton refused; what was loaded before goes on serving.
        """
        with self._client(self._load_time_out_s) as (client, more):
            more.pop("as_json", None)
            client.load_model(self.address.model, config=json.dumps(config), **more)

    def is_ready(self) -> bool:
        """
        Raises:
            TritonError: nobody answers.
        """
        with self._client(self._time_out_s) as (client, more):
            more.pop("as_json", None)
            return bool(client.is_model_ready(self.address.model, self.address.version, **more))

    def why_no_loading(self) -> str | None:
        """Why no model can be loaded now; None where one can. Changes nothing.

        Raises:
            TritonError: nobody answers.
        """
        try:
            with self._client(self._time_out_s) as (client, more):
                more.pop("as_json", None)
                client.unload_model(_NO_MODEL, **more)
        except TritonError as error:
            if error.is_gone:
                raise
            return str(error)
        return None

    def executed(self) -> Executed:
        """What was executed since the model was loaded.

        Raises:
            TritonError: no such model, or nobody answers.
        """
        with self._client(self._time_out_s) as (client, more):
            found = client.get_inference_statistics(self.address.model, self.address.version, **more)
        rows = found.get("model_stats", [])
        stats = [row.get("inference_stats") or {} for row in rows]
        return Executed(
            n_requests=sum(int((one.get("success") or {}).get("count", 0)) for one in stats),
            n_queries=sum(int(row.get("inference_count", 0)) for row in rows),
            n_batches=sum(int(row.get("execution_count", 0)) for row in rows),
        )

    @contextmanager
    def _client(self, time_out_s: float) -> Iterator[tuple[Any, dict[str, Any]]]:
        """A client, and the arguments that each of its calls takes.

        Raises:
            TritonError: whatever went wrong meanwhile.
        """
        from tritonclient.utils import InferenceServerException

        address = self.address
        try:
            if address.is_grpc:
                import tritonclient.grpc as grpc_client

                client: Any = grpc_client.InferenceServerClient(address.base, ssl=address.tls)
                more: dict[str, Any] = {"as_json": True, "client_timeout": time_out_s}
            else:
                import tritonclient.http as http_client

                client = http_client.InferenceServerClient(
                    address.base,
                    connection_timeout=min(time_out_s, TIME_OUT_S),
                    network_timeout=time_out_s,
                    ssl=address.tls,
                )
                more = {}
            try:
                yield client, more
            finally:
                client.close()
        except InferenceServerException as error:
            raise _from_triton(error, time_out_s) from error
        except TimeoutError as error:
            raise TritonError(f"it did not answer within {time_out_s:g} s", is_gone=True) from error
        except ConnectionRefusedError as error:
            raise TritonError("nobody listens there", is_gone=True) from error
        except (OSError, ValueError) as error:  # also what answers, but not as Triton does
            text = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise TritonError(f"it cannot be asked ({text})", is_gone=isinstance(error, OSError)) from error


def _from_triton(error: Any, time_out_s: float) -> TritonError:
    status, text = str(error.status() or ""), " ".join(str(error.message() or error).split()).rstrip(";. ")
    if "UNAVAILABLE" in status:
        refused = "Connection refused" in text
        return TritonError(
            "nobody listens there" if refused else f"it cannot be reached ({text})", is_gone=True
        )
    if "DEADLINE_EXCEEDED" in status or "timed out" in text.lower():
        return TritonError(f"it did not answer within {time_out_s:g} s", is_gone=True)
    return TritonError(text)
