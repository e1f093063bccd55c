"""/admin/users, on both databases: each act, who may do it, and that nobody changes a user by any other way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from sqlalchemy import update

from app.actors import SERVICE
from app.errors import InvalidGrant
from app.keyturn import Keyturn
from app.sessions.rows import SessionRow
from app.storage.tables import Session
from app.users.made_passwords import LIFETIME
from tests.api import ADA, BARE, BOB, Api, authorization, dump, refused, serving
from tests.conftest import NEW_PASSWORD, PASSWORD

ROOT = "root@example.com"
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Office:
    """The application with an administrator, Root, and a user, Ada."""

    api: Api
    token: str
    ada: UUID

    @property
    def keyturn(self) -> Keyturn:
        return self.api.keyturn

    async def __call__(self, method: str, path: str = "", body: Any = None, **query: Any) -> httpx2.Response:
        return await self.api.client.request(
            method, f"/admin/users{path}", json=body, params=query, headers=authorization(self.token)
        )

    async def listed(self, **query: Any) -> list[str]:
        """The addresses of all pages, without the domain."""
        emails: list[str] = []
        while True:
            answer = await self("GET", **query)
            assert answer.status_code == 200, answer.text
            page = answer.json()
            assert len(page["items"]) <= int(query.get("limit", 20))
            emails += [user["email"].partition("@")[0] for user in page["items"]]
            if "next_cursor" not in page:
                return emails
            query["cursor"] = page["next_cursor"]

    async def row(self, session_id: str) -> SessionRow:
        return await self.keyturn.reading.find(UUID(session_id))


@pytest.fixture
async def office(database_url: str) -> AsyncIterator[Office]:
    async with serving(database_url) as api:
        await api.keyturn.users.create(ROOT, PASSWORD, "admin", by=SERVICE)
        ada = await api.keyturn.users.create(ADA, PASSWORD, by=SERVICE)
        yield Office(api, (await api.login(ROOT))["access_token"], ada.id)


async def test_users_are_listed_by_age_page_by_page_and_by_each_filter(office: Office) -> None:
    for i in range(5):
        await office.keyturn.users.create(f"user{i}@example.com", PASSWORD, "editor" if i % 2 else "user", by=SERVICE)
    await office.keyturn.users.disable((await office.keyturn.users.find("user3@example.com")).id, by=SERVICE)
    everyone = ["root", "ada", "user0", "user1", "user2", "user3", "user4"]
    for limit in (1, 3, 7, 100):
        assert await office.listed(order="oldest", limit=limit) == everyone
        assert await office.listed(limit=limit) == everyone[::-1]
    assert await office.listed(email="ADA@example.com ") == ["ada"]
    assert await office.listed(email="User*", order="oldest", limit=2) == everyone[2:]
    assert await office.listed(email="*", order="oldest") == everyone
    assert await office.listed(email="%*") == await office.listed(email="user_*") == []
    assert await office.listed(email="nobody@example.com") == []
    assert await office.listed(role="editor", order="oldest") == ["user1", "user3"]
    assert await office.listed(role="editor", status="disabled") == ["user3"]
    assert await office.listed(status="enabled", order="oldest", limit=4) == [n for n in everyone if n != "user3"]


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "101"}, "limit"),
        ({"limit": ["1", "2"]}, "limit"),
        ({"order": "random"}, "order"),
        ({"status": "all"}, "status"),
        ({"email": "no address"}, "email"),
        ({"email": ["a@example.com", "b@example.com"]}, "email"),
        ({"email": "a\x01*"}, "email"),
        ({"cursor": "x"}, "cursor"),
    ],
)
async def test_a_query_that_is_none_is_refused_by_the_name_of_its_parameter(
    office: Office, query: Json, named: str
) -> None:
    answer = await office("GET", **query)
    refused(answer, 400, "invalid_request")
    assert answer.json()["error_description"].startswith(f"{named}: ")


async def test_a_cursor_of_another_list_is_refused(office: Office) -> None:
    cursor = (await office("GET", limit=1)).json()["next_cursor"]
    assert (await office("GET", cursor=cursor)).status_code == 200
    for other in ({"order": "oldest"}, {"email": "a*"}, {"role": "user"}, {"status": "enabled"}):
        refused(await office("GET", cursor=cursor, **other), 400, "invalid_request")


async def test_a_user_is_made_with_a_password_and_shown(office: Office) -> None:
    body = {"email": "Bob@example.com", "password": PASSWORD, "role": "editor"}
    made = await office("POST", body=body)
    assert made.status_code == 201
    user = made.json()
    assert user.keys() == {"id", "email", "password_set", "role", "claims", "status", "created_at"}
    assert user["password_set"] is True
    assert (user["email"], user["role"], user["claims"], user["status"]) == (BOB, "editor", {}, "enabled")
    assert (await office("GET", f"/{user['id']}")).json() == user
    assert await office.api.login(BOB)
    [event] = await office.keyturn.events.list(limit=1, user_id=UUID(user["id"])) or [None]
    assert event is not None
    refused(await office("POST", body=body), 409, "conflict")


async def test_a_user_without_a_password_gets_one_that_is_shown_once(office: Office) -> None:
    made = await office("POST", body={"email": BOB})
    assert made.status_code == 201
    assert made.headers["cache-control"] == "no-store"
    user = made.json()
    password = user.pop("password")
    assert user["password_expires_at"]
    assert (await office("GET", f"/{user['id']}")).json() == user
    assert (await office.api.login(BOB, password))["password_change_required"] is True
    assert password not in await dump(office.keyturn)


@pytest.mark.parametrize(
    "body",
    [
        None,
        {},
        {"email": "no address"},
        {"email": BOB, "password": "short"},
        {"email": BOB, "password": ""},
        {"email": BOB, "role": "Admin"},
        {"email": BOB, "role": 1},
        {"email": BOB, "id": str(uuid4())},
        {"email": BOB, "claims": {"org": "acme"}},
        {"email": BOB, "password_hash": "$argon2id$v=19$m=8,t=1,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAA"},
    ],
)
async def test_a_user_that_can_not_be_is_not_made(office: Office, body: Any) -> None:
    before = await dump(office.keyturn)
    refused(await office("POST", body=body), 400, "invalid_request")
    assert await dump(office.keyturn) == before


async def test_a_user_is_disabled_and_enabled_again(office: Office) -> None:
    tokens = await office.api.login()
    for _ in range(2):
        answer = await office("POST", f"/{office.ada}/disable")
        assert (answer.status_code, answer.json()["status"]) == (200, "disabled")
        assert "disabled_at" in answer.json()
    assert not await office.api.is_live(tokens)
    assert (await office.row(tokens["session_id"])).end_reason == "user_disabled"
    refused(
        await office.api.post("/auth/login", {"email": ADA, "password": PASSWORD}), 401, "invalid_grant", challenge=BARE
    )
    for _ in range(2):
        assert (await office("POST", f"/{office.ada}/enable")).json()["status"] == "enabled"
    assert await office.api.login()


async def test_role_and_claims_are_changed_and_the_live_sessions_with_them(office: Office) -> None:
    tokens = await office.api.login()
    answer = await office("PUT", f"/{office.ada}/role", {"role": "editor"})
    assert (answer.status_code, answer.json()["role"]) == (200, "editor")
    given = {"org": "acme", "plan": {"seats": None}}
    answer = await office("PUT", f"/{office.ada}/claims", {"claims": given})
    assert (answer.status_code, answer.json()["claims"]) == (200, given)
    assert (await office("GET", f"/{office.ada}")).json()["claims"] == given
    session = await office.row(tokens["session_id"])
    assert (session.role, session.claims) == ("editor", '{"org":"acme","plan":{"seats":null}}')
    assert (await office("PUT", f"/{office.ada}/claims", {"claims": None})).json()["claims"] == {}
    assert (await office.row(tokens["session_id"])).claims is None


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("role", {"role": "Admin"}),
        ("role", {"role": "a" * 33}),
        ("role", {"role": "editor", "claims": {}}),
        ("role", {}),
        ("claims", {"claims": {"role": "admin"}}),
        ("claims", {"claims": {"a": "x" * 600}}),
        ("claims", {"claims": []}),
        ("claims", {"org": "acme"}),
        ("claims", {}),
    ],
)
async def test_a_role_or_claims_that_can_not_be_change_nothing(office: Office, path: str, body: Json) -> None:
    before = await dump(office.keyturn)
    refused(await office("PUT", f"/{office.ada}/{path}", body), 400, "invalid_request")
    assert await dump(office.keyturn) == before


async def test_a_reset_answers_the_password_once_and_ends_all_sessions(office: Office) -> None:
    tokens = await office.api.login()
    answer = await office("POST", f"/{office.ada}/password")
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    body = answer.json()
    assert body.keys() == {"password", "expires_in"}
    assert body["expires_in"] == 86400 == LIFETIME.total_seconds()
    assert not await office.api.is_live(tokens)
    assert (await office.row(tokens["session_id"])).end_reason == "password_changed"
    assert (await office.api.login(ADA, body["password"]))["password_change_required"] is True
    with pytest.raises(InvalidGrant):
        await office.keyturn.sign_in.authenticate(ADA, PASSWORD)


async def test_a_user_is_erased_and_a_pseudonym_is_left(office: Office) -> None:
    tokens = await office.api.login()
    answer = await office("DELETE", f"/{office.ada}")
    assert answer.status_code == 200
    pseudonym = UUID(answer.json()["pseudonym"])
    assert pseudonym != office.ada
    assert not await office.api.is_live(tokens)
    refused(await office("GET", f"/{office.ada}"), 404, "not_found")
    refused(await office("DELETE", f"/{office.ada}"), 404, "not_found")
    assert await office.listed() == ["root"]


ACTS: list[tuple[str, str, Any]] = [
    ("GET", "", None),
    ("DELETE", "", None),
    ("POST", "/disable", None),
    ("POST", "/enable", None),
    ("POST", "/password", None),
    ("PUT", "/role", {"role": "editor"}),
    ("PUT", "/claims", {"claims": {"org": "acme"}}),
]
EVERY_ACT = [
    *((method, f"/{{ada}}{path}", body) for method, path, body in ACTS),
    ("GET", "", None),
    ("POST", "", {"email": BOB, "password": PASSWORD}),
]


@pytest.mark.parametrize(("method", "path", "body"), ACTS)
async def test_a_user_that_is_not_there_is_a_404(office: Office, method: str, path: str, body: Any) -> None:
    before = await dump(office.keyturn)
    for named in (str(uuid4()), str(office.ada).upper(), office.ada.hex, "nobody", ADA, ".."):
        refused(await office(method, f"/{named}{path}", body), 404, "not_found")
    assert await dump(office.keyturn) == before


@pytest.mark.parametrize(("method", "path", "body"), EVERY_ACT)
async def test_each_act_is_for_administrators_who_signed_in_a_short_while_ago_and_for_nobody_else(
    office: Office, method: str, path: str, body: Any
) -> None:
    api = office.api
    path = "/admin/users" + path.format(ada=office.ada)

    async def ask(token: str | None, **fields: str) -> httpx2.Response:
        return await api.client.request(method, path, json=body, headers=authorization(token) | fields)

    # Roles that look like the administrators', and a token that claims the role which its row has not.
    tokens = {}
    for role in ("user", "administrator", "xadmin", "admin2", "admin_"):
        email = f"{role}@example.com"
        await api.keyturn.users.create(email, PASSWORD, role, by=SERVICE)
        tokens[role] = await api.login(email)
    ended = await api.login(ROOT)
    await api.post("/auth/logout", {"refresh_token": ended["refresh_token"]})
    stale = await api.login(ROOT)
    max_age = api.keyturn.policies.in_force.reauthentication_age
    async with api.keyturn.db.begin() as tx:
        which = update(Session).where(Session.id == UUID(stale["session_id"]))
        long_ago = (await office.row(stale["session_id"])).created_at - max_age
        await tx.execute(which.values(auth_time=long_ago))
    await api.client.post(
        "/auth/login", json={"email": ROOT, "password": PASSWORD, "mode": "cookie"},
        headers={"Origin": "https://auth.example.com"},
    )  # fmt: skip
    before = await dump(api.keyturn)
    for role, each in tokens.items():
        refused(await ask(each["access_token"]), 403, "access_denied")
        if role == "user":
            refused(await ask(api.minted(each, role="admin")), 403, "access_denied")
    assert (await ask(ended["access_token"])).status_code == 401
    answer = await ask(stale["access_token"])
    assert (answer.status_code, answer.json()["error"]) == (401, "insufficient_user_authentication")
    assert f'max_age="{int(max_age.total_seconds())}"' in answer.headers["www-authenticate"]
    assert (await ask("junk")).status_code == 401
    if method != "GET":
        refused(await ask(None), 403, "cross_site")  # the cookies of the administrator, and no origin
        refused(await ask(None, Origin="https://evil.example"), 403, "cross_site")
    cookies = dict(api.client.cookies)
    api.client.cookies.clear()
    refused(await ask(None), 401, "invalid_token", challenge=BARE)
    assert await dump(api.keyturn) == before
    api.client.cookies.update(cookies)
    assert (await ask(None, Origin="https://auth.example.com")).status_code in {200, 201}


async def test_an_administrator_who_is_demoted_is_refused_from_the_next_request_on(office: Office) -> None:
    other = await office.keyturn.users.create("grace@example.com", PASSWORD, "admin", by=SERVICE)
    demoted = (await office.api.login("grace@example.com"))["access_token"]
    page = await office.api.client.get("/admin/users", params={"limit": 1}, headers=authorization(demoted))
    assert page.status_code == 200
    assert (await office("PUT", f"/{other.id}/role", {"role": "user"})).status_code == 200
    query = {"limit": 1, "cursor": page.json()["next_cursor"]}
    following = await office.api.client.get("/admin/users", params=query, headers=authorization(demoted))
    refused(following, 403, "access_denied")


@pytest.mark.parametrize(
    ("method", "path", "body"), [("POST", "/disable", None), ("PUT", "/role", {"role": "user"}), ("DELETE", "", None)]
)
async def test_the_last_administrator_stays(office: Office, method: str, path: str, body: Any) -> None:
    root = await office.keyturn.users.find(ROOT)
    other = await office.keyturn.users.create("grace@example.com", PASSWORD, "admin", by=SERVICE)
    await office.keyturn.users.disable(other.id, by=SERVICE)  # does not count
    before = await dump(office.keyturn)
    refused(await office(method, f"/{root.id}{path}", body), 409, "conflict")
    assert await dump(office.keyturn) == before
    await office.keyturn.users.enable(other.id, by=SERVICE)
    assert (await office(method, f"/{root.id}{path}", body)).status_code == 200


async def test_each_change_leaves_an_event_that_names_the_administrator(office: Office) -> None:
    root = await office.keyturn.users.find(ROOT)
    for method, path, body in (
        ("PUT", "/role", {"role": "editor"}),
        ("PUT", "/claims", {"claims": {"org": "acme"}}),
        ("POST", "/password", None),
        ("POST", "/disable", None),
        ("POST", "/enable", None),
    ):
        assert (await office(method, f"/{office.ada}{path}", body)).status_code == 200
    events = await office.keyturn.events.list(limit=5, user_id=office.ada)
    kinds = ["role_changed", "claims_changed", "password_reset", "user_disabled", "user_enabled"]
    assert [event["event"] for event in events] == kinds[::-1]
    assert {(event["actor"], event["actor_id"]) for event in events} == {("administrator", str(root.id))}
    assert all(event["request_id"] for event in events)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/auth/register", {"email": BOB, "password": PASSWORD}),
        ("/auth/login", {"email": ADA, "password": PASSWORD}),
        ("/auth/password", {"current_password": PASSWORD, "new_password": NEW_PASSWORD}),
    ],
)
async def test_users_change_neither_role_nor_claims_nor_state(database_url: str, path: str, body: Json) -> None:
    async with serving(database_url, registration="true") as api:
        await api.keyturn.users.create(ADA, PASSWORD, by=SERVICE)
        token = (await api.login())["access_token"]
        before = await dump(api.keyturn)
        for more in (
            {"role": "admin"},
            {"claims": {"org": "acme"}},
            {"status": "enabled"},
            {"created_at": "2020-01-01T00:00:00Z"},
            {"id": str(uuid4())},
            {"user_id": str(uuid4())},
            {"disabled_at": None},
            {"password_expires_at": None},
        ):
            refused(await api.post(path, body | more, token), 400, "invalid_request")
        assert await dump(api.keyturn) == before
