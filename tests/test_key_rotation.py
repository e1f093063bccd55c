"""Rotation: one act that publishes a key, lets it sign, and retires the others when their last token is over."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from time import monotonic
from typing import Any, get_args

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from sqlalchemy import text, update

from app.actors import SERVICE
from app.errors import ConfigurationError, Conflict, InvalidGrant, InvalidRequest, WrongSettings
from app.events.reading import Events
from app.keyturn import Keyturn
from app.sessions.filters import Filter
from app.settings import LEEWAY, Algorithm
from app.settings_sessions import LONGEST_ACCESS_TOKEN
from app.storage.tables import Key
from app.tokens.key_set import Use
from app.tokens.key_table import PUBLISHED_FOR
from app.tokens.master_secret import previous_secret_of
from tests.conftest import SECRET, Opener, a_user, settings_of
from tests.test_keys import Followed, change, rows, status, version

OTHER = "b" + SECRET[1:]
PUBLISHED = PUBLISHED_FOR + timedelta(seconds=1)


async def listed(keyturn: Keyturn, use: Use) -> list[dict[str, Any]]:
    return [key for key in await keyturn.keys.list() if key["use"] == use]


async def keys_age(keyturn: Keyturn, how_much: timedelta) -> None:
    """Makes all keys older: the database's clock stays, so their moments move. A process notices at a reading."""
    shift: Any = how_much if keyturn.db.is_postgres else how_much // timedelta(microseconds=1)
    by = "CAST(:shift AS interval)" if keyturn.db.is_postgres else ":shift"
    moves = ", ".join(f"{c} = {c} - {by}" for c in ("created_at", "signs_from", "retired_at"))
    async with keyturn.db.begin() as tx:
        await tx.execute(text(f"UPDATE keys SET {moves}"), {"shift": shift})
    await keyturn.keys.load()


async def events_of(keyturn: Keyturn, *kinds: str) -> list[str | None]:
    found = reversed(await Events(keyturn.db).list(limit=100))
    return [event["detail"] for event in found if event["event"] in kinds]


@pytest.mark.parametrize("use", get_args(Use))
async def test_a_rotation_publishes_a_key_and_plans_when_the_others_retire(keyturn: Keyturn, use: Use) -> None:
    [old] = await listed(keyturn, use)
    made = await keyturn.key_changes.rotate(use, by=SERVICE)
    before, new = made.keys
    assert (before["kid"], before["status"], before["retired_at"]) == (old["kid"], "signs", None)
    assert (new["kid"], new["status"], new["retires_at"]) == (made.kid, "published", None)
    assert new["signs_from"] - new["created_at"] == PUBLISHED_FOR
    minute, idle = timedelta(minutes=1), keyturn.settings.refresh_token_lifetime
    last = LONGEST_ACCESS_TOKEN + LEEWAY + minute if use == "access" else 2 * idle + minute
    assert before["retires_at"] - new["signs_from"] == last
    await keys_age(keyturn, PUBLISHED)
    assert await status(keyturn) | {old["kid"]: "retiring", made.kid: "signs"} == await status(keyturn)
    await keys_age(keyturn, last)
    assert await status(keyturn) | {old["kid"]: "retired", made.kid: "signs"} == await status(keyturn)
    [old] = [key for key in await listed(keyturn, use) if key["status"] == "retired"]
    assert old["retires_at"] is None
    assert old["retired_at"] is not None
    planned = f"{old['kid']} at {before['retires_at']:%Y-%m-%dT%H:%MZ}"
    assert (await events_of(keyturn, "key_generated", "key_retired"))[3:] == [made.kid, planned]


async def test_the_retirement_of_refresh_and_cookie_keys_waits_for_no_longer_than_a_session_may_live(
    open_keyturn: Opener,
) -> None:
    async with open_keyturn(refresh_token_lifetime=86_400, session_lifetime=100_000) as keyturn:
        for use in ("refresh", "cookie"):
            before, new = (await keyturn.key_changes.rotate(use, by=SERVICE)).keys
            assert before["retires_at"] - new["signs_from"] == timedelta(seconds=100_060)


