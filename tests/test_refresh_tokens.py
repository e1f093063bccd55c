"""The format of refresh tokens: exact, keyed, derived."""

from __future__ import annotations

import base64
import hmac
import os
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidGrant
from app.storage.tables import uuid7
from app.tokens.refresh_tokens import PATTERN, RefreshKey, RefreshToken, issue, verify

KEY = RefreshKey.derive(7, bytes(range(32)))
OTHER = RefreshKey.derive(8, bytes(range(1, 33)))


def read(text: str, key: RefreshKey = KEY) -> RefreshToken | None:
    try:
        return verify(text, {key.number: key})
    except (InvalidGrant, KeyError):
        return None


tokens = st.builds(
    RefreshToken,
    st.just(KEY),
    st.uuids().map(lambda each: each.bytes),
    st.integers(0, 2**32 - 1),
    st.binary(min_size=32, max_size=32),
)


@given(tokens)
def test_what_is_written_is_read_again(token: RefreshToken) -> None:
    assert PATTERN.fullmatch(token.text)
    assert len(token.text) == 88
    assert read(token.text) == token


@given(tokens, st.integers(0, 63 * 8 - 1))
def test_a_token_with_any_bit_flipped_is_not_ours(token: RefreshToken, bit: int) -> None:
    raw = bytearray(bytes(token))
    raw[bit // 8] ^= 1 << bit % 8
    assert read("ktr_" + base64.urlsafe_b64encode(raw).decode()) is None


def test_every_single_bit_of_one_token_counts() -> None:
    raw = bytes(issue(KEY, uuid7()))
    for bit in range(len(raw) * 8):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        assert read("ktr_" + base64.urlsafe_b64encode(changed).decode()) is None, bit


@pytest.mark.parametrize(
    "text",
    ["", "ktr_", "ktr_" + "A" * 83, "ktr_" + "A" * 85, "KTR_" + "A" * 84, "ktr_" + "A" * 83 + "=", "ktr_" + "A" * 83 + "é",
     "ktr_" + "A" * 83 + "\ud800", "ktr_" + "A" * 83 + "\n", " ktr_" + "A" * 84, "ktr_" + "A" * 84 + "\n", "ktr_" + "+" * 84],
)  # fmt: skip
def test_what_has_not_the_exact_form_names_no_key(text: str) -> None:
    with pytest.raises(InvalidGrant) as refused:
        verify(text, dict.fromkeys(range(256), KEY))
    assert refused.value.cause == "not of a refresh token's form"


def test_the_tag_of_another_session_or_generation_does_not_fit() -> None:
    token = issue(KEY, uuid7())
    for other in (issue(KEY, uuid7()), token.successor(KEY)):
        mixed = bytes(token)[:53] + bytes(other)[53:]
        assert read("ktr_" + base64.urlsafe_b64encode(mixed).decode()) is None


def test_a_token_of_another_key_of_the_same_number_is_not_ours() -> None:
    impostor = RefreshKey.derive(KEY.number, os.urandom(32))
    with pytest.raises(InvalidGrant) as refused:
        verify(issue(impostor, uuid7()).text, {KEY.number: KEY})
    assert refused.value.cause == "tag does not match"


@given(tokens.filter(lambda t: t.generation < 2**32 - 2))
def test_the_successor_is_the_same_each_time_and_one_generation_on(token: RefreshToken) -> None:
    assert token.successor(KEY) == token.successor(KEY)
    assert token.successor(KEY).generation == token.generation + 1
    assert token.successor(KEY).session_id == token.session_id
    assert token.successor(KEY).secret != token.secret


@given(tokens.filter(lambda t: t.generation < 2**32 - 2))
def test_the_successor_depends_on_key_session_generation_and_secret(token: RefreshToken) -> None:
    others = [
        RefreshToken(KEY, UUID(int=token.session_id.int ^ 1).bytes, token.generation, token.secret),
        RefreshToken(KEY, token.session, token.generation ^ 1, token.secret),
        RefreshToken(KEY, token.session, token.generation, bytes([token.secret[0] ^ 1]) + token.secret[1:]),
    ]
    secrets = {o.successor(KEY).secret for o in others} | {token.successor(OTHER).secret}
    assert token.successor(KEY).secret not in secrets
    assert len(secrets) == 4


def test_a_keys_two_working_keys_differ_from_it_and_from_each_other() -> None:
    assert len({KEY.next_key, KEY.tag_key, bytes(range(32))}) == 3


def test_first_tokens_are_random() -> None:
    session = uuid7()
    assert issue(KEY, session).secret != issue(KEY, session).secret


def test_no_secret_is_in_a_repr() -> None:
    token = issue(KEY, uuid7())
    shown = repr(token) + repr(KEY)
    for secret in (token.secret, KEY.next_key, KEY.tag_key):
        assert repr(secret)[2:-1] not in shown
        assert secret.hex() not in shown
    assert token.text not in shown


def test_the_derivation_is_the_same_in_every_release() -> None:
    """A key and a token with known derivations.

    Tokens of one release must work in the next, and each of the two must answer the other's retries.
    """
    key = RefreshKey.derive(7, bytes(range(32)))
    token = RefreshToken(key, UUID("018f0000-0000-7000-8000-000000000001").bytes, 41, bytes(range(100, 132)))
    assert token.text == "ktr_BwGPAAAAAHAAgAAAAAAAAAEAAAApZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXp7fH1-f4CBgoM2k8XDfUA48ChQ"
    assert token.digest.hex() == "3b91934d199386ccd3e805fac9e209ea8370651ffba148e5edda2fb0e2ed108e"
    assert token.successor(key).text == (
        "ktr_BwGPAAAAAHAAgAAAAAAAAAEAAAAq2ocelxB840IJ2B92JguEM2autNoI7S7OZqdlyr2dB5OkNp_nvqCQFkrV"
    )
    # Compute the same values with the constructions of the standards alone: RFC 5869 (HKDF) and RFC 2104 (HMAC).
    for label, derived in ((b"successor", key.next_key), (b"tag", key.tag_key)):
        pseudorandom = hmac.digest(bytes(32), bytes(range(32)), "sha256")
        assert derived == hmac.digest(pseudorandom, b"keyturn refresh token " + label + b"\x01", "sha256")
    message = token.session_id.bytes + (42).to_bytes(4) + token.secret
    assert token.successor(key).secret == hmac.digest(key.next_key, message, "sha256")


def test_a_session_begins_at_generation_zero_with_32_random_bytes() -> None:
    token = issue(RefreshKey.derive(7, bytes(range(32))), uuid7())
    assert (token.generation, len(token.secret), len(token.text)) == (0, 32, 88)
