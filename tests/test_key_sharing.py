"""HS256 keys that are shared with services which verify by themselves: explicit, warned of, and recorded."""

from __future__ import annotations

import base64
import os

import jwt
import pytest

from app.actors import SERVICE, Actor
from app.errors import Conflict, NotFound, WrongSettings
from app.events.reading import Events
from app.keyturn import Keyturn
from app.tokens.key_table import PUBLISHED_FOR
from tests.conftest import SECRET, Opener, a_user
from tests.test_keys import change, published, rows

ADA = Actor("command", "ada")


def a_key(size: int = 32) -> tuple[bytes, str]:
    secret = os.urandom(size)
    return secret, base64.b64encode(secret).decode()


async def test_an_imported_key_is_published_and_then_signs_what_its_other_holder_verifies(
    open_keyturn: Opener,
) -> None:
    secret, text = a_key()
    async with open_keyturn(signing_algorithm="ES256") as one, open_keyturn() as two:
        kid = await one.key_sharing.take(text, by=ADA)
        [row] = [row for row in await rows(one) if row.kid == kid]
        assert (row.use, row.algorithm, row.signs_from - row.created_at) == ("access", "HS256", PUBLISHED_FOR)
        assert secret not in row.sealed
        proof = await a_user(one)
        assert jwt.get_unverified_header((await one.starting.start(proof, by=SERVICE)).access_token)["kid"] != kid
        await published(one, kid)
        for keyturn in (one, two):
            await keyturn.keys.load()
        token = (await two.starting.start(proof, by=SERVICE)).access_token
        assert jwt.get_unverified_header(token)["kid"] == kid
        claims = jwt.decode(token, secret, ["HS256"], audience="https://auth.example.com")
        assert (await one.reading.verify(token)).claims == claims
        [event] = [e for e in await Events(one.db).list(limit=9) if e["event"] == "key_imported"]
        assert (event["detail"], event["actor_id"]) == (kid, "ada")
        assert kid not in {jwk["kid"] for jwk in one.keys.jwks()["keys"]}


@pytest.mark.parametrize("spell", [base64.b64encode, base64.urlsafe_b64encode, bytes.hex])
async def test_a_key_is_read_in_each_spelling(keyturn: Keyturn, spell: object) -> None:
    secret = os.urandom(48)
    text = spell(secret)  # type: ignore[operator]  # one of the functions
    kid = await keyturn.key_sharing.take(text if isinstance(text, str) else text.decode(), by=ADA)
    await keyturn.keys.load()
    key = keyturn.keys.access(kid)
    assert key is not None
    assert key.signing == secret
    given = await keyturn.key_sharing.give(kid, by=ADA)
    assert base64.urlsafe_b64decode(given + "=" * (-len(given) % 4)) == secret
    assert "=" not in given


@pytest.mark.parametrize(
    "text",
    ["", "c2hvcnQ=", a_key(31)[1], "A" * 44, "correct horse battery staple, correct horse", "é" * 44],
    ids=["empty", "short", "31 bytes", "one letter", "words", "not ASCII"],
)
async def test_a_weak_key_is_refused_and_not_repeated(keyturn: Keyturn, text: str) -> None:
    before = await rows(keyturn)
    with pytest.raises(WrongSettings, match="the key") as caught:
        await keyturn.key_sharing.take(text, by=ADA)
    assert not text or text not in str(caught.value)
    assert len(await rows(keyturn)) == len(before)


async def test_a_key_that_is_there_already_is_refused_also_when_it_is_retired(keyturn: Keyturn) -> None:
    _, text = a_key()
    kid = await keyturn.key_sharing.take(text, by=ADA)
    for _ in range(2):
        with pytest.raises(Conflict, match="the key is there") as caught:
            await keyturn.key_sharing.take(text, by=ADA)
        assert kid in caught.value.description
        [row] = [row for row in await rows(keyturn) if row.kid == kid]
        await change(keyturn, kid, retired_at=row.created_at)
    assert len(await rows(keyturn)) == 4
    own = await keyturn.key_sharing.give(keyturn.keys.signing_access.kid, by=ADA)
    with pytest.raises(Conflict):
        await keyturn.key_sharing.take(own, by=ADA)


async def test_the_master_secret_is_taken_for_no_key(open_keyturn: Opener) -> None:
    async with open_keyturn(secret="b" + SECRET[1:], secret_previous=SECRET) as keyturn:
        for text in (SECRET, "b" + SECRET[1:]):
            with pytest.raises(WrongSettings, match="master secret"):
                await keyturn.key_sharing.take(text, by=ADA)


async def test_an_exported_key_is_the_one_that_signs_and_its_event_says_who_has_it(keyturn: Keyturn) -> None:
    kid = keyturn.keys.signing_access.kid
    given = await keyturn.key_sharing.give(kid, by=ADA)
    assert base64.urlsafe_b64decode(given + "=" * (-len(given) % 4)) == keyturn.keys.signing_access.signing
    [event] = [e for e in await Events(keyturn.db).list(limit=9) if e["event"] == "key_exported"]
    assert (event["detail"], event["actor_id"]) == (kid, "ada")


async def test_no_key_but_an_hs256_access_key_in_force_is_exported(keyturn: Keyturn) -> None:
    es256 = await keyturn.keys.generate("access", "ES256", by=ADA)
    retired = await keyturn.keys.generate("access", "HS256", by=ADA)
    await keyturn.keys.retire(retired, by=ADA)
    for kid in (es256, retired, "refresh-1", keyturn.keys.signing_cookie.kid):
        with pytest.raises(Conflict):
            await keyturn.key_sharing.give(kid, by=ADA)
    with pytest.raises(NotFound):
        await keyturn.key_sharing.give("no-such-key", by=ADA)
    assert "key_exported" not in {e["event"] for e in await Events(keyturn.db).list(limit=20)}