@pytest.mark.parametrize("use", get_args(Use))
async def test_a_rotation_that_broke_off_goes_on_and_makes_no_other_key(keyturn: Keyturn, use: Use) -> None:
    made = await keyturn.key_changes.rotate(use, by=SERVICE)
    events = await events_of(keyturn, "key_generated", "key_retired")
    for _ in range(2):
        assert await keyturn.key_changes.rotate(use, by=SERVICE) == made
    assert await events_of(keyturn, "key_generated", "key_retired") == events
    await keys_age(keyturn, PUBLISHED)
    # The new key signs now, so a further call is a further rotation. It leaves the moment of the oldest key alone.
    [first, second] = [key["retires_at"] for key in await listed(keyturn, use)]
    assert second is None
    again = await keyturn.key_changes.rotate(use, by=SERVICE)
    assert again.kid != made.kid
    assert again.keys[0]["retires_at"] == first
    assert [key["status"] for key in again.keys] == ["retiring", "signs", "published"]
    assert again.keys[1]["retires_at"] > first


async def test_two_rotations_at_once_are_one(open_keyturn: Opener) -> None:
    async with open_keyturn() as one, open_keyturn() as two:
        made = await asyncio.gather(*(k.key_changes.rotate("refresh", by=SERVICE) for k in (one, two, one, two)))
        assert {each.kid for each in made} == {"refresh-2"}
        assert len(await listed(one, "refresh")) == 2


async def test_a_rotation_goes_on_with_a_key_that_was_generated_and_makes_one_of_another_kind_where_asked(
    keyturn: Keyturn,
) -> None:
    generated = await keyturn.key_changes.generate("access", "RS256", by=SERVICE)
    for words in ((), ("RS256",), ("RS256", 2048)):
        assert (await keyturn.key_changes.rotate("access", *words, by=SERVICE)).kid == generated.kid
    larger = await keyturn.key_changes.rotate("access", "RS256", 3072, by=SERVICE)
    assert larger.kid != generated.kid
    assert (await keyturn.key_changes.rotate("access", "RS256", 3072, by=SERVICE)).kid == larger.kid
    other = await keyturn.key_changes.rotate("access", "EdDSA", by=SERVICE)
    assert {key["kid"]: key["retires_at"] is None for key in other.keys} == {
        key["kid"]: key["kid"] == other.kid for key in other.keys
    }
    for use, algorithm, bits in (("refresh", "ES256", None), ("cookie", None, 2048), ("access", "ES256", 2048)):
        with pytest.raises(InvalidRequest):
            await keyturn.key_changes.rotate(use, algorithm, bits, by=SERVICE)  # type: ignore[arg-type]  # strings


@pytest.mark.parametrize("act", ["generate", "rotate", "replace", "sign_everyone_out"])
async def test_each_act_without_a_named_algorithm_keeps_that_of_the_newest_key(open_keyturn: Opener, act: str) -> None:
    async with open_keyturn(signing_algorithm="ES256") as keyturn:
        [first] = await listed(keyturn, "access")
        assert first["algorithm"] == "ES256"
    async with open_keyturn() as keyturn:  # as a command in a shell that lacks the setting
        await getattr(keyturn.keys if act == "replace" else keyturn.key_changes, act)(
            *(["access"] if act in {"generate", "rotate"} else []), by=SERVICE
        )
        assert [key["algorithm"] for key in await listed(keyturn, "access")] == ["ES256", "ES256"]
        # The newest key is retired, and the one before it has another algorithm: that counts.
        eddsa = await keyturn.key_changes.generate("access", "EdDSA", by=SERVICE)
        assert await keyturn.keys.algorithm() == "EdDSA"
        await keyturn.keys.retire(eddsa.kid, by=SERVICE)
        assert await keyturn.keys.algorithm() == "ES256"
    async with open_keyturn(signing_algorithm="RS256") as keyturn:
        assert await keyturn.keys.algorithm() == "RS256"
        assert await keyturn.keys.algorithm("EdDSA") == "EdDSA"


