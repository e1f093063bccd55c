"""Sealed cookie values: a format that another implementation opens, and that no change survives."""

from __future__ import annotations

import os
from base64 import urlsafe_b64decode, urlsafe_b64encode
from time import monotonic
from typing import Any
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from app.actors import SERVICE
from app.errors import TemporarilyUnavailable
from app.keyturn import Keyturn
from app.routes.presented_cookies import PresentedCookies
from app.storage.tables import uuid7
from app.tokens.key_set import CookieKey, KeySet
from app.tokens.keys import UNREAD_LIMIT, Keys
from app.tokens.primitives import derive, from_base64url, prepared_hkdf, to_base64url
from app.tokens.sealed_cookies import SealedCookies
from tests.conftest import Opener
from tests.test_keys import published

ACCESS, REFRESH = "__Host-Http-keyturn-access", "__Host-Http-keyturn-refresh"
SESSION = UUID("019cb0a0-6c1f-7d3e-9c52-3b1f6de0a7c4")
PLAIN = b"\x01ktr_example"
KEY = CookieKey("0011223344556677", bytes(range(32)))
OTHER = CookieKey("8899aabbccddeeff", bytes(range(1, 33)))
VECTOR = "ABEiM0RVZncBnLCgbB99PpxSOx9t4KfEAAECAwQFBgcICQoLFzDllUKCzKjwlyXF7I1uh0zF07kcf07x2-XZEg"
"""`PLAIN` as `REFRESH` of `SESSION` under `KEY`, with the nonce 0, 1, 2 … 11."""


class Ring(Keys):
    """Cookie keys in memory, without a database. The first one seals."""

    def __init__(self, *keys: CookieKey) -> None:
        self._set = KeySet({}, {}, {}, {key.raw_kid: key for key in keys}, {})
        self._signing_cookie = keys[0]
        self._read_at = float("inf")


COOKIES = SealedCookies(Ring(KEY, OTHER))


def opened_elsewhere(name: str, text: str, secret: bytes) -> tuple[bytes, UUID, bytes]:
    """Key id, session and plain bytes, as an implementation in another language would find them."""
    raw = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    kid, session, nonce, sealed = raw[:8], raw[8:24], raw[24:36], raw[36:]
    key = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"keyturn sealed cookie v1" + session).derive(secret)
    return kid, UUID(bytes=session), AESGCM(key).decrypt(nonce, sealed, name.encode() + b"\0" + session)


def spelled(raw: bytes | bytearray) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def test_the_format_is_that_of_the_known_answer() -> None:
    assert COOKIES.open(REFRESH, VECTOR) == (SESSION, PLAIN)
    assert opened_elsewhere(REFRESH, VECTOR, KEY.secret) == (KEY.raw_kid, SESSION, PLAIN)


@given(st.sampled_from([ACCESS, REFRESH, "keyturn-access"]), st.uuids(), st.binary(max_size=600))
def test_what_is_sealed_is_opened_again_here_and_elsewhere(name: str, session_id: UUID, plain: bytes) -> None:
    text = COOKIES.seal(name, session_id, plain)
    assert COOKIES.open(name, text) == (session_id, plain)
    assert opened_elsewhere(name, text, KEY.secret) == (KEY.raw_kid, session_id, plain)


@given(st.binary(min_size=1, max_size=100), st.binary(max_size=100))
def test_the_prepared_derivation_is_hkdf(secret: bytes, label: bytes) -> None:
    hkdf = HKDF(algorithm=SHA256(), length=32, salt=None, info=label).derive(secret)
    assert prepared_hkdf(secret)(label) == derive(secret, label) == hkdf


def test_the_prepared_derivation_is_that_of_the_standard() -> None:
    # RFC 5869 appendix A.3: no salt, no info. The first 32 of its 42 bytes.
    expected = "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"
    assert prepared_hkdf(b"\x0b" * 22)(b"").hex() == expected


def test_equal_bytes_are_sealed_into_different_values_that_do_not_show_them() -> None:
    values = {COOKIES.seal(ACCESS, SESSION, PLAIN) for _ in range(1000)}
    assert len(values) == 1000
    assert len({value[32:48] for value in values}) == 1000  # the nonces, which one key may never use twice
    assert all(PLAIN not in urlsafe_b64decode(value + "==") for value in values)


