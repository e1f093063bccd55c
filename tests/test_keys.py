"""The key set: sealed in the database, published before it signs, retired for good."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from time import monotonic
from typing import Any, get_args
from uuid import UUID

import jwt
import pytest
from joserfc.jwk import ECKey, OKPKey, RSAKey
from sqlalchemy import func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.actors import SERVICE, Actor
from app.errors import ConfigurationError, Conflict, InvalidGrant, InvalidToken, NotFound, TemporarilyUnavailable
from app.events.reading import Events
from app.keyturn import Keyturn
from app.settings import Algorithm
from app.storage.copies import READ_BY_ALL
from app.storage.tables import Key, Pulse, Session, uuid7
from app.tokens.key_seal import KeySeal
from app.tokens.key_set import AccessKey, Use, kid_of, new_secret
from app.tokens.key_table import PUBLISHED_FOR
from app.tokens.keys import UNREAD_LIMIT, Keys
from app.tokens.master_secret import master_secret
from app.tokens.primitives import RsaBits
from app.tokens.refresh_tokens import issue
from tests.conftest import SECRET, Opener, a_user

OTHER_SECRET = "b" + SECRET[1:]


async def rows(keyturn: Keyturn) -> list[Any]:
    async with keyturn.db.begin() as tx:
        return list((await tx.execute(select(Key).order_by(Key.created_at, Key.kid))).all())


async def status(keyturn: Keyturn) -> dict[str, str]:
    return {key["kid"]: key["status"] for key in await keyturn.keys.list()}


async def change(keyturn: Keyturn, kid: str, **values: Any) -> None:
    async with keyturn.db.begin() as tx:
        changed = await tx.execute(update(Key).where(Key.kid == kid).values(**values).returning(Key.kid))
        assert changed.one()


async def published(keyturn: Keyturn, kid: str) -> None:
    """Moves the moments of a key into the past until it signs. The clock stays as it is."""
    [key] = [key for key in await rows(keyturn) if key.kid == kid]
    await change(keyturn, kid, created_at=key.created_at - PUBLISHED_FOR, signs_from=key.signs_from - PUBLISHED_FOR)


def secret_of(key: AccessKey) -> bytes:
    if key.algorithm == "HS256":
        return bytes(key.signing)
    if key.algorithm == "ES256":
        return int(key.signing.private_numbers().private_value).to_bytes(32)
    if key.algorithm == "RS256":
        return int(key.signing.private_numbers().p).to_bytes(key.signing.key_size // 16)
    return bytes(key.signing.private_bytes_raw())


async def test_a_row_holds_no_key_in_the_clear(keyturn: Keyturn) -> None:
    for algorithm in get_args(Algorithm):
        await keyturn.keys.generate("access", algorithm, by=SERVICE)
    await keyturn.keys.load()
    everything = b"".join(key.sealed for key in await rows(keyturn))
    for key in keyturn.keys._set.access.values():
        assert secret_of(key) not in everything
    assert b"PRIVATE" not in everything
    # The sealing key may never seal two rows with the same nonce.
    nonces = [key.sealed[:12] for key in await rows(keyturn)]
    assert len(set(nonces)) == len(nonces) == 7


async def test_keys_come_from_chance_and_not_from_the_master_secret(open_keyturn: Opener) -> None:
    async with open_keyturn() as keyturn:
        one = keyturn.keys.signing_access.signing
        await keyturn.keys.generate("access", by=SERVICE)
        await keyturn.keys.load()
        secrets = {key.signing for key in keyturn.keys._set.access.values()}
        assert len(secrets) == 2
        assert one in secrets
        assert master_secret(SECRET) not in secrets


async def test_keys_are_found_again_by_whoever_has_the_master_secret(open_keyturn: Opener) -> None:
    async with open_keyturn() as one, open_keyturn() as two:
        assert one.keys.signing_access == two.keys.signing_access
        assert one.keys.signing_refresh == two.keys.signing_refresh
        stranger = Keys(two.db, KeySeal(master_secret(OTHER_SECRET)), "HS256")
        with pytest.raises(ConfigurationError, match="KEYTURN_SECRET is not the one it was sealed under") as caught:
            await stranger.load()
        assert SECRET not in str(caught.value)
        with pytest.raises(TemporarilyUnavailable):
            _ = stranger.signing_access


async def test_the_sealed_bytes_of_two_rows_can_not_be_swapped(keyturn: Keyturn) -> None:
    await keyturn.keys.generate("access", by=SERVICE)
    await keyturn.keys.generate("refresh", by=SERVICE)
    everything = await rows(keyturn)
    for one in everything:
        for two in everything:
            if one.kid != two.kid:
                await change(keyturn, one.kid, sealed=two.sealed)
                with pytest.raises(ConfigurationError, match=f"key {one.kid} can't be unsealed"):
                    await keyturn.keys.load()
        await change(keyturn, one.kid, sealed=one.sealed)
    await keyturn.keys.load()


async def test_a_row_that_says_something_else_of_its_key_is_refused(keyturn: Keyturn) -> None:
    access, refresh = keyturn.keys.signing_access.kid, f"refresh-{keyturn.keys.signing_refresh.number}"
    for kid, changed, back in (
        (access, {"algorithm": "EdDSA"}, {"algorithm": "HS256"}),
        (access, {"use": "refresh", "number": 9}, {"use": "access", "number": None}),
        (refresh, {"number": 2}, {"number": 1}),
        (refresh, {"use": "access", "number": None}, {"use": "refresh", "number": 1}),
    ):
        await change(keyturn, kid, **changed)
        with pytest.raises(ConfigurationError, match=f"key {kid} can't be unsealed"):
            await keyturn.keys.load()
        await change(keyturn, kid, **back)
    async with keyturn.db.begin() as tx:
        await tx.execute(update(Key).where(Key.kid == access).values(kid="renamed"))
    with pytest.raises(ConfigurationError, match="key renamed can't be unsealed"):
        await keyturn.keys.load()


async def test_a_reading_that_fails_leaves_the_keys_that_were_read(keyturn: Keyturn) -> None:
    before = keyturn.keys.signing_access
    row = (await rows(keyturn))[0]
    await change(keyturn, row.kid, sealed=row.sealed[:-1])
    with pytest.raises(ConfigurationError):
        await keyturn.keys.load()
    assert keyturn.keys.signing_access is before


@pytest.mark.parametrize("left", [0, 7])
async def test_a_row_that_lost_its_bytes_is_refused(keyturn: Keyturn, left: int) -> None:
    row = (await rows(keyturn))[0]
    await change(keyturn, row.kid, sealed=row.sealed[:left])
    with pytest.raises(ConfigurationError, match="can't be unsealed"):
        await keyturn.keys.load()


@pytest.mark.parametrize("use", ["access", "refresh"])
async def test_a_new_key_is_published_a_minute_before_it_signs(open_keyturn: Opener, use: Any) -> None:
    async with open_keyturn() as maker, open_keyturn() as other:
        old = maker.keys.signing_access, maker.keys.signing_refresh
        kid = await maker.keys.generate(use, by=SERVICE)
        number = next(key["number"] for key in await maker.keys.list() if key["kid"] == kid)
        assert (await status(other))[kid] == "published"
        for keyturn in (maker, other):
            await keyturn.keys.load()
            # Every process knows the key, so tokens under it verify. No process signs with it yet.
            assert keyturn.keys.access(kid) or keyturn.keys.refresh(number)
            assert (keyturn.keys.signing_access, keyturn.keys.signing_refresh) == old
        await published(maker, kid)
        for keyturn in (maker, other):
            await keyturn.keys.load()
            signing = keyturn.keys.signing_access.kid if use == "access" else keyturn.keys.signing_refresh.number
            assert signing == (kid if use == "access" else number)
        states = await status(maker)
        assert states[kid] == "signs"
        assert states[old[0].kid if use == "access" else f"refresh-{old[1].number}"] == "verifies"


def test_a_key_is_read_everywhere_several_times_before_it_signs() -> None:
    assert PUBLISHED_FOR >= 3 * READ_BY_ALL
    assert READ_BY_ALL < UNREAD_LIMIT
    assert 2 * UNREAD_LIMIT <= PUBLISHED_FOR


async def test_tokens_of_a_key_that_no_longer_signs_still_verify(keyturn: Keyturn) -> None:
    tokens = await keyturn.starting.start(await a_user(keyturn), by=SERVICE)
    for use in ("access", "refresh"):
        await published(keyturn, await keyturn.keys.generate(use, by=SERVICE))
    await keyturn.keys.load()
    assert (await keyturn.reading.verify(tokens.access_token)).session_id == tokens.session_id
    after = await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE)
    assert keyturn.keys.verify_refresh_token(after.refresh_token).session_id == tokens.session_id
    assert after.refresh_token[4:6] != tokens.refresh_token[4:6]  # the first byte after `ktr_` is the key's number


@pytest.mark.parametrize("use", get_args(Use))
async def test_the_only_key_that_can_sign_is_not_retired(keyturn: Keyturn, use: Any) -> None:
    [only] = [key["kid"] for key in await keyturn.keys.list() if key["use"] == use]
    with pytest.raises(Conflict) as caught:
        await keyturn.keys.retire(only, by=SERVICE)
    assert f"the only {use} key that can {'seal' if use == 'cookie' else 'sign'}" in caught.value.description
    new = await keyturn.keys.generate(use, by=SERVICE)
    # A key that is only published can't replace the only key that signs.
    with pytest.raises(Conflict):
        await keyturn.keys.retire(only, by=SERVICE)
    await published(keyturn, new)
    await keyturn.keys.retire(only, by=SERVICE)
    assert (await status(keyturn))[only] == "retired"
    with pytest.raises(Conflict):
        await keyturn.keys.retire(new, by=SERVICE)
    await keyturn.keys.retire(only, by=SERVICE)  # a repeated retirement changes nothing
    with pytest.raises(NotFound):
        await keyturn.keys.retire("no-such-key", by=SERVICE)


async def test_of_two_that_retire_each_others_successor_one_is_refused(open_keyturn: Opener) -> None:
    async with open_keyturn() as one, open_keyturn() as two:
        old = one.keys.signing_access.kid
        new = await one.keys.generate("access", by=SERVICE)
        await published(one, new)
        outcomes = await asyncio.gather(
            one.keys.retire(old, by=SERVICE), two.keys.retire(new, by=SERVICE), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes if outcome] == [Conflict]


async def test_a_key_that_was_published_only_can_be_retired(keyturn: Keyturn) -> None:
    before = keyturn.keys.signing_access
    await keyturn.keys.retire(await keyturn.keys.generate("access", by=SERVICE), by=SERVICE)
    await keyturn.keys.load()
    assert keyturn.keys.signing_access == before
    assert len(keyturn.keys._set.access) == 1


async def test_tokens_of_a_retired_key_are_refused_everywhere(open_keyturn: Opener) -> None:
    async with open_keyturn() as one, open_keyturn() as two:
        tokens = await one.starting.start(await a_user(one), by=SERVICE)
        for use in ("access", "refresh"):
            old = [key["kid"] for key in await one.keys.list() if key["use"] == use]
            await published(one, await one.keys.generate(use, by=SERVICE))
            await one.keys.retire(old[0], by=SERVICE)
        for keyturn in (one, two):
            await keyturn.keys.load()
            with pytest.raises(Exception, match="key"):
                await keyturn.reading.verify(tokens.access_token)
            with pytest.raises(InvalidGrant, match="retired refresh key"):
                await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE)


async def refused_as(keyturn: Keyturn, refresh_token: str, reason: str | None) -> None:
    with pytest.raises(InvalidGrant) as caught:
        await keyturn.rotation.refresh(refresh_token, by=SERVICE)
    assert caught.value.reason == reason


async def test_retiring_a_refresh_key_ends_every_session_under_it_and_tells_their_holders(open_keyturn: Opener) -> None:
    async with open_keyturn() as one, open_keyturn() as two:
        proof = await a_user(one)
        under = [await one.starting.start(proof, by=SERVICE) for _ in range(5)]
        before = await one.starting.start(proof, by=SERVICE)
        await published(one, await one.keys.generate("refresh", by=SERVICE))
        await one.keys.load()
        moved = await one.rotation.refresh(before.refresh_token, by=SERVICE)
        number = await one.keys.retire("refresh-1", by=SERVICE)
        assert number == 1
        assert await one.sweeping.end_under(number, most=2, by=SERVICE) == 5
        assert await one.sweeping.end_under(number, most=2, by=SERVICE) == 0
        for keyturn in (one, two):
            await keyturn.keys.load()
            for tokens in under:
                assert (await keyturn.reading.find(tokens.session_id)).over() == "revoked_by_admin"
                with pytest.raises(InvalidToken) as caught:
                    await keyturn.reading.verify(tokens.access_token)
                assert caught.value.reason == "revoked_by_admin"
                await refused_as(keyturn, tokens.refresh_token, "revoked_by_admin")
                assert await keyturn.ending.logout((), [tokens.refresh_token], "this", by=SERVICE) == {
                    tokens.session_id
                }
            await keyturn.reading.verify(moved.access_token)
        await two.rotation.refresh(moved.refresh_token, by=SERVICE)


async def test_a_token_under_a_retired_key_ends_no_session_that_goes_on_under_another(keyturn: Keyturn) -> None:
    first = await keyturn.starting.start(await a_user(keyturn), by=SERVICE)
    second = await keyturn.rotation.refresh(first.refresh_token, by=SERVICE)
    await published(keyturn, await keyturn.keys.generate("refresh", by=SERVICE))
    await keyturn.keys.load()
    third = await keyturn.rotation.refresh(second.refresh_token, by=SERVICE)
    await keyturn.keys.retire("refresh-1", by=SERVICE)
    await keyturn.keys.load()
    # A thief of the key could have made these tokens. Therefore they prove no reuse and can't log anybody out.
    for tokens in (first, second):
        await refused_as(keyturn, tokens.refresh_token, None)
        for scope in ("this", "all"):
            with pytest.raises(InvalidGrant):
                await keyturn.ending.logout((), [tokens.refresh_token], scope, by=SERVICE)
    await keyturn.reading.verify(third.access_token)
    await keyturn.rotation.refresh(third.refresh_token, by=SERVICE)


async def nothing() -> None:
    return


async def test_a_retirement_that_broke_off_leaves_nothing_that_can_be_refreshed_and_is_taken_up_again(
    open_keyturn: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_keyturn() as one, open_keyturn() as late:
        late.revocations.fence.on_reading = lambda _: None  # this process learns of no change
        proof = await a_user(one)
        sessions = [await one.starting.start(proof, by=SERVICE) for _ in range(4)]
        await published(one, await one.keys.generate("refresh", by=SERVICE))
        assert await one.keys.retire("refresh-1", by=SERVICE) == 1
        await one.keys.load()
        # The command stopped after its first range of sessions. A client of a later range is refused with the reason,
        # and its session ends.
        assert (await one.sweeping._end_range(UUID(int=0), Session.key_number == 1, 2, SERVICE))[0] == 2
        await refused_as(one, sessions[2].refresh_token, "revoked_by_admin")
        with pytest.raises(InvalidToken):
            await one.reading.verify(sessions[2].access_token)
        # A sign-in that looked at the pulse just before the retirement still begins under the old key.
        monkeypatch.setattr(late.keys, "catch_up", nothing)
        unread = await late.starting.start(proof, by=SERVICE)
        assert late.keys.verify_refresh_token(unread.refresh_token).key.number == 1
        assert await one.keys.retire("refresh-1", by=SERVICE) == 1
        assert await one.sweeping.end_under(1, by=SERVICE) == 2
        assert {(await one.reading.find(t.session_id)).over() for t in (*sessions, unread)} == {"revoked_by_admin"}


async def of_a_later_release(keyturn: Keyturn, kid: str, **what: Any) -> None:
    """Inserts a key that signs already, of a use or an algorithm that this release's schema and code do not know."""
    number = what.get("number")
    sealed = keyturn.keys._seal.seal(os.urandom(32), kid, what["use"], what["algorithm"], number)
    async with keyturn.db.begin() as tx:
        if keyturn.db.is_postgres:
            await tx.execute(text("ALTER TABLE keys DROP CONSTRAINT IF EXISTS ck_keys_use_is_known"))
        else:
            await tx.execute(text("PRAGMA ignore_check_constraints = ON"))
        now = await tx.scalar(select(keyturn.db.now()))
        await tx.execute(insert(Key).values(kid=kid, sealed=sealed, created_at=now, signs_from=now, **what))


