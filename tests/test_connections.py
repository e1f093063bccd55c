"""Connections: pipelines, heads that do not end, clients that stop, leave or never read."""

import contextlib
import json
import os
import random
import socket
import struct
import threading
import time

import pytest

from tests.edge_server import LARGE, _server, server
from tests.raw_http import CHUNKED, GET, UPGRADE, assert_refused, chunked, request

__all__ = ["_server", "server"]  # fixtures


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
