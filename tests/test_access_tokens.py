"""Access tokens: every token that is not exactly Keyturn's is refused, before any I/O."""

from __future__ import annotations

import base64
import hmac
import json
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, cast, get_args
from uuid import UUID

import jwt
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwk
from joserfc import jwt as joserfc_jwt

from app.errors import InvalidToken
from app.settings import Algorithm, read
from app.tokens.access_tokens import AccessToken, AccessTokens
from app.tokens.key_set import AccessKey, KeySet, new_secret
from app.tokens.keys import Keys
from app.tokens.primitives import RsaBits

ISSUER = "https://auth.example.com"
SETTINGS = read({"KEYTURN_ISSUER": ISSUER, "KEYTURN_AUDIENCE": "https://api.example.com"})
NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
SESSION, USER = UUID("019cb0a0-6c1f-7d3e-9c52-3b1f6de0a7c4"), UUID("019cb0a0-55aa-7b0e-8f0d-64b7d1c9e2f3")


class Ring(Keys):
    """A key set in memory, without a database."""

    def __init__(self, *keys: AccessKey) -> None:
        self._set = KeySet({key.kid: key for key in keys}, {}, {}, {}, {})
        self._signing_key = keys[0]
        self._read_at = float("inf")

    @property
    def signing_access(self) -> AccessKey:
        return self._signing_key


def key(algorithm: Algorithm, kid: str | None = None, bits: RsaBits = 2048) -> AccessKey:
    return AccessKey.of(kid or f"k-{algorithm}", algorithm, new_secret(algorithm, bits))


KEYS = {algorithm: key(algorithm) for algorithm in get_args(Algorithm)}
HS256 = KEYS["HS256"]


def tokens(*ring: AccessKey) -> AccessTokens:
    return AccessTokens(Ring(*(ring or tuple(KEYS.values()))), SETTINGS)


def signed(with_: AccessTokens, **changes: Any) -> str:
    arguments: dict[str, Any] = {
        "subject": USER,
        "session_id": SESSION,
        "generation": 3,
        "role": "user",
        "client_id": "app",
        "issued_at": NOW,
        "session_expires_at": NOW + timedelta(days=1),
    }
    return with_.sign(**(arguments | changes))[0]


GOOD: dict[str, Any] = {
    "iss": ISSUER,
    "sub": str(USER),
    "aud": "https://api.example.com",
    "exp": int(NOW.timestamp()) + 900,
    "iat": int(NOW.timestamp()),
    "jti": f"{SESSION}.3",
    "sid": str(SESSION),
    "client_id": "app",
    "role": "user",
}


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def forged(claims: Any = GOOD, header: Any = None, *, secret: bytes = HS256.signing, raw: bytes | None = None) -> str:
    """A token with any header and claims, and with a right signature under the HS256 key (or under `secret`)."""
    head = {"alg": "HS256", "typ": "at+jwt", "kid": HS256.kid} if header is None else header
    head_raw = head if isinstance(head, bytes) else json.dumps(head).encode()
    signing_input = f"{b64(head_raw)}.{b64(raw if raw is not None else json.dumps(claims).encode())}"
    return f"{signing_input}.{b64(hmac.digest(secret, signing_input.encode(), sha256))}"


def refused(token: str, at: datetime = NOW, reason: str | None = None, with_: AccessTokens | None = None) -> str:
    with pytest.raises(InvalidToken) as caught:
        (with_ or tokens()).verify(token, at)
    assert caught.value.reason == reason
    assert token[:20] not in str(caught.value) or len(token) < 20
    return caught.value.cause


@pytest.mark.parametrize("algorithm", KEYS)
def test_what_is_signed_is_verified(algorithm: Algorithm) -> None:
    both = tokens(KEYS[algorithm])
    verified = both.verify(signed(both), NOW)
    assert verified == AccessToken(str(USER), str(SESSION), "user", "app", False, GOOD)


