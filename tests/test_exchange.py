"""An external token becomes one local session, once, and every retry gets the same answer."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from app.actors import SERVICE, Actor
from app.errors import InvalidGrant, InvalidScope, UnacceptableToken
from app.federation.accounts import Known
from app.federation.exchange import Exchange, caller_of
from app.federation.external_token import ExternalToken
from app.federation.issuer import Kind
from app.federation.taking import name_of, remember
from app.keyturn import Keyturn
from app.storage.tables import Identity, Session, TakenToken, UpstreamSession, User
from app.tokens.refresh_tokens import issue
from tests.conftest import NEW_PASSWORD, Opener
from tests.federated import ANOTHER, BY, CALLER, count, exchanged, federated, file_of, rows, the_user, told
from tests.upstream.upstream import Upstream

LATER = timedelta(seconds=61)


async def taken_earlier(keyturn: Keyturn, by: timedelta) -> None:
    """Makes all taken tokens older."""
    async with keyturn.db.begin() as tx:
        await tx.execute(update(TakenToken).values(taken_at=keyturn.db.after(TakenToken.taken_at, -by)))


async def refused(keyturn: Keyturn, token: str, **more: Any) -> UnacceptableToken:
    with pytest.raises(UnacceptableToken) as e:
        await exchanged(keyturn, token, **more)
    return e.value


# -- the session


async def test_an_access_token_of_a_configured_issuer_begins_a_session_of_a_new_user(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path) as keyturn:
        tokens = await exchanged(keyturn, upstream.mint(), user_agent="agent/1", device_id="d1", device_name="phone")
        [session] = await rows(keyturn, Session)
        assert session.id == tokens.session_id
        assert (session.role, session.client_id, session.generation) == ("user", "first-party", 0)
        assert (session.address, session.user_agent, session.device_id) == ("192.0.2.7", "agent/1", "d1")
        assert session.auth_time is None, "an access token does not say when its user signed in"
        user = await the_user(keyturn, tokens)
        assert (user.email, user.email_verified_at, user.password_hash) == (None, None, None)
        [identity] = await rows(keyturn, Identity)
        assert (identity.issuer, identity.subject) == (upstream.url, upstream.subject.user_id)
        assert identity.user_id == user.id
        [its] = await rows(keyturn, UpstreamSession)
        assert (its.session_id, its.issuer_name, its.identity_id) == (session.id, "acme", identity.id)
        assert (its.upstream_id, its.organization) == (upstream.subject.session_id, upstream.subject.organization_id)
        assert its.due_at is None
        assert await told(keyturn, user.id) == [
            ("user_created", "upstream", "acme", None),
            ("identity_linked", "upstream", "acme", "acme"),
            ("session_started", "user", str(user.id), None),
        ]
        assert (await keyturn.reading.verify(tokens.access_token)).session_id == session.id
        refreshed = await keyturn.rotation.refresh(tokens.refresh_token, by=BY)
        assert refreshed.session_id == session.id


async def test_an_id_token_says_when_and_how_its_user_signed_in(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    moment = int(time.time()) - 200
    async with federated(open_keyturn, upstream, tmp_path) as keyturn:
        tokens = await exchanged(keyturn, upstream.mint("id_token", auth_time=moment), kind="id_token")
        [session] = await rows(keyturn, Session)
        assert session.auth_time == datetime.fromtimestamp(moment, UTC)
        assert session.amr == upstream.subject.connection_id
        assert (await keyturn.reading.verify(tokens.access_token)).claims["auth_time"] == moment


async def test_an_id_token_beside_an_access_token_adds_what_that_does_not_say_and_does_so_once(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    moment = int(time.time()) - 200
    subject = replace(upstream.other(3), permissions=("orders:write",))
    beside = upstream.mint("id_token", subject=subject, auth_time=moment)
    async with federated(
        open_keyturn, upstream, tmp_path, trust_email=True, roles={"orders:write": "editor"}
    ) as keyturn:
        tokens = await exchanged(keyturn, upstream.mint(subject=subject), id_token=beside)
        user = await the_user(keyturn, tokens)
        assert (user.email, user.role) == (subject.email, "editor")
        [session] = await rows(keyturn, Session)
        assert session.auth_time == datetime.fromtimestamp(moment, UTC)
        assert session.amr == subject.connection_id
        # The ID token may have stood in a URL since. With another access token, it proves no fresh sign-in.
        later = await exchanged(keyturn, upstream.mint(subject=subject), id_token=beside)
        [session] = await rows(keyturn, Session, id=later.session_id)
        assert (session.auth_time, session.amr) == (None, None)


async def test_a_token_of_another_kind_than_the_caller_says_is_refused_and_makes_nobody(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path) as keyturn:
        for kind, said in (("access_token", "id_token"), ("id_token", "access_token"), ("machine", None)):
            await refused(keyturn, upstream.mint(kind), kind=said)  # type: ignore[arg-type]  # a kind
        assert await count(keyturn, User) == await count(keyturn, TakenToken) == 0


async def test_a_scope_that_the_policy_does_not_have_is_refused_and_the_token_is_not_used_up(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path, settings={"scopes": "read write"}) as keyturn:
        token = upstream.mint()
        with pytest.raises(InvalidScope):
            await exchanged(keyturn, token, scope=frozenset({"root"}))
        assert (await exchanged(keyturn, token, scope=frozenset({"read"}))).scope == "read"


async def test_a_second_exchange_of_a_device_replaces_its_session(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path) as keyturn:
        first = await exchanged(keyturn, upstream.mint(), device_id="d1")
        second = await exchanged(keyturn, upstream.mint(), device_id="d1")
        reasons = {row.id: row.end_reason for row in await rows(keyturn, Session)}
        assert reasons == {first.session_id: "replaced", second.session_id: None}


async def test_the_session_never_outlives_the_upstream_one(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path) as keyturn:
        ends = datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=10)
        tokens = await exchanging(keyturn, ends).exchange(upstream.mint(), None, caller=CALLER, by=BY)
        assert tokens.session_expires_at == tokens.refresh_expires_at == ends
        [session] = await rows(keyturn, Session)
        assert session.absolute_expires_at == ends

        over = datetime.now(UTC) - timedelta(seconds=1)
        with pytest.raises(UnacceptableToken) as e:
            await exchanging(keyturn, over).exchange(upstream.mint(), None, caller=CALLER, by=BY)
        assert (e.value.cause, e.value.reason) == ("session_over", "absolute_timeout")
        far = datetime.now(UTC) + timedelta(days=3650)
        later = await exchanging(keyturn, far).exchange(upstream.mint(), None, caller=CALLER, by=BY)
        assert later.session_expires_at - later.now == timedelta(days=30), "nor the policy"


def exchanging(keyturn: Keyturn, ends: datetime | None = None, meanwhile: Any = None) -> Exchange:
    """The exchange of an instance, to which the issuer says when the upstream session ends.

    `meanwhile` runs after it has found the user, and before it starts the session.
    """

    async def absolute_end(_: Any) -> datetime | None:
        return ends

    its = keyturn.exchange
    exchange = Exchange(keyturn.db, its._external_tokens, keyturn.identities, its._sessions, absolute_end)
    user_of = exchange._accounts.user_of

    async def then_meanwhile(token: ExternalToken, *, by: Actor) -> Known:
        known = await user_of(token, by=by)
        if meanwhile is not None:
            await meanwhile()
        return known

    exchange._accounts.user_of = then_meanwhile  # type: ignore[method-assign]  # finds as before
    return exchange


async def test_a_token_whose_upstream_session_is_over_makes_no_user_and_gives_no_role(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path, roles={"boss": "editor"}) as keyturn:
        over = exchanging(keyturn, datetime.now(UTC) - timedelta(seconds=1))
        with pytest.raises(UnacceptableToken):
            await over.exchange(upstream.mint(roles=["boss"]), None, caller=CALLER, by=BY)
        assert await count(keyturn, User) == 0
        tokens = await exchanged(keyturn, upstream.mint(roles=[]))
        with pytest.raises(UnacceptableToken):
            await over.exchange(upstream.mint(roles=["boss"]), None, caller=CALLER, by=BY)
        assert (await the_user(keyturn, tokens)).role == "user"


# -- retries


async def test_the_same_caller_gets_the_same_session_and_tokens_again_within_the_retry_window(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path) as keyturn:
        token = upstream.mint()
        first = await exchanged(keyturn, token)
        for _ in range(3):
            again = await exchanged(keyturn, token)
            assert (again.session_id, again.refresh_token) == (first.session_id, first.refresh_token)
            assert again.access_token == first.access_token
        await taken_earlier(keyturn, timedelta(seconds=50))
        assert (await exchanged(keyturn, token)).refresh_token == first.refresh_token
        assert await count(keyturn, Session) == await count(keyturn, User) == 1
        await keyturn.rotation.refresh(first.refresh_token, by=BY)


async def test_another_caller_is_refused_and_changes_nothing(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path) as keyturn:
        token = upstream.mint()
        first = await exchanged(keyturn, token)
        refusal = await refused(keyturn, token, caller=ANOTHER)
        assert (refusal.cause, refusal.reason) == ("taken", None)
        assert (await exchanged(keyturn, token)).refresh_token == first.refresh_token
        assert await count(keyturn, Session) == 1


def test_each_part_of_what_a_caller_says_about_itself_tells_it_from_others() -> None:
    told_apart = [
        ("app", "k" * 16, "device", "agent"),
        ("ap", "k" * 16, "device", "agent"),
        ("app", "j" * 16, "device", "agent"),
        ("app", None, "device", "agent"),
        ("app", "k" * 16, None, "agent"),
        ("app", "k" * 16, "agent", "device"),
        ("app", "k" * 16, "device", None),
        ("app", "k" * 16, "deviceagent", ""),
    ]
    assert len({caller_of(*each) for each in told_apart}) == len(told_apart)
    assert caller_of(*told_apart[0]) == caller_of(*told_apart[0])


@pytest.mark.parametrize(("kind", "runs_out"), [("access_token", "expired"), ("id_token", "too_old")])
async def test_a_retry_is_answered_also_where_the_token_has_run_out_since_the_exchange(
    open_keyturn: Opener,
    upstream: Upstream,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: Kind,
    runs_out: str,
) -> None:
    async with federated(open_keyturn, upstream, tmp_path) as keyturn:
        token, never = (upstream.mint(kind) for _ in range(2))
        beside: dict[str, Any] = {"id_token": upstream.mint("id_token")}
        first = await exchanged(keyturn, token, **beside)
        clock = keyturn.db.clock
        for seconds in (320, 580):  # the token's life is 300 seconds, and so is the highest age
            monkeypatch.setattr(keyturn.db, "clock", lambda late=seconds: clock() + timedelta(seconds=late))
            assert (await exchanged(keyturn, token, **beside)).refresh_token == first.refresh_token
            assert (await refused(keyturn, token, caller=ANOTHER, **beside)).cause == "taken"
            assert (await refused(keyturn, never)).cause == runs_out, "no session begins by it"
        monkeypatch.setattr(keyturn.db, "clock", lambda: clock() + timedelta(seconds=620))
        assert (await refused(keyturn, token, **beside)).cause == runs_out, "no retry window is so long"
        assert await count(keyturn, Session) == 1


async def test_after_the_retry_window_the_token_is_refused(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path) as keyturn:
        token = upstream.mint()
        first = await exchanged(keyturn, token)
        await taken_earlier(keyturn, LATER)
        assert (await refused(keyturn, token)).cause == "taken"
        await keyturn.rotation.refresh(first.refresh_token, by=BY)
        assert await count(keyturn, Session) == 1


async def test_a_retry_window_of_zero_means_strict_single_use(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path, settings={"retry_window": "0"}) as keyturn:
        token = upstream.mint()
        await exchanged(keyturn, token)
        assert (await refused(keyturn, token)).cause == "taken"


async def test_once_its_refresh_token_was_used_the_token_is_refused(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path) as keyturn:
        token = upstream.mint()
        first = await exchanged(keyturn, token)
        second = await keyturn.rotation.refresh(first.refresh_token, by=BY)
        refusal = await refused(keyturn, token)
        assert (refusal.cause, refusal.reason) == ("taken", None)
        await keyturn.rotation.refresh(second.refresh_token, by=BY)


async def test_once_its_session_is_over_the_token_is_refused_with_the_reason(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path) as keyturn:
        token = upstream.mint()
        first = await exchanged(keyturn, token)
        await keyturn.ending.end({first.session_id}, "logout", by=SERVICE)
        assert (await refused(keyturn, token)).reason == "logout"
        assert (await refused(keyturn, token, caller=ANOTHER)).reason is None, "only its caller learns the reason"
        assert await count(keyturn, Session) == 1


async def test_a_retry_after_a_rotation_of_the_refresh_key_gets_the_same_tokens(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path) as keyturn:
        token = upstream.mint()
        first = await exchanged(keyturn, token)
        await keyturn.key_changes.rotate("refresh", by=SERVICE)
        await keyturn.keys.load()
        assert (await exchanged(keyturn, token)).refresh_token == first.refresh_token


async def test_a_second_signature_of_the_same_content_makes_no_second_token(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    upstream.publish(upstream.keys.ec())
    async with federated(open_keyturn, upstream, tmp_path, algorithms=["ES256"]) as keyturn:
        claims = upstream.claims()
        one, two = upstream.signing.token(claims), upstream.signing.token(claims)
        assert one != two
        assert one.rpartition(".")[0] == two.rpartition(".")[0]
        first = await exchanged(keyturn, one)
        assert (await refused(keyturn, two)).cause == "taken"
        assert (await exchanged(keyturn, one)).refresh_token == first.refresh_token


async def test_what_the_database_holds_gives_nobody_the_first_tokens(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path) as keyturn:
        token = upstream.mint()
        tokens = await exchanged(keyturn, token)
        for table in (TakenToken, Session, Identity, UpstreamSession, User):
            for row in await rows(keyturn, table):
                shown = repr(tuple(row))
                for secret in (token, *token.split("."), tokens.refresh_token, tokens.access_token):
                    assert secret not in shown, table


async def test_not_even_the_refresh_key_gives_the_first_tokens_to_one_who_has_the_database(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path) as keyturn:
        tokens = await exchanged(keyturn, upstream.mint())
        stored = [
            row for table in (TakenToken, Session, Identity, UpstreamSession) for row in await rows(keyturn, table)
        ]
        values = {value if isinstance(value, bytes) else str(value).encode() for row in stored for value in row}
        [its] = await rows(keyturn, TakenToken)
        assert its.digest in values
        key = keyturn.keys.signing_refresh
        for one, two in itertools.product({*values, CALLER, b""}, repeat=2):  # a caller can be guessed
            assert issue(key, tokens.session_id, one + two).text != tokens.refresh_token


# -- many at once


async def test_a_hundred_exchanges_of_one_token_at_once_give_one_user_one_session_and_equal_answers(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    path = file_of(upstream, tmp_path)
    async with open_keyturn(federation_file=path) as one, open_keyturn(federation_file=path) as other:
        for turn in range(3):
            token = upstream.mint(subject=upstream.other(turn))
            answers = await asyncio.gather(*(exchanged(each, token) for each in (one, other) for _ in range(50)))
            assert len({(a.session_id, a.access_token, a.refresh_token, a.refresh_expires_at) for a in answers}) == 1
            assert await count(one, User) == await count(one, Session) == turn + 1
            assert await count(one, TakenToken) == await count(one, UpstreamSession) == turn + 1
        events = Counter(event for event, *_ in await told(one, (await the_user(one, answers[0])).id))
        assert events == {"user_created": 1, "identity_linked": 1, "session_started": 1}


async def test_twenty_first_exchanges_of_a_user_with_different_tokens_give_one_account_and_twenty_sessions(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    path = file_of(upstream, tmp_path, trust_email=True)
    async with open_keyturn(federation_file=path) as one, open_keyturn(federation_file=path) as other:
        for turn in range(3):
            subject = upstream.other(turn)
            minted = [upstream.mint("id_token", subject=subject) for _ in range(20)]
            answers = await asyncio.gather(
                *(exchanged(each, token) for each, token in zip((one, other) * 10, minted, strict=True))
            )
            assert len({answer.session_id for answer in answers}) == 20
            assert await count(one, User) == await count(one, Identity) == turn + 1
            [user] = await rows(one, User, email=subject.email)
            assert len(await rows(one, Session, user_id=user.id)) == 20


async def test_callers_who_race_for_one_token_get_one_session_and_the_others_are_refused(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    path = file_of(upstream, tmp_path)
    async with open_keyturn(federation_file=path) as one, open_keyturn(federation_file=path) as other:
        for turn in range(5):
            token = upstream.mint()
            outcomes = await asyncio.gather(
                *(
                    exchanged(each, token, caller=caller_of("keyturn", None, None, str(n)))
                    for n, each in enumerate((one, other) * 5)
                ),
                return_exceptions=True,
            )
            refusals = [each for each in outcomes if isinstance(each, UnacceptableToken)]
            assert [refusal.cause for refusal in refusals] == ["taken"] * 9
            assert await count(one, Session) == turn + 1


# -- a logout upstream


async def remembers(keyturn: Keyturn, use: Any, which: str, moment: datetime | None = None) -> None:
    """Remembers a logout as `UpstreamLogout` does, and ends no session: as if it were just about to."""
    now = datetime.now(UTC)
    async with keyturn.db.begin() as tx:
        await remember(
            tx, name_of(use, keyturn.issuers.named("acme").issuer.issuer, which), moment or now, now + timedelta(days=1)
        )


async def test_a_token_of_an_upstream_session_that_was_logged_out_before_is_refused_and_makes_nobody(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path) as keyturn:
        await remembers(keyturn, "session", upstream.subject.session_id)
        refusal = await refused(keyturn, upstream.mint())
        assert (refusal.cause, refusal.reason) == ("logged_out", "upstream_logout")
        assert await count(keyturn, User) == await count(keyturn, Session) == 0
        other = await exchanged(keyturn, upstream.mint(sid="ses_1"))
        assert await count(keyturn, Session) == 1, other


async def test_after_a_logout_of_a_subject_older_tokens_are_refused_and_a_new_sign_in_counts(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path) as keyturn:
        now = int(time.time())
        await remembers(keyturn, "subject", upstream.subject.user_id, datetime.fromtimestamp(now - 10, UTC))
        for issued in (now - 11, now - 10):
            assert (await refused(keyturn, upstream.mint(iat=issued, nbf=issued))).reason == "upstream_logout"
        await exchanged(keyturn, upstream.mint(iat=now - 9, nbf=now - 9))
        assert await count(keyturn, Session) == 1


async def test_a_logout_that_comes_while_a_token_is_exchanged_ends_its_session(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path) as keyturn:

        async def logout() -> None:
            await remembers(keyturn, "session", upstream.subject.session_id)

        with pytest.raises(UnacceptableToken) as e:
            await exchanging(keyturn, meanwhile=logout).exchange(upstream.mint(), None, caller=CALLER, by=BY)
        assert (e.value.cause, e.value.reason) == ("logged_out", "upstream_logout")
        [session] = await rows(keyturn, Session)
        assert session.end_reason == "upstream_logout"
        ended = (await told(keyturn, session.user_id))[-1]
        assert ended == ("session_ended", "upstream", "acme", "upstream_logout")


async def test_a_retry_after_a_logout_ends_the_session_that_a_dead_process_left_and_gets_no_tokens(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path) as keyturn:
        token = upstream.mint()
        await exchanged(keyturn, token)
        await remembers(keyturn, "session", upstream.subject.session_id)
        assert (await refused(keyturn, token)).reason == "upstream_logout"
        [session] = await rows(keyturn, Session)
        assert session.end_reason == "upstream_logout"


# -- what happens meanwhile


async def test_whatever_shuts_the_user_out_while_a_token_is_exchanged_leaves_no_session(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path) as keyturn:
        user = await the_user(keyturn, await exchanged(keyturn, upstream.mint()))
        await keyturn.users.create("root@example.com", NEW_PASSWORD, "admin", by=SERVICE)
        before = await count(keyturn, Session)

        async def unlink() -> None:
            async with keyturn.db.begin() as tx:
                await tx.execute(update(Identity).values(subject="usr_2", user_id=other.id))

        async def disable() -> None:
            await keyturn.users.disable(user.id, by=SERVICE)

        async def erase() -> None:
            await keyturn.erasing.erase(user.id, by=SERVICE)

        other = await keyturn.users.create("other@example.com", NEW_PASSWORD, by=SERVICE)
        for meanwhile in (disable, erase):
            await keyturn.users.enable(user.id, by=SERVICE)
            with pytest.raises(InvalidGrant):
                await exchanging(keyturn, meanwhile=meanwhile).exchange(upstream.mint(), None, caller=CALLER, by=BY)
            assert await count(keyturn, Session) == before, meanwhile
        await exchanged(keyturn, upstream.mint())
        before = await count(keyturn, Session)
        with pytest.raises(UnacceptableToken) as e:
            await exchanging(keyturn, meanwhile=unlink).exchange(upstream.mint(), None, caller=CALLER, by=BY)
        assert e.value.cause == "unlinked"
        assert await count(keyturn, Session) == before


# -- forgetting


async def test_gc_forgets_tokens_that_are_refused_as_expired_and_sessions_that_are_gone(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path) as keyturn:
        kept = await exchanged(keyturn, upstream.mint())
        gone = await exchanged(keyturn, upstream.mint())
        due = await exchanged(keyturn, upstream.mint())
        assert await keyturn.forgetting.gc(most=1) == (0, 0)
        async with keyturn.db.begin() as tx:
            await tx.execute(
                update(TakenToken)
                .where(TakenToken.session_id != kept.session_id)
                .values(expires_at=keyturn.db.after(TakenToken.taken_at, timedelta(seconds=-1)))
            )
            its = UpstreamSession.session_id == due.session_id
            await tx.execute(update(UpstreamSession).where(its).values(due_at=UpstreamSession.created_at))
            doomed = Session.id.in_([gone.session_id, due.session_id])
            await tx.execute(Session.__table__.delete().where(doomed))  # type: ignore[attr-defined]  # a table
        assert await keyturn.forgetting.gc(most=1) == (2, 1)
        assert {row.session_id for row in await rows(keyturn, TakenToken)} == {kept.session_id}
        assert {row.session_id for row in await rows(keyturn, UpstreamSession)} == {kept.session_id, due.session_id}


async def test_a_taken_token_is_remembered_for_longer_than_any_instance_takes_it_or_answers_a_retry(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path) as keyturn:
        expires = int(time.time()) + 300
        await exchanged(keyturn, upstream.mint(exp=expires))
        [row] = await rows(keyturn, TakenToken)
        longest_retry_window = 300
        assert row.expires_at == datetime.fromtimestamp(expires + longest_retry_window + 65, UTC)
