"""An issuer's keys are there when its tokens need them, and no outage of the issuer is a verdict on a token."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa, x448, x25519
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from app.errors import TemporarilyUnavailable, UnacceptableToken
from app.federation.discovery import Discovery
from app.federation.fetching import Fetching
from app.federation.jwks import MOST_KEYS, jwk_set_of
from app.federation.key_sets import COOL_DOWN, FRESH, KeySets
from app.outgoing.sending import Sending
from app.storage.tasks import finish
from tests.upstream.keys import Keys, base64url
from tests.upstream.upstream import Upstream


@pytest.fixture
def key_sets() -> KeySets:
    fetching = Fetching(Sending())
    return KeySets(fetching, Discovery(fetching))


def time_passes(key_sets: KeySets, seconds: float) -> None:
    """Makes everything older that is remembered of the issuers."""
    for held in key_sets._held.values():
        held.read_at -= seconds
        held.begun_at -= seconds
        held.asked_at -= seconds
    for document in key_sets._discovery._held.values():
        document.read_at -= seconds
        document.tried_at -= seconds


def after_cool_down(key_sets: KeySets) -> None:
    time_passes(key_sets, COOL_DOWN.total_seconds())


def after_freshness(key_sets: KeySets) -> None:
    time_passes(key_sets, FRESH.total_seconds() + 1)


def fetches(upstream: Upstream) -> int:
    return len(upstream.requests("/keys"))


async def outcome(key_sets: KeySets, upstream: Upstream, kid: str = "snk_1") -> str:
    """The outcome of a look for a key: "key", the word of a refusal, or "503"."""
    try:
        key = await key_sets.key(upstream.configured(), kid)
    except UnacceptableToken as e:
        return e.cause
    except TemporarilyUnavailable:
        return "503"
    assert key.kid == kid
    return "key"


async def outcomes(key_sets: KeySets, upstream: Upstream, kids: list[str]) -> list[str]:
    return list(await asyncio.gather(*(outcome(key_sets, upstream, kid) for kid in kids)))


async def test_the_first_token_fetches_the_keys_and_the_others_do_not(key_sets: KeySets, upstream: Upstream) -> None:
    assert fetches(upstream) == 0
    assert set(await outcomes(key_sets, upstream, ["snk_1"] * 100)) == {"key"}
    assert set(await outcomes(key_sets, upstream, ["snk_1"] * 100)) == {"key"}
    assert fetches(upstream) == 1


async def test_a_flood_of_unknown_keys_causes_one_fetch_in_a_cool_down(key_sets: KeySets, upstream: Upstream) -> None:
    assert await outcome(key_sets, upstream) == "key"
    for round_ in range(3):
        found = await outcomes(key_sets, upstream, [f"unknown_{round_}_{number}" for number in range(300)])
        # In the cool-down nobody knows whether the key is a new one, so nobody says that there is none.
        assert set(found) == {"503"}
    assert await outcome(key_sets, upstream) == "key", "and the known key verifies on"
    assert fetches(upstream) == 1
    after_cool_down(key_sets)
    found = await outcomes(key_sets, upstream, [f"unknown_{number}" for number in range(300)])
    assert found[0] == "unknown_key", "its fetch began after it came"
    assert set(found) <= {"unknown_key", "503"}
    assert fetches(upstream) == 2


async def test_an_unknown_key_is_refused_only_by_a_fetch_that_began_after_its_token(
    key_sets: KeySets, upstream: Upstream
) -> None:
    upstream.fault("/keys", "slow", seconds=0.5, times=1)
    first = asyncio.create_task(outcome(key_sets, upstream, "unknown_1"))
    while not upstream.requests("/keys"):
        await asyncio.sleep(0.02)
    second = asyncio.create_task(outcome(key_sets, upstream, "unknown_2"))
    known = asyncio.create_task(outcome(key_sets, upstream))
    assert await first == "unknown_key"
    assert await second == "503", "the issuer may have published the key after it had answered"
    assert await known == "key"
    assert fetches(upstream) == 1


async def test_a_new_key_is_fetched_when_its_first_token_comes(key_sets: KeySets, upstream: Upstream) -> None:
    assert await outcome(key_sets, upstream) == "key"
    new = upstream.rotate()
    assert await outcome(key_sets, upstream, new.kid) == "503", "within the cool-down"
    after_cool_down(key_sets)
    assert set(await outcomes(key_sets, upstream, [new.kid, "snk_1"] * 50)) == {"key"}
    assert fetches(upstream) == 2


async def test_a_refusal_for_the_cool_down_says_when_to_come_again(key_sets: KeySets, upstream: Upstream) -> None:
    assert await outcome(key_sets, upstream) == "key"
    with pytest.raises(TemporarilyUnavailable) as caught:
        await key_sets.key(upstream.configured(), "unknown")
    assert caught.value.retry_after is not None
    assert caught.value.retry_after <= COOL_DOWN


async def test_a_withdrawn_key_stops_when_the_key_set_is_no_longer_fresh(key_sets: KeySets, upstream: Upstream) -> None:
    assert await outcome(key_sets, upstream) == "key"
    upstream.rotate(keep=False)
    after_cool_down(key_sets)
    assert await outcome(key_sets, upstream) == "key"
    after_freshness(key_sets)
    found = await outcomes(key_sets, upstream, ["snk_1"] * 20)
    assert found[0] == "unknown_key", "its fetch began after it came"
    assert set(found) <= {"unknown_key", "503"}
    assert fetches(upstream) == 2
    after_cool_down(key_sets)
    assert await outcome(key_sets, upstream) == "unknown_key"


async def test_the_keys_stay_while_the_issuer_is_away(key_sets: KeySets, upstream: Upstream) -> None:
    assert await outcome(key_sets, upstream) == "key"
    upstream.refuse()
    for _ in range(3):
        after_freshness(key_sets)
        assert set(await outcomes(key_sets, upstream, ["snk_1"] * 20)) == {"key"}
        assert await outcome(key_sets, upstream, "unknown") == "503"
    new = upstream.rotate(keep=False)
    upstream.heal()
    after_cool_down(key_sets)
    assert await outcome(key_sets, upstream, new.kid) == "key"
    after_cool_down(key_sets)
    assert await outcome(key_sets, upstream) == "unknown_key", "the one that was withdrawn meanwhile"


async def test_an_issuer_that_hangs_holds_up_no_token_of_a_known_key_twice(
    key_sets: KeySets, upstream: Upstream
) -> None:
    assert await outcome(key_sets, upstream) == "key"
    upstream.fault("/keys", "hang")
    after_freshness(key_sets)
    assert await outcome(key_sets, upstream) == "key", "after the time limit of one fetch"
    after_freshness(key_sets)
    held = key_sets._held["acme"]
    assert await outcome(key_sets, upstream) == "key"
    assert held.fetch is not None, "the answer did not wait for the second fetch"
    await held.fetch


async def test_without_keys_an_outage_is_503_for_every_token(key_sets: KeySets, upstream: Upstream) -> None:
    upstream.refuse()
    assert set(await outcomes(key_sets, upstream, ["snk_1", "unknown"] * 10)) == {"503"}
    upstream.heal()
    assert await outcome(key_sets, upstream) == "503", "one fetch in a cool-down"
    after_cool_down(key_sets)
    assert await outcome(key_sets, upstream) == "key"


async def test_a_caller_that_leaves_ends_the_fetch_for_nobody(key_sets: KeySets, upstream: Upstream) -> None:
    upstream.fault("/keys", "slow", seconds=0.5, times=1)
    first = asyncio.create_task(outcome(key_sets, upstream))
    second = asyncio.create_task(outcome(key_sets, upstream))
    await asyncio.sleep(0.05)
    first.cancel()
    assert await second == "key"
    assert fetches(upstream) == 1


async def test_another_place_of_the_keys_begins_without_any(key_sets: KeySets, upstream: Upstream) -> None:
    of = upstream.configured()
    assert (await key_sets.key(of, "snk_1")).kid == "snk_1"
    same = upstream.configured(longest_lifetime=60, default_role="member")
    assert (await key_sets.key(same, "snk_1")).kid == "snk_1"
    assert fetches(upstream) == 1, "nothing about the keys has changed"
    upstream.fault("/elsewhere", "answer", status=200, body=json.dumps({"keys": [upstream.keys.rsa(2).jwk]}))
    moved = upstream.configured(jwks_uri=f"{upstream.url}/elsewhere")
    with pytest.raises(UnacceptableToken, match="unknown_key"):
        await key_sets.key(moved, "snk_1")


async def test_a_removed_issuer_leaves_no_keys_for_one_of_its_name(key_sets: KeySets, upstream: Upstream) -> None:
    assert await outcome(key_sets, upstream) == "key"
    upstream.refuse()
    key_sets.follow({"acme": upstream.configured()})
    assert await outcome(key_sets, upstream) == "key"
    key_sets.follow({})
    assert await outcome(key_sets, upstream) == "503", "it was removed for a reason, and its old keys prove nothing"


@pytest.mark.parametrize("left_behind", ["nothing", "the former keys"])
async def test_keys_that_move_to_another_place_are_found_there_within_two_cool_downs(
    key_sets: KeySets, upstream: Upstream, left_behind: str
) -> None:
    of = upstream.configured(preset="oidc")
    assert (await key_sets.key(of, "snk_1")).kid == "snk_1"
    if left_behind == "nothing":
        upstream.fault("/keys", "status", status=404)
    document = {"issuer": upstream.url, "jwks_uri": f"{upstream.url}/moved"}
    upstream.fault("/.well-known", "answer", status=200, body=json.dumps(document))
    upstream.fault("/moved", "answer", status=200, body=json.dumps({"keys": [upstream.keys.rsa(2).jwk]}))
    after_cool_down(key_sets)
    with pytest.raises((TemporarilyUnavailable, UnacceptableToken)):
        await key_sets.key(of, "snk_2")
    after_cool_down(key_sets)
    with suppress(TemporarilyUnavailable, UnacceptableToken):
        await key_sets.key(of, "snk_2")
    await finish()
    after_cool_down(key_sets)
    assert (await key_sets.key(of, "snk_2")).kid == "snk_2"


# -- key sets that no careful issuer publishes


def sets(keys: Keys) -> dict[str, Any]:
    """The key sets, by the reason why they are refused."""
    good = keys.rsa(2).jwk
    return {
        "empty": {"keys": []},
        "without keys": {},
        "an array": [good],
        "a key that is a text": {"keys": [good, "snk_1"]},
        "no JSON": "keys",
        "a page": "<html><body>Sign in to the Wi-Fi</body></html>",
        "nothing": "",
        "a name twice": '{"keys":[],"keys":[' + json.dumps(good) + "]}",
        "a private key": {"keys": [good, keys.rsa(3).private_jwk]},
        "a symmetric key": {"keys": [good, {"kty": "oct", "kid": "s", "k": base64url(bytes(32))}]},
        "two keys of one id": {"keys": [good, {**keys.rsa(3).jwk, "kid": good["kid"]}]},
        "101 keys": {"keys": [{**good, "kid": f"snk_{number}"} for number in range(MOST_KEYS + 1)]},
        "1,000 keys": {"keys": [{**good, "kid": f"snk_{number}"} for number in range(1000)]},
        "keys for encryption alone": {"keys": [{**good, "use": "enc"}]},
        "weak keys alone": {"keys": [keys.weak().jwk]},
    }


FAULTS: dict[str, dict[str, Any]] = {
    "10 MiB": {"kind": "large"},
    "a redirect": {"kind": "redirect", "location": "https://127.0.0.1/keys"},
    "status 404": {"kind": "status", "status": 404},
    "status 500": {"kind": "status", "status": 500},
    "a cut answer": {"kind": "cut"},
}
NAMES = [
    "empty", "without keys", "an array", "a key that is a text", "no JSON", "a page", "nothing", "a name twice",
    "a private key", "a symmetric key", "two keys of one id", "101 keys", "1,000 keys", "keys for encryption alone",
    "weak keys alone", *FAULTS,
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
async def test_the_former_keys_stay_where_the_key_set_is_bad(key_sets: KeySets, upstream: Upstream, name: str) -> None:
    def go_bad() -> None:
        if name in FAULTS:
            upstream.fault("/keys", **FAULTS[name])
        else:
            upstream.key_set(sets(upstream.keys)[name])

    go_bad()
    assert await outcome(key_sets, upstream) == "503", "there are no former keys yet"
    upstream.heal()
    after_cool_down(key_sets)
    assert await outcome(key_sets, upstream) == "key"
    go_bad()
    after_freshness(key_sets)
    assert set(await outcomes(key_sets, upstream, ["snk_1"] * 10)) == {"key"}
    assert await outcome(key_sets, upstream, "snk_2") == "503"
    assert fetches(upstream) == 3


def test_the_list_of_bad_key_sets_is_complete(upstream_keys: Keys) -> None:
    assert [*sets(upstream_keys), *FAULTS] == NAMES


# -- keys that are left out


def test_a_key_that_is_not_for_our_signatures_is_left_out_and_the_others_count(upstream_keys: Keys) -> None:
    good = upstream_keys.rsa(1).jwk
    p384 = ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP384R1()).public_key(), as_dict=True)
    numbers = rsa.generate_private_key(65537, 2048).public_key().public_numbers()
    n, octets = base64url(numbers.n.to_bytes(256, "big")), x25519.X25519PrivateKey.generate().public_key()
    bad: dict[str, dict[str, Any]] = {
        "for encryption": {**good, "use": "enc"},
        "of another use": {**good, "use": 1},
        "to sign": {**good, "key_ops": ["sign"]},
        "operations of another type": {**good, "key_ops": "verify"},
        "of another algorithm": {**good, "alg": "RS512"},
        "PS256": {**good, "alg": "PS256"},
        "HS256 under RSA": {**good, "alg": "HS256"},
        "another curve": p384,
        "X25519": {"kty": "OKP", "crv": "X25519", "x": base64url(octets.public_bytes_raw())},
        "X448": {
            "kty": "OKP",
            "crv": "X448",
            "x": base64url(x448.X448PrivateKey.generate().public_key().public_bytes_raw()),
        },
        "of no type": {name: value for name, value in good.items() if name != "kty"},
        "of an unknown type": {**good, "kty": "AKP"},
        "a type that is no text": {**good, "kty": 1},
        "without a modulus": {**good, "n": ...},
        "a modulus that is a number": {**good, "n": 5},
        "a modulus that is no base64url": {**good, "n": good["n"][:-1] + "="},
        "even": {**good, "e": base64url(bytes([1, 0, 0]))},
        "an exponent of one": {**good, "e": base64url(bytes([1]))},
        "a huge exponent": {**good, "e": base64url(bytes([1] * 9))},
        "a point beside the curve": {**upstream_keys.ec().jwk, "x": base64url(bytes(32))},
        "a short point": {**upstream_keys.ec().jwk, "x": base64url(bytes(31))},
        "a short Edwards key": {**upstream_keys.ed().jwk, "x": base64url(bytes(31))},
    }
    members = [
        {name: value for name, value in {**key, "kid": kid}.items() if value is not ...} for kid, key in bad.items()
    ]
    nameless = [{name: value for name, value in good.items() if name != "kid"}, {**good, "kid": ""}, {**good, "kid": 7}]
    found = jwk_set_of({"keys": [good, *members, *nameless, {"kty": "RSA", "kid": "whole", "n": n, "e": "AQAB"}]})
    assert found.keys.keys() == {good["kid"], "whole"}
    assert {kid for kid, _ in found.left_out} == {*bad, ""}
    assert found.weak == {"even", "an exponent of one", "a huge exponent"}


@pytest.mark.parametrize(("bits", "weak"), [(1024, True), (2040, True), (2048, False), (3072, False), (8200, True)])
def test_rsa_keys_have_2048_to_8192_bits(upstream_keys: Keys, bits: int, weak: bool) -> None:
    modulus = base64url(((1 << bits) - 159).to_bytes((bits + 7) // 8, "big"))  # its factors do not matter here
    found = jwk_set_of({"keys": [upstream_keys.rsa(1).jwk, {"kty": "RSA", "kid": "key", "n": modulus, "e": "AQAB"}]})
    assert ("key" in found.weak) == weak
    assert ("key" in found.keys) == (not weak)


async def test_a_weak_key_is_refused_with_its_own_word(key_sets: KeySets, upstream: Upstream) -> None:
    upstream.publish(upstream.keys.rsa(1), upstream.keys.weak())
    assert await outcomes(key_sets, upstream, ["snk_1", "snk_weak"]) == ["key", "weak_key"]


async def test_a_weak_key_that_the_issuer_has_replaced_is_sound_when_the_set_is_no_longer_fresh(
    key_sets: KeySets, upstream: Upstream
) -> None:
    """All of its tokens may name this one key, so no other token causes the fetch."""
    upstream.publish(upstream.keys.rsa(1), upstream.keys.weak())
    weak = upstream.keys.weak().kid
    assert await outcome(key_sets, upstream, weak) == "weak_key"
    upstream.key_set({"keys": [{**upstream.keys.rsa(2).jwk, "kid": weak}]})
    after_cool_down(key_sets)
    assert await outcome(key_sets, upstream, weak) == "weak_key", "the set is fresh, and a sound key would verify too"
    after_freshness(key_sets)
    assert await outcome(key_sets, upstream, weak) == "key"
    assert fetches(upstream) == 2


def test_a_key_of_another_library_is_read(upstream_keys: Keys) -> None:
    made = RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 2048).public_key(), as_dict=True)
    assert jwk_set_of({"keys": [{**made, "kid": "a"}]}).keys["a"].bits == 2048
