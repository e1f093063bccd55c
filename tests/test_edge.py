"""The edge over real sockets: attacks on the wire, their refusals, and their lines in the log."""

import asyncio
import contextlib
import gzip
import json
import logging
import math
import os
import random
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import uvicorn
from hypothesis import example, given
from hypothesis import strategies as st
from uvicorn.server import ServerState

from app import log
from app.errors import InvalidGrant, InvalidRequest, SlowDown
from app.http import fast_wire
from app.http.answers import render
from app.http.bodies import ABSENT, MAX_DEPTH, MAX_DIGITS, MAX_MEMBERS, parse_json
from app.http.edge import Edge
from app.http.heads import MAX_TARGET
from app.http.protocol import KeyturnHttpProtocol
from app.http.request import Request

ROOT = Path(__file__).parents[1]
TOKEN = "ktr_" + "Ab3_" * 21
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
PASSWORD = "seven lamps under a quiet roof"


# -- the server: a small application behind Edge, in a process of its own


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


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Exchange:
    """All bytes and answers that came back on one connection, and whether the server closed it."""

    raw: bytes
    closed: bool
    answers: list[Answer] = field(default_factory=list)

    def __post_init__(self):
        rest = self.raw
        while rest:
            head, _, rest = rest.partition(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            pairs = [line.split(": ", 1) for line in lines]
            headers = {name.lower(): value for name, value in pairs}
            assert len(headers) == len(pairs), f"a header field stands twice: {pairs}"
            length = int(headers.get("content-length", len(rest)))
            self.answers.append(Answer(int(first.split()[1]), headers, rest[:length]))
            rest = rest[length:]

    @property
    def statuses(self) -> list[int]:
        return [answer.status for answer in self.answers]


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
                [sys.executable, "-m", "tests.test_edge", request.param],
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


@pytest.fixture
def server(_server) -> Iterator[Server]:
    """The server. Asserts after each test that the server still serves an honest request."""
    yield _server
    answer = _server.post(b'{"honest": true}')
    assert (answer.status, answer.json["json"]) == (200, {"honest": True})


def request(method: str, target: str, *fields: str, body: bytes = b"", host: str = "Host: keyturn\r\n") -> bytes:
    length = [f"Content-Length: {len(body)}"] if body else []
    head = "".join(f"{line}\r\n" for line in (*fields, *length))
    return f"{method} {target} HTTP/1.1\r\n{host}{head}\r\n".encode("latin-1") + body


def chunked(*chunks: bytes, path: str = "/", end: bytes = b"0\r\n\r\n") -> bytes:
    head = request("POST", path, "Content-Type: application/json", "Transfer-Encoding: chunked")
    return head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + end


def assert_refused(answer: Answer, status: int, error: str = "invalid_request") -> None:
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])
    assert answer.json["error"] == error
    assert answer.json["error_description"]
    assert answer.json.keys() <= {"error", "error_description", "reason"}


GET = request("GET", "/")


# -- the honest request


def test_an_honest_body_reaches_the_application_whole_and_parsed(server):
    body = b'{"a": ["\xc3\xa9", 1, 2.5, null]}'
    for wire in (
        request("POST", "/x?q=%C3%A9", "Content-Type: application/json", body=body),
        chunked(body[:9], body[9:]),
    ):
        answer = server.send(wire, answers=1).answers[0]
        assert (answer.status, answer.json["length"], answer.json["json"]) == (
            200,
            len(body),
            {"a": ["é", 1, 2.5, None]},
        )


def test_a_body_that_comes_in_small_pieces_in_time_is_served(server):
    wire = chunked(b"[1,", b"2]")
    exchange = server.send(*(wire[i : i + 16] for i in range(0, len(wire), 16)), answers=1, pause=0.002)
    assert exchange.answers[0].json["json"] == [1, 2]


@pytest.mark.parametrize(
    "content_type",
    [
        'application/json; charset="UTF-8"',
        "Application/JSON;charset=utf-8",
        "application/json ; charset=UTF-8",
        "application/json\t;\tcharset=utf-8",
        "application/json; charset=utf8 \t",
        "application/json;",
        "application/json; ; charset=utf-8;",
        "application/json; x=y",
        'application/json; profile="https://example.com/a;b=\\"c\\""; charset=utf-8; q=0.5',
        'application/json; name="\xe9"; charset=utf-8',
    ],
)
def test_the_media_type_is_read_as_rfc_9110_writes_it(server, content_type):
    body = '{"a": "é"}'.encode()
    if not content_type.isascii():  # Keyturn reads fields as UTF-8, and request() encodes as Latin-1
        content_type = content_type.encode().decode("latin-1")
    assert server.post(body, f"Content-Type: {content_type}").json["json"] == {"a": "é"}


@pytest.mark.parametrize("charset", ["us-ascii", "ISO-8859-1", '"iso-8859-15"', "windows-1252"])
def test_a_charset_that_agrees_with_utf_8_on_ascii_is_read_where_the_body_is_ascii(server, charset):
    content_type = f"Content-Type: application/json; charset={charset}"
    assert server.post(b"{}", content_type).status == 200
    for body in ('{"a": "é"}'.encode(), '{"a": "é"}'.encode("latin-1")):
        assert_refused(server.post(body, content_type), 415)


@pytest.mark.parametrize(
    "fields",
    [
        ["Content-Encoding: identity"],
        ["Content-Encoding: Identity, identity"],
        ["Content-Encoding: , identity,\t,"],
        ["Content-Encoding: identity", "Content-Encoding: identity"],
        ["Content-Encoding:"],
        ["Expect: 200-ok"],
        ["Expect: 100-Continue, x=y"],
        ["TE: trailers, deflate;q=0.5", "Connection: TE, x, keep-alive", "Connection: X-Hop", "Trailer: X"],
        ["Keep-Alive: timeout=5, max=100", "Proxy-Connection: keep-alive", "Via: 1.1 a, 1.1 b", "Via: 1.1 c"],
        ["Accept:", "Accept: ,", "Accept-Encoding: gzip", "Accept-Encoding: br", "Range: bytes=0-0", "If-Match: *"],
        ["X-Padded:\t a \t", "!#$%&'*+-.^_`|~: odd but a token"],
    ],
)
def test_what_changes_nothing_for_a_request_is_no_reason_to_refuse_it(server, fields):
    answer = server.post(b"{}", "Content-Type: application/json", *fields)
    assert (answer.status, answer.json["json"]) == (200, {})


@pytest.mark.parametrize("coding", [["identity", "gzip"], ["gzip", "identity"], ["identity, gzip"], [",gzip"]])
def test_a_coding_is_seen_wherever_it_stands_in_the_list(server, coding):
    fields = [f"Content-Encoding: {each}" for each in coding]
    assert_refused(server.post(b"{}", "Content-Type: application/json", *fields), 415)


def test_white_space_around_a_value_is_no_part_of_it(server):
    body = b"{}"
    for fields in (
        ["Content-Length: 2 \t", "Content-Type:\tapplication/json\t ", "Host: keyturn\t"],
        ["Transfer-Encoding: chunked  ", "Content-Type:application/json", "Host:keyturn "],
        ["Content-Length: " + "0" * 40 + "2", "Content-Type: application/json", "Host: keyturn.:80"],
    ):
        sent = b"2\r\n{}\r\n0\r\n\r\n" if fields[0].startswith("Transfer") else body
        exchange = server.send(request("POST", "/", *fields, host="") + sent + GET, answers=2)
        assert exchange.statuses == [200, 200]
        assert exchange.answers[0].json["json"] == {}


@pytest.mark.parametrize("blank", [b"\r\n", b"\r\n\r\n", b"\n"])
def test_empty_lines_before_a_request_are_ignored(server, blank):
    """RFC 9112 section 2.2: an old client sends an empty line after its body."""
    posted = request("POST", "/", "Content-Type: application/json", body=b"{}")
    odd = request("FOO", "/")
    exchange = server.send(blank + posted + blank + GET, blank, odd, blank, answers=3, pause=0.02)
    assert exchange.statuses == [200] * 3


