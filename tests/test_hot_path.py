"""The hot path: both doors give the same answers, and a batch of refreshes loses no rotation and no answer."""

from __future__ import annotations

import asyncio
import gc
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.engine import make_url
from uvicorn.server import ServerState

from app import log
from app.actors import SERVICE
from app.errors import InvalidGrant, InvalidRequest, TemporarilyUnavailable
from app.http.answers import Answer
from app.http.doors import PLAIN_FIELDS, Doors
from app.http.edge import Edge
from app.http.origins import Origins
from app.http.protocol import KeyturnHttpProtocol
from app.http.request import Request
from app.keyturn import Keyturn, opened
from app.main import create_app
from app.sessions import rotation
from app.sessions.answers import Tokens
from app.sessions.rotation import Presented
from app.sessions.rows import Granted
from app.storage.tables import uuid7
from app.storage.tasks import TIME_LIMIT
from app.tokens.refresh_tokens import RefreshToken
from tests.conftest import a_user, settings_of, time_passes

Outcome = tuple[Granted, RefreshToken] | None
ISSUER, ELSEWHERE = "https://auth.example.com", "https://app.example.net"
"""Keyturn's own origin, and another one that the operator allows."""


# Header fields that mean something to some service, now or later. A request with one of them must not take the fast
# door.
MEANINGFUL = [
    ("DPoP", "e30.e30.x"), ("X-HTTP-Method-Override", "DELETE"), ("X-HTTP-Method", "GET"),
    ("X-Method-Override", "POST"), ("Content-Encoding", "gzip"),
    ("Content-Encoding", "identity"), ("Expect", "100-continue"), ("Expect", "x"), ("TE", "trailers"),
    ("Trailer", "Authorization"), ("Transfer-Encoding", "chunked"),
    ("Transfer-Encoding", "gzip, chunked"), ("Range", "bytes=0-1"), ("If-Match", "*"), ("If-None-Match", "*"),
    ("If-Modified-Since", "Thu, 01 Jan 2099 00:00:00 GMT"), ("If-Unmodified-Since", "Thu, 01 Jan 1970 00:00:00 GMT"),
    ("If-Range", '"x"'), ("Prefer", "return=minimal"), ("Upgrade", "h2c"), ("Upgrade", "websocket"),
    ("HTTP2-Settings", "x"), ("Sec-WebSocket-Key", "eA=="), ("X-CSRF-Token", "x"), ("X-Requested-With", "XMLHttpRequest"),
    ("Proxy-Authorization", "Basic eDp4"), ("Access-Control-Request-Method", "POST"), ("Early-Data", "1"),
    ("Client-Cert", ":eA==:"), ("X-Forwarded-Client-Cert", "Hash=x"), ("Signature", "x=:eA==:"),
    ("Content-Digest", "sha-256=:eA==:"), ("Content-Language", "de"), ("X-Auth-Subject", "x"), ("X-Auth-Role", "admin"),
    ("X-Forwarded-User", "root"), ("X-Api-Key", "x"), ("Max-Forwards", "0"), ("X-Never-Heard-Of", "x"),
]  # fmt: skip

# Header fields that browsers send. They mean something, and both doors read them by the same code.
BROWSERS = [
    ("Cookie", "a=b"), ("Cookie", "__Host-session=x; csrf=y"), ("Origin", "https://evil.example"), ("Origin", "null"),
    ("Origin", ISSUER), ("Origin", ELSEWHERE), ("Origin", ""), ("Sec-Fetch-Site", "cross-site"),
    ("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Site", "same-site"), ("Sec-Fetch-Site", "none"),
    ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document"), ("Sec-Fetch-User", "?1"),
    ("Sec-Fetch-Storage-Access", "active"), ("Sec-CH-UA", '"Chromium";v="140"'), ("Sec-CH-UA-Mobile", "?0"),
    ("Sec-CH-UA-Platform", '"Linux"'), ("Upgrade-Insecure-Requests", "1"),
]  # fmt: skip

