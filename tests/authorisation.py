"""The callers of each endpoint: a row for each endpoint, a column for each credential, and a request for each row.

`tests/test_authorisation.py` sends each cell's request to a real service. docs/authorisation.md shows the same table.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import insert, or_, select, text

from app.actors import SERVICE, Actor
from app.federation.issuer import Issuer, IssuerSecrets
from app.http.endpoints import Endpoint
from app.keyturn import Keyturn, opened, running
from app.main import _ENDPOINTS
from app.storage.tables import Event, Identity, Key, Policy, Session, UpstreamSession, User, uuid7
from app.storage.tables import Issuer as IssuerRow
from tests.conftest import CHEAP, NEW_PASSWORD, PASSWORD, SECRET, settings_of, sync
from tests.cookies import set_cookies
from tests.servers import Postgres
from tests.service import Service
from tests.upstream.keys import Keys
from tests.upstream.minting import Subject
from tests.upstream.upstream import Upstream

ISSUER = "https://auth.example.com"

ENDPOINTS: dict[str, Endpoint[Keyturn]] = {f"{each.method} {each.path}": each for each in _ENDPOINTS}

COLUMNS = {
    "none": "no credential",
    "other": "a user, on what belongs to another user",
    "user": "a user, on what is the user's own",
    "admin": "an administrator",
    "ended": "an administrator whose session has ended",
    "stale": "an administrator who signed in an hour ago",
    "cookie": "an administrator's cookies, without an origin",
    "origin": "an administrator's cookies, from an allowed origin",
    "disabled": "an administrator who was disabled",
    "demoted": "an administrator who was made a user",
}

ERRORS: Mapping[str, tuple[int, str]] = {
    "400": (400, "invalid_request"),
    "401": (401, "invalid_token"),
    "401 over": (401, "invalid_token"),
    "401 refused": (401, "invalid_grant"),
    "401 fresh": (401, "insufficient_user_authentication"),
    "403": (403, "access_denied"),
    "403 origin": (403, "cross_site"),
    "404": (404, "not_found"),
}
"""The cells in which the request is refused: status and error."""

WORDS = {
    "401": "there is no credential",
    "401 over": "the session is over; the answer says why",
    "401 refused": "the same, where a refresh token is exchanged",
    "401 fresh": "a fresh sign-in is needed (RFC 9470)",
    "403": "the user is no administrator",
    "403 origin": "cookies count only from a page of an allowed origin",
    "404": "as if there were no such thing",
    "400": "there is no credential that counts, and the body has none either",
}


def row(cells: str) -> dict[str, str]:
    """The cells of a row, in the order of the columns. "ok" is the endpoint's own status."""
    given = [cell.strip() for cell in cells.split("|")]
    assert len(given) == len(COLUMNS), cells
    return dict(zip(COLUMNS, given, strict=True))


#                   none         | other  | user | admin | ended      | stale    | cookie     | origin | disabled   | demoted
ANYONE = row(      "ok           | ok     | ok   | ok    | ok         | ok       | ok         | ok     | ok         | ok")  # fmt: skip
ADMIN_READS = row( "401          | 403    | 403  | ok    | 401 over   | 401 fresh| ok         | ok     | 401 over   | 403")  # fmt: skip
ADMIN_ACTS = row(  "401          | 403    | 403  | ok    | 401 over   | 401 fresh| 403 origin | ok     | 401 over   | 403")  # fmt: skip
USER_READS = row(  "401          | ok     | ok   | ok    | 401 over   | ok       | ok         | ok     | 401 over   | ok")  # fmt: skip
USER_ACTS = row(   "401          | ok     | ok   | ok    | 401 over   | ok       | 403 origin | ok     | 401 over   | ok")  # fmt: skip
FRESH_ACTS = row(  "401          | ok     | ok   | ok    | 401 over   | 401 fresh| 403 origin | ok     | 401 over   | ok")  # fmt: skip
OWN_FRESH = row(   "401          | 404    | ok   | ok    | 401 over   | 401 fresh| 403 origin | ok     | 401 over   | ok")  # fmt: skip
OWN_READS = row(   "401          | 404    | ok   | ok    | 401 over   | ok       | ok         | ok     | 401 over   | ok")  # fmt: skip
OWN_ACTS = row(    "401          | 404    | ok   | ok    | 401 over   | ok       | 403 origin | ok     | 401 over   | ok")  # fmt: skip
REFRESHES = row(   "400          | ok     | ok   | ok    | 401 refused| ok       | 403 origin | ok     | 401 refused| ok")  # fmt: skip
SIGNS_IN = row(    "ok           | ok     | ok   | ok    | ok         | ok       | 403 origin | ok     | 401 refused| ok")  # fmt: skip
SIGNED = row(      "400          | 400    | 400  | 400   | 400        | 400      | 400        | 400    | 400        | 400")  # fmt: skip
LOGS_OUT = row(    "401          | ok     | ok   | ok    | ok         | ok       | 403 origin | ok     | ok         | ok")  # fmt: skip
OPERATORS = row(   "404          | 404    | 404  | 404   | 404        | 404      | 404        | 404    | 404        | 404")  # fmt: skip

