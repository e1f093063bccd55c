"""Cookies: the answer to each thing that a browser, or an attacker, can present, through both doors.

The first part is a table: the presented cookies, the answer, the Set-Cookie fields, and the change in the database.
"""

from __future__ import annotations

import asyncio
import base64
import inspect
import re
import secrets
import shutil
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2
import hypothesis
import pytest
from hypothesis import strategies as st
from sqlalchemy import text

from app.actors import SERVICE
from app.errors import ConfigurationError
from app.keyturn import opened
from app.settings_values import MOST_SCOPES
from app.tokens.access_tokens import MOST_CLAIMS
from app.tokens.cookies import Cookies
from tests.conftest import CHEAP, PASSWORD, SECRET, settings_of
from tests.cookie_cases import BAD, CALLS, CASES, CLEAR, FAST, LABELS, TABLES, Case, Sent
from tests.cookie_site import A, R, S, Site, World, site_of
from tests.cookies import (
    DOMAIN,
    HTTPS,
    LARGEST,
    LOOPBACK,
    SAME_SITE,
    Browser,
    Names,
    Parts,
    SetCookie,
    ask,
    login,
    set_cookies,
    token_cookies,
)
from tests.service import Service
from tests.test_hot_path import Proxy
from tests.test_keys import published

D, K = HTTPS.device, HTTPS.known
REPEAT = [("Sec-Keyturn-Set-Cookie", "repeat")]
"""The field of a proxy that reads one field of a name (nginx)."""
FASTAPI = [("X-Never-Heard-Of", "x")]
"""A header field that is not plain. With it, FastAPI's door takes the request."""


@pytest.fixture
async def site(database_url: str) -> AsyncIterator[Site]:
    async with site_of(database_url) as site:
        yield site


def test_the_table_has_cases_enough_and_none_twice() -> None:
    titles = [(case.call, case.title) for case in CASES]
    assert len(CASES) >= 60
    assert [title for title, count in Counter(titles).items() if count > 1] == []


@dataclass
class Outcome:
    """All of an answer that a case says."""

    status: int
    error: str
    reason: str
    fields: str
    change: str


async def outcome(w: World, case: Case, *, fastapi: bool) -> tuple[Outcome, bool]:
    """Presents what the case says. The second result says whether the fast door took the request."""
    given = case.sent(w)
    w.moved = inspect.isawaitable(given)
    sent: Sent = await given if inspect.isawaitable(given) else given
    rows, before, taken = await w.site.rows(), await w.sessions(), w.site.taken
    method, path = CALLS[case.call]
    headers = [*(SAME_SITE if case.origin else ()), *case.headers(w), *(FASTAPI if fastapi else ())]
    answer = await ask(w.site.client, method, path, sent, body=case.body(w), headers=headers)
    fast = w.site.taken > taken
    after = await w.sessions()
    changes = [f"{now[0]} {now[2] or 'rotated'}" for id_, now in after.items() if before[id_] != now]
    if not changes and await w.site.rows() != rows:
        changes = ["another row"]
    body = answer.json() if answer.status_code >= 400 else {}
    fields = " ".join(("-" if each.clears else "+") + LABELS[each.name] for each in set_cookies(answer))
    return Outcome(answer.status_code, body.get("error", ""), body.get("reason", ""), fields, ", ".join(changes)), fast


@pytest.mark.deep
@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.__name__)
async def test_each_case_of_the_table_has_its_answer_through_both_doors(
    site: Site, table: Callable[[], Iterator[Case]]
) -> None:
    wrong: list[object] = []
    world: World | None = None
    for case in table():
        expected = Outcome(case.status, case.error, case.reason, case.fields, case.change)
        for fastapi in (False, True):
            world = world or await World.made(site)
            found, fast = await outcome(world, case, fastapi=fastapi)
            # The edge refuses a head that is too large before any door.
            if found != expected or fast != (case.call in FAST and not fastapi and case.status != 431):
                wrong.append((f"{case.call}: {case.title}", found, "fast" if fast else "FastAPI"))
            # The next case has the same sessions only if no part of this one may have changed them.
            if found.change or world.moved:
                world = None
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_no_bytes_in_a_cookie_field_make_an_error_or_a_difference_between_the_doors(database_url: str) -> None:
    """Pieces of genuine cookies and any bytes, in any order, to any endpoint."""
    names = [name.encode() for name in (A, R, S)]
    pieces = st.one_of(
        st.sampled_from([b"=", b";", b"; ", b",", b" ", b"\t", b'"', b"$Version=1", b"==", b"Path=/", *names]),
        st.sampled_from([b"<access>", b"<refresh>", b"<split>", b"<other access>", b"<other refresh>"]),
        st.tuples(st.sampled_from(names), st.sampled_from([b"<access>", b"<refresh>", b"<split>", b"x"])).map(
            b"=".join
        ),
        st.binary(max_size=6).filter(lambda some: not {0, 10, 13} & set(some)),
    )
    with asyncio.Runner() as runner, ExitStack() as stack:
        opening = site_of(database_url)
        site = runner.run(opening.__aenter__())
        stack.callback(lambda: runner.run(opening.__aexit__(None, None, None)))
        w = runner.run(World.made(site))
        values = {b"<access>": w.one.a, b"<refresh>": w.one.r, b"<split>": w.one.s, b"<other access>": w.two.a, b"<other refresh>": w.two.r}  # fmt: skip

        @hypothesis.settings(max_examples=150, suppress_health_check=list(hypothesis.HealthCheck))
        @hypothesis.given(st.lists(pieces, max_size=12), st.sampled_from(["verify", "verify+", "refresh", "me"]))
        def presented(parts: list[bytes], call: str) -> None:
            line = b"".join(parts).strip(b" \t")
            for name, value in values.items():
                line = line.replace(name, value.encode())
            method, path = CALLS[call]
            found = []
            for door in ([], FASTAPI):
                answer = runner.run(ask(site.client, method, path, line, headers=[*SAME_SITE, *door]))
                assert answer.status_code in {200, 400, 401}, answer.text
                found.append(
                    (answer.status_code, answer.headers.get("x-auth-session"), [c.form for c in set_cookies(answer)])
                )
                assert answer.status_code != 400 or not set_cookies(answer)
            assert found[0] == found[1]

        presented()


