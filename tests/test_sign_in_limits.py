"""Limits at the endpoints: sign-in, registration, change of password and reauthentication."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from time import monotonic, sleep
from typing import Any

import httpx2
import pytest

from app import metrics
from app.actors import SERVICE
from app.tokens.known_devices import GOOD_FOR, KnownDevices
from tests.api import ADA, Api, refused, serving
from tests.conftest import NEW_PASSWORD, PASSWORD, a_user, sync
from tests.cookies import HTTPS, SAME_SITE, set_cookies
from tests.servers import Redis
from tests.service import Service
from tests.tally import Tally
from tests.test_races import all_ready, at, serve, until

WRONG = "a wrong password, long enough"
KNOWN = "__Secure-Http-keyturn-known"


@pytest.fixture
def engine() -> str:
    return "sqlite"


@pytest.fixture
async def api(database_url: str) -> AsyncIterator[Api]:
    async with serving(database_url, registration="true") as api:
        await api.keyturn.users.create(ADA, PASSWORD, by=SERVICE)
        yield api


From = Callable[[str], AbstractAsyncContextManager[httpx2.AsyncClient]]


@pytest.fixture
def from_(api: Api) -> From:
    """A client with this address."""
    app: Any = api.client._transport.app  # type: ignore[attr-defined]

    @asynccontextmanager
    async def client(address: str) -> AsyncIterator[httpx2.AsyncClient]:
        transport = httpx2.ASGITransport(app, client=(address, 4711))
        async with httpx2.AsyncClient(transport=transport, base_url="https://auth.example.com") as client:
            yield client

    return client


async def login(client: httpx2.AsyncClient, password: str, email: str = ADA, **more: Any) -> httpx2.Response:
    return await client.post("/auth/login", json={"email": email, "password": password, **more})


async def storm(from_: From, email: str = ADA, count: int = 25) -> list[httpx2.Response]:
    """Wrong passwords on one account, each from another network."""
    answers = []
    for n in range(count):
        async with from_(f"10.0.{n}.1") as client:
            answers.append(await login(client, WRONG, email))
    return answers


def shown(answer: httpx2.Response) -> tuple[int, str, list[str], dict[str, str]]:
    fields = {n: v for n, v in answer.headers.items() if n not in {"x-request-id", "retry-after", "ratelimit"}}
    return answer.status_code, answer.text, list(answer.headers), fields


async def test_an_account_that_does_not_exist_is_limited_as_one_that_does(from_: From) -> None:
    ada, nobody = await storm(from_), await storm(from_, "nobody@example.com")
    assert [a.status_code for a in ada] == [401] * 20 + [429] * 5
    assert [shown(a) for a in ada] == [shown(a) for a in nobody]
    assert {abs(int(a.headers["retry-after"]) - int(b.headers["retry-after"])) for a, b in zip(ada[20:], nobody[20:], strict=True)} <= set(range(20))  # fmt: skip


async def test_a_refusal_has_the_shape_of_all_refusals_and_says_when_to_come_again(api: Api) -> None:
    for _ in range(10):
        refused(await login(api.client, WRONG), 401, "invalid_grant", challenge="Bearer")
    for password in (WRONG, PASSWORD):
        answer = await login(api.client, password)
        refused(answer, 429, "slow_down")
        wait = answer.headers["retry-after"]
        assert 1 <= int(wait) <= 30
        assert answer.headers["ratelimit-policy"] == '"account_network";q=10;w=300'
        assert answer.headers["ratelimit"] == f'"account_network";r=0;t={wait}'


async def test_a_device_that_signed_in_before_gets_in_at_once_during_a_storm(api: Api, from_: From) -> None:
    first = (await login(api.client, PASSWORD, device_id="laptop")).json()
    token = first["device_token"]
    await storm(from_)
    async with from_("10.0.1.1") as client:  # even within a network of the storm
        refused(await login(client, PASSWORD, device_id="laptop"), 429, "slow_down")
        again = await login(client, PASSWORD, device_id="laptop", device_token=token)
        assert again.status_code == 200
        assert again.json()["device_token"] == token


@pytest.mark.parametrize("mode", ["cookie", "split"])
async def test_a_browser_that_signed_in_before_gets_in_at_once_during_a_storm(api: Api, from_: From, mode: str) -> None:
    first = await api.client.post(
        "/auth/login", json={"email": ADA, "password": PASSWORD, "mode": mode}, headers=SAME_SITE
    )
    assert "device_token" not in first.json()
    known = next(c for c in set_cookies(first) if c.name == KNOWN)
    device = next(c for c in set_cookies(first) if c.name == HTTPS.device)
    assert known.attributes["path"] == "/auth"
    assert known.attributes.keys() >= {"httponly", "secure", "samesite"}
    await storm(from_)
    for cookies, status in ((f"{HTTPS.device}={device.value}", 429), (f"{KNOWN}=junk.{known.value}", 200)):
        async with from_("10.0.1.1") as client:
            answer = await client.post(
                "/auth/login",
                json={"email": ADA, "password": PASSWORD, "mode": mode},
                headers=[*SAME_SITE, ("Cookie", cookies)],
            )
            assert answer.status_code == status, cookies
            assert KNOWN not in {c.name for c in set_cookies(answer)}


async def test_a_browser_keeps_its_proofs_for_the_four_newest_of_its_accounts(api: Api) -> None:
    cookie = ""
    for n in range(6):
        email = f"{n}@example.com"
        await api.keyturn.users.create(email, PASSWORD, by=SERVICE)
        answer = await api.client.post(
            "/auth/login",
            json={"email": email, "password": PASSWORD, "mode": "cookie"},
            headers=[*SAME_SITE, ("Cookie", f"{KNOWN}={cookie}")],
        )
        cookie = next(c.value for c in set_cookies(answer) if c.name == KNOWN)
    proofs = cookie.split(".")
    today = api.keyturn.db.clock().date()
    found = [api.keyturn.known_devices.find(proofs, f"{n}@example.com", today) is not None for n in range(6)]
    assert found == [False, False, True, True, True, True]


async def test_what_a_client_chooses_as_its_device_gives_it_no_budget(api: Api, from_: From) -> None:
    """Somebody may know the id, from a log or a list of sessions. Only what Keyturn has signed is a proof."""
    await login(api.client, PASSWORD, device_id="laptop")
    other = (await login(api.client, PASSWORD, device_id="laptop")).json()["device_token"]
    await api.keyturn.users.create("bob@example.com", PASSWORD, by=SERVICE)
    of_bob = (await login(api.client, PASSWORD, "bob@example.com", device_id="laptop")).json()["device_token"]
    await storm(from_)
    changed = other[:-1] + ("A" if other[-1] != "A" else "B")
    for token in (None, of_bob, changed, "ktd_" + "A" * 48, other.lower(), other + "A", "", "ä"):
        more = {} if token is None else {"device_token": token}
        async with from_("10.0.1.1") as client:
            refused(await login(client, PASSWORD, device_id="laptop", **more), 429, "slow_down")


async def test_a_proof_says_nothing_but_that_it_is_genuine_and_runs_out(api: Api) -> None:
    from datetime import date, timedelta

    devices, today = KnownDevices(b"m" * 32, None), date(2026, 11, 27)
    one, two = (devices.prove(ADA, "a stored hash", today) for _ in range(2))
    assert one != two
    assert KnownDevices(b"m" * 32, None).find([one], ADA, today) is not None
    assert KnownDevices(b"n" * 32, None).find([one], ADA, today) is None
    moved = KnownDevices(b"n" * 32, b"m" * 32).find([one], ADA, today)
    assert moved is not None
    assert not moved.is_fresh  # so that the device gets one under the present secret
    assert KnownDevices(b"n" * 32, b"m" * 32).counts(moved, "a stored hash")
    assert not devices.counts(moved, "another stored hash")
    for days, found, fresh in ((0, True, True), (29, True, True), (30, True, False), (GOOD_FOR, True, False), (GOOD_FOR + 1, False, False)):  # fmt: skip
        known = devices.find([one], ADA, today + timedelta(days=days))
        assert (known is not None) == found
        assert known is None or known.is_fresh == fresh
    for position in range(4, len(one)):
        bent = one[:position] + ("A" if one[position] != "A" else "B") + one[position + 1 :]
        assert devices.find([bent], ADA, today) is None
    known = devices.find([one], ADA, today)
    assert one not in repr(known)


@pytest.mark.parametrize("change", ["set by an administrator", "changed by its user", "erased and made anew"])
async def test_who_knew_an_earlier_password_has_no_budget_of_the_proofs_made_with_it(
    api: Api, from_: From, change: str
) -> None:
    """Each sign-in gives a proof, so a former colleague or a thief may have as many as he likes."""
    signed_in = [(await login(api.client, PASSWORD, device_id=f"{n}")).json() for n in range(6)]
    if change == "changed by its user":
        body = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
        assert (await api.post("/auth/password", body, signed_in[-1]["access_token"])).status_code == 204
    else:
        user = await api.keyturn.users.find(ADA)
        if change == "set by an administrator":
            await api.keyturn.users.set_password(user.id, NEW_PASSWORD, by=SERVICE)
        else:
            await api.keyturn.erasing.erase(user.id, by=SERVICE)
            await api.keyturn.users.create(ADA, NEW_PASSWORD, by=SERVICE)
    owner = (await login(api.client, NEW_PASSWORD, device_id="laptop")).json()["device_token"]
    answers = []
    for n in range(60):
        async with from_(f"10.0.{n}.1") as client:
            answers.append(await login(client, PASSWORD, device_token=signed_in[n % 6]["device_token"]))
    assert [a.status_code for a in answers] == [401] * 20 + [429] * 40
    refused(await login(api.client, NEW_PASSWORD, device_token=signed_in[0]["device_token"]), 429, "slow_down")
    assert (await login(api.client, NEW_PASSWORD, device_token=owner)).status_code == 200


async def test_a_thief_of_a_proof_keeps_its_device_from_nothing_that_strangers_may(api: Api) -> None:
    """Eight guesses empty the device's budget. The device then signs in as a stranger, and gets another proof."""
    stolen = (await login(api.client, PASSWORD, device_id="laptop")).json()["device_token"]
    for _ in range(8):
        refused(await login(api.client, WRONG, device_token=stolen), 401, "invalid_grant", challenge="Bearer")
    fresh = (await login(api.client, PASSWORD, device_id="laptop", device_token=stolen)).json()["device_token"]
    assert fresh != stolen
    tally = Tally()
    answers = [await login(api.client, WRONG, device_token=stolen) for _ in range(30)]
    assert [a.status_code for a in answers] == [401] * 10 + [429] * 20  # those of a stranger's network
    tally.exactly(metrics.LIMITS_HIT, {("account_network", "login"): 20})
    assert (await login(api.client, PASSWORD, device_token=fresh)).status_code == 200