@pytest.mark.filterwarnings("ignore:EdDSA is deprecated via RFC 9864")  # Keyturn keeps the name
@pytest.mark.parametrize("algorithm", KEYS)
def test_another_implementation_reads_the_same_token(algorithm: Algorithm) -> None:
    both = tokens(KEYS[algorithm])
    public = KEYS[algorithm].jwk()
    other = jwk.import_key(public) if public else jwk.OctKey.import_key(HS256.signing)
    read_again = joserfc_jwt.decode(signed(both), other, algorithms=[algorithm])
    assert read_again.claims == GOOD
    assert read_again.header == {"alg": algorithm, "typ": "at+jwt", "kid": KEYS[algorithm].kid}


@pytest.mark.parametrize("algorithm", ["HS256", "RS256", "EdDSA"])
def test_the_same_generation_gets_the_same_token(algorithm: Algorithm) -> None:
    both = tokens(KEYS[algorithm])
    assert signed(both) == signed(both)
    assert signed(both) != signed(both, generation=4)
    assert signed(both) != signed(both, role="admin")


def test_an_access_token_never_outlives_its_session() -> None:
    _, expires_at = tokens().sign(
        subject=USER, session_id=SESSION, generation=0, role="user", client_id="app", issued_at=NOW,
        session_expires_at=NOW + timedelta(seconds=100),
    )  # fmt: skip
    assert expires_at == NOW + timedelta(seconds=100)


@pytest.mark.parametrize("left", [timedelta(microseconds=1), timedelta(seconds=1)])
@pytest.mark.parametrize("after", [timedelta(0), timedelta(microseconds=999_999)])
def test_no_token_of_ours_expires_when_it_was_issued_or_before(left: timedelta, after: timedelta) -> None:
    issued_at = NOW + after
    token = signed(tokens(), issued_at=issued_at, session_expires_at=issued_at + left)
    claims = tokens().verify(token, issued_at).claims
    assert claims["iat"] == claims["exp"] - 1
    assert claims["exp"] <= (issued_at + left).timestamp()


@pytest.mark.parametrize("algorithm", KEYS)
def test_one_bit_flipped_anywhere_is_refused(algorithm: Algorithm) -> None:
    both = tokens(KEYS[algorithm])
    token = signed(both)
    for position, character in enumerate(token):
        for bit in range(7):
            other = chr(ord(character) ^ 1 << bit)
            refused(token[:position] + other + token[position + 1 :], with_=both)


def test_the_signature_of_one_token_does_not_fit_another() -> None:
    one, other = signed(tokens()), signed(tokens(), role="admin")
    refused(other.rsplit(".", 1)[0] + "." + one.rsplit(".", 1)[1])


@pytest.mark.parametrize(
    "alg", ["none", "None", "NONE", "", "HS384", "HS512", "RS256", "ES256", "EdDSA", "hs256", None, 1]
)
def test_the_algorithm_is_the_keys_and_never_the_tokens(alg: object) -> None:
    refused(forged(header={"alg": alg, "typ": "at+jwt", "kid": HS256.kid}))


def test_an_unsigned_token_is_refused() -> None:
    head = b64(json.dumps({"alg": "none", "typ": "at+jwt", "kid": HS256.kid}).encode())
    body = b64(json.dumps(GOOD).encode())
    for token in (f"{head}.{body}.", f"{head}.{body}", f"{head}.{body}.AA"):
        refused(token)


@pytest.mark.parametrize("algorithm", ["ES256", "RS256", "EdDSA"])
def test_a_public_key_is_no_hmac_secret(algorithm: Algorithm) -> None:
    published = json.dumps(KEYS[algorithm].jwk()).encode()
    header = {"alg": "HS256", "typ": "at+jwt", "kid": KEYS[algorithm].kid}
    refused(forged(header=header, secret=published))
    refused(forged(header={"alg": algorithm, "typ": "at+jwt", "kid": HS256.kid}))
    refused(forged(header={"alg": algorithm, "typ": "at+jwt", "kid": KEYS[algorithm].kid}))