ROWS: dict[str, Mapping[str, str]] = {
    "POST /auth/register": ANYONE,
    "POST /auth/login": SIGNS_IN,
    "POST /auth/exchange": SIGNS_IN,
    "GET /auth/identities": USER_READS,
    "POST /auth/identities": FRESH_ACTS,
    "DELETE /auth/identities/{identity_id}": OWN_FRESH,
    "POST /auth/refresh": REFRESHES,
    "POST /auth/reauthenticate": REFRESHES,
    "POST /auth/logout": LOGS_OUT,
    "GET /auth/verify": USER_READS,
    "GET /auth/me": USER_READS,
    "POST /auth/password": USER_ACTS,
    "GET /auth/sessions": USER_READS,
    "GET /auth/sessions/{session_id}": OWN_READS,
    "PATCH /auth/sessions/{session_id}": OWN_ACTS,
    "DELETE /auth/sessions/{session_id}": OWN_ACTS,
    "GET /auth/sessions/{session_id}/events": OWN_READS,
    "GET /admin/users": ADMIN_READS,
    "POST /admin/users": ADMIN_ACTS,
    "GET /admin/users/{user_id}": ADMIN_READS,
    "DELETE /admin/users/{user_id}": ADMIN_ACTS,
    "POST /admin/users/{user_id}/disable": ADMIN_ACTS,
    "POST /admin/users/{user_id}/enable": ADMIN_ACTS,
    "POST /admin/users/{user_id}/password": ADMIN_ACTS,
    "PUT /admin/users/{user_id}/role": ADMIN_ACTS,
    "PUT /admin/users/{user_id}/claims": ADMIN_ACTS,
    "PUT /admin/users/{user_id}/email-verified": ADMIN_ACTS,
    "GET /admin/users/{user_id}/identities": ADMIN_READS,
    "DELETE /admin/users/{user_id}/identities/{identity_id}": ADMIN_ACTS,
    "GET /admin/sessions": ADMIN_READS,
    "POST /admin/sessions/end": ADMIN_ACTS,
    "GET /admin/sessions/{session_id}": ADMIN_READS,
    "DELETE /admin/sessions/{session_id}": ADMIN_ACTS,
    "GET /admin/keys": ADMIN_READS,
    "POST /admin/keys": ADMIN_ACTS,
    "POST /admin/keys/rotate": ADMIN_ACTS,
    "POST /admin/keys/{kid}/retire": ADMIN_ACTS,
    "POST /admin/sign-everyone-out": ADMIN_ACTS,
    "GET /admin/policies": ADMIN_READS,
    "PUT /admin/policies/{scope}": ADMIN_ACTS,
    "GET /admin/federation": ADMIN_READS,
    "GET /admin/federation/{name}": ADMIN_READS,
    "PUT /admin/federation/{name}": ADMIN_ACTS,
    "DELETE /admin/federation/{name}": ADMIN_ACTS,
    "POST /admin/federation/{name}/check": ADMIN_ACTS,
    "GET /admin/federation/{name}/sessions": ADMIN_READS,
    "GET /admin/federation/{name}/sessions/{session}": ADMIN_READS,
    "POST /admin/federation/{name}/sessions/{session}/revoke": ADMIN_ACTS,
    "POST /admin/federation/{name}/sessions/revoke": ADMIN_ACTS,
    "GET /admin/upstream-revocations": ADMIN_READS,
    "POST /admin/upstream-revocations/{session_id}/replay": ADMIN_ACTS,
    "GET /admin/events": ADMIN_READS,
    "GET /admin/stats": ADMIN_READS,
    "GET /admin/users/{user_id}/why": ADMIN_READS,
    "GET /admin/sessions/{session_id}/why": ADMIN_READS,
    "POST /federation/{name}/logout": SIGNED,
    "POST /federation/{name}/webhook": SIGNED,
    "GET /.well-known/jwks.json": ANYONE,
    "GET /healthz": ANYONE,
    "GET /readyz": ANYONE,
    "GET /metrics": OPERATORS,
}


