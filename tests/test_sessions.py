"""Sign-in, refresh, retry, reuse, logout: on both databases."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select, text, update

from app.actors import SERVICE
from app.errors import (
    Conflict,
    InvalidGrant,
    InvalidRequest,
    InvalidToken,
    NotFound,
    Reason,
    Refusal,
    TemporarilyUnavailable,
)
from app.keyturn import Keyturn
from app.sessions.answers import Tokens
from app.storage.tables import Session, User, uuid7
from app.tokens.refresh_tokens import LAST_GENERATION
from tests.conftest import PASSWORD, Opener, a_user, time_passes

SECOND = timedelta(seconds=1)


async def a_session(keyturn: Keyturn, email: str = "ada@example.com") -> Tokens:
    return await keyturn.starting.start(await a_user(keyturn, email), by=SERVICE)


async def disable(keyturn: Keyturn, user_id: UUID) -> None:
    """Disables the user. On a slow machine a try may wait too long for a connection, so this repeats it."""
    while True:
        with suppress(TemporarilyUnavailable):
            await keyturn.users.disable(user_id, by=SERVICE)
            return


async def refused(keyturn: Keyturn, refresh_token: str, reason: Reason | None) -> None:
    with pytest.raises(InvalidGrant) as caught:
        await keyturn.rotation.refresh(refresh_token, by=SERVICE)
    assert caught.value.reason == reason, caught.value.cause


async def rejected(keyturn: Keyturn, access_token: str, reason: Reason | None) -> None:
    for ask in (keyturn.reading.verify, keyturn.reading.authorise):
        with pytest.raises(InvalidToken) as caught:
            await ask(access_token)
        assert caught.value.reason == reason


async def row(keyturn: Keyturn, tokens: Tokens) -> Any:
    async with keyturn.db.begin() as tx:
        return (await tx.execute(select(Session).where(Session.id == tokens.session_id))).one()


async def rows(keyturn: Keyturn) -> int:
    async with keyturn.db.begin() as tx:
        return len((await tx.scalars(select(Session.id))).all())


async def test_a_login_gives_tokens_with_their_lifetimes(keyturn: Keyturn) -> None:
    body = (await a_session(keyturn)).body()
    assert body["token_type"] == "Bearer"
    assert (body["expires_in"], body["refresh_expires_in"], body["session_expires_in"]) == (900, 604800, 2592000)


async def test_the_row_holds_only_the_digest(keyturn: Keyturn) -> None:
    tokens = await a_session(keyturn)
    raw = keyturn.keys.verify_refresh_token(tokens.refresh_token)
    async with keyturn.db.begin() as tx:
        everything = repr((await tx.execute(text("SELECT * FROM sessions"))).all())
    assert (await row(keyturn, tokens)).token_digest == raw.digest
    assert repr(raw.secret)[2:-1] not in everything
    assert tokens.refresh_token not in everything


async def test_a_refresh_rotates(keyturn: Keyturn) -> None:
    first = await a_session(keyturn)
    second = await keyturn.rotation.refresh(first.refresh_token, by=SERVICE)
    assert second.session_id == first.session_id
    assert second.refresh_token != first.refresh_token
    assert second.access_token != first.access_token
    assert second.body()["expires_in"] == 900
    assert (await row(keyturn, first)).generation == 1
    assert await rows(keyturn) == 1
    await keyturn.reading.verify(first.access_token)
    await keyturn.reading.verify(second.access_token)


async def test_a_retry_within_the_window_gets_the_same_pair(keyturn: Keyturn) -> None:
    first = await a_session(keyturn)
    second = await keyturn.rotation.refresh(first.refresh_token, by=SERVICE)
    # Seconds, far from the window's end for a slow machine; test_judge has the exact moments.
    for passed in (0, 30, 20):
        await time_passes(keyturn, passed * SECOND)
        again = await keyturn.rotation.refresh(first.refresh_token, by=SERVICE)
        assert again.refresh_token == second.refresh_token
        if passed == 0:
            assert again.access_token == second.access_token
        assert (await row(keyturn, first)).generation == 1
    # The rotation was 50 s ago, and expires_in counts from there.
    assert 840 <= int(again.body()["expires_in"]) <= 850
    await keyturn.rotation.refresh(second.refresh_token, by=SERVICE)


async def test_a_retry_just_after_the_window_is_reuse(keyturn: Keyturn) -> None:
    first = await a_session(keyturn)
    second = await keyturn.rotation.refresh(first.refresh_token, by=SERVICE)
    await time_passes(keyturn, 60 * SECOND)
    await refused(keyturn, first.refresh_token, "reuse_detected")
    await refused(keyturn, second.refresh_token, "reuse_detected")
    await rejected(keyturn, second.access_token, "reuse_detected")


async def test_the_window_does_not_slide(keyturn: Keyturn) -> None:
    first = await a_session(keyturn)
    await keyturn.rotation.refresh(first.refresh_token, by=SERVICE)
    for _ in range(3):
        await time_passes(keyturn, 17 * SECOND)
        await keyturn.rotation.refresh(first.refresh_token, by=SERVICE)
    await time_passes(keyturn, 10 * SECOND)
    await refused(keyturn, first.refresh_token, "reuse_detected")


async def test_a_clock_that_stepped_back_ends_no_session(keyturn: Keyturn) -> None:
    first = await a_session(keyturn)
    second = await keyturn.rotation.refresh(first.refresh_token, by=SERVICE)
    await time_passes(keyturn, -3600 * SECOND)
    assert (await keyturn.rotation.refresh(first.refresh_token, by=SERVICE)).refresh_token == second.refresh_token


async def test_a_window_of_zero_is_strict_single_use(open_keyturn: Opener) -> None:
    async with open_keyturn(retry_window=0) as keyturn:
        first = await a_session(keyturn)
        await keyturn.rotation.refresh(first.refresh_token, by=SERVICE)
        await refused(keyturn, first.refresh_token, "reuse_detected")


async def test_once_the_successor_is_used_the_older_token_is_reuse_even_within_the_window(keyturn: Keyturn) -> None:
    first = await a_session(keyturn)
    second = await keyturn.rotation.refresh(first.refresh_token, by=SERVICE)
    await keyturn.rotation.refresh(second.refresh_token, by=SERVICE)
    await refused(keyturn, first.refresh_token, "reuse_detected")


@pytest.mark.deep
async def test_each_of_fifty_older_generations_ends_its_session_and_no_other(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    bystander = await keyturn.starting.start(proof, by=SERVICE)
    for old in range(50):
        tokens = await keyturn.starting.start(proof, by=SERVICE)
        chain = [tokens]
        for _ in range(51):
            chain.append(await keyturn.rotation.refresh(chain[-1].refresh_token, by=SERVICE))
        await refused(keyturn, chain[old].refresh_token, "reuse_detected")
        await rejected(keyturn, chain[-1].access_token, "reuse_detected")
        await refused(keyturn, chain[-1].refresh_token, "reuse_detected")
    await keyturn.reading.verify((await keyturn.rotation.refresh(bystander.refresh_token, by=SERVICE)).access_token)


async def test_reuse_reported_twice_changes_nothing_more(keyturn: Keyturn) -> None:
    first = await a_session(keyturn)
    await keyturn.rotation.refresh(
        (await keyturn.rotation.refresh(first.refresh_token, by=SERVICE)).refresh_token, by=SERVICE
    )
    await refused(keyturn, first.refresh_token, "reuse_detected")
    ended = (await row(keyturn, first)).ended_at
    await refused(keyturn, first.refresh_token, "reuse_detected")
    assert (await row(keyturn, first)).ended_at == ended


async def test_a_hundred_parallel_refreshes_rotate_once_and_answer_the_same(keyturn: Keyturn) -> None:
    first = await a_session(keyturn)
    answers = await asyncio.gather(*(keyturn.rotation.refresh(first.refresh_token, by=SERVICE) for _ in range(100)))
    assert len({(a.refresh_token, a.access_token) for a in answers}) == 1
    assert (await row(keyturn, first)).generation == 1
    await keyturn.rotation.refresh(answers[0].refresh_token, by=SERVICE)


async def test_reuse_that_races_an_honest_refresh_ends_the_newest_too(keyturn: Keyturn) -> None:
    for _ in range(10):
        tokens = [await keyturn.starting.start(await a_user(keyturn, f"{uuid7()}@example.com"), by=SERVICE)]
        for _ in range(3):
            tokens.append(await keyturn.rotation.refresh(tokens[-1].refresh_token, by=SERVICE))
        honest, theft = await asyncio.gather(
            keyturn.rotation.refresh(tokens[-1].refresh_token, by=SERVICE),
            keyturn.rotation.refresh(tokens[0].refresh_token, by=SERVICE),
            return_exceptions=True,
        )
        assert isinstance(theft, InvalidGrant)
        assert theft.reason == "reuse_detected"
        newest = honest if isinstance(honest, Tokens) else tokens[-1]
        await refused(keyturn, newest.refresh_token, "reuse_detected")
        await rejected(keyturn, newest.access_token, "reuse_detected")


async def test_a_batch_of_mixed_outcomes_answers_each_on_its_own(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    rotates, retries, reuses, over, twice = [await keyturn.starting.start(proof, by=SERVICE) for _ in range(5)]
    retried = await keyturn.rotation.refresh(retries.refresh_token, by=SERVICE)
    await keyturn.rotation.refresh(
        (await keyturn.rotation.refresh(reuses.refresh_token, by=SERVICE)).refresh_token, by=SERVICE
    )
    await keyturn.ending.logout((), [over.refresh_token], "this", by=SERVICE)
    unknown = await keyturn.starting.start(proof, by=SERVICE)
    async with keyturn.db.begin() as tx:
        await tx.execute(
            text("DELETE FROM sessions WHERE token_digest = :d"), {"d": (await row_digest(keyturn, unknown))}
        )
    texts = [t.refresh_token for t in (rotates, retries, reuses, over, unknown, twice, twice)]
    a = await asyncio.gather(*(keyturn.rotation.refresh(t, by=SERVICE) for t in texts), return_exceptions=True)
    assert isinstance(a[0], Tokens)
    assert isinstance(a[1], Tokens)
    assert a[1].refresh_token == retried.refresh_token
    assert [getattr(x, "reason", "?") for x in a[2:5]] == ["reuse_detected", "logout", None]
    assert isinstance(a[5], Tokens)
    assert a[5] == a[6]


async def row_digest(keyturn: Keyturn, tokens: Tokens) -> bytes:
    return keyturn.keys.verify_refresh_token(tokens.refresh_token).digest


async def test_idle_and_absolute_deadlines(open_keyturn: Opener) -> None:
    async with open_keyturn(refresh_token_lifetime=1000, session_lifetime=2500) as keyturn:
        proof = await a_user(keyturn)
        idle = await keyturn.starting.start(proof, by=SERVICE)
        await time_passes(keyturn, 990 * SECOND)
        idle = await keyturn.rotation.refresh(idle.refresh_token, by=SERVICE)
        assert idle.body()["refresh_expires_in"] == 1000
        await time_passes(keyturn, 990 * SECOND)
        # The absolute deadline does not move, and it limits the idle deadline.
        idle = await keyturn.rotation.refresh(idle.refresh_token, by=SERVICE)
        assert 505 <= int(idle.body()["refresh_expires_in"]) <= 520
        assert idle.body()["refresh_expires_in"] == idle.body()["session_expires_in"] == idle.body()["expires_in"]
        slept = await keyturn.starting.start(proof, by=SERVICE)
        await time_passes(keyturn, 1001 * SECOND)
        await refused(keyturn, idle.refresh_token, "absolute_timeout")
        await refused(keyturn, slept.refresh_token, "idle_timeout")
        with pytest.raises(InvalidToken):
            await keyturn.reading.authorise(slept.access_token)


async def test_what_is_ended_after_its_deadline_keeps_the_deadline_as_its_reason(open_keyturn: Opener) -> None:
    async with open_keyturn(refresh_token_lifetime=1000, session_lifetime=1500) as keyturn:
        proof = await a_user(keyturn)
        old = await keyturn.starting.start(proof, by=SERVICE)
        await time_passes(keyturn, 600 * SECOND)
        old = await keyturn.rotation.refresh(old.refresh_token, by=SERVICE)
        idle, also_idle = (
            await keyturn.starting.start(proof, by=SERVICE),
            await keyturn.starting.start(proof, by=SERVICE),
        )
        await time_passes(keyturn, 1001 * SECOND)
        live = await keyturn.starting.start(proof, by=SERVICE)
        # A logout of a session that is over succeeds. From then on its access tokens are refused, although they have
        # not expired.
        await keyturn.reading.verify(idle.access_token)  # time passed for the row and not for the token
        assert await keyturn.ending.logout((), [idle.refresh_token], "this", by=SERVICE) == {idle.session_id}
        await rejected(keyturn, idle.access_token, "idle_timeout")
        assert await keyturn.ending.end({also_idle.session_id}, "revoked_by_admin", by=SERVICE) == 0
        assert await keyturn.users.disable(proof.user_id, by=SERVICE) == 1
        reasons = {idle: "idle_timeout", also_idle: "idle_timeout", old: "absolute_timeout", live: "user_disabled"}
        for tokens, reason in reasons.items():
            state = await keyturn.reading.find(tokens.session_id)
            assert state.end_reason == reason
            assert state.ended_at is not None
            assert (state.ended_at == state.idle_expires_at) == (tokens is not live)
            await refused(keyturn, tokens.refresh_token, reason)


async def test_a_policy_made_stricter_holds_at_once_and_one_made_laxer_changes_nothing(open_keyturn: Opener) -> None:
    async with open_keyturn() as lax, open_keyturn(refresh_token_lifetime=1000, session_lifetime=2000) as strict:
        proof = await a_user(lax)
        promised_long, promised_short = (
            await lax.starting.start(proof, by=SERVICE),
            await strict.starting.start(proof, by=SERVICE),
        )
        await time_passes(lax, 1100 * SECOND)
        await refused(strict, promised_long.refresh_token, "idle_timeout")
        await refused(lax, promised_short.refresh_token, "idle_timeout")
        await lax.rotation.refresh(promised_long.refresh_token, by=SERVICE)
        await time_passes(lax, 950 * SECOND)
        await refused(strict, promised_long.refresh_token, "absolute_timeout")


async def test_a_changed_role_is_in_the_next_token_and_in_a_retry(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    first = await keyturn.starting.start(proof, by=SERVICE)
    second = await keyturn.rotation.refresh(first.refresh_token, by=SERVICE)
    await keyturn.users.set_role(proof.user_id, "editor", by=SERVICE)
    retry = await keyturn.rotation.refresh(first.refresh_token, by=SERVICE)
    assert retry.refresh_token == second.refresh_token
    old, new = [await keyturn.reading.verify(t.access_token) for t in (second, retry)]
    assert (old.role, new.role) == ("user", "editor")
    assert old.claims | {"role": "editor"} == new.claims
    assert (await keyturn.reading.authorise(second.access_token)).role == "editor"


async def test_the_generation_stops_long_before_it_wraps(keyturn: Keyturn) -> None:
    tokens = await a_session(keyturn)
    token = keyturn.keys.verify_refresh_token(tokens.refresh_token)
    last = type(token)(token.key, token.session, LAST_GENERATION, token.secret)
    async with keyturn.db.begin() as tx:
        await tx.execute(update(Session).values(generation=LAST_GENERATION, token_digest=last.digest))
    await refused(keyturn, last.text, None)
    assert (await row(keyturn, tokens)).ended_at is None


async def test_a_token_of_a_restored_backup_or_another_branch_changes_nothing(keyturn: Keyturn) -> None:
    first = await a_session(keyturn)
    before = await row(keyturn, first)
    second = await keyturn.rotation.refresh(first.refresh_token, by=SERVICE)
    third = await keyturn.rotation.refresh(second.refresh_token, by=SERVICE)
    async with keyturn.db.begin() as tx:
        await tx.execute(
            update(Session).values(token_digest=before.token_digest, generation=0, rotated_at=before.rotated_at)
        )
    for newer in (second, third):
        await refused(keyturn, newer.refresh_token, None)
    async with keyturn.db.begin() as tx:
        await tx.execute(update(Session).values(token_digest=b"x" * 32, generation=1))
    for other in (first, second):
        await refused(keyturn, other.refresh_token, None)
    assert (await row(keyturn, first)).ended_at is None


async def test_logout_takes_either_token_any_number_of_times(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    for _ in range(2):
        with_access, with_refresh, rotated = [await keyturn.starting.start(proof, by=SERVICE) for _ in range(3)]
        await keyturn.rotation.refresh(rotated.refresh_token, by=SERVICE)
        for _ in range(2):
            await keyturn.ending.logout([with_access.access_token], (), "this", by=SERVICE)
            await keyturn.ending.logout((), [with_refresh.refresh_token], "this", by=SERVICE)
            await keyturn.ending.logout(["junk"], [rotated.refresh_token], "this", by=SERVICE)
        for tokens in (with_access, with_refresh, rotated):
            await refused(keyturn, tokens.refresh_token, "logout")
            await rejected(keyturn, tokens.access_token, "logout")


@pytest.mark.parametrize("engine", ["postgres"])  # SQLite has one writer at a time
async def test_a_logout_of_a_session_that_is_being_changed_ends_it_and_keeps_no_other_waiting(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    held, other = [await keyturn.starting.start(proof, by=SERVICE) for _ in range(2)]
    async with keyturn.db.begin() as tx:
        await tx.execute(select(Session.id).where(Session.id == held.session_id).with_for_update())
        first, second = (
            asyncio.create_task(keyturn.ending.logout((), [tokens.refresh_token], "this", by=SERVICE))
            for tokens in (held, other)
        )
        await asyncio.wait({second}, timeout=1.5)
        assert second.done()
        assert not first.done()
    await asyncio.gather(first, second)
    for tokens in (held, other):
        assert (await keyturn.reading.find(tokens.session_id)).over() == "logout"


async def test_logout_with_tokens_of_two_sessions_ends_both(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    one, two, three = [await keyturn.starting.start(proof, by=SERVICE) for _ in range(3)]
    await keyturn.ending.logout([one.access_token], [two.refresh_token], "this", by=SERVICE)
    await refused(keyturn, one.refresh_token, "logout")
    await refused(keyturn, two.refresh_token, "logout")
    await keyturn.rotation.refresh(three.refresh_token, by=SERVICE)


async def test_logout_with_an_expired_access_token_ends_its_session(keyturn: Keyturn) -> None:
    tokens = await a_session(keyturn)
    now = keyturn.db.clock
    keyturn.db.clock = lambda: now() + timedelta(days=1)  # type: ignore[method-assign]  # a day passes for this process
    with pytest.raises(InvalidToken) as caught:
        await keyturn.reading.verify(tokens.access_token)
    assert caught.value.reason == "token_expired"
    await keyturn.ending.logout([tokens.access_token], (), "this", by=SERVICE)
    assert (await row(keyturn, tokens)).end_reason == "logout"


async def test_logout_scopes(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    stranger = await a_session(keyturn, "eve@example.com")
    mine = [await keyturn.starting.start(proof, by=SERVICE) for _ in range(4)]
    await keyturn.ending.logout([mine[0].access_token], (), "others", by=SERVICE)
    for tokens in mine[1:]:
        await refused(keyturn, tokens.refresh_token, "logout_all")
        await rejected(keyturn, tokens.access_token, "logout_all")
    mine[0] = await keyturn.rotation.refresh(mine[0].refresh_token, by=SERVICE)
    more = await keyturn.starting.start(proof, by=SERVICE)
    await keyturn.ending.logout((), [mine[0].refresh_token], "all", by=SERVICE)
    for tokens in (mine[0], more):
        await refused(keyturn, tokens.refresh_token, "logout_all")
    await keyturn.rotation.refresh(stranger.refresh_token, by=SERVICE)


async def test_a_token_that_no_longer_works_ends_no_other_session(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    other, over, old = [await keyturn.starting.start(proof, by=SERVICE) for _ in range(3)]
    await keyturn.ending.logout([over.access_token], (), "this", by=SERVICE)
    newer = await keyturn.rotation.refresh(old.refresh_token, by=SERVICE)
    await keyturn.rotation.refresh(newer.refresh_token, by=SERVICE)
    for bearer, refresh in (([over.access_token], []), ([], [over.refresh_token]), ([], [old.refresh_token])):
        for scope in ("others", "all"):
            with pytest.raises(Refusal):
                await keyturn.ending.logout(bearer, refresh, scope, by=SERVICE)
    await keyturn.rotation.refresh(other.refresh_token, by=SERVICE)


async def test_a_repeated_logout_of_all_ends_nothing_that_was_started_since(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    first = await keyturn.starting.start(proof, by=SERVICE)
    await keyturn.ending.logout((), [first.refresh_token], "all", by=SERVICE)
    later = await keyturn.starting.start(proof, by=SERVICE)
    await keyturn.ending.logout((), [first.refresh_token], "all", by=SERVICE)
    await keyturn.rotation.refresh(later.refresh_token, by=SERVICE)


async def test_a_token_that_was_replaced_ends_no_other_session_once_its_window_is_over(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    old, other = [await keyturn.starting.start(proof, by=SERVICE) for _ in range(2)]
    await keyturn.rotation.refresh(old.refresh_token, by=SERVICE)
    await time_passes(keyturn, 61 * SECOND)
    with pytest.raises(InvalidGrant):
        await keyturn.ending.logout((), [old.refresh_token], "all", by=SERVICE)
    await keyturn.rotation.refresh(other.refresh_token, by=SERVICE)


async def test_a_password_change_ends_every_other_session(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    mine, other = [await keyturn.starting.start(proof, by=SERVICE) for _ in range(2)]
    with pytest.raises(InvalidGrant):
        await keyturn.users.change_password(
            mine.session_id, proof.user_id, "wrong password", "a quite new password", by=SERVICE
        )
    with pytest.raises(InvalidRequest):
        await keyturn.users.change_password(mine.session_id, proof.user_id, PASSWORD, PASSWORD, by=SERVICE)
    await keyturn.users.change_password(mine.session_id, proof.user_id, PASSWORD, "a quite new password", by=SERVICE)
    await refused(keyturn, other.refresh_token, "password_changed")
    await rejected(keyturn, other.access_token, "password_changed")
    await keyturn.reading.verify((await keyturn.rotation.refresh(mine.refresh_token, by=SERVICE)).access_token)
    with pytest.raises(InvalidGrant):
        await keyturn.sign_in.authenticate("ada@example.com", PASSWORD)
    # The old password was right when it was proved. After the change, the proof is worthless.
    with pytest.raises(InvalidGrant):
        await keyturn.starting.start(proof, by=SERVICE)


async def test_disabling_a_user_ends_all_sessions_and_lets_none_begin(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    tokens = [await keyturn.starting.start(proof, by=SERVICE) for _ in range(2)]
    assert await keyturn.users.disable(proof.user_id, by=SERVICE) == 2
    for t in tokens:
        await refused(keyturn, t.refresh_token, "user_disabled")
        await rejected(keyturn, t.access_token, "user_disabled")
    with pytest.raises(InvalidGrant):
        await keyturn.starting.start(proof, by=SERVICE)
    with pytest.raises(InvalidGrant):
        await keyturn.sign_in.authenticate("ada@example.com", PASSWORD)
    await keyturn.users.enable(proof.user_id, by=SERVICE)
    await refused(keyturn, tokens[0].refresh_token, "user_disabled")
    await keyturn.starting.start(await keyturn.sign_in.authenticate("ADA@Example.com", PASSWORD), by=SERVICE)


async def test_no_session_slips_through_beside_a_user_who_is_disabled(keyturn: Keyturn) -> None:
    for _ in range(10):
        proof = await a_user(keyturn, f"{uuid7()}@example.com")
        started = asyncio.gather(*(keyturn.starting.start(proof, by=SERVICE) for _ in range(8)), return_exceptions=True)
        await asyncio.gather(started, disable(keyturn, proof.user_id))
        for tokens in started.result():
            if isinstance(tokens, Tokens):
                await refused(keyturn, tokens.refresh_token, "user_disabled")


async def test_an_administrator_ends_a_session(keyturn: Keyturn) -> None:
    tokens = await a_session(keyturn)
    assert await keyturn.ending.end({tokens.session_id}, "revoked_by_admin", by=SERVICE) == 1
    assert await keyturn.ending.end({tokens.session_id}, "logout", by=SERVICE) == 0
    await refused(keyturn, tokens.refresh_token, "revoked_by_admin")


async def test_the_last_administrator_stays(keyturn: Keyturn) -> None:
    root = await a_user(keyturn, "root@example.com", "admin")
    for act in (
        keyturn.users.disable(root.user_id, by=SERVICE),
        keyturn.users.set_role(root.user_id, "user", by=SERVICE),
    ):
        with pytest.raises(Conflict):
            await act
    second = await a_user(keyturn, "second@example.com", "admin")
    outcome = await asyncio.gather(
        keyturn.users.disable(root.user_id, by=SERVICE),
        keyturn.users.disable(second.user_id, by=SERVICE),
        return_exceptions=True,
    )
    assert sum(isinstance(o, Conflict) for o in outcome) == 1


async def test_a_session_that_does_not_exist_is_refused(keyturn: Keyturn) -> None:
    tokens = await a_session(keyturn)
    async with keyturn.db.begin() as tx:
        await tx.execute(text("DELETE FROM sessions"))
    await refused(keyturn, tokens.refresh_token, None)
    await rejected(keyturn, tokens.access_token, None)
    await keyturn.ending.logout([tokens.access_token], (), "this", by=SERVICE)
    with pytest.raises(NotFound):
        await keyturn.reading.find(tokens.session_id)


async def test_a_claim_of_another_subject_is_no_authority(keyturn: Keyturn) -> None:
    mine, other = await a_session(keyturn), await a_user(keyturn, "root@example.com", "admin")
    forged, _ = keyturn.reading._access_tokens.sign(
        subject=other.user_id, session_id=mine.session_id, generation=0, role="admin", client_id="x",
        issued_at=keyturn.db.clock(), session_expires_at=keyturn.db.clock() + timedelta(days=1),
    )  # fmt: skip
    with pytest.raises(InvalidToken):
        await keyturn.reading.authorise(forged)


async def test_keys_rotate_without_signing_anyone_out(keyturn: Keyturn, open_keyturn: Opener) -> None:
    tokens = await a_session(keyturn)
    old_access = keyturn.keys.signing_access.kid
    for use in ("access", "refresh"):
        await keyturn.keys.generate(use, by=SERVICE)
        with pytest.raises(Conflict):
            await keyturn.keys.retire(old_access, by=SERVICE)
    await keyturn.keys.load()
    retried = tokens
    tokens = await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE)
    assert keyturn.keys.verify_refresh_token(tokens.refresh_token).key.number == 1
    async with keyturn.db.begin() as tx:
        # Make the keys a minute older, so that the new ones sign.
        minute = "CAST('61 seconds' AS interval)" if keyturn.db.is_postgres else "61000000"
        await tx.execute(text(f"UPDATE keys SET signs_from = signs_from - {minute}"))
    await keyturn.keys.load()
    # A retry uses the key number of the row. Only a rotation changes to the new key.
    assert (await keyturn.rotation.refresh(retried.refresh_token, by=SERVICE)).refresh_token == tokens.refresh_token
    newer = await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE)
    assert keyturn.keys.verify_refresh_token(newer.refresh_token).key.number == 2
    await keyturn.reading.verify(tokens.access_token)
    await keyturn.keys.retire(old_access, by=SERVICE)
    async with open_keyturn() as other:
        await rejected(other, tokens.access_token, None)
        await other.reading.verify(newer.access_token)
        await other.keys.retire("refresh-1", by=SERVICE)
        await other.keys.load()
        await refused(other, retried.refresh_token, None)
        await other.rotation.refresh(newer.refresh_token, by=SERVICE)


async def test_gc_deletes_what_has_long_been_over_and_nothing_live(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    ended = [await keyturn.starting.start(proof, by=SERVICE) for _ in range(5)]
    for tokens in ended:
        await keyturn.ending.logout([tokens.access_token], (), "this", by=SERVICE)
    await keyturn.starting.start(proof, by=SERVICE)
    await time_passes(keyturn, timedelta(days=31))
    live = await keyturn.starting.start(proof, by=SERVICE)
    lately = await keyturn.starting.start(proof, by=SERVICE)
    await keyturn.ending.logout([lately.access_token], (), "this", by=SERVICE)
    assert sum(await asyncio.gather(keyturn.upkeep.gc(most=2, by=SERVICE), keyturn.upkeep.gc(most=2, by=SERVICE))) == 5
    await refused(keyturn, ended[0].refresh_token, None)
    await refused(keyturn, lately.refresh_token, "logout")
    await time_passes(keyturn, timedelta(days=7))
    # One session was ended a week ago, the other reached its idle deadline a month ago.
    assert await keyturn.upkeep.gc(kept_for=timedelta(days=7), by=SERVICE) == 2
    # The command keeps each session that a rebuild of Redis may still need, even for `kept_for` zero.
    assert await keyturn.upkeep.gc(kept_for=timedelta(0), by=SERVICE) == 0
    await time_passes(keyturn, timedelta(hours=26))
    assert await keyturn.upkeep.gc(kept_for=timedelta(0), by=SERVICE) == 1
    await refused(keyturn, live.refresh_token, None)


async def test_an_address_is_one_account_in_any_spelling(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn, "Ada.Lovelace@EXAMPLE.com")
    assert (await keyturn.users.find("ada.lovelace@example.COM")).id == proof.user_id
    with pytest.raises(Conflict):
        await keyturn.users.create("ADA.LOVELACE@example.com", PASSWORD, by=SERVICE)


async def test_a_hash_with_old_parameters_is_replaced_at_the_next_login(open_keyturn: Opener) -> None:
    async with open_keyturn() as before, open_keyturn(argon2_passes=2) as after:
        proof = await a_user(before)
        proofs = await asyncio.gather(*(after.sign_in.authenticate("ada@example.com", PASSWORD) for _ in range(5)))
        hashed = (await after.users.find("ada@example.com")).password_hash
        assert "t=2" in (hashed or "")
        assert "t=1" in proof.password_hash
        assert await after.starting.start(await after.sign_in.authenticate("ada@example.com", PASSWORD), by=SERVICE)
        assert hashed in {p.password_hash for p in proofs}


async def test_a_damaged_hash_is_a_wrong_password(keyturn: Keyturn) -> None:
    await a_user(keyturn)
    absurd = "$argon2id$v=19$m=4194304,t=3,p=4$c29tZXNhbHRzb21lc2FsdA$c29tZWhhc2hzb21laGFzaHNvbWVoYXNoc29tZWhhc2g"
    for hashed in ("", "x", "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ", "$2b$12$abcdefghijklmnopqrstuv", absurd):
        async with keyturn.db.begin() as tx:
            await tx.execute(update(User).values(password_hash=hashed))
        with pytest.raises(InvalidGrant):
            await keyturn.sign_in.authenticate("ada@example.com", PASSWORD)


async def test_a_full_hashing_queue_says_so_at_once(open_keyturn: Opener) -> None:
    async with open_keyturn(hashing_queue=2, hashing_slots=1, argon2_memory=65536, argon2_passes=4) as keyturn:
        outcome = await asyncio.gather(
            *(keyturn.sign_in.authenticate("ada@example.com", PASSWORD) for _ in range(10)), return_exceptions=True
        )
        full = [o for o in outcome if isinstance(o, TemporarilyUnavailable)]
        assert len(full) + sum(isinstance(o, InvalidGrant) for o in outcome) == 10
        assert full
        with pytest.raises(InvalidGrant):
            await keyturn.sign_in.authenticate("ada@example.com", PASSWORD)


async def test_the_token_before_the_newest_ends_other_sessions_within_its_window(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    mine, other = [await keyturn.starting.start(proof, by=SERVICE) for _ in range(2)]
    newer = await keyturn.rotation.refresh(mine.refresh_token, by=SERVICE)
    await keyturn.ending.logout((), [mine.refresh_token], "others", by=SERVICE)
    await refused(keyturn, other.refresh_token, "logout_all")
    await keyturn.rotation.refresh(newer.refresh_token, by=SERVICE)
    assert (await keyturn.reading.find(mine.session_id)).over() is None
    assert (await keyturn.reading.find(other.session_id)).over() == "logout_all"
    with pytest.raises(InvalidGrant) as caught:
        await keyturn.ending.logout((), [other.refresh_token], "others", by=SERVICE)
    assert caught.value.reason == "logout_all"