def test_an_empty_body_is_passed_on_as_empty_whatever_its_type(server):
    for fields in (
        [],
        ["Content-Length: 0"],
        ["Content-Type: text/plain", "Content-Encoding: gzip", "Content-Length: 0"],
    ):
        assert server.send(request("POST", "/", *fields), answers=1).answers[0].json["length"] == 0
    assert server.send(chunked(), answers=1).answers[0].json["length"] == 0


def test_a_client_that_expects_100_is_invited_only_to_send_what_will_be_read(server):
    fields = ["Content-Type: application/json", "Expect: 100-continue"]
    with server.connect() as connection:
        connection.sendall(request("POST", "/", *fields, "Content-Length: 2"))
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"{}")
        assert server.read(connection, 1).statuses == [200]
    assert server.send(request("POST", "/", *fields, "Content-Length: 65537")).statuses == [413]


def test_the_body_of_a_get_is_read_and_bounded_too(server):
    assert server.send(request("GET", "/", body=b"anything") + GET, answers=2).statuses == [200, 200]
    assert server.send(request("GET", "/", "Content-Length: 65537")).statuses == [413]


def test_bodies_under_oauth_and_logout_tokens_of_issuers_are_forms(server):
    form = "Content-Type: application/x-www-form-urlencoded"
    for path in ("/oauth/token", "/federation/acme/logout"):
        assert server.post(b"grant_type=refresh_token&scope=%C3%A9", form, path=path).status == 200
        assert server.post(b"", form, path=path).status == 200
        assert_refused(server.post(b"{}", path=path), 415)
        for body in (
            b"a=%ff",
            b"a=\xff",
            b"a=%00",
            b"a=%4",
            b"a=\0",
            b"\xc3=%A9",
            b"a=1&a=2",
            b"a=1&%61=1",
            b"a&" * 1000,
        ):
            assert_refused(server.post(body, form, path=path), 400)
        assert server.post(b"a=\xc3%A9&\xc3\xa9=1&&b=+&c", form, path=path).status == 200
    for path in ("/", "/federation/acme/webhook", "/auth/logout"):
        assert_refused(server.post(b"a=b", form, path=path), 415)
        assert server.post(b"{}", path=path).status == 200


@pytest.mark.parametrize(
    "announced",
    [
        ["Content-Length: 5"],
        ["Content-Length: 65537"],
        ["Content-Length: 18446744073709551615"],
        ["Content-Length: 5", "Expect: 100-continue"],
        ["Content-Length: 5", "Content-Encoding: gzip", "Content-Type: a/b", "Content-Type: c/d"],
        ["Transfer-Encoding: chunked"],
        ["Transfer-Encoding: gzip, chunked"],
        ["Transfer-Encoding: chunked", "Expect: 100-continue", "Trailer: X"],
    ],
    ids=" ".join,
)
def test_verify_is_answered_from_the_head_and_a_connection_on_which_a_body_may_still_come_is_closed(server, announced):
    for path in ("/auth/verify", "/auth/verify/", "/auth/verify/x?y", "/auth/verify;role=admin/x"):
        for method in ("GET", "HEAD", "POST", "PUT"):
            exchange = server.send(request(method, path, *announced))
            assert (exchange.statuses, exchange.closed) == ([200], True)  # and not 408, although the body never comes
            assert exchange.answers[0].headers["connection"] == "close"


def test_a_body_at_verify_that_came_with_the_head_is_dropped_and_the_connection_goes_on(server):
    body = "Content-Type: application/json", "Content-Encoding: gzip"
    wire = request("POST", "/auth/verify/x", *body, body=b"\x1f\x8b\xff") + request("GET", "/auth/verify") + GET
    exchange = server.send(wire, answers=3)
    assert (exchange.statuses, exchange.closed) == ([200, 200, 200], False)
    assert [(answer.json["length"], answer.json["json"]) for answer in exchange.answers] == [(0, None)] * 3
    assert server.send(request("POST", "/auth/verify", "Content-Length: 0") + GET, answers=2).statuses == [200, 200]


def test_a_large_body_that_does_come_at_verify_is_discarded_and_never_taken_for_a_request(server):
    smuggled = request("GET", "/slow")
    for wire in (
        request("POST", "/auth/verify", body=smuggled * 40_000),
        chunked(*[smuggled * 1000] * 40).replace(b"POST / ", b"POST /auth/verify/x ", 1),
    ):
        exchange = server.send(wire)
        assert (exchange.statuses, exchange.closed) == ([200], True)


def test_what_a_proxy_appends_below_verify_never_reaches_the_application(server):
    for appended in (
        "/",
        "/a/b.html",
        "//",
        "/../me",
        "/%2e%2e/me",
        "/%",
        "/%zz%ff%00%0a",
        "/;role=x",
        "/?role=x",
        "/?%",
    ):
        answer = server.send(request("GET", "/auth/verify" + appended), answers=1).answers[0]
        assert (answer.status, answer.json["path"], answer.json["query"]) == (200, "/auth/verify", ""), appended
    for size in (8 * 1024, 32 * 1024, 65_535 - len("/auth/verify/?")):
        for appended in ("/" + "x" * size, "/?" + "x=%&" * (size // 4)):
            cookie = "Cookie: " + "x" * 60_000
            answer = server.send(request("GET", "/auth/verify" + appended, cookie), answers=1).answers[0]
            assert (answer.status, answer.json["path"], answer.json["query"]) == (200, "/auth/verify", "")


def test_a_proxy_demands_in_the_query_of_verify_itself_or_before_what_it_appends(server):
    for target, query in (
        ("?role=admin", "role=admin"),
        (";role=admin", "role=admin"),
        (";role=admin/x?role=user", "role=admin"),
        (
            ";role=admin;scope=read+write;scope=https:%2F%2Fx/;role=user?scope=x",
            "role=admin&scope=read+write&scope=https:%2F%2Fx",
        ),
        (";scope=read?role=admin", "scope=read&role=admin"),
    ):
        answer = server.send(request("GET", "/auth/verify" + target), answers=1).answers[0]
        assert (answer.status, answer.json["path"], answer.json["query"]) == (200, "/auth/verify", query)
    for target in ("?role=%", "?role=%00", "?role=%ff", ";role=%ff/x", ";role=%00/"):
        assert_refused(server.send(request("GET", "/auth/verify" + target), answers=1).answers[0], 400)
    # A mistyped demand must not count as no demand: the application gets a path that it does not have.
    for target in (";rolle=admin", ";ROLE=admin/x", ";admin", ";/x", ";role=x;", "x", "%3Brole=admin"):
        answer = server.send(request("GET", "/auth/verify" + target), answers=1).answers[0]
        assert answer.json["path"] != "/auth/verify"


# -- bodies


def test_a_body_of_64_kib_is_read_and_one_byte_more_is_413(server):
    whole = b'"' + b"x" * (64 * 1024 - 2) + b'"'
    assert server.post(whole).json["length"] == 64 * 1024
    assert server.send(chunked(whole), answers=1).answers[0].json["length"] == 64 * 1024
    for wire in (
        request("POST", "/", "Content-Type: application/json", body=whole + b" "),
        request("POST", "/", "Content-Length: 65537"),  # refused before the first byte of the body
        request("POST", "/", "Content-Length: 18446744073709551615"),
        chunked(whole, b" ", end=b""),  # refused before the end of the body
        chunked(*[b"x" * 1000] * 1000),
    ):
        exchange = server.send(wire)
        assert_refused(exchange.answers[0], 413)
        assert (len(exchange.answers), exchange.closed) == (1, True)


def test_a_refusal_is_seen_by_a_client_that_sends_all_first_and_reads_then(server):
    with server.connect() as connection:
        connection.sendall(request("POST", "/", "Content-Length: 20000000"))
        for _ in range(200):  # more than the kernel's buffers hold, so that the server must read and discard it
            connection.sendall(b"x" * 100_000)
        assert_refused(server.read(connection).answers[0], 413)


@pytest.mark.parametrize(
    "parts",
    [
        [request("POST", "/", "Content-Length: 5"), b"1"],
        [request("POST", "/", "Content-Length: 50"), *[b"1"] * 12],
        [chunked(b"[1", end=b"")],
        [chunked(*[], end=b""), *[b"1\r\n1\r\n"] * 12],
    ],
    ids=["Content-Length too large", "a byte at a time", "chunked without end", "chunk after chunk"],
)
def test_a_body_that_does_not_arrive_in_time_is_408_and_the_connection_is_closed(server, parts):
    with server.connect() as connection:
        for part in parts:
            with contextlib.suppress(OSError):
                connection.sendall(part)
            time.sleep(0.06)
        exchange = server.read(connection)
    assert_refused(exchange.answers[0], 408)
    assert exchange.closed
    assert exchange.answers[0].headers["connection"] == "close"


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity, gzip", "x"])
def test_a_compressed_body_or_bomb_is_415(server, encoding):
    for bomb in (gzip.compress(b"{}"), gzip.compress(b"0" * 10_000_000)):
        assert_refused(server.post(bomb, "Content-Type: application/json", f"Content-Encoding: {encoding}"), 415)


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/json; charset=utf-16",
        "application/json; charset=latin-1",
        "application/json; charset=utf-8; charset=utf-16",
        "application/json; charset=",
        'application/json; charset="utf-8',
        'application/json; charset=utf-8"',
        "application/json; charset=utf-8x",
        "application/json; x",
        "application/json; x = y",
        "application/json, text/html",
        "application/jsonx",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/vnd.api+json",
        "",
    ],
)
def test_a_body_of_another_type_is_415(server, content_type):
    assert_refused(server.post(b"{}", f"Content-Type: {content_type}"), 415)
    assert_refused(server.post(b"{}", "X-No-Content-Type: 1"), 415)