# -- beyond the table


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_a_demand_that_is_not_met_still_hands_over_the_rotated_tokens(site: Site) -> None:
    w = await World.made(site)
    for path in (
        "/auth/verify?refresh=true&role=admin",
        "/auth/verify?scope=x&refresh=true",
        "/auth/verify;refresh=true;role=admin/x",
    ):
        one = await site.sign_in(w.one.email)
        answer = await ask(site.client, "GET", path, f"{R}={one.r}", headers=REPEAT)
        assert (answer.status_code, answer.json()["error"]) == (403, "insufficient_scope")
        # Without the cookies, the browser would present the older refresh token until that counts as reuse.
        assert [(each.name, each.clears) for each in set_cookies(answer)] == [(A, False), (R, False)]
        assert answer.headers["x-auth-set-cookie-refresh"] == answer.headers.get_list("set-cookie")[1]


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_refresh_on_the_way_is_asked_for_in_one_spelling(site: Site) -> None:
    one = await site.sign_in(await site.user())
    wrong = ("refresh=1", "refresh=TRUE", "refresh=yes", "refresh=", "refresh=true&refresh=false", "Refresh=true")
    for query in (*wrong[:4], wrong[5]):
        answer = await ask(site.client, "GET", f"/auth/verify?{query}", f"{R}={one.r}")
        assert (answer.status_code, answer.json()["error"], set_cookies(answer)) == (400, BAD, []), query
    for query in (wrong[4],):
        answer = await ask(site.client, "GET", f"/auth/verify?{query}", f"{R}={one.r}")
        assert (answer.status_code, set_cookies(answer)) == (401, []), query
    # The browser of a proxy's client can't ask for it: the appended path and query decide nothing.
    for path in ("/auth/verify/refresh=true", "/auth/verify/x;refresh=true", "/auth/verify/x?refresh=true"):
        answer = await ask(site.client, "GET", path, f"{R}={one.r}")
        assert (answer.status_code, set_cookies(answer)) == (401, []), path


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"])
async def test_a_refresh_on_the_way_names_user_and_session_and_repeats_its_fields_for_a_proxy_that_asks(
    site: Site, method: str
) -> None:
    one = await site.sign_in(await site.user())
    sent = f"{one.expired}; {R}={one.r}"
    answer = await ask(site.client, method, "/auth/verify?refresh=true", sent, headers=REPEAT)
    assert answer.status_code == 200
    fields = answer.headers.get_list("set-cookie")
    assert [answer.headers["x-auth-set-cookie-access"], answer.headers["x-auth-set-cookie-refresh"]] == fields
    assert answer.headers["x-auth-session"] == one.session_id
    assert answer.headers["x-auth-role"] == "user"
    assert answer.headers["cache-control"] == "no-store"
    opened = site.sealer.opened(answer)
    assert opened[A].token != one.access_token
    assert (await ask(site.client, "GET", "/auth/verify", f"{A}={SetCookie.of(fields[0]).value}")).status_code == 200
    if method != "HEAD":
        assert answer.json()["sid"] == one.session_id
        assert opened[A].token not in answer.text
    refused = await ask(site.client, method, "/auth/verify?refresh=true", f"{R}=junk", headers=REPEAT)
    cleared = refused.headers.get_list("set-cookie")
    assert refused.status_code == 401
    assert [refused.headers["x-auth-set-cookie-access"], refused.headers["x-auth-set-cookie-refresh"]] == cleared


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_no_script_of_a_page_gets_the_values_of_cookies_by_a_field_of_another_name(site: Site) -> None:
    """Scripts read every response field but Set-Cookie, and send every field but those that begin with Sec-."""
    one = await site.sign_in(await site.user())
    for headers in (
        [],
        [("Sec-Keyturn-Set-Cookie", "x")],
        [("Sec-Keyturn-Set-Cookie", "")],
        [("X-Keyturn-Set-Cookie", "repeat")],
    ):
        for method, path, sent, status in (
            ("GET", "/auth/verify?refresh=true", f"{one.expired}; {R}={one.r}", 200),
            ("POST", "/auth/verify;refresh=true/x", f"{R}={one.r}", 200),
            ("GET", "/auth/verify?refresh=true&role=admin", f"{R}={one.r}", 403),
            ("GET", "/auth/verify?refresh=true", f"{R}=junk", 401),
            ("GET", "/auth/verify", one.pair, 200),
            ("GET", "/auth/me", one.pair, 200),
            ("POST", "/auth/refresh", one.pair, 200),
        ):
            answer = await ask(site.client, method, path, sent, headers=[*headers, *SAME_SITE])
            assert answer.status_code == status
            readable = [(k, v) for k, v in answer.headers.multi_items() if k != "set-cookie"]
            assert [k for k, _ in readable if "cookie" in k] == []
            for each in set_cookies(answer):
                assert not each.value or each.value not in f"{readable}{answer.text}"
                assert "httponly" in each.attributes


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_no_path_of_an_app_ends_in_a_loop_when_the_access_cookie_has_gone(site: Site) -> None:
    """Refreshed on the way, or 401; never a redirect."""
    one = await site.sign_in(await site.user())
    browser = Browser()
    browser.take([SetCookie.of(f"{R}={one.r}; Path=/; HttpOnly; Secure; SameSite=Strict")])
    plain = await ask(site.client, "GET", "/auth/verify", browser.sent_to("/auth/verify"))
    assert (plain.status_code, plain.headers.get("location"), set_cookies(plain)) == (401, None, [])
    statuses = []
    for _ in range(3):
        answer = await ask(site.client, "GET", "/auth/verify?refresh=true", browser.sent_to("/"))
        browser.take(set_cookies(answer))
        statuses.append((answer.status_code, len(set_cookies(answer))))
    assert statuses == [(200, 2), (200, 0), (200, 0)]


