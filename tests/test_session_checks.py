"""Before a refresh, an issuer that wants it is asked whether its session lives. Nobody else notices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest

from app.actors import SERVICE, Actor
from app.errors import TemporarilyUnavailable, UnacceptableToken
from app.federation.external_token import ExternalToken
from app.federation.remembered import Remembered
from app.federation.session_checks import SessionChecks
from app.keyturn import Keyturn
from app.sessions.answers import Tokens
from tests.conftest import Opener, time_passes
from tests.service import Service
from tests.test_revoking import environment
from tests.upstream.upstream import Login, Upstream
from tests.without_exchange import NAME, a_user_id, federated, file_of_issuers, without_tasks

BY = Actor("anonymous", address="192.0.2.1")


@dataclass
class Place:
    """A service, and the parts on the same database with which a test makes sessions."""

    client: httpx2.AsyncClient
    keyturn: Keyturn
    user_id: UUID
    service: Service

    async def session(self, login: Login | None, **more: Any) -> Tokens:
        return await federated(self.keyturn, self.user_id, login.session_id if login else None, **more)

    async def refresh(self, refresh_token: str) -> httpx2.Response:
        return await self.client.post("/auth/refresh", json={"refresh_token": refresh_token})


Placed = Callable[..., AbstractAsyncContextManager[Place]]


@pytest.fixture
def placed(database_url: str, tmp_path: Path, upstream: Upstream, logs: Path) -> Placed:
    @asynccontextmanager
    async def opener(**changes: Any) -> AsyncIterator[Place]:
        issuers = file_of_issuers(tmp_path, upstream, revoke_sessions=False, **changes)
        with await asyncio.to_thread(Service.start, environment(database_url, issuers), logs=logs) as service:
            async with (
                httpx2.AsyncClient(base_url=service.url, trust_env=False, timeout=30) as client,
                without_tasks(database_url, federation_file=issuers) as keyturn,
            ):
                yield Place(client, keyturn, await a_user_id(keyturn), service)

    return opener


def questions(upstream: Upstream) -> int:
    return len(upstream.requests("/api/v1/sessions/"))


async def test_without_the_setting_a_refresh_asks_nobody(placed: Placed, upstream: Upstream) -> None:
    login = upstream.sign_in()
    async with placed() as place:
        tokens = await place.session(login)
        await asyncio.to_thread(upstream.end, login.session_id)
        assert (await place.refresh(tokens.refresh_token)).status_code == 200
        assert upstream.requests() == []


@pytest.mark.parametrize("check", ["open", "closed"])
async def test_a_refresh_goes_on_while_the_upstream_session_lives_and_asks_once_in_the_time_set(
    placed: Placed, upstream: Upstream, check: str
) -> None:
    login = upstream.sign_in()
    async with placed(check_sessions=check) as place:
        tokens = (await place.session(login)).refresh_token
        for _ in range(10):
            answer = await place.refresh(tokens)
            assert answer.status_code == 200, answer.text
            tokens = answer.json()["refresh_token"]
        assert questions(upstream) == 1


@pytest.mark.parametrize("check", ["open", "closed"])
async def test_an_upstream_session_that_ended_ends_the_local_one_at_the_next_refresh(
    placed: Placed, upstream: Upstream, check: str
) -> None:
    async with placed(check_sessions=check) as place:
        for how in ("expired", "revoked", "logout"):
            login = await asyncio.to_thread(upstream.sign_in)
            tokens = await place.session(login)
            await asyncio.to_thread(upstream.end, login.session_id, how)
            for _ in range(2):
                answer = await place.refresh(tokens.refresh_token)
                assert (answer.status_code, answer.json().get("reason")) == (401, "upstream_logout"), how
            bearer = {"authorization": f"Bearer {tokens.access_token}"}
            assert (await place.client.get("/auth/verify", headers=bearer)).status_code == 401
            (event,) = await place.keyturn.events.list(limit=9, event="session_ended", session_id=tokens.session_id)
            assert (event["actor"], event["actor_id"], event["reason"]) == ("upstream", NAME, "upstream_logout")


async def test_a_session_that_the_issuer_does_not_know_is_over_and_a_page_of_a_proxy_says_nothing(
    placed: Placed, upstream: Upstream
) -> None:
    unknown, login = replace(upstream.sign_in(), session_id="ses_404"), upstream.sign_in()
    async with placed(check_sessions="open") as place:
        tokens = await place.session(unknown)
        assert (await place.refresh(tokens.refresh_token)).json()["reason"] == "upstream_logout"
        await asyncio.to_thread(upstream.fault, "/api", "answer", status=404, body="<html>no such page</html>")
        tokens = await place.session(login)
        assert (await place.refresh(tokens.refresh_token)).status_code == 200


# -- the issuer away


async def test_while_the_issuer_is_away_open_goes_on(placed: Placed, upstream: Upstream) -> None:
    login = upstream.sign_in()
    async with placed(check_sessions="open") as place:
        tokens = (await place.session(login)).refresh_token
        await asyncio.to_thread(upstream.refuse)
        for _ in range(5):
            answer = await place.refresh(tokens)
            assert answer.status_code == 200, answer.text
            tokens = answer.json()["refresh_token"]


async def test_while_the_issuer_is_away_closed_refuses_before_the_rotation_and_a_client_that_obeys_goes_on_later(
    placed: Placed, upstream: Upstream
) -> None:
    login = upstream.sign_in()
    async with placed(check_sessions="closed") as place:
        tokens = await place.session(login)
        await asyncio.to_thread(upstream.refuse)
        for _ in range(4):
            answer = await place.refresh(tokens.refresh_token)
            assert answer.status_code == 503
            assert answer.json()["error"] == "temporarily_unavailable"
            assert 1 <= int(answer.headers["retry-after"]) <= 10
        # The outage lasts longer than the retry window.
        await time_passes(place.keyturn, timedelta(minutes=10))
        await asyncio.to_thread(upstream.heal)
        async with asyncio.timeout(60):
            while (answer := await place.refresh(tokens.refresh_token)).status_code == 503:
                await asyncio.sleep(0.2)
        assert answer.status_code == 200, answer.text
        assert (await place.keyturn.reading.find(tokens.session_id)).over() is None


async def test_a_retry_is_answered_while_a_closed_issuer_is_away(placed: Placed, upstream: Upstream) -> None:
    """Otherwise its window would end during the outage, and the client would come back as a thief."""
    login = upstream.sign_in()
    async with placed(check_sessions="closed", check_every=1) as place:
        tokens, probe = await place.session(login), (await place.session(login)).refresh_token
        first = await place.refresh(tokens.refresh_token)
        assert first.status_code == 200
        await asyncio.to_thread(upstream.refuse)
        async with asyncio.timeout(60):  # until the answer about the upstream session counts no longer
            while (answer := await place.refresh(probe)).status_code != 503:
                probe = answer.json()["refresh_token"]
                await asyncio.sleep(0.2)
        again = await place.refresh(tokens.refresh_token)
        assert again.status_code == 200
        assert again.json()["refresh_token"] == first.json()["refresh_token"]


async def test_a_reused_token_ends_its_session_also_while_a_closed_issuer_is_away(
    placed: Placed, upstream: Upstream
) -> None:
    login = upstream.sign_in()
    async with placed(check_sessions="closed") as place:
        tokens = await place.session(login)
        second = (await place.refresh(tokens.refresh_token)).json()["refresh_token"]
        assert (await place.refresh(second)).status_code == 200
        await asyncio.to_thread(upstream.refuse)
        answer = await place.refresh(tokens.refresh_token)
        assert (answer.status_code, answer.json()["reason"]) == (401, "reuse_detected")


async def test_refreshes_that_come_together_ask_once_and_wait_no_longer_than_the_bound(
    placed: Placed, upstream: Upstream
) -> None:
    """The answer takes longer than the 2 s for which a refresh waits, and less than the 4 s of a request."""
    login = upstream.sign_in()
    async with placed(check_sessions="closed", check_every=3600) as place:
        tokens = await place.session(login)
        await asyncio.to_thread(upstream.fault, "/api", "slow", seconds=2.7)
        answers = await asyncio.gather(*(place.refresh(tokens.refresh_token) for _ in range(20)))
        assert {answer.status_code for answer in answers} == {503}
        assert questions(upstream) == 1
        async with asyncio.timeout(60):
            while (answer := await place.refresh(tokens.refresh_token)).status_code == 503:
                await asyncio.sleep(0.1)
        assert answer.status_code == 200
        assert questions(upstream) == 1, "the late answer counts for the next refresh"


@pytest.mark.parametrize(("check", "status"), [("open", 200), ("closed", 503)])
async def test_an_issuer_that_never_answers_is_soon_no_longer_asked(
    placed: Placed, upstream: Upstream, check: str, status: int
) -> None:
    async with placed(check_sessions=check) as place:
        logins = [await asyncio.to_thread(upstream.sign_in) for _ in range(40)]
        sessions = [await place.session(login) for login in logins]
        await asyncio.to_thread(upstream.fault, "/api", "hang")
        first = await asyncio.gather(*(place.refresh(each.refresh_token) for each in sessions[:5]))
        await asyncio.sleep(3)  # until these five have failed by the limit of a request, 4 s after they began
        rest = await asyncio.gather(*(place.refresh(each.refresh_token) for each in sessions[5:]))
        assert {answer.status_code for answer in (*first, *rest)} == {status}
        assert questions(upstream) < 40


# -- everyone else


async def test_junk_and_tokens_of_others_never_cause_a_request(placed: Placed, upstream: Upstream) -> None:
    login, end = upstream.sign_in(), upstream.sign_in()
    async with placed(check_sessions="closed") as place:
        await asyncio.to_thread(upstream.refuse)
        tokens = await place.session(login)
        forged = tokens.refresh_token[:-1] + ("A" if tokens.refresh_token[-1] != "A" else "B")
        for junk in ("", "ktr_", "ktr_" + "x" * 84, forged, tokens.access_token):
            assert (await place.refresh(junk)).status_code in {400, 401}
        for other in (await place.session(None), await place.session(end, issuer="another")):
            assert (await place.refresh(other.refresh_token)).status_code == 200
        registered = {"email": "grace@example.com", "password": "seven lamps under a quiet roof"}
        await place.keyturn.users.create(registered["email"], registered["password"], "user", by=SERVICE)
        own = (await place.client.post("/auth/login", json=registered)).json()
        assert (await place.refresh(own["refresh_token"])).status_code == 200
        await asyncio.to_thread(upstream.heal)
        assert upstream.requests() == []


async def test_where_a_session_came_from_is_read_once(
    open_keyturn: Opener, tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_keyturn(federation_file=file_of_issuers(tmp_path, upstream, check_sessions="open")) as keyturn:
        user = await a_user_id(keyturn)
        reads: list[Sequence[UUID]] = []
        read = keyturn.session_checks._read

        async def noted(ids: Sequence[UUID]) -> Sequence[Any]:
            reads.append(ids)
            return await read(ids)

        monkeypatch.setattr(keyturn.session_checks._reads, "_run", noted)
        mine = await federated(keyturn, user, upstream.sign_in().session_id)
        others = await federated(keyturn, user, None)
        for _ in range(3):
            await keyturn.session_checks.look(mine.refresh_token, by=BY)
            await keyturn.session_checks.look(others.refresh_token, by=BY)
        assert [list(ids) for ids in reads] == [[mine.session_id], [others.session_id]]


async def test_without_an_issuer_that_checks_the_look_reads_nothing(
    open_keyturn: Opener, tmp_path: Path, upstream: Upstream
) -> None:
    """The coroutine ends at its first step: it awaits nothing, not even for junk."""
    async with open_keyturn(federation_file=file_of_issuers(tmp_path, upstream)) as keyturn:
        tokens = await federated(keyturn, await a_user_id(keyturn), "ses_1")
        for text in (tokens.refresh_token, "junk"):
            with pytest.raises(StopIteration):
                keyturn.session_checks.look(text, by=BY).send(None)


async def test_a_change_of_the_setting_counts_at_once_where_it_was_made(
    open_keyturn: Opener, upstream: Upstream
) -> None:
    login = upstream.sign_in()
    async with open_keyturn() as keyturn:
        tokens = await federated(keyturn, await a_user_id(keyturn), login.session_id)
        for check, expected in (("closed", 1), ("off", 1), ("open", 1)):
            of = upstream.configured(NAME, check_sessions=check, revoke_sessions=False)
            await keyturn.issuers.put(NAME, of.issuer, of.secrets, by=SERVICE)
            await keyturn.issuers.load()
            await keyturn.session_checks.look(tokens.refresh_token, by=BY)
            assert questions(upstream) == expected


def test_what_is_remembered_is_bounded_and_the_oldest_use_goes_first() -> None:
    remembered = Remembered[int, str | None](3)
    for n in range(3):
        remembered[n] = str(n)
    assert remembered[0] == "0"
    remembered[3] = None
    assert [n in remembered for n in range(4)] == [True, False, True, True]
    assert remembered.get(1) is None


# -- the absolute limit, for an exchange


def token_of(upstream: Upstream, session_id: str | None, **changes: Any) -> ExternalToken:
    now = datetime.now(UTC)
    return ExternalToken(
        by=upstream.configured(NAME, **changes),
        kind="access_token",
        subject="usr_1",
        digest=b"0" * 32,
        text_digest=b"0" * 32,
        issued_at=now,
        expires_at=now + timedelta(minutes=5),
        claims={},
        upstream_id=session_id,
    )


@pytest.fixture
def checks(keyturn: Keyturn) -> SessionChecks:
    return keyturn.session_checks


async def test_the_absolute_end_of_an_upstream_session_is_known_where_the_api_may_be_called(
    checks: SessionChecks, upstream: Upstream
) -> None:
    login = upstream.sign_in(session={"absolute_expires_at": 3600})
    end = await checks.absolute_end(token_of(upstream, login.session_id))
    assert end is not None
    assert abs(end - datetime.now(UTC) - timedelta(hours=1)) < timedelta(minutes=5)
    assert await checks.absolute_end(token_of(upstream, None)) is None
    assert await checks.absolute_end(token_of(upstream, login.session_id, preset="oidc")) is None
    assert await checks.absolute_end(token_of(upstream, "ses_404")) is None


async def test_an_exchange_goes_on_without_the_absolute_end_while_the_issuer_is_away(
    checks: SessionChecks, upstream: Upstream
) -> None:
    login = upstream.sign_in()
    upstream.fault("/api", "hang")
    async with asyncio.timeout(30):
        assert await checks.absolute_end(token_of(upstream, login.session_id)) is None


async def test_a_token_that_outlives_its_upstream_session_starts_nothing(
    checks: SessionChecks, upstream: Upstream
) -> None:
    login = upstream.sign_in()
    upstream.end(login.session_id)
    with pytest.raises(UnacceptableToken, match="session_over"):
        await checks.absolute_end(token_of(upstream, login.session_id))


async def test_a_session_that_is_read_for_an_exchange_is_not_asked_for_again_at_its_first_refresh(
    open_keyturn: Opener, tmp_path: Path, upstream: Upstream
) -> None:
    login = upstream.sign_in()
    async with open_keyturn(federation_file=file_of_issuers(tmp_path, upstream, check_sessions="closed")) as keyturn:
        await keyturn.session_checks.absolute_end(replace(token_of(upstream, login.session_id)))
        tokens = await federated(keyturn, await a_user_id(keyturn), login.session_id)
        await keyturn.session_checks.look(tokens.refresh_token, by=BY)
        assert questions(upstream) == 1


async def test_a_refusal_of_one_session_puts_no_other_at_risk(
    open_keyturn: Opener, tmp_path: Path, upstream: Upstream
) -> None:
    """The stand-in answers 400 for an id that has not the form of one."""
    login = upstream.sign_in()
    async with open_keyturn(federation_file=file_of_issuers(tmp_path, upstream, check_sessions="closed")) as keyturn:
        user = await a_user_id(keyturn)
        strange = await federated(keyturn, user, f"no-session-{uuid4()}")
        for _ in range(5):
            with pytest.raises(TemporarilyUnavailable):
                await keyturn.session_checks.look(strange.refresh_token, by=BY)
        tokens = await federated(keyturn, user, login.session_id)
        await keyturn.session_checks.look(tokens.refresh_token, by=BY)
