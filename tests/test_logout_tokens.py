"""The rules for the claims of logout tokens, and for the signatures of webhooks."""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.errors import InvalidRequest, UnacceptableToken
from app.federation.issuer import Configured, Issuer, IssuerSecrets, Preset
from app.federation.logout_token import EVENT, HIGHEST_AGE, LogoutToken, logout_token_of
from app.federation.webhook_signatures import WINDOW, key_of, verified_id
from app.settings import LEEWAY

NOW = datetime(2026, 11, 27, 12, 0, 0, tzinfo=UTC)
T = int(NOW.timestamp())
GOOD: dict[str, Any] = {"iat": T, "exp": T + 120, "jti": "tkn_1", "sub": "usr_1", "sid": "ses_1", "events": {EVENT: {}}}
OURS = {"typ": "logout+jwt"}
AGE, SLACK = int(HIGHEST_AGE.total_seconds()), int(LEEWAY.total_seconds())


def an_issuer(preset: Preset = "oidc") -> Configured:
    return Configured(name="acme", issuer=Issuer(preset=preset, issuer="https://acme.example", client_id="app"))


def judged(header: dict[str, Any] = OURS, preset: Preset = "oidc", /, **changes: Any) -> LogoutToken:
    """The logout token of good claims with these changes. A claim that is `...` is left out."""
    claims = {name: value for name, value in (GOOD | changes).items() if value is not ...}
    return logout_token_of(header, claims, an_issuer(preset), NOW)


def test_a_good_logout_token_names_its_session_and_its_user() -> None:
    token = judged()
    assert (token.jti, token.upstream_id, token.subject, token.issued_at) == ("tkn_1", "ses_1", "usr_1", NOW)
    assert "tkn_1" not in repr(token)
    assert "usr_1" not in repr(token)


@pytest.mark.parametrize(
    ("header", "preset", "changes"),
    [
        (OURS, "oidc", {"sid": ...}),
        (OURS, "oidc", {"sub": ...}),
        (OURS, "oidc", {"exp": ...}),
        (OURS, "oidc", {"iat": T - AGE - SLACK}),
        (OURS, "oidc", {"iat": T + SLACK}),
        (OURS, "oidc", {"iat": T + 0.25}),
        (OURS, "oidc", {"exp": T - SLACK + 1}),
        (OURS, "oidc", {"nbf": T + SLACK}),
        (OURS, "oidc", {"events": {EVENT: {"more": 1}, "https://other.example/event": {}}}),
        (OURS, "oidc", {"sid": "s" * 255, "unknown": [1]}),
        ({"typ": "LOGOUT+JWT"}, "oidc", {}),
        ({"typ": "application/logout+jwt"}, "scalekit", {}),
        ({"typ": "JWT"}, "scalekit", {}),
        ({"typ": "jwt"}, "scalekit", {}),
    ],
)
def test_whatever_the_specification_allows_is_accepted(
    header: dict[str, Any], preset: Preset, changes: dict[str, Any]
) -> None:
    assert judged(header, preset, **changes).jti == "tkn_1"


BAD: list[tuple[str, dict[str, Any], Preset, dict[str, Any]]] = [
    ("wrong_kind", OURS, "oidc", {"nonce": "n"}),
    ("wrong_kind", OURS, "oidc", {"nonce": None}),
    ("wrong_kind", OURS, "oidc", {"nonce": ""}),
    ("wrong_kind", OURS, "oidc", {"events": ...}),
    ("wrong_kind", OURS, "oidc", {"events": {}}),
    ("wrong_kind", OURS, "oidc", {"events": None}),
    ("wrong_kind", OURS, "oidc", {"events": [EVENT]}),
    ("wrong_kind", OURS, "oidc", {"events": EVENT}),
    ("wrong_kind", OURS, "oidc", {"events": {EVENT: None}}),
    ("wrong_kind", OURS, "oidc", {"events": {EVENT: "{}"}}),
    ("wrong_kind", OURS, "oidc", {"events": {EVENT + "/": {}}}),
    ("wrong_kind", {}, "oidc", {}),
    ("wrong_kind", {"typ": None}, "scalekit", {}),
    ("wrong_kind", {"typ": "JWT"}, "oidc", {}),
    ("wrong_kind", {"typ": "at+jwt"}, "oidc", {}),
    ("wrong_kind", {"typ": "at+jwt"}, "scalekit", {}),
    ("wrong_kind", {"typ": ["logout+jwt"]}, "oidc", {}),
    ("wrong_kind", {}, "scalekit", {}),
    ("missing_claim", OURS, "oidc", {"sub": ..., "sid": ...}),
    ("missing_claim", OURS, "oidc", {"jti": ...}),
    ("missing_claim", OURS, "oidc", {"iat": ...}),
    ("too_old", OURS, "oidc", {"iat": T - AGE - SLACK - 1}),
    ("too_old", OURS, "oidc", {"iat": T - 600}),
    ("too_old", OURS, "oidc", {"iat": 0}),
    ("issued_in_future", OURS, "oidc", {"iat": T + SLACK + 1}),
    ("expired", OURS, "oidc", {"exp": T - SLACK}),
    ("expired", OURS, "oidc", {"exp": 0}),
    ("not_yet_valid", OURS, "oidc", {"nbf": T + SLACK + 1}),
    *(("malformed", OURS, "oidc", {name: value}) for name in ("sid", "sub", "jti") for value in ("", "x" * 256, 7, None)),
    *(
        ("malformed", OURS, "oidc", {name: value})
        for name in ("iat", "exp", "nbf")
        for value in (True, None, str(T), [T], float("nan"), float("inf"), 10**400, -(10**400))
    ),
]  # fmt: skip