async def test_keys_that_only_a_later_release_knows_are_listed_and_left_alone(open_keyturn: Opener) -> None:
    async with open_keyturn() as keyturn:
        before = keyturn.keys._set
        await of_a_later_release(keyturn, "p1", use="proof", algorithm="ES256")
        await of_a_later_release(keyturn, "c1", use="cookie", algorithm="A256GCM-SIV")
        await of_a_later_release(keyturn, "a1", use="access", algorithm="ML-DSA-44")
        await of_a_later_release(keyturn, "r1", use="refresh", algorithm="HMAC-SHA512", number=9)
        await keyturn.keys.load()
        assert keyturn.keys._set == before
        kept = {"p1": "unknown", "c1": "unknown", "a1": "unknown", "r1": "unknown"}
        assert {kid: said for kid, said in (await status(keyturn)).items() if kid in kept} == kept
        # A key with which this release can't sign replaces no key with which it can.
        signing = [kid for kid, said in (await status(keyturn)).items() if said == "signs"]
        assert len(signing) == 3
        for kid in signing:
            with pytest.raises(Conflict):
                await keyturn.keys.retire(kid, by=SERVICE)
        async with keyturn.db.begin() as tx:
            await tx.execute(update(Key).where(Key.kid == "r1").values(retired_at=keyturn.db.now()))
        await keyturn.keys.load()
        assert not keyturn.keys.retired(9)
    async with open_keyturn() as keyturn:
        tokens = await keyturn.starting.start(await a_user(keyturn), by=SERVICE)
        await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE)