NOT_JSON = {
    "nothing but space": b"  ",
    "cut off": b'{"a": ',
    "two values": b"{} {}",
    "trailing comma": b"[1,]",
    "a comment": b"{} // x",
    "single quotes": b"{'a': 1}",
    "byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "Latin-1": '{"a": "é"}'.encode("latin-1"),
    "overlong UTF-8": b'{"a": "\xc0\xaf"}',
    "surrogate in UTF-8": b'{"a": "\xed\xa0\x80"}',
    "NUL byte": b'{"a": "\0"}',
    "bare NUL": b"\0",
    "control character": b'{"a": "\n"}',
    "duplicate name": b'{"a": 1, "a": 2}',
    "duplicate name, escaped": b'{"a": 1, "\\u0061": 2}',
    "duplicate name, deep": b'[{"x": {"a": 1, "b": 2, "a": 1}}]',
    "lone high surrogate": b'{"a": "\\ud800"}',
    "lone low surrogate": b'["\\uDC00 \\ud83d"]',
    "surrogates in the wrong order": b'["\\udc00\\ud800"]',
    "lone surrogate in a name": b'{"\\uD800": 1}',
    "NaN": b'{"a": NaN}',
    "Infinity": b"[Infinity]",
    "-Infinity": b"[-Infinity]",
    "infinite float": b"[1e999]",
    "400 digits": b"[" + b"9" * 400 + b"]",
    "400 digits, negative": b"[-" + b"9" * 400 + b"]",
    "400 decimals": b"[0." + b"1" * 400 + b"]",
    "5000 digits": b"9" * 5000,
    "leading zero": b"[01]",
    "plus": b"[+1]",
    "depth 33": b"[" * 33 + b"]" * 33,
    "depth 33, objects": b'{"a":' * 33 + b"1" + b"}" * 33,
    "depth 33 behind brackets in strings": b'["[[[\\"]", ' + b"[" * 32 + b"]" * 32 + b"]",
    "depth 33, late": b"[" + b"[],[" * 100 + b"[" * 32 + b"]" * 132,
    "depth 20,000": b"[" * 20_000,
    "depth 20,000 closed": b"[" * 20_000 + b"]" * 20_000,
    "20,000 closed only": b"[" * 16 + b"]" * 20_000 + b"[" * 17,
    "1001 members": json.dumps({str(i): 0 for i in range(1001)}).encode(),
    "1001 elements": json.dumps([0] * 1001).encode(),
    "30,000 elements": b"[" + b"0," * 30_000 + b"0]",
    "2000 arrays one after the other": b"[" + b"[],[[]]," * 999 + b"0]",
    "a quote without end": b'["' + b'\\"' * 30_000 + b"[" * 100,
    "a quote without end, backslash": b'["' + b'\\"' * 30_000 + b"\\" + b"[" * 100 + b"," * 1000 + b"\\",
}


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_json_that_two_parsers_could_read_differently_is_400_and_not_echoed(server, body):
    with pytest.raises(InvalidRequest) as refused:
        parse_json(body)
    assert refused.value.__context__ is None, "the parser's own error holds the text"
    answer = server.post(body)
    assert_refused(answer, 400)
    assert answer.json == refused.value.body()


def test_100000_members_are_413_because_they_are_never_within_64_kib(server):
    assert_refused(
        server.send(request("POST", "/", body=json.dumps(dict.fromkeys(map(str, range(100_000)))).encode())).answers[0],
        413,
    )


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b"[" * 32 + b"]" * 32, None),
        (b'{"a":' * 32 + b"1" + b"}" * 32, None),
        (json.dumps({str(i): 0 for i in range(1000)}).encode(), {str(i): 0 for i in range(1000)}),
        (b'"' + b"[{," * 5000 + b'"', "[{," * 5000),
        (b'["\\"[", "\\\\", ' + b'"[", ' * 100 + b"[]]", ['"[', "\\", *["["] * 100, []]),
        (b'"\\ud83d\\ude00"', "\U0001f600"),
        (b'"\\\\ud800"', "\\ud800"),
        (b"9" * 64, int("9" * 64)),
        (b" \t\r\n1e2 ", 100.0),
        ('"é\u2028"'.encode(), "é\u2028"),
        (b"-0", 0),
    ],
)
def test_json_at_the_limits_is_read(body, value):
    assert parse_json(body) == (json.loads(body) if value is None else value)


def bounded(value: object, depth: int = 0) -> bool:
    """Whether a value is nested no deeper than parse_json allows."""
    match value:
        case dict() | list():
            members = value.values() if isinstance(value, dict) else value
            return depth < MAX_DEPTH and all(bounded(member, depth + 1) for member in members)
    return True


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10 ** (MAX_DIGITS - 1)) + 1, 10 ** (MAX_DIGITS - 1) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=60,
)


@given(json_values, st.booleans())
def test_every_json_value_within_the_limits_is_read_as_it_was_written(value, ascii_only):
    assert bounded(value)
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(st.binary() | st.text(alphabet='{}[]",:\\u0dD8e19- nN').map(str.encode) | st.text().map(str.encode))
@example(b'"\\')
@example(b'"\\u')
def test_any_bytes_are_either_read_or_refused(body):
    with contextlib.suppress(InvalidRequest):
        value = parse_json(body)
        assert json.loads(body) == value
        json.dumps(value, ensure_ascii=False).encode()


@given(st.text(alphabet='[]{}",\\a1:', max_size=400), st.integers(20, 40))
def test_whatever_stands_around_it_nothing_deeper_than_the_limit_is_read(noise, levels):
    def depth(value):
        if isinstance(value, dict):
            value = list(value.values())
        return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0

    body = b"[" + json.dumps(noise).encode() + b"," + b"[" * (levels - 1) + b"]" * levels
    if levels > MAX_DEPTH:
        with pytest.raises(InvalidRequest):
            parse_json(body)
    elif noise.count(",") < MAX_MEMBERS:
        assert depth(parse_json(body)) == levels


# -- targets and header fields


