"""The verdicts on external tokens: one word for each reason of a refusal, and the sentence that explains it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from ..errors import UnacceptableToken

Word = Literal[
    "too_large",
    "refresh_token",
    "nested",
    "malformed",
    "critical_header",
    "no_kid",
    "unknown_issuer",
    "algorithm",
    "unknown_key",
    "weak_key",
    "signature",
    "missing_claim",
    "audience",
    "idp_initiated",
    "machine_token",
    "wrong_kind",
    "expired",
    "not_yet_valid",
    "issued_in_future",
    "too_long_lived",
    "too_old",
    "organization",
    "subject",
]
"""The reason of a refusal, roughly in the order of the checks. The log has it, and the client does not."""

SENTENCES: Mapping[Word, str] = {
    "too_large": "It is longer than 16 KiB.",
    "refresh_token": "It is a refresh token. These stay between the issuer and its client.",
    "nested": "It is encrypted, or holds another token.",
    "malformed": "It is no JWT, is spelled ambiguously, or a member of it has the wrong type.",
    "critical_header": "Its header demands an extension (`crit`) that Keyturn does not know.",
    "no_kid": "Its header names no key (`kid`).",
    "unknown_issuer": "Its `iss` is none of a configured issuer (`issuer`, `also_issuers`). A slash at the end counts.",
    "algorithm": "Its `alg` is not configured for the issuer (`algorithms`), or does not fit the key.",
    "unknown_key": "The issuer does not publish the key that it names.",
    "weak_key": "The issuer's key that it names is too weak, or larger than Keyturn accepts.",
    "signature": "Its signature does not match.",
    "missing_claim": "A claim is missing that such a token must have: see docs/federation-tokens.md.",
    "audience": "Its `aud`, `azp` or `client_id` is none of the `audiences`, or of their default, the client id.",
    "idp_initiated": "It asks the application to begin a sign-in, and is no proof of one.",
    "machine_token": "It is about a machine, and not about a user.",
    "wrong_kind": "It is another kind of token than is wanted or configured (`kinds`), or has no sign of its kind.",
    "expired": "It has expired. Exchange it right after the sign-in.",
    "not_yet_valid": "It is not valid yet (`nbf`).",
    "issued_in_future": "It was issued in the future (`iat`): one of the two clocks is wrong.",
    "too_long_lived": "It lives longer than the issuer's tokens may (`longest_lifetime`).",
    "too_old": "It is too old to prove a sign-in (`id_token_age`). Exchange it right after the sign-in.",
    "organization": "Its organization (`oid`) is missing or not allowed (`organizations`).",
    "subject": "Its subject (`sub`) is no user that Keyturn can keep.",
}
"""Each word in plain English, for operators."""


def refused(word: Word) -> UnacceptableToken:
    """The refusal with this cause."""
    return UnacceptableToken(word)