async def test_a_device_with_a_void_proof_gets_a_new_one_in_its_place(api: Api) -> None:
    void = (await login(api.client, PASSWORD, device_id="laptop")).json()["device_token"]
    user = await api.keyturn.users.find(ADA)
    await api.keyturn.users.set_password(user.id, NEW_PASSWORD, by=SERVICE)
    fresh = (await login(api.client, NEW_PASSWORD, device_id="laptop", device_token=void)).json()["device_token"]
    assert fresh != void
    browser = {"email": ADA, "password": NEW_PASSWORD, "mode": "cookie"}
    answer = await api.client.post("/auth/login", json=browser, headers=[*SAME_SITE, ("Cookie", f"{KNOWN}={void}")])
    (value,) = [c.value for c in set_cookies(answer) if c.name == KNOWN]
    assert void not in value


async def test_a_password_change_with_a_wrong_password_is_limited_and_the_session_lives(api: Api, from_: From) -> None:
    tokens = await api.login()
    other = await api.login()
    await storm(from_)  # nobody without the session takes from its budget
    body = {"current_password": WRONG, "new_password": NEW_PASSWORD}
    answers = [await api.post("/auth/password", body, tokens["access_token"]) for _ in range(20)]
    assert [a.status_code for a in answers] == [401] * 8 + [429] * 12
    refused(answers[-1], 429, "slow_down")
    refused(
        await api.post("/auth/password", body | {"current_password": PASSWORD}, tokens["access_token"]),
        429,
        "slow_down",
    )
    assert await api.is_live(tokens)
    answer = await api.post("/auth/password", body | {"current_password": PASSWORD}, other["access_token"])
    assert answer.status_code == 204