@pytest.mark.parametrize(
    "target", ["/%ff", "/a%C3", "/%ED%A0%80", "/%00", "/a%", "/%zz", "/?q=%ff", "/?q=%00", "/?%", "/?q=%C0%AF"]
)
def test_a_target_that_is_not_utf_8_or_has_a_nul_is_400(server, target):
    exchange = server.send(request("GET", target) + GET, answers=2)
    assert_refused(exchange.answers[0], 400)
    assert exchange.answers[1].status == 200


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (["Authorization: Bearer \xff"], 400),
        (["X: a\0b"], 400),
        (["X: a\x01b"], 400),
        (["X: a\x7fb"], 400),
        (["X: a\rb"], 400),
        (["no colon"], 400),
        ([": no name"], 400),
        (["Space : before colon"], 400),
        (["X: folded", " line"], 400),
        (["Host: other"], 400),
        (["Content-Type: application/json", "Content-Type: text/plain"], 400),
        (["Authorization: Bearer a", "Authorization: Bearer b"], 400),
        ([f"X-{i}: {'x' * 1000}" for i in range(70)], 431),
        (["X: " + "x" * 65536], 431),
        (["X: " + "x" * 1024 * 1024], 431),
        (["x" * 65536 + ": x"], 431),
        ([f"{i}:" for i in range(20_000)], 431),
    ],
)
def test_header_fields_that_are_malformed_doubled_or_too_many_are_refused(server, fields, status):
    assert_refused(server.send(request("GET", "/", *fields, "Connection: close")).answers[0], status)


def test_bytes_of_any_charset_in_a_field_that_is_not_read_are_served(server):
    """RFC 9110 section 5.5: opaque bytes are allowed. An application's old cookie must not lock its user out."""
    for name in ("Cookie", "User-Agent", "Referer", "X-Name", "X-Request-Id", "Accept-Language", "Via"):
        for value in ("caf\xe9=1", "\xff", "\xc3", "\xed\xa0\x80", "\x80\x81"):
            assert server.send(request("GET", "/", f"{name}: {value}"), answers=1).statuses == [200], (name, value)


def test_a_media_type_of_any_bytes_is_served_where_no_body_is_read(server):
    media_type = "Content-Type: multipart/form-data; boundary=\xe9"
    assert server.send(request("GET", "/", media_type), answers=1).statuses == [200]
    assert server.send(request("PUT", "/auth/verify", media_type, body=b"abc"), answers=1).statuses == [200]


@pytest.mark.parametrize(
    "host", ["", "Host: k\xe9\r\n", "Host: a b\r\n", "Host: a/b\r\n", "Host: a@b\r\n", "Host: a\r\nHost: a\r\n"]
)
def test_a_request_without_exactly_one_plausible_host_is_400(server, host):
    exchange = server.send(request("GET", "/", host=host) + GET, answers=2)
    assert_refused(exchange.answers[0], 400)
    assert exchange.answers[1].status == 200


def test_header_fields_within_64_kib_in_utf_8_are_served(server):
    fields = [f"X-{i}: {'x' * 1000}" for i in range(60)]
    assert server.send(request("GET", "/", *fields, "Y: \xc3\xa9"), answers=1).statuses == [200]


def test_header_fields_without_end_are_431_while_they_are_still_coming(server):
    with server.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: keyturn\r\nX: ")
        with contextlib.suppress(OSError):
            for _ in range(100):
                connection.sendall(b"x" * 20_000)
        assert_refused(server.read(connection).answers[0], 431)


def test_a_path_beyond_8_kib_is_414(server):
    assert server.send(request("GET", "/" + "x" * (MAX_TARGET - 1)), answers=1).statuses == [200]
    for target in (
        "/" + "x" * MAX_TARGET,
        "/?" + "x" * MAX_TARGET,
        "/" + "x" * 60_000,
        "/" + "x" * 65_536,
        "/" + "x" * 200_000,
    ):
        assert_refused(server.send(request("GET", target, "Connection: close")).answers[0], 414)


def test_a_fragment_in_a_target_is_400_wherever_it_stands(server):
    """RFC 9112 section 3.2: no fragment goes over the wire.

    If one program cuts the fragment off and another does not, they read two different targets.
    """
    for target in (
        "/#",
        "/#a",
        "/a?b#c",
        "/a#?b",
        "/auth/verify?orig=/a#&role=admin",
        "/auth/verify/a#b",
        "/?#" + "x" * 9000,
    ):
        for target_form in (target, f"http://keyturn{target}"):
            exchange = server.send(request("GET", target_form) + SMUGGLED)
            assert (exchange.statuses, exchange.closed) == ([400], True)
            assert_refused(exchange.answers[0], 400)
    assert server.send(request("GET", "/a%23b"), answers=1).answers[0].json["path"] == "/a#b"


def test_a_character_that_no_target_has_is_400_but_for_what_a_proxy_appends(server):
    """RFC 3986 section 2. Browsers send some of these characters as they are.

    An application behind a proxy may accept them, so Keyturn must not refuse them in the part that the proxy appends.
    """
    for character in '"<>\\^`{|}[]':
        for target in (f"/a{character}b", f"/?a{character}", f"/?{character}=b", f"http://keyturn/{character}"):
            exchange = server.send(request("GET", target) + GET, answers=2)
            assert exchange.statuses == [400, 200]
            assert_refused(exchange.answers[0], 400)
        for target in (f"/auth/verify/a{character}", f"/auth/verify/?{character}", f"/auth/verify/x?a=b{character}c"):
            assert server.send(request("GET", target), answers=1).statuses == [200]
    for code in (*range(0x21), 0x7F, *range(0x80, 0x100)):
        for target in (f"/a{chr(code)}b", f"/?a{chr(code)}b", f"/auth/verify/{chr(code)}b"):
            assert server.send(request("GET", target) + SMUGGLED).statuses == [400], code
    served = "/-._~!$&'()*+,;=:@/?-._~!$&'()*+,;=:@/?"
    assert server.send(request("GET", served), answers=1).answers[0].json["path"] == "/-._~!$&'()*+,;=:@/"


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("http://keyturn/a?b", "/a"),
        ("HTTPS://KEYTURN:8000/a", "/a"),
        ("http://key_turn.:80//a", "//a"),
        ("http://[::1]:8000/a", "/a"),
        ("http://other", "/"),
        ("http://other?b", "/"),
    ],
)
def test_a_target_in_absolute_form_is_served_as_its_path(server, target, path):
    """RFC 9112 section 3.2.2: a server must accept the absolute form."""
    assert server.send(request("GET", target), answers=1).answers[0].json["path"] == path


METHODS = [
    *("PROPFIND", "REPORT", "MKCALENDAR", "QUERY", "TRACE", "PURGE", "M-SEARCH", "PLAY", "FLUSH", "GET_PARAMETER"),
    *(
        "FOO",
        "purge-all",
        "get",
        "Get",
        "GETX",
        "GE",
        "POSTAL",
        "CONNECTED",
        "PRIVATE",
        "0",
        "!#$%&'*+-.^_`|~",
        "X" * 64,
    ),
]


@pytest.mark.parametrize("method", METHODS)
def test_any_method_of_http_s_grammar_reaches_the_application(server, method):
    """RFC 9110 section 9.1: a method is any token, and its case matters."""
    body = b"GET /smuggled HTTP/1.1\r\n\r\n"
    plain, posted, pieces = (
        request(
            method,
            f"/{method}".replace("#", "%23")
            .replace("%&", "%25&")
            .replace("^", "%5E")
            .replace("`", "%60")
            .replace("|", "%7C"),
        ),
        request(method, "/", body=body),
        request(method, "/", "Transfer-Encoding: chunked") + b"5\r\nGET /\r\n0\r\n\r\n",
    )
    for wire, length in ((plain, 0), (posted, len(body)), (pieces, 5)):
        exchange = server.send(wire + GET, answers=2)
        assert exchange.statuses == [200, 200]
        assert (exchange.answers[0].json["method"], exchange.answers[0].json["length"]) == (method, length)
        assert exchange.answers[1].json["method"] == "GET"
    line = server.lines_of(exchange.answers[0])[0]
    assert line["method"] == method


