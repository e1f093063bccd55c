"""Discovery: the document of an issuer, read before a change and every hour, against a real HTTPS server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from time import monotonic
from typing import Any

import pytest

from app.actors import Actor
from app.errors import InvalidRequest, TemporarilyUnavailable
from app.federation import discovery as module
from app.federation.discovery import Discovery
from app.federation.fetching import Fetching
from app.federation.issuer import Configured, Issuer, IssuerSecrets
from app.federation.issuer_changes import IssuerChanges
from app.federation.key_sets import KeySets
from app.keyturn import Keyturn
from app.outgoing.sending import Sending
from app.storage.tasks import finish
from tests.test_keys import until
from tests.upstream.upstream import Upstream

DOCUMENT = "/.well-known/openid-configuration"
ROOT = Actor("command", "root")
NONE = IssuerSecrets()


@pytest.fixture
async def discovery() -> AsyncIterator[Discovery]:
    yield Discovery(Fetching(Sending()))
    await finish()


def oidc(upstream: Upstream, **changes: Any) -> Configured:
    return upstream.configured("acme", preset="oidc", **changes)


def says(upstream: Upstream, **members: Any) -> None:
    """Serves a document with these members. `...` leaves one out."""
    good = {"issuer": upstream.url, "jwks_uri": f"{upstream.url}/keys", "end_session_endpoint": f"{upstream.url}/bye"}
    content = {name: value for name, value in (good | members).items() if value is not ...}
    upstream.fault(DOCUMENT, "answer", status=200, body=json.dumps(content))


async def examined(discovery: Discovery, of: Configured) -> str:
    """The examination of an issuer before a change, which needs no table."""
    issuers: Any = None
    return await IssuerChanges(issuers, KeySets(Fetching(Sending()), discovery))._examine(of)


def asked(upstream: Upstream) -> int:
    return len(upstream.requests(DOCUMENT))


# -- the document


async def test_an_oidc_issuer_has_the_key_set_and_the_logout_page_of_its_document(
    discovery: Discovery, upstream: Upstream
) -> None:
    of = oidc(upstream)
    assert discovery.end_session_endpoint(of) is None  # not known yet, and no logout waits for it
    assert await discovery.jwks_uri(of) == f"{upstream.url}/keys"
    assert discovery.end_session_endpoint(of) == f"{upstream.url}/oidc/logout"
    assert asked(upstream) == 1


async def test_scalekit_and_an_issuer_with_a_key_set_of_its_own_need_no_document(
    discovery: Discovery, upstream: Upstream
) -> None:
    upstream.fault(DOCUMENT, "status", status=404)
    assert await discovery.jwks_uri(upstream.configured()) == f"{upstream.url}/keys"
    assert discovery.end_session_endpoint(upstream.configured()) == f"{upstream.url}/oidc/logout"
    slash = upstream.configured(issuer=f"{upstream.url}/")
    assert await discovery.jwks_uri(slash) == f"{upstream.url}/keys"
    # Azure AD B2C has one key set for each policy, and names the policy in the query.
    keys = "https://keys.example/set?p=policy"
    assert await discovery.jwks_uri(oidc(upstream, jwks_uri=keys)) == keys
    discovery.follow({"acme": upstream.configured()})
    assert asked(upstream) == 0


async def test_the_url_of_the_document_follows_the_path_of_the_issuer(upstream: Upstream) -> None:
    for issuer, path in (
        ("https://a.example", "https://a.example"),
        ("https://a.example/", "https://a.example"),
        ("https://a.example/realms/one", "https://a.example/realms/one"),
        ("https://a.example/realms/one/", "https://a.example/realms/one"),
    ):
        assert module.url_of(oidc(upstream, issuer=issuer).issuer) == f"{path}{DOCUMENT}"


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"issuer": "https://evil.example"}, "names another issuer"),
        ({"issuer": ...}, "names another issuer"),
        ({"issuer": None}, "names another issuer"),
        ({"jwks_uri": ...}, "no https jwks_uri"),
        ({"jwks_uri": "http://127.0.0.1/keys"}, "no https jwks_uri"),
        ({"jwks_uri": "https://user@127.0.0.1/keys"}, "no https jwks_uri"),
        ({"jwks_uri": "https:///keys"}, "no https jwks_uri"),
        ({"jwks_uri": "https://["}, "no https jwks_uri"),
        ({"jwks_uri": "https://a.example/k eys"}, "no https jwks_uri"),
        ({"jwks_uri": "https://a.example/" + "x" * 3000}, "no https jwks_uri"),
        ({"jwks_uri": ["https://a.example"]}, "no https jwks_uri"),
    ],
)
async def test_a_document_that_is_wrong_counts_for_nothing_and_its_words_are_not_repeated(
    discovery: Discovery, upstream: Upstream, members: dict[str, Any], said: str
) -> None:
    says(upstream, **members)
    with pytest.raises(TemporarilyUnavailable) as away:
        await discovery.jwks_uri(oidc(upstream))
    assert said in away.value.cause
    with pytest.raises(InvalidRequest) as refused:
        await examined(discovery, oidc(upstream))
    assert said in refused.value.description
    for text in (away.value.cause, refused.value.description):
        assert "evil" not in text
        assert "xxx" not in text


async def test_a_slash_at_the_end_makes_another_issuer_and_the_refusal_says_so(
    discovery: Discovery, upstream: Upstream
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await examined(discovery, oidc(upstream, issuer=f"{upstream.url}/"))
    assert "they differ in the slash at the end" in refused.value.description


async def test_a_logout_page_to_which_no_browser_may_be_sent_is_none(discovery: Discovery, upstream: Upstream) -> None:
    for page in ("javascript:alert(1)", "http://a.example", "//a.example", 7, "https://a.example/#x"):
        upstream.heal()
        says(upstream, end_session_endpoint=page)
        fresh = Discovery(Fetching(Sending()))
        assert await fresh.jwks_uri(oidc(upstream)) == f"{upstream.url}/keys"
        assert fresh.end_session_endpoint(oidc(upstream)) is None


# -- once an hour, one at a time


async def test_a_hundred_at_once_make_one_request(discovery: Discovery, upstream: Upstream) -> None:
    upstream.fault(DOCUMENT, "slow", seconds=0.3)
    of = oidc(upstream)
    found = await asyncio.gather(*(discovery.jwks_uri(of) for _ in range(100)))
    assert set(found) == {f"{upstream.url}/keys"}
    assert asked(upstream) == 1


async def test_one_who_leaves_takes_nothing_from_the_others(discovery: Discovery, upstream: Upstream) -> None:
    upstream.fault(DOCUMENT, "slow", seconds=0.3)
    of = oidc(upstream)
    first = asyncio.create_task(discovery.jwks_uri(of))
    second = asyncio.create_task(discovery.jwks_uri(of))
    await asyncio.sleep(0.05)
    first.cancel()
    assert await second == f"{upstream.url}/keys"
    assert asked(upstream) == 1


async def test_while_an_issuer_is_away_it_is_asked_once_in_a_cool_down_whatever_the_load(
    discovery: Discovery, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(module._log, "warning", lambda event, issuer, cause: lines.append(event))
    upstream.fault(DOCUMENT, "status", status=503)
    of = oidc(upstream)
    for _ in range(20):
        with pytest.raises(TemporarilyUnavailable, match="503"):
            await discovery.jwks_uri(of)
    assert asked(upstream) == 1
    later = monotonic() + module.COOL_DOWN.total_seconds() + 1
    monkeypatch.setattr(module, "monotonic", lambda: later)
    with pytest.raises(TemporarilyUnavailable):
        await discovery.jwks_uri(of)
    assert asked(upstream) == 2
    assert lines == ["discovery_not_read"]
    upstream.heal()
    monkeypatch.setattr(module, "monotonic", lambda: later + 11)
    assert await discovery.jwks_uri(of) == f"{upstream.url}/keys"


async def test_a_document_is_read_again_after_an_hour_and_the_one_before_stays_if_that_fails(
    discovery: Discovery, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = oidc(upstream)
    await discovery.jwks_uri(of)
    for _ in range(20):
        discovery.follow({"acme": of})
    assert asked(upstream) == 1
    says(upstream, jwks_uri=f"{upstream.url}/newer")
    now = monotonic() + module.FRESH_FOR.total_seconds() + 1
    monkeypatch.setattr(module, "monotonic", lambda: now)
    assert await discovery.jwks_uri(of) == f"{upstream.url}/keys"  # nobody waits for the newer one
    await finish()
    assert await discovery.jwks_uri(of) == f"{upstream.url}/newer"
    assert asked(upstream) == 2
    upstream.refuse()
    later = now + module.FRESH_FOR.total_seconds() + 1
    monkeypatch.setattr(module, "monotonic", lambda: later)
    for _ in range(3):
        assert await discovery.jwks_uri(of) == f"{upstream.url}/newer"
        await finish()
    assert discovery.end_session_endpoint(of) == f"{upstream.url}/bye"


async def test_a_changed_issuer_has_another_document_and_a_removed_one_none(
    discovery: Discovery, upstream: Upstream
) -> None:
    of = oidc(upstream)
    discovery.follow({"acme": of})
    await finish()
    assert discovery.end_session_endpoint(of) == f"{upstream.url}/oidc/logout"
    same = oidc(upstream, create_users=False)
    discovery.follow({"acme": same})
    await finish()
    assert discovery.end_session_endpoint(same) is not None, "nothing about its document has changed"
    assert asked(upstream) == 1
    changed = oidc(upstream, jwks_uri=f"{upstream.url}/keys")
    assert discovery.end_session_endpoint(changed) is None
    discovery.follow({"acme": changed})
    await finish()
    assert asked(upstream) == 2
    discovery.follow({})
    assert discovery.end_session_endpoint(changed) is None


async def test_an_issuer_with_a_key_set_of_its_own_that_has_no_document_is_asked_once_an_hour(
    discovery: Discovery, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.fault(DOCUMENT, "status", status=404)
    of = oidc(upstream, jwks_uri=f"{upstream.url}/keys")
    for later in (0.0, 11.0, 3000.0):
        moment = monotonic() + later
        monkeypatch.setattr(module, "monotonic", lambda moment=moment: moment)
        discovery.follow({"acme": of})
        await finish()
        assert asked(upstream) == 1
        monkeypatch.undo()
    moment = monotonic() + module.FRESH_FOR.total_seconds() + 1
    monkeypatch.setattr(module, "monotonic", lambda: moment)
    upstream.heal()
    discovery.follow({"acme": of})
    await finish()
    assert discovery.end_session_endpoint(of) == f"{upstream.url}/oidc/logout"


async def test_a_running_instance_reads_the_document_of_an_oidc_issuer_by_itself(
    keyturn: Keyturn, upstream: Upstream
) -> None:
    of = oidc(upstream)
    await keyturn.issuers.put("acme", of.issuer, NONE, by=ROOT)
    await until(lambda: keyturn.discovery.end_session_endpoint(of) is not None)
    assert asked(upstream) == 1


# -- before a change


async def test_an_issuer_that_is_well_is_examined_without_a_word(discovery: Discovery, upstream: Upstream) -> None:
    for of in (oidc(upstream), upstream.configured(), oidc(upstream, jwks_uri=f"{upstream.url}/keys")):
        assert await examined(discovery, of) == ""


@pytest.mark.parametrize("preset", ["oidc", "scalekit"])
async def test_an_examination_takes_the_time_of_one_request_altogether(
    discovery: Discovery, upstream: Upstream, preset: str
) -> None:
    for path in (DOCUMENT, "/keys"):
        upstream.fault(path, "slow", seconds=2.5)
    assert "no answer in time" in await examined(discovery, upstream.configured(preset=preset))


@pytest.mark.parametrize("preset", ["oidc", "scalekit"])
async def test_an_issuer_may_be_added_while_it_is_away_and_the_words_say_why_it_was_not_examined(
    discovery: Discovery, upstream: Upstream, preset: str
) -> None:
    of = upstream.configured(preset=preset)
    for kind, members, said in (
        ("status", {"status": 503}, "503"),
        ("close", {}, "broke off"),
        ("redirect", {"location": "https://evil.example/"}, "redirect"),
        ("answer", {"status": 200, "body": "<html>"}, "no JSON"),
        ("large", {}, "too large"),
    ):
        upstream.heal()
        upstream.fault("/", kind, **members)
        assert said in await examined(discovery, of)
    upstream.refuse()
    assert "no connection" in await examined(discovery, of)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('{"keys": []}', "it is empty"),
        ("[]", "it is no key set"),
        ('{"keys": 1}', "it is no key set"),
        ('{"keys": [{"kty": "oct", "kid": "a", "k": "AAAA"}]}', "it has private or symmetric keys"),
    ],
)
async def test_a_key_set_that_could_not_be_used_is_told(
    discovery: Discovery, upstream: Upstream, body: str, said: str
) -> None:
    upstream.key_set(body)
    for of in (oidc(upstream), upstream.configured()):
        assert said in await examined(discovery, of)


async def test_an_oidc_issuer_without_a_document_is_refused_and_scalekit_is_not(
    discovery: Discovery, upstream: Upstream
) -> None:
    upstream.fault(DOCUMENT, "status", status=404)
    with pytest.raises(InvalidRequest) as refused:
        await examined(discovery, oidc(upstream))
    assert refused.value.description == "issuer acme: there is no discovery document below its URL."
    assert await examined(discovery, upstream.configured()) == ""
    # But a document that is there must be its own.
    upstream.heal()
    says(upstream, issuer="https://other.example")
    with pytest.raises(InvalidRequest, match="discovery"):
        await examined(discovery, upstream.configured())


async def test_an_address_that_the_issuer_may_not_have_refuses_the_change(
    discovery: Discovery, upstream: Upstream
) -> None:
    for of in (oidc(upstream, private_addresses=False), upstream.configured(private_addresses=False)):
        with pytest.raises(InvalidRequest) as refused:
            await examined(discovery, of)
        assert "private_addresses" in refused.value.description
    says(upstream, jwks_uri="https://169.254.169.254/latest/meta-data")
    with pytest.raises(InvalidRequest):
        await examined(discovery, oidc(upstream))
    assert upstream.requests("/keys") == []


async def test_a_change_is_stored_only_if_the_issuer_says_nothing_against_it(
    keyturn: Keyturn, upstream: Upstream
) -> None:
    put = await keyturn.issuer_changes.put("acme", oidc(upstream).issuer, NONE, by=ROOT)
    assert put.not_examined == ""
    assert "acme" in keyturn.issuers.in_force  # here at once, and not only with the next pulse
    says(upstream, issuer="https://other.example")
    wrong = oidc(upstream, trust_email=True).issuer
    with pytest.raises(InvalidRequest):
        await keyturn.issuer_changes.put("acme", wrong, NONE, by=ROOT)
    assert not keyturn.issuers.named("acme").issuer.trust_email
    upstream.refuse()
    put = await keyturn.issuer_changes.put("acme", wrong, NONE, by=ROOT)
    assert "no connection" in put.not_examined
    assert keyturn.issuers.named("acme").issuer.trust_email
    await keyturn.issuer_changes.remove("acme", by=ROOT)
    assert "acme" not in keyturn.issuers.in_force


async def test_a_name_that_may_not_be_changed_sends_no_request(keyturn: Keyturn, upstream: Upstream) -> None:
    with pytest.raises(InvalidRequest, match="name"):
        await keyturn.issuer_changes.put("Not A Name", Issuer(**upstream.members()), NONE, by=ROOT)
    assert upstream.requests() == []


@pytest.mark.parametrize(
    ("planted", "value"),
    [("url_of", lambda issuer: f"{issuer.issuer}{DOCUMENT}"), ("_is_url", lambda value: isinstance(value, str))],
    ids=["a slash too many", "any URL"],
)
async def test_a_planted_bug_is_found(
    discovery: Discovery, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, planted: str, value: Any
) -> None:
    monkeypatch.setattr(module, planted, value)
    finds = (
        test_the_url_of_the_document_follows_the_path_of_the_issuer(upstream)
        if planted == "url_of"
        else test_a_document_that_is_wrong_counts_for_nothing_and_its_words_are_not_repeated(
            discovery, upstream, {"jwks_uri": "http://127.0.0.1/keys"}, "no https jwks_uri"
        )
    )
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        await finds