async def test_reauthentication_with_a_wrong_password_is_limited_and_rotates_nothing(api: Api, from_: From) -> None:
    tokens = await api.login()
    await storm(from_)
    body = {"password": WRONG, "refresh_token": tokens["refresh_token"]}
    answers = [await api.post("/auth/reauthenticate", body) for _ in range(12)]
    assert [a.status_code for a in answers] == [401] * 8 + [429] * 4
    refused(answers[-1], 429, "slow_down")
    assert (await api.post("/auth/refresh", {"refresh_token": tokens["refresh_token"]})).status_code == 200


@pytest.mark.parametrize("tells", ["true", "false"])
async def test_registration_is_limited_by_address_and_by_network(database_url: str, tells: str) -> None:
    settings = {"limit_register_network": "10/600"}
    async with serving(database_url, registration="true", registration_tells=tells, **settings) as api:
        made, again = (201, 409) if tells == "true" else (202, 202)
        same = [await api.post("/auth/register", {"email": "eve@example.com", "password": PASSWORD}) for _ in range(7)]
        assert [a.status_code for a in same] == [made, *[again] * 4, 429, 429]
        others = [
            await api.post("/auth/register", {"email": f"{n}@example.com", "password": PASSWORD}) for n in range(10)
        ]
        assert [a.status_code for a in others] == [made] * 5 + [429] * 5
        refused(others[-1], 429, "slow_down")


async def test_malformed_sign_ins_take_nothing(api: Api) -> None:
    for body in ({"email": "no address", "password": WRONG}, {"email": ADA, "password": "ä" * 600}, {"email": ADA}):
        for _ in range(15):
            assert (await api.post("/auth/login", body)).status_code == 400
    assert (await login(api.client, PASSWORD)).status_code == 200