def test_a_method_that_comes_in_pieces_is_the_same_method(server):
    wire = request("PROPFINDER", "/", body=b"GET / HTTP/1.1")
    for end in range(1, 24):
        exchange = server.send(wire[:end], wire[end:] + GET, answers=2, pause=0.005)
        assert [answer.json["method"] for answer in exchange.answers] == ["PROPFINDER", "GET"]
    exchange = server.send(*(bytes([byte]) for byte in b"\r\n" + request("PROP", "/") + GET), answers=2)
    assert [answer.json["method"] for answer in exchange.answers] == ["PROP", "GET"]


def test_bytes_of_a_body_are_never_taken_for_a_method(server):
    body = b"FOO /smuggled HTTP/1.1\r\nHost: keyturn\r\n\r\n"
    head = request("POST", "/", f"Content-Length: {len(body)}")
    for cut in (0, 1, 3, 4, 10):
        exchange = server.send(head + body[:cut], body[cut:], GET, answers=2, pause=0.01)
        assert exchange.statuses == [415, 200]
    chunks = request("POST", "/", CHUNKED) + b"%x\r\n" % len(body)
    exchange = server.send(chunks, body, b"\r\n0\r\n\r\n", GET, answers=2, pause=0.01)
    assert exchange.statuses == [415, 200]


def test_a_token_as_a_method_is_not_logged(server):
    answer = server.send(request(TOKEN[:64], "/"), answers=1).answers[0]
    assert server.lines_of(answer)[0]["method"] == "[redacted]"


@pytest.mark.parametrize("method", ["A" * 65, "A" * 8192, "F(O", "F\xe9", "\x16\x03\x01", "CONNECT"])
def test_what_is_no_method_or_longer_than_any_and_connect_are_405_with_allow(server, method):
    for target in ("/", "keyturn:443"):
        exchange = server.send(request(method, target))
        assert_refused(exchange.answers[0], 405)
        assert "GET" in exchange.answers[0].headers["allow"]
        assert exchange.closed


