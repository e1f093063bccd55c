"""The edge in this process: without the checks of Keyturn's protocol, and under another uvicorn."""

import asyncio
import json
import re
import sys
from datetime import timedelta
from functools import partial

import pytest
import uvicorn
from uvicorn.server import ServerState

from app.errors import SlowDown
from app.http import fast_wire
from app.http.answers import render
from app.http.edge import Edge
from app.http.protocol import KeyturnHttpProtocol
from app.http.request import Request
from tests.edge_server import application


async def test_a_websocket_is_refused_by_closing():
    sent = []

    async def send(message):
        sent.append(message)

    await Edge(application)({"type": "websocket", "path": "/", "headers": []}, None, send)  # type: ignore[arg-type]  # nothing is received
    assert [message["type"] for message in sent] == ["websocket.close"]


async def in_process(*headers: tuple[bytes, bytes]) -> int:
    """The status of a request that reaches the edge without the checks of our protocol."""
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "http_version": "1.1", "method": "GET", "path": "/", "query_string": b""}
    await Edge(application)(scope | {"headers": [(b"host", b"a"), *headers]}, receive, send)
    return sent[0]["status"]


async def test_without_a_log_that_can_be_written_requests_are_still_served(monkeypatch):
    class Full:
        def write(self, _text):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    assert await in_process() == 200


@pytest.mark.parametrize(
    ("length", "status"), [(b"x", 400), (b"-1", 400), ("٣".encode(), 400), (b"9" * 5000, 413), (b"0", 200)]
)
async def test_a_content_length_that_no_parser_checked_is_refused(length, status):
    assert await in_process((b"content-length", length)) == status


def test_a_refusal_is_rendered_as_asgi_wants_it():
    status, headers, body = render(SlowDown(retry_after=timedelta(seconds=3)))
    assert status == 429
    assert dict(headers)[b"retry-after"] == b"3"
    assert dict(headers)[b"content-length"] == str(len(body)).encode()


async def test_under_another_uvicorn_the_fast_wire_is_off_and_requests_are_answered(monkeypatch, capsys):
    capsys.readouterr()
    assert not fast_wire.usable("0.55.0")
    assert not fast_wire.usable("0.55.0")
    (line,) = capsys.readouterr().err.splitlines()  # one line, although it was asked twice
    assert (json.loads(line)["event"], json.loads(line)["uvicorn"]) == ("fast_wire_off", "0.55.0")

    seen = []

    async def noting(scope, receive, send):
        seen.append(Request.of(scope).wire)
        await application(scope, receive, send)

    config = uvicorn.Config(Edge(noting), http=KeyturnHttpProtocol, log_config=None, lifespan="off")
    config.load()

    def protocol():
        return KeyturnHttpProtocol(config=config, server_state=ServerState(), app_state={})

    async def answered() -> list[bytes]:
        async with await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0) as server:
            answers = []
            for wire in (
                b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n{}",
                b"GET /refusal HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
                b"GET / HTTP/9\r\n\r\n",
            ):
                reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
                writer.write(wire)
                answer = await reader.read()
                answers.append(re.sub(rb"x-request-id: \w+|\"request_id\": \"\w+\"", b"", answer))
                writer.close()
            return answers

    usual = await answered()
    assert seen
    assert all(seen)
    monkeypatch.setattr(fast_wire, "usable", partial(fast_wire.usable, "0.55.0"))
    seen.clear()
    unusual = await answered()
    assert seen
    assert not any(seen)
    assert [each.split()[1] for each in unusual] == [b"200", b"401", b"400"]
    assert [each.partition(b"\r\n\r\n")[2] for each in unusual] == [each.partition(b"\r\n\r\n")[2] for each in usual]