# -- modes, and the bodies of answers


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_tokens_travel_where_the_mode_says_and_nowhere_else(site: Site) -> None:
    email = await site.user()
    always = {"token_type", "expires_in", "refresh_expires_in", "session_id", "session_expires_in"}
    for mode, in_body, in_cookies in (
        ("bearer", {"access_token", "refresh_token"}, []),
        ("cookie", set(), [A, R]),
        ("split", {"access_token"}, [S]),
    ):
        began = await login(site.client, email, mode)
        assert began.json().keys() == always | in_body
        assert [each.name for each in token_cookies(began)] == in_cookies
        assert [each.name for each in set_cookies(began)] == [
            *in_cookies,
            *([HTTPS.device, HTTPS.known] if in_cookies else []),
        ]
        if not in_cookies:
            continue
        browser = Browser()
        browser.take(set_cookies(began))
        sent = browser.sent_to("/auth/refresh")
        refreshed = await ask(site.client, "POST", "/auth/refresh", sent, headers=SAME_SITE)
        assert refreshed.json().keys() == always | in_body
        assert [each.name for each in set_cookies(refreshed)] == in_cookies
        for answer in (began, refreshed):
            assert answer.headers["cache-control"] == "no-store"
            for each in site.sealer.opened(answer).values():
                assert each.token not in answer.text
                assert str(each.session_id) == answer.json()["session_id"]


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_each_cookie_goes_to_the_paths_that_need_it_alone(site: Site) -> None:
    email = await site.user()
    browser = Browser()
    for mode in ("cookie", "split"):
        browser.take(set_cookies(await login(site.client, email, mode)))
    for path, names in {
        "/": {A, R, D},
        "/app/page": {A, R, D},
        "/authors": {A, R, D},
        "/auth": {A, R, S, D, K},
        "/auth/refresh": {A, R, S, D, K},
        "/auth/logout": {A, R, S, D, K},
        "/auth/verify": {A, R, S, D, K},
    }.items():
        assert {pair.partition("=")[0] for pair in browser.sent_to(path).split("; ")} == names, path


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_equal_tokens_give_different_values_and_what_the_sign_in_chose_stays(site: Site) -> None:
    email = await site.user()
    for remember in (True, False):
        one = await site.sign_in(email, remember=remember)
        answers = [await ask(site.client, "POST", "/auth/refresh", f"{R}={one.r}", headers=SAME_SITE) for _ in range(3)]
        seen = [site.sealer.opened(answer) for answer in answers]
        assert seen[0] == seen[1] == seen[2]  # retries
        assert len({each.value for answer in answers for each in set_cookies(answer)}) == 6
        assert {each.remembered for opened in seen for each in opened.values()} == {remember}
        assert {"max-age" in each.attributes for answer in answers for each in set_cookies(answer)} == {remember}
        browser = Browser()
        browser.take(set_cookies(answers[0]))
        browser.restart()
        assert browser.names() == ({A, R} if remember else set())


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_without_cookies_none_is_set_or_read(database_url: str) -> None:
    async with site_of(database_url) as site:
        one = await site.sign_in(await site.user())
    async with site_of(database_url, cookies="false") as site:
        for mode in ("cookie", "split"):
            body = {"email": one.email, "password": PASSWORD, "mode": mode}
            answer = await ask(site.client, "POST", "/auth/login", body=body, headers=SAME_SITE)
            assert (answer.status_code, answer.json()["error"], set_cookies(answer)) == (400, BAD, [])
        for call, status in {"verify": 401, "verify+": 401, "me": 401, "refresh": 400, "logout": 401}.items():
            method, path = CALLS[call]
            answer = await ask(site.client, method, path, one.pair, headers=SAME_SITE)
            assert (answer.status_code, set_cookies(answer)) == (status, []), call
        assert (await login(site.client, one.email, "bearer")).json()["refresh_token"]


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
@pytest.mark.parametrize("secret", [SECRET, base64.b64encode(secrets.token_bytes(32)).decode()], ids=["same", "other"])
async def test_the_cookies_of_another_deployment_are_junk(
    site: Site, tmp_path: Path, sqlite_template: Path, secret: str
) -> None:
    """The same names and issuer, the same master secret or another, and a database of its own."""
    shutil.copy(sqlite_template, tmp_path / "other.db")
    async with site_of(f"sqlite+aiosqlite:///{tmp_path / 'other.db'}", secret=secret) as other:
        foreign = await other.sign_in(await other.user())
    for call, status, fields in (("verify", 401, ""), ("verify+", 401, CLEAR), ("refresh", 401, CLEAR), ("logout", 401, CLEAR), ("me", 401, "")):  # fmt: skip
        method, path = CALLS[call]
        answer = await ask(site.client, method, path, foreign.pair, headers=SAME_SITE)
        assert answer.status_code == status
        assert " ".join(("-" if each.clears else "+") + LABELS[each.name] for each in set_cookies(answer)) == fields


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_a_value_of_the_previous_key_is_sealed_anew_under_the_one_that_seals_now(site: Site) -> None:
    one = await site.sign_in(await site.user())
    old = Parts.of(one.r).key
    new = await site.key()
    await published(site.keyturn, new.hex())
    await site.keyturn.keys.load()
    answer = await ask(site.client, "POST", "/auth/refresh", one.pair, headers=SAME_SITE)
    assert {Parts.of(each.value).key for each in set_cookies(answer)} == {new} != {old}
    await site.keyturn.keys.retire(old.hex(), by=SERVICE)
    await site.keyturn.keys.load()
    assert (await ask(site.client, "GET", "/auth/verify", one.pair)).status_code == 401
    fresh = "; ".join(f"{each.name}={each.value}" for each in set_cookies(answer))
    assert (await ask(site.client, "GET", "/auth/verify", fresh)).status_code == 200


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_the_keys_are_replaced_and_every_browser_has_to_sign_in_again(site: Site) -> None:
    one = await site.sign_in(await site.user())
    await site.keyturn.keys.replace(by=SERVICE)
    await site.keyturn.keys.load()
    for call in ("verify", "verify+", "refresh", "me"):
        method, path = CALLS[call]
        assert (await ask(site.client, method, path, one.pair, headers=SAME_SITE)).status_code == 401
    again = await site.sign_in(one.email)
    assert (await ask(site.client, "GET", "/auth/verify", again.pair)).status_code == 200


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_a_value_under_an_unknown_key_is_no_junk_while_the_key_may_be_new(site: Site) -> None:
    one = await site.sign_in(await site.user())
    unknown = "; ".join(f"{name}={Parts.of(one.fields[name])._replace(key=bytes(8)).text}" for name in (A, R))
    site.keyturn.keys._read_at = float("-inf")  # as if no reading of the pulse had come back for a long time
    for call in ("verify", "verify+", "refresh", "logout", "me"):
        method, path = CALLS[call]
        answer = await ask(site.client, method, path, unknown, headers=SAME_SITE)
        assert (answer.status_code, answer.json()["error"]) == (503, "temporarily_unavailable"), call
        assert set_cookies(answer) == []
        assert "retry-after" in answer.headers


