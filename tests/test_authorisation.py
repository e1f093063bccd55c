"""Each endpoint answers each kind of caller as the table in docs/authorisation.md says, and nobody gets more.

`python -m tests.test_authorisation` writes the table into the page.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import update

from app.actors import SERVICE
from app.keyturn import opened, running
from app.storage.tables import Session, User, uuid7
from tests.authorisation import (
    COLUMNS,
    ENDPOINTS,
    ERRORS,
    ROWS,
    SAMPLES,
    USES_UP,
    Caller,
    World,
    a_world,
    legend,
    new_database,
    table,
)
from tests.conftest import PASSWORD, settings_of

PAGE = Path(__file__).parent.parent / "docs" / "authorisation.md"
PARTS = {"legend": legend, "table": table}
SLOW = ("Prefer", "return=representation")
"""A header field that no plain request has: with it, a request takes FastAPI's door."""
BY_ADMINISTRATORS = sorted(name for name in ENDPOINTS if " /admin/" in name)


@pytest.fixture(scope="module", params=["postgres", "sqlite"])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return new_database(request.param, request, tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
async def world(database: str, logs: Path) -> AsyncIterator[World]:
    """One service for all tests of a database: each cell has users of its own."""
    async with a_world(database, logs) as world:
        yield world


def test_every_endpoint_has_a_row_and_a_request() -> None:
    assert ENDPOINTS.keys() - ROWS.keys() == set(), "tests/authorisation.py: add a row for the new endpoint"
    assert ENDPOINTS.keys() - SAMPLES.keys() == set(), "tests/authorisation.py: add a request for the new endpoint"


def test_everything_under_admin_is_for_administrators_alone_and_says_so_in_its_row() -> None:
    for name in ROWS:
        cells = ROWS[name]
        if " /admin/" in name:
            assert [cells[c] for c in ("none", "other", "user", "ended", "stale", "disabled", "demoted")] == [
                "401", "403", "403", "401 over", "401 fresh", "401 over", "403"
            ], name  # fmt: skip
        if not name.startswith("GET ") and cells["admin"] == "ok" and cells["none"] != "ok":
            assert cells["cookie"] == "403 origin", name


@pytest.mark.parametrize("column", COLUMNS)
async def test_each_caller_gets_what_the_table_says_at_each_endpoint_by_both_doors(world: World, column: str) -> None:
    wrong: list[str] = []
    lasting = await world.caller(column)
    for name, endpoint in ENDPOINTS.items():
        for door in ((), (SLOW,)):
            expected = ROWS[name][column]
            caller = await world.caller(column) if name in USES_UP else lasting
            path, body = await SAMPLES[name](world, caller)
            ids = about(caller, path)
            before = None if expected == "ok" else await world.state(*ids)
            headers = [*caller.headers, *door]
            answer = await world.client.request(endpoint.method, path, json=body, headers=headers)
            said = difference(expected, endpoint.status, answer)
            if said is None and expected != "ok" and await world.state(*ids) != before:
                said = "refused, and yet something changed"
            if said is None and endpoint.method == "GET":
                head = await world.client.head(path, headers=headers)
                said = None if head.status_code == answer.status_code else f"HEAD: {head.status_code}"
            if said is not None:
                wrong.append(f"{name}, {'slow' if door else 'fast'} door: {expected} expected, but {said}")
            if name == "POST /admin/sign-everyone-out" and expected == "ok":
                lasting = await world.caller(column)
    assert not wrong, "\n".join(wrong)


def about(caller: Caller, path: str) -> list[UUID]:
    """The ids that a request is about: the caller's, and those in the path."""
    return [caller.user_id, *(UUID(found) for found in re.findall(_ID, path))]


_ID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"


def difference(expected: str, good: int, answer: httpx2.Response) -> str | None:
    """The part of an answer that the cell of the table does not say; None if the answer is as it should be."""
    shown = f"{answer.status_code} {answer.text[:200]}"
    if expected == "ok":
        return None if answer.status_code == good else shown
    status, error = ERRORS[expected]
    if answer.status_code != status or answer.json()["error"] != error:
        return shown
    challenge = answer.headers.get("www-authenticate", "")
    match expected:
        case "401":
            # A caller without a credential is not told of an error (RFC 6750 section 3.1), and has no reason to learn.
            return None if challenge == "Bearer" and "reason" not in answer.json() else f"{shown} {challenge}"
        case "401 over" | "401 refused":
            named = "error=" in challenge or expected == "401 refused"
            signed_in = expected == "401 over" or "reason" in answer.json() or "E-mail" in answer.text
            return None if named and signed_in else f"{shown} {challenge}"
        case "401 fresh":
            return None if 'max_age="900"' in challenge else f"{shown} {challenge}"
    return None


async def with_role(world: World, role: str) -> Caller:
    """A caller with a role that no act of Keyturn would give."""
    caller = await world.caller("user")
    async with world.keyturn.db.begin() as tx:
        await tx.execute(update(User).where(User.id == caller.user_id).values(role=role))
        await tx.execute(update(Session).where(Session.user_id == caller.user_id).values(role=role))
    return caller


async def test_a_role_that_only_resembles_an_administrator_s_opens_nothing(world: World) -> None:
    for role in (
        "Admin",
        "ADMIN",
        "admin ",
        " admin",
        "admin\t",
        "superadmin",
        "admin2",
        "admi",
        "\u0430dmin",
        "a",
        "",
    ):
        caller = await with_role(world, role)
        for name in BY_ADMINISTRATORS:
            answer = await world.send(name, caller)
            assert (answer.status_code, answer.json()["error"]) == (403, "access_denied"), (role, name)
    assert (await world.send("GET /admin/events", await with_role(world, "admin"))).status_code == 200


async def test_after_a_demotion_the_next_request_of_a_list_is_refused(world: World) -> None:
    caller = await world.caller("admin")
    demoted = asyncio.Event()
    after: list[int] = []

    async def read_on() -> None:
        cursor: dict[str, Any] = {}
        while len(after) < 5:
            known = demoted.is_set()
            answer = await world.client.get(
                "/admin/events", params={"limit": 1, **cursor}, headers=dict(caller.headers)
            )
            if known:
                after.append(answer.status_code)
            if answer.status_code == 200 and "next_cursor" in answer.json():
                cursor = {"cursor": answer.json()["next_cursor"]}

    async with asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(read_on())
        await asyncio.sleep(0.3)
        await world.keyturn.users.set_role(caller.user_id, "user", by=SERVICE)
        demoted.set()
    assert set(after) == {403}


async def test_the_last_administrator_can_neither_leave_nor_be_made_to_leave(world: World) -> None:
    caller = await world.caller("admin")
    async with world.keyturn.db.begin() as tx:
        await tx.execute(update(User).where(User.id != caller.user_id).values(role="user"))
    user = f"/admin/users/{caller.user_id}"
    before = await world.state(caller.user_id)
    for method, path, body in (
        ("POST", f"{user}/disable", None),
        ("PUT", f"{user}/role", {"role": "user"}),
        ("DELETE", user, None),
    ):
        answer = await world.client.request(method, path, json=body, headers=caller.headers)
        assert (answer.status_code, answer.json()["error"]) == (409, "conflict"), (method, path, answer.text)
    assert await world.state(caller.user_id) == before

    # Two who demote each other at once: one of them stays.
    for _ in range(5):
        other = await world.caller("admin")
        pair = (caller, other)
        answers = await asyncio.gather(
            *(
                world.client.put(f"/admin/users/{whom.user_id}/role", json={"role": "user"}, headers=who.headers)
                for who, whom in (pair, pair[::-1])
            )
        )
        statuses = sorted(answer.status_code for answer in answers)
        assert statuses in ([200, 403], [200, 409]), statuses
        roles = {each: (await world.keyturn.users.find(each.user_id)).role for each in pair}
        [caller] = [each for each in pair if roles[each] == "admin"]


async def test_a_session_of_another_user_is_answered_as_a_missing_one_to_the_byte(world: World) -> None:
    names = [name for name in ENDPOINTS if name.partition(" ")[2].startswith("/auth/sessions/{session_id}")]
    owner, stranger = await world.caller("user"), await world.caller("user")
    for name in names:
        method, _, path = name.partition(" ")
        _, body = await SAMPLES[name](world, owner)
        said = set()
        before = await world.state(owner.user_id)
        for wanted in (
            owner.session_id,
            uuid7(),
            UUID(int=0),
            "x",
            f"{owner.session_id}0",
            str(owner.session_id).upper(),
        ):
            answer = await world.client.request(
                method, path.format(session_id=wanted), json=body, headers=stranger.headers
            )
            kept = {k: v for k, v in answer.headers.items() if k not in {"date", "x-request-id"}}
            said.add((answer.status_code, answer.text, str(sorted(kept.items()))))
        assert len(said) == 1, (name, said)
        assert said.pop()[0] == 404, name
        assert await world.state(owner.user_id) == before, name


async def test_a_token_for_another_audience_opens_nothing(world: World) -> None:
    email, user_id = await world.a_user("admin")
    settings = settings_of(world.database_url, None, audience="https://other.example.com")
    async with opened(settings) as other, running(other):
        proof = await other.sign_in.authenticate(email, PASSWORD)
        tokens = await other.starting.start(proof, by=SERVICE)
        await other.reading.verify(tokens.access_token)
    headers = [("Authorization", f"Bearer {tokens.access_token}")]
    caller = Caller("user", email, user_id, tokens.session_id, headers, tokens.refresh_token)
    needing = [name for name in ENDPOINTS if ROWS[name]["none"] == "401" and name != "POST /auth/logout"]
    assert len(needing) > 4
    for name in needing:
        answer = await world.send(name, caller)
        assert (answer.status_code, answer.json()["error"]) == (401, "invalid_token"), name
        assert "reason" not in answer.json(), name


async def test_no_credential_in_another_place_counts(world: World) -> None:
    caller = await world.caller("admin")
    [(_, bearer)] = caller.headers
    token = bearer.removeprefix("Bearer ")
    elsewhere = Caller("none", caller.email, caller.user_id, caller.session_id, [], None)
    for name in [name for name in ENDPOINTS if ROWS[name]["none"] == "401"]:
        path, body = await SAMPLES[name](world, elsewhere)
        method = name.partition(" ")[0]
        for target, headers in (
            (f"{path}?access_token={token}", {}),
            (path, {"X-Access-Token": token}),
            (path, {"Authorization": f"Token {token}"}),
            (path, {"Cookie": f"access_token={token}; keyturn-access={token}"}),
        ):
            answer = await world.client.request(method, target, json=body, headers=headers)
            # Verify refuses a query whose name it does not know, before it looks at any token.
            wanted = 400 if "?" in target and path == "/auth/verify" else 401
            assert answer.status_code == wanted, (name, target.partition("?")[2][:12], list(headers))


def place(part: str) -> re.Pattern[str]:
    return re.compile(rf"(?<=<!-- {part} -->\n).*(?=<!-- /{part} -->)", re.DOTALL)


@pytest.mark.parametrize("part", PARTS)
def test_the_page_shows_the_table_that_is_tested(part: str) -> None:
    found = place(part).search(PAGE.read_text(encoding="utf-8"))
    assert found is not None
    assert found.group() == PARTS[part](), "python -m tests.test_authorisation writes it again"


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    for part, made in PARTS.items():
        page = place(part).sub(lambda _, made=made: made(), page)  # type: ignore[misc]  # keeps this round's value
    PAGE.write_text(page, encoding="utf-8")
