"""Requests to /auth/verify: the head alone decides, and what a proxy appends to the path does not."""

import pytest

from tests.edge_server import _server, server
from tests.raw_http import GET, assert_refused, chunked, request

__all__ = ["_server", "server"]  # fixtures


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
