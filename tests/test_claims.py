"""The claims that an administrator gives a user: which are taken, and how they come to the sessions."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from app.actors import SERVICE
from app.errors import InvalidRequest, NotFound
from app.keyturn import Keyturn
from app.storage.tables import Session, User, uuid7
from app.users import claims
from tests.conftest import PASSWORD, a_user

GOOD: list[dict[str, Any]] = [
    {"org": "acme"},
    {"https://example.com/plan": "gold", "org:id": 7, "a.b": None, "x-y": [True, 1.5, {"z": "ü"}]},
    {str(i): i for i in range(32)},
    {"n" * 64: "v"},
    {"a": {"b": {"c": 1}}},
    {"a": [["deep enough"]]},
    {"n": 2**53 - 1, "m": 1 - 2**53},
    {"a": {"role": "an inner name is nobody's"}},
]
BAD: list[tuple[dict[str, Any], str]] = [
    ({str(i): i for i in range(33)}, "32 members"),
    ({"n" * 65: "v"}, "a name has"),
    ({"": "v"}, "a name has"),
    ({"a b": "v"}, "a name has"),
    ({"ü": "v"}, "a name has"),
    ({"a\n": "v"}, "a name has"),
    ({"a": {"b c": 1}}, "a name has"),
    ({"a": [{"b c": 1}]}, "a name has"),
    ({"a": {"b": {"c": {}}}}, "3 levels"),
    ({"a": [[[]]]}, "3 levels"),
    ({"a": "x" * 505}, "512 bytes"),
    ({"a": "ü" * 90}, "512 bytes"),  # six bytes each, as access tokens spell it
    ({"a": 2**53}, "too large"),
    ({"a": [-(2**53)]}, "too large"),
    ({"a": float("nan")}, "too large"),
    ({"a": float("inf")}, "too large"),
    ({"a": "\ud800"}, "surrogate"),
    ({"a": {"b": object()}}, "too large"),
]
# Every name that Keyturn's tokens have, and that these standards give a meaning to.
NAMES = """
    iss sub aud exp nbf iat jti client_id scope auth_time acr amr roles groups entitlements cnf ath htm htu nonce act
    may_act azp at_hash c_hash sid events name email email_verified preferred_username updated_at role
"""


@pytest.mark.parametrize("given", GOOD)
def test_claims_are_kept_as_compact_json_of_ascii(given: dict[str, Any]) -> None:
    text = claims.checked(given)
    assert text is not None
    assert text.isascii()
    assert text == json.dumps(given, separators=(",", ":"))
    assert claims.stored(text) == given


@pytest.mark.parametrize(("given", "rule"), BAD)
def test_other_claims_are_refused_by_the_rule_and_not_repeated(given: dict[str, Any], rule: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        claims.checked(given)
    assert rule in refused.value.description
    assert refused.value.__context__ is None


@pytest.mark.parametrize("name", NAMES.split())
def test_a_name_that_a_standard_defines_is_reserved_in_any_case(name: str) -> None:
    for spelled in (name, name.upper(), name.capitalize()):
        with pytest.raises(InvalidRequest) as refused:
            claims.checked({"org": "acme", spelled: "mine"})
        assert refused.value.description == f"claims: a name is reserved: {name}. Choose another one, as acme_{name}."
        claims.checked({"org": "acme", f"acme_{name}": "mine"})


def test_exactly_512_bytes_are_taken_and_no_claims_are_none() -> None:
    assert len(claims.checked({"a": "x" * 504}) or "") == 512
    assert claims.checked({}) is None
    assert claims.stored(None) == {}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    )
)
def test_whatever_is_given_is_kept_as_it_is_or_refused(value: Any) -> None:
    try:
        text = claims.checked({"a": value})
    except InvalidRequest:
        return
    assert text is not None
    assert len(text) <= 512
    assert json.loads(text) == {"a": value}


@pytest.mark.parametrize("text", ["", "[]", "null", '"a"', "{", '{"a":1,"a":2}', '{"a":{"b":1,"b":1}}', "[" * 10_000])
def test_a_text_that_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        claims.read(text)
    assert refused.value.__context__ is None


async def kept(keyturn: Keyturn, email: str) -> tuple[str | None, list[str | None]]:
    """The claims of a user's row, and those of the user's sessions in the order of their ids."""
    user = await keyturn.users.find(email)
    async with keyturn.db.look() as connection:
        of_sessions = select(Session.claims).where(Session.user_id == user.id).order_by(Session.id)
        stored = await connection.scalar(select(User.claims).where(User.id == user.id))
        return stored, list(await connection.scalars(of_sessions))


async def test_claims_are_copied_to_the_live_sessions_and_new_ones_begin_with_them(keyturn: Keyturn) -> None:
    proof, other = await a_user(keyturn), await a_user(keyturn, "bob@example.com")
    over = await keyturn.starting.start(proof, by=SERVICE)
    await keyturn.ending.end({over.session_id}, "logout", by=SERVICE)
    await keyturn.starting.start(proof, by=SERVICE)
    await keyturn.starting.start(other, by=SERVICE)
    await keyturn.users.set_claims(proof.user_id, {"org": "acme"}, by=SERVICE)
    await keyturn.starting.start(proof, by=SERVICE)
    text = '{"org":"acme"}'
    assert await kept(keyturn, "ada@example.com") == (text, [None, text, text])
    assert await kept(keyturn, "bob@example.com") == (None, [None])
    await keyturn.users.set_claims(proof.user_id, None, by=SERVICE)
    assert await kept(keyturn, "ada@example.com") == (None, [None, None, None])


async def test_a_change_of_claims_leaves_one_event_without_values(keyturn: Keyturn) -> None:
    user = await keyturn.users.create("ada@example.com", PASSWORD, by=SERVICE)
    for each in ({"org": "acme"}, {"org": "acme"}, {}, None):
        await keyturn.users.set_claims(user.id, each, by=SERVICE)
    with pytest.raises(InvalidRequest):
        await keyturn.users.set_claims(user.id, {"role": "admin"}, by=SERVICE)
    with pytest.raises(NotFound):
        await keyturn.users.set_claims(uuid7(), {"org": "acme"}, by=SERVICE)
    events = await keyturn.events.list(limit=9, user_id=user.id)
    assert [event["event"] for event in events] == ["claims_changed", "claims_changed", "user_created"]
    assert "acme" not in repr(events)