async def test_the_size_of_an_rsa_key_may_be_named_alone_where_the_newest_key_is_one(keyturn: Keyturn) -> None:
    with pytest.raises(InvalidRequest):
        await keyturn.key_changes.rotate("access", None, 3072, by=SERVICE)
    await keyturn.key_changes.generate("access", "RS256", by=SERVICE)
    larger = await keyturn.key_changes.rotate("access", None, 3072, by=SERVICE)
    assert [key["algorithm"] for key in larger.keys if key["kid"] == larger.kid] == ["RS256"]


async def test_requests_go_on_while_the_primes_of_an_rsa_key_are_searched(
    keyturn: Keyturn, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, loops = rsa.generate_private_key, []

    def noted(**sizes: int) -> rsa.RSAPrivateKey:
        loops.append(asyncio._get_running_loop())  # None in a thread of its own
        return search(**sizes)

    monkeypatch.setattr(rsa, "generate_private_key", noted)
    await keyturn.key_changes.generate("access", "RS256", by=SERVICE)
    await keyturn.key_changes.rotate("access", "RS256", 3072, by=SERVICE)
    assert len(loops) >= 2  # more where an id would begin with "-"
    assert set(loops) == {None}


@pytest.mark.parametrize("algorithm", get_args(Algorithm))
async def test_nobody_is_refused_from_the_rotation_to_the_retirement(
    open_keyturn: Opener, algorithm: Algorithm
) -> None:
    async with open_keyturn() as one, open_keyturn() as two:
        tokens = await one.starting.start(await a_user(one), by=SERVICE)
        cookie = one.cookies._sealed.seal("name", tokens.session_id, b"plain")
        await one.key_changes.rotate("access", algorithm, by=SERVICE)
        await one.key_changes.rotate("refresh", by=SERVICE)
        await one.key_changes.rotate("cookie", by=SERVICE)
        for age in (timedelta(0), PUBLISHED, LONGEST_ACCESS_TOKEN):
            await keys_age(one, age)
            await two.keys.load()
            for keyturn in (one, two, one):
                assert (await keyturn.reading.verify(tokens.access_token)).session_id == tokens.session_id
                assert keyturn.cookies._sealed.open("name", cookie) == (tokens.session_id, b"plain")
                tokens = await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE)
                assert (await keyturn.reading.verify(tokens.access_token)).session_id == tokens.session_id
        await keys_age(one, 2 * one.settings.refresh_token_lifetime)
        assert sorted(await status(one)) == sorted(await status(two))
        assert list((await status(one)).values()).count("retired") == 3
        # The session is under the new key, and goes on. Its row was not touched.
        assert (await one.reading.find(tokens.session_id)).over() is None
        assert (await one.rotation.refresh(tokens.refresh_token, by=SERVICE)).session_id == tokens.session_id
        assert one.cookies._sealed.open("name", cookie) is None


async def test_a_planned_retirement_holds_at_a_reading_of_the_pulse_without_another_load(keyturn: Keyturn) -> None:
    tokens = await keyturn.starting.start(await a_user(keyturn), by=SERVICE)
    for use in get_args(Use):
        await keyturn.key_changes.rotate(use, by=SERVICE)
    keys = Followed(keyturn)  # no pulse reaches it but the test's
    await keys.load()
    known, _ = await version(keyturn)
    access, refresh, cookie = keys.signing_access.kid, keys.signing_refresh.number, keys.signing_cookie.raw_kid

    def there() -> list[bool]:
        verified = keys.verify_refresh_token(tokens.refresh_token).key.retired
        assert verified == (keys.retired(refresh) is not None) == (keys.refresh(refresh) is None)
        return [each is not None for each in (keys.access(access), keys.refresh(refresh), keys.cookie(cookie))]

    moments = {name: keys._set.retires_at[name] for name in (access, refresh, cookie)}
    expected = [True, True, True]
    for n, moment in enumerate(moments.values()):
        for now in (moment - timedelta(microseconds=1), moment):
            expected[n] = now != moment
            keys.follow(known, now=now, began=monotonic())
            assert there() == expected
    assert keys.retired(refresh) == "revoked_by_admin"
    assert keys._set.retires_at == {}
    assert keys.loads == 1


