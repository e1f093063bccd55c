"""Malformed and smuggled requests, chunked bodies, and offers of another protocol."""

import contextlib
import time

import pytest

from tests.edge_server import _server, server
from tests.raw_http import CHUNKED, GET, SMUGGLED, UPGRADE, assert_refused, request

__all__ = ["_server", "server"]  # fixtures


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