def table() -> str:
    """The table for the documentation: the endpoints that are served."""
    lines = [f"| endpoint | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, endpoint in ENDPOINTS.items():
        cells = (str(endpoint.status) if cell == "ok" else cell for cell in ROWS[name].values())
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def legend() -> str:
    """The meaning of columns and of refusals, for the documentation."""
    lines = ["| column | the caller |", "|---|---|"]
    lines += [f"| {name} | {described} |" for name, described in COLUMNS.items()]
    lines += ["", "| cell | refused, because |", "|---|---|"]
    lines += [f"| {cell} | {described} |" for cell, described in WORDS.items()]
    return "\n".join([*lines, ""])


# -- the requests


@dataclass(eq=False)
class Caller:
    """Somebody who sends the request of a row."""

    column: str
    email: str
    user_id: UUID
    session_id: UUID
    headers: list[tuple[str, str]] = field(repr=False)
    refresh_token: str | None = field(repr=False)

    @property
    def by_cookie(self) -> bool:
        return self.column in {"cookie", "origin"}


class World:
    """A service, and the parts of a further process on its database, which put callers into their states."""

    def __init__(self, keyturn: Keyturn, client: httpx2.AsyncClient, database_url: str, upstream: Upstream) -> None:
        self.keyturn = keyturn
        self.client = client
        self.database_url = database_url
        self.upstream = upstream
        """The only issuer that the service trusts: its name is `acme`."""

    async def a_user(self, role: str = "user") -> tuple[str, UUID]:
        email = f"{uuid7().hex}@example.com"
        user = await self.keyturn.users.create(email, PASSWORD, role, by=SERVICE)
        return email, user.id

    async def signed_in(self, email: str, mode: str = "bearer") -> httpx2.Response:
        body = {"email": email, "password": PASSWORD, "mode": mode}
        answer = await self.client.post("/auth/login", json=body, headers={"Origin": ISSUER})
        assert answer.status_code == 200, answer.text
        return answer

    async def caller(self, column: str) -> Caller:
        email, user_id = await self.a_user("user" if column in {"none", "other", "user"} else "admin")
        answer = await self.signed_in(email, "cookie" if column in {"cookie", "origin"} else "bearer")
        tokens = answer.json()
        headers = []
        if "access_token" not in tokens:
            headers = [("Cookie", "; ".join(f"{each.name}={each.value}" for each in set_cookies(answer)))]
            headers += [("Origin", ISSUER)] if column == "origin" else []
        elif column != "none":
            headers = [("Authorization", f"Bearer {tokens['access_token']}")]
        session_id = UUID(tokens["session_id"])
        match column:
            case "ended":
                await self.keyturn.ending.end({session_id}, "revoked_by_admin", by=SERVICE)
            case "stale":
                await self.an_hour_passes(session_id)
            case "disabled":
                await self.keyturn.users.disable(user_id, by=SERVICE)
            case "demoted":
                await self.keyturn.users.set_role(user_id, "user", by=SERVICE)
        return Caller(column, email, user_id, session_id, headers, tokens.get("refresh_token"))

    async def an_hour_passes(self, session_id: UUID) -> None:
        """Makes a sign-in older."""
        async with self.keyturn.db.begin() as tx:
            signed_in = await tx.scalar(select(Session.auth_time).where(Session.id == session_id))
            assert signed_in is not None
            await tx.execute(
                Session.__table__.update()  # type: ignore[attr-defined]  # a table
                .where(Session.id == session_id)
                .values(auth_time=signed_in - timedelta(hours=1))
            )

    async def send(
        self, name: str, caller: Caller, *more: tuple[str, str], method: str | None = None
    ) -> httpx2.Response:
        """Sends the request of a row. `more` are further header fields."""
        path, body = await SAMPLES[name](self, caller)
        headers = [*caller.headers, *more]
        return await self.client.request(method or name.partition(" ")[0], path, json=body, headers=headers)

    async def state(self, *ids: UUID) -> list[Any]:
        """All rows about these users and sessions, and all keys, policies and issuers.

        A refused request leaves them as they are.
        """
        asked = [
            select(User.__table__).where(User.id.in_(ids)).order_by(User.id),
            select(Session.__table__).where(or_(Session.user_id.in_(ids), Session.id.in_(ids))).order_by(Session.id),
            select(Event.__table__).where(or_(Event.user_id.in_(ids), Event.session_id.in_(ids))).order_by(Event.id),
            select(Identity.__table__).where(Identity.user_id.in_(ids)).order_by(Identity.id),
            select(Key.__table__).order_by(Key.kid),
            select(Policy.__table__).order_by(Policy.scope),
            select(IssuerRow.__table__).order_by(IssuerRow.name),
            select(UpstreamSession.__table__).where(UpstreamSession.session_id.in_(ids)),
        ]
        async with self.keyturn.db.look(hot_path=False) as connection:
            rows = [(await connection.execute(query)).all() for query in asked]
            return [*rows, await connection.scalar(text("SELECT count(*) FROM users"))]


def new_database(kind: str, request: pytest.FixtureRequest, folder: Path) -> str:
    """The URL of a new database for the tests of a module."""
    if kind == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), folder / "keyturn.db")
        return f"sqlite+aiosqlite:///{folder / 'keyturn.db'}"
    postgres: Postgres = request.getfixturevalue("postgres")
    name = f"module_{secrets.token_hex(6)}"
    sync(postgres.create_database(name, template=request.getfixturevalue("template")))
    return postgres.url(name)