def test_each_session_has_its_own_key() -> None:
    other = uuid7()
    raw = urlsafe_b64decode(COOKIES.seal(ACCESS, SESSION, PLAIN) + "==")
    assert COOKIES.open(ACCESS, spelled(raw[:8] + other.bytes + raw[24:])) is None
    sealings = [KEY.sealing(b"keyturn sealed cookie v1" + session.bytes) for session in (SESSION, other)]
    associated = ACCESS.encode() + b"\0" + SESSION.bytes
    assert [sealing.open(raw[24:], associated) for sealing in sealings] == [PLAIN, None]


def test_every_single_bit_of_a_value_counts() -> None:
    raw = urlsafe_b64decode(COOKIES.seal(ACCESS, SESSION, PLAIN) + "==")
    assert COOKIES.open(ACCESS, spelled(raw)) == (SESSION, PLAIN)
    for bit in range(len(raw) * 8):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        assert COOKIES.open(ACCESS, spelled(changed)) is None, bit


def test_every_single_character_of_a_value_counts() -> None:
    text = COOKIES.seal(ACCESS, SESSION, PLAIN)  # 64 bytes: the last character has spare bits
    assert len(text) % 4 == 2
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for place, character in enumerate(text):
        for other in alphabet:
            if other != character:
                assert COOKIES.open(ACCESS, text[:place] + other + text[place + 1 :]) is None, (place, other)


@pytest.mark.parametrize("part", [(0, 8), (8, 24), (24, 36), (36, -16), (-16, None)])
def test_no_part_of_a_value_fits_into_another_value(part: tuple[int, int | None]) -> None:
    one = urlsafe_b64decode(COOKIES.seal(ACCESS, SESSION, PLAIN) + "==")
    foreign = SealedCookies(Ring(OTHER)).seal(ACCESS, uuid7(), PLAIN[::-1])
    two = urlsafe_b64decode(foreign + "==")
    cut = slice(*part)
    mixed = bytearray(one)
    mixed[cut] = two[cut]
    assert COOKIES.open(ACCESS, foreign) is not None
    assert COOKIES.open(ACCESS, spelled(mixed)) is None


def test_a_value_of_one_name_opens_under_no_other() -> None:
    text = COOKIES.seal(ACCESS, SESSION, PLAIN)
    for name in (REFRESH, "keyturn-access", ACCESS.lower(), ACCESS + "\0", ACCESS[:-1], ""):
        assert COOKIES.open(name, text) is None, name


def test_a_value_that_was_cut_or_continued_opens_nothing() -> None:
    text = COOKIES.seal(ACCESS, SESSION, PLAIN)
    for end in range(len(text)):
        assert COOKIES.open(ACCESS, text[:end]) is None, end
    for more in ("A", "AA", "AAAA", text, text[:32]):
        assert COOKIES.open(ACCESS, text + more) is None, more
        assert COOKIES.open(ACCESS, more + text) is None, more


@pytest.mark.parametrize(
    "spell",
    [
        lambda text: text + "=",
        lambda text: text + "==",
        lambda text: text + "\n",
        lambda text: " " + text,
        lambda text: f'"{text}"',
        lambda text: text[:40] + "\n" + text[40:],
        lambda text: text[:40] + "=" + text[40:],
        lambda text: text[:40] + "é" + text[40:],
        lambda text: text[:40] + "\ud800" + text[40:],
        lambda text: text[:40] + "%2D" + text[40:],
        lambda text: text.translate({ord("-"): "+", ord("_"): "/"}),
    ],
)  # fmt: skip
def test_a_value_has_one_spelling(spell: object) -> None:
    assert callable(spell)
    text = next(t for t in iter(lambda: COOKIES.seal(ACCESS, SESSION, PLAIN + b"!"), "") if {"-", "_"} <= set(t))
    assert COOKIES.open(ACCESS, text)
    assert COOKIES.open(ACCESS, spell(text)) is None