async def test_a_token_of_an_unknown_refresh_key_is_junk(keyturn: Keyturn) -> None:
    kid = await keyturn.keys.generate("refresh", by=SERVICE)
    number = next(key["number"] for key in await keyturn.keys.list() if key["kid"] == kid)
    other = Keys(keyturn.db, KeySeal(master_secret(SECRET)), "HS256")
    await other.load()
    new = other.refresh(number)
    assert new is not None
    token = issue(new, uuid7()).text
    # `keyturn` has not read the table since then. For half a minute, it takes an unknown key for a forgery.
    for age in (timedelta(0), UNREAD_LIMIT - timedelta(seconds=1)):
        keyturn.keys._read_at = monotonic() - age.total_seconds()
        with pytest.raises(InvalidGrant, match="unknown refresh key"):
            keyturn.keys.verify_refresh_token(token)
    # After half a minute, an unknown key may be a new one. The process can't decide, so the answer is 503 and not a
    # refusal.
    keyturn.keys._read_at = monotonic() - UNREAD_LIMIT.total_seconds() - 1
    with pytest.raises(TemporarilyUnavailable):
        keyturn.keys.verify_refresh_token(token)
    # A forged token under a known key is refused all the same.
    with pytest.raises(InvalidGrant):
        keyturn.keys.verify_refresh_token("ktr_AQ" + "A" * 82)
    await keyturn.keys.load()
    assert keyturn.keys.verify_refresh_token(token).text == token