@asynccontextmanager
async def a_world(url: str, logs: Path, **settings: str) -> AsyncIterator[World]:
    """A service on a database, which trusts one issuer. `settings` are further ones of the service."""
    folder = logs / f"upstream-{secrets.token_hex(4)}"
    folder.mkdir()
    with await asyncio.to_thread(Upstream.start, Keys(folder)) as upstream:
        issuers = folder / "issuers.toml"
        issuers.write_text(upstream.toml(), encoding="utf-8")
        issuers.chmod(0o600)
        values = {"database_url": url, "redis_url": "none", "secret": SECRET, "issuer": ISSUER}
        more = {"registration": "true", "federation_file": str(issuers)}
        environment = {f"KEYTURN_{name.upper()}": value for name, value in (values | more | CHEAP | settings).items()}
        with await asyncio.to_thread(Service.start, environment, logs=logs) as service:
            async with (
                httpx2.AsyncClient(base_url=service.url, timeout=30) as client,
                opened(settings_of(url, None, **more)) as keyturn,
                running(keyturn),
            ):
                world = World(keyturn, client, url, upstream)
                await world.a_user("admin")  # one more, so that no caller is the last
                yield world


USES_UP = {
    "POST /auth/login",  # from the same device, it replaces the session
    "POST /auth/exchange",  # likewise
    "POST /auth/refresh",
    "POST /auth/reauthenticate",
    "POST /auth/logout",
    "POST /auth/password",
    "POST /admin/sign-everyone-out",
}
"""The requests after which their caller is another than before."""


Sample = Callable[[World, Caller], Awaitable[tuple[str, Any]]]
SAMPLES: dict[str, Sample] = {}


def sample(name: str) -> Callable[[Sample], Sample]:
    def add(made: Sample) -> Sample:
        SAMPLES[name] = made
        return made

    return add


def plain(path: str, body: Any = None) -> Sample:
    async def made(_world: World, _caller: Caller) -> tuple[str, Any]:
        return path, body

    return made


def on_a_user(path: str, body: Any = None) -> Sample:
    """A request about a new user, who is nobody's own."""

    async def made(world: World, _caller: Caller) -> tuple[str, Any]:
        _, user_id = await world.a_user()
        return path.format(user_id=user_id), body

    return made


def on_a_session(path: str, body: Any = None, *, own: bool) -> Sample:
    """A request about another session of the caller, or, by an administrator or a stranger, about somebody else's."""

    async def made(world: World, caller: Caller) -> tuple[str, Any]:
        if own and caller.column not in {"other", "disabled"}:
            email = caller.email
        else:
            email, _ = await world.a_user()
        session_id = (await world.signed_in(email)).json()["session_id"]
        return path.format(session_id=session_id), body

    return made


for _name in (
    "GET /auth/verify",
    "GET /auth/me",
    "POST /auth/logout",
    "GET /auth/sessions",
    "GET /auth/identities",
    "GET /admin/users",
    "GET /admin/sessions",
    "GET /admin/keys",
    "GET /admin/policies",
    "GET /admin/federation",
    "GET /admin/upstream-revocations",
    "GET /admin/events",
    "GET /admin/stats",
    "GET /.well-known/jwks.json",
    "GET /healthz",
    "GET /readyz",
    "GET /metrics",
):
    SAMPLES[_name] = plain(_name.partition(" ")[2])