CHUNKED = "Transfer-Encoding: chunked"
UPGRADE = (
    "Connection: Upgrade, HTTP2-Settings",
    "Upgrade: h2c",
    "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
)
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: keyturn\r\n\r\n"
MALFORMED = {
    "bare LF": GET.replace(b"\r\n", b"\n"),
    "bare LF after a field": b"GET / HTTP/1.1\r\nHost: keyturn\n\r\n",
    "two Content-Lengths": request("POST", "/", "Content-Length: 5", body=b"12345"),
    "two different Content-Lengths": request("POST", "/", "Content-Length: 0", body=SMUGGLED),
    "a list of Content-Lengths": request("POST", "/", "Content-Length: 5, 5") + b"12345",
    "signed Content-Length": request("POST", "/", "Content-Length: +5") + b"12345",
    "negative Content-Length": request("POST", "/", "Content-Length: -5"),
    "hexadecimal Content-Length": request("POST", "/", "Content-Length: 0x5") + b"12345",
    "Content-Length beyond 64 bits": request("POST", "/", "Content-Length: 99999999999999999999"),
    "Content-Length, then chunked": request("POST", "/", "Content-Length: 5", CHUNKED) + b"0\r\n\r\n" + SMUGGLED,
    "chunked, then Content-Length": request("POST", "/", CHUNKED, "Content-Length: 5") + b"0\r\n\r\n" + SMUGGLED,
    "gzip, chunked": request("POST", "/", "Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n" + SMUGGLED,
    "chunked, gzip": request("POST", "/", "Transfer-Encoding: chunked, gzip") + b"0\r\n\r\n" + SMUGGLED,
    "chunked twice": request("POST", "/", CHUNKED, CHUNKED) + b"0\r\n\r\n" + SMUGGLED,
    "identity": request("POST", "/", "Transfer-Encoding: identity") + SMUGGLED,
    "xchunked": request("POST", "/", "Transfer-Encoding: xchunked") + b"0\r\n\r\n" + SMUGGLED,
    "chunked behind a vertical tab": request("POST", "/", "Transfer-Encoding: \x0bchunked") + b"0\r\n\r\n" + SMUGGLED,
    "space before the colon": request("POST", "/", "Transfer-Encoding : chunked") + b"0\r\n\r\n" + SMUGGLED,
    "chunked in HTTP/1.0": request("POST", "/", CHUNKED).replace(b"/1.1", b"/1.0") + b"0\r\n\r\n" + SMUGGLED,
    "chunk size with 0x": request("POST", "/", CHUNKED) + b"0x5\r\n12345\r\n0\r\n\r\n" + SMUGGLED,
    "negative chunk size": request("POST", "/", CHUNKED) + b"-1\r\n" + SMUGGLED,
    "chunk size beyond 64 bits": request("POST", "/", CHUNKED) + b"fffffffffffffffff\r\n" + SMUGGLED,
    "chunk longer than its size": request("POST", "/", CHUNKED) + b"1\r\n12345\r\n0\r\n\r\n" + SMUGGLED,
    "chunk ended by LF": request("POST", "/", CHUNKED) + b"5\n12345\n0\n\n" + SMUGGLED,
    "chunked, after an empty element": request("POST", "/", "Transfer-Encoding: , chunked") + b"0\r\n\r\n" + SMUGGLED,
    "upgrade, two framings": request("POST", "/", *UPGRADE, CHUNKED, "Content-Length: 5") + b"0\r\n\r\n" + SMUGGLED,
    "upgrade, two Content-Lengths": request("POST", "/", *UPGRADE, "Content-Length: 1", body=SMUGGLED),
    "upgrade, gzip": request("POST", "/", *UPGRADE, "Transfer-Encoding: gzip") + SMUGGLED,
    "upgrade, broken chunk": request("POST", "/", *UPGRADE, CHUNKED) + b"zz\r\n" + SMUGGLED,
    "upgrade, chunked in HTTP/1.0": request("POST", "/", *UPGRADE, CHUNKED).replace(b"/1.1", b"/1.0") + SMUGGLED,
    "unknown method, two framings": request("FOO", "/", CHUNKED, "Content-Length: 5") + b"0\r\n\r\n" + SMUGGLED,
    "unknown method, malformed field": request("FOO", "/", "no colon") + SMUGGLED,
    "unknown method, HTTP/2.0": request("FOO", "/").replace(b"/1.1", b"/2.0"),
    "unknown method, no target": b"FOO  HTTP/1.1\r\nHost: keyturn\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/2.0": GET.replace(b"/1.1", b"/2.0"),
    "HTTP/1.2": GET.replace(b"/1.1", b"/1.2"),
    "HTTP/0.9": b"GET /\r\n\r\n",
    "another protocol": GET.replace(b"HTTP", b"HTCPCP"),
    "absolute target without a host": request("GET", "http:///x"),
    "absolute target with userinfo": request("GET", "http://keyturn@evil/x"),
    "absolute target of another scheme": request("GET", "ftp://keyturn/x"),
    "target in authority form": request("GET", "keyturn:80"),
    "an asterisk without OPTIONS": request("GET", "*"),
    "target without a slash": request("GET", "x"),
    "raw byte in the target": request("GET", "/\xff"),
    "raw NUL in the target": request("GET", "/\0"),
    "space in the target": request("GET", "/ /"),
}


@pytest.mark.parametrize("wire", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_request_is_400_the_connection_is_closed_and_nothing_is_smuggled(server, wire):
    exchange = server.send(wire)
    assert exchange.statuses == [400]
    assert exchange.closed
    assert_refused(exchange.answers[0], 400)
    (line,) = server.lines_of(exchange.answers[0])
    assert (line["error"], line["status"]) == ("invalid_request", 400)
    assert line["cause"]


def test_nothing_smuggled_ever_reached_the_application(server):
    assert not [line for line in server.lines() if line.get("path") == "/smuggled"]


def test_bytes_beyond_content_length_are_the_next_request_and_are_judged_as_one(server):
    body = request("POST", "/", "Content-Type: application/json", "Content-Length: 2") + b"{}garbage\r\n\r\n"
    assert server.send(body).statuses == [200, 405]


def test_trailer_fields_are_dropped_and_chunk_extensions_ignored(server):
    head = request("POST", "/", "Content-Type: application/json", CHUNKED)
    answer = server.send(head + b'2;a="b"\r\n{}\r\n0\r\nAuthorization: x\r\n\r\n', answers=1).answers[0]
    assert (answer.status, answer.json["json"]) == (200, {})
    assert "authorization" not in answer.json["headers"]


@pytest.mark.parametrize(
    "framing", [b"2;" + b"x" * 3_000_000, b"0\r\nX: " + b"x" * 3_000_000], ids=["extension", "trailer"]
)
def test_chunk_framing_without_end_is_413(server, framing):
    with server.connect() as connection:
        connection.sendall(request("POST", "/", "Content-Type: application/json", CHUNKED))
        with contextlib.suppress(OSError):
            connection.sendall(framing)
        assert_refused(server.read(connection).answers[0], 413)


def test_an_offer_of_another_protocol_is_ignored_and_its_body_read(server):
    """RFC 9110 section 7.8. Java's client offers HTTP/2 with each request, and sends a Content-Length with a GET."""
    fields = ["Content-Type: application/json", *UPGRADE]
    posted = request("POST", "/", *fields, body=b'{"a": 1}')
    in_chunks = request("POST", "/", *fields, CHUNKED) + b'4\r\n{"a"\r\n4\r\n: 1}\r\n0\r\nX: y\r\n\r\n'
    for wire in (posted, in_chunks, request("PUT", "/", *fields, body=b'{"a": 1}')):
        assert server.send(wire, answers=1).answers[0].json["json"] == {"a": 1}
        for size in (1, 7, 100):
            pieces = [wire[start : start + size] for start in range(0, len(wire), size)]
            assert server.send(*pieces, answers=1).answers[0].json["json"] == {"a": 1}
    for method in ("GET", "HEAD", "FOO"):
        with server.connect() as connection:
            for _ in range(3):
                connection.sendall(request(method, "/", *UPGRADE, "Content-Length: 0"))
                answer = server.read(connection, 1, head=method == "HEAD").answers[0]
                assert (answer.status, answer.headers.get("connection")) == (200, None)


def test_after_its_answer_a_connection_that_offered_another_protocol_goes_on(server):
    posted = request("POST", "/", "Content-Type: application/json", *UPGRADE, body=b"{}")
    odd = request("FOO", "/")
    with server.connect() as connection:
        for wire in (posted, GET, posted, odd, b"\r\n" + posted, b"\r\n" + GET, posted, b"FO", b"O / HT"):
            connection.sendall(wire)
            if wire.endswith((b"\r\n\r\n", b"{}")):
                assert server.read(connection, 1).statuses == [200]
            else:
                time.sleep(0.02)
        connection.sendall(b"TP/1.1\r\nHost: keyturn\r\n\r\n")
        assert server.read(connection, 1).answers[0].json["method"] == "FOO"


@pytest.mark.parametrize("protocol", ["h2c", "websocket", "TLS/1.0, h2c", "x"])
@pytest.mark.parametrize(
    "more", [b"GET /smuggled HTTP/1.1\r\nHost: keyturn\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"x"]
)
def test_what_is_sent_behind_an_offer_before_its_answer_is_no_request(server, protocol, more):
    fields = [
        f"Upgrade: {protocol}",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
    ]
    json_body = ["Content-Type: application/json"]
    wires = (
        request("GET", "/slow", *fields),
        request("POST", "/slow", *json_body, *fields, body=b"{}"),
        request("POST", "/slow", *json_body, *fields, CHUNKED) + b"2\r\n{}\r\n0\r\n\r\n",
        request("FOO", "/slow", *fields, body=SMUGGLED),
    )
    with contextlib.ExitStack() as stack:
        connections = []
        for wire in wires:
            for parts in ((wire + more,), (wire, more), (wire[:-1], wire[-1:] + more)):
                connections.append(stack.enter_context(server.connect()))
                for part in parts:
                    connections[-1].sendall(part)
                    time.sleep(0.01)
        for connection in connections:
            exchange = server.read(connection)
            assert (exchange.statuses, exchange.closed) == ([200], True)
            assert exchange.answers[0].headers["connection"] == "close"
            assert len([line for line in server.lines_of(exchange.answers[0]) if line["event"] == "request"]) == 1
    assert not [line for line in server.lines() if "upgrade" in line["event"].lower()]
    assert not [line for line in server.lines() if line.get("path") == "/smuggled"]


def test_a_body_behind_an_offer_has_the_limits_of_any(server):
    fields = ["Content-Type: application/json", *UPGRADE]
    assert_refused(server.send(request("POST", "/", *fields, "Content-Length: 65537") + SMUGGLED).answers[0], 413)
    endless = request("POST", "/", *fields, CHUNKED) + b"ffff\r\n" + b"x" * 65535 + b"\r\n2\r\nxx"
    assert_refused(server.send(endless).answers[0], 413)
    assert_refused(server.send(request("POST", "/", *fields, "Content-Length: 5") + b"1").answers[0], 408)


def test_only_a_client_of_http_1_1_is_invited_to_send_its_body(server):
    """RFC 9110 section 10.1.1: a client of HTTP/1.0 gets no 100 (Continue)."""
    wire = request("POST", "/", "Content-Type: application/json", "Expect: 100-continue", "Content-Length: 2")
    with server.connect() as connection:
        connection.sendall(wire.replace(b"/1.1", b"/1.0"))
        time.sleep(0.05)
        connection.sendall(b"{}")
        assert server.read(connection).statuses == [200]
    with server.connect() as connection:
        connection.sendall(
            request(
                "POST", "/", *UPGRADE, "Content-Type: application/json", "Expect: 100-continue", "Content-Length: 2"
            )
        )
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"{}")
        assert server.read(connection, 1).statuses == [200]


# -- connections


@pytest.mark.parametrize(
    "refused",
    [request("GET", "/refusal"), request("POST", "/", body=b"{}"), request("POST", "/%ff", body=b"x" * 60_000)],
)
def test_behind_a_refused_request_the_next_one_in_the_pipeline_is_answered_on_its_merits(server, refused):
    exchange = server.send(refused + GET + refused + GET, answers=4)
    assert exchange.statuses[1::2] == [200, 200]
    assert all(400 <= status < 500 for status in exchange.statuses[::2])
    assert not exchange.closed


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        (b"garbage\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (chunked(b"{}", end=b"zz\r\n"), 400),
        (request("POST", "/", "Content-Length: 65537"), 413),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 800_000, 431),
    ],
)
def test_a_malformed_request_in_the_pipeline_waits_for_the_answers_before_it(server, bad, status):
    slow = request("GET", "/slow")
    exchange = server.send(slow + GET + bad)
    assert (exchange.statuses, exchange.closed) == ([200, 200, status], True)
    assert_refused(exchange.answers[2], status)


def test_what_a_connection_carried_before_does_not_count_for_the_next_head(server):
    body = json.dumps("x" * 60_000).encode()
    wire = request("POST", "/", "Content-Type: application/json", body=body)
    exchange = server.send(wire, wire, wire + GET[:9], GET[9:20], GET[20:], answers=4, pause=0.02)
    assert exchange.statuses == [200] * 4