@pytest.mark.parametrize(
    "spellings",
    [
        ("ada@example.com", "Ada@Example.COM", " ada@example.com ", "ADA@EXAMPLE.COM"),
        ("J\u030co@example.com", "j\u030co@example.com", "\u01f0o@example.com", "\u01f0O@example.com"),
        ("a@b\u00fccher.example", "a@xn--bcher-kva.example", "a@B\u00dcCHER.example", "a@bu\u0308cher.example"),
    ],
)
async def test_one_spelling_of_an_address_has_one_budget(api: Api, spellings: tuple[str, ...]) -> None:
    answers = [await login(api.client, WRONG, spellings[n % 4]) for n in range(12)]
    assert [a.status_code for a in answers] == [401] * 10 + [429] * 2


# -- real processes, behind a proxy that names the clients, on one Redis


class Behind:
    """Two services, reached as from a trusted proxy."""

    def __init__(self, services: list[Service]) -> None:
        self.services = services
        self.client = httpx2.Client(timeout=30, trust_env=False)

    def login(self, at: int, address: str, password: str, email: str, **more: Any) -> httpx2.Response:
        body = {"email": email, "password": password, **more}
        url = f"{self.services[at % 2].url}/auth/login"
        return self.client.post(url, json=body, headers={"X-Forwarded-For": address})


@pytest.fixture(scope="module")
def behind(
    request: pytest.FixtureRequest, redis: Redis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Behind, str]]:
    folder = tmp_path_factory.mktemp("limits")
    with ExitStack() as stack:
        postgres = request.getfixturevalue("postgres")
        name = f"limits_{secrets.token_hex(6)}"
        sync(postgres.create_database(name, template=request.getfixturevalue("template")))
        stack.callback(lambda: sync(postgres.drop_database(name)))
        url = postgres.url(name)
        more: dict[str, Any] = {
            "trusted_proxies": "127.0.0.1",
            "limit_account": "20/60",
            "limit_account_network": "10/30",
        }
        services = [stack.enter_context(serve(url, folder, redis_url=redis.url(), **more)) for _ in range(2)]
        sync(until(lambda: all_ready(services), 30))
        site = Behind(services)
        yield site, url
        site.client.close()


async def test_one_account_from_a_thousand_addresses_at_two_instances(behind: tuple[Behind, str]) -> None:
    """By the 30th failure 429; the owner's known device at once; a new one when the answer says."""
    site, url = behind
    email = f"{secrets.token_hex(8)}@example.com"
    async with at(url) as keyturn:
        user = await a_user(keyturn, email)
    known = site.login(0, "192.0.2.1", PASSWORD, email, device_id="laptop").json()["device_token"]
    began = monotonic()
    answers = [site.login(n, f"10.{n // 200}.{n % 200}.1", WRONG, email) for n in range(1000)]
    took = monotonic() - began
    failures = [a.status_code for a in answers].count(401)
    assert {a.status_code for a in answers} == {401, 429}
    assert 429 in [a.status_code for a in answers[:30]]
    # One more every three seconds. If the machine was so busy that Redis seemed away, each process counted by itself.
    alone = any('"limits_redis_away"' in service.text() for service in site.services)
    assert 20 <= failures <= (20 + took / 3 + 1) * (2 if alone else 1)
    assert site.login(1, "10.0.1.1", PASSWORD, email, device_id="laptop", device_token=known).status_code == 200
    new = site.login(1, "198.51.100.1", PASSWORD, email)
    while new.status_code == 429:
        assert int(new.headers["retry-after"]) <= 3
        sleep(int(new.headers["retry-after"]))
        new = site.login(1, "198.51.100.1", PASSWORD, email)
    assert new.status_code == 200
    for service in site.services:
        lines = [line for line in service.text_with('"limit_reached"').splitlines() if str(user.user_id) in line]
        assert len([line for line in lines if '"limit_reached"' in line]) <= 1


async def test_a_thousand_accounts_from_one_address_at_two_instances(behind: tuple[Behind, str]) -> None:
    site, url = behind
    email = f"{secrets.token_hex(8)}@example.com"
    async with at(url) as keyturn:
        await a_user(keyturn, email)
    run = secrets.token_hex(4)
    began = monotonic()
    answers = [site.login(n, "203.0.113.7", WRONG, f"{run}{n}@example.com") for n in range(1000)]
    took = monotonic() - began
    alone = any('"limits_redis_away"' in service.text() for service in site.services)
    assert 100 <= [a.status_code for a in answers].count(401) <= (100 + took / 6 + 1) * (2 if alone else 1)
    assert answers[-1].status_code == 429
    assert site.login(0, "192.0.2.77", PASSWORD, email).status_code == 200
