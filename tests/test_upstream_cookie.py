"""The ID token cookie, and the URL by which a browser ends its session at the issuer after a logout here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from time import time
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import event, text

from app.actors import SERVICE
from app.federation import end_session
from app.keyturn import Keyturn
from app.main import create_app
from tests.conftest import CHEAP, SECRET, a_user, settings_of
from tests.cookies import DOMAIN, HTTPS, LOOPBACK, SAME_SITE, Browser, Names, Sealer, ask, client_of, login, set_cookies
from tests.service import Service
from tests.upstream.minting import Subject, new_id
from tests.upstream.upstream import Upstream

ID = "__Secure-Http-keyturn-id"
BACK = "https://app.example.com/signed-out"


@dataclass
class Site:
    """An application in this process whose issuer is the stand-in, and the parts behind it."""

    client: httpx2.AsyncClient
    keyturn: Keyturn
    upstream: Upstream

    async def exchange(
        self, subject: Subject, mode: str = "cookie", *, cookies: str = "", **more: Any
    ) -> httpx2.Response:
        kind = more.pop("kind", "access_token")
        body = {"subject_token": self.upstream.mint(kind, subject=subject), "mode": mode, **more}
        return await ask(self.client, "POST", "/auth/exchange", cookies, body=body, headers=SAME_SITE)

    async def log_out(
        self, browser: Browser, *, headers: Sequence[tuple[str, str]] = SAME_SITE, **body: Any
    ) -> httpx2.Response:
        cookies = browser.sent_to("/auth/logout")
        return await ask(self.client, "POST", "/auth/logout", cookies, body=body or None, headers=headers)

    async def browser(self, subject: Subject, mode: str = "cookie", **more: Any) -> tuple[Browser, httpx2.Response]:
        """A browser that has exchanged a token and given the ID token too."""
        more.setdefault("id_token", self.upstream.mint("id_token", subject=subject))
        answer = await self.exchange(subject, mode, **more)
        assert answer.status_code == 200, answer.text
        browser = Browser()
        browser.take(set_cookies(answer))
        return browser, answer


@asynccontextmanager
async def a_site(
    database_url: str, upstream: Upstream, folder: Path, settings: Mapping[str, str] | None = None, **members: Any
) -> AsyncIterator[Site]:
    federation = folder / "federation.toml"
    federation.write_text(upstream.toml("acme", **members), encoding="utf-8")
    federation.chmod(0o600)
    app = create_app(settings_of(database_url, None, federation_file=str(federation), **(settings or {})))
    async with app.router.lifespan_context(app), client_of(app) as client:
        yield Site(client, app.state.keyturn, upstream)


@pytest.fixture
async def site(
    database_url: str, upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Site]:
    monkeypatch.setattr(end_session, "BOUND", timedelta(seconds=30))  # a busy machine must not cost the URL
    async with a_site(database_url, upstream, tmp_path, post_logout_redirect_uris=[BACK, "app.example:/out"]) as site:
        yield site


@pytest.fixture
def someone() -> Subject:
    return Subject(user_id=new_id("usr"), session_id=new_id("ses"))


def query_of(answer: httpx2.Response) -> tuple[str, dict[str, list[str]]]:
    """The URL of an answer to a logout without its query, and the query."""
    assert answer.status_code == 200, answer.text
    assert answer.json().keys() == {"upstream_logout_url"}
    parts = urlsplit(answer.json()["upstream_logout_url"])
    return parts._replace(query="").geturl(), parse_qs(parts.query, strict_parsing=bool(parts.query))


def cleared(answer: httpx2.Response) -> set[str]:
    return {each.name for each in set_cookies(answer) if each.clears}


# -- at the exchange


@pytest.mark.parametrize(("mode", "remember"), [("cookie", True), ("cookie", False), ("split", True)])
async def test_the_id_token_of_an_exchange_lives_sealed_in_a_cookie_that_only_auth_gets(
    site: Site, someone: Subject, mode: str, remember: bool
) -> None:
    id_token = site.upstream.mint("id_token", subject=someone)
    browser, answer = await site.browser(someone, mode, id_token=id_token, remember=remember)
    (cookie,) = [each for each in set_cookies(answer) if each.name == ID]
    assert cookie.attributes["path"] == "/auth"
    assert "httponly" in cookie.attributes
    assert cookie.attributes["samesite"] == "Strict"
    assert ("max-age" in cookie.attributes) is remember
    if remember:
        assert int(cookie.attributes["max-age"]) >= answer.json()["session_expires_in"]
    opened = Sealer(site.keyturn).open(ID, cookie.value)
    assert (str(opened.session_id), opened.token) == (answer.json()["session_id"], id_token)
    assert ID in browser.sent_to("/auth/logout")
    assert ID not in browser.sent_to("/orders")
    for part in id_token.split("."):
        assert part not in str(answer.headers)
        assert part not in answer.text


async def test_an_exchange_in_mode_bearer_keeps_no_id_token(site: Site, someone: Subject) -> None:
    answer = await site.exchange(someone, "bearer", id_token=site.upstream.mint("id_token", subject=someone))
    assert answer.status_code == 200
    assert set_cookies(answer) == []


async def test_an_id_token_that_is_not_of_the_same_sign_in_is_refused_and_no_session_begins(
    site: Site, someone: Subject
) -> None:
    mint = site.upstream.mint
    other = Subject(user_id=new_id("usr"), session_id=new_id("ses"))
    for bad in (
        mint("id_token", subject=other),
        mint("id_token", subject=someone, sid=other.session_id),
        mint("id_token", subject=someone, sid=...),
        mint("id_token", subject=someone, sub=other.user_id),
        mint("id_token", subject=someone, iat=int(time()) - 400),
        mint("id_token", subject=someone, aud=["skc_other"], azp="skc_other", client_id="skc_other"),
        mint("id_token", subject=someone, iss="https://evil.example"),
        mint("id_token", subject=someone, key=site.upstream.keys.rsa(7), header={"kid": site.upstream.signing.kid}),
        mint("access_token", subject=someone),
        mint("logout_token", subject=someone),
        "x",
    ):
        answer = await site.exchange(someone, id_token=bad)
        assert (answer.status_code, answer.json()["error"]) == (401, "invalid_grant"), answer.text
        assert not set_cookies(answer)
    async with site.keyturn.db.look() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM sessions")) == 0


async def test_a_repeated_exchange_gives_the_cookie_again(site: Site, someone: Subject) -> None:
    body = {
        "subject_token": site.upstream.mint(subject=someone),
        "id_token": site.upstream.mint("id_token", subject=someone),
        "mode": "cookie",
        "device_id": "device-1",
    }
    answers = [await ask(site.client, "POST", "/auth/exchange", body=body, headers=SAME_SITE) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json()["session_id"] == answers[1].json()["session_id"]
    for answer in answers:
        assert ID in {each.name for each in set_cookies(answer)}


async def test_a_new_session_without_an_id_token_clears_the_one_of_an_earlier_session(
    site: Site, someone: Subject
) -> None:
    browser, _ = await site.browser(someone)
    answer = await site.exchange(someone, cookies=browser.sent_to("/auth/exchange"))
    assert cleared(answer) == {ID}


async def test_an_id_token_that_is_too_large_gives_no_cookie_and_a_line_in_the_log(
    database_url: str, upstream: Upstream, someone: Subject, tmp_path: Path, logs: Path
) -> None:
    federation = tmp_path / "federation.toml"
    federation.write_text(upstream.toml("acme"), encoding="utf-8")
    federation.chmod(0o600)
    environment = {
        "KEYTURN_DATABASE_URL": database_url,
        "KEYTURN_REDIS_URL": "none",
        "KEYTURN_SECRET": SECRET,
        "KEYTURN_ISSUER": "https://auth.example.com",
        "KEYTURN_FEDERATION_FILE": str(federation),
        **{f"KEYTURN_{name.upper()}": value for name, value in CHEAP.items()},
    }
    with await asyncio.to_thread(Service.start, environment, logs=logs) as service:
        async with httpx2.AsyncClient(base_url=service.url, timeout=30) as client:
            for size, kept in ((100, True), (4000, False)):
                large = upstream.mint("id_token", subject=someone, more="x" * size)
                body = {"subject_token": upstream.mint(subject=someone), "id_token": large, "mode": "cookie"}
                answer = await ask(client, "POST", "/auth/exchange", body=body, headers=SAME_SITE)
                assert answer.status_code == 200, answer.text
                assert (ID in {each.name for each in set_cookies(answer)}) is kept
        said = service.text_with("id_token_too_large")
        assert said.count("id_token_too_large") == 1
        assert large.split(".")[1] not in said


# -- at the logout


@pytest.mark.parametrize("mode", ["cookie", "split"])
async def test_a_logout_names_the_page_of_the_issuer_with_the_id_token_and_clears_every_cookie(
    site: Site, someone: Subject, mode: str
) -> None:
    id_token = site.upstream.mint("id_token", subject=someone)
    browser, _ = await site.browser(someone, mode, id_token=id_token)
    answer = await site.log_out(browser)
    url, query = query_of(answer)
    assert url == f"{site.upstream.url}/oidc/logout"
    assert query == {"id_token_hint": [id_token]}
    assert answer.headers["cache-control"] == "no-store"
    browser.take(set_cookies(answer))
    assert browser.names() == set()


async def test_a_page_to_return_to_is_passed_on_only_if_the_issuer_s_configuration_lists_it(
    site: Site, someone: Subject
) -> None:
    for page, passed in (
        (BACK, True),
        ("app.example:/out", True),
        (BACK + "/", False),
        (BACK + "?x=1", False),
        (BACK.upper(), False),
        ("https://evil.example/", False),
        ("", False),
    ):
        browser, _ = await site.browser(someone)
        _, query = query_of(await site.log_out(browser, post_logout_redirect_uri=page))
        assert query.get("post_logout_redirect_uri", []) == [page] * passed, page
    browser, _ = await site.browser(someone)
    answer = await site.log_out(browser, post_logout_redirect_uri="x" * 256)
    assert answer.status_code == 400


async def test_a_client_without_cookies_gets_the_url_too_and_again_when_it_repeats_the_logout(
    site: Site, someone: Subject
) -> None:
    tokens = (await site.exchange(someone, "bearer")).json()
    headers = [("Authorization", f"Bearer {tokens['access_token']}")]
    for body in (None, {"refresh_token": tokens["refresh_token"]}, {"post_logout_redirect_uri": BACK}):
        answer = await ask(site.client, "POST", "/auth/logout", body=body, headers=headers)
        url, query = query_of(answer)
        assert url == f"{site.upstream.url}/oidc/logout"
        assert query.keys() == ({"post_logout_redirect_uri"} if body and BACK in body.values() else set())
        assert not set_cookies(answer)


async def test_a_session_with_a_password_is_answered_as_ever(site: Site) -> None:
    await a_user(site.keyturn)
    browser = Browser()
    browser.take(set_cookies(await login(site.client, "ada@example.com")))
    answer = await site.log_out(browser)
    assert (answer.status_code, answer.content) == (204, b"")
    assert cleared(answer) == {HTTPS.access, HTTPS.refresh, ID}


async def test_a_logout_of_the_others_names_no_page_because_this_session_goes_on(site: Site, someone: Subject) -> None:
    browser, _ = await site.browser(someone)
    answer = await site.log_out(browser, scope="others")
    assert (answer.status_code, set_cookies(answer)) == (204, [])
    assert query_of(await site.log_out(browser, scope="all"))[1].keys() == {"id_token_hint"}


async def test_the_id_token_of_another_session_is_no_hint(site: Site, someone: Subject) -> None:
    browser, _ = await site.browser(someone)
    tokens = (await site.exchange(someone, "bearer")).json()
    cookie = f"{ID}={browser.value(ID)}"
    headers = [("Authorization", f"Bearer {tokens['access_token']}")]
    answer = await ask(site.client, "POST", "/auth/logout", cookie, headers=headers)
    assert query_of(answer)[1] == {}


async def test_a_cookie_that_keyturn_did_not_seal_for_it_is_no_hint(site: Site, someone: Subject) -> None:
    for n in range(4):
        browser, answer = await site.browser(someone)
        genuine = browser.value(ID)
        assert genuine is not None
        session_id = UUID(answer.json()["session_id"])
        bent = (
            genuine[:-1] + ("A" if genuine[-1] != "A" else "B"),
            Sealer(site.keyturn).seal(HTTPS.refresh, session_id, "a.b.c"),
            "junk",
            "",
        )[n]
        browser.drop(ID)
        cookies = f"{browser.sent_to('/auth/logout')}; {ID}={bent}"
        said = await ask(site.client, "POST", "/auth/logout", cookies, headers=SAME_SITE)
        assert query_of(said)[1] == {}


async def test_whatever_clears_the_other_cookies_clears_the_id_token(site: Site, someone: Subject) -> None:
    for method, path in (("POST", "/auth/refresh"), ("GET", "/auth/verify?refresh=true"), ("POST", "/auth/logout")):
        browser, answer = await site.browser(someone)
        session_id = answer.json()["session_id"]
        await site.keyturn.ending.end({UUID(session_id)}, "revoked_by_admin", by=SERVICE)
        answer = await ask(site.client, method, path, browser.sent_to(path), headers=SAME_SITE)
        assert ID in cleared(answer), (path, answer.status_code)
    browser, answer = await site.browser(someone)
    path = f"/auth/sessions/{answer.json()['session_id']}"
    answer = await ask(site.client, "DELETE", path, browser.sent_to(path), headers=SAME_SITE)
    assert answer.status_code == 204
    assert cleared(answer) == {HTTPS.access, HTTPS.refresh, ID}


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("settings", "names"),
    [({}, HTTPS), ({"cookie_domain": "example.com"}, DOMAIN), ({"issuer": "http://127.0.0.1:8000"}, LOOPBACK)],
)
async def test_a_proxy_that_reads_two_fields_deletes_the_access_and_the_refresh_cookie(
    database_url: str, upstream: Upstream, tmp_path: Path, settings: dict[str, str], names: Names
) -> None:
    async with a_site(database_url, upstream, tmp_path, settings) as site:
        cookies = f"{names.access}=junk; {names.refresh}=junk"
        headers = [*SAME_SITE, ("Sec-Keyturn-Set-Cookie", "repeat")]
        answer = await ask(site.client, "GET", "/auth/verify?refresh=true", cookies, headers=headers)
    assert answer.status_code == 401
    first, second, third = (each.name for each in set_cookies(answer))
    assert (first, second) == (names.access, names.refresh)
    assert third.endswith("keyturn-id")
    for name, field in (("access", names.access), ("refresh", names.refresh)):
        assert answer.headers[f"x-auth-set-cookie-{name}"].startswith(f"{field}=;")


async def test_an_id_token_cookie_alone_is_no_credential(site: Site, someone: Subject) -> None:
    browser, _ = await site.browser(someone)
    cookie = f"{ID}={browser.value(ID)}"
    for method, path, status in (
        ("POST", "/auth/logout", 401),
        ("POST", "/auth/refresh", 400),
        ("GET", "/auth/me", 401),
        ("GET", "/auth/verify", 401),
    ):
        answer = await ask(site.client, method, path, cookie, headers=SAME_SITE)
        assert answer.status_code == status, path
    value = browser.value(ID)
    for name in (HTTPS.access, HTTPS.refresh):
        answer = await ask(site.client, "GET", "/auth/verify", f"{name}={value}", headers=SAME_SITE)
        assert answer.status_code == 401


async def test_any_issuer_s_page_comes_from_its_discovery(
    database_url: str, upstream: Upstream, someone: Subject, tmp_path: Path
) -> None:
    members: dict[str, Any] = {"preset": "oidc", "post_logout_redirect_uris": [BACK]}
    async with a_site(database_url, upstream, tmp_path, **members) as site:
        of = site.keyturn.issuers.named("acme")
        while site.keyturn.discovery.end_session_endpoint(of) is None:
            await asyncio.sleep(0.05)
        answer = await site.exchange(someone, "bearer", kind="id_token")
        assert answer.status_code == 200, answer.text
        said = await ask(site.client, "POST", "/auth/logout", body={
            "refresh_token": answer.json()["refresh_token"], "post_logout_redirect_uri": BACK,
        })  # fmt: skip
        url, query = query_of(said)
        assert url == f"{upstream.url}/oidc/logout"
        assert query == {"client_id": [upstream.client_id], "post_logout_redirect_uri": [BACK]}


async def test_a_removed_issuer_has_no_page(
    database_url: str, upstream: Upstream, someone: Subject, tmp_path: Path
) -> None:
    async with a_site(database_url, upstream, tmp_path) as site:
        tokens = (await site.exchange(someone, "bearer")).json()
    other = Upstream.toml(upstream, "other", issuer="https://other.example")
    (tmp_path / "more").mkdir()
    federation = tmp_path / "more" / "federation.toml"
    federation.write_text(other, encoding="utf-8")
    federation.chmod(0o600)
    app = create_app(settings_of(database_url, None, federation_file=str(federation)))
    async with app.router.lifespan_context(app), client_of(app) as client:
        body = {"refresh_token": tokens["refresh_token"]}
        assert (await ask(client, "POST", "/auth/logout", body=body)).status_code == 204


# -- the look-up never harms a logout


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
async def test_a_look_up_that_gets_no_answer_costs_the_url_and_not_the_logout(site: Site, someone: Subject) -> None:
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%FROM upstream_sessions%'"
    )
    for _ in range(10):
        tokens = (await site.exchange(someone, "bearer")).json()
        headers = [("Authorization", f"Bearer {tokens['access_token']}")]
        async with site.keyturn.db.begin() as tx:
            await tx.execute(text("LOCK TABLE upstream_sessions IN ACCESS EXCLUSIVE MODE"))
            # The lock is held until the answer is here: the logout has not waited for it.
            answer = await ask(site.client, "POST", "/auth/logout", headers=headers)
            assert (answer.status_code, answer.content) == (204, b"")
            still_waits = await tx.scalar(waiting)
        assert (await ask(site.client, "GET", "/auth/me", headers=headers)).status_code == 401
        if still_waits:
            break
    assert still_waits, "each answer came only after Postgres had given up the look-up"
    answer = await ask(site.client, "POST", "/auth/logout", headers=headers)
    assert query_of(answer)[0] == f"{site.upstream.url}/oidc/logout"


async def test_without_an_issuer_a_logout_makes_no_look_up(database_url: str) -> None:
    app = create_app(settings_of(database_url, None))
    async with app.router.lifespan_context(app), client_of(app) as client:
        keyturn: Keyturn = app.state.keyturn
        await a_user(keyturn)
        statements: list[str] = []
        engines = {keyturn.db._engine, keyturn.db._reader, keyturn.db._other_reader, keyturn.db._writer}
        for each in engines:
            event.listen(each.sync_engine, "before_cursor_execute", lambda *a: statements.append(a[2]))
        browser = Browser()
        browser.take(set_cookies(await login(client, "ada@example.com")))
        cookies = browser.sent_to("/auth/logout")
        answer = await ask(client, "POST", "/auth/logout", cookies, headers=SAME_SITE)
        assert answer.status_code == 204
        assert cleared(answer) == {HTTPS.access, HTTPS.refresh}
        assert not [each for each in statements if "upstream" in each]
        assert any("sessions" in each for each in statements), "the listener hears the statements"
