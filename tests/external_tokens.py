"""Good and bad external tokens: one list, from which the tests and the page docs/federation-tokens.md are made."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.federation.issuer import Kind
from app.federation.verdicts import SENTENCES, Word
from tests.upstream.keys import Key, base64url, signed
from tests.upstream.upstream import Upstream

ORGANIZATIONS = "https://organizations.example"
"""An issuer that is Scalekit, and of which one organization alone is allowed."""

TENANT = "https://login.example/tenant-1"
"""An issuer of OpenID Connect whose tokens of both kinds are exchanged, under each of the three algorithms."""

PLAIN = "https://plain.example"
"""An issuer of OpenID Connect as it is configured by default: ID tokens alone."""

MINUTE, DAY = 60, 86_400


def file_of_issuers(upstream: Upstream) -> str:
    """The file of the issuers that the tokens name. The stand-in has the keys of them all."""
    keys: dict[str, Any] = {"jwks_uri": f"{upstream.url}/keys"}
    limited: dict[str, Any] = {"issuer": ORGANIZATIONS, "organizations": [upstream.subject.organization_id]}
    both: dict[str, Any] = {"kinds": ["access_token", "id_token"], "algorithms": ["RS256", "ES256", "EdDSA"]}
    return "\n".join(
        (
            upstream.toml("scalekit"),
            upstream.toml("limited", secrets=False, **keys, **limited),
            upstream.toml("tenant", **keys, preset="oidc", issuer=TENANT, **both),
            upstream.toml("plain", **keys, preset="oidc", issuer=PLAIN),
        )
    )


def write_file(path: Path, text: str) -> None:
    """Writes a file of issuers. It has secrets, so it is open to its owner alone."""
    path.touch(mode=0o600)
    path.write_text(text)


def publish(upstream: Upstream) -> None:
    """Publishes the keys that the tokens name. One of them is too weak."""
    keys = upstream.keys
    upstream.publish(keys.rsa(1), keys.rsa(2), keys.ec(), keys.ed(), keys.weak())


@dataclass(frozen=True)
class Case:
    """A token, and the answer that it gets."""

    title: str
    word: Word | None
    """None: the token is good."""
    make: Callable[[Upstream], str]
    kind: Kind | None = None
    """The kind that the client says it is."""


def of(kind: Any = "access_token", **changes: Any) -> Callable[[Upstream], str]:
    """Makes a token of the stand-in that differs from a good one in these claims alone."""
    return lambda upstream: upstream.mint(kind, **changes)


def with_azp_alone(upstream: Upstream) -> str:
    """Makes a token as Microsoft Entra ID signs them about an application: it is about a machine, and has no scope."""
    return oidc(azp=upstream.client_id, nonce=...)(upstream)


def with_header(**members: Any) -> Callable[[Upstream], str]:
    """Makes an access token with these members in its header, whatever they are, with a right signature."""
    return lambda upstream: upstream.mint(header=members)


def spelled(change: Callable[[str], str]) -> Callable[[Upstream], str]:
    """Makes a good access token, and writes it in another way."""
    return lambda upstream: change(upstream.mint())


def oidc(
    *, iss: str = TENANT, key: Callable[[Upstream], Key] | None = None, header: Any = None, **changes: Any
) -> Callable[[Upstream], str]:
    """Makes an ID token of an OpenID Connect issuer that differs from a good one in these claims alone."""

    def make(upstream: Upstream) -> str:
        now = int(time.time())
        good = {"iss": iss, "sub": "248289761001", "aud": upstream.client_id, "iat": now, "exp": now + 10 * MINUTE}
        claims = {**good, "nonce": "n-0S6_WzA2Mj", **changes}
        claims = {name: value for name, value in claims.items() if value is not ...}
        return (key(upstream) if key else upstream.signing).token(claims, header)

    return make


def raw(header: str | None = None, claims: str | None = None) -> Callable[[Upstream], str]:
    """Makes a token whose header or claims are exactly this text, with a right signature.

    In the text, `{usual}` stands for the members of a good token, without the braces.
    """

    def make(upstream: Upstream) -> str:
        usual = {"alg": "RS256", "kid": upstream.signing.kid, "typ": "JWT"}
        first, second = (
            text.replace("{usual}", json.dumps(members)[1:-1]) if text is not None else json.dumps(members)
            for text, members in ((header, usual), (claims, upstream.claims()))
        )
        return signed(first, second, upstream.signing)

    return make


def by_secret(secret: Callable[[Key], bytes], **header: Any) -> Callable[[Upstream], str]:
    """Makes a token under HS256, whose secret is made of the issuer's public key."""
    return lambda upstream: signed(
        {"alg": "HS256", "kid": upstream.signing.kid, "typ": "JWT", **header},
        upstream.claims(),
        secret(upstream.signing),
    )