# The key of a retry: in both spellings, with the escapes of a quoted string, and malformed.
RETRIES = [
    ("Idempotency-Key", "8e03978e-40d5-43dd-bc93-6894a57f9324"), ("Idempotency-Key", '"8e03978e-40d5-43dd-bc93-6894a57f9324"'),
    ("Idempotency-Key", '"with \\"quotes\\", a comma"'), ("Idempotency-Key", '"8e03978e"'), ("Idempotency-Key", ""),
    ("Idempotency-Key", "x" * 256), ("Idempotency-Key", "16 characters and ÿ"), ("Idempotency-Key", "two joined, into one"),
]  # fmt: skip


@dataclass
class EachDoor:
    """One application with three clients, which must all get the same answers.

    1. The first reaches it as it is served.
    2. The second passes through FastAPI's door alone.
    3. The third passes through a fast door that takes requests with any header fields.
    """

    keyturn: Keyturn
    doors: Doors[Keyturn]
    clients: list[httpx2.AsyncClient]
    capsys: pytest.CaptureFixture[str]

    async def _ask(self, client: httpx2.AsyncClient, method: str, path: str, more: dict[str, Any]) -> object:
        headers = [*more.get("headers", ()), ("X-Request-Id", "the-same")]
        answer = await client.request(method, path, **{**more, "headers": headers})
        log.flush()
        lines = [json.loads(line) for line in self.capsys.readouterr().err.splitlines()]
        for line in lines:
            assert line.pop("timestamp")
            line.pop("duration_ms", None)
        return compared(answer), lines

    async def differences(self, requests: Iterable[tuple[str, str, dict[str, Any]]]) -> list[object]:
        """Returns the requests for which the doors differ in the answer or in the lines of the log."""
        found: list[object] = []
        for request in requests:
            for _ in range(3):  # repeated, because a lifetime in an answer may lose a second between two clients
                answers = [await self._ask(client, *request) for client in self.clients]
                if answers == answers[:1] * len(answers):
                    break
            else:
                found.append((request, answers))
        return found

    async def requests(self, *fields: tuple[str, str]) -> list[tuple[str, str, dict[str, Any]]]:
        """Requests with these fields to each endpoint with a fast door. A repeated request gets the same answer."""
        proof = await a_user(self.keyturn, "each@door.example")
        live, over, gone = [await self.keyturn.starting.start(proof, by=SERVICE) for _ in range(3)]
        await self.keyturn.ending.logout((), [over.refresh_token], "this", by=SERVICE)
        used = await self.keyturn.rotation.refresh(live.refresh_token, by=SERVICE)
        bearer = ("Authorization", f"Bearer {used.access_token}")
        junk = ("Cookie", f"{self.keyturn.cookies.access}=x; {self.keyturn.cookies.refresh}=y")
        return [
            ("POST", "/auth/refresh", {"json": {"refresh_token": live.refresh_token}, "headers": fields}),
            ("POST", "/auth/refresh", {"json": {"refresh_token": over.refresh_token}, "headers": fields}),
            ("POST", "/auth/refresh", {"json": {"x": 1}, "headers": fields}),
            ("GET", "/auth/verify", {"headers": [bearer, *fields]}),
            ("POST", "/auth/verify", {"content": b"x", "headers": [bearer, *fields]}),
            ("HEAD", "/auth/verify", {"headers": [("Authorization", f"Bearer {over.access_token}"), *fields]}),
            ("GET", "/auth/verify", {"headers": fields}),
            ("POST", "/auth/logout", {"json": {"refresh_token": over.refresh_token}, "headers": fields}),
            ("POST", "/auth/logout", {"json": {"refresh_token": gone.refresh_token}, "headers": fields}),
            ("POST", "/auth/logout", {"headers": [("Authorization", f"Bearer {over.access_token}"), *fields]}),
            ("POST", "/auth/login", {"json": {"email": "a@b.example"}, "headers": fields}),
            (
                "POST",
                "/auth/login",
                {"json": {"email": "a@b.example", "password": "x", "mode": "cookie"}, "headers": fields},
            ),
            ("POST", "/auth/refresh", {"headers": [junk, *fields]}),
            ("POST", "/auth/logout", {"headers": [junk, *fields]}),
            ("GET", "/auth/verify?refresh=true", {"headers": [junk, *fields]}),
        ]