@pytest.mark.parametrize("use", get_args(Use))
async def test_a_key_whose_retirement_is_planned_may_be_retired_at_once_when_the_new_one_signs(
    keyturn: Keyturn, use: Use
) -> None:
    made = await keyturn.key_changes.rotate(use, by=SERVICE)
    old = made.keys[0]["kid"]
    with pytest.raises(Conflict):
        await keyturn.keys.retire(old, by=SERVICE)
    await keys_age(keyturn, PUBLISHED)
    await keyturn.keys.retire(old, by=SERVICE)
    assert (await status(keyturn))[old] == "retired"
    await keyturn.keys.retire(old, by=SERVICE)
    assert (await events_of(keyturn, "key_retired")).count(old) == 1


@pytest.mark.parametrize("use", get_args(Use))
@pytest.mark.parametrize("signs", [False, True])
async def test_a_rotation_whose_new_key_is_retired_is_taken_back(keyturn: Keyturn, use: Use, signs: bool) -> None:
    made = await keyturn.key_changes.rotate(use, by=SERVICE)
    old = made.keys[0]["kid"]
    if signs:
        await keys_age(keyturn, PUBLISHED)
    await keyturn.keys.retire(made.kid, by=SERVICE)
    [before, _] = await listed(keyturn, use)
    assert (before["kid"], before["status"], before["retires_at"]) == (old, "signs", None)
    # While another key that stays can sign, the plans stay too.
    for _ in range(2):
        await keyturn.key_changes.rotate(use, by=SERVICE)
        await keys_age(keyturn, PUBLISHED)
    published = await keyturn.key_changes.generate(use, by=SERVICE)
    await keyturn.keys.retire(published.kid, by=SERVICE)
    assert [key["retires_at"] is None for key in await listed(keyturn, use) if key["status"] != "retired"] == [
        False, False, True,
    ]  # fmt: skip


async def test_first_keys_are_made_where_the_last_ones_of_a_use_are_over(keyturn: Keyturn) -> None:
    [key] = await listed(keyturn, "cookie")
    await change(keyturn, key["kid"], retired_at=key["created_at"] + timedelta(days=400))
    assert not await keyturn.keys.make_first(by=SERVICE)
    await change(keyturn, key["kid"], retired_at=key["created_at"])
    assert await keyturn.keys.make_first(by=SERVICE)


async def test_the_wait_ends_when_the_new_key_signs_and_is_refused_when_it_never_will(keyturn: Keyturn) -> None:
    made = await keyturn.key_changes.rotate("refresh", by=SERVICE)
    waiting = asyncio.create_task(keyturn.key_changes.signs(made.kid))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await keys_age(keyturn, PUBLISHED)
    assert {key["kid"]: key["status"] for key in (await waiting).keys} == {
        "refresh-1": "retiring",
        "refresh-2": "signs",
    }
    third = await keyturn.key_changes.rotate("refresh", by=SERVICE)
    await keyturn.keys.retire(third.kid, by=SERVICE)
    with pytest.raises(Conflict):
        await keyturn.key_changes.signs(third.kid)


# -- the master secret


async def sealed_under(keyturn: Keyturn) -> set[str | None]:
    return {key["sealed_under"] for key in await keyturn.keys.list()}


