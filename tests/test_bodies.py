"""Bodies: media types, charsets, codings, framing that is honest, and the limits of size and time."""

import contextlib
import gzip
import json
import time

import pytest

from tests.edge_server import _server, server
from tests.raw_http import GET, assert_refused, chunked, request

__all__ = ["_server", "server"]  # fixtures


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


def test_100000_members_are_413_because_they_are_never_within_64_kib(server):
    assert_refused(
        server.send(request("POST", "/", body=json.dumps(dict.fromkeys(map(str, range(100_000)))).encode())).answers[0],
        413,
    )
