"""A logout at the issuer ends the local sessions, on every instance, before the issuer is answered."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from time import monotonic, time
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import select

from app.federation.taking import name_of, remember
from app.keyturn import Keyturn, opened, running
from app.storage.tables import Event, Session, TakenToken
from tests.authorisation import new_database
from tests.conftest import CHEAP, SECRET, settings_of
from tests.service import Service
from tests.upstream.keys import Keys
from tests.upstream.minting import Subject, new_id
from tests.upstream.upstream import Upstream

FORM = "application/x-www-form-urlencoded"
LOGOUT, WEBHOOK = "/federation/acme/logout", "/federation/acme/webhook"
TYPED = {"typ": "logout+jwt"}


@dataclass
class Pair:
    """Two instances on one database, and an issuer `acme` that both trust. Beside it `beta`, another stand-in."""

    services: tuple[Service, Service]
    keyturn: Keyturn
    """The parts of a third process, which looks at the database."""
    beta: Upstream
    clients: tuple[httpx2.AsyncClient, httpx2.AsyncClient]
    environment: Mapping[str, str]

    async def exchange(self, upstream: Upstream, subject: Subject, at: int = 0) -> dict[str, Any]:
        answer = await self.exchanged(upstream.mint(subject=subject), at)
        assert answer.status_code == 200, answer.text
        tokens: dict[str, Any] = answer.json()
        return tokens

    async def exchanged(self, token: str, at: int = 0) -> httpx2.Response:
        return await self.clients[at].post("/auth/exchange", json={"subject_token": token})

    async def live(self, tokens: Mapping[str, Any]) -> bool:
        """Whether both instances accept the access token. Asserts that they agree."""
        headers = {"authorization": f"Bearer {tokens['access_token']}"}
        statuses = {(await client.get("/auth/verify", headers=headers)).status_code for client in self.clients}
        assert statuses in ({200}, {401})
        return statuses == {200}

    async def reason(self, tokens: Mapping[str, Any]) -> str:
        """Why a refresh of the session is refused."""
        answer = await self.clients[1].post("/auth/refresh", json={"refresh_token": tokens["refresh_token"]})
        assert answer.status_code == 401, answer.text
        return str(answer.json().get("reason"))

    async def log_out(self, token: str, path: str = LOGOUT, at: int = 0, **more: str) -> httpx2.Response:
        return await self.clients[at].post(path, data={"logout_token": token, **more})

    async def hook(self, fields: Mapping[str, str], body: bytes, at: int = 0, path: str = WEBHOOK) -> httpx2.Response:
        return await self.clients[at].post(path, content=body, headers=dict(fields))

    async def events(self, tokens: Mapping[str, Any]) -> list[Any]:
        query = select(Event.__table__).where(Event.session_id == UUID(tokens["session_id"])).order_by(Event.id)
        async with self.keyturn.db.look() as connection:
            return list((await connection.execute(query)).all())

    async def count(self, what: Any) -> int:
        async with self.keyturn.db.look() as connection:
            return len((await connection.execute(what)).all())


def section_of_beta(beta: Upstream) -> str:
    return beta.toml("beta", organizations=[Subject().organization_id], webhook_organizations=False)


def file_of(folder: Path, *sections: str) -> Path:
    path = folder / "federation.toml"
    path.write_text("\n".join(sections), encoding="utf-8")
    path.chmod(0o600)
    return path


@asynccontextmanager
async def a_pair(url: str, redis_url: str | None, federation: Path, logs: Path, beta: Upstream) -> AsyncIterator[Pair]:
    values = {
        "database_url": url,
        "redis_url": redis_url or "none",
        "secret": SECRET,
        "issuer": "https://auth.example.com",
        "federation_file": str(federation),
        **CHEAP,
    }
    environment = {f"KEYTURN_{name.upper()}": value for name, value in values.items()}
    with ExitStack() as stack:
        first, second = [
            stack.enter_context(await asyncio.to_thread(Service.start, environment, logs=logs)) for _ in range(2)
        ]
        settings = settings_of(url, redis_url, federation_file=str(federation))
        async with (
            httpx2.AsyncClient(base_url=first.url, timeout=30) as one,
            httpx2.AsyncClient(base_url=second.url, timeout=30) as two,
            opened(settings) as keyturn,
            running(keyturn),
        ):
            yield Pair((first, second), keyturn, beta, (one, two), environment)


@pytest.fixture(scope="module")
def beta(upstream_keys: Keys) -> Iterator[Upstream]:
    with Upstream.start(upstream_keys) as other:
        yield other


@pytest.fixture(scope="module", params=["postgres", "sqlite"])
def stores(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str | None]:
    """The URLs of a database and of a Redis: on Postgres the two instances share one."""
    url = new_database(request.param, request, tmp_path_factory.mktemp("stores"))
    return url, request.getfixturevalue("redis").url(0) if request.param == "postgres" else None


@pytest.fixture(scope="module")
async def pair(
    stores: tuple[str, str | None],
    tmp_path_factory: pytest.TempPathFactory,
    upstream_process: Upstream,
    beta: Upstream,
    logs: Path,
) -> AsyncIterator[Pair]:
    folder = tmp_path_factory.mktemp("federation")
    federation = file_of(folder, upstream_process.toml("acme"), section_of_beta(beta))
    async with a_pair(*stores, federation, logs, beta) as pair:
        yield pair


@pytest.fixture
def someone(upstream: Upstream) -> Subject:
    """A user and a session that no other test has."""
    return fresh()


def fresh(user_id: str | None = None) -> Subject:
    return Subject(user_id=user_id or new_id("usr"), session_id=new_id("ses"))


# -- logout tokens


async def test_after_a_logout_token_no_instance_accepts_the_session_and_all_others_go_on(
    pair: Pair, upstream: Upstream, someone: Subject
) -> None:
    tokens = await pair.exchange(upstream, someone)
    same_user = await pair.exchange(upstream, fresh(someone.user_id), at=1)
    stranger = await pair.exchange(upstream, fresh())
    answer = await pair.log_out(upstream.mint("logout_token", subject=someone))
    assert (answer.status_code, answer.headers["cache-control"], answer.json()) == (200, "no-store", {})
    assert not await pair.live(tokens)
    assert await pair.live(same_user)
    assert await pair.live(stranger)
    assert await pair.reason(tokens) == "upstream_logout"


async def test_the_event_names_the_issuer_as_the_actor(pair: Pair, upstream: Upstream, someone: Subject) -> None:
    tokens = await pair.exchange(upstream, someone)
    await pair.log_out(upstream.mint("logout_token", subject=someone))
    (ended,) = [event for event in await pair.events(tokens) if event.event == "session_ended"]
    assert (ended.actor, ended.actor_id, ended.reason) == ("upstream", "acme", "upstream_logout")
    assert ended.request_id
    assert ended.user_id is not None


async def test_each_local_session_of_the_upstream_session_ends(
    pair: Pair, upstream: Upstream, someone: Subject
) -> None:
    several = [await pair.exchange(upstream, someone, at=n % 2) for n in range(3)]
    assert len({tokens["session_id"] for tokens in several}) == 3
    assert (await pair.log_out(upstream.mint("logout_token", subject=someone), at=1)).status_code == 200
    assert [await pair.live(tokens) for tokens in several] == [False] * 3


async def test_a_token_without_a_session_ends_all_sessions_of_the_user(
    pair: Pair, upstream: Upstream, someone: Subject
) -> None:
    several = [await pair.exchange(upstream, fresh(someone.user_id)) for _ in range(2)]
    stranger = await pair.exchange(upstream, fresh())
    assert (await pair.log_out(upstream.mint("logout_token", subject=someone, sid=...))).status_code == 200
    assert [await pair.live(tokens) for tokens in several] == [False] * 2
    assert await pair.live(stranger)


async def test_a_token_without_a_user_ends_its_session(pair: Pair, upstream: Upstream, someone: Subject) -> None:
    tokens = await pair.exchange(upstream, someone)
    assert (await pair.log_out(upstream.mint("logout_token", subject=someone, sub=...))).status_code == 200
    assert not await pair.live(tokens)


async def test_a_session_or_user_of_the_same_id_at_another_issuer_goes_on(
    pair: Pair, upstream: Upstream, someone: Subject
) -> None:
    tokens = await pair.exchange(upstream, someone)
    there = await pair.exchange(pair.beta, someone)
    wholes: tuple[dict[str, Any], ...] = ({}, {"sid": ...})
    for whole in wholes:
        token = pair.beta.mint("logout_token", subject=someone, **whole)
        assert (await pair.log_out(token, "/federation/beta/logout")).status_code == 200
        assert not await pair.live(there)
        assert await pair.live(tokens)


async def test_a_session_that_was_ended_before_keeps_its_reason(
    pair: Pair, upstream: Upstream, someone: Subject
) -> None:
    tokens = await pair.exchange(upstream, someone)
    await pair.clients[0].post("/auth/logout", json={"refresh_token": tokens["refresh_token"]})
    assert (await pair.log_out(upstream.mint("logout_token", subject=someone))).status_code == 200
    assert await pair.reason(tokens) == "logout"


async def test_a_logout_of_which_no_session_is_here_is_a_success(pair: Pair, upstream: Upstream) -> None:
    assert (await pair.log_out(upstream.mint("logout_token", subject=fresh()))).status_code == 200


async def test_a_logout_token_counts_once_also_at_the_other_instance(
    pair: Pair, upstream: Upstream, someone: Subject
) -> None:
    """Else a stolen one of a user would end each later sign-in, for as long as the token is good."""
    tokens = await pair.exchange(upstream, someone)
    token = upstream.mint("logout_token", subject=someone, sid=..., iat=_seconds() - 3)
    assert (await pair.log_out(token)).status_code == 200
    assert not await pair.live(tokens)
    later = await pair.exchange(upstream, fresh(someone.user_id))
    for at in (0, 1):
        answer = await pair.log_out(token, at=at)
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
        assert "before" in answer.json()["error_description"]
    assert await pair.live(later)


async def test_of_many_deliveries_of_one_token_at_once_one_counts(
    pair: Pair, upstream: Upstream, someone: Subject
) -> None:
    tokens = await pair.exchange(upstream, someone)
    token = upstream.mint("logout_token", subject=someone)
    answers = await asyncio.gather(*(pair.log_out(token, at=n % 2) for n in range(20)))
    assert sorted(answer.status_code for answer in answers) == [200] + [400] * 19
    assert not await pair.live(tokens)
    assert [event.event for event in await pair.events(tokens)].count("session_ended") == 1


async def test_what_a_process_that_died_half_way_has_left_the_same_token_finishes(
    pair: Pair, upstream: Upstream, someone: Subject
) -> None:
    """It may die after each commit. After the first one, the upstream session is remembered, and nothing has ended."""
    tokens = await pair.exchange(upstream, someone)
    async with pair.keyturn.db.begin() as tx:
        now = pair.keyturn.db.clock()
        await remember(tx, name_of("session", upstream.url, someone.session_id), now, now + timedelta(hours=1))
    assert await pair.live(tokens)
    token = upstream.mint("logout_token", subject=someone)
    assert (await pair.log_out(token)).status_code == 200
    assert not await pair.live(tokens)
    assert (await pair.log_out(token)).status_code == 400


async def test_a_process_that_is_killed_before_the_sessions_end_has_not_taken_the_token(
    pair: Pair, upstream: Upstream, someone: Subject, logs: Path
) -> None:
    if not pair.keyturn.db.is_postgres:
        pytest.skip("SQLite has no lock on a row that would hold the process between the two commits")
    tokens = await pair.exchange(upstream, someone)
    token = upstream.mint("logout_token", subject=someone)
    session_id = UUID(tokens["session_id"])
    remembered = select(TakenToken).where(TakenToken.digest == name_of("session", upstream.url, someone.session_id))
    with await asyncio.to_thread(Service.start, pair.environment, logs=logs) as third:
        async with httpx2.AsyncClient(base_url=third.url, timeout=30) as client, pair.keyturn.db.begin() as tx:
            await tx.execute(select(Session.id).where(Session.id == session_id).with_for_update())
            delivery = asyncio.create_task(client.post(LOGOUT, data={"logout_token": token}))
            while not await pair.count(remembered):
                await asyncio.sleep(0.02)
            await asyncio.to_thread(third.kill)
            with pytest.raises(httpx2.TransportError):
                await delivery
    assert await pair.live(tokens)
    assert (await pair.log_out(token)).status_code == 200
    assert not await pair.live(tokens)


def _seconds() -> int:
    return int(time())


BAD: dict[str, dict[str, Any]] = {
    "a nonce": {"nonce": "n"},
    "no events": {"events": ...},
    "another event": {"events": {"http://schemas.openid.net/event/other": {}}},
    "neither session nor user": {"sid": ..., "sub": ...},
    "no jti": {"jti": ...},
    "ten minutes old": {"iat": -600, "exp": 60},
    "from the future": {"iat": 600},
    "expired": {"iat": -60, "exp": -30},
    "another issuer": {"iss": "https://evil.example"},
    "another audience": {"aud": "skc_other"},
    "no audience": {"aud": ...},
    "no issuer": {"iss": ...},
    "no iat": {"iat": ...},
    "a session that is a number": {"sid": 7},
}


@pytest.mark.parametrize("case", BAD)
async def test_a_bad_logout_token_is_refused_and_signs_nobody_out(
    pair: Pair, upstream: Upstream, someone: Subject, case: str
) -> None:
    tokens = await pair.exchange(upstream, someone)
    changes = {
        name: _seconds() + value if name in {"iat", "exp"} and value is not ... else value
        for name, value in BAD[case].items()
    }
    answer = await pair.log_out(upstream.mint("logout_token", subject=someone, **changes))
    assert_refused(answer)
    assert await pair.live(tokens)


def assert_refused(answer: httpx2.Response) -> None:
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request"), answer.text
    assert answer.headers["cache-control"] == "no-store"
    assert "www-authenticate" not in answer.headers


async def test_a_logout_token_with_another_signature_or_of_another_kind_is_refused(
    pair: Pair, upstream: Upstream, someone: Subject
) -> None:
    tokens = await pair.exchange(upstream, someone)
    good = upstream.mint("logout_token", subject=someone)
    head, claims, signature = good.split(".")
    for bad in (
        upstream.mint("logout_token", subject=someone, key=upstream.keys.rsa(9)),
        upstream.mint("logout_token", subject=someone, key=upstream.keys.rsa(9), header={"kid": upstream.signing.kid}),
        upstream.mint("logout_token", subject=someone, header={"alg": "none"}),
        upstream.mint("logout_token", subject=someone, header={"kid": ...}),
        upstream.mint("logout_token", subject=someone, header={"typ": "at+jwt"}),
        upstream.mint("logout_token", subject=someone, header={"typ": ...}),
        upstream.mint("logout_token", subject=someone, header={"crit": ["exp"]}),
        upstream.mint("access_token", subject=someone),
        upstream.mint("id_token", subject=someone),
        pair.beta.mint("logout_token", subject=someone),
        f"{head}.{claims}.",
        f"{head}.{claims}",
        f"{head}.{claims}.{signature}.{signature}",
        f"{good} ",
        "x",
        "é",
        "rt_opaque",
        "x" * 20_000,
    ):
        # Of a `kid` that nobody knows, the answer is 503 while the cool-down forbids another look at the key set.
        while (answer := await pair.log_out(bad)).status_code == 503:
            await asyncio.sleep(0.5)
        assert_refused(answer)
    assert await pair.live(tokens)
    assert_refused(await pair.log_out(good, "/federation/beta/logout"))
    assert await pair.live(tokens)


async def test_an_issuer_that_nobody_has_configured_is_not_found(pair: Pair, upstream: Upstream) -> None:
    token = upstream.mint("logout_token")
    for name in ("nobody", "ACME", "acme%20", "acme.", "a" * 100):
        answer = await pair.log_out(token, f"/federation/{name}/logout")
        assert answer.status_code == 404, name
        fields, body = upstream.webhook()
        assert (await pair.hook(fields, body, path=f"/federation/{name}/webhook")).status_code == 404, name


async def test_while_the_keys_are_away_the_answer_is_503_and_the_same_token_counts_later(
    pair: Pair, upstream: Upstream, someone: Subject
) -> None:
    tokens = await pair.exchange(upstream, someone)
    upstream.rotate()
    upstream.fault("/keys", "status", status=503)
    token = upstream.mint("logout_token", subject=someone)
    answer = await pair.log_out(token)
    assert (answer.status_code, answer.json()["error"]) == (503, "temporarily_unavailable")
    assert int(answer.headers["retry-after"]) > 0
    assert await pair.live(tokens)
    upstream.heal()
    for _ in range(60):
        answer = await pair.log_out(token)
        if answer.status_code != 503:
            break
        await asyncio.sleep(0.5)
    assert answer.status_code == 200, answer.text
    assert not await pair.live(tokens)


# -- the form


async def test_other_fields_of_the_form_are_ignored(pair: Pair, upstream: Upstream, someone: Subject) -> None:
    """Back-Channel Logout section 2.5."""
    tokens = await pair.exchange(upstream, someone)
    token = upstream.mint("logout_token", subject=someone)
    answer = await pair.log_out(token, state="x", role="admin", name="beta")
    assert answer.status_code == 200
    assert not await pair.live(tokens)


async def test_a_form_that_two_parsers_could_read_differently_is_refused(
    pair: Pair, upstream: Upstream, someone: Subject
) -> None:
    tokens = await pair.exchange(upstream, someone)
    token = upstream.mint("logout_token", subject=someone)
    good = urlencode({"logout_token": token}).encode()
    for status, media_type, body in (
        (400, FORM, good + b"&" + good),
        (400, FORM, good + b"&logout%5Ftoken=x"),
        (400, FORM, b"logout_token=x&" + good),
        (400, FORM, good + b"&a=1&a=2"),
        (400, FORM, good + b"&a=%ff"),
        (400, FORM, good + b"&a=%0"),
        (400, FORM, good + b"&a=%00"),
        (400, FORM, good + b"&a=\xc3%A9&b=\xff"),
        (400, FORM, good + b"&x=1" * 1000),
        (400, FORM, b""),
        (400, FORM, b"logout_token="),
        (400, FORM, b"LOGOUT_TOKEN=" + token.encode()),
        (400, FORM, b"logout_token"),
        (400, FORM, token.encode()),
        (413, FORM, good + b"&x=" + b"x" * 65536),
        (415, "application/json", json.dumps({"logout_token": token}).encode()),
        (415, "application/jwt", token.encode()),
        (415, "application/logout+jwt", token.encode()),
        (415, "multipart/form-data; boundary=x", good),
        (415, f"{FORM}; charset=utf-16", good),
        (415, "", good),
    ):
        answer = raw(pair.services[0], LOGOUT, body, {"Content-Type": media_type} if media_type else {})
        assert answer.status == status, (media_type, body[-80:], answer.body)
        assert answer.headers["cache-control"] == "no-store"
    gzipped = raw(pair.services[0], LOGOUT, good, {"Content-Type": FORM, "Content-Encoding": "gzip"})
    assert gzipped.status == 415
    assert await pair.live(tokens)
    assert raw(pair.services[0], LOGOUT, good, {"Content-Type": f"{FORM}; charset=UTF-8"}).status == 200
    assert not await pair.live(tokens)


async def test_a_token_in_the_query_or_by_get_does_not_count(pair: Pair, upstream: Upstream, someone: Subject) -> None:
    tokens = await pair.exchange(upstream, someone)
    token = upstream.mint("logout_token", subject=someone)
    assert (await pair.clients[0].get(LOGOUT, params={"logout_token": token})).status_code == 405
    assert (await pair.clients[0].post(LOGOUT, params={"logout_token": token})).status_code == 400
    assert await pair.live(tokens)


@dataclass
class Answered:
    status: int
    headers: dict[str, str]
    body: bytes


def raw(service: Service, path: str, body: bytes, headers: Mapping[str, str], *more: tuple[str, str]) -> Answered:
    """Sends exactly these bytes and header fields."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
    try:
        connection.putrequest("POST", path)
        for name, value in (*headers.items(), *more, ("Content-Length", str(len(body)))):
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return Answered(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        connection.close()


# -- webhooks


async def test_after_a_webhook_no_instance_accepts_the_session(
    pair: Pair, upstream: Upstream, someone: Subject
) -> None:
    upstream.subject = someone
    tokens = await pair.exchange(upstream, someone)
    same_user = await pair.exchange(upstream, fresh(someone.user_id))
    answer = await pair.hook(*upstream.webhook())
    assert (answer.status_code, answer.json()) == (201, {})
    assert not await pair.live(tokens)
    assert await pair.live(same_user)
    assert await pair.reason(tokens) == "upstream_logout"
    (ended,) = [event for event in await pair.events(tokens) if event.event == "session_ended"]
    assert (ended.actor, ended.actor_id) == ("upstream", "acme")


async def test_a_repeated_webhook_is_answered_alike_and_changes_nothing(
    pair: Pair, upstream: Upstream, someone: Subject
) -> None:
    upstream.subject = someone
    fields, body = upstream.webhook()
    assert (await pair.hook(fields, body)).status_code == 201
    events = await pair.count(select(Event.id))
    for at in (0, 1):
        assert (await pair.hook(fields, body, at=at)).status_code == 201
    assert await pair.count(select(Event.id)) == events
    said = pair.services[1].text_with('"webhook":"repeated"')
    assert '"webhook":"repeated"' in said.replace('": "', '":"')


async def test_an_unknown_event_is_taken_and_ignored(pair: Pair, upstream: Upstream, someone: Subject) -> None:
    upstream.subject = someone
    tokens = await pair.exchange(upstream, someone)
    for kind in ("user.login", "session.revoked", "USER.LOGOUT", "user.logout ", ""):
        assert (await pair.hook(*upstream.webhook(type=kind))).status_code == 201, kind
    assert await pair.live(tokens)


async def test_a_bad_webhook_is_refused_and_signs_nobody_out(pair: Pair, upstream: Upstream, someone: Subject) -> None:
    upstream.subject = someone
    tokens = await pair.exchange(upstream, someone)
    fields, body = upstream.webhook()
    other = "whsec_" + "QUJDREVGR0hJSktMTU5PUFFSU1RVVldY"
    for bad, raw_body in (
        (upstream.webhook(secret=other)[0], body),
        (fields, body + b" "),
        (fields, body.replace(b"ACTIVE", b"active")),
        (fields | {"webhook-id": "evt_other"}, body),
        upstream.webhook(timestamp=_seconds() - 301),
        upstream.webhook(timestamp=_seconds() + 330),
        upstream.webhook(type=...),
        upstream.webhook(type=["user.logout"]),
        upstream.webhook(data=...),
        upstream.webhook(data={"user_session": {}}),
        upstream.webhook(data={"user_session": {"session_id": 7}}),
        upstream.webhook(data={"user_session": {"session_id": "s" * 256}}),
        *(({k: v for k, v in fields.items() if k != missing}, body) for missing in fields if missing != "content-type"),
    ):
        assert_refused(await pair.hook(bad, raw_body))
    for name in ("webhook-id", "webhook-timestamp", "webhook-signature"):
        assert raw(pair.services[0], WEBHOOK, body, fields, (name, fields[name])).status == 400, name
    for status, media_type, text in (
        (415, "text/plain", body),
        (415, FORM, body),
        (413, "application/json", body + b" " * 65536),
        (400, "application/json", b""),
        (400, "application/json", b"[" * 100),
        (400, "application/json", body[:-1] + b',"type":"user.logout"}'),
    ):
        assert raw(pair.services[0], WEBHOOK, text, fields | {"content-type": media_type}).status == status
    assert await pair.live(tokens)
    assert (await pair.hook(fields, body)).status_code == 201, "none of them took the id"
    assert not await pair.live(tokens)


async def test_a_webhook_of_an_organization_that_is_not_allowed_is_ignored_where_the_issuer_says_so(
    pair: Pair, upstream: Upstream, someone: Subject
) -> None:
    pair.beta.subject = someone
    tokens = await pair.exchange(pair.beta, someone)
    for organization, live in (("org_other", True), (someone.organization_id, False)):
        answer = await pair.hook(*pair.beta.webhook(organization_id=organization), path="/federation/beta/webhook")
        assert answer.status_code == 201
        assert await pair.live(tokens) is live
    upstream.subject = other = fresh()
    tokens = await pair.exchange(upstream, other)
    await pair.hook(*upstream.webhook(organization_id="org_other"))
    assert not await pair.live(tokens), "acme counts them all"


# -- beside exchanges


async def test_a_token_of_a_session_that_was_logged_out_is_not_exchanged(
    pair: Pair, upstream: Upstream, someone: Subject
) -> None:
    token = upstream.mint(subject=someone)
    await pair.log_out(upstream.mint("logout_token", subject=someone))
    answer = await pair.exchanged(token, at=1)
    assert answer.status_code == 401
    assert answer.json().get("reason") == "upstream_logout"
    assert (await pair.exchanged(upstream.mint(subject=fresh(someone.user_id)))).status_code == 200


async def test_after_a_logout_of_the_user_only_tokens_of_later_sign_ins_are_exchanged(
    pair: Pair, upstream: Upstream, someone: Subject
) -> None:
    now = _seconds()
    before = upstream.mint(subject=someone, iat=now - 10, nbf=now - 10)
    await pair.log_out(upstream.mint("logout_token", subject=someone, sid=..., iat=now - 5))
    assert (await pair.exchanged(before)).status_code == 401
    assert (await pair.exchanged(upstream.mint(subject=fresh(someone.user_id)))).status_code == 200


async def test_no_exchange_slips_through_a_logout_that_comes_at_the_same_time(
    pair: Pair, upstream: Upstream, someone: Subject
) -> None:
    """The logout comes before all exchanges, after all, and at each moment between."""
    outcomes: list[set[int]] = []
    lasts = 0.0
    for n in range(32):
        subject = fresh(someone.user_id if n % 2 else None)
        tokens = [upstream.mint(subject=subject) for _ in range(4)]
        whole: dict[str, Any] = {"sid": ...} if n % 3 == 0 else {}
        logout = upstream.mint("logout_token", subject=subject, **whole)
        began = monotonic()
        exchanges = [asyncio.create_task(pair.exchanged(token, at=i % 2)) for i, token in enumerate(tokens)]
        if n:
            await asyncio.sleep(lasts * n / 30)
        else:
            await asyncio.wait(exchanges)
            lasts = monotonic() - began
        assert (await pair.log_out(logout, at=n // 2 % 2)).status_code == 200
        answers = [await exchange for exchange in exchanges]
        outcomes.append({answer.status_code for answer in answers})
        for answer in answers:
            assert answer.status_code in {200, 401}, answer.text
            if answer.status_code == 200:
                assert not await pair.live(answer.json()), f"round {n}"
            else:
                assert answer.json()["reason"] == "upstream_logout"
    assert outcomes[0] == {200}
    print(f"exchanges that came first, last and both, of {len(outcomes)} rounds:")
    print(*(outcomes.count(each) for each in ({200}, {401}, {200, 401})))


# -- from the issuer itself


async def test_the_end_of_a_session_at_the_issuer_reaches_every_instance(pair: Pair, upstream: Upstream) -> None:
    back, hook = f"{pair.services[0].url}{LOGOUT}", f"{pair.services[1].url}{WEBHOOK}"
    for sent in ({"back_channel": (back,)}, {"webhooks": (hook,)}, {"back_channel": (back,), "webhooks": (hook,)}):
        upstream.reset()
        upstream.send_to(**sent)
        login = upstream.sign_in(f"{new_id('ada')}@example.com")
        answer = await pair.exchanged(login.access_token)
        assert answer.status_code == 200, answer.text
        assert await pair.live(answer.json())
        await asyncio.to_thread(upstream.end, login.session_id)
        tried = await asyncio.to_thread(upstream.tried, sum(len(each) for each in sent.values()))
        assert {each["status"] for each in tried} <= {200, 201}, tried
        assert not await pair.live(answer.json())


async def test_nothing_of_what_issuers_send_is_in_the_log(pair: Pair, upstream: Upstream, someone: Subject) -> None:
    token = upstream.mint("logout_token", subject=someone)
    await pair.log_out(token)
    await pair.log_out(token)
    text = pair.services[0].text_with("upstream logout: taken")
    assert "upstream logout: taken" in text
    for secret in (token, token.split(".")[1], someone.user_id, someone.session_id, upstream.webhook_secret):
        assert secret not in text
