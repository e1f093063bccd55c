"""/admin/federation: issuers are read and changed by administrators, and no answer has a secret."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic
from typing import Any

import httpx2
import pytest
from sqlalchemy import update

from app.actors import SERVICE, Actor
from app.errors import InvalidRequest
from app.federation.issuer import OF_THE_MACHINE, Issuer, IssuerSecrets
from app.keyturn import Keyturn
from app.routes import admin_federation, issuer_models
from app.storage.tables import Issuer as Row
from tests.api import ADA, Api, refused, serving
from tests.conftest import CHEAP, PASSWORD, SECRET, a_user, settings_of
from tests.service import Service
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


async def known(keyturn: Keyturn, name: str, *, secrets: Json | None = None, **members: Any) -> None:
    """An issuer that an operator has added. A stand-in has a private address, which no administrator gives it."""
    given = IssuerSecrets.model_validate(secrets or {})
    await keyturn.issuers.put(name, Issuer(**members), given, by=SERVICE)
    await keyturn.issuers.load()


def in_public(members: Json) -> Json:
    """The members that an administrator gives."""
    return {name: value for name, value in members.items() if name not in OF_THE_MACHINE}


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
    await known(api.keyturn, "acme", **upstream.members())
    members = upstream.members(roles={"boss": "editor"}, audiences=["one"])
    answer = await ask(api, "PUT", "acme", bearer, in_public(members) | upstream.secrets)
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
    again = await ask(api, "PUT", "acme", bearer, in_public(upstream.members()))
    assert again.json()["roles"] == {}
    assert again.json()["has_client_secret"] is True
    cleared = await ask(api, "PUT", "acme", bearer, upstream.members() | {"client_secret": None})
    assert (cleared.json()["has_client_secret"], cleared.json()["has_webhook_secret"]) == (False, True)
    removed = await ask(api, "DELETE", "acme", bearer)
    assert (removed.status_code, removed.content) == (204, b"")
    refused(await ask(api, "DELETE", "acme", bearer), 404, "not_found")
    refused(await ask(api, "GET", "acme", bearer), 404, "not_found")
    has_no_secret(upstream, answer, one, listed, again, cleared)
    added = len(upstream.members())
    actors = [actor for actor, *_ in await changes(api.keyturn)]
    assert set(actors[:added]) == {"service"}
    assert set(actors[added:]) == {"administrator"}


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_an_administrator_gives_no_issuer_a_private_address_or_an_authority(
    api: Api, upstream: Upstream, second_upstream: Upstream
) -> None:
    """A stolen session of an administrator must not look around in the operator's network."""
    bearer, body = await boss(api), in_public(upstream.members())

    async def refused_for(member: str, name: str, body: Json) -> None:
        answer = await ask(api, "PUT", name, bearer, body)
        refused(answer, 400, "invalid_request")
        said = f"{member}: only a command changes it: keyturn federation add {name} --set {member}=VALUE."
        assert answer.json()["error_description"] == said

    await refused_for("private_addresses", "new", upstream.members(ca_file=...))
    await refused_for("ca_file", "new", body | {"ca_file": "/etc/passwd"})
    assert await rows(api.keyturn) == []
    await known(api.keyturn, "acme", **upstream.members())
    await refused_for("private_addresses", "acme", body | {"private_addresses": False})
    await refused_for("ca_file", "acme", body | {"ca_file": "/etc/passwd"})
    for issuer in (second_upstream.url, "https://10.0.0.1:22", f"{upstream.url}/path"):
        await refused_for("issuer", "acme", body | {"issuer": issuer})
    await refused_for("jwks_uri", "acme", body | {"jwks_uri": "https://10.0.0.1:22"})
    assert upstream.requests() == second_upstream.requests() == []
    whole = await ask(api, "PUT", "acme", bearer, upstream.members(trust_email=True))
    assert whole.status_code == 200, "as they are, they may be in the body"
    kept = await ask(api, "PUT", "acme", bearer, body)
    assert kept.json() == {**whole.json(), "trust_email": False, "changed_at": kept.json()["changed_at"]}
    assert (kept.json()["private_addresses"], kept.json()["ca_file"]) == (True, str(upstream.ca_file))
    assert "warning" not in kept.json(), "the examination asked it with its authority, at its address"


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_an_issuer_becomes_private_by_a_command_and_by_no_change_that_was_prepared_before(
    api: Api, upstream: Upstream
) -> None:
    """The change decides by the row that it replaces, and not by one that it saw before."""
    public: Json = {"preset": "scalekit", "issuer": "https://a.invalid", "client_id": "skc_1"}
    await known(api.keyturn, "acme", **public)
    before = Issuer(**public, private_addresses=False)
    await known(api.keyturn, "acme", **public, private_addresses=True)
    boss = Actor("administrator", str((await a_user(api.keyturn, "root@example.com", "admin")).user_id))
    elsewhere = Issuer(**public | {"issuer": "https://10.0.0.1"})
    for issuer in (before, elsewhere):
        with pytest.raises(InvalidRequest, match="for the command"):
            await api.keyturn.issuers.put("acme", issuer, IssuerSecrets(), by=boss)


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
    members = in_public(upstream.members(**change)) | {n: value for n, value in change.items() if value is not ...}
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
    await known(api.keyturn, "acme", **upstream.members())
    other = {"preset": "scalekit", "issuer": "https://a.invalid", "client_id": "x", "also_issuers": [upstream.url]}
    refused(await ask(api, "PUT", "other", bearer, other), 409, "conflict")
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
    await known(api.keyturn, "acme", **upstream.members())
    wrong = json.dumps({"issuer": "https://evil.example", "jwks_uri": "https://evil.example/keys"})
    upstream.fault("/.well-known", "answer", status=200, body=wrong)
    answer = await ask(api, "PUT", "acme", bearer, upstream.members(preset="oidc"))
    refused(answer, 400, "invalid_request")
    assert "names another issuer" in answer.json()["error_description"]
    assert "evil" not in answer.text
    inside = {"preset": "scalekit", "issuer": upstream.url, "client_id": "x"}
    answer = await ask(api, "PUT", "inside", bearer, inside)
    refused(answer, 400, "invalid_request")
    assert "private or reserved address" in answer.json()["error_description"]
    assert [row.name for row in await rows(api.keyturn)] == ["acme"]
    upstream.refuse()
    answer = await ask(api, "PUT", "acme", bearer, upstream.members(trust_email=True))
    assert answer.status_code == 200
    assert answer.json()["warning"] == "issuer acme: no connection"
    assert "warning" not in (await ask(api, "GET", "acme", bearer)).json()


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_a_client_secret_is_not_sent_to_another_issuer_by_a_change_that_does_not_have_it(
    api: Api, upstream: Upstream
) -> None:
    bearer = await boss(api)
    public: Json = {"preset": "scalekit", "issuer": "https://a.invalid", "client_id": "skc_1"}
    await known(api.keyturn, "acme", secrets=upstream.secrets, **public)
    answer = await ask(api, "PUT", "acme", bearer, public | {"issuer": "https://b.invalid"})
    refused(answer, 400, "invalid_request")
    assert answer.json()["error_description"].startswith("client_secret: ")
    assert api.keyturn.issuers.named("acme").issuer.issuer == "https://a.invalid"


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_rows_that_are_not_in_force_are_listed_with_the_reason(api: Api, upstream: Upstream) -> None:
    bearer = await boss(api)
    await known(api.keyturn, "acme", secrets=upstream.secrets, **upstream.members())
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
        members = upstream.members(preset="oidc", jwks_uri=f"{upstream.url}/keys")
        await known(keyturn, "acme", **members)
    with (
        await asyncio.to_thread(Service.start, environment, logs=logs) as one,
        await asyncio.to_thread(Service.start, environment, logs=logs) as two,
    ):
        async with httpx2.AsyncClient(timeout=30) as client:
            login = await client.post(f"{one.url}/auth/login", json={"email": BOSS, "password": PASSWORD})
            headers = {"Authorization": f"Bearer {login.json()['access_token']}"}
            assert await _status_of_a_webhook(client, two, upstream, until=0) == 404
            body = members | upstream.secrets
            answer = await client.put(f"{one.url}/admin/federation/acme", json=body, headers=headers)
            assert answer.status_code == 200, answer.text
            # A webhook is taken where its secret is in force. Before, there is no such path.
            assert await _status_of_a_webhook(client, one, upstream, until=0) == 201
            assert await _status_of_a_webhook(client, two, upstream, until=20) == 201
            answer = await client.get(f"{two.url}/admin/federation/acme", headers=headers)
            assert answer.json()["has_client_secret"] is True
        for service in (one, two):
            log = service.text_with("/admin/federation/acme")
            assert upstream.client_secret not in log
            assert upstream.webhook_secret not in log


async def _status_of_a_webhook(
    client: httpx2.AsyncClient, service: Service, upstream: Upstream, *, until: float
) -> int:
    """The status of a webhook's answer, as soon as it is not 404, or after some seconds."""
    end = monotonic() + until
    while True:
        fields, body = upstream.webhook(await asyncio.to_thread(upstream.sign_in))
        answer = await client.post(f"{service.url}/federation/acme/webhook", content=body, headers=fields)
        if answer.status_code != 404 or monotonic() > end:
            return answer.status_code
        await asyncio.sleep(0.05)


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