async def until(seen: Callable[[], bool], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not seen():
            await asyncio.sleep(0.02)


@asynccontextmanager
async def away() -> AsyncIterator[AsyncConnection]:
    """A connection to the database that fails, as an outage looks to the reading of the fence."""
    raise TemporarilyUnavailable("away")
    yield


async def test_when_the_database_is_back_the_keys_are_read_at_once(open_keyturn: Opener) -> None:
    async with open_keyturn() as one, open_keyturn() as two:
        await until(two.revocations.fence.database_answers)
        working, two.db.watch_connection = two.db.watch_connection, away  # type: ignore[method-assign]  # an outage
        await until(lambda: not two.revocations.fence.database_answers())
        await one.keys.generate("refresh", by=SERVICE)
        await one.keys.load()
        new = one.keys.refresh(2)
        assert new is not None
        token = issue(new, uuid7()).text
        await asyncio.sleep(1)
        assert two.keys.refresh(2) is None
        two.keys._read_at = monotonic() - UNREAD_LIMIT.total_seconds() - 1
        with pytest.raises(TemporarilyUnavailable):
            two.keys.verify_refresh_token(token)
        two.db.watch_connection = working  # type: ignore[method-assign]  # the outage is over
        await until(lambda: 2 in two.keys._set.refresh, READ_BY_ALL.total_seconds())
        assert two.keys.verify_refresh_token(token).text == token


async def test_a_change_of_the_keys_is_known_to_each_instance_within_a_second(open_keyturn: Opener) -> None:
    async with open_keyturn() as one, open_keyturn() as two:
        for use in ("access", "refresh"):
            kid = await one.keys.generate(use, by=SERVICE)
            known: dict[str, Any] = {"access": two.keys._set.access, "refresh": two.keys._set.refresh}
            assert kid not in known["access"]
            assert 2 not in known["refresh"]
            for keyturn in (one, two):
                await until(lambda: bool(keyturn.keys.access(kid) or keyturn.keys.refresh(2)), 1.5)  # noqa: B023  # called at once


async def version(keyturn: Keyturn) -> tuple[int, datetime]:
    async with keyturn.db.look() as connection:
        row = (await connection.execute(select(Pulse.keys.label("version"), keyturn.db.now().label("now")))).one()
    return row.version, row.now


async def test_every_change_of_the_keys_gives_them_a_new_version_and_what_is_refused_gives_none(
    keyturn: Keyturn,
) -> None:
    changes: list[Callable[[], Any]] = [
        lambda: keyturn.keys.generate("access", by=SERVICE),
        lambda: keyturn.keys.generate("refresh", by=SERVICE),
        lambda: keyturn.keys.retire("refresh-2", by=SERVICE),
        lambda: keyturn.keys.generate("cookie", by=SERVICE),
        lambda: keyturn.keys.replace(by=SERVICE),
    ]
    versions = {(await version(keyturn))[0]}
    for change in changes:
        await change()
        versions.add((await version(keyturn))[0])
    assert len(versions) == 1 + len(changes)
    only_ones = (await keyturn.keys.replace(by=SERVICE))[0].values()
    before, _ = await version(keyturn)
    for refused in ("no-such-key", *only_ones):
        with pytest.raises((NotFound, Conflict)):
            await keyturn.keys.retire(refused, by=SERVICE)
    assert not await keyturn.keys.make_first(by=SERVICE)
    assert (await version(keyturn))[0] == before


class Followed(Keys):
    """Counts the loads of the table, and delays them while `go_on` is cleared."""

    def __init__(self, keyturn: Keyturn) -> None:
        super().__init__(keyturn.db, KeySeal(master_secret(SECRET)), "HS256")
        self.loads = 0
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.fails: Exception | None = None

    async def read(self) -> Any:
        self.loads += 1
        await self.go_on.wait()
        if self.fails:
            raise self.fails
        return await super().read()


async def test_the_table_is_read_where_its_version_changed_and_only_then(keyturn: Keyturn) -> None:
    keys = Followed(keyturn)
    await keys.load()
    known, now = await version(keyturn)
    for _ in range(3):
        keys.follow(known, now=now, began=monotonic())
        await asyncio.sleep(0.01)
    assert keys.loads == 1
    await keyturn.keys.generate("refresh", by=SERVICE)
    newer, now = await version(keyturn)
    keys.go_on.clear()
    for _ in range(3):  # the process starts one load at a time
        keys.follow(newer, now=now, began=monotonic())
        await asyncio.sleep(0.01)
    assert keys.loads == 2
    keys.go_on.set()
    await until(lambda: keys.refresh(2) is not None, 5)
    keys.follow(newer, now=now, began=monotonic())
    await asyncio.sleep(0.01)
    assert keys.loads == 2
    # An earlier version is followed too: the database came from a backup.
    keys.follow(known, now=now, began=monotonic())
    await until(lambda: keys.loads == 3, 5)


async def test_a_load_that_failed_is_tried_again_at_the_next_reading_and_told_once(
    keyturn: Keyturn, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[tuple[str, str]] = []
    monkeypatch.setattr("app.storage.copies._log.warning", lambda event, cause: lines.append((event, cause)))
    keys = Followed(keyturn)
    await keys.load()
    await keyturn.keys.generate("refresh", by=SERVICE)
    newer, now = await version(keyturn)
    keys.fails = ConfigurationError("a row was changed")
    for n in range(3):
        keys.follow(newer, now=now, began=monotonic())
        await until(lambda: keys.loads == 2 + n and keys._copy._loading is not None and keys._copy._loading.done(), 5)  # noqa: B023  # called at once
    assert lines == [("keys_not_read", "ConfigurationError: a row was changed")]
    assert keys.refresh(1) is not None
    # The process could not read the newest keys all that time, so an unknown key may be a new one.
    keys._read_at = monotonic() - UNREAD_LIMIT.total_seconds() - 1
    keys.follow(newer, now=now, began=monotonic())
    with pytest.raises(TemporarilyUnavailable):
        keys.refresh(2)
    # A retired key may be in a key set that is known to be old: after a while the process goes by none.
    keys.follow(newer, now=now, began=monotonic() + READ_BY_ALL.total_seconds() + 0.1)
    for asked in (
        lambda: keys.refresh(1),
        lambda: keys.access(next(iter(keyturn.keys._set.access))),
        lambda: keys.signing_access,
        lambda: keys.signing_refresh,
        lambda: keys.signing_cookie,
        lambda: keys.cookie(keyturn.keys.signing_cookie.raw_kid),
        lambda: keys.verify_refresh_token(issue(keyturn.keys.signing_refresh, uuid7()).text),
        keys.jwks,
    ):
        with pytest.raises(TemporarilyUnavailable):
            asked()
    keys.fails = None
    await until(lambda: keys._copy._loading is not None and keys._copy._loading.done(), 5)
    keys.follow(newer, now=now, began=monotonic())
    await until(lambda: 2 in keys._set.refresh, 5)
    assert keys._copy._failure is None
    assert keys.refresh(1) is not None
    assert keys.signing_refresh.number == 1
    assert keys.signing_cookie == keyturn.keys.signing_cookie


async def test_an_equal_version_proves_the_keys_fresh_and_an_old_reading_proves_no_more(keyturn: Keyturn) -> None:
    keys = Followed(keyturn)
    await keys.load()
    known, now = await version(keyturn)
    began = monotonic()
    keys._read_at = began - UNREAD_LIMIT.total_seconds() - 1
    keys.follow(known, now=now, began=began - 1)
    assert keys.refresh(9) is None
    assert keys._read_at == began - 1
    keys.follow(known, now=now, began=began - 20)  # an older reading that arrived late
    assert keys._read_at == began - 1


async def test_a_published_key_signs_when_the_database_s_clock_says_so_without_another_load(keyturn: Keyturn) -> None:
    await keyturn.keys.generate("access", by=SERVICE)
    await keyturn.keys.generate("refresh", by=SERVICE)
    cookie = await keyturn.keys.generate("cookie", by=SERVICE)
    keys = Followed(keyturn)
    await keys.load()
    known, _ = await version(keyturn)
    old = keys.signing_access, keys.signing_refresh, keys.signing_cookie
    last = max(keys._set.signs_from.values())
    keys.follow(known, now=last - timedelta(seconds=30), began=monotonic())
    assert (keys.signing_access, keys.signing_refresh, keys.signing_cookie) == old
    keys.follow(known, now=last, began=monotonic())
    assert keys.signing_access != old[0]
    assert keys.signing_refresh.number == 2
    assert keys.signing_cookie.kid == cookie
    assert keys.loads == 1


async def test_the_keys_are_read_again_now_and_then_also_without_a_new_version(keyturn: Keyturn) -> None:
    keys = Followed(keyturn)
    await keys.load()
    known, now = await version(keyturn)
    keys.follow(known, now=now, began=monotonic() + 299)
    await asyncio.sleep(0.01)
    assert keys.loads == 1
    keys.follow(known, now=now, began=monotonic() + 301)
    await until(lambda: keys.loads == 2, 5)


async def key_events(keyturn: Keyturn) -> list[tuple[str, str, str | None]]:
    found = await keyturn_events(keyturn)
    return [(event["event"], event["actor"], event["detail"]) for event in reversed(found)]


async def keyturn_events(keyturn: Keyturn) -> list[Any]:
    return [e for e in await Events(keyturn.db).list(limit=100) if e["event"].startswith("key_")]


async def test_a_change_of_the_keys_leaves_an_event_that_names_key_and_actor(keyturn: Keyturn) -> None:
    first = [key["kid"] for key in await keyturn.keys.list()]
    assert sorted(await key_events(keyturn)) == sorted(("key_generated", "service", kid) for kid in first)
    ada = Actor("command", "ada", request_id="r1")
    kid = await keyturn.keys.generate("refresh", by=ada)
    await keyturn.keys.retire(kid, by=ada)
    await keyturn.keys.retire(kid, by=ada)  # a repeated retirement changes nothing
    with pytest.raises(Conflict):
        await keyturn.keys.retire("refresh-1", by=ada)
    assert (await key_events(keyturn))[3:] == [("key_generated", "command", kid), ("key_retired", "command", kid)]
    made, _ = await keyturn.keys.replace(by=ada)
    recorded = (await key_events(keyturn))[5:]
    assert sorted(recorded) == sorted(
        [("key_retired", "command", kid) for kid in first]
        + [("key_generated", "command", kid) for kid in made.values()]
    )
    assert {(e["actor_id"], e["request_id"]) for e in (await keyturn_events(keyturn))[:8]} == {("ada", "r1")}


async def test_before_the_first_reading_nothing_is_junk_and_nothing_signs(keyturn: Keyturn) -> None:
    token = issue(keyturn.keys.signing_refresh, uuid7()).text
    unread = Keys(keyturn.db, KeySeal(master_secret(SECRET)), "HS256")
    for ask in (
        lambda: unread.verify_refresh_token(token),
        lambda: unread.signing_access,
        lambda: unread.signing_refresh,
        lambda: unread.signing_cookie,
        lambda: unread.cookie(keyturn.keys.signing_cookie.raw_kid),
    ):
        with pytest.raises(TemporarilyUnavailable):
            ask()


async def test_the_published_keys_are_public_ones(keyturn: Keyturn) -> None:
    assert keyturn.keys.jwks() == {"keys": []}
    kids = {
        algorithm: await keyturn.keys.generate("access", algorithm, by=SERVICE) for algorithm in get_args(Algorithm)
    }
    await keyturn.keys.load()
    published = {jwk["kid"]: jwk for jwk in keyturn.keys.jwks()["keys"]}
    assert set(published) == {kids["ES256"], kids["RS256"], kids["EdDSA"]}
    assert {jwk["kty"] for jwk in published.values()} == {"EC", "RSA", "OKP"}
    # RFC 7518 section 6 names these private members of all kinds of keys.
    private = {"d", "p", "q", "dp", "dq", "qi", "oth", "k"}
    assert all(not private & set(jwk) for jwk in published.values())
    assert published[kids["ES256"]]["alg"] == "ES256"
    assert published[kids["EdDSA"]]["use"] == "sig"


@pytest.mark.parametrize(("algorithm", "reader"), [("ES256", ECKey), ("RS256", RSAKey), ("EdDSA", OKPKey)])
async def test_the_id_of_a_public_key_is_its_thumbprint(keyturn: Keyturn, algorithm: Algorithm, reader: Any) -> None:
    for _ in range(3):
        kid = await keyturn.keys.generate("access", algorithm, by=SERVICE)
        await keyturn.keys.load()
        [jwk] = [jwk for jwk in keyturn.keys.jwks()["keys"] if jwk["kid"] == kid]
        assert reader.import_key(jwk).thumbprint() == kid  # RFC 7638


def test_no_key_has_an_id_that_a_command_line_takes_for_an_option() -> None:
    assert not [kid for kid in (kid_of("EdDSA", new_secret("EdDSA")) for _ in range(500)) if kid.startswith("-")]


async def test_the_id_of_a_symmetric_key_says_nothing_about_it(keyturn: Keyturn) -> None:
    key = keyturn.keys.signing_access
    assert key.algorithm == "HS256"
    assert len(key.signing) == 32
    assert len(key.kid) == 16


@pytest.mark.parametrize("bits", get_args(RsaBits))
async def test_an_rsa_key_has_the_size_that_was_asked_for(keyturn: Keyturn, bits: RsaBits) -> None:
    kid = await keyturn.keys.generate("access", "RS256", bits, by=SERVICE)
    await published(keyturn, kid)
    await keyturn.keys.load()
    [jwk] = keyturn.keys.jwks()["keys"]
    assert len(jwt.utils.base64url_decode(jwk["n"])) * 8 == bits
    assert jwk["e"] == "AQAB"  # 65537: some verifiers accept no other exponent
    tokens = await keyturn.starting.start(await a_user(keyturn), by=SERVICE)
    assert jwt.get_unverified_header(tokens.access_token)["kid"] == kid


@pytest.mark.parametrize("algorithm", get_args(Algorithm))
async def test_a_published_key_verifies_what_its_secret_half_signed(open_keyturn: Opener, algorithm: Algorithm) -> None:
    async with open_keyturn(signing_algorithm=algorithm) as keyturn:
        tokens = await keyturn.starting.start(await a_user(keyturn), by=SERVICE)
        header = jwt.get_unverified_header(tokens.access_token)
        assert (header["alg"], header["kid"]) == (algorithm, keyturn.keys.signing_access.kid)
        published = jwt.PyJWKSet.from_dict(keyturn.keys.jwks())[header["kid"]] if algorithm != "HS256" else None
        key = published.key if published else keyturn.keys.signing_access.verifying
        assert jwt.decode(tokens.access_token, key, [algorithm], audience="https://auth.example.com")["sid"]


async def test_numbers_of_refresh_keys_are_never_given_twice_and_end_at_200(keyturn: Keyturn) -> None:
    async with keyturn.db.begin() as tx:
        now = await tx.scalar(select(keyturn.db.now()))
        assert now is not None
        retired = {
            "use": "refresh",
            "algorithm": "HMAC-SHA256",
            "sealed": b"retired",
            "created_at": now,
            "signs_from": now,
            "retired_at": now,
        }
        await tx.execute(insert(Key), [{"kid": f"refresh-{n}", "number": n, **retired} for n in range(2, 200)])
    assert await keyturn.keys.generate("refresh", by=SERVICE) == "refresh-200"
    with pytest.raises(Conflict, match="200 refresh keys"):
        await keyturn.keys.generate("refresh", by=SERVICE)
    assert await keyturn.keys.generate("access", by=SERVICE)
    # A retired row that can't be unsealed does not prevent a start.
    await keyturn.keys.load()
    assert sorted(keyturn.keys._set.refresh) == [1, 200]
    # A caller who used these up can't keep anybody from signing everyone out: 54 numbers are kept for that.
    for number in range(201, 255):
        kids = await (keyturn.keys.sign_everyone_out if number % 2 else keyturn.keys.replace)(by=SERVICE)
        assert f"refresh-{number}" in str(kids)
    with pytest.raises(Conflict, match="254 refresh keys"):
        await keyturn.keys.sign_everyone_out(by=SERVICE)
    with pytest.raises(Conflict, match="200 refresh keys"):
        await keyturn.key_changes.rotate("refresh", by=SERVICE)
    async with keyturn.db.begin() as tx:
        assert await tx.scalar(select(func.count()).where(Key.number.is_not(None))) == 254


async def test_no_repr_shows_a_key(keyturn: Keyturn) -> None:
    await keyturn.keys.generate("access", "EdDSA", by=SERVICE)
    await keyturn.keys.load()
    key_set = keyturn.keys._set
    shown = repr((key_set, keyturn.keys, keyturn.keys.signing_access, await rows(keyturn), await keyturn.keys.list()))
    for key in key_set.access.values():
        assert key.kid in shown
        secret = secret_of(key)
        for spelling in (repr(secret)[2:-1], secret.hex(), repr(key.signing)):
            assert spelling not in shown
    for refresh in key_set.refresh.values():
        for secret in (refresh.next_key, refresh.tag_key):
            assert repr(secret)[2:-1] not in shown
    for cookie in key_set.cookie.values():
        assert cookie.kid in shown
        assert repr(cookie.secret)[2:-1] not in shown
    assert "signing" not in repr(AccessKey("kid", "HS256", b"secret", b"secret"))
    assert json.dumps(keyturn.keys.jwks())
