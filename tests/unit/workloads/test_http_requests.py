"""What is sent, and which answers are good."""

from __future__ import annotations

import pytest

from polythrottle_agent.load.http_connection import Endpoint, Response
from polythrottle_agent.workloads.http import Success, Template


def template(body: str | None, url: str = "http://host:8000/v1/infer", **headers: str) -> Template:
    return Template(
        Endpoint.parse(url), "POST", tuple(headers.items()), None if body is None else body.encode()
    )


def test_the_batch_size_is_filled_in_everywhere() -> None:
    found = template('{"n": {batch_size}}', "http://host:8000/b{batch_size}?n={batch_size}", X="{batch_size}")
    assert found.has_batch
    head, _, body = found.render(16).partition(b"\r\n\r\n")
    assert body == b'{"n": 16}'
    assert head.split(b"\r\n") == [
        b"POST /b16?n=16 HTTP/1.1",
        b"Host: host:8000",
        b"X: 16",
        b"Content-Length: 9",
    ]


def test_a_part_is_repeated_for_each_query() -> None:
    found = template('{"instances": [{each}{"x": 1}{/each}], "n": {batch_size}}')
    assert found.render(3).endswith(b'{"instances": [{"x": 1},{"x": 1},{"x": 1}], "n": 3}')


def test_a_body_without_a_batch_carries_one_query() -> None:
    assert not template('{"inputs": [1, 2]}').has_batch
    assert not template(None).has_batch


def test_another_body_is_another_model_version_and_another_token_is_not() -> None:
    assert template("a").digest != template("b").digest
    assert template("a", Authorization="x").digest == template("a", Authorization="y").digest


@pytest.mark.parametrize(
    ("url", "authority", "target"),
    [
        ("http://host", "host", "/"),
        ("http://host:80/a", "host", "/a"),
        ("https://host:443/a?b=c", "host", "/a?b=c"),
        ("https://host:80/", "host:80", "/"),
        ("http://[::1]:8000/x", "[::1]:8000", "/x"),
    ],
)
def test_urls(url: str, authority: str, target: str) -> None:
    endpoint = Endpoint.parse(url)
    assert (endpoint.authority, endpoint.target) == (authority, target)


@pytest.mark.parametrize(
    ("success", "status", "body", "wrong"),
    [
        (None, 200, "", None),
        (None, 204, "", None),
        (None, 302, "", "status 302"),
        (None, 500, "", "status 500"),
        ("status:404", 404, "", None),
        ("status:200,201", 204, "", "status 204"),
        ("json:ok", 200, '{"ok": true}', None),
        ("json:ok", 200, '{"ok": 0}', None),
        ("json:ok", 200, '{"ok": false}', "field ok is false"),
        ("json:ok", 200, '{"ok": null}', "field ok is null"),
        ("json:ok", 200, "{}", "the answer has no field ok"),
        ("json:ok", 200, "<html>", "the answer is not JSON"),
        ("json:ok", 503, '{"ok": true}', "status 503"),
        ("json:outputs.0.name=cat", 200, '{"outputs": [{"name": "cat"}]}', None),
        ("json:outputs.0.name=cat", 200, '{"outputs": [{"name": "dog"}]}', "field outputs.0.name is not cat"),
        (
            "json:outputs.1.name",
            200,
            '{"outputs": [{"name": "cat"}]}',
            "the answer has no field outputs.1.name",
        ),
        ("json:n=3", 200, '{"n": 3}', None),
        ("regex:cat|dog", 200, "a dog", None),
        ("regex:cat|dog", 200, "a cow", "the answer does not match the pattern"),
        ("regex:x", 500, "x", "status 500"),
    ],
)
def test_which_answers_are_good(success: str | None, status: int, body: str, wrong: str | None) -> None:
    assert Success.parse(success).wrong(Response(status, body.encode())) == wrong
