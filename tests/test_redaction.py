"""Redaction. The search is shown to find each secret when redaction is off."""

import json
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import log
from tests.edge_server import JWT, TOKEN

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
