"""The adapter of Scalekit's API, against the stand-in: sessions are read, listed and revoked."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import SecretStr

from app.errors import InvalidRequest, NotFound, TemporarilyUnavailable
from app.federation.fetching import Fetching
from app.federation.issuer import Configured, Issuer, IssuerSecrets
from app.federation.scalekit import Scalekit
from app.federation.scalekit_session import page_in, session_in
from app.outgoing.sending import Sending
from tests.upstream.upstream import Upstream


@pytest.fixture
def scalekit() -> Scalekit:
    return Scalekit(Fetching(Sending()))


def token_requests(upstream: Upstream) -> int:
    return len(upstream.requests("/oauth/token"))


# -- the verbs


async def test_a_session_is_read_with_its_status_in_lower_case(scalekit: Scalekit, upstream: Upstream) -> None:
    login = upstream.sign_in(session={"absolute_expires_at": 3600})
    session = await scalekit.get_session(upstream.configured(), login.session_id)
    assert (session.id, session.user, session.status) == (login.session_id, login.user_id, "active")
    assert session.organization == login.organization_id
    assert session.absolute_expires_at is not None
    assert abs(session.absolute_expires_at - datetime.now(UTC) - timedelta(hours=1)) < timedelta(minutes=5)
    assert (session.device, session.address, session.region) == ("desktop, Linux, Firefox", "192.0.2.7", "GB")
    assert not session.over


@pytest.mark.parametrize("how", ["expired", "revoked", "logout"])
async def test_a_session_that_ended_is_over(scalekit: Scalekit, upstream: Upstream, how: str) -> None:
    login = upstream.sign_in()
    upstream.end(login.session_id, how)
    session = await scalekit.get_session(upstream.configured(), login.session_id)
    assert (session.status, session.over) == (how, True)
    assert session.ended_at is not None


async def test_an_unknown_session_is_not_found(scalekit: Scalekit, upstream: Upstream) -> None:
    with pytest.raises(NotFound):
        await scalekit.get_session(upstream.configured(), "ses_999")


async def test_the_sessions_of_a_user_come_in_pages_and_by_filters(scalekit: Scalekit, upstream: Upstream) -> None:
    logins = [upstream.sign_in() for _ in range(5)]
    of, user = upstream.configured(), logins[0].user_id
    upstream.end(logins[0].session_id, "logout")
    upstream.end(logins[1].session_id, "revoked")
    upstream.sign_in("grace@example.com")
    seen: list[str] = []
    page_token = None
    while True:
        page = await scalekit.list_sessions(of, user, page_size=2, page_token=page_token)
        assert len(page.sessions) <= 2
        assert page.total == 5
        seen += [session.id for session in page.sessions]
        page_token = page.next_page
        if page_token is None:
            break
    assert sorted(seen) == sorted(login.session_id for login in logins)

    async def ids(**filters: Any) -> set[str]:
        return {session.id for session in (await scalekit.list_sessions(of, user, **filters)).sessions}

    assert await ids(statuses=["logout"]) == {logins[0].session_id}
    assert await ids(statuses=["logout", "revoked"]) == {login.session_id for login in logins[:2]}
    assert await ids(created_after=datetime.now(UTC) + timedelta(hours=1)) == set()
    assert await ids(created_before=datetime.now(UTC) - timedelta(hours=1)) == set()
    assert len(await ids(created_after=datetime.now(UTC) - timedelta(hours=1))) == 5
    with pytest.raises(NotFound):
        await scalekit.list_sessions(of, "usr_999")


@pytest.mark.parametrize("answer", ["done", "conflict", "not_found"])
async def test_a_revocation_may_be_repeated_whatever_the_answer_about_an_ended_session_is(
    scalekit: Scalekit, upstream: Upstream, answer: str
) -> None:
    upstream.settings(ended_again=answer)
    login = upstream.sign_in()
    of = upstream.configured()
    assert await scalekit.revoke_session(of, login.session_id) == "revoked"
    assert upstream.status(login.session_id) == "revoked"
    assert await scalekit.revoke_session(of, login.session_id) == ("revoked" if answer == "done" else "gone")
    assert await scalekit.revoke_session(of, "ses_999") == "gone"


async def test_a_refusal_to_revoke_a_live_session_is_no_success(scalekit: Scalekit, upstream: Upstream) -> None:
    login = upstream.sign_in()
    upstream.fault(f"/api/v1/sessions/{login.session_id}/revoke", "answer", status=400, body='{"code": 9}')
    with pytest.raises(InvalidRequest):
        await scalekit.revoke_session(upstream.configured(), login.session_id)
    assert upstream.status(login.session_id) == "active"


async def test_a_page_of_a_proxy_about_an_unknown_path_is_no_success(scalekit: Scalekit, upstream: Upstream) -> None:
    login = upstream.sign_in()
    upstream.fault("/api/v1", "answer", status=404, body="<html>nothing here</html>")
    with pytest.raises(TemporarilyUnavailable):
        await scalekit.revoke_session(upstream.configured(), login.session_id)
    with pytest.raises(TemporarilyUnavailable):
        await scalekit.get_session(upstream.configured(), login.session_id)


async def test_all_sessions_of_a_user_are_revoked_and_no_others(scalekit: Scalekit, upstream: Upstream) -> None:
    logins = [upstream.sign_in() for _ in range(3)]
    other = upstream.sign_in("grace@example.com")
    of = upstream.configured()
    assert await scalekit.revoke_sessions_of(of, logins[0].user_id) == 3
    assert [upstream.status(login.session_id) for login in logins] == ["revoked"] * 3
    assert upstream.status(other.session_id) == "active"
    assert await scalekit.revoke_sessions_of(of, logins[0].user_id) == 0
    with pytest.raises(NotFound):
        await scalekit.revoke_sessions_of(of, "usr_999")


@pytest.mark.parametrize("strange", ["ses_1/../../users", "ses_1?x=1", "ses_1#", "ses_1%2Frevoke", "sés_1", "a b"])
async def test_an_id_names_one_segment_of_the_path_whatever_it_spells(
    scalekit: Scalekit, upstream: Upstream, strange: str
) -> None:
    with pytest.raises((NotFound, InvalidRequest)):
        await scalekit.get_session(upstream.configured(), strange)
    (request,) = upstream.requests("/api")
    assert request["path"].startswith("/api/v1/sessions/")
    assert request["path"].count("/") == 4


@pytest.mark.parametrize("impossible", ["", ".", "..", "x" * 256])
async def test_an_id_that_nothing_can_have_is_asked_of_nobody(
    scalekit: Scalekit, upstream: Upstream, impossible: str
) -> None:
    of = upstream.configured()
    with pytest.raises(NotFound):
        await scalekit.get_session(of, impossible)
    with pytest.raises(NotFound):
        await scalekit.revoke_sessions_of(of, impossible)
    assert await scalekit.revoke_session(of, impossible) == "gone"
    assert upstream.requests() == []


async def test_an_issuer_without_an_api_is_not_called(scalekit: Scalekit, upstream: Upstream) -> None:
    login = upstream.sign_in()
    without_secret = Configured(name="acme", issuer=Issuer(**upstream.members()))
    of_another_kind = upstream.configured(preset="oidc")
    for of in (without_secret, of_another_kind):
        with pytest.raises(InvalidRequest, match="no API"):
            await scalekit.revoke_session(of, login.session_id)
    assert upstream.requests() == []


# -- the token for the API


async def test_a_hundred_calls_at_once_need_one_token(scalekit: Scalekit, upstream: Upstream) -> None:
    login = upstream.sign_in()
    of = upstream.configured()
    await asyncio.gather(*(scalekit.get_session(of, login.session_id) for _ in range(100)))
    await scalekit.get_session(of, login.session_id)
    assert token_requests(upstream) == 1


async def test_a_token_that_is_refused_is_renewed_once_for_all_callers(scalekit: Scalekit, upstream: Upstream) -> None:
    login = upstream.sign_in()
    of = upstream.configured()
    await scalekit.get_session(of, login.session_id)
    upstream.call("forget_machine_tokens")
    await asyncio.gather(*(scalekit.get_session(of, login.session_id) for _ in range(20)))
    assert token_requests(upstream) == 2


async def test_a_late_refusal_of_the_old_token_leaves_the_new_one_in_force(
    scalekit: Scalekit, upstream: Upstream
) -> None:
    slow, quick, of = upstream.sign_in(), upstream.sign_in(), upstream.configured()
    await scalekit.get_session(of, quick.session_id)
    upstream.call("forget_machine_tokens")
    upstream.fault(f"/api/v1/sessions/{slow.session_id}", "slow", seconds=1, times=1)
    late = asyncio.create_task(scalekit.get_session(of, slow.session_id))
    while not upstream.requests(f"/api/v1/sessions/{slow.session_id}"):
        await asyncio.sleep(0.01)
    await scalekit.get_session(of, quick.session_id)
    await late
    assert token_requests(upstream) == 2


async def test_a_client_that_is_refused_again_with_a_new_token_gives_up(scalekit: Scalekit, upstream: Upstream) -> None:
    login = upstream.sign_in()
    upstream.fault("/api", "status", status=401)
    with pytest.raises(TemporarilyUnavailable, match="401"):
        await scalekit.get_session(upstream.configured(), login.session_id)
    assert token_requests(upstream) == 2


@pytest.mark.parametrize("expires_in", [86_399, 600, 1, 0, -1, None, 10**400, "x", True], ids=lambda n: str(n)[:9])
async def test_a_token_counts_until_shortly_before_its_end(
    scalekit: Scalekit, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, expires_in: Any
) -> None:
    now = [1000.0]
    monkeypatch.setattr("app.federation.scalekit.monotonic", lambda: now[0])
    body = {"access_token": "opaque", "token_type": "Bearer"} | (
        {} if expires_in is None else {"expires_in": expires_in}
    )
    upstream.fault("/oauth/token", "answer", status=200, body=json.dumps(body))
    upstream.fault("/api", "answer", status=200, body=json.dumps({"session_id": "ses_1", "status": "active"}))
    of = upstream.configured()
    known = {86_399: 86_339, 600: 540, 1: 0.9, 10**400: 86_340}
    life = 270 if expires_in is True else known.get(expires_in, 270)  # five minutes where it says nothing usable
    await scalekit.get_session(of, "ses_1")
    now[0] += life - 0.05
    await scalekit.get_session(of, "ses_1")
    assert token_requests(upstream) == 1
    now[0] += 0.1
    await scalekit.get_session(of, "ses_1")
    assert token_requests(upstream) == 2


async def test_the_tokens_of_issuers_that_nobody_asks_any_more_are_forgotten(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.federation.scalekit._MOST", 2)
    scalekit, login = Scalekit(Fetching(Sending())), upstream.sign_in()
    for name, needed in (("one", 1), ("two", 2), ("one", 2), ("three", 3), ("one", 3), ("two", 4)):
        await scalekit.get_session(upstream.configured(name), login.session_id)
        assert token_requests(upstream) == needed, name


async def test_another_secret_of_the_client_needs_another_token(scalekit: Scalekit, upstream: Upstream) -> None:
    login = upstream.sign_in()
    await scalekit.get_session(upstream.configured(), login.session_id)
    wrong = IssuerSecrets(client_secret=SecretStr("a wrong secret"))
    with pytest.raises(TemporarilyUnavailable, match="refuses the client's secret") as refused:
        await scalekit.get_session(upstream.configured().model_copy(update={"secrets": wrong}), login.session_id)
    assert "a wrong secret" not in repr(refused.value) + refused.value.cause
    assert "a wrong secret" not in repr(vars(scalekit))
    await scalekit.get_session(upstream.configured(), login.session_id)


@pytest.mark.parametrize(
    "body", ["[]", "{}", '{"access_token": 7}', '{"access_token": ""}', '{"access_token": "a\\r\\nX-Evil: 1"}']
)
async def test_an_answer_without_a_usable_token_is_an_outage(scalekit: Scalekit, upstream: Upstream, body: str) -> None:
    upstream.fault("/oauth/token", "answer", status=200, body=body)
    with pytest.raises(TemporarilyUnavailable):
        await scalekit.get_session(upstream.configured(), "ses_1")
    assert upstream.requests("/api") == []


@pytest.mark.parametrize("status", [403, 408, 429, 500, 503])
async def test_an_answer_without_a_verdict_is_an_outage(scalekit: Scalekit, upstream: Upstream, status: int) -> None:
    login = upstream.sign_in()
    upstream.fault("/api", "status", status=status)
    with pytest.raises(TemporarilyUnavailable, match=str(status)):
        await scalekit.revoke_session(upstream.configured(), login.session_id)


@pytest.mark.parametrize("body", ["[]", "7", "{}", '{"session_id": "ses_1"}', '{"session_id": 1, "status": "active"}'])
async def test_an_answer_that_describes_no_session_is_an_outage(
    scalekit: Scalekit, upstream: Upstream, body: str
) -> None:
    upstream.fault("/api", "answer", status=200, body=body)
    with pytest.raises(TemporarilyUnavailable):
        await scalekit.get_session(upstream.configured(), "ses_1")


# -- answers, read with suspicion


def test_a_member_of_another_type_counts_as_absent_and_long_texts_are_cut() -> None:
    session = session_in(
        {
            "session_id": "ses_1",
            "status": "ACTIVE",
            "user_id": 7,
            "organization_id": "o" * 1000,
            "created_at": "yesterday",
            "absolute_expires_at": "2026-01-01T00:00:00",
            "idle_expires_at": "2026-01-01T00:00:00.123456789+02:00",
            "logout_at": None,
            "device": {"location": [], "ip": {}},
        }
    )
    assert session is not None
    assert (session.status, session.user, session.created_at, session.absolute_expires_at) == (
        "active",
        None,
        None,
        None,
    )
    assert session.organization == "o" * 255
    assert session.idle_expires_at == datetime(2025, 12, 31, 22, 0, 0, 123456, tzinfo=UTC)
    assert (session.device, session.address, session.region, session.ended_at) == (None, None, None, None)


def test_a_word_of_a_later_release_does_not_count_as_over() -> None:
    session = session_in({"session_id": "ses_1", "status": "SUSPENDED"})
    assert session is not None
    assert not session.over


def test_a_page_without_sessions_is_an_empty_page() -> None:
    page = page_in({"total_size": True})
    assert page is not None
    assert (page.sessions, page.next_page, page.total) == ((), None, None)
    assert page_in({"sessions": {}}) is None
    assert page_in([]) is None