@pytest.mark.parametrize(
    "signature",
    [
        *(byte * length for byte in (b"\0", b"\xff") for length in (63, 64, 65, 255, 256, 257)),
        b"\x30\x06\x02\x01\0\x02\x01\0",
        b"\0" * 255 + b"\1",
        b"",
    ],
)
@pytest.mark.parametrize("algorithm", ["ES256", "RS256", "EdDSA"])
def test_degenerate_signatures_are_refused(algorithm: Algorithm, signature: bytes) -> None:
    both = tokens(KEYS[algorithm])
    refused(signed(both).rsplit(".", 1)[0] + "." + b64(signature), with_=both)


def test_an_eddsa_signature_that_is_not_reduced_is_refused() -> None:
    both = tokens(KEYS["EdDSA"])
    head, body, signature = signed(both).split(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    order = 2**252 + 27742317777372353535851937790883648493
    s = int.from_bytes(raw[32:], "little") + order
    refused(f"{head}.{body}.{b64(raw[:32] + s.to_bytes(32, 'little'))}", with_=both)


@pytest.mark.parametrize("bits", get_args(RsaBits))
def test_an_rsa_signature_is_of_its_keys_size_one_padding_and_one_number(bits: RsaBits) -> None:
    rs256 = key("RS256", bits=bits)
    both = tokens(rs256)
    signing_input, _, signature = signed(both).rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    assert len(raw) == bits // 8
    modulus = rs256.verifying.public_numbers().n
    message = signing_input.encode()
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.MAX_LENGTH)
    for other in (
        b"\0" + raw,
        raw[:-1],
        (int.from_bytes(raw) + modulus).to_bytes(bits // 8 + 1),
        rs256.signing.sign(message, pss, hashes.SHA256()),
        rs256.signing.sign(message, padding.PKCS1v15(), hashes.SHA512()),
        rs256.signing.sign(message, padding.PKCS1v15(), hashes.SHA1()),
        key("RS256", bits=bits).sign(message),
    ):
        refused(f"{signing_input}.{b64(other)}", with_=both)
    both.verify(f"{signing_input}.{b64(raw)}", NOW)


def test_the_longest_names_and_the_largest_key_fit_into_a_cookie() -> None:
    settings = read({"KEYTURN_ISSUER": "https://" + "i" * 247, "KEYTURN_AUDIENCE": "a" * 255})
    rs256 = key("RS256", "k" * 43, bits=3072)
    token = signed(AccessTokens(Ring(rs256), settings), role="r" * 32, client_id="c" * 64)
    print(len(token), "characters;", len(signed(tokens())), "with HS256 and short names")
    assert len(token) < 2048


def test_an_audience_list_that_holds_ours_is_good_and_is_reported_as_ours() -> None:
    verified = tokens().verify(forged(GOOD | {"aud": ["https://other.example.com", "https://api.example.com"]}), NOW)
    assert verified.claims["aud"] == "https://api.example.com"


@pytest.mark.parametrize("claim", ["iss", "sub", "aud", "exp", "iat", "jti", "sid", "client_id", "role"])
def test_each_required_claim_must_be_there(claim: str) -> None:
    refused(forged({name: value for name, value in GOOD.items() if name != claim}))


WRONG = [
    ("iss", "https://evil.example.com"), ("iss", ISSUER + "/"), ("iss", ISSUER.upper()), ("iss", [ISSUER]), ("iss", None),
    ("aud", "https://other.example.com"), ("aud", []), ("aud", [GOOD["aud"], 1]), ("aud", 1), ("aud", None), ("aud", {"a": 1}), ("aud", [1]),
    ("sub", 1), ("sub", None), ("sub", ["x"]), ("jti", 1), ("jti", None),
    ("exp", "never"), ("exp", None), ("exp", True), ("exp", 1e400), ("exp", [1]), ("exp", GOOD["exp"] + 0.5), ("exp", -1), ("iat", -1), ("iat", 2**53), ("exp", -(10**400)),
    ("iat", "x"), ("iat", None), ("iat", True), ("iat", 1.5), ("nbf", "x"), ("nbf", 1.5), ("nbf", True), ("nbf", None),
    ("nbf", GOOD["iat"] + 6), ("sid", 1), ("sid", None), ("sid", "x"), ("sid", str(SESSION).upper()), ("sid", SESSION.hex),
    ("sid", "{" + str(SESSION) + "}"), ("role", 1), ("role", None), ("client_id", 1),
    ("exp", GOOD["iat"] + 3601), ("exp", 10**30),
]  # fmt: skip


@pytest.mark.parametrize(("claim", "value"), WRONG, ids=[f"{c}={str(v)[:30]}" for c, v in WRONG])
def test_each_claim_must_have_its_type_and_value(claim: str, value: object) -> None:
    assert (claim, value) not in GOOD.items()
    refused(forged(GOOD | {claim: value}))


def test_the_moments_of_a_token_are_in_order() -> None:
    exp, seconds = GOOD["exp"], int(NOW.timestamp())
    for moments in (
        {"iat": exp},
        {"iat": exp + 1},
        {"iat": exp + 4000},
        {"iat": 2**53 - 1},
        {"nbf": exp},
        {"nbf": exp + 1},
        {"exp": seconds - 1, "iat": seconds},
        {"exp": seconds, "iat": seconds},
        {"exp": seconds + 3, "nbf": seconds + 4},
        {"exp": 0},
    ):
        assert refused(forged(GOOD | moments)).endswith("or never" if "nbf" in moments else "or not at all")
        with pytest.raises(InvalidToken):  # a logout refuses it too, although it accepts expired tokens
            tokens().verify(forged(GOOD | moments), NOW + timedelta(days=1), expired_too=True)
    for moments in ({"iat": exp - 1}, {"nbf": 0}, {"nbf": seconds + 5}, {"iat": exp - 3600}):
        tokens().verify(forged(GOOD | moments), NOW)


def test_the_leeway_at_the_end_is_five_seconds() -> None:
    token, exp = forged(), timedelta(seconds=900)
    tokens().verify(token, NOW + exp + timedelta(seconds=4, microseconds=999_999))
    refused(token, NOW + exp + timedelta(seconds=5), reason="token_expired")
    assert tokens().verify(token, NOW + exp + timedelta(days=400), expired_too=True).expired


def test_a_clock_that_stepped_back_is_no_reason_to_refuse() -> None:
    tokens().verify(forged(), NOW - timedelta(hours=1))
    far = int(NOW.timestamp()) + 3600
    tokens().verify(forged(GOOD | {"iat": far, "exp": far + 3600}), NOW)
    assert "later than any" in refused(forged(GOOD | {"iat": far + 1, "exp": far + 3601}))
    tokens().verify(forged(GOOD | {"nbf": GOOD["iat"] + 4}), NOW)


HEADERS: list[Any] = [
    {"typ": "at+jwt", "kid": HS256.kid}, {"alg": "HS256", "kid": HS256.kid}, {"alg": "HS256", "typ": "at+jwt"},
    {"alg": "HS256", "typ": "JWT", "kid": HS256.kid}, {"alg": "HS256", "typ": "AT+JWT", "kid": HS256.kid},
    {"alg": "HS256", "typ": "dpop+jwt", "kid": HS256.kid}, {"alg": "HS256", "typ": ["at+jwt"], "kid": HS256.kid},
    {"alg": "HS256", "typ": "at+jwt", "kid": "another"}, {"alg": "HS256", "typ": "at+jwt", "kid": 1},
    {"alg": "HS256", "typ": "at+jwt", "kid": ""}, {"alg": "HS256", "typ": "at+jwt", "kid": "../../dev/null"},
    *({"alg": "HS256", "typ": "at+jwt", "kid": HS256.kid, name: value} for name, value in {
        "jwk": {"kty": "oct", "k": "AAAA"}, "jku": "https://evil.example.com", "x5u": "https://evil.example.com",
        "x5c": ["AAAA"], "crit": ["exp"], "b64": False, "zip": "DEF", "enc": "A256GCM", "cty": "JWT"}.items()),
    [], "x", None, 1, b"\xff", b"{", b'{"alg":"HS256","alg":"HS256","typ":"at+jwt","kid":"' + HS256.kid.encode() + b'"}',
    b"[" * 3000,
]  # fmt: skip


@pytest.mark.parametrize("header", HEADERS, ids=[str(h)[:60] for h in HEADERS])
def test_the_header_is_exactly_ours(header: Any) -> None:
    refused(forged(header=header if header is not None else b"null"))


@pytest.mark.parametrize("raw", [b"", b"null", b"[]", b"1", b'"x"', b"{", b"\xff", b"[" * 3000, b'{"a":' * 2000])
def test_the_claims_are_a_json_object(raw: bytes) -> None:
    refused(forged(raw=raw))


def test_a_claim_that_stands_twice_is_refused() -> None:
    raw = json.dumps(GOOD).encode()
    tokens().verify(forged(raw=raw), NOW)
    refused(forged(raw=raw[:-1] + b', "role": "user"}'))
    refused(forged(raw=raw[:-1] + b', "address": {"a": 1, "a": 1}}'))


def test_a_token_has_one_spelling() -> None:
    token = signed(tokens())
    head, body, signature = token.split(".")
    # A signature of 32 bytes leaves two bits of the last character unused. So three other spellings decode to it.
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    last = alphabet.index(signature[-1])
    for spare in range(1, 4):
        refused(f"{head}.{body}.{signature[:-1]}{alphabet[last | spare]}")
    for other in (
        token + "=",
        token + "==",
        " " + token,
        token + "\n",
        token + ".",
        "." + token,
        token.replace(".", ".."),
    ):
        refused(other)


def test_what_is_too_long_is_not_parsed() -> None:
    assert refused("a" * 1_000_000) == "not of a JWT's form"
    assert refused(forged(GOOD | {"x": "y" * 8192})) == "not of a JWT's form"


@pytest.mark.parametrize("text", ["", ".", "..", "...", "a.b", "a.b.c.d.e", "é.é.é", "\ud800.a.a", "ktr_" + "A" * 84])
def test_other_credentials_are_no_access_tokens(text: str) -> None:
    refused(text)


def test_a_retired_keys_token_is_refused_and_one_that_no_longer_signs_is_good() -> None:
    old, new = key("HS256", "old"), key("HS256", "new")
    token = signed(tokens(old))
    tokens(new, old).verify(token, NOW)
    refused(token, with_=tokens(new))


def test_an_expired_forged_token_is_junk_for_logout_too() -> None:
    with pytest.raises(InvalidToken):
        tokens().verify(forged(secret=b"x" * 32), NOW + timedelta(days=1), expired_too=True)


def test_pyjwt_itself_accepts_what_we_sign() -> None:
    assert jwt.decode(
        signed(tokens()), HS256.signing, algorithms=["HS256"], audience=GOOD["aud"], options={"verify_exp": False, "verify_iat": False}
    ) == GOOD  # fmt: skip


def test_the_longest_lifetime_and_the_leeway_of_nbf_are_exact() -> None:
    tokens().verify(forged(GOOD | {"exp": GOOD["iat"] + 3600}), NOW)
    tokens().verify(forged(GOOD | {"nbf": GOOD["iat"] + 5}), NOW)


def test_every_refusal_has_a_cause_for_the_log() -> None:
    causes = {
        refused(forged({})), refused(forged(GOOD | {"exp": 1.5})), refused(forged(GOOD | {"nbf": GOOD["iat"] + 6})),
        refused(forged(GOOD | {"sid": "x"})), refused(forged(GOOD | {"iat": GOOD["iat"] + 9000, "exp": GOOD["exp"] + 9000})),
        refused(forged(GOOD | {"exp": GOOD["iat"] + 3601})), refused(forged(), NOW + timedelta(days=1), "token_expired"),
        refused("x"), refused(forged(raw=b"[]")), refused(forged(header={})), refused(forged(GOOD | {"role": 1})),
    }  # fmt: skip
    assert len(causes) == 11
    assert all(causes)


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64)


