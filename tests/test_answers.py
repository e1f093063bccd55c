"""Answers of the edge: refusals and defects in one shape, header fields, and the access line of each."""

import re
from typing import Any

import pytest

from tests.edge_server import JWT, PASSWORD, TOKEN, _server, server
from tests.raw_http import GET, assert_refused, request

__all__ = ["_server", "server"]  # fixtures


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
