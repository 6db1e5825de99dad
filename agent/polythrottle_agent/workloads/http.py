"""`http:URL`: any endpoint that answers a query over HTTP/1.1."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from polythrottle.errors import InvalidInputError
from polythrottle_agent.load.batching import BatchControl, BatchSize
from polythrottle_agent.load.http_connection import ConnectionTrouble, Endpoint, HttpPool, Response
from polythrottle_agent.load.sender import GOOD, Answer, ServiceError
from polythrottle_agent.workloads.driven import DrivenWorkload
from polythrottle_agent.workloads.opening import LOAD_OPTIONS, Asked, Opened

BATCH = "{batch_size}"
_EACH = re.compile(rb"\{each\}(.*?)\{/each\}", re.DOTALL)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OURS = ("host", "content-length", "transfer-encoding", "connection")


@dataclass(frozen=True)
class Template:
    """A request whose target, headers and body may hold `{batch_size}`, and its body `{each}…{/each}`."""

    endpoint: Endpoint
    method: str
    headers: tuple[tuple[str, str], ...]
    body: bytes | None

    @property
    def has_batch(self) -> bool:
        """Whether a request can carry several queries."""
        text = self.endpoint.target + "".join(value for _, value in self.headers)
        body = self.body or b""
        return BATCH in text or BATCH.encode() in body or _EACH.search(body) is not None

    def render(self, n_queries: int) -> bytes:
        """The whole request for that many queries."""
        count = str(n_queries)
        body = b""
        if self.body is not None:
            body = _EACH.sub(lambda match: b",".join([match[1]] * n_queries), self.body)
            body = body.replace(BATCH.encode(), count.encode())
        lines = [f"{self.method} {self.endpoint.target.replace(BATCH, count)} HTTP/1.1"]
        lines.append(f"Host: {self.endpoint.authority}")
        lines += [f"{name}: {value.replace(BATCH, count)}" for name, value in self.headers]
        if self.body is not None or self.method in ("POST", "PUT", "PATCH"):
            lines.append(f"Content-Length: {len(body)}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body

    @property
    def digest(self) -> str:
        """Of what is asked; without headers, whose tokens change."""
        parts = (self.method, self.endpoint.url, (self.body or b"").hex())
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Success:
    """Whether an answer is good: `wrong` gives None, or what is wrong in a few words."""

    text: str
    reads_body: bool
    wrong: Callable[[Response], str | None]

    @classmethod
    def parse(cls, text: str | None) -> Success:
        """Read `status:200,204`, `json:FIELD`, `json:FIELD=VALUE` or `regex:PATTERN`; None: any 2xx.

        Raises:
            InvalidInputError: none of these.
        """
        kind, _, rest = (text or "").partition(":")
        if text is None:
            return cls("status 2xx", False, _wrong_status)
        if kind == "status" and rest.strip():
            return cls(text, False, _status_check(text, rest))
        if kind == "json" and rest.strip():
            return cls(text, True, _json_check(rest.strip()))
        if kind == "regex" and rest:
            return cls(text, True, _regex_check(text, rest))
        raise InvalidInputError(
            f"--success {text!r} cannot be read; write status:200, json:FIELD, json:FIELD=VALUE or "
            "regex:PATTERN."
        )


class HttpSender:
    """Carries queries as requests of one template."""

    def __init__(self, template: Template, success: Success, batch: BatchSize) -> None:
        self._template = template
        self._success = success
        self._batch = batch
        self._pool: HttpPool | None = None
        self._rendered: dict[int, bytes] = {}

    @property
    def queries_per_request(self) -> int:
        return self._batch.value

    async def open(self, connections: int) -> None:
        self._pool = HttpPool(self._template.endpoint, keep_bodies=self._success.reads_body)
        try:
            await self._pool.open(connections)
        except ConnectionTrouble as error:
            raise ServiceError(f"at {self._template.endpoint.authority} {error}") from error

    async def send(self, n_queries: int) -> Answer:
        assert self._pool is not None
        request = self._rendered.get(n_queries)
        if request is None:
            request = self._rendered[n_queries] = self._template.render(n_queries)
        try:
            response = await self._pool.ask(request)
        except ConnectionTrouble as error:
            return Answer.error(str(error))
        wrong = self._success.wrong(response)
        return GOOD if wrong is None else Answer.error(wrong)

    async def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None


def open_http(asked: Asked) -> Opened:
    """
    Raises:
        InvalidInputError: an option cannot be used, or the endpoint does not answer a query well.
    """
    asked.refuse_other_options(*LOAD_OPTIONS, "method", "headers", "body", "data", "success", "batch_sizes")
    options = asked.options
    target = asked.target if "://" in asked.target else f"http://{asked.target.removeprefix('//')}"
    body = _body(options.body, options.data)
    method = (options.method or ("GET" if body is None else "POST")).upper()
    if _TOKEN.fullmatch(method) is None or method in ("HEAD", "CONNECT"):
        raise InvalidInputError(f"--method {options.method!r} cannot be used; write for example GET or POST.")
    template = Template(Endpoint.parse(target), method, _headers(options.headers, body), body)
    success = Success.parse(options.success)
    if options.batch_sizes is not None and not template.has_batch:
        raise InvalidInputError(
            f"--batch-sizes changes nothing for {asked.text!r}: its body holds neither {BATCH} nor "
            "{each}…{/each}."
        )
    batch = options.batch() if template.has_batch else BatchSize()
    load = options.load()
    endpoint = template.endpoint
    workload = DrivenWorkload(
        name=f"http {endpoint.authority}{endpoint.target.partition('?')[0]}",
        model_version=f"http-{template.digest}",
        sender=HttpSender(template, success, batch),
        load=load,
        clock=asked.clock,
        batch=batch,
        provenance=asked.provenance,
    )
    workload.check_service()
    control = BatchControl(batch)
    return Opened(workload, {control.knob: control} if batch.sizes else {}, load=str(load))


def _body(text: str | None, data: str | None) -> bytes | None:
    if text is not None and data is not None:
        raise InvalidInputError("--body and --data both say what to send; name one of them.")
    if text is not None and not text.startswith("@"):
        return text.encode()
    option, name = ("--data", data) if text is None else ("--body @FILE:", text[1:])
    if name is None:
        return None
    try:
        return Path(name).expanduser().read_bytes()
    except OSError as error:
        raise InvalidInputError(f"{option} {name} cannot be read ({error.strerror}).") from error


def _headers(texts: tuple[str, ...], body: bytes | None) -> tuple[tuple[str, str], ...]:
    headers = []
    for text in texts:
        name, colon, value = text.partition(":")
        name, value = name.strip(), value.strip()
        if not colon or _TOKEN.fullmatch(name) is None or any(ord(c) < 32 or ord(c) > 255 for c in value):
            raise InvalidInputError(f"--header {text!r} cannot be read; write 'Name: value'.")
        if name.lower() in _OURS:
            raise InvalidInputError(f"--header {name} is set by polythrottle itself; leave it out.")
        headers.append((name, value))
    names = {name.lower() for name, _ in headers}
    if body is not None and "content-type" not in names:
        headers.append(("Content-Type", _content_type(body)))
    if "accept" not in names:
        headers.append(("Accept", "*/*"))
    return tuple(headers)


def _content_type(body: bytes) -> str:
    return "application/json" if body.lstrip()[:1] in (b"{", b"[") else "application/octet-stream"


def _wrong_status(response: Response) -> str | None:
    return None if 200 <= response.status < 300 else f"status {response.status}"


def _status_check(text: str, rest: str) -> Callable[[Response], str | None]:
    try:
        allowed = {int(part) for part in rest.split(",")}
    except ValueError:
        allowed = set()
    if not allowed or not all(100 <= status <= 599 for status in allowed):
        raise InvalidInputError(f"--success {text!r} cannot be read; write for example status:200,204.")
    return lambda response: None if response.status in allowed else f"status {response.status}"


def _json_check(rest: str) -> Callable[[Response], str | None]:
    path, equals, wanted = rest.partition("=")
    steps = path.strip().split(".")

    def wrong(response: Response) -> str | None:
        trouble = _wrong_status(response)
        if trouble is not None:
            return trouble
        try:
            found = json.loads(response.body)
        except ValueError:
            return "the answer is not JSON"
        for step in steps:
            if isinstance(found, dict) and step in found:
                found = found[step]
            elif isinstance(found, list) and step.isdecimal() and int(step) < len(found):
                found = found[int(step)]
            else:
                return f"the answer has no field {path}"
        if equals:
            text = found if isinstance(found, str) else json.dumps(found)
            return None if text == wanted.strip() else f"field {path} is not {wanted.strip()}"
        return f"field {path} is {json.dumps(found)}" if found is None or found is False else None

    return wrong


def _regex_check(text: str, pattern: str) -> Callable[[Response], str | None]:
    try:
        compiled = re.compile(pattern.encode())
    except re.error as error:
        raise InvalidInputError(f"--success {text!r} is no regular expression ({error}).") from error

    def wrong(response: Response) -> str | None:
        trouble = _wrong_status(response)
        if trouble is not None:
            return trouble
        return None if compiled.search(response.body) else "the answer does not match the pattern"

    return wrong
