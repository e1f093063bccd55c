"""/admin/federation: issuers are read and changed by administrators, and no answer has a secret."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import update

from app.actors import SERVICE
from app.federation.issuer import Issuer, IssuerSecrets
from app.routes import admin_federation, issuer_models
from app.storage.tables import Issuer as Row
from tests.conftest import CHEAP, PASSWORD, SECRET, a_user, settings_of
from tests.service import Service
from tests.test_api import ADA, Api, refused, serving
from tests.test_issuers import changes, planted, rows, secret_in
from tests.upstream.upstream import Upstream

BOSS = "boss@example.com"
Json = dict[str, Any]


@pytest.fixture
async def api(database_url: str) -> AsyncIterator[Api]:
    async with serving(database_url) as api:
        await a_user(api.keyturn, BOSS, "admin")
        await a_user(api.keyturn, ADA)
        yield api


async def boss(api: Api) -> str:
    return str((await api.login(BOSS))["access_token"])


async def ask(api: Api, method: str, name: str, bearer: str, body: Any = None) -> httpx2.Response:
    path = f"/admin/federation/{name}" if name else "/admin/federation"
    return await api.client.request(method, path, json=body, headers={"Authorization": f"Bearer {bearer}"})


def has_no_secret(upstream: Upstream, *answers: httpx2.Response) -> None:
    for answer in answers:
        text = answer.text + str(answer.headers)
        for secret in upstream.secrets.values():
            assert secret not in text
        assert '"client_secret"' not in text
        assert "sealed" not in text


async def test_an_administrator_adds_reads_changes_and_removes_an_issuer(api: Api, upstream: Upstream) -> None:
    bearer = await boss(api)
    assert (await ask(api, "GET", "", bearer)).json() == {"items": []}
    members = upstream.members(roles={"boss": "editor"}, audiences=["one"])
    answer = await ask(api, "PUT", "acme", bearer, members | upstream.secrets)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["name"] == "acme"
    assert (body["source"], body["status"], body["secrets_are_lost"]) == ("table", "in_force", False)
    assert (body["has_client_secret"], body["has_webhook_secret"]) == (True, True)
    assert "warning" not in body
    whole = Issuer(**members).model_dump(mode="json", exclude_none=True)
    assert {name: body[name] for name in whole} == whole
    one, listed = await ask(api, "GET", "acme", bearer), await ask(api, "GET", "", bearer)
    assert one.json() == body
    assert listed.json() == {"items": [body]}
    held = api.keyturn.issuers.named("acme")
    assert secret_in(held) == upstream.client_secret
    # The body is whole: a member that it leaves out has its default. Secrets stay.
    again = await ask(api, "PUT", "acme", bearer, upstream.members())
    assert again.json()["roles"] == {}
    assert again.json()["has_client_secret"] is True
    cleared = await ask(api, "PUT", "acme", bearer, upstream.members() | {"client_secret": None})
    assert (cleared.json()["has_client_secret"], cleared.json()["has_webhook_secret"]) == (False, True)
    removed = await ask(api, "DELETE", "acme", bearer)
    assert (removed.status_code, removed.content) == (204, b"")
    refused(await ask(api, "DELETE", "acme", bearer), 404, "not_found")
    refused(await ask(api, "GET", "acme", bearer), 404, "not_found")
    has_no_secret(upstream, answer, one, listed, again, cleared)
    assert {actor for actor, *_ in await changes(api.keyturn)} == {"administrator"}


@pytest.mark.parametrize(
    ("change", "member"),
    [
        ({"preset": "saml"}, "preset"),
        ({"preset": ...}, "preset"),
        ({"issuer": "http://a.example"}, "issuer"),
        ({"issuer": None}, "issuer"),
        ({"issuer": "https://planted-user:pw@a.example"}, "issuer"),
        ({"audiences": "planted"}, "audiences"),
        ({"audiences": ["planted planted"]}, "audiences"),
        ({"audiences": [["planted"]]}, "audiences"),
        ({"algorithms": ["HS256"]}, "algorithms"),
        ({"algorithms": []}, "algorithms"),
        ({"roles": {"planted": "Planted!"}}, "roles"),
        ({"roles": {"planted planted": "editor"}}, "roles"),
        ({"roles": [["planted", "editor"]]}, "roles"),
        ({"claims": {"planted": "role"}}, "claims"),
        ({"claims": {"planted": "email"}}, "claims"),
        ({"default_role": "admin"}, "default_role"),
        ({"link_by_email": True}, "link_by_email"),
        ({"private_addresses": "true"}, "private_addresses"),
        ({"private_addresses": 1}, "private_addresses"),
        ({"check_every": "60"}, "check_every"),
        ({"check_every": 0}, "check_every"),
        ({"check_every": 10**30}, "check_every"),
        ({"also_issuers": ["https://a.example#planted"]}, "also_issuers"),
        ({"client_secret": ""}, "client_secret"),
        ({"client_secret": 7}, "client_secret"),
        ({"client_secret": "planted" * 200}, "client_secret"),
        ({"webhook_secret": "planted!"}, "webhook_secret"),
        ({"client_secret_file": "/etc/passwd"}, "client_secret_file"),
        ({"name": "planted"}, "name"),
        ({"source": "planted"}, "source"),
        ({"has_client_secret": True}, "has_client_secret"),
    ],
    ids=str,
)
@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_a_body_that_is_malformed_is_refused_and_named_and_nothing_of_it_is_repeated(
    api: Api, upstream: Upstream, change: Json, member: str
) -> None:
    members = upstream.members(**change) | {name: value for name, value in change.items() if value is not ...}
    answer = await ask(api, "PUT", "acme", await boss(api), members)
    refused(answer, 400, "invalid_request")
    said = answer.json()["error_description"]
    assert said.startswith(member), said
    assert "planted" not in said
    assert await rows(api.keyturn) == []
    assert upstream.requests() == []  # nobody is asked for what is refused anyway


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_names_are_checked_and_taken_iss_values_are_a_conflict(api: Api, upstream: Upstream) -> None:
    bearer = await boss(api)
    assert (await ask(api, "PUT", "acme", bearer, upstream.members())).status_code == 200
    refused(await ask(api, "PUT", "other", bearer, upstream.members()), 409, "conflict")
    for name in ("Acme", "1st", "a" * 33, "a%20b", "a.b"):
        answer = await ask(api, "PUT", name, bearer, upstream.members())
        refused(answer, 400, "invalid_request")
        assert answer.json()["error_description"].startswith("name: ")
    assert len(await rows(api.keyturn)) == 1


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_a_wrong_issuer_is_refused_and_one_that_is_away_is_added_with_a_warning(
    api: Api, upstream: Upstream
) -> None:
    bearer = await boss(api)
    wrong = json.dumps({"issuer": "https://evil.example", "jwks_uri": "https://evil.example/keys"})
    upstream.fault("/.well-known", "answer", status=200, body=wrong)
    answer = await ask(api, "PUT", "acme", bearer, upstream.members(preset="oidc"))
    refused(answer, 400, "invalid_request")
    assert "names another issuer" in answer.json()["error_description"]
    assert "evil" not in answer.text
    answer = await ask(api, "PUT", "acme", bearer, upstream.members(private_addresses=False))
    refused(answer, 400, "invalid_request")
    assert await rows(api.keyturn) == []
    upstream.refuse()
    answer = await ask(api, "PUT", "acme", bearer, upstream.members())
    assert answer.status_code == 200
    # The words do not say why: nobody scans a network by an administrator's session.
    assert answer.json()["warning"] == admin_federation._NOT_EXAMINED
    assert "warning" not in (await ask(api, "GET", "acme", bearer)).json()


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_a_client_secret_is_not_sent_to_another_issuer_by_a_change_that_does_not_have_it(
    api: Api, upstream: Upstream, second_upstream: Upstream
) -> None:
    bearer = await boss(api)
    await ask(api, "PUT", "acme", bearer, upstream.members() | upstream.secrets)
    answer = await ask(api, "PUT", "acme", bearer, second_upstream.members())
    refused(answer, 400, "invalid_request")
    assert answer.json()["error_description"].startswith("client_secret: ")
    assert api.keyturn.issuers.named("acme").issuer.issuer == upstream.url


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_rows_that_are_not_in_force_are_listed_with_the_reason(api: Api, upstream: Upstream) -> None:
    bearer = await boss(api)
    await ask(api, "PUT", "acme", bearer, upstream.members() | upstream.secrets)
    await planted(api.keyturn, "later", configuration='{"of_a_later_release": true}')
    async with api.keyturn.db.begin() as tx:
        await tx.execute(update(Row).where(Row.name == "acme").values(sealed=bytes(60)))
    acme, later = (await ask(api, "GET", "", bearer)).json()["items"]
    assert (acme["status"], acme["secrets_are_lost"], acme["has_client_secret"]) == ("in_force", True, False)
    assert later.keys() == {
        "name", "source", "status", "changed_at", "secrets_are_lost", "has_client_secret", "has_webhook_secret",
    }  # fmt: skip
    assert later["status"] == "unreadable"


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_an_issuer_of_the_file_is_read_and_not_changed(
    database_url: str, upstream: Upstream, tmp_path: Path
) -> None:
    file = tmp_path / "issuers.toml"
    file.write_text(upstream.toml("acme"))
    file.chmod(0o600)
    async with serving(database_url, federation_file=file) as api:
        await a_user(api.keyturn, BOSS, "admin")
        bearer = await boss(api)
        answer = await ask(api, "GET", "acme", bearer)
        assert (answer.json()["source"], answer.json()["has_client_secret"]) == ("file", True)
        assert "changed_at" not in answer.json()
        refused(await ask(api, "PUT", "acme", bearer, upstream.members()), 409, "conflict")
        refused(await ask(api, "DELETE", "acme", bearer), 409, "conflict")
        has_no_secret(upstream, answer, await ask(api, "GET", "", bearer))


def test_the_bodies_have_exactly_the_members_of_an_issuer() -> None:
    members, secrets = Issuer.model_fields.keys(), IssuerSecrets.model_fields.keys()
    assert issuer_models.IssuerChange.model_fields.keys() == members | secrets
    assert issuer_models.IssuerAnswer.model_fields.keys() >= members
    assert not issuer_models.IssuerAnswer.model_fields.keys() & secrets


async def test_two_real_instances_have_a_change_within_a_second_of_its_answer(
    database_url: str, logs: Path, upstream: Upstream
) -> None:
    values = {"database_url": database_url, "redis_url": "none", "secret": SECRET, "issuer": "https://auth.example.com"}
    environment = {f"KEYTURN_{name.upper()}": value for name, value in (values | CHEAP).items()}
    from app.keyturn import opened

    async with opened(settings_of(database_url, None)) as keyturn:
        await keyturn.keys.load()
        await keyturn.users.create(BOSS, PASSWORD, "admin", by=SERVICE)
    with (
        await asyncio.to_thread(Service.start, environment, logs=logs) as one,
        await asyncio.to_thread(Service.start, environment, logs=logs) as two,
    ):
        async with httpx2.AsyncClient(timeout=30) as client:
            login = await client.post(f"{one.url}/auth/login", json={"email": BOSS, "password": PASSWORD})
            headers = {"Authorization": f"Bearer {login.json()['access_token']}"}
            body = upstream.members(preset="oidc", jwks_uri=f"{upstream.url}/keys") | upstream.secrets
            answer = await client.put(f"{one.url}/admin/federation/acme", json=body, headers=headers)
            assert answer.status_code == 200, answer.text
            # Each instance reads the document of an issuer that comes into force. The examination read it before.
            asked = await asyncio.to_thread(_document_was_asked, upstream, 3)
            assert asked == 3
            answer = await client.get(f"{two.url}/admin/federation/acme", headers=headers)
            assert answer.json()["has_client_secret"] is True
        for service in (one, two):
            log = service.text_with("/admin/federation/acme")
            assert upstream.client_secret not in log
            assert upstream.webhook_secret not in log


def _document_was_asked(upstream: Upstream, times: int) -> int:
    """How often the document was asked for, as soon as it is this often, or after 20 seconds."""
    from time import monotonic, sleep

    until = monotonic() + 20
    while (found := len(upstream.requests("/.well-known"))) < times and monotonic() < until:
        sleep(0.05)
    return found


# -- planted bugs


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_a_secret_in_an_answer_would_be_found(
    api: Api, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = admin_federation._shown

    def leaking(issuer: Any, warning: str | None = None) -> Any:
        shown = real(issuer, warning)
        return shown.model_copy(update={"warning": secret_in(issuer.configured)})

    monkeypatch.setattr(admin_federation, "_shown", leaking)
    with pytest.raises(AssertionError):
        await test_an_administrator_adds_reads_changes_and_removes_an_issuer(api, upstream)


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_a_value_in_a_refusal_would_be_found(
    api: Api, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.federation.issuer._in_words", lambda error: f"claims: {error['loc']} planted")
    with pytest.raises(AssertionError):
        await test_a_body_that_is_malformed_is_refused_and_named_and_nothing_of_it_is_repeated(
            api, upstream, {"claims": {"planted": "role"}}, "claims"
        )
