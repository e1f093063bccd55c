"""Hostile input at every endpoint: refused with the usual shape, not echoed, and without any change."""

from __future__ import annotations

import gzip
import json
import unicodedata
from collections.abc import AsyncIterator, Iterable
from typing import Any, cast

import httpx2
import pytest

from app.actors import SERVICE
from app.users.emails import normalised
from app.users.hashing import Asker
from tests.api import ADA, EVERY_METHOD, GETS, POSTS, Api, Json, authorization, dump, serving
from tests.conftest import NEW_PASSWORD as NEW
from tests.conftest import PASSWORD

MARK = "hOsTiLe"
"""A text that stands in hostile values and must stand in no answer."""

TOKEN = "ktr_" + "x" * 84
BODIES: dict[str, Json] = {
    "/auth/register": {"email": "new@example.com", "password": PASSWORD},
    "/auth/login": {"email": ADA, "password": PASSWORD},
    "/auth/refresh": {"refresh_token": TOKEN},
    "/auth/logout": {"refresh_token": TOKEN, "scope": "this"},
    "/auth/password": {"current_password": PASSWORD, "new_password": NEW},
}
OPTIONAL = {("/auth/logout", "refresh_token"), ("/auth/logout", "scope")}
MORE = {
    "/auth/login": ["mode", "remember", "device_id", "device_name", "scope", "device_token"],
    "/auth/refresh": ["mode", "scope"],
    "/auth/logout": ["mode", "post_logout_redirect_uri"],
}
"""The fields that the bodies above leave out."""
assert BODIES.keys() == set(POSTS)
FIELDS = {path: [*good, *MORE.get(path, ())] for path, good in BODIES.items()}

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
async def api(database_url: str) -> AsyncIterator[Api]:
    """One instance with one user, Ada, and with open registration."""
    async with serving(database_url, registration="true") as api:
        await api.keyturn.users.create(ADA, PASSWORD, by=SERVICE)
        yield api


