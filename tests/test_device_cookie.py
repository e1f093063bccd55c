"""The device cookie: a browser that signs in again replaces its own session, and keeps its id over a logout."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from sqlalchemy import select

from app.storage.tables import Session
from app.tokens.cookies import Mode
from tests.conftest import PASSWORD
from tests.cookie_site import A, R, S, Site, site_of
from tests.cookies import HTTPS, SAME_SITE, Browser, ask, login, set_cookies, token_cookies

D = HTTPS.device
FORM = re.compile("[A-Za-z0-9_-]{22}")


@pytest.fixture
async def site(database_url: str) -> AsyncIterator[Site]:
    async with site_of(database_url) as site:
        yield site


pytestmark = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)


async def sign_in(site: Site, browser: Browser, email: str, mode: str = "cookie", **more: Any) -> httpx2.Response:
    body = {"email": email, "password": PASSWORD, "mode": mode, **more}
    answer = await ask(site.client, "POST", "/auth/login", browser.sent_to("/auth/login"), body=body, headers=SAME_SITE)
    assert answer.status_code == 200, answer.text
    browser.take(set_cookies(answer))
    return answer


async def sessions(site: Site) -> list[tuple[str, str | None]]:
    """Device (in mode "cookie", the cookie's value) and reason of the end of all sessions, in the order of their age."""
    async with site.keyturn.db.look() as connection:
        query = select(Session.device_id, Session.end_reason).order_by(Session.id)
        return [
            ((row.device_id or "-").removesuffix(".cookie"), row.end_reason) for row in await connection.execute(query)
        ]


@pytest.mark.parametrize("mode", ["cookie", "split"])
async def test_a_browser_that_signs_in_again_replaces_its_session_and_keeps_its_id(site: Site, mode: str) -> None:
    email, browser = await site.user(), Browser()
    first = await sign_in(site, browser, email, mode)
    device = browser.value(D)
    assert device is not None
    assert FORM.fullmatch(device)
    again = await sign_in(site, browser, email, mode)
    assert D not in {each.name for each in set_cookies(again)}
    assert browser.value(D) == device
    named = device if mode == "cookie" else f"{device}.split"
    assert await sessions(site) == [(named, "replaced"), (named, None)]
    old = {each.name: each.value for each in token_cookies(first)}
    name = R if mode == "cookie" else S
    refused = await ask(site.client, "POST", "/auth/refresh", f"{name}={old[name]}", headers=SAME_SITE)
    assert (refused.status_code, refused.json()["reason"]) == (401, "replaced")
    if mode == "cookie":
        refused = await ask(site.client, "GET", "/auth/verify", f"{A}={old[A]}")
        assert (refused.status_code, refused.json()["reason"]) == (401, "replaced")
    sent = browser.sent_to("/auth/refresh")
    assert (await ask(site.client, "POST", "/auth/refresh", sent, headers=SAME_SITE)).status_code == 200


async def test_two_browsers_and_two_users_of_one_browser_keep_their_sessions(site: Site) -> None:
    ada, eve = await site.user(), await site.user()
    one, other = Browser(), Browser()
    await sign_in(site, one, ada)
    await sign_in(site, other, ada)
    await sign_in(site, one, eve)
    assert [reason for _, reason in await sessions(site)] == [None, None, None]
    assert one.value(D) != other.value(D)


async def test_the_two_modes_of_one_browser_keep_a_session_each(site: Site) -> None:
    email, browser = await site.user(), Browser()
    for mode in ("cookie", "split", "cookie"):
        await sign_in(site, browser, email, mode)
    device = browser.value(D)
    assert await sessions(site) == [(device, "replaced"), (f"{device}.split", None), (device, None)]


async def test_a_logout_leaves_the_device_cookie_and_no_answer_but_that_of_a_sign_in_sets_it(site: Site) -> None:
    email, browser = await site.user(), Browser()
    await sign_in(site, browser, email)
    device = browser.value(D)
    for method, path, status in (
        ("POST", "/auth/refresh", 200),
        ("GET", "/auth/verify?refresh=true", 200),
        ("POST", "/auth/logout", 204),
        ("POST", "/auth/refresh", 400),
        ("POST", "/auth/logout", 401),
    ):
        answer = await ask(site.client, method, path, browser.sent_to(path.partition("?")[0]), headers=SAME_SITE)
        assert (answer.status_code, [c.name for c in set_cookies(answer) if c.name == D]) == (status, []), path
        browser.take(set_cookies(answer))
    assert (browser.names(), browser.value(D)) == (set(), device)
    await sign_in(site, browser, email)
    assert browser.value(D) == device
    assert await sessions(site) == [(device, "logout"), (device, None)]


@pytest.mark.parametrize(
    "given", ["", "x", "A" * 21, "A" * 23, "A" * 22 + "=", "ä" * 22, "A" * 21 + ".", '"' + "A" * 22 + '"']
)
async def test_a_value_of_another_form_is_replaced_by_an_id_of_keyturns(site: Site, given: str) -> None:
    email = await site.user()
    body = {"email": email, "password": PASSWORD, "mode": "cookie"}
    sent = f"{D}={given}".encode()
    answer = await ask(site.client, "POST", "/auth/login", sent, body=body, headers=SAME_SITE)
    (new,) = [each.value for each in set_cookies(answer) if each.name == D]
    assert FORM.fullmatch(new)
    assert await sessions(site) == [(new, None)]


async def test_of_several_values_the_first_of_the_right_form_counts(site: Site) -> None:
    email, right = await site.user(), "A" * 22
    body = {"email": email, "password": PASSWORD, "mode": "cookie"}
    sent = f"{D}=junk; {D}={right}; {D}={'B' * 22}"
    answer = await ask(site.client, "POST", "/auth/login", sent, body=body, headers=SAME_SITE)
    assert D not in {each.name for each in set_cookies(answer)}
    assert await sessions(site) == [(right, None)]


async def test_the_clients_own_id_goes_before_the_cookie(site: Site) -> None:
    email, browser = await site.user(), Browser()
    answer = await sign_in(site, browser, email, device_id="my-own")
    assert D not in {each.name for each in set_cookies(answer)}
    await sign_in(site, browser, email)
    device = browser.value(D)
    await sign_in(site, browser, email, device_id="my-own", device_name="Büro")
    assert await sessions(site) == [("my-own", "replaced"), (device, None), ("my-own", None)]


async def test_mode_bearer_neither_reads_nor_sets_the_device_cookie(site: Site) -> None:
    email, browser = await site.user(), Browser()
    await sign_in(site, browser, email)
    for _ in range(2):
        assert set_cookies(await sign_in(site, browser, email, "bearer")) == []
    device = browser.value(D)
    assert await sessions(site) == [(device, None), ("-", None), ("-", None)]


async def test_the_cookie_outlives_the_browser_where_the_sign_in_is_remembered(site: Site) -> None:
    email = await site.user()
    for remember in (True, False):
        browser = Browser()
        await sign_in(site, browser, email, remember=remember)
        browser.restart()
        assert (browser.value(D) is not None) == remember


async def test_a_refused_sign_in_sets_no_device_cookie_and_ends_nothing(site: Site) -> None:
    email, browser = await site.user(), Browser()
    await sign_in(site, browser, email)
    device = browser.value(D)
    for password, headers, status in (("a wrong password", SAME_SITE, 401), (PASSWORD, [], 403)):
        body = {"email": email, "password": password, "mode": "cookie"}
        for sent in ("", f"{D}={device}"):
            answer = await ask(site.client, "POST", "/auth/login", sent, body=body, headers=headers)
            assert (answer.status_code, set_cookies(answer)) == (status, [])
    assert await sessions(site) == [(device, None)]


# -- the other words of a sign-in


async def test_a_sign_in_that_says_nothing_gets_mode_and_remember_of_the_policy_in_force(site: Site) -> None:
    email = await site.user()
    policies = site.keyturn.policies
    body = {"email": email, "password": PASSWORD}
    cases: list[tuple[Mode, bool, list[str]]] = [("cookie", False, [A, R]), ("split", True, [S]), ("bearer", True, [])]
    for mode, remember, names in cases:
        policies._in_force = replace(policies.in_force, mode=mode, remember=remember)
        answer = await ask(site.client, "POST", "/auth/login", body=body, headers=SAME_SITE)
        fields = token_cookies(answer)
        assert [each.name for each in fields] == names
        assert {"max-age" in each.attributes for each in fields} == ({remember} if names else set())
    said = {"mode": "cookie", "remember": True}
    answer = await ask(site.client, "POST", "/auth/login", body=body | said, headers=SAME_SITE)
    assert [("max-age" in each.attributes, each.name) for each in token_cookies(answer)] == [(True, A), (True, R)]


async def test_the_words_of_a_sign_in_are_bounded(site: Site) -> None:
    policies = site.keyturn.policies
    policies._in_force = replace(policies.in_force, scopes=frozenset({"read", "write"}))
    email = await site.user()
    good = ["~" * 64, "!", "a b".replace(" ", "_")]
    names = ["x" * 100, "Adas Gerät 📱", "x"]
    bad: dict[str, tuple[str, list[Any]]] = {
        "device_id": ("invalid_request", ["", "x" * 65, "a b", "ä", "x\n", "\x7f", 1]),
        "device_name": ("invalid_request", ["", "x" * 101, "a\nb", "\x00", "\u202e", ["x"]]),
        "scope": ("invalid_scope", ["admin", "read admin", " read", 'a"b', "a\\b", "x" * 300]),
        "role": ("invalid_request", ["admin"]),
    }
    for name, (error, values) in bad.items():
        for value in values:
            request = {"email": email, "password": PASSWORD, name: value}
            answer = await ask(site.client, "POST", "/auth/login", body=request)
            assert (answer.status_code, answer.json()["error"]) == (400, error), (name, value)
    assert await sessions(site) == []
    for device_id, name in zip(good, names, strict=True):
        await login(site.client, email, "bearer", device_id=device_id, device_name=name)
    scopes = {None: "read write", "": "read write", "read": "read", "write read": "read write", "read read": "read"}
    for asked, granted in scopes.items():
        answer = await login(site.client, email, "bearer", scope=asked)
        assert answer.json()["scope"] == granted
    async with site.keyturn.db.look() as connection:
        query = select(Session.device_id, Session.device_name, Session.scope).order_by(Session.id)
        rows = (await connection.execute(query)).all()
    assert [(row.device_id, row.device_name) for row in rows[: len(good)]] == list(zip(good, names, strict=True))
    assert [row.scope for row in rows[len(good) :]] == list(scopes.values())
