"""Each external token gets the answer that docs/federation-tokens.md says.

`python -m tests.test_external_tokens` writes the tables into the page.
"""

from __future__ import annotations

import random
import re
import shutil
import string
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from app.errors import TemporarilyUnavailable, UnacceptableToken
from app.federation import key_sets
from app.federation.external_claims import external_token
from app.federation.external_token import ExternalToken
from app.federation.external_tokens import ExternalTokens
from app.federation.fetching import Fetching
from app.federation.key_sets import KeySets
from app.federation.unverified_tokens import UnverifiedToken
from app.federation.verdicts import SENTENCES
from app.keyturn import Keyturn, opened, running
from app.outgoing.sending import Sending
from tests.conftest import settings_of
from tests.external_tokens import (
    BAD,
    GOOD,
    TENANT,
    TITLES,
    Case,
    bad,
    file_of_issuers,
    good,
    oidc,
    publish,
    words,
    write_file,
)
from tests.upstream.keys import base64url
from tests.upstream.upstream import Upstream

PAGE = Path(__file__).parent.parent / "docs" / "federation-tokens.md"
PARTS = {"words": words, "good": good, "bad": bad}


@pytest.fixture(scope="module")
async def keyturn(
    upstream_process: Upstream, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Keyturn]:
    folder = tmp_path_factory.mktemp("external-tokens")
    write_file(folder / "issuers.toml", file_of_issuers(upstream_process))
    shutil.copy(request.getfixturevalue("sqlite_template"), folder / "keyturn.db")
    url = f"sqlite+aiosqlite:///{folder / 'keyturn.db'}"
    settings = settings_of(url, None, federation_file=folder / "issuers.toml")
    async with opened(settings) as keyturn, running(keyturn):
        yield keyturn


@pytest.fixture
def tokens(keyturn: Keyturn, upstream: Upstream) -> ExternalTokens:
    """As after a start: no key set was fetched yet."""
    publish(upstream)
    return fresh(keyturn)


def fresh(keyturn: Keyturn) -> ExternalTokens:
    return ExternalTokens(keyturn.issuers, KeySets(Fetching(Sending()), keyturn.discovery), keyturn.db)


async def word_of(tokens: ExternalTokens, text: str, kind: Any = None) -> str | None:
    """The word of the refusal. None if the token is good."""
    try:
        await tokens.verify(text, kind=kind)
    except UnacceptableToken as e:
        return e.cause
    return None


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.title)
async def test_a_good_token_is_accepted(tokens: ExternalTokens, upstream: Upstream, case: Case) -> None:
    token = await tokens.verify(case.make(upstream), kind=case.kind)
    assert isinstance(token, ExternalToken)
    assert case.kind in {None, token.kind}


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.title)
async def test_a_bad_token_is_refused_with_its_word(tokens: ExternalTokens, upstream: Upstream, case: Case) -> None:
    assert await word_of(tokens, case.make(upstream), case.kind) == case.word


def test_the_table_is_large_and_has_every_word() -> None:
    assert len(BAD) >= 60
    assert len({case.title for case in BAD}) == len(BAD)
    assert {case.word for case in BAD} == SENTENCES.keys()


@pytest.mark.parametrize(
    "case", [case for case in BAD if case.word in {"unknown_issuer", "too_large"}], ids=lambda c: c.title
)
async def test_a_token_of_an_unknown_issuer_causes_no_request(
    tokens: ExternalTokens, upstream: Upstream, case: Case
) -> None:
    await word_of(tokens, case.make(upstream))
    assert upstream.requests() == []


async def test_junk_causes_no_request(tokens: ExternalTokens, upstream: Upstream) -> None:
    for case in TITLES["Form"]:
        assert await word_of(tokens, case.make(upstream)) == case.word
        assert upstream.requests() == [], case.title


async def test_a_key_of_one_issuer_signs_nothing_for_another(
    keyturn: Keyturn, upstream: Upstream, second_upstream: Upstream, tmp_path: Path
) -> None:
    """Both have a key of the same `kid`, and other numbers."""
    stranger = upstream.keys.rsa(2)
    second_upstream.key_set({"keys": [{**stranger.jwk, "kid": "snk_1"}]})
    write_file(tmp_path / "two.toml", upstream.toml("one") + second_upstream.toml("two"))
    assert keyturn.settings.database_url is not None
    url = keyturn.settings.database_url.get_secret_value()
    async with opened(settings_of(url, None, federation_file=tmp_path / "two.toml")) as other, running(other):
        tokens = fresh(other)
        header = {"kid": "snk_1"}
        for mine, yours in ((upstream, second_upstream), (second_upstream, upstream)):
            key = stranger if mine is second_upstream else upstream.keys.rsa(1)
            assert await word_of(tokens, mine.mint(key=key, header=header)) is None
            assert await word_of(tokens, mine.mint(key=key, header=header, iss=yours.url)) == "signature"