def by_stranger(header: Callable[[Key], Mapping[str, Any]] = lambda _: {}) -> Callable[[Upstream], str]:
    """Makes a token that a stranger has signed under the issuer's `kid`. The header may point to the stranger's key."""

    def make(upstream: Upstream) -> str:
        stranger = upstream.keys.rsa(99)
        members = {"alg": "RS256", "kid": upstream.signing.kid, "typ": "JWT", **header(stranger)}
        return signed(members, upstream.claims(), stranger)

    return make


def now(offset: int) -> int:
    return int(time.time()) + offset


def later(kind: Any = "access_token", **offsets: Any) -> Callable[[Upstream], str]:
    """Makes a token whose moments are these seconds from now."""

    def make(upstream: Upstream) -> str:
        moments: dict[str, Any] = {name: now(offset) for name, offset in offsets.items()}
        return upstream.mint(kind, **moments)

    return make


def _other_spelling(token: str) -> str:
    """The same bytes in another spelling: one of the spare bits of the last character is not zero."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return token[:-1] + alphabet[alphabet.index(token[-1]) + 1]


def _part(number: int, change: Callable[[str], str]) -> Callable[[str], str]:
    def changed(token: str) -> str:
        parts = token.split(".")
        parts[number] = change(parts[number])
        return ".".join(parts)

    return changed


def _not_utf8(upstream: Upstream) -> str:
    content = upstream.mint().split(".")[0] + "." + base64url(b'{"iss":"\xff"}')
    return f"{content}.{base64url(upstream.signing.sign(content.encode()))}"


def _other_claims(upstream: Upstream) -> str:
    """The signature of a good token over other claims."""
    header, _, signature = upstream.mint().split(".")
    claims = base64url(json.dumps(upstream.claims(sub="usr_1")).encode())
    return f"{header}.{claims}.{signature}"


def _other_header(upstream: Upstream) -> str:
    _, claims, signature = upstream.mint().split(".")
    header = base64url(json.dumps({"alg": "RS256", "kid": upstream.signing.kid, "typ": "jwt"}).encode())
    return f"{header}.{claims}.{signature}"


def _encrypted(_: Upstream) -> str:
    header = base64url(b'{"alg":"RSA-OAEP","enc":"A256GCM","kid":"snk_1"}')
    return f"{header}.{'.'.join(base64url(bytes(32)) for _ in range(4))}"


def _der(upstream: Upstream) -> str:
    """An ECDSA signature as X.509 writes it, and JOSE does not (RFC 7518 section 3.4)."""
    content, _, signature = oidc(key=_ec)(upstream).rpartition(".")
    octets = b"\x30\x44\x02\x20" + bytes(32) + b"\x02\x20" + bytes(32)
    return f"{content}.{base64url(octets)}" if signature else ""


def _zero(upstream: Upstream) -> str:
    content, _, _ = oidc(key=_ec)(upstream).rpartition(".")
    return f"{content}.{base64url(bytes(64))}"


def _large(size: int) -> Callable[[Upstream], str]:
    """A good token with a claim that makes it as long as this, or a little longer."""
    return lambda upstream: upstream.mint(padding="x" * (size * 3 // 4))


def _ec(upstream: Upstream) -> Key:
    return upstream.keys.ec()


def _ed(upstream: Upstream) -> Key:
    return upstream.keys.ed()


def _foreign_algorithm(alg: str, key: Callable[[Upstream], Key]) -> Callable[[Upstream], str]:
    return oidc(header={"alg": alg}, key=key)


def _aud(*more: Any) -> Callable[[Upstream], list[Any]]:
    return lambda upstream: [upstream.client_id, *more]


def with_audiences(kind: Any, *more: Any, **changes: Any) -> Callable[[Upstream], str]:
    """Makes a token for our audience and others."""
    return lambda upstream: upstream.mint(kind, aud=_aud(*more)(upstream), **changes)


GOOD = [
    Case("an access token of Scalekit", None, of()),
    Case("the same, and the client says so", None, of(), "access_token"),
    Case("an ID token of Scalekit", None, of("id_token"), "id_token"),
    Case("`aud` as a string", None, lambda upstream: upstream.mint(aud=upstream.client_id)),
    Case("an ID token for several audiences, with ours in `azp`", None, with_audiences("id_token", "https://api")),
    Case("a token that was issued three seconds ahead of us", None, later(iat=3, nbf=3, exp=300)),
    Case("a user of one connection, without a session", None, of(sub="conn_1;ada@example.com", sid=...)),
    Case("the allowed organization", None, of(iss=ORGANIZATIONS)),
    Case("claims that nobody asked for", None, of(role="admin", custom_claims={"admin": True}, groups=["admin"])),
    Case("moments with fractions", None, lambda upstream: upstream.mint(iat=time.time(), exp=time.time() + 60.5)),
    Case("an ID token under RS256 of an OpenID Connect issuer", None, oidc()),
    Case("the same under ES256", None, oidc(key=_ec)),
    Case("the same under EdDSA", None, oidc(key=_ed)),
    Case("an access token after RFC 9068", None, oidc(header={"typ": "at+jwt"}, nonce=..., client_id=...)),
    Case("an access token that says so in a claim", None, oidc(typ="Bearer", scope="openid"), "access_token"),
    Case("an ID token that says so in a claim", None, oidc(typ="ID", nonce=...), "id_token"),
    Case("an ID token at an issuer with the default kinds", None, oidc(iss=PLAIN)),
]

_FORM = [
    Case("an empty text", "malformed", lambda _: ""),
    Case("a word", "malformed", lambda _: "token"),
    Case("two segments", "malformed", spelled(lambda token: token.rpartition(".")[0])),
    Case("four segments", "malformed", spelled(lambda token: f"{token}.AAAA")),
    Case("three segments without a character", "malformed", lambda _: ".."),
    Case("an encrypted token (five segments)", "nested", _encrypted),
    Case("1 MiB of text", "too_large", lambda _: "x" * 2**20),
    Case("1 MiB of claims, rightly signed", "too_large", _large(2**20)),
    Case("a little more than 16 KiB, rightly signed", "too_large", _large(2**14)),
    Case("a line end after the token", "malformed", spelled(lambda token: f"{token}\n")),
    Case("a blank before the token", "malformed", spelled(lambda token: f" {token}")),
    Case("a letter beyond ASCII in the signature", "malformed", spelled(lambda token: f"{token[:-1]}é")),
    Case("padding after the signature", "malformed", spelled(lambda token: f"{token}==")),
    Case("padding after the header", "malformed", spelled(_part(0, lambda part: f"{part}="))),
    Case("the alphabet of plain base64", "malformed", spelled(_part(2, lambda part: f"{part[:4]}+/{part[6:]}"))),
    Case("spare bits that are not zero", "malformed", spelled(_other_spelling)),
    Case("no signature", "malformed", spelled(_part(2, lambda _: ""))),
    Case("a header that is no JSON", "malformed", raw(header="{alg")),
    Case("a header that is an array", "malformed", raw(header='["RS256"]')),
    Case("claims that are a string", "malformed", raw(claims='"iss"')),
    Case("claims that are not UTF-8", "malformed", _not_utf8),
    Case("`alg` twice in the header", "malformed", raw(header='{"alg":"none",{usual}}')),
    Case("`sub` twice in the claims", "malformed", raw(claims='{{usual},"sub":"usr_1"}')),
    Case("a name twice, deep in the claims", "malformed", raw(claims='{{usual},"a":[{"b":1,"b":2}]}')),
    Case("NaN in the claims", "malformed", raw(claims='{{usual},"x":NaN}')),
    Case("a number that is too large for a float", "malformed", raw(claims='{{usual},"x":1e999}')),
    Case("5,000 arrays within each other", "malformed", raw(claims='{{usual},"x":' + "[" * 5000 + "]" * 5000 + "}")),
    Case("an opaque refresh token", "refresh_token", lambda _: "rt_69615647365005439"),
    Case("a refresh token of Keyturn", "refresh_token", lambda _: "ktr_" + "A" * 84),
    Case("a JWT whose header says `refresh+jwt`", "refresh_token", with_header(typ="refresh+jwt")),
    Case("a JWT that says `Refresh` in a claim", "refresh_token", oidc(typ="Refresh")),
]

_HEADER = [
    Case(
        "`alg` is `none`, no signature",
        "malformed",
        lambda u: signed({"alg": "none", "kid": "snk_1"}, u.claims(), None),
    ),
    Case("`alg` is `none`, with a signature", "algorithm", with_header(alg="none")),
    Case("`alg` is `nOnE`", "algorithm", with_header(alg="nOnE")),
    Case("HS256 under the public key's PEM", "algorithm", by_secret(lambda key: key.public_pem)),
    Case("HS256 under the public key's JWK", "algorithm", by_secret(lambda key: json.dumps(key.jwk).encode())),
    Case("HS256 under an empty secret", "algorithm", by_secret(lambda _: b"")),
    Case("`alg` is missing", "malformed", with_header(alg=...)),
    Case("`alg` is a number", "malformed", with_header(alg=256)),
    Case("PS256", "algorithm", with_header(alg="PS256")),
    Case("RS512", "algorithm", with_header(alg="RS512")),
    Case("`rs256`", "algorithm", with_header(alg="rs256")),
    Case("ES256, which is not configured", "algorithm", lambda upstream: upstream.mint(key=upstream.keys.ec())),
    Case("RS256 under an elliptic key", "algorithm", _foreign_algorithm("RS256", _ec)),
    Case("ES256 under an RSA key", "algorithm", _foreign_algorithm("ES256", lambda u: u.signing)),
    Case("EdDSA under an elliptic key", "algorithm", _foreign_algorithm("EdDSA", _ec)),
    Case("`kid` is missing", "no_kid", with_header(kid=...)),
    Case("`kid` is empty", "no_kid", with_header(kid="")),
    Case("`kid` is a number", "malformed", with_header(kid=1)),
    Case("`kid` is an array", "malformed", with_header(kid=["snk_1"])),
    Case("`kid` has 256 characters", "malformed", with_header(kid="k" * 256)),
    Case("`kid` is a path", "unknown_key", with_header(kid="../../../../dev/null")),
    Case("`kid` of a key that is not published", "unknown_key", lambda u: u.mint(key=u.keys.rsa(99))),
    Case("`kid` in other letters", "unknown_key", with_header(kid="SNK_1")),
    Case("a key of 1,024 bits", "weak_key", lambda upstream: upstream.mint(key=upstream.keys.weak())),
    Case("`crit` with an extension", "critical_header", with_header(crit=["exp"], exp=1)),
    Case("`crit` without one", "critical_header", with_header(crit=[])),
    Case("`b64` with `crit`", "critical_header", with_header(b64=False, crit=["b64"])),
    Case("`b64` without `crit`", "malformed", with_header(b64=False)),
    Case("`jku` to a stranger's keys", "signature", by_stranger(lambda _: {"jku": "https://stranger.example/keys"})),
    Case("`x5u` to a stranger's certificate", "signature", by_stranger(lambda _: {"x5u": "https://stranger.example/"})),
    Case("`jwk` is a stranger's key", "signature", by_stranger(lambda key: {"jwk": key.jwk})),
    Case(
        "`jwk` is a stranger's key, with its `kid`",
        "unknown_key",
        by_stranger(lambda key: {"jwk": key.jwk, "kid": key.kid}),
    ),
    Case("`x5c` is a stranger's certificate", "signature", by_stranger(lambda _: {"x5c": ["MIIB"]})),
    Case("`cty` is `JWT`", "nested", with_header(cty="JWT")),
    Case("`enc` in a signed token", "nested", with_header(enc="A256GCM")),
    Case("`typ` is a number", "malformed", with_header(typ=1)),
    Case("`typ` is `dpop+jwt`", "wrong_kind", with_header(typ="dpop+jwt")),
    Case("`typ` is `logout+jwt`", "wrong_kind", with_header(typ="logout+jwt")),
    Case("`typ` is `at+jwt`, which Scalekit never writes", "wrong_kind", with_header(typ="at+jwt")),
]

_SIGNATURE = [
    Case("the signature of a stranger", "signature", by_stranger()),
    Case(
        "the signature of another key of the issuer",
        "signature",
        lambda u: signed({"alg": "RS256", "kid": "snk_1"}, u.claims(), u.keys.rsa(2)),
    ),
    Case("claims that were changed after signing", "signature", _other_claims),
    Case("a header that was changed after signing", "signature", _other_header),
    Case(
        "a signature that is one byte short",
        "signature",
        spelled(_part(2, lambda part: base64url(bytes(255)) if part else "")),
    ),
    Case("a signature of zeros", "signature", spelled(_part(2, lambda _: base64url(bytes(256))))),
    Case("an elliptic signature of zeros", "signature", _zero),
    Case("an elliptic signature in DER", "signature", _der),
]

_ISSUER = [
    Case("an issuer that is not configured", "unknown_issuer", of(iss="https://stranger.example")),
    Case(
        "the issuer with a slash at the end", "unknown_issuer", lambda upstream: upstream.mint(iss=f"{upstream.url}/")
    ),
    Case("the issuer in other letters", "unknown_issuer", lambda upstream: upstream.mint(iss=upstream.url.upper())),
    Case("a path below the issuer", "unknown_issuer", of(iss=f"{TENANT}/x")),
    Case("the path of the issuer is missing", "unknown_issuer", of(iss="https://login.example")),
    Case("`iss` is empty", "unknown_issuer", of(iss="")),
    Case("`iss` is missing", "missing_claim", of(iss=...)),
    Case("`iss` is null", "missing_claim", of(iss=None)),
    Case("`iss` is an array", "malformed", lambda upstream: upstream.mint(iss=[upstream.url])),
]

_TIME = [
    Case("`exp` is missing", "missing_claim", of(exp=...)),
    Case("`exp` is null", "missing_claim", of(exp=None)),
    Case("`exp` is a text", "malformed", of(exp="2147483647")),
    Case("`exp` is true", "malformed", of(exp=True)),
    Case("`exp` is negative", "malformed", of(exp=-1)),
    Case("`exp` is in the year 5138", "malformed", of(exp=10**11)),
    Case("it expired ten seconds ago", "expired", later(iat=-310, nbf=-310, exp=-10)),
    Case("it expired before it was issued", "expired", later(exp=-1, iat=0)),
    Case("`iat` is missing", "missing_claim", of(iat=...)),
    Case("`iat` is a text", "malformed", of(iat="now")),
    Case("`iat` is a minute ahead", "issued_in_future", later(iat=MINUTE, nbf=0, exp=5 * MINUTE)),
    Case("`nbf` is a minute ahead", "not_yet_valid", later(nbf=MINUTE)),
    Case("`nbf` is a text", "malformed", of(nbf="now")),
    Case("it lives for two days", "too_long_lived", later(exp=2 * DAY)),
    Case("it was issued two days ago, and lives for three", "too_long_lived", later(iat=-2 * DAY, exp=DAY)),
    Case("an ID token that is six minutes old", "too_old", later("id_token", iat=-6 * MINUTE, exp=6 * MINUTE)),
    Case("`auth_time` is a text", "malformed", of("id_token", auth_time="now")),
]

_PARTIES = [
    Case("another audience", "audience", of(aud="skc_stranger")),
    Case("other audiences", "audience", of(aud=["skc_stranger", "https://api.example"])),
    Case("`aud` is ours in other letters", "audience", lambda u: u.mint(aud=u.client_id.upper())),
    Case("`aud` is missing", "missing_claim", of(aud=...)),
    Case("`aud` is an empty array", "missing_claim", of(aud=[])),
    Case("`aud` holds a number beside ours", "audience", with_audiences("access_token", 1)),
    Case("`aud` is an object", "audience", lambda upstream: upstream.mint(aud={upstream.client_id: True})),
    Case("another client got it for our audience", "audience", of(client_id="skc_stranger")),
    Case("another client in `azp` of an ID token", "audience", of("id_token", azp="skc_stranger")),
    Case(
        "an ID token for several audiences, without `azp`",
        "audience",
        with_audiences("id_token", "https://api", azp=...),
    ),
    Case("no organization, where one is configured", "organization", of(iss=ORGANIZATIONS, oid=...)),
    Case("an organization that is not allowed", "organization", of(iss=ORGANIZATIONS, oid="org_stranger")),
    Case(
        "`oid` is an array with the allowed one",
        "malformed",
        lambda u: u.mint(iss=ORGANIZATIONS, oid=[u.subject.organization_id]),
    ),
    Case("`sub` is missing", "missing_claim", of(sub=...)),
    Case("`sub` is empty", "subject", oidc(sub="")),
    Case("`sub` is a number", "subject", of(sub=1)),
    Case("`sub` has 256 characters", "subject", oidc(sub="s" * 256)),
    Case("`sub` has a NUL", "subject", oidc(sub="usr_\0")),
    Case("`sub` has half of a character", "malformed", of(sub="usr_\ud800")),
    Case("`sub` is an organization", "subject", of(sub="org_69615647365005432")),
    Case("`sid` has a line end", "malformed", of(sid="ses_1\n")),
]

_KINDS = [
    Case("a machine token", "machine_token", of("machine")),
    Case("a machine token for our audience", "machine_token", lambda u: u.mint("machine", aud=[u.client_id])),
    Case("a machine token with a session", "machine_token", lambda u: u.mint("machine", aud=[u.client_id], sid="ses_1")),
    Case("a machine token of an OpenID Connect issuer", "machine_token", lambda u: oidc(sub=u.client_id, client_id=u.client_id)(u)),
    Case("a token that asks to begin a sign-in", "idp_initiated", of("idp_initiated")),
    Case("an ID token where an access token is wanted", "wrong_kind", of("id_token"), "access_token"),
    Case("an access token where an ID token is wanted", "wrong_kind", of(), "id_token"),
    Case("a logout token", "wrong_kind", of("logout_token")),
    Case("an ID token with `events`", "wrong_kind", of("id_token", events={})),
    Case("signs of both kinds", "wrong_kind", of("id_token", jti="tkn_1")),
    Case("signs of no kind", "wrong_kind", of(jti=..., client_id=...)),
    Case("an access token that is bound to a key (`cnf`)", "wrong_kind", of(cnf={"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"})),
    Case("an access token without `sid`", "missing_claim", of(sid=...)),
    Case("an access token without `client_id`", "missing_claim", of(client_id=...)),
    Case("an access token where ID tokens alone are configured", "wrong_kind", oidc(iss=PLAIN, header={"typ": "at+jwt"}, nonce=...)),
    Case("an OpenID Connect token with signs of no kind", "wrong_kind", oidc(nonce=...)),
    Case("an OpenID Connect token with `azp`, which both kinds have", "wrong_kind", with_azp_alone),
    Case("`at+jwt` with `at_hash`", "wrong_kind", oidc(header={"typ": "at+jwt"}, at_hash="x")),
    Case("`at+jwt` that says `ID` in a claim", "wrong_kind", oidc(header={"typ": "at+jwt"}, typ="ID")),
    Case("`nonce` beside `scope`", "wrong_kind", oidc(scope="openid")),
    Case("a kind that Keyturn does not know", "wrong_kind", oidc(token_use="device")),
]  # fmt: skip

BAD = [
    *_FORM,
    *_HEADER,
    *_SIGNATURE,
    *_ISSUER,
    *_TIME,
    *_PARTIES,
    *_KINDS,
]
TITLES = {
    "Form": _FORM,
    "Header": _HEADER,
    "Signature": _SIGNATURE,
    "Issuer": _ISSUER,
    "Time": _TIME,
    "Parties": _PARTIES,
    "Kind": _KINDS,
}


def words() -> str:
    """The words and their meanings, for the documentation."""
    lines = ["| word | why the token is refused |", "|---|---|"]
    return "\n".join([*lines, *(f"| `{word}` | {sentence} |" for word, sentence in SENTENCES.items()), ""])


def good() -> str:
    """The tokens that are accepted, for the documentation."""
    return "\n".join([*(f"- {case.title}" for case in GOOD), ""])


def bad() -> str:
    """The tokens that are refused, for the documentation."""
    lines = ["| | token | word |", "|---|---|---|"]
    for title, cases in TITLES.items():
        for number, case in enumerate(cases):
            said = {"access_token": " (an access token is wanted)", "id_token": " (an ID token is wanted)"}
            wanted = said[case.kind] if case.kind and "wanted" not in case.title else ""
            lines.append(f"| {'' if number else title} | {case.title}{wanted} | `{case.word}` |")
    return "\n".join([*lines, ""])