# -- many at once


@pytest.mark.parametrize(
    ("engine", "instances"), [("postgres", 1), ("postgres", 2), ("sqlite", 1)], indirect=["engine"]
)
async def test_50_parallel_requests_with_an_expired_access_cookie_are_one_rotation_and_50_times_200(
    database_url: str, instances: int
) -> None:
    async with AsyncExitStack() as stack:
        sites = [await stack.enter_async_context(site_of(database_url)) for _ in range(instances)]
        w = await World.made(sites[0])
        sent = f"{w.one.expired}; {R}={w.one.r}"
        answers = await asyncio.gather(
            *(ask(sites[i % instances].client, "GET", "/auth/verify?refresh=true", sent) for i in range(50))
        )
        assert Counter(answer.status_code for answer in answers) == {200: 50}
        opened = [w.site.sealer.opened(answer) for answer in answers]
        assert {(each[A].token, each[R].token) for each in opened} == {(opened[0][A].token, opened[0][R].token)}
        assert opened[0][R].token != w.one.refresh_token
        assert len({each.value for answer in answers for each in set_cookies(answer)}) == 100
        assert (await w.sessions())[w.one.session_id] == ("one", 1, None)
        # Whichever of the answers a browser keeps, the next request goes on from it.
        last = "; ".join(f"{each.name}={each.value}" for each in set_cookies(answers[-1]))
        assert (await ask(sites[-1].client, "GET", "/auth/verify", last)).status_code == 200
        again = await ask(sites[-1].client, "POST", "/auth/refresh", last, headers=SAME_SITE)
        assert again.status_code == 200


async def test_parallel_refreshes_by_cookie_and_a_logout_leave_no_cookie_that_works(site: Site) -> None:
    w = await World.made(site)
    sent = f"{w.one.expired}; {R}={w.one.r}"
    answers = await asyncio.gather(
        *(ask(site.client, "GET", "/auth/verify?refresh=true", sent) for _ in range(10)),
        ask(site.client, "POST", "/auth/logout", sent, headers=SAME_SITE),
        *(ask(site.client, "POST", "/auth/refresh", sent, headers=SAME_SITE) for _ in range(10)),
    )
    assert {answer.status_code for answer in answers} <= {200, 204, 401}
    assert (await w.sessions())[w.one.session_id][2] == "logout"
    for answer in answers:
        fields = set_cookies(answer)
        assert fields
        if answer.status_code == 200:
            late = "; ".join(f"{each.name}={each.value}" for each in fields)
            refused = await ask(site.client, "GET", "/auth/verify?refresh=true", late)
            assert (refused.status_code, {each.clears for each in set_cookies(refused)}) == (401, {True})


# -- on a verdict only


async def no_verdict(answer: httpx2.Response, status: int) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers.get_list("set-cookie") == []
    assert "x-auth-set-cookie-access" not in answer.headers