for _name, _body in {
    "GET /admin/users/{user_id}": None,
    "DELETE /admin/users/{user_id}": None,
    "POST /admin/users/{user_id}/disable": None,
    "POST /admin/users/{user_id}/enable": None,
    "POST /admin/users/{user_id}/password": None,
    "PUT /admin/users/{user_id}/role": {"role": "editor"},
    "PUT /admin/users/{user_id}/claims": {"claims": {"org": "acme"}},
    "PUT /admin/users/{user_id}/email-verified": {"email_verified": True},
    "GET /admin/users/{user_id}/identities": None,
    "GET /admin/users/{user_id}/why": None,
}.items():
    SAMPLES[_name] = on_a_user(_name.partition(" ")[2], _body)
for _name, _body in {
    "GET /auth/sessions/{session_id}": None,
    "PATCH /auth/sessions/{session_id}": {"device_name": "telephone"},
    "DELETE /auth/sessions/{session_id}": None,
    "GET /auth/sessions/{session_id}/events": None,
    "GET /admin/sessions/{session_id}": None,
    "GET /admin/sessions/{session_id}/why": None,
    "DELETE /admin/sessions/{session_id}": None,
}.items():
    SAMPLES[_name] = on_a_session(_name.partition(" ")[2], _body, own="/auth/" in _name)
SAMPLES["PUT /admin/policies/{scope}"] = plain("/admin/policies/global", {"session_limit": 1000})


def on_an_issuer(name: str) -> Sample:
    """A request about an issuer of the table. It is away: nothing listens on the port of its URL."""

    async def made(world: World, _caller: Caller) -> tuple[str, Any]:
        await world.keyturn.issuers.put(name, Issuer(**issuer_members(name)), IssuerSecrets(), by=SERVICE)
        return f"/admin/federation/{name}", None

    return made


def issuer_members(name: str) -> dict[str, Any]:
    return {
        "preset": "scalekit",
        "issuer": f"https://127.0.0.1:9/{name}",
        "client_id": "skc_1",
        "private_addresses": True,
    }


SAMPLES["GET /admin/federation/{name}"] = on_an_issuer("looked-at")
SAMPLES["DELETE /admin/federation/{name}"] = on_an_issuer("removed")
SAMPLES["POST /admin/federation/{name}/check"] = plain("/admin/federation/acme/check", {"token": "x"})
SAMPLES["PUT /admin/federation/{name}"] = plain(
    "/admin/federation/put", {"preset": "scalekit", "issuer": "https://put.invalid", "client_id": "skc_1"}
)


@sample("GET /admin/federation/{name}/sessions")
async def list_upstream_sessions(world: World, _caller: Caller) -> tuple[str, Any]:
    login = await asyncio.to_thread(world.upstream.sign_in)
    return f"/admin/federation/acme/sessions?user={login.user_id}", None


@sample("GET /admin/federation/{name}/sessions/{session}")
async def get_upstream_session(world: World, _caller: Caller) -> tuple[str, Any]:
    login = await asyncio.to_thread(world.upstream.sign_in)
    return f"/admin/federation/acme/sessions/{login.session_id}", None


@sample("POST /admin/federation/{name}/sessions/{session}/revoke")
async def revoke_upstream_session(world: World, _caller: Caller) -> tuple[str, Any]:
    login = await asyncio.to_thread(world.upstream.sign_in)
    return f"/admin/federation/acme/sessions/{login.session_id}/revoke", None


@sample("POST /admin/federation/{name}/sessions/revoke")
async def revoke_upstream_sessions(world: World, _caller: Caller) -> tuple[str, Any]:
    login = await asyncio.to_thread(world.upstream.sign_in)
    return "/admin/federation/acme/sessions/revoke", {"user": login.user_id}


@sample("POST /admin/upstream-revocations/{session_id}/replay")
async def replay_upstream_revocation(world: World, _caller: Caller) -> tuple[str, Any]:
    session_id = uuid7()
    async with world.keyturn.db.begin() as tx:
        now = (await tx.execute(select(world.keyturn.db.now()))).scalar_one()
        moments = dict.fromkeys(("created_at", "ordered_at", "settled_at"), now)
        what = {"issuer_name": "acme", "upstream_id": "ses_1", "outcome": "given_up"}
        await tx.execute(insert(UpstreamSession).values(session_id=session_id, **moments, **what))
    return f"/admin/upstream-revocations/{session_id}/replay", None