class Hostile:
    """Sends requests that must be refused, and checks each answer."""

    def __init__(self, api: Api, bearer: str) -> None:
        self.api = api
        self.bearer = bearer

    async def sends(
        self,
        path: str,
        body: bytes | Json | list[Any],
        statuses: Iterable[int] = (400,),
        headers: dict[str, str] | None = None,
        method: str = "POST",
    ) -> Json:
        """Sends a request with a good bearer token, asserts that it is refused, and returns the refusal's body."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        fields = {"Content-Type": "application/json"} | authorization(self.bearer) | (headers or {})
        answer = await self.api.client.request(method, path, content=content, headers=fields)
        return self.holds(answer, statuses, f"{method} {path} {content[:80]!r} {headers}")

    @staticmethod
    def holds(answer: httpx2.Response, statuses: Iterable[int], what: str) -> Json:
        assert answer.status_code in set(statuses), (what, answer.status_code, answer.text)
        refusal: Json = answer.json()
        assert refusal.keys() == {"error", "error_description"}, what
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["cache-control"] == "no-store"
        assert "x-request-id" in answer.headers
        assert MARK.lower() not in answer.text.lower(), what
        assert MARK.lower() not in str(answer.headers).lower(), what
        return refusal


@pytest.fixture
async def hostile(api: Api) -> AsyncIterator[Hostile]:
    """A sender of hostile requests. Asserts afterwards that none of them changed a row."""
    bearer = (await api.login())["access_token"]
    before = await dump(api.keyturn)
    yield Hostile(api, bearer)
    assert await dump(api.keyturn) == before


# -- JSON


async def test_a_body_that_is_no_object_is_refused(hostile: Hostile) -> None:
    for path in POSTS:
        for body in (
            b"true",
            b"7",
            b'"text"',
            b"[]",
            b"[{}]",
            b'[{"email": "a@example.com"}]',
            b'"{}"',
            b"-0",
            b"1e5",
        ):
            refusal = await hostile.sends(path, body)
            assert refusal["error"] == "invalid_request"
        if path != "/auth/logout":  # at /auth/logout, the bearer token alone is enough
            for nothing in (b"", b"{}", b"null"):
                await hostile.sends(path, nothing)


async def test_each_missing_field_is_named(hostile: Hostile) -> None:
    for path, good in BODIES.items():
        for field in good:
            if (path, field) not in OPTIONAL:
                refusal = await hostile.sends(path, {n: v for n, v in good.items() if n != field})
                assert refusal["error_description"].startswith(f"{field}: is missing")


async def test_each_field_of_another_type_is_named_and_its_value_is_not(hostile: Hostile) -> None:
    values: tuple[Any, ...] = (7, 0, -1, 1.5, True, False, [], [MARK], {}, {MARK: MARK}, [[]], 10**60)
    for path, good in BODIES.items():
        for field in good:
            for value in (*values, *(() if path in {"/auth/logout", "/auth/refresh"} else (None,))):
                refusal = await hostile.sends(path, good | {field: value})
                assert refusal["error_description"] == f"{field}: is not valid.", (path, value)


async def test_unknown_fields_are_refused_and_named_only_where_the_name_is_a_plain_word(hostile: Hostile) -> None:
    unknown = (
        "role",
        "enabled",
        "created_at",
        "id",
        "disabled_at",
        "admin",
        "client_id",
        "Email",
        "refreshToken",
        "grant-type",
        "__proto__",
        "passwordOfAllUsersOfTheService",
        "a" * 65,
        MARK,
        "",
        "\0",
    )
    for path, good in BODIES.items():
        for field in unknown:
            refusal = await hostile.sends(path, good | {field: MARK})
            named = f"{field}: is" if field in unknown[:10] else "There is"
            said = f"{named} a field that this endpoint does not have. It has: {', '.join(FIELDS[path])}."
            assert refusal["error_description"] == said


async def test_a_name_that_stands_twice_is_refused_whichever_parser_would_take(hostile: Hostile) -> None:
    for path, good in BODIES.items():
        for field, value in good.items():
            for twice in (value, MARK):
                rest = json.dumps(good)[1:]
                await hostile.sends(path, f'{{"{field}": {json.dumps(twice)}, {rest}'.encode())
                await hostile.sends(
                    path, f'{{"\\u{ord(field[0]):04x}{field[1:]}": {json.dumps(twice)}, {rest}'.encode()
                )


async def test_what_is_no_utf_8_json_is_refused(hostile: Hostile) -> None:
    for path, good in BODIES.items():
        text = json.dumps(good)
        field, value = next(iter(good.items()))
        value = json.dumps(value)
        bodies = [
            text[:-1],
            text + "x",
            text + text,
            text.replace('"', "'"),
            text[:-1] + ",}",
            "// comment\n" + text,
            text.replace(value, value[:-1]),
            text.replace(value, "NaN"),
            text.replace(value, "Infinity"),
            text.replace(value, "undefined"),
            text.replace(value, value[:-1] + '\n"'),
            text.replace(value, value[:-1] + '\\x41"'),
            text.replace(value, value[:-1] + '\\ud800"'),
            text.replace(value, value[:-1] + '\\udc00\\ud800"'),
            text.replace(f'"{field}"', f'"{field}\\ud800"'),
            text.replace(value, "9" * 400),
            text.replace(value, "9" * 5000),
            text.replace(value, "1e999"),
            text.replace(value, "[" * 33 + "]" * 33),
            text.replace(value, '{"a":' * 33 + "1" + "}" * 33),
            "[" * 100_000 if len("[" * 100_000) < 65_000 else "[" * 60_000,
            '{"a":' * 10_000,
            "{" + ", ".join(f'"{n}": 1' for n in range(5000)) + "}",
            "[" + "0," * 30_000 + "0]",
        ]
        raw = [body.encode() for body in bodies]
        raw += [text.encode("utf-16"), text.encode("utf-32"), b"\xef\xbb\xbf" + text.encode(), b"\0" + text.encode()]
        raw += [
            text.encode().replace(value.encode()[1:-1], b"\xff\xfe"),
            text.encode().replace(value.encode()[1:-1], b"\xc0\xaf"),
        ]
        raw += [text.encode().replace(value.encode()[1:-1], b"\xed\xa0\x80")]
        for body in raw:
            await hostile.sends(path, body)


async def test_nul_and_control_characters_in_a_field_change_nothing(hostile: Hostile) -> None:
    for path, good in BODIES.items():
        for field in good:
            for value in (f"{MARK}\0", "\0", f"\0{MARK}", f"{MARK}\x1b[2J", f"{MARK}\r\n{MARK}", f"{MARK}\u2028"):
                if field in {"password", "new_password"} and "\0" not in value:
                    continue  # a password may hold any character but NUL
                if (path, field) == ("/auth/logout", "refresh_token"):
                    continue  # the good bearer token beside it decides
                await hostile.sends(path, good | {field: value}, (400, 401))


async def test_what_is_too_large_is_refused(hostile: Hostile) -> None:
    for path, good in BODIES.items():
        field = next(iter(good))
        for size, statuses in ((1025, (400,)), (10_000, (400,)), (65_000, (400,)), (65_537, (413,)), (1 << 20, (413,))):
            await hostile.sends(path, good | {field: MARK + "x" * (size - len(MARK))}, statuses)
        # White space behind the JSON changes only its size: exactly the limit, and one byte more.
        await hostile.sends(path, json.dumps(good | {MARK: 1}).encode().ljust(65_536), (400,))
        await hostile.sends(path, json.dumps(good).encode().ljust(65_537), (413,))


async def test_a_body_of_exactly_the_limit_is_read(api: Api) -> None:
    body = json.dumps(BODIES["/auth/login"]).encode().ljust(65_536)
    answer = await api.client.post("/auth/login", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200


async def test_a_body_in_pieces_is_bounded_like_any(api: Api) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 1000

    for path in POSTS:
        answer = await api.client.post(path, content=endless(), headers={"Content-Type": "application/json"})
        Hostile.holds(answer, (413,), path)


async def test_another_media_type_or_coding_is_refused(hostile: Hostile) -> None:
    types = (
        "", "text/plain", "text/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
        "application/jsonp", "application/json-patch+json", "application/problem+json", "application/ld+json",
        "application/json; charset=utf-16", "application/json; charset=latin-1", "application/json, text/plain",
        "application/json; x", "application/xml", "*/*", "application/*", "json", f"application/{MARK}",
    )  # fmt: skip
    for path, good in BODIES.items():
        for media_type in types:
            await hostile.sends(path, good, (415,), {"Content-Type": media_type})
        for coding in ("gzip", "br", "deflate", "identity, gzip", MARK):
            await hostile.sends(path, gzip.compress(json.dumps(good).encode()), (415,), {"Content-Encoding": coding})
        bomb = gzip.compress(b" " * (1 << 24), mtime=0)
        await hostile.sends(path, bomb, (415,), {"Content-Encoding": "gzip"})


async def test_json_s_own_media_type_may_name_its_charset(api: Api) -> None:
    for media_type in (
        "application/json",
        "APPLICATION/JSON",
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"',
        "application/json ; charset=UTF-8 ",
        "application/json; charset=iso-8859-1",
        "application/json; x=y;",
    ):
        answer = await api.client.post(
            "/auth/login", content=json.dumps(BODIES["/auth/login"]), headers={"Content-Type": media_type}
        )
        assert answer.status_code == 200, media_type


# -- fields


BAD_EMAILS = (
    "", " ", "ada", "@", "ada@", "@example.com", "ada@@example.com", "ada@b@example.com", '"ada lovelace"@example.com',
    '"ada"@example.com', "ada(comment)@example.com", "ada@(comment)example.com", "ada@[127.0.0.1]", "ada@[IPv6:::1]",
    "ada lovelace@example.com", "ada@exam ple.com", "ada @example.com", "ada@ example.com", "ada@example.com bob",
    "\u00a0ada@example.com", "ada@example.com\u00a0", "ada@example.com\u2003", "ada@example.com\x1f", "ada@example.com\0", "\0ada@example.com", "ada\r\nBcc: x@example.com", "ada@example..com",
    ".ada@example.com", "ada.@example.com", "a..da@example.com", "ada@-example.com", "ada@example.com.", "Ada <ada@example.com>",
    "mailto:ada@example.com", "ada@example.com,bob@example.com",
    "a" * 64 + "@" + ("b" * 60 + ".") * 3 + "example.com", "a@" + "b" * 10_000 + ".com", "a" * 1000 + "@b.c",
    "ada@\u202eexample.com", "ada@xn--a.com", "\ufeffada@example.com", "ada@exa\u00admple.com", "ada@example.com\u200b",
)  # fmt: skip


async def test_what_is_no_e_mail_address_is_refused_and_not_repeated(hostile: Hostile) -> None:
    for path in ("/auth/register", "/auth/login"):
        for email in BAD_EMAILS:
            refusal = await hostile.sends(path, {"email": email, "password": PASSWORD})
            assert refusal["error_description"].startswith("email: is not "), email


@pytest.mark.parametrize("address", [" {}", "{} ", "  {}\t", "\r\n{}\n", "\v{}\f"])
async def test_ascii_white_space_around_an_e_mail_address_is_left_out(api: Api, address: str) -> None:
    registered = await api.post("/auth/register", {"email": address.format("Bob@example.com"), "password": PASSWORD})
    assert (registered.status_code, registered.json()["email"]) == (201, "bob@example.com")
    for email in (address.format("bob@example.com"), "bob@example.com"):
        login = await api.post("/auth/login", {"email": email, "password": PASSWORD})
        assert login.status_code == 200
    again = await api.post("/auth/register", {"email": "bob@example.com ", "password": PASSWORD})
    assert again.status_code == 409
    spaced = await api.post("/auth/login", {"email": "bob@example.com", "password": f"{PASSWORD} "})
    assert spaced.status_code == 401  # a password is never trimmed


@pytest.mark.parametrize("capital", ["J\u030c", "H\u0331", "T\u0308", "W\u030a", "Y\u030a"])
async def test_a_capital_that_is_two_characters_and_one_in_lower_case_is_one_account(api: Api, capital: str) -> None:
    """Unicode has a letter for j with a caron (NFC makes it one character), and none for J with a caron."""
    address = f"{capital}ohn@example.com"
    assert (await api.post("/auth/register", {"email": address, "password": PASSWORD})).status_code == 201
    for email in (address, address.lower(), unicodedata.normalize("NFC", address.lower())):
        assert normalised(normalised(email)) == normalised(email) == normalised(address)
        assert (await api.post("/auth/login", {"email": email, "password": PASSWORD})).status_code == 200
        again = await api.post("/auth/register", {"email": email, "password": PASSWORD})
        assert again.status_code == 409


async def test_an_e_mail_address_at_a_bare_ip_address_is_refused(api: Api) -> None:
    for domain in ("127.0.0.1", "2130706433", "1.2.3"):
        answer = await api.post("/auth/register", {"email": f"ada@{domain}", "password": PASSWORD})
        assert answer.status_code == 400


async def test_an_e_mail_address_of_254_characters_is_the_longest(api: Api) -> None:
    longest = "a" * 64 + "@" + ("b" * 60 + ".") * 3 + "c.io"
    longest = longest.replace("c.io", "c" * (254 - len(longest) + 1) + ".io")
    assert len(longest) == 254
    answers = [
        await api.post("/auth/register", {"email": email, "password": PASSWORD})
        for email in (longest, longest.replace("c.io", "cc.io"), "ada+tag@corp.local", "a@b.io", "o'hara@example.com")
    ]
    assert [answer.status_code for answer in answers] == [201, 400, 201, 201, 201]


async def test_a_password_is_15_characters_to_1024_bytes_without_nul(hostile: Hostile) -> None:
    for password in ("", "p", "p" * 7, "é" * 3, "p" * 1025, "é" * 513, "p" * 4096, "p" * 8 + "\0", "\0" * 8):
        refusal = await hostile.sends("/auth/register", {"email": "new@example.com", "password": password})
        assert "password" in refusal["error_description"].lower()
        await hostile.sends("/auth/password", {"current_password": PASSWORD, "new_password": password})
    await hostile.sends("/auth/register", {"email": "new@example.com", "password": "p" * (1 << 20)}, (413,))


def sized(length: int) -> str:
    """A password of this length that breaks no other rule."""
    return f"{PASSWORD}{'p' * length}"[-length:] if length < len(PASSWORD) else PASSWORD.ljust(length, "p")


async def test_only_what_may_be_a_password_is_hashed(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[bytes] = []
    real = api.keyturn.passwords.hash

    async def watched(password: bytes, *asker: Asker) -> str:
        hashed.append(password)
        return await real(password, *asker)

    monkeypatch.setattr(api.keyturn.passwords, "hash", watched)
    statuses = [
        (await api.post("/auth/register", {"email": f"user{size}@example.com", "password": sized(size)})).status_code
        for size in (1, 128, 4096, 1 << 20)
    ]
    assert statuses == [400, 201, 400, 413]
    assert hashed == [sized(128).encode()]


async def test_a_scope_that_there_is_not_is_refused(hostile: Hostile) -> None:
    for scope in ("", "THIS", "this ", "everyone", "others all", MARK, "*"):
        await hostile.sends("/auth/logout", {"scope": scope})


# -- path, query, header fields


async def test_a_broken_path_or_query_is_refused(hostile: Hostile) -> None:
    broken = (b"%", b"%2", b"%zz", b"%ff", b"%c0%af", b"%ed%a0%80", b"%00", b"a%00b")
    for path in (*GETS, *POSTS):
        for text in broken:
            for target in (
                path.encode() + b"/" + text,
                path.encode() + b"?x=" + text,
                path.encode() + b"?" + text + b"=x",
            ):
                for method in ("GET", "POST"):
                    if not target.startswith(b"/auth/verify/"):
                        await _raw(hostile, method, target, (400,))
        await _raw(hostile, "GET", path.encode() + b"?x=" + b"y" * 8192, (414,))
        if path != "/auth/verify":
            await _raw(hostile, "GET", path.encode() + b"/" + b"y" * 65_536, (414,))


async def test_odd_but_well_formed_targets_never_make_an_error_of_ours(hostile: Hostile) -> None:
    for target in (
        b"//",
        b"/../auth/me",
        b"/./healthz",
        b"/%2e%2e/%2e%2e/etc/passwd",
        b"/~",
        b"/;a=b",
        b"/auth/me;x",
    ):
        await _raw(hostile, "GET", target, (404,))
    await _raw(hostile, "GET", b"/" + MARK.encode() + b"?" + MARK.encode() + b"=1", (404,))


async def test_a_character_that_no_target_has_is_refused(hostile: Hostile) -> None:
    for path in (*GETS, *POSTS):
        if path != "/auth/verify":  # below it, a proxy appends the target that a browser sent
            for character in b'"<>\\^`{|}[] \x7f':
                for target in (b"/%c", b"?%c", b"?a=%cb"):
                    await _raw(hostile, "GET", path.encode() + target % character, (400,))


async def _raw(hostile: Hostile, method: str, target: bytes, statuses: Iterable[int]) -> None:
    """Sends a target as it stands, without a client that would encode it first."""
    path, _, query = target.partition(b"?")
    messages: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        messages.append(message)

    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "https",
        "path": httpx2.QueryParams(b"p=" + path.replace(b"&", b"").replace(b"+", b""))["p"],
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": [(b"host", b"auth.example.com"), (b"authorization", f"Bearer {hostile.bearer}".encode())],
        "client": ("127.0.0.1", 1),
        "server": ("auth.example.com", 443),
    }
    transport: Any = hostile.api.client._transport
    await transport.app(scope, receive, send)
    start = messages[0]
    answer = httpx2.Response(
        start["status"], headers=start["headers"], content=b"".join(m["body"] for m in messages[1:])
    )
    Hostile.holds(answer, statuses, f"{method} {target[:80]!r}")


async def test_broken_header_fields_are_refused(hostile: Hostile) -> None:
    for path in (*GETS, *POSTS):
        for headers in (
            [(b"Authorization", b"Bearer \xff")],
            [(b"Host", b"a.example.com"), (b"Host", b"b.example.com")],
            [(b"Host", b"exa mple.com")],
            [(b"Content-Type", b"application/json"), (b"Content-Type", b"text/plain")],
        ):
            # /auth/verify ignores the media type. A proxy passes on the client's request without its body.
            status = 401 if (path, headers[0][0]) == ("/auth/verify", b"Content-Type") else 400
            answer = await hostile.api.client.get(path, headers=headers)
            Hostile.holds(answer, (status,), f"{path} {headers}")
        answer = await hostile.api.client.get(path, headers={"X-Name": "x" * 66_000})
        Hostile.holds(answer, (431,), path)


async def test_a_field_that_is_not_read_may_hold_any_bytes(api: Api) -> None:
    bearer = authorization((await api.login())["access_token"])
    for name, value in (
        (b"X-Name", b"\xff\xfe"),
        (b"User-Agent", b"\xc0\xaf"),
        (b"Cookie", b"a=caf\xe9; b=\xed\xa0\x80"),
    ):
        for path in GETS:
            answer = await api.client.get(path, headers=cast("Any", [*bearer.items(), (name, value)]))
            assert answer.status_code == 200, (path, name)


async def test_a_bearer_field_of_any_form_is_a_refusal(api: Api) -> None:
    for value in (
        "Bearer",
        "Bearer ",
        "bearer\t",
        "Bearer a b",
        "Bearer a,b",
        "Bearer " + "x" * 60_000,
        "Bearer \xe9",
        "Bearer ..",
        " ",
    ):
        for path in ("/auth/me", "/auth/verify"):
            answer = await api.client.get(path, headers={b"Authorization": value.encode()})
            Hostile.holds(answer, (401,), f"{path} {value[:20]!r}")


async def test_no_method_finds_an_error_of_ours(hostile: Hostile) -> None:
    for path in (*GETS, *POSTS):
        for method in (*EVERY_METHOD, "TRACE", "CONNECT", "PROPFIND", "get", "X" * 8192):
            answer = await hostile.api.client.request(method, path)
            assert answer.status_code < 500, (method, path)
