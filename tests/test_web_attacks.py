"""Attacks on cookies by a neighbour: a page of another host of the same domain, which may plant cookies in a browser.

A neighbour can't plant a name that begins with ``__Host-`` (RFC 6265bis section 5.7). But it can plant any other name
for the domain above, with values of the attacker's own sessions (RFC 6265 section 8.6).
"""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from time import process_time
from typing import Any

import pytest
from sqlalchemy import event

from app.http.request import Request
from app.routes.presented_cookies import PresentedCookies
from tests.cookie_site import R, S, Site, site_of
from tests.cookies import SAME_SITE, ask, set_cookies

pytestmark = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)


@pytest.fixture
async def site(database_url: str) -> AsyncIterator[Site]:
    async with site_of(database_url) as site:
        yield site


@contextmanager
def statements(site: Site) -> Iterator[list[str]]:
    """The statements that the database gets meanwhile."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    engine = site.keyturn.db._other_reader.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", note)


async def test_a_planted_split_cookie_that_is_junk_keeps_no_page_from_its_refresh(site: Site) -> None:
    one = await site.sign_in(await site.user())
    for junk in ("junk", one.sealed(R, one.refresh_token), one.a):
        answer = await ask(site.client, "POST", "/auth/refresh", f"{S}={junk}; {one.pair}", headers=SAME_SITE)
        assert answer.status_code == 200, answer.text
        one = await one.refreshed()


async def test_a_planted_cookie_of_a_session_that_is_over_keeps_nobody_from_signing_out_everywhere(site: Site) -> None:
    stranger = await site.sign_in(await site.user())
    await ask(site.client, "POST", "/auth/logout", stranger.pair, headers=SAME_SITE)
    email = await site.user()
    for scope in ("others", "all"):
        one, two = await site.sign_in(email), await site.sign_in(email)
        answer = await ask(
            site.client,
            "POST",
            "/auth/logout",
            f"{S}={stranger.s}; {one.pair}",
            body={"scope": scope},
            headers=SAME_SITE,
        )
        assert answer.status_code == 204, answer.text
        verdicts = [(await ask(site.client, "GET", "/auth/verify", each.pair)).status_code for each in (one, two)]
        assert verdicts == ([200, 401] if scope == "others" else [401, 401])


async def test_a_planted_live_session_does_not_stand_for_the_one_whose_token_is_old(site: Site) -> None:
    stranger, old = await site.sign_in(await site.user()), await site.sign_in(await site.user())
    newest = await (await old.refreshed()).refreshed()
    answer = await ask(
        site.client, "POST", "/auth/logout", f"{S}={stranger.s}; {R}={old.r}", body={"scope": "all"}, headers=SAME_SITE
    )
    assert answer.status_code == 204
    verdicts = [(await ask(site.client, "GET", "/auth/verify", each.pair)).status_code for each in (stranger, newest)]
    assert verdicts == [401, 401]


async def test_a_logout_of_the_other_sessions_leaves_this_one_its_cookies(site: Site) -> None:
    email = await site.user()
    one, two = await site.sign_in(email), await site.sign_in(email)
    answer = await ask(site.client, "POST", "/auth/logout", one.pair, body={"scope": "others"}, headers=SAME_SITE)
    assert (answer.status_code, set_cookies(answer)) == (204, [])
    verdicts = [(await ask(site.client, "GET", "/auth/verify", each.pair)).status_code for each in (one, two)]
    assert verdicts == [200, 401]


async def test_many_cookies_cost_the_database_no_more_statements_than_one_refresh(site: Site) -> None:
    email = await site.user()
    several = [await site.sign_in(email) for _ in range(8)]
    cookies = "; ".join(f"{R}={each.r}" for each in several)
    with statements(site) as seen:
        answer = await ask(site.client, "GET", "/auth/verify?refresh=true", cookies)
    assert answer.status_code == 401
    assert len(seen) == 2  # the clock, and all sessions at once


def test_a_query_of_one_name_a_thousand_times_costs_no_more_than_as_many_names(engine: str) -> None:
    def cost(query: bytes) -> float:
        request = Request()
        request.query = query
        began = process_time()
        request.parameters()
        return process_time() - began

    same = min(cost(b"&".join([b"a"] * 4000) + b"&%d" % n) for n in range(5))
    different = min(cost(b"&".join(b"%x" % i for i in range(1600)) + b"&%d" % n) for n in range(5))
    assert same < 10 * different


def test_the_queries_of_strangers_do_not_stay_in_memory(engine: str) -> None:
    tracemalloc.start()
    try:
        for n in range(300):
            request = Request()
            request.query = b"%d" % n + b"".join(b"&%x" % i for i in range(500))
            assert len(request.parameters()) >= 500
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 2_000_000


async def test_no_repr_of_the_presented_cookies_has_their_values(site: Site) -> None:
    one = await site.sign_in(await site.user())
    request = Request()
    request.fields = {b"cookie": one.pair.encode()}
    request.headers = list(request.fields.items())
    presented = PresentedCookies.of(site.keyturn, request)
    assert presented
    assert one.a not in repr(presented)
    assert one.r not in repr(presented)