@pytest.mark.parametrize("algorithm", KEYS)
@given(
    issuer=names,
    audience=names,
    role=names,
    client_id=names,
    user=st.uuids(),
    session=st.uuids(),
    age=st.integers(0, 10**9),
)
def test_what_is_signed_is_what_pyjwt_would_have_made_of_the_same_claims(
    algorithm: Algorithm, issuer: str, audience: str, role: str, client_id: str, user: UUID, session: UUID, age: int
) -> None:
    settings = SETTINGS.model_copy(update={"issuer": issuer, "audience": audience})
    key = KEYS[algorithm]
    issued_at = NOW + timedelta(microseconds=age)
    text, expires_at = AccessTokens(Ring(key), settings).sign(
        subject=user,
        session_id=session,
        generation=age,
        role=role,
        client_id=client_id,
        issued_at=issued_at,
        session_expires_at=NOW + timedelta(days=1),
    )
    claims = {
        "iss": settings.iss,
        "sub": str(user),
        "aud": settings.aud,
        "exp": int(expires_at.timestamp()),
        "iat": int(issued_at.timestamp()),
        "jti": f"{session}.{age}",
        "sid": str(session),
        "client_id": client_id,
        "role": role,
    }
    expected = jwt.encode(claims, key.signing, algorithm=algorithm, headers={"typ": "at+jwt", "kid": key.kid})
    if algorithm == "ES256":  # an ES256 signature contains a random number
        assert text.rpartition(".")[0] == expected.rpartition(".")[0]
        unasked = {"verify_aud": False, "verify_iat": False, "verify_exp": False}
        jwt.decode(text, key.verifying, algorithms=[algorithm], options=cast("Any", unasked))
    else:
        assert text == expected


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(list(GOOD.values())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
crooked_audiences = st.lists(st.sampled_from([GOOD["aud"], "x", 1, None]), max_size=3).map(lambda aud: {"aud": aud})
changes = crooked_audiences | st.dictionaries(st.sampled_from([*GOOD, "nbf", "scope"]), anything, max_size=2)


@given(changes=changes, left_out=st.sets(st.sampled_from(list(GOOD)), max_size=1), names_out=st.booleans())
def test_whatever_is_accepted_pyjwt_accepts_too_and_reads_the_same(
    changes: dict[str, Any], left_out: set[str], names_out: bool
) -> None:
    claims = GOOD | changes
    token = forged({name: claims[name] for name in claims if not (names_out and name in left_out)})
    try:
        ours = tokens().verify(token, NOW, expired_too=True)
    except InvalidToken:
        return
    theirs = jwt.decode(
        token,
        HS256.verifying,
        algorithms=["HS256"],
        audience=GOOD["aud"],
        issuer=GOOD["iss"],
        options={
            "require": ["iss", "aud", "sub", "exp", "iat", "jti"],
            "verify_exp": False,  # PyJWT would compare the moments with this machine's clock instead of `NOW`
            "verify_iat": False,
            "verify_nbf": False,
        },
    )
    # If the claim lists several audiences, Keyturn reports its own alone.
    assert ours.claims == theirs | {"aud": GOOD["aud"]}