async def test_every_change_of_one_character_of_a_good_token_is_refused(
    tokens: ExternalTokens, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_sets, "COOL_DOWN", timedelta(0))  # so that a changed `kid` is looked for, and not a 503
    good = upstream.mint()
    assert await word_of(tokens, good) is None
    choice = random.Random(good)
    for position, was in enumerate(good):
        others = {*choice.sample(string.ascii_letters + string.digits + "-_", 3), *choice.sample("=.+/ \n\0é", 1)} - {
            was
        }
        for other in sorted(others):
            text = good[:position] + other + good[position + 1 :]
            assert await word_of(tokens, text) in SENTENCES, (position, other)


async def test_every_cut_of_a_good_token_is_refused(tokens: ExternalTokens, upstream: Upstream) -> None:
    good = oidc()(upstream)
    assert await word_of(tokens, good) is None
    for length in range(len(good)):
        assert await word_of(tokens, good[:length]) in SENTENCES, length


async def test_the_token_says_what_the_issuer_said(tokens: ExternalTokens, upstream: Upstream) -> None:
    token = await tokens.verify(upstream.mint("id_token", amr=["mfa", "otp"]), kind=None)
    about = upstream.subject
    assert (token.kind, token.subject, token.upstream_id) == ("id_token", about.user_id, about.session_id)
    assert (token.organization, token.amr, token.by.name) == (about.organization_id, "mfa otp", "scalekit")
    assert token.auth_time == token.issued_at
    assert token.expires_at - token.issued_at == timedelta(seconds=1800)
    assert token.email is None, "the issuer is not trusted for it"


async def test_a_second_signature_of_the_same_content_has_the_same_digest(
    tokens: ExternalTokens, upstream: Upstream
) -> None:
    """ECDSA signs with a random number, so one content may have any number of signatures."""
    key = upstream.keys.ec()
    first = oidc(key=lambda _: key)(upstream)
    content = first.rpartition(".")[0]
    second = f"{content}.{base64url(key.sign(content.encode()))}"
    assert first != second
    digests = {(await tokens.verify(text, kind=None)).digest for text in (first, second)}
    assert len(digests) == 1
    other = await tokens.verify(oidc(jti="1", key=lambda _: key)(upstream), kind=None)
    assert other.digest not in digests


NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def judged(upstream: Upstream, *, issuer: dict[str, Any] | None = None, **claims: Any) -> ExternalToken:
    """The claims of an ID token, judged at `NOW`."""
    now = int(NOW.timestamp())
    usual = {"iss": TENANT, "sub": "1", "aud": upstream.client_id, "nonce": "n", "iat": now, "exp": now + 60, **claims}
    token = UnverifiedToken({"alg": "RS256"}, usual, "snk_1", TENANT, "jwt", bytes(32), bytes(32))
    of = upstream.configured("tenant", preset="oidc", issuer=TENANT, **(issuer or {}))
    return external_token(token, usual, of, NOW, None)


@pytest.mark.parametrize(
    ("claim", "good", "bad", "word"),
    [
        ("exp", -4, -5, "expired"),
        ("nbf", 5, 6, "not_yet_valid"),
        ("iat", 5, 6, "issued_in_future"),
        ("iat", -305, -306, "too_old"),
        ("exp", 86_400, 86_401, "too_long_lived"),
    ],
)
def test_the_clocks_may_differ_by_five_seconds(upstream: Upstream, claim: str, good: int, bad: int, word: str) -> None:
    now = int(NOW.timestamp())
    more: dict[str, Any] = {"iat": now - 60} if (claim, good) == ("exp", -4) else {}
    first: dict[str, Any] = {**more, claim: now + good}
    judged(upstream, **first)
    second: dict[str, Any] = {**more, claim: now + bad}
    with pytest.raises(UnacceptableToken, match=word):
        judged(upstream, **second)


@pytest.mark.parametrize(
    ("trusted", "claims", "email"),
    [
        (True, {"email": "Ada@Example.com", "email_verified": True}, "ada@example.com"),
        (True, {"email": "ada@example.com"}, None),
        (True, {"email": "ada@example.com", "email_verified": False}, None),
        (True, {"email": "ada@example.com", "email_verified": "true"}, None),
        (True, {"email": "ada@example.com", "email_verified": 1}, None),
        (True, {"email": ["ada@example.com"], "email_verified": True}, None),
        (True, {"email": "no address", "email_verified": True}, None),
        (True, {"email_verified": True}, None),
        (False, {"email": "ada@example.com", "email_verified": True}, None),
    ],
)
def test_an_address_counts_if_the_issuer_is_trusted_and_says_that_it_is_verified(
    upstream: Upstream, trusted: bool, claims: dict[str, Any], email: str | None
) -> None:
    assert judged(upstream, issuer={"trust_email": trusted}, **claims).email == email