@pytest.mark.parametrize(("word", "header", "preset", "changes"), BAD)
def test_each_bad_logout_token_is_refused_with_its_word(
    word: str, header: dict[str, Any], preset: Preset, changes: dict[str, Any]
) -> None:
    with pytest.raises(UnacceptableToken) as refused:
        judged(header, preset, **changes)
    assert refused.value.cause == word


@given(st.integers(-2 * AGE, 2 * AGE))
def test_a_logout_token_is_remembered_for_as_long_as_its_age_allows(later: int) -> None:
    token = judged(iat=T, exp=...)
    moment = NOW + timedelta(seconds=later)
    try:
        logout_token_of(OURS, GOOD | {"exp": T + 10**6}, an_issuer(), moment)
        accepted = True
    except UnacceptableToken:
        accepted = False
    assert not accepted or moment <= token.good_until


# -- webhooks

KEY = bytes(range(24))
SECRET = "whsec_" + base64.b64encode(KEY).decode()
RAW = b'{"type":"user.logout","data":{}}'


def signature(raw: bytes = RAW, key: bytes = KEY, webhook_id: str = "evt_1", moment: int | str = T) -> str:
    mac = hmac.new(key, f"{webhook_id}.{moment}.".encode() + raw, hashlib.sha256).digest()
    return "v1," + base64.b64encode(mac).decode()


def fields(signatures: str | None = None, webhook_id: str = "evt_1", moment: int | str = T) -> dict[str, str]:
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(moment),
        "webhook-signature": signature(webhook_id=webhook_id, moment=moment) if signatures is None else signatures,
    }


WIDE = int(WINDOW.total_seconds())


@pytest.mark.parametrize(
    "given",
    [
        fields(),
        fields(f"v1,AAAA {signature()}"),
        fields(f"{signature()} v1,AAAA v1a,AAAA v2,AAAA"),
        fields(f"{signature(key=bytes(24))} {signature()}"),
        fields(moment=T - WIDE),
        fields(moment=T + WIDE),
        fields(webhook_id="m" * 255),
    ],
)
def test_one_right_signature_among_several_is_enough(given: dict[str, str]) -> None:
    assert verified_id(SECRET, given, RAW, NOW) == given["webhook-id"]


@pytest.mark.parametrize(
    ("given", "raw"),
    [
        (fields(signature(key=bytes(24))), RAW),
        (fields(), RAW + b" "),
        (fields(), RAW.replace(b"logout", b"Logout")),
        (fields(), b""),
        (fields() | {"webhook-id": "evt_2"}, RAW),
        (fields() | {"webhook-timestamp": str(T + 1)}, RAW),
        (fields() | {"webhook-timestamp": f"0{T}"}, RAW),
        (fields(moment=T - WIDE - 1), RAW),
        (fields(moment=T + WIDE + 1), RAW),
        (fields(moment=f"{T}.0"), RAW),
        (fields(moment=f" {T}"), RAW),
        (fields(moment=f"+{T}"), RAW),
        (fields(moment="9" * 400), RAW),
        (fields(moment="\u0661"), RAW),
        (fields(webhook_id="m" * 256), RAW),
        (fields(webhook_id="a b"), RAW),
        (fields(""), RAW),
        (fields(signature().replace("v1,", "v2,")), RAW),
        (fields(signature().replace("v1,", "v1a,")), RAW),
        (fields(signature().removeprefix("v1,")), RAW),
        (fields(signature().rstrip("=")), RAW),
        (fields(signature().replace("v1,", "V1,")), RAW),
        (fields(signature() + ","), RAW),
        (fields(signature().replace(",", ", ")), RAW),
        (fields("v1,é " * 3), RAW),
        (fields("x " * 16 + signature()), RAW),
        ({}, RAW),
        *(({name: value for name, value in fields().items() if name != missing}, RAW) for missing in fields()),
    ],
)
def test_each_bad_webhook_is_refused(given: dict[str, str], raw: bytes) -> None:
    with pytest.raises(InvalidRequest) as refused:
        verified_id(SECRET, given, raw, NOW)
    assert refused.value.status == 400
    assert refused.value.cause.startswith("webhook: ")


@given(st.integers(0, len(RAW) - 1), st.integers(0, 7))
def test_a_webhook_with_one_bit_changed_is_refused(at: int, bit: int) -> None:
    changed = RAW[:at] + bytes([RAW[at] ^ 1 << bit]) + RAW[at + 1 :]
    with pytest.raises(InvalidRequest):
        verified_id(SECRET, fields(), changed, NOW)


@pytest.mark.parametrize(
    "secret", [SECRET, SECRET.removeprefix("whsec_"), SECRET.rstrip("="), "scalekit_prod_" + SECRET.partition("_")[2]]
)
def test_the_secret_has_any_prefix_or_none(secret: str) -> None:
    assert key_of(secret) == KEY
    assert verified_id(secret, fields(), RAW, NOW) == "evt_1"


@given(st.text(max_size=40))
@example("whsec_")
@example("whsec_" + base64.b64encode(bytes(15)).decode())
@example("whsec_" + base64.urlsafe_b64encode(b"\xff" * 24).decode())
@example("whsec_AAAA AAAA AAAA AAAA AAAA AAAA")
def test_a_secret_of_another_form_is_refused_when_it_is_configured_and_not_repeated(secret: str) -> None:
    try:
        key = key_of(secret)
    except ValueError:
        with pytest.raises(ValueError, match="webhook_secret") as refused:
            IssuerSecrets(webhook_secret=secret)  # type: ignore[arg-type]  # as it is read from a file
        said = str(refused.value)
    else:
        assert len(key) >= 16
        said = repr(IssuerSecrets(webhook_secret=secret))  # type: ignore[arg-type]
    assert len(secret) < 8 or secret not in said