@sample("POST /auth/register")
async def register(_world: World, _caller: Caller) -> tuple[str, Any]:
    return "/auth/register", {"email": f"{uuid7().hex}@example.com", "password": PASSWORD}


@sample("POST /admin/users")
async def create_user(_world: World, _caller: Caller) -> tuple[str, Any]:
    return "/admin/users", {"email": f"{uuid7().hex}@example.com"}


@sample("POST /auth/login")
async def login(_world: World, caller: Caller) -> tuple[str, Any]:
    mode = "cookie" if caller.by_cookie else "bearer"
    return "/auth/login", {"email": caller.email, "password": PASSWORD, "mode": mode}


async def an_identity(world: World, user_id: UUID) -> tuple[Subject, UUID]:
    """An identity that is linked to a user, and who it is at the issuer."""
    subject = world.upstream.other(secrets.randbelow(10**9))
    by = Actor("user", str(user_id))
    linked = await world.keyturn.exchange.link(world.upstream.mint(subject=subject), None, user_id, by=by)
    return subject, linked.id


@sample("POST /auth/exchange")
async def exchange(world: World, caller: Caller) -> tuple[str, Any]:
    subject, _ = await (an_identity_of_a_disabled if caller.column == "disabled" else an_identity)(
        world, caller.user_id
    )
    mode = "cookie" if caller.by_cookie else "bearer"
    return "/auth/exchange", {"subject_token": world.upstream.mint(subject=subject), "mode": mode}


async def an_identity_of_a_disabled(world: World, user_id: UUID) -> tuple[Subject, UUID]:
    await world.keyturn.users.enable(user_id, by=SERVICE)
    made = await an_identity(world, user_id)
    await world.keyturn.users.disable(user_id, by=SERVICE)
    return made


@sample("POST /auth/identities")
async def link_identity(world: World, _caller: Caller) -> tuple[str, Any]:
    subject = world.upstream.other(secrets.randbelow(10**9))
    return "/auth/identities", {"subject_token": world.upstream.mint(subject=subject)}


@sample("DELETE /auth/identities/{identity_id}")
async def unlink_identity(world: World, caller: Caller) -> tuple[str, Any]:
    user_id = (await world.a_user())[1] if caller.column in {"other", "disabled"} else caller.user_id
    return f"/auth/identities/{(await an_identity(world, user_id))[1]}", None


@sample("DELETE /admin/users/{user_id}/identities/{identity_id}")
async def unlink_user_identity(world: World, _caller: Caller) -> tuple[str, Any]:
    _, user_id = await world.a_user()
    return f"/admin/users/{user_id}/identities/{(await an_identity(world, user_id))[1]}", None


@sample("POST /auth/refresh")
async def refresh(_world: World, caller: Caller) -> tuple[str, Any]:
    without = caller.column == "none" or caller.by_cookie
    return "/auth/refresh", None if without else {"refresh_token": caller.refresh_token}


@sample("POST /auth/reauthenticate")
async def reauthenticate(_world: World, caller: Caller) -> tuple[str, Any]:
    without = caller.column == "none" or caller.by_cookie
    body = {"password": PASSWORD} | ({} if without else {"refresh_token": caller.refresh_token})
    return "/auth/reauthenticate", body


@sample("POST /auth/password")
async def password(_world: World, _caller: Caller) -> tuple[str, Any]:
    return "/auth/password", {"current_password": PASSWORD, "new_password": NEW_PASSWORD}


@sample("POST /admin/sessions/end")
async def end_sessions(world: World, _caller: Caller) -> tuple[str, Any]:
    email, user_id = await world.a_user()
    await world.signed_in(email)
    return "/admin/sessions/end", {"user": str(user_id)}


# Without a logout token or a signature: whoever else sends it, no credential of a user counts in its place.
SAMPLES["POST /federation/{name}/logout"] = plain("/federation/nobody/logout")
SAMPLES["POST /federation/{name}/webhook"] = plain("/federation/nobody/webhook")
SAMPLES["POST /admin/keys"] = plain("/admin/keys", {"use": "access"})
SAMPLES["POST /admin/keys/rotate"] = plain("/admin/keys/rotate", {"use": "cookie"})
SAMPLES["POST /admin/sign-everyone-out"] = plain("/admin/sign-everyone-out")


@sample("POST /admin/keys/{kid}/retire")
async def retire_key(world: World, _caller: Caller) -> tuple[str, Any]:
    made = await world.keyturn.key_changes.generate("access", None, None, by=SERVICE)
    return f"/admin/keys/{made.kid}/retire", None
