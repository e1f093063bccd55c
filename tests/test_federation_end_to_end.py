"""Federation from end to end: an issuer in a process, Keyturn in one or two others, and logout both ways."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.federated_app import App, eventually, federated, federation_file
from tests.servers import Redis, free_port
from tests.service import Service
from tests.upstream import provider as oidc
from tests.upstream.keys import Keys
from tests.upstream.provider import Browser, Provider
from tests.upstream.upstream import Upstream, section

MEMBERS: dict[str, Any] = {"trust_email": True, "roles": {"orders:write": "editor"}}


@pytest.fixture
def file(upstream: Upstream, tmp_path: Path) -> Path:
    return federation_file(tmp_path, upstream.toml("acme", **MEMBERS))


@pytest.fixture
def service(file: Path, logs: Path, database_url: str) -> Iterator[Service]:
    with federated(file, logs, database_url) as service:
        yield service


def signed_in(service: Service, upstream: Upstream, email: str = "ada@example.com") -> tuple[App, str]:
    """A user who signed in upstream and whose token was exchanged, with the id of the upstream session."""
    app, login = App(service), upstream.sign_in(email, permissions=["orders:write"])
    answer = app.exchange(login.access_token)
    assert answer.status_code == 200, answer.text
    assert app.verify().status_code == 200
    return app, login.session_id


def test_a_login_upstream_becomes_a_session_here_which_refreshes_without_the_upstream(
    service: Service, upstream: Upstream
) -> None:
    app, _ = signed_in(service, upstream)
    assert app.verify().headers["x-auth-role"] == "editor"
    upstream.refuse()
    first = app.refresh_token
    for _ in range(3):
        assert app.refresh().status_code == 200
        assert app.verify().status_code == 200
    assert app.refresh_token != first


@pytest.mark.parametrize("killed", [False, True])
def test_a_logout_here_revokes_the_upstream_session_even_if_the_service_is_killed_before_it_could(
    upstream: Upstream, file: Path, logs: Path, database_url: str, killed: bool
) -> None:
    with federated(file, logs, database_url) as service:
        app, session_id = signed_in(service, upstream)
        if killed:
            upstream.refuse()  # so that the revocation can't have happened before the kill
        assert app.logout().status_code in {200, 204}
        assert app.verify().status_code == 401
        if killed:
            service.kill()
    if killed:
        upstream.heal()
        assert upstream.status(session_id) == "active"
        with federated(file, logs, database_url):
            assert eventually(lambda: upstream.status(session_id) == "revoked")
    else:
        with federated(file, logs, database_url):  # the logout did not wait, so the first instance may be gone by now
            assert eventually(lambda: upstream.status(session_id) == "revoked")


def test_a_logout_here_is_as_quick_and_as_final_while_the_upstream_is_away(
    service: Service, upstream: Upstream
) -> None:
    app, session_id = signed_in(service, upstream)
    upstream.fault("/", "hang")
    assert app.logout().status_code in {200, 204}
    assert app.verify().status_code == 401
    assert app.refresh().status_code == 401
    assert upstream.status(session_id) == "active"
    upstream.heal()
    assert eventually(lambda: upstream.status(session_id) == "revoked")


@pytest.fixture
def instances(
    file: Path, logs: Path, database_url: str, redis: Redis, engine: str
) -> Iterator[tuple[Service, Service]]:
    """Two instances of one service. With Postgres they have a Redis too, which each of them believes."""
    redis_url = redis.url(3) if engine == "postgres" else "none"
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(federated(file, logs, database_url, redis_url=redis_url)) for _ in range(2)
        )
        yield first, second


def test_what_an_instance_owes_the_upstream_when_it_is_killed_the_other_one_pays(
    instances: tuple[Service, Service], upstream: Upstream
) -> None:
    first, second = instances
    app, session_id = signed_in(first, upstream)
    other, other_id = signed_in(second, upstream, "bob@example.com")
    upstream.refuse()  # so that neither instance can have revoked the session before the kill
    assert app.logout().status_code in {200, 204}
    first.kill()
    assert app.at(second).verify().status_code == 401
    upstream.heal()
    assert eventually(lambda: upstream.status(session_id) == "revoked")
    assert other.refresh().status_code == 200
    assert upstream.status(other_id) == "active"


@pytest.mark.parametrize("way", ["back_channel", "webhook"])
def test_a_logout_upstream_ends_the_access_token_on_both_instances_by_the_time_it_is_answered(
    instances: tuple[Service, Service], upstream: Upstream, way: str
) -> None:
    first, second = instances
    app, session_id = signed_in(first, upstream)
    other, other_id = signed_in(second, upstream, "bob@example.com")
    assert app.at(second).verify().status_code == 200
    if way == "back_channel":
        upstream.send_to(back_channel=(f"{second.url}/federation/acme/logout",))
    else:
        upstream.send_to(webhooks=(f"{second.url}/federation/acme/webhook",))
    upstream.end(session_id)
    tried = upstream.tried(1)
    assert [each["status"] // 100 for each in tried] == [2]
    assert [app.at(instance).verify().status_code for instance in (first, second)] == [401, 401]
    refused = app.refresh()
    assert refused.status_code == 401
    assert refused.json()["reason"] == "upstream_logout"
    assert other.verify().status_code == 200
    assert upstream.status(other_id) == "active"


def test_a_token_of_a_session_that_was_logged_out_upstream_is_not_exchanged(
    service: Service, upstream: Upstream
) -> None:
    login = upstream.sign_in()
    upstream.send_to(back_channel=(f"{service.url}/federation/acme/logout",))
    upstream.end(login.session_id)
    assert upstream.tried(1)[0]["status"] == 200
    assert App(service).exchange(login.access_token).status_code == 401


# -- an issuer of another make


@pytest.fixture
def provider(upstream_keys: Keys) -> Iterator[tuple[Provider, int]]:
    """node oidc-provider, and the port of the Keyturn to which it will send its logout tokens."""
    if why := oidc.missing():
        pytest.skip(why)
    port = free_port()
    with Provider.start(upstream_keys, f"http://127.0.0.1:{port}/federation/other/logout") as provider:
        yield provider, port


def test_an_id_token_of_oidc_provider_is_exchanged_and_its_logout_ends_the_session_here(
    provider: tuple[Provider, int], tmp_path: Path, logs: Path, database_url: str
) -> None:
    issuer, port = provider
    file = federation_file(tmp_path, section("other", issuer.members(trust_email=True)))
    with federated(file, logs, database_url, port=port) as service, Browser(issuer) as browser:
        app = App(service)
        answer = app.exchange(browser.sign_in("ada"), subject_token_type="id_token")
        assert answer.status_code == 200, answer.text
        assert app.refresh().status_code == 200
        with Browser(issuer) as bobs:
            bob = App(service)
            assert bob.exchange(bobs.sign_in("bob")).status_code == 200
        browser.sign_out()
        assert eventually(lambda: "backchannel." in issuer.text())
        assert "backchannel.success" in issuer.text(), issuer.text()
        assert app.verify().status_code == 401
        assert app.refresh().json()["reason"] == "upstream_logout"
        assert bob.verify().status_code == 200


def test_a_logout_here_hands_the_browser_the_address_at_which_oidc_provider_signs_it_out(
    provider: tuple[Provider, int], tmp_path: Path, logs: Path, database_url: str
) -> None:
    issuer, port = provider
    file = federation_file(tmp_path, section("other", issuer.members()))
    with federated(file, logs, database_url, port=port) as service, Browser(issuer) as browser:
        app = App(service)
        assert app.exchange(browser.sign_in("ada")).status_code == 200
        answer = app.logout()
        assert answer.status_code == 200, answer.text
        url = answer.json()["upstream_logout_url"]
        assert url.startswith(f"{issuer.url}/session/end")
        browser.sign_out_at(url)
        assert eventually(lambda: "backchannel.success" in issuer.text())  # a session that is over is none to end