async def test_the_master_secret_changes_under_running_instances_and_nobody_is_signed_out(open_keyturn: Opener) -> None:
    async with open_keyturn() as old, open_keyturn(secret=OTHER, secret_previous=SECRET) as new:
        tokens = await old.starting.start(await a_user(old), by=SERVICE)
        await old.key_changes.generate("refresh", by=SERVICE)
        await old.keys.retire("refresh-2", by=SERVICE)
        await new.keys.load()
        assert await sealed_under(new) == {"previous"}
        tokens = await new.rotation.refresh(tokens.refresh_token, by=SERVICE)
        tokens = await old.rotation.refresh(tokens.refresh_token, by=SERVICE)
        assert await new.key_rotation.rewrap(by=SERVICE) == 4
        assert await sealed_under(new) == {"current"}
        assert await sealed_under(old) == {None}
        assert await events_of(new, "keys_rewrapped") == ["4"]
        assert await new.key_rotation.rewrap(by=SERVICE) == 0
        assert await events_of(new, "keys_rewrapped") == ["4"]
        with pytest.raises(ConfigurationError):
            await old.keys.load()
        await new.keys.load()
        tokens = await new.rotation.refresh(tokens.refresh_token, by=SERVICE)
    async with open_keyturn(secret=OTHER) as later:
        assert await sealed_under(later) == {"current"}
        assert (await later.reading.verify(tokens.access_token)).session_id == tokens.session_id
        await later.rotation.refresh(tokens.refresh_token, by=SERVICE)


async def test_new_keys_are_sealed_under_the_new_secret_alone(open_keyturn: Opener) -> None:
    async with open_keyturn():
        pass
    async with open_keyturn(secret=OTHER, secret_previous=SECRET) as both:
        made = await both.key_changes.generate("access", by=SERVICE)
        assert {k["kid"] for k in await both.keys.list() if k["sealed_under"] == "current"} == {made.kid}
        # The first rewrap was interrupted by nothing, but keys were made since: only the others move.
        assert await both.key_rotation.rewrap(by=SERVICE) == 3


async def test_a_rewrap_that_meets_a_key_which_it_can_not_open_changes_nothing(open_keyturn: Opener) -> None:
    async with open_keyturn():
        pass
    async with open_keyturn(secret=OTHER, secret_previous=SECRET) as both:
        row = (await rows(both))[-1]
        await change(both, row.kid, sealed=bytes(len(row.sealed)))
        before = {row.kid: row.sealed for row in await rows(both)}
        with pytest.raises(ConfigurationError, match=f"key {row.kid} opens neither"):
            await both.key_rotation.rewrap(by=SERVICE)
        assert {row.kid: row.sealed for row in await rows(both)} == before
        # A retired key that nobody can open is no reason to stay.
        async with both.db.begin() as tx:
            await tx.execute(update(Key).where(Key.kid == row.kid).values(retired_at=row.created_at))
        assert await both.key_rotation.rewrap(by=SERVICE) == 2


async def test_the_previous_secret_is_checked_as_the_present_one_is() -> None:
    for value in (SECRET, "A" * 44):
        with pytest.raises(WrongSettings, match="KEYTURN_SECRET_PREVIOUS") as caught:
            previous_secret_of(settings_of("sqlite+aiosqlite:///x", None, secret_previous=value))
        assert value not in str(caught.value)
    assert previous_secret_of(settings_of("sqlite+aiosqlite:///x", None)) is None


async def test_a_key_of_a_planned_retirement_ends_no_session_and_a_session_under_it_is_live(keyturn: Keyturn) -> None:
    tokens = await keyturn.starting.start(await a_user(keyturn), by=SERVICE)
    await keyturn.key_changes.rotate("refresh", by=SERVICE)
    assert (await keyturn.reading.find(tokens.session_id)).over() is None
    assert [row.id for row in (await keyturn.reading.list(Filter(), limit=9)).sessions] == [tokens.session_id]
    await keys_age(keyturn, PUBLISHED + 2 * keyturn.settings.refresh_token_lifetime + timedelta(minutes=1))
    # Only a process with a longer setting could have left a session there. It is over, as under any retired key.
    assert (await keyturn.reading.find(tokens.session_id)).over() == "revoked_by_admin"
    assert (await keyturn.reading.list(Filter(), limit=9)).sessions == []
    with pytest.raises(InvalidGrant):
        await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE)


def test_the_moment_of_a_planned_retirement_fits_beside_the_longest_id_of_a_key() -> None:
    from app.storage.tables import Event

    assert Event.detail.type.length >= len("x" * 43 + f" at {datetime(2026, 1, 1):%Y-%m-%dT%H:%MZ}")  # noqa: DTZ001  # only its length
