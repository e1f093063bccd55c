"""The head of a request: targets, header fields and methods."""

import contextlib

import pytest

from app.http.heads import MAX_TARGET
from tests.edge_server import TOKEN, _server, server
from tests.raw_http import CHUNKED, GET, SMUGGLED, assert_refused, request

__all__ = ["_server", "server"]  # fixtures


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