async def test_an_outage_of_the_database_touches_no_cookie_and_nobody_is_signed_out(database_url: str) -> None:
    async with site_of(database_url, database_pool="2") as site:
        w = await World.made(site)
        db = site.keyturn.db
        sent = f"{w.one.expired}; {R}={w.one.r}"
        async with db.begin(), db._writer.begin() if db.is_postgres else nullcontext():
            answers = await asyncio.gather(
                ask(site.client, "POST", "/auth/refresh", sent, headers=SAME_SITE),
                ask(site.client, "GET", "/auth/verify?refresh=true", sent),
                ask(site.client, "POST", "/auth/logout", sent, headers=SAME_SITE),
                ask(
                    site.client,
                    "POST",
                    "/auth/login",
                    body={"email": w.one.email, "password": PASSWORD, "mode": "cookie"},
                    headers=SAME_SITE,
                ),
            )
        for answer in answers:
            await no_verdict(answer, 503)
            assert int(answer.headers["retry-after"]) >= 1
        answer = await ask(site.client, "GET", "/auth/verify?refresh=true", sent)
        assert (answer.status_code, len(set_cookies(answer))) == (200, 2)


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
async def test_a_database_that_does_not_answer_in_time_touches_no_cookie(database_url: str) -> None:
    proxy = Proxy()
    async with proxy.open(database_url) as url, site_of(url) as site:
        w = await World.made(site)
        sent = f"{w.one.expired}; {R}={w.one.r}"
        proxy.through.clear()
        answers = await asyncio.gather(
            ask(site.client, "POST", "/auth/refresh", sent, headers=SAME_SITE),
            ask(site.client, "GET", "/auth/verify?refresh=true", sent),
            ask(site.client, "POST", "/auth/logout", f"{R}={w.two.r}", headers=SAME_SITE),
            ask(site.client, "GET", "/auth/me", w.one.pair),
        )
        for answer in answers:
            await no_verdict(answer, 503)
        proxy.through.set()
        # The statement may have been committed although its answer never came. The same cookies are answered.
        answer = await ask(site.client, "GET", "/auth/verify?refresh=true", sent)
        assert (answer.status_code, len(set_cookies(answer))) == (200, 2)


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
async def test_a_lost_race_touches_no_cookie(site: Site) -> None:
    w = await World.made(site)
    sent = f"{w.one.expired}; {R}={w.one.r}"
    async with site.keyturn.db.begin() as tx:
        await tx.execute(text("SELECT 1 FROM sessions FOR UPDATE"))
        for answer in await asyncio.gather(
            ask(site.client, "POST", "/auth/refresh", sent, headers=SAME_SITE),
            ask(site.client, "GET", "/auth/verify?refresh=true", sent),
        ):
            await no_verdict(answer, 503)
    answer = await ask(site.client, "POST", "/auth/refresh", sent, headers=SAME_SITE)
    assert (answer.status_code, len(set_cookies(answer))) == (200, 2)


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
async def test_an_access_cookie_that_still_works_survives_a_refresh_that_can_not_be_made_now(site: Site) -> None:
    w = await World.made(site)
    async with site.keyturn.db.begin() as tx:
        await tx.execute(text("SELECT 1 FROM sessions FOR UPDATE"))
        answer = await ask(site.client, "GET", "/auth/verify?refresh=true", f"{A}={w.one.aged(30)}; {R}={w.one.r}")
        await no_verdict(answer, 200)


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_a_request_that_is_no_request_touches_no_cookie(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    w = await World.made(site)
    client, sent = site.client, w.one.pair
    before = await site.rows()
    json = ("Content-Type", "application/json")
    fields = [("Cookie", sent), *SAME_SITE]
    for path in ("/auth/refresh", "/auth/logout", "/auth/password"):
        for content, headers, status in (
            (b"{", [json], 400),
            (b'{"scope": 1, "refresh_token": 2}', [json], 400),
            (b"[]", [json], 400),
            (b"x" * 70_000, [json], 413),
            (b"a=b", [("Content-Type", "application/x-www-form-urlencoded")], 415),
            (b"{}", [json, ("Content-Encoding", "gzip")], 415),
            (b"{}", [json, ("Authorization", "Bearer x"), ("Authorization", "Bearer y")], 400),
        ):
            answer = await client.post(path, content=content, headers=[*fields, *headers])
            await no_verdict(answer, status)
    for method, path, status in (
        ("GET", "/auth/refresh", 405),
        ("PUT", "/auth/logout", 405),
        ("POST", "/auth/nowhere", 404),
        ("GET", "/auth/verify;refresh=true;x=y", 404),
        ("GET", "/auth/verify?refresh=x", 400),
        ("GET", "/healthz", 200),
        ("POST", "/auth/login", 400),
    ):
        await no_verdict(await ask(client, method, path, sent, headers=SAME_SITE), status)
    wrong = {"email": w.one.email, "password": "a wrong password", "mode": "cookie"}
    await no_verdict(await ask(client, "POST", "/auth/login", sent, body=wrong, headers=SAME_SITE), 401)
    right = {"email": w.one.email, "password": PASSWORD, "mode": "cookie"}
    await no_verdict(await ask(client, "POST", "/auth/login", sent, body=right), 403)

    async def defect(*_: object, **__: object) -> None:
        raise ValueError("planted")

    monkeypatch.setattr(type(site.keyturn.rotation), "refresh", defect)
    monkeypatch.setattr(type(site.keyturn.ending), "logout", defect)
    for call in ("refresh", "logout", "verify+"):
        method, path = CALLS[call]
        await no_verdict(await ask(client, method, path, f"{R}={w.one.r}", headers=SAME_SITE), 500)
    assert await site.rows() == before


# -- late answers


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_the_cookies_of_an_older_refresh_may_arrive_last(site: Site) -> None:
    """One refresh late, the next refresh succeeds. Later still, it is refused once, and there is no loop."""
    email = await site.user()

    async def refresh(browser: Browser) -> httpx2.Response:
        return await ask(site.client, "POST", "/auth/refresh", browser.sent_to("/auth/refresh"), headers=SAME_SITE)

    browser = Browser()
    browser.take(set_cookies(await login(site.client, email)))
    older = await refresh(browser)
    browser.take(set_cookies(older))
    browser.take(set_cookies(await refresh(browser)))
    browser.take(set_cookies(older))  # arrives last
    again = await refresh(browser)
    assert again.status_code == 200
    browser.take(set_cookies(again))
    assert (await ask(site.client, "GET", "/auth/verify", browser.sent_to("/"))).status_code == 200
    newest = await refresh(browser)
    assert newest.status_code == 200
    browser.take(set_cookies(newest))
    browser.take(set_cookies(older))  # two refreshes late: as a thief's copy
    refused = await refresh(browser)
    assert (refused.status_code, refused.json()["reason"]) == (401, "reuse_detected")
    browser.take(set_cookies(refused))
    assert browser.names() == set()
    assert (await refresh(browser)).status_code == 400


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_two_late_answers_of_one_refresh_are_the_same_in_either_order(site: Site) -> None:
    one = await site.sign_in(await site.user())
    answers = [await ask(site.client, "POST", "/auth/refresh", one.pair, headers=SAME_SITE) for _ in range(2)]
    for order in (answers, answers[::-1]):
        browser = Browser()
        for answer in order:
            browser.take(set_cookies(answer))
        assert (await ask(site.client, "GET", "/auth/verify", browser.sent_to("/"))).status_code == 200
        assert site.sealer.open(R, browser.value(R) or "").token == site.sealer.opened(answers[0])[R].token


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_logout_with_nothing_but_the_refresh_cookie_deletes_both_cookies_in_the_browser(site: Site) -> None:
    email = await site.user()
    browser = Browser()
    for mode in ("cookie", "split"):
        browser.take(set_cookies(await login(site.client, email, mode)))
    browser.drop(A)
    answer = await ask(site.client, "POST", "/auth/logout", browser.sent_to("/auth/logout"), headers=SAME_SITE)
    assert answer.status_code == 204
    browser.take(set_cookies(answer))
    assert browser.names() == set()


# -- exact fields


VARIANTS: dict[str, tuple[dict[str, str], Names, str, str]] = {
    "as they are": ({}, HTTPS, "; HttpOnly; Secure; SameSite=Strict", "/auth"),
    "lax": ({"cookie_same_site": "lax"}, HTTPS, "; HttpOnly; Secure; SameSite=Lax", "/auth"),
    "partitioned": ({"cookie_partitioned": "true"}, HTTPS, "; HttpOnly; Secure; SameSite=Strict; Partitioned", "/auth"),
    "a domain": ({"cookie_domain": "example.com"}, DOMAIN, "; Domain=example.com; HttpOnly; Secure; SameSite=Strict", "/auth"),
    "a domain, lax, partitioned": (
        {"cookie_domain": "example.com", "cookie_same_site": "lax", "cookie_partitioned": "true"},
        DOMAIN,
        "; Domain=example.com; HttpOnly; Secure; SameSite=Lax; Partitioned",
        "/auth",
    ),
    "a root path": ({"root_path": "/keyturn"}, HTTPS, "; HttpOnly; Secure; SameSite=Strict", "/keyturn/auth"),
    "http": ({"issuer": "http://127.0.0.1:8000"}, LOOPBACK, "; HttpOnly; SameSite=Strict", "/auth"),
    "http, a root path": ({"issuer": "http://localhost:8000/x", "root_path": "/x"}, LOOPBACK, "; HttpOnly; SameSite=Strict", "/x/auth"),
}  # fmt: skip


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
@pytest.mark.parametrize("remember", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
async def test_the_fields_that_set_and_clear_are_exactly_these(database_url: str, variant: str, remember: bool) -> None:
    settings, names, common, scope = VARIANTS[variant]
    root = settings.get("root_path", "")
    ages = ("; Max-Age=960", "; Max-Age=604860", "; Max-Age=34560000") if remember else ("", "", "")
    access_age, refresh_age, device_age = ages
    expected = {
        "cookie": [
            f"{names.access}=…{access_age}; Path=/{common}",
            f"{names.refresh}=…{refresh_age}; Path=/{common}",
        ],
        "split": [f"{names.split}=…{refresh_age}; Path={scope}{common}"],
    }
    async with site_of(database_url, **settings) as site:
        email = await site.user()
        for mode, lines in expected.items():
            browser = Browser(secure=names is not LOOPBACK)
            body = {"email": email, "password": PASSWORD, "mode": mode, "remember": remember}
            began = await ask(site.client, "POST", f"{root}/auth/login", body=body, headers=SAME_SITE)
            browser.take(set_cookies(began))
            sent = browser.sent_to(f"{root}/auth/refresh")
            refreshed = await ask(site.client, "POST", f"{root}/auth/refresh", sent, headers=SAME_SITE)
            device = f"{names.device}=…{device_age}; Path=/{common}"
            known = f"{names.known}=…{device_age}; Path={scope}{common}"
            for answer, more in ((began, [device, known]), (refreshed, [])):
                fields = answer.headers.get_list("set-cookie")
                assert [
                    re.sub("=([A-Za-z0-9_-]{100,}|ktd_[A-Za-z0-9_-]{48}|[A-Za-z0-9_-]{22}(?=;))", "=…", line, count=1)
                    for line in fields
                ] == [*lines, *more]
                browser.take(set_cookies(answer))
            clearing = [re.sub("=…(; Max-Age=[0-9]+)?", "=; Max-Age=0", line) for line in lines]
            sent = browser.sent_to(f"{root}/auth/logout")
            out = await ask(site.client, "POST", f"{root}/auth/logout", sent, headers=SAME_SITE)
            assert out.headers.get_list("set-cookie") == clearing
            refused = await ask(site.client, "POST", f"{root}/auth/refresh", sent, headers=SAME_SITE)
            assert (refused.status_code, refused.headers.get_list("set-cookie")) == (401, clearing)
            assert [each.form for each in set_cookies(out)] == [each.form for each in token_cookies(began)]
            browser.take(set_cookies(out))
            assert browser.names() == set()


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_the_ages_follow_the_tokens_with_a_buffer_of_a_tenth_or_a_minute(database_url: str) -> None:
    for access, refresh, session, ages in (
        ("900", "604800", "2592000", {"960", "604860"}),
        ("100", "3600", "3600", {"110", "3660"}),
        ("9", "60", "60", {"9", "66"}),
        ("2", "60", "60", {"2", "66"}),
    ):
        lifetimes = {
            "access_token_lifetime": access,
            "refresh_token_lifetime": refresh,
            "session_lifetime": session,
            "retry_window": "0",
        }
        async with site_of(database_url, **lifetimes) as site:
            answer = await login(site.client, await site.user())
            assert {each.attributes["max-age"] for each in token_cookies(answer)} == ages


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_cookies_of_an_older_set_up_are_deleted_where_several_of_a_name_come(database_url: str) -> None:
    """A browser that has a cookie of the same name under another path sends both, and keeps both until told."""
    async with site_of(database_url, cookie_domain="example.com") as site:
        answer = await login(site.client, await site.user(), "split")
        (good,) = (each.value for each in token_cookies(answer))
        for call, count in (("refresh", 1), ("logout", 1)):
            method, path = CALLS[call]
            sent = f"{S}=junk; {S}={good}"
            answer = await ask(site.client, method, path, sent, headers=SAME_SITE)
            fields = set_cookies(answer)
            assert fields[0].clears == (call == "logout")
            forms = [(each.attributes["path"], each.attributes.get("domain")) for each in fields]
            assert forms[0] == ("/auth", "example.com")
            assert sorted(forms[count:], key=str) == sorted(
                [("/", "example.com"), ("/auth", None), ("/", None)], key=str
            )
            assert all(each.clears for each in fields[count:])
            single = await ask(site.client, method, path, f"{S}={good}", headers=SAME_SITE)
            assert len(set_cookies(single)) == 1


# -- sizes, and settings that stop the start


def _longest(database_url: str, **more: str) -> int:
    """The most characters of a host's name in the issuer with which a start is possible, by halving."""
    low, high = 10, 8000

    def possible(length: int) -> bool:
        with suppress(ConfigurationError):
            Cookies(settings_of(database_url, None, issuer=_issuer(length), **more), None)  # type: ignore[arg-type]
            return True
        return False

    assert possible(low)
    assert not possible(high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if possible(middle) else (low, middle)
    return low


def _issuer(length: int) -> str:
    return "https://auth.example.com/" + "x" * length


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
@pytest.mark.parametrize("more", [{}, {"audience": "ü" * 20}, {"cookie_domain": "example.com", "cookie_partitioned": "true"}], ids=str)  # fmt: skip
async def test_the_largest_cookie_is_below_4096_bytes_where_the_start_is_allowed(
    database_url: str, more: dict[str, str]
) -> None:
    """The longest names, role, claims and scopes, and the largest key."""
    names = {"client_id": '"' * 64, "signing_algorithm": "RS256", "scopes": "s" * MOST_SCOPES, **more}
    longest = _longest(database_url, **names)
    with pytest.raises(ConfigurationError, match="KEYTURN_ISSUER"):
        async with site_of(database_url, issuer=_issuer(longest + 1), **names):
            pass
    async with site_of(database_url, issuer=_issuer(longest), **names) as site:
        await published(site.keyturn, await site.keyturn.keys.generate("access", "RS256", 3072, by=SERVICE))
        await site.keyturn.keys.load()
        user = await site.keyturn.users.create("x@example.com", PASSWORD, "r" * 32, by=SERVICE)
        await site.keyturn.users.set_claims(user.id, {"c": "c" * (MOST_CLAIMS - len('{"c":""}'))}, by=SERVICE)
        began = await login(site.client, "x@example.com")
        sizes = [len(line) for line in began.headers.get_list("set-cookie")]
        print(longest, sizes)
        assert max(sizes) < LARGEST
        assert max(sizes) > LARGEST / 2  # the bound is not far stricter than it has to be
        sent = "; ".join(f"{each.name}={each.value}" for each in set_cookies(began))
        assert (await ask(site.client, "GET", "/auth/verify", sent)).status_code == 200


async def test_http_beyond_this_machine_refuses_the_start_unless_cookies_are_off(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'x.db'}"
    refused = ("auth.example.com", "10.0.0.1", "192.168.1.2:8000", "localhost.example.com", "127.0.0.1.nip.io", "[2001:db8::1]", "0.0.0.0", "128.0.0.1")  # fmt: skip
    for host in refused:
        with pytest.raises(ConfigurationError, match="KEYTURN_COOKIES=false"):
            settings_of(url, None, issuer=f"http://{host}")
        assert not settings_of(url, None, issuer=f"http://{host}", cookies="false").cookies
        assert settings_of(url, None, issuer=f"https://{host}").cookies
    for host in ("127.0.0.1:8000", "127.9.9.9", "localhost", "localhost:3000", "app.localhost", "[::1]:8000"):
        assert settings_of(url, None, issuer=f"http://{host}").cookies


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"cookies": "false", "login_mode": "cookie"}, "KEYTURN_LOGIN_MODE"),
        ({"login_mode": "cookie", "retry_window": "0"}, "KEYTURN_LOGIN_MODE"),
        ({"cookie_domain": "com"}, "KEYTURN_COOKIE_DOMAIN"),
        ({"cookie_domain": ".example.com"}, "KEYTURN_COOKIE_DOMAIN"),
        ({"cookie_domain": "example.com."}, "KEYTURN_COOKIE_DOMAIN"),
        ({"cookie_domain": "example.com; Secure"}, "KEYTURN_COOKIE_DOMAIN"),
        ({"cookie_domain": "EXAMPLE.com"}, "KEYTURN_COOKIE_DOMAIN"),
        ({"cookie_domain": "other.example"}, "KEYTURN_COOKIE_DOMAIN"),
        ({"cookie_domain": "ample.com"}, "KEYTURN_COOKIE_DOMAIN"),
        ({"cookie_domain": "a.auth.example.com"}, "KEYTURN_COOKIE_DOMAIN"),
        ({"cookie_domain": "127.0.0.1", "issuer": "https://127.0.0.1"}, "KEYTURN_COOKIE_DOMAIN"),
        ({"cookie_same_site": "none"}, "KEYTURN_COOKIE_SAME_SITE"),
        ({"cookie_partitioned": "true", "issuer": "http://127.0.0.1"}, "KEYTURN_COOKIE_PARTITIONED"),
        ({"login_mode": "x"}, "KEYTURN_LOGIN_MODE"),
        ({"access_token_lifetime": "1"}, "KEYTURN_ACCESS_TOKEN_LIFETIME"),
    ],
    ids=str,
)
def test_settings_with_which_browsers_would_keep_no_cookie_refuse_the_start(
    settings: dict[str, str], named: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=named):
        settings_of(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}", None, **settings)


