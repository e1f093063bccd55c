"""A small application behind Edge, with short time limits, in a process of its own: once on uvloop, once on asyncio."""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from app import log
from app.errors import InvalidGrant, SlowDown
from app.http.bodies import ABSENT
from app.http.edge import Edge
from app.http.protocol import KeyturnHttpProtocol
from app.http.request import Request
from tests.raw_http import Answer, Exchange, request

ROOT = Path(__file__).parents[1]
TOKEN = "ktr_" + "Ab3_" * 21
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
PASSWORD = "seven lamps under a quiet roof"
LARGE = 32 * 1024 * 1024  # bytes, more than the buffers of both sides hold


class ShortLimits(KeyturnHttpProtocol):
    head_timeout = timedelta(seconds=0.5)
    linger = timedelta(seconds=5)
    write_timeout = timedelta(seconds=0.5)


async def application(scope, receive, send):
    if scope["type"] == "lifespan":
        for _ in range(2):
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
        return
    path, seen, headers = scope["path"], Request.of(scope), []
    request = await receive()
    match path:
        case "/large":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % LARGE)]})
            for more in (True, False):
                await send({"type": "http.response.body", "body": bytes(LARGE // 2), "more_body": more})
            return
        case "/exception":
            raise ValueError(f"password={PASSWORD!r} {TOKEN}")
        case "/refusal":
            raise InvalidGrant("the tag does not match")
        case "/ended":
            raise InvalidGrant("ended session", reason="logout")
        case "/limited":
            raise SlowDown("too many failures", retry_after=timedelta(seconds=1.2))
        case "/silent":
            return
        case "/late":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half of", "more_body": True})
            raise ValueError("too late")
        case "/slow":
            await __import__("asyncio").sleep(0.5)
            log.get_logger().info("slow work is done", work=scope["query_string"].decode())
        case "/cached":
            headers = [(b"cache-control", b"max-age=60")]
        case "/session":
            seen.note(session_id="0193a1b2", refresh_token="not to be seen")
    answer = {
        "method": scope["method"],
        "path": path,
        "query": scope["query_string"].decode(),
        "length": len(request["body"]),
        "json": None if seen.json is ABSENT else seen.json,
        "headers": sorted({name.decode() for name, _ in scope["headers"]}),
        "request_id": seen.id,
    }
    body = json.dumps(answer).encode()
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def serve(loop: str) -> None:
    log.configure("info")
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(512)
    config = uvicorn.Config(
        Edge(application, body_timeout=timedelta(seconds=0.5)),
        loop=loop,
        http=ShortLimits,
        ws="none",
        log_config=log.logging_config("info"),
        timeout_keep_alive=30,
        timeout_graceful_shutdown=3,
    )
    server = uvicorn.Server(config)

    def stop_with_the_parent():
        sys.stdin.read()
        server.should_exit = True

    threading.Thread(target=stop_with_the_parent, daemon=True).start()
    print(listener.getsockname()[1], flush=True)
    server.run([listener])


class Server:
    def __init__(self, port: int, stderr: Path) -> None:
        self.port = port
        self.stderr = stderr

    def connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port))
        connection.settimeout(10)
        return connection

    def read(self, connection: socket.socket, answers: int | None = None, *, head: bool = False) -> Exchange:
        """Reads this many answers, or until the server closes the connection."""
        raw = b""
        while (
            answers is None
            or len(found := Exchange(raw, closed=False).answers) < answers
            or not (head or all(len(a.body) == int(a.headers.get("content-length", -1)) for a in found))
        ):
            received = connection.recv(65536)
            if not received:
                return Exchange(raw, closed=True)
            raw += received
        return Exchange(raw, closed=False)

    def send(self, *parts: bytes, answers: int | None = None, pause: float = 0.0) -> Exchange:
        """Sends the parts on a new connection, with a pause (in seconds) after each, and reads the answers."""
        with self.connect() as connection:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
            return self.read(connection, answers)

    def post(self, body: bytes, *fields: str, path: str = "/") -> Answer:
        fields = fields or ("Content-Type: application/json",)
        return self.send(request("POST", path, *fields, body=body), answers=1).answers[0]

    def lines(self, having: str = "") -> list[dict[str, Any]]:
        """All lines of the log, or those with this text. Each line is one JSON object."""
        return [json.loads(line) for line in self.stderr.read_text().splitlines() if having in line]

    def lines_of(self, answer: Answer) -> list[dict[str, Any]]:
        """The lines of one request. Waits for its access line, which the server writes just after the answer."""
        for _ in range(500):
            found = self.lines(answer.headers["x-request-id"])
            if any(line["event"] == "request" for line in found):
                return found
            time.sleep(0.01)
        raise AssertionError("no access line")

    def eventually(self, event: str, **members: str) -> dict[str, Any]:
        for _ in range(1000):
            for line in self.lines(json.dumps(event)):
                if members.items() <= line.items():
                    return line
            time.sleep(0.01)
        raise AssertionError(f"never logged: {event} {members}")


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def _server(request) -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        stderr = Path(folder) / "stderr"
        with stderr.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.edge_server", request.param],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )
            assert process.stdin
            assert process.stdout
            try:
                yield Server(int(process.stdout.readline()), stderr)
            finally:
                process.stdin.close()
                code = process.wait(timeout=20)
                process.stdout.close()
        assert code == 0
        text = stderr.read_text()
        assert all(isinstance(json.loads(line), dict) for line in text.splitlines())
        assert "Started server process" in text
        assert "Traceback" not in re.sub(r'.*"event": "exception".*', "", text), "a traceback that no test asked for"
        assert not [secret for secret in (TOKEN, JWT, PASSWORD) if secret in text]
        assert '"path": "/smuggled"' not in text


@pytest.fixture
def server(_server) -> Iterator[Server]:
    """The server. Asserts after each test that the server still serves an honest request."""
    yield _server
    answer = _server.post(b'{"honest": true}')
    assert (answer.status, answer.json["json"]) == (200, {"honest": True})


if __name__ == "__main__":
    serve(sys.argv[1])