def test_the_address_of_an_access_token_never_counts(upstream: Upstream) -> None:
    claims = {"email": "ada@example.com", "email_verified": True, "typ": "Bearer", "nonce": "n"}
    token = judged(upstream, issuer={"trust_email": True, "kinds": ["access_token"]}, **claims)
    assert (token.kind, token.email) == ("access_token", None)


@pytest.mark.parametrize(
    ("amr", "kept"),
    [
        (["pwd", "otp"], "pwd otp"),
        (["a" * 64], "a" * 64),
        (["a" * 65, "otp"], "otp"),
        (["a" * 40, "b" * 40, "c"], "a" * 40 + " c"),
        (["two words", "", 1, None, "é", "otp"], "otp"),
        ([], None),
        ("pwd", None),
    ],
)
def test_the_methods_of_the_sign_in_are_kept_as_far_as_they_fit(upstream: Upstream, amr: Any, kept: str | None) -> None:
    assert judged(upstream, amr=amr).amr == kept


def test_an_organization_of_another_meaning_is_ignored_unless_it_counts(upstream: Upstream) -> None:
    """Entra's `oid` names the user."""
    for oid in ("1f0c", {"id": 7}, ["org_1"]):
        assert judged(upstream, oid=oid).organization is None
    only = {"organizations": ["org_1"]}
    assert judged(upstream, issuer=only, oid="org_1").organization == "org_1"
    with pytest.raises(UnacceptableToken, match="organization"):
        judged(upstream, issuer=only, oid="org_2")


def test_no_claim_makes_a_sign_in_fresher_than_its_token(upstream: Upstream) -> None:
    now = int(NOW.timestamp())
    assert judged(upstream, auth_time=now - 30).auth_time == NOW - 30 * SECOND
    assert judged(upstream, auth_time=now + 10**6).auth_time == NOW
    assert judged(upstream).auth_time is None


async def test_no_refusal_and_no_repr_holds_a_part_of_the_token(tokens: ExternalTokens, upstream: Upstream) -> None:
    secret = "Zm9yYmlkZGVu"
    good = await tokens.verify(upstream.mint(custom=secret, jti=secret), kind=None)
    assert secret not in repr(good)
    for case in BAD:
        with pytest.raises((UnacceptableToken, TemporarilyUnavailable)) as caught:
            await tokens.verify(case.make(upstream), kind=case.kind)
        # An error of a library may hold the token, and a traceback shows the context of an error.
        assert (caught.value.__cause__, caught.value.__context__) == (None, None), case.title
        assert caught.value.cause in {*SENTENCES, "unknown key in the cool-down"}, case.title


async def test_a_logout_token_is_no_token_of_a_user_and_the_reverse(
    tokens: ExternalTokens, keyturn: Keyturn, upstream: Upstream
) -> None:
    of = keyturn.issuers.named("scalekit")
    found = await tokens.verify_logout_token(upstream.mint("logout_token"), of)
    assert (found.subject, found.upstream_id) == (upstream.subject.user_id, upstream.subject.session_id)
    for kind in ("access_token", "id_token", "machine", "idp_initiated"):
        with pytest.raises(UnacceptableToken):
            await tokens.verify_logout_token(upstream.mint(kind), of)
    with pytest.raises(UnacceptableToken, match="unknown_issuer"):
        await tokens.verify_logout_token(upstream.mint("logout_token"), keyturn.issuers.named("tenant"))
    forged = upstream.mint("logout_token", key=upstream.keys.rsa(99), header={"kid": "snk_1"})
    with pytest.raises(UnacceptableToken, match="signature"):
        await tokens.verify_logout_token(forged, of)
    with pytest.raises(UnacceptableToken, match="audience"):
        await tokens.verify_logout_token(upstream.mint("logout_token", aud="skc_stranger"), of)


def place(part: str) -> re.Pattern[str]:
    return re.compile(rf"(?<=<!-- {part} -->\n).*(?=<!-- /{part} -->)", re.DOTALL)


@pytest.mark.parametrize("part", PARTS)
def test_the_page_shows_the_tokens_that_are_tested(part: str) -> None:
    found = place(part).search(PAGE.read_text(encoding="utf-8"))
    assert found is not None
    assert found.group() == PARTS[part](), "python -m tests.test_external_tokens writes it again"


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    for part, made in PARTS.items():
        page = place(part).sub(lambda _, made=made: made(), page)  # type: ignore[misc]  # keeps this round's value
    PAGE.write_text(page, encoding="utf-8")