@pytest.fixture
async def each_door(database_url: str, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[EachDoor]:
    app = create_app(settings_of(database_url, None, allowed_origins=ELSEWHERE, issuer=ISSUER))
    doors: Doors[Keyturn] = app.doors
    origins: Origins = app.origins
    behind = partial(FastAPI.__call__, app)

    def without_a_list(request: Request) -> Awaitable[Answer] | None:
        answer = doors._fast.get((request.method, request.path))
        return None if answer is None or request.query else answer(doors.parts, request)

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(app.router.lifespan_context(app))
        clients = [
            await stack.enter_async_context(
                httpx2.AsyncClient(transport=httpx2.ASGITransport(front), base_url="https://x")
            )
            for front in (app, Edge(behind, origins=origins), Edge(behind, fast=without_a_list, origins=origins))
        ]
        log.flush()
        capsys.readouterr()
        yield EachDoor(app.state.keyturn, doors, clients, capsys)


@pytest.mark.deep
@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_each_header_field_has_the_same_answer_and_line_in_the_log_through_both_doors(
    each_door: EachDoor,
) -> None:
    framing = {b"content-length", b"content-type", b"authorization", b"x-request-id"}
    plain = [(name.decode(), "ü") for name in sorted(PLAIN_FIELDS - framing)]
    requests = await each_door.requests()
    for method, path, more in list(requests):
        for field in (
            *MEANINGFUL,
            *BROWSERS,
            *RETRIES,
            *plain,
            ("Content-Type", "text/plain"),
            ("Authorization", "Basic eDp4"),
        ):
            wired = (field[0], field[1].encode())
            requests.append((method, path, {**more, "headers": [*more["headers"], wired]}))
    assert await each_door.differences(requests) == []


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_only_requests_whose_fields_are_all_plain_take_the_fast_door(each_door: EachDoor) -> None:
    def taken(*fields: tuple[str, str]) -> bool:
        request = Request()
        headers = [(name.lower().encode(), value.encode()) for name, value in fields]
        scope = {"method": "GET", "path": "/auth/verify", "query_string": b"", "headers": headers}
        request.read_head(scope)
        answering = each_door.doors.fast(request)
        if answering is not None:
            answering.close()  # type: ignore[attr-defined]  # a coroutine that must not run
        return answering is not None

    assert all(taken((name.decode(), "x")) for name in PLAIN_FIELDS)
    assert all(taken(field) for field in (*BROWSERS, *RETRIES))
    assert [field for field in MEANINGFUL if taken(field) or taken(("Host", "x"), field)] == []


def _refuse_an_origin(doors: Doors[Keyturn], patch: pytest.MonkeyPatch) -> None:
    """Plants a bug: the fast door alone looks at Origin."""
    verify = doors._fast["GET", "/auth/verify"]

    async def refusing(parts: Keyturn, request: Request) -> Answer:
        if b"origin" in request.fields:
            raise InvalidRequest("origin")
        return await verify(parts, request)

    patch.setitem(doors._fast, ("GET", "/auth/verify"), refusing)


def _forget_the_session(doors: Doors[Keyturn], patch: pytest.MonkeyPatch) -> None:
    """Plants a bug: the fast door alone leaves the session out of the log."""
    refresh = doors._fast["POST", "/auth/refresh"]

    async def forgetting(parts: Keyturn, request: Request) -> Answer:
        answer = await refresh(parts, request)
        request.session_id = None
        return answer

    patch.setitem(doors._fast, ("POST", "/auth/refresh"), forgetting)


def _override_the_method(_doors: Doors[Keyturn], patch: pytest.MonkeyPatch) -> None:
    """Plants a bug: FastAPI's door alone obeys X-HTTP-Method-Override."""
    served = FastAPI.__call__

    async def overriding(app: FastAPI, scope: Any, receive: Any, send: Any) -> None:
        method = dict(scope.get("headers", ())).get(b"x-http-method-override", b"").decode()
        await served(app, {**scope, "method": method or scope["method"]}, receive, send)

    patch.setattr(FastAPI, "__call__", overriding)


def _add_a_field(doors: Doors[Keyturn], patch: pytest.MonkeyPatch) -> None:
    """Plants a bug: the fast door alone adds a field to an answer."""
    logout = doors._fast["POST", "/auth/logout"]

    async def adding(parts: Keyturn, request: Request) -> Answer:
        status, fields, body = await logout(parts, request)
        return status, [*fields, (b"x-logged-out", b"1")], body

    patch.setitem(doors._fast, ("POST", "/auth/logout"), adding)


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("plant", "field"),
    [
        (_refuse_an_origin, ("Origin", "null")),
        (_forget_the_session, ("Accept", "x")),
        (_override_the_method, ("X-HTTP-Method-Override", "DELETE")),
        (_add_a_field, ("Accept", "x")),
    ],
    ids=lambda each: getattr(each, "__name__", None),
)
async def test_a_bug_that_is_planted_in_one_door_is_found(
    each_door: EachDoor,
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[[Doors[Keyturn], pytest.MonkeyPatch], None],
    field: tuple[str, str],
) -> None:
    requests = await each_door.requests(field)
    assert await each_door.differences(requests) == []
    plant(each_door.doors, monkeypatch)
    for client in each_door.clients[1:]:  # these two hold the function that a bug may replace
        edge: Edge = client._transport.app  # type: ignore[attr-defined]  # an ASGITransport
        app = each_door.clients[0]._transport.app  # type: ignore[attr-defined]
        monkeypatch.setattr(edge, "_app", partial(FastAPI.__call__, app))
    assert await each_door.differences(requests) != []