@given(st.binary(max_size=40))
def test_base64url_is_read_in_one_spelling_alone(raw: bytes) -> None:
    text = to_base64url(raw).decode()
    assert from_base64url(text) == raw
    for other in (text + "=", text + "+", "/" + text, text + "\n", text + " "):
        with pytest.raises(ValueError):  # noqa: PT011  # binascii's own message
            from_base64url(other)


@given(st.text(max_size=200) | st.text("ABCDEFGHabcdefgh0123-_", min_size=60, max_size=200))
def test_junk_opens_nothing(text: str) -> None:
    assert COOKIES.open(ACCESS, text) is None


def test_a_value_of_no_bytes_is_the_shortest() -> None:
    text = COOKIES.seal(ACCESS, SESSION, b"")
    assert COOKIES.open(ACCESS, text) == (SESSION, b"")
    assert len(text) == 70


def test_a_value_with_the_largest_access_token_stays_below_what_a_browser_keeps() -> None:
    # Browsers keep 4096 bytes of name and value. A token of 2900 bytes leaves room for it.
    assert len(ACCESS) + len(COOKIES.seal(ACCESS, SESSION, os.urandom(1 + 2900))) <= 4096


def test_no_repr_shows_a_cookie_key() -> None:
    shown = repr((KEY, COOKIES))
    assert KEY.kid in shown
    for spelling in (repr(KEY.secret)[2:-1], KEY.secret.hex(), "sealing"):
        assert spelling not in shown


def test_no_repr_shows_a_presented_cookie() -> None:
    value = COOKIES.seal(ACCESS, SESSION, PLAIN)
    unused: Any = None
    assert value not in repr(PresentedCookies(unused, {ACCESS: [value]}))


# -- the keys


async def test_the_old_key_opens_and_the_new_one_seals(open_keyturn: Opener) -> None:
    async with open_keyturn() as keyturn:
        cookies, old = SealedCookies(keyturn.keys), keyturn.keys.signing_cookie
        before = cookies.seal(ACCESS, SESSION, PLAIN)
        new = await keyturn.keys.generate("cookie", by=SERVICE)
        await keyturn.keys.load()
        assert keyturn.keys.signing_cookie == old  # the new key is published, and does not seal yet
        await published(keyturn, new)
        await keyturn.keys.load()
        after = cookies.seal(ACCESS, SESSION, PLAIN)
        assert from_base64url(after)[:8].hex() == new
        assert cookies.open(ACCESS, before) == cookies.open(ACCESS, after) == (SESSION, PLAIN)
        await keyturn.keys.retire(old.kid, by=SERVICE)
        await keyturn.keys.load()
        assert cookies.open(ACCESS, before) is None
        assert cookies.open(ACCESS, after) == (SESSION, PLAIN)
        await keyturn.keys.replace(by=SERVICE)
        await keyturn.keys.load()
        assert cookies.open(ACCESS, after) is None


async def test_each_instance_opens_what_another_sealed(open_keyturn: Opener) -> None:
    async with open_keyturn() as one, open_keyturn() as two:
        assert SealedCookies(two.keys).open(ACCESS, SealedCookies(one.keys).seal(ACCESS, SESSION, PLAIN)) == (
            SESSION,
            PLAIN,
        )


async def test_a_value_under_an_unknown_key_is_junk_and_no_verdict_while_its_key_may_be_new(keyturn: Keyturn) -> None:
    text = SealedCookies(Ring(OTHER)).seal(ACCESS, SESSION, PLAIN)
    cookies = SealedCookies(keyturn.keys)
    assert cookies.open(ACCESS, text) is None
    keyturn.keys._read_at = monotonic() - UNREAD_LIMIT.total_seconds() - 1
    with pytest.raises(TemporarilyUnavailable):
        cookies.open(ACCESS, text)
    # A text that never was a value is junk all the same, and a forged value under a known key too.
    assert cookies.open(ACCESS, "junk") is None
    forged = keyturn.keys.signing_cookie.raw_kid + from_base64url(text)[8:]
    assert cookies.open(ACCESS, spelled(forged)) is None
