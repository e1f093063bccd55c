"""An issuer's roles and claims mean here what its configuration says, and nothing by themselves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.federation.external_token import ExternalToken
from app.federation.issuer import Configured, Issuer
from app.federation.mapping import claims_of, role_of
from app.users.claims import RESERVED

NOW = datetime(2026, 1, 31, tzinfo=UTC)


def token(told: dict[str, Any], /, **members: Any) -> ExternalToken:
    issuer = Issuer(preset="scalekit", issuer="https://acme.example", client_id="skc_1", **members)
    of = Configured(name="acme", issuer=issuer)
    return ExternalToken(of, "access_token", "usr_1", bytes(32), bytes(32), NOW, NOW + timedelta(minutes=5), told)


@pytest.mark.parametrize(
    ("claims", "role"),
    [
        ({}, "user"),
        ({"roles": ["admin"]}, "user"),
        ({"role": "admin"}, "user"),
        ({"roles": ["Admin", "owner "]}, "user"),
        ({"roles": ["owner"]}, "admin"),
        ({"permissions": ["orders:write"]}, "clerk"),
        ({"roles": ["member"], "permissions": ["orders:write"]}, "clerk"),
        ({"roles": ["orders:write", "owner"]}, "admin"),
        ({"roles": "owner"}, "admin"),
        ({"roles": [["owner"], {"owner": 1}, None, 7]}, "user"),
        ({"roles": {"owner": True}}, "user"),
        ({"scope": "owner", "groups": ["owner"], "oid": "owner"}, "user"),
    ],
)
def test_the_first_line_of_the_table_that_meets_a_role_or_permission_counts(claims: dict[str, Any], role: str) -> None:
    table = {"owner": "admin", "orders:write": "clerk", "member": "user"}
    assert role_of(token(claims, roles=table, organizations=["org_1"])) == role


def test_without_a_table_no_role_of_the_issuer_means_anything() -> None:
    claims = {"roles": ["admin", "owner"], "permissions": ["admin"]}
    assert role_of(token(claims)) == "user"
    assert role_of(token(claims, default_role="member")) == "member"


def test_the_claims_of_the_table_alone_are_taken_over() -> None:
    claims = {"oid": "org_1", "xoid": "7", "email": "ada@example.com", "plan": {"name": "gold"}, "gone": None}
    mapped = claims_of(token(claims, claims={"oid": "org", "plan": "plan", "gone": "gone", "missing": "missing"}))
    assert mapped == {"org": "org_1", "plan": {"name": "gold"}}
    assert claims_of(token(claims)) == {}


@pytest.mark.parametrize(
    "value",
    ["x" * 1000, float("inf"), 2**60, [[[[1]]]], "\ud800", {"a b": 1}, {str(number): number for number in range(200)}],
)
def test_a_claim_that_no_user_may_have_is_left_out_and_the_others_stay(value: Any) -> None:
    mapped = claims_of(token({"a": 1, "b": value, "c": 3}, claims={"a": "a", "b": "b", "c": "c"}))
    assert mapped == {"a": 1, "c": 3}


def test_the_claims_stay_within_the_bounds_of_a_token() -> None:
    claims = {f"c{number}": "x" * 100 for number in range(20)}
    mapped = claims_of(token(claims, claims={name: name for name in claims}))
    assert list(mapped) == ["c0", "c1", "c2", "c3"]


@pytest.mark.parametrize("ours", sorted(RESERVED))
def test_a_reserved_name_is_never_written(ours: str) -> None:
    """The configuration refuses such a line. If an older one has it, nothing comes of it."""
    of = token({"oid": "org_1"}, claims={"oid": "org"})
    line = of.by.issuer.model_copy(update={"claims": {"oid": ours}})
    copied = of.by.model_copy(update={"issuer": line})
    assert claims_of(ExternalToken(copied, of.kind, "usr_1", bytes(32), bytes(32), NOW, NOW, of.claims)) == {}