def test_a_head_that_stops_half_way_is_408(server):
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(server.connect()) for _ in range(3)]
        for connection, half in zip(
            connections, (b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: keyturn\r\nX: "), strict=True
        ):
            connection.sendall(half)
        for connection in connections:
            exchange = server.read(connection)
            assert_refused(exchange.answers[0], 408)
            assert exchange.closed


def test_a_head_that_comes_a_byte_at_a_time_is_408(server):
    with server.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX: ")
        with contextlib.suppress(OSError):
            for _ in range(12):
                connection.sendall(b"x")
                time.sleep(0.06)
        assert_refused(server.read(connection).answers[0], 408)


def test_a_connection_that_never_asks_anything_is_closed_without_an_answer(server):
    with server.connect() as idle, server.connect() as blank:
        with contextlib.suppress(OSError):
            for _ in range(12):
                blank.sendall(b"\r\n")  # a blank line is no request (RFC 9112 section 2.2)
                time.sleep(0.06)
        assert server.read(idle).raw == b""
        assert server.read(blank).raw == b""


def test_of_more_than_a_few_pipelined_requests_the_first_are_answered_in_order_and_the_rest_refused(server):
    many = server.send(*[b"".join(request("GET", f"/{n}", f"X-Request-Id: n{n}") for n in range(100))])
    assert many.statuses == [200] * 33 + [429]
    assert [a.headers["x-request-id"] for a in many.answers[:33]] == [f"n{n}" for n in range(33)]
    assert_refused(many.answers[33], 429, "slow_down")
    assert many.answers[33].headers["ratelimit-policy"] == '"pipeline";q=33;qu="concurrent-requests"'
    assert many.answers[33].headers["ratelimit"] == '"pipeline";r=0'
    assert many.closed
    some = server.send(request("GET", "/") * 33, answers=33)
    assert (some.statuses, some.closed) == ([200] * 33, False)


def test_a_client_that_does_not_read_its_answer_is_cut_off(server):
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(10)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(request("GET", "/large"))
        time.sleep(1.5)
        got = 0
        with contextlib.suppress(ConnectionResetError):
            while received := connection.recv(65536):
                got += len(received)
        assert 0 < got < LARGE


def test_after_an_answer_a_connection_may_idle_but_not_begin_and_stop(server):
    with server.connect() as half, server.connect() as blank:
        for connection in (half, blank):
            connection.sendall(GET)
            assert server.read(connection, 1).statuses == [200]
        time.sleep(0.8)  # longer than the limit for a head, which does not count an idle connection
        half.sendall(GET)
        assert server.read(half, 1).statuses == [200]
        with server.connect() as piped, server.connect() as slow:
            half.sendall(b"GET / HT")
            blank.sendall(b"\r\n")
            piped.sendall(GET + b"GET / HT")
            slow.sendall(request("GET", "/slow") + b"GET / HT")
            assert server.read(half).statuses == [408]
            assert server.read(blank).raw == b""
            assert server.read(piped).statuses == [200, 408]
            assert server.read(slow).statuses == [200, 408]


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost:"], ids=["idle", "half open"])
def test_beside_500_idle_or_half_open_connections_others_are_served_and_those_are_closed(server, sent):
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(server.connect()) for _ in range(500)]
        for connection in connections:
            connection.sendall(sent)
        assert server.send(GET, answers=1).statuses == [200]
        assert all(server.read(connection).closed for connection in connections)


def test_a_client_that_leaves_in_the_middle_of_a_request_does_not_stop_the_work(server):
    work = os.urandom(8).hex()
    with server.connect() as connection:
        connection.sendall(request("GET", f"/slow?{work}"))
        time.sleep(0.1)
    server.eventually("slow work is done", work=work)


def test_a_client_that_leaves_in_the_middle_of_its_body_is_one_line_in_the_log(server):
    work = os.urandom(8).hex()
    with server.connect() as connection:
        connection.sendall(
            request("POST", f"/left/{work}", "Content-Type: application/json", "Content-Length: 9") + b"{}"
        )
        time.sleep(0.1)
    line = server.eventually("request", path=f"/left/{work}")
    assert (line["status"], line["cause"]) == (None, "the client left")


RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset


def test_a_client_that_resets_its_connection_makes_no_error_in_the_log(server):
    wires = [
        GET,
        GET * 8,
        request("GET", "/large"),
        request("GET", "/refusal"),
        request("GET", "/slow") + GET,
        request("POST", "/", "Content-Length: 65537") + b"x",
        request("POST", "/", "Expect: 100-continue", "Content-Length: 10"),
        request("POST", "/", CHUNKED) + b"zz\r\n",
        request("POST", "/", body=b"x" * 60_000)[:50_000],
        request("GET", "/", *UPGRADE) + b"more",
        b"\x16\x03\x01",
        b"FO",
    ]

    def reset_all(choice: random.Random) -> None:
        for _ in range(150):
            with server.connect() as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                with contextlib.suppress(OSError):
                    connection.sendall(choice.choice(wires))
                time.sleep(choice.uniform(0, 0.004))
                if choice.random() < 0.3:
                    connection.setblocking(False)
                    with contextlib.suppress(OSError):
                        connection.recv(10)

    before = len(server.lines('"level": "error"'))
    threads = [threading.Thread(target=reset_all, args=(random.Random(seed),)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time.sleep(1)  # longer than the time limits of head and body
    assert server.lines('"level": "error"')[before:] == []
    assert not server.lines("raised exception")


# -- answers and the log


def test_a_token_in_the_path_is_not_logged_however_often_it_was_encoded(server):
    for times in range(4):
        path = "/" + TOKEN
        for _ in range(times):
            path = "".join(f"%{byte:02x}" if byte != ord("/") else "/" for byte in path.encode())
        answer = server.send(request("GET", path), answers=1).answers[0]
        (line,) = server.lines_of(answer)
        assert line["path"].removesuffix("%") == "/[redacted]"  # the path was cut


def test_a_refusal_below_is_rendered_in_the_one_shape_with_its_cause_in_the_log_only(server):
    exchange = server.send(request("POST", "/refusal"), answers=1)
    answer = exchange.answers[0]
    assert_refused(answer, 401, "invalid_grant")
    assert answer.headers["www-authenticate"] == "Bearer"
    (line,) = server.lines_of(answer)
    assert (line["error"], line["cause"], line["status"]) == ("invalid_grant", "the tag does not match", 401)
    assert b"tag" not in exchange.raw

    answer = server.send(request("GET", "/ended"), answers=1).answers[0]
    assert answer.json["reason"] == "logout"
    assert server.lines_of(answer)[0]["reason"] == "logout"

    answer = server.send(request("GET", "/limited"), answers=1).answers[0]
    assert_refused(answer, 429, "slow_down")
    assert answer.headers["retry-after"] == "2"


def test_an_exception_is_500_in_the_one_shape_and_logged_once_without_secrets(server):
    exchange = server.send(request("GET", "/exception") + GET, answers=2)
    answer = exchange.answers[0]
    assert_refused(answer, 500, "server_error")
    assert answer.json.keys() == {"error", "error_description"}
    exception, access = server.lines_of(answer)
    assert (access["event"], access["error"], access["status"]) == ("request", "server_error", 500)
    assert exception["level"] == "error"
    assert "Traceback" in exception["exception"]
    assert "ValueError" in exception["exception"]
    assert "[redacted]" in exception["exception"]
    assert exchange.answers[1].status == 200


def test_an_application_that_answers_nothing_is_500(server):
    assert_refused(server.send(request("GET", "/silent"), answers=1).answers[0], 500, "server_error")


def test_an_answer_that_breaks_off_is_cut_so_that_no_one_takes_it_as_whole(server):
    exchange = server.send(request("GET", "/late"))
    assert exchange.closed
    assert not exchange.raw.endswith(b"0\r\n\r\n")
    exception, access, *_ = server.lines_of(exchange.answers[0])
    assert "too late" in exception["exception"]
    assert access["status"] == 200


def test_a_refused_head_request_has_no_body(server):
    with server.connect() as connection:
        connection.sendall(request("HEAD", "/refusal"))
        exchange = server.read(connection, 1, head=True)
        assert exchange.raw.endswith(b"\r\n\r\n")
        assert exchange.statuses == [401]
        connection.sendall(GET)
        assert server.read(connection, 1).statuses == [200]


def test_every_answer_has_an_id_and_is_not_stored_unless_the_endpoint_says_so(server):
    answer = server.send(GET, answers=1).answers[0]
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-request-id"] == answer.json["request_id"]
    assert server.send(request("GET", "/cached"), answers=1).answers[0].headers["cache-control"] == "max-age=60"


@pytest.mark.parametrize(
    ("given_id", "kept"),
    [
        ("a-B_c.1", True),
        ("x" * 64, True),
        ("x" * 65, False),
        ("", False),
        ('a"b', False),
        ("a b", False),
        (TOKEN[:40], False),
        ("ktd_" + "Ab3_" * 12, False),
        (JWT[:60], False),
    ],
)
def test_a_clients_request_id_is_kept_where_it_is_harmless(server, given_id, kept):
    answer = server.send(request("GET", "/", f"X-Request-Id: {given_id}"), answers=1).answers[0]
    assert (answer.headers["x-request-id"] == given_id) == kept
    assert answer.headers["x-request-id"]


def test_the_access_line_has_the_path_without_query_escaped_cut_and_without_tokens(server):
    def line(target: str, *fields: str) -> dict[str, Any]:
        answer = server.send(request("GET", target, *fields), answers=1).answers[0]
        (line,) = server.lines_of(answer)
        return line

    found = line(
        f"/x?password={PASSWORD.replace(' ', '+')}&t={TOKEN}", f"Authorization: Bearer {JWT}", f"Cookie: a={TOKEN}"
    )
    assert found["path"] == "/x"
    assert found.keys() == {
        "method",
        "path",
        "status",
        "duration_ms",
        "client",
        "request_id",
        "event",
        "level",
        "timestamp",
    }
    assert (found["method"], found["status"], found["client"], found["level"]) == ("GET", 200, "127.0.0.1", "info")
    assert 0 < found["duration_ms"] < 10_000
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", found["timestamp"])
    assert line("/%22%0A%7B%7D%5C%E2%80%A8%7F")["path"] == '/"\n{}\\\u2028\x7f'
    assert line("/" + "x" * 300)["path"] == "/" + "x" * 255
    assert line(f"/{TOKEN}/{JWT}")["path"] == "/[redacted]/[redacted]"
    assert line("/" + "x" * 240 + TOKEN)["path"] == "/" + "x" * 240 + "[redacted]"


def test_an_endpoint_adds_to_its_access_line(server):
    answer = server.send(request("GET", "/session"), answers=1).answers[0]
    (line,) = server.lines_of(answer)
    assert (line["session_id"], line["refresh_token"]) == ("0193a1b2", "[redacted]")


def test_uvicorns_own_lines_have_the_same_form_and_its_access_log_is_off(server):
    started = server.eventually("Application startup complete.")
    assert started.keys() == {"logger", "event", "level", "timestamp"}
    assert not [line for line in server.lines() if line.get("logger") == "uvicorn.access"]


# -- in process


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


# -- redaction. The search is shown to find each secret when redaction is off.

SECRET = "hunter2-hunter2"
LEAKS: dict[str, dict[str, Any]] = {
    "refresh token in text": {"note": f"got {TOKEN}."},
    "refresh token in a URL": {"url": f"/x?t={TOKEN}&y"},
    "JWT": {"note": f"({JWT})"},
    "JWT without its signature": {"note": JWT.rpartition(".")[0]},
    "token in bytes": {"note": TOKEN.encode()},
    "token deep inside": {"a": [{"b": ({"c": TOKEN},)}]},
    "token as a name": {"a": {TOKEN: 1}},
    "named password": {"password": SECRET},
    "named new_password": {"a": {"new_password": SECRET}},
    "named client_secret": {"client_secret": SECRET},
    "named refresh_token": {"refresh_token": SECRET},
    "named Authorization": {"headers": {"Authorization": f"Token {SECRET}"}},
    "named Set-Cookie": {"headers": {"Set-Cookie": f"a={SECRET}"}},
    "ASGI header field": {"headers": [(b"authorization", f"Token {SECRET}".encode())]},
    "ASGI cookie": {"headers": [(b"cookie", SECRET.encode())]},
    "header line": {"note": f"GET / HTTP/1.1\nAuthorization: Token {SECRET}\nX: y"},
    "cookie line": {"note": f"Cookie: a=b; c={SECRET}; d=e"},
    "repr of header fields": {"note": repr([(b"authorization", f"Bearer {SECRET}".encode())])},
    "Bearer": {"note": f"sent Bearer {SECRET}"},
    "Basic": {"note": f"sent basic {SECRET}=="},
    "argument": {"note": f"login(email='a', password='{SECRET} x')"},
    "JSON in text": {"note": json.dumps({"password": f'"{SECRET}'})},
    "query in text": {"note": f"grant_type=x&client_secret={SECRET}&y=z"},
    "private key": {"note": f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----"},
    "row that failed a constraint": {"note": f"null value\nDETAIL:  Failing row contains (1, {SECRET})."},
    "object": {"note": type("Thing", (), {"__repr__": lambda _: f"Thing(token={SECRET})"})()},
}


def secrets_in(text: str) -> list[str]:
    return [secret for secret in (TOKEN, JWT.rpartition(".")[0], SECRET) if secret in text]


@pytest.mark.parametrize("members", LEAKS.values(), ids=LEAKS.keys())
def test_a_secret_that_is_given_to_the_log_is_not_written(members, monkeypatch, capsys):
    log.get_logger().warning("leak", **members)
    written = capsys.readouterr().err
    assert json.loads(written)["event"] == "leak"
    assert not secrets_in(written)
    assert "[redacted]" in written
    with monkeypatch.context() as off:
        off.setattr(log, "redact", lambda event: event)
        log.get_logger().warning("leak", **members)
    assert secrets_in(capsys.readouterr().err)


def test_a_secret_in_an_exception_of_a_library_is_not_written(monkeypatch, capsys):
    def speak():
        try:
            int(f"password={SECRET}")
        except ValueError as error:
            raised = (type(error), error, error.__traceback__)
            hidden = SECRET  # noqa: F841  # a local variable, which a traceback must not show
            record = logging.LogRecord(
                "asyncio", logging.ERROR, "x", 1, "%s and " + TOKEN, ("never retrieved",), raised
            )
            log.Handler().handle(record)
        return capsys.readouterr().err

    written = speak()
    line = json.loads(written)
    assert line["event"] == "never retrieved and [redacted]"
    assert (line["logger"], line["level"]) == ("asyncio", "error")
    assert "ValueError" in line["exception"]
    assert not secrets_in(written)
    with monkeypatch.context() as off:
        off.setattr(log, "redact", lambda event: event)
        assert secrets_in(speak()) == [TOKEN, SECRET]


def test_a_record_that_can_not_be_formatted_does_not_show_its_arguments(capsys):
    log.Handler().handle(logging.LogRecord("x", 37, "x", 1, "%d", (SECRET,), None))
    written = capsys.readouterr().err
    assert json.loads(written).items() >= {"event": "a log line could not be formatted", "level": "warning"}.items()
    assert not secrets_in(written)


def test_what_is_no_secret_is_logged_as_it_is():
    members = {
        "session_id": "0193a1b2-0000-7000-8000-000000000000",
        "status": 401,
        "share": 0.5,
        "none": None,
        "token_digest_length": 32,
        "cause": "invalid_token: the tag does not match",
        "names": ["a", "b"],
    }
    assert log.redact(members) == members


@given(st.text())
def test_whatever_is_logged_is_one_line_of_json(text):
    assert json.loads(log.quote(text)) == text
    assert log.quote(text).isascii()
    assert len(log.quote(text).splitlines()) == 1


def test_a_level_below_the_least_is_not_logged(capsys):
    log.Handler("warning")
    try:
        log.get_logger().info("quiet")
        assert log.least > logging.INFO
        assert capsys.readouterr().err == ""
    finally:
        log.Handler("info")
    assert log.least <= logging.INFO


def test_no_number_of_digits_is_lost():
    assert math.isclose(cast("float", parse_json(b"0." + b"1" * (MAX_DIGITS - 2))), 1 / 9)


if __name__ == "__main__":
    serve(sys.argv[1])


# -- another uvicorn


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