# -- no value and no token in any log


async def test_no_cookie_value_no_token_and_no_key_is_in_the_log(
    tmp_path: Path, sqlite_template: Path, logs: Path
) -> None:
    shutil.copy(sqlite_template, tmp_path / "keyturn.db")
    environment = {
        "KEYTURN_DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path / 'keyturn.db'}",
        "KEYTURN_SECRET": SECRET,
        "KEYTURN_LOG_LEVEL": "debug",
        "KEYTURN_LOGIN_MODE": "cookie",
        **{f"KEYTURN_{name.upper()}": value for name, value in CHEAP.items()},
    }
    async with opened(settings_of(environment["KEYTURN_DATABASE_URL"], None)) as keyturn:
        await keyturn.users.create("ada@example.com", PASSWORD, by=SERVICE)
    access, refresh, split = LOOPBACK
    secret: set[str] = set()
    with Service.start(environment, logs=logs) as service:
        async with httpx2.AsyncClient(base_url=service.url) as client:

            async def remembered(answer: httpx2.Response) -> httpx2.Response:
                client.cookies.clear()
                secret.update(each.value for each in set_cookies(answer) if each.value)
                return answer

            body = {"email": "ada@example.com", "password": PASSWORD}
            for mode in ("cookie", "split"):
                for _ in range(2):
                    began = await remembered(
                        await ask(client, "POST", "/auth/login", body={**body, "mode": mode}, headers=SAME_SITE)
                    )
                    assert began.status_code == 200, began.text
                    values = {each.name: each.value for each in token_cookies(began)}
                    sent = "; ".join(f"{name}={value}" for name, value in values.items())
                    for method, path, more in (
                        ("GET", "/auth/verify", {}),
                        ("GET", "/auth/verify?refresh=true", {}),
                        ("POST", "/auth/refresh", {"headers": SAME_SITE}),
                        ("POST", "/auth/refresh", {"headers": SAME_SITE, "body": {"mode": "split"}}),
                        ("POST", "/auth/refresh", {}),
                        ("GET", "/auth/me", {}),
                        ("GET", f"/auth/verify?refresh={values.get(access, 'x')}", {}),
                        ("POST", "/auth/logout", {"headers": SAME_SITE}),
                        ("POST", "/auth/refresh", {"headers": SAME_SITE}),
                        ("GET", "/auth/verify?refresh=true", {}),
                    ):
                        await remembered(await ask(client, method, path, sent, **more))
                    bent = "; ".join(
                        f"{name}={Parts.of(value)._replace(tag=bytes(16)).text}" for name, value in values.items()
                    )
                    secret.update(pair.partition("=")[2] for pair in bent.split("; "))
                    for line in (bent, sent.replace("keyturn-", "keyturn-x"), f"{sent}; {bent}", sent * 20):
                        await remembered(await ask(client, "GET", "/auth/verify?refresh=true", line))
                        await remembered(await ask(client, "POST", "/auth/refresh", line, headers=SAME_SITE))
        # Bytes that no client library sends: the protocol refuses the head.
        for line in (f"{refresh}={min(secret)}\0", f"{split}={min(secret)}\r\n folded"):
            with socket.create_connection(("127.0.0.1", service.port), timeout=5) as wire:
                wire.sendall(f"GET /auth/verify HTTP/1.1\r\nHost: x\r\nCookie: {line}\r\n\r\n".encode())
                assert wire.recv(65536).startswith(b"HTTP/1.1 400 ")
        assert service.terminate() == 0
        log = service.text()
    assert '"/auth/refresh"' in log
    assert len(secret) >= 20
    # The path of a request is in the log without its query, and each part of a value is as secret as the whole.
    assert [value[:8] for value in secret if value in log or (value[40:90] or value) in log] == []
