"""JSON that is read, and JSON that two parsers could read differently."""

import contextlib
import json
import math
from typing import cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.errors import InvalidRequest
from app.http.bodies import MAX_DEPTH, MAX_DIGITS, MAX_MEMBERS, parse_json
from tests.edge_server import _server, server
from tests.raw_http import assert_refused

__all__ = ["_server", "server"]  # fixtures


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


def test_no_number_of_digits_is_lost():
    assert math.isclose(cast("float", parse_json(b"0." + b"1" * (MAX_DIGITS - 2))), 1 / 9)