@pytest.fixture
async def both(database_url: str) -> AsyncIterator[tuple[Keyturn, httpx2.AsyncClient, httpx2.AsyncClient]]:
    """The parts of one application, and two clients: as it is served, and through FastAPI's door alone."""
    app = create_app(settings_of(database_url, None))
    slow = Edge(partial(FastAPI.__call__, app), origins=app.origins)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="https://x") as direct,
        httpx2.AsyncClient(transport=httpx2.ASGITransport(slow), base_url="https://x") as through,
    ):
        yield app.state.keyturn, direct, through


def compared(answer: httpx2.Response) -> tuple[int, bytes, list[tuple[str, str]]]:
    """The parts of an answer that must be equal through both doors."""
    fields = [
        (name, value) for name, value in answer.headers.multi_items() if name not in {"x-request-id", "retry-after"}
    ]
    # Between two answers a second may pass.
    content = re.sub(rb'(_?expires_in":)[0-9]+', rb"\1", answer.content)
    return answer.status_code, content, fields


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_the_direct_endpoints_answer_each_request_as_fastapi_does(
    both: tuple[Keyturn, httpx2.AsyncClient, httpx2.AsyncClient],
) -> None:
    keyturn, direct, through = both
    proof = await a_user(keyturn)
    live, over, older, unused = [await keyturn.starting.start(proof, by=SERVICE) for _ in range(4)]
    await keyturn.ending.logout((), [over.refresh_token], "this", by=SERVICE)
    used = await keyturn.rotation.refresh(live.refresh_token, by=SERVICE)
    await keyturn.rotation.refresh(
        (await keyturn.rotation.refresh(older.refresh_token, by=SERVICE)).refresh_token, by=SERVICE
    )
    bearer = {"Authorization": f"Bearer {used.access_token}"}
    bodies: list[Any] = [
        {"refresh_token": live.refresh_token},  # a retry
        {"refresh_token": over.refresh_token},
        {"refresh_token": older.refresh_token},  # first a reuse, then a session that is over
        {"refresh_token": unused.refresh_token[:-1] + "_"},
        *({"refresh_token": junk} for junk in list[Any](("", "x", "x" * 1024, "x" * 1025, "ktr_" + "A" * 84, "ktr_é", 1, None, []))),
        {"refresh_token": live.refresh_token, "scope": "this"},
        {"refresh_token": live.refresh_token, "x": 1},
        {"scope": "this"}, {"scope": "x"}, {}, [], "x", 1, None, {"": ""},
    ]  # fmt: skip
    headers: list[dict[str, str]] = [
        {}, bearer, {"Authorization": f"bearer {used.access_token}"}, {"Authorization": f"Bearer  {used.access_token} "},
        {"Authorization": "Bearer "}, {"Authorization": "Bearer"}, {"Authorization": "Basic eDp4"}, {"Authorization": ""},
        {"Authorization": f"Bearer {over.access_token}"}, {"Authorization": "Bearer x.y.z"},
    ]  # fmt: skip
    requests: list[tuple[str, str, dict[str, Any]]] = [
        *(("POST", "/auth/refresh", {"json": body}) for body in bodies),
        *(
            (method, f"/auth/verify{target}", {"headers": h})
            for method in ("GET", "HEAD")
            for h in headers
            for target in ("", "?role=user", "?role=x", "?", "/", "/x?role=x", ";role=user", ";role=x/y", ";x=y")
        ),
        *((method, "/auth/verify/x", {"headers": bearer}) for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS")),
        *(("POST", "/auth/verify", {"headers": h, "content": b"x"}) for h in headers),
        *((method, "/auth/refresh", {}) for method in ("GET", "PUT", "OPTIONS", "POST")),
        *(
            ("POST", "/auth/logout", {"json": body, "headers": h})
            for body in bodies[1:]
            for h in headers
            if h != bearer
        ),
        *(("POST", "/auth/logout", {"headers": h}) for h in (bearer, *headers)),
        ("GET", "/auth/verify", {"headers": bearer}),
        ("POST", "/auth/refresh", {"content": b"{", "headers": {"Content-Type": "application/json"}}),
        ("POST", "/auth/refresh/", {"json": bodies[0]}),
    ]
    statuses: set[int] = set()
    for method, path, more in requests:
        # Each request is sent twice through each door. The first round may change something (a reuse ends its session).
        # The second round then finds the same state through both doors.
        first = [compared(await client.request(method, path, **more)) for client in (direct, through)]
        second = [compared(await client.request(method, path, **more)) for client in (through, direct)]
        assert second[0] == second[1], (method, path, more)
        assert first[0] == first[1], (method, path, more)
        statuses.add(first[0][0])
    assert statuses == {200, 204, 400, 401, 403, 404, 405}


class Recorded:
    """Records how many refreshes each statement carries."""

    def __init__(self, keyturn: Keyturn) -> None:
        self.sizes: list[int] = []
        self.begun = asyncio.Event()
        self._run = keyturn.rotation._rotations._run
        keyturn.rotation._rotations._run = self

    async def __call__(self, batch: Sequence[Presented]) -> Sequence[Outcome | Exception]:
        self.sizes.append(len(batch))
        self.begun.set()
        return await self._run(batch)


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_plain_requests_never_reach_fastapi(
    both: tuple[Keyturn, httpx2.AsyncClient, httpx2.AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    keyturn, direct, _ = both
    tokens = await keyturn.starting.start(await a_user(keyturn), by=SERVICE)
    reached: list[str] = []

    async def reach(scope: Any, _receive: Any, send: Any) -> None:
        reached.append(scope["path"])
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    monkeypatch.setattr(direct._transport.app._front, "_app", reach)  # type: ignore[attr-defined]  # an ASGITransport
    bearer = {"Authorization": f"Bearer {tokens.access_token}"}
    answers = [
        await direct.post("/auth/refresh", json={"refresh_token": tokens.refresh_token}),
        await direct.post("/auth/refresh", json={"refresh_token": "junk"}),
        await direct.get("/auth/verify", headers=bearer),
        await direct.get("/auth/verify?role=user", headers=bearer),
        await direct.head("/auth/verify", headers=bearer),
        await direct.post("/auth/verify/orders?role=admin", content=b"{", headers=bearer),
        await direct.post("/auth/logout", json={"refresh_token": tokens.refresh_token}),
        await direct.post("/auth/logout", headers=bearer),
    ]
    assert [answer.status_code for answer in answers] == [200, 401, 200, 200, 200, 200, 204, 204]
    assert not reached
    assert (await direct.get("/auth/verify?role=user&refresh=true", headers=bearer)).status_code == 401
    assert not reached
    await direct.get("/auth/me?role=user", headers=bearer)
    assert reached == ["/auth/me"]


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
async def test_sign_ins_that_wait_for_connections_keep_no_refresh_waiting(keyturn: Keyturn) -> None:
    tokens = await keyturn.starting.start(await a_user(keyturn), by=SERVICE)
    async with AsyncExitStack() as all_others:
        for _ in range(keyturn.db._engine.pool.size()):  # type: ignore[attr-defined]  # a QueuePool
            await all_others.enter_async_context(keyturn.db.begin())
        logins = [asyncio.ensure_future(keyturn.sign_in.authenticate("ada@example.com", "x")) for _ in range(20)]
        for _ in range(20):
            used, tokens = tokens, await asyncio.wait_for(keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE), 1)
            # A retry, which needs a further statement that reads.
            retried = await asyncio.wait_for(keyturn.rotation.refresh(used.refresh_token, by=SERVICE), 1)
            assert retried.refresh_token == tokens.refresh_token
        refused = await asyncio.gather(*logins, return_exceptions=True)
    assert {type(each) for each in refused} == {TemporarilyUnavailable}


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
async def test_a_batch_that_met_another_transaction_is_run_again_one_by_one(
    keyturn: Keyturn, monkeypatch: pytest.MonkeyPatch
) -> None:
    proof = await a_user(keyturn)
    tokens = [await keyturn.starting.start(proof, by=SERVICE) for _ in range(8)]
    monkeypatch.setattr(
        rotation,
        "_POSTGRES",
        # Fails a statement for several sessions, as a deadlock or a stricter isolation level of the server would.
        rotation._POSTGRES.replace(
            "WITH batch AS (", "WITH met AS (SELECT serialization_failure(cardinality($1::uuid[]))), batch AS (", 1
        ).replace("FROM hit WHERE", "FROM hit, met WHERE", 1),
    )
    async with keyturn.db.begin() as tx:
        await tx.execute(
            text(
                "CREATE FUNCTION serialization_failure(size int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN"
                " IF size > 1 THEN RAISE SQLSTATE '40001'; END IF; RETURN size; END $$"
            )
        )
    refreshed = await asyncio.gather(*(keyturn.rotation.refresh(each.refresh_token, by=SERVICE) for each in tokens))
    assert len({each.refresh_token for each in refreshed}) == 8


async def test_what_comes_together_goes_to_the_database_in_one_statement(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    tokens = [await keyturn.starting.start(proof, by=SERVICE) for _ in range(300)]
    recorded = Recorded(keyturn)
    await asyncio.gather(*(keyturn.rotation.refresh(t.refresh_token, by=SERVICE) for t in tokens))
    assert recorded.sizes == [256, 44]


async def test_every_outcome_in_one_batch(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    idle = await keyturn.starting.start(proof, by=SERVICE)
    await time_passes(keyturn, keyturn.settings.refresh_token_lifetime)
    rotates, retries, reuses, over, twice, gone = [await keyturn.starting.start(proof, by=SERVICE) for _ in range(6)]
    retried = await keyturn.rotation.refresh(retries.refresh_token, by=SERVICE)
    reused = await keyturn.rotation.refresh(
        (await keyturn.rotation.refresh(reuses.refresh_token, by=SERVICE)).refresh_token, by=SERVICE
    )
    await keyturn.ending.logout((), [over.refresh_token], "this", by=SERVICE)
    presented = keyturn.keys.verify_refresh_token(gone.refresh_token)
    unknown = RefreshToken(presented.key, uuid7().bytes, presented.generation, presented.secret).text
    recorded = Recorded(keyturn)
    texts = [t.refresh_token for t in (rotates, retries, reuses, reused, over, idle, twice, twice)]
    answers = await asyncio.gather(
        *(keyturn.rotation.refresh(t, by=SERVICE) for t in (*texts, unknown)), return_exceptions=True
    )
    assert recorded.sizes == [9]  # and no refresh was sent again by itself

    def pair(answer: Tokens | BaseException) -> tuple[str, str]:
        assert isinstance(answer, Tokens), answer
        return answer.access_token, answer.refresh_token

    assert pair(answers[1]) == pair(retried)
    assert pair(answers[6]) == pair(answers[7])
    assert len({pair(answers[i]) for i in (0, 1, 3, 6)}) == 4
    refusals = [answers[i] for i in (2, 4, 5, 8)]
    assert all(isinstance(answer, InvalidGrant) for answer in refusals)
    assert [getattr(answer, "reason", "?") for answer in refusals] == [
        "reuse_detected", "logout", "idle_timeout", None
    ]  # fmt: skip
    for tokens in (rotates, retries, twice):
        assert (await keyturn.reading.find(tokens.session_id)).generation == 1


async def test_clients_that_leave_in_mid_batch_take_nobodys_answer_with_them(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    tokens = [await keyturn.starting.start(proof, by=SERVICE) for _ in range(100)]
    recorded = Recorded(keyturn)
    refreshes = [asyncio.create_task(keyturn.rotation.refresh(t.refresh_token, by=SERVICE)) for t in tokens]
    await recorded.begun.wait()
    for refresh in refreshes[::2]:
        refresh.cancel()
    answers = await asyncio.gather(*refreshes, return_exceptions=True)
    assert recorded.sizes == [100]
    assert all(isinstance(answer, asyncio.CancelledError) for answer in answers[::2])
    # A client that left comes back with the same token, and gets the answer that it missed.
    again = await asyncio.gather(*(keyturn.rotation.refresh(t.refresh_token, by=SERVICE) for t in tokens))
    assert [a.refresh_token for a in answers[1::2] if isinstance(a, Tokens)] == [a.refresh_token for a in again[1::2]]
    for t in tokens:
        assert (await keyturn.reading.find(t.session_id)).generation == 1


class Proxy:
    """A TCP proxy in front of Postgres, which can hold Postgres's answers back or break the connection instead."""

    def __init__(self) -> None:
        self.through = asyncio.Event()
        self.through.set()
        self.cuts = False
        self.held = asyncio.Event()

    @asynccontextmanager
    async def open(self, database_url: str) -> AsyncIterator[str]:
        """Runs the proxy, and gives the URL of the database through it."""
        url = make_url(database_url)
        tasks: set[asyncio.Task[None]] = set()

        async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(65536):
                if not self.through.is_set():
                    self.held.set()
                    if self.cuts:
                        return
                    await self.through.wait()
                writer.write(data)

        async def questions(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(65536):
                writer.write(data)

        async def both_ways(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there, back = await asyncio.open_connection(url.host, url.port)
            halves = [asyncio.create_task(answers(there, writer)), asyncio.create_task(questions(reader, back))]
            tasks.update(halves)
            await asyncio.wait(halves, return_when=asyncio.FIRST_COMPLETED)
            for half in halves:
                half.cancel()
            for end in (writer, back):
                with suppress(OSError):
                    end.transport.abort()

        server = await asyncio.start_server(both_ways, "127.0.0.1", 0)
        try:
            port = server.sockets[0].getsockname()[1]
            yield url.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
        finally:
            server.close()
            self.through.set()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
@pytest.mark.parametrize("cut", [True, False], ids=["cut off", "no answer in time"])
async def test_a_statement_that_postgres_committed_and_whose_answer_never_came_is_answered_to_the_retry(
    keyturn: Keyturn, database_url: str, cut: bool
) -> None:
    proof = await a_user(keyturn)
    tokens = [await keyturn.starting.start(proof, by=SERVICE) for _ in range(20)]
    proxy = Proxy()
    async with proxy.open(database_url) as url, opened(settings_of(url, None)) as far:
        await far.keys.load()
        warm = await keyturn.starting.start(proof, by=SERVICE)
        await far.rotation.refresh(warm.refresh_token, by=SERVICE)  # prepares the statement on the connection
        proxy.cuts = cut
        proxy.through.clear()
        began = asyncio.get_running_loop().time()
        answers = await asyncio.gather(
            *(far.rotation.refresh(t.refresh_token, by=SERVICE) for t in tokens), return_exceptions=True
        )
        took = asyncio.get_running_loop().time() - began
        assert proxy.held.is_set()
        assert all(isinstance(answer, TemporarilyUnavailable) for answer in answers)
        if not cut:
            assert took < TIME_LIMIT.total_seconds() + 2
        assert [(await keyturn.reading.find(t.session_id)).generation for t in tokens] == [1] * 20  # committed
        proxy.through.set()
        first = await asyncio.gather(*(keyturn.rotation.refresh(t.refresh_token, by=SERVICE) for t in tokens))
        second = await asyncio.gather(*(far.rotation.refresh(t.refresh_token, by=SERVICE) for t in tokens))
    assert [(a.access_token, a.refresh_token) for a in first] == [(a.access_token, a.refresh_token) for a in second]
    assert [(await keyturn.reading.find(t.session_id)).generation for t in tokens] == [1] * 20


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_what_a_request_made_goes_with_it_and_is_no_work_for_the_garbage_collector(database_url: str) -> None:
    app = create_app(settings_of(database_url, None))
    config = uvicorn.Config(app, http=KeyturnHttpProtocol, log_config=None, lifespan="off")
    config.load()

    def protocol() -> KeyturnHttpProtocol:
        return KeyturnHttpProtocol(config=config, server_state=ServerState(), app_state={})

    loop = asyncio.get_running_loop()
    async with app.router.lifespan_context(app), await loop.create_server(protocol, "127.0.0.1", 0) as server:
        keyturn: Keyturn = app.state.keyturn
        live, ended = [await keyturn.starting.start(await a_user(keyturn, f"{name}@x.y"), by=SERVICE) for name in "ab"]
        await keyturn.ending.logout((), [ended.refresh_token], "this", by=SERVICE)
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as client:

            async def each_once() -> list[int]:
                refreshes = [live.refresh_token, ended.refresh_token, live.refresh_token[:-1] + "~", "junk"]
                answers = [await client.post("/auth/refresh", json={"refresh_token": token}) for token in refreshes]
                for token in (live.access_token, ended.access_token, "junk"):
                    bearer = {"Authorization": f"Bearer {token}"}
                    answers.append(await client.get("/auth/verify", headers=bearer))
                answers.append(await client.post("/auth/logout", json={"refresh_token": ended.refresh_token}))
                return [answer.status_code for answer in answers]

            await each_once()  # makes all objects that are made once and kept
            gc.collect()
            gc.disable()
            try:
                assert await each_once() == [200, 401, 401, 401, 200, 401, 401, 204]
                gc.set_debug(gc.DEBUG_SAVEALL)
                gc.collect()
                circular = [type(each).__name__ for each in gc.garbage]
            finally:
                gc.set_debug(0)
                gc.garbage.clear()
                gc.enable()
    ours = {
        "RequestResponseCycle",
        "_Outgoing",
        "Request",
        "FastRequest",
        "InvalidGrant",
        "InvalidToken",
        "SessionRow",
        "Granted",
        "RefreshToken",
        "AccessToken",
    }
    assert not ours & set(circular)
