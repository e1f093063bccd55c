"""The table of policies: changed by the command and by administrators, and followed by every instance."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any

import pytest
from sqlalchemy import insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.actors import SERVICE, Actor
from app.errors import InvalidGrant, InvalidRequest, InvalidToken, NotFound, TemporarilyUnavailable
from app.events.reading import Events
from app.keyturn import Keyturn
from app.policies import Policies, Policy
from app.sessions.filters import Filter
from app.storage.copies import READ_BY_ALL
from app.storage.tables import Policy as Row
from app.storage.tables import Pulse
from tests.api import ADA, Api, Serve, refused, serving
from tests.command_line import Command, on_sqlite
from tests.command_line import keyturn as command  # noqa: F401  # a fixture
from tests.conftest import PASSWORD, Opener, a_user, time_passes
from tests.cookies import is_device
from tests.test_keys import until

SECOND = timedelta(seconds=1)
ROOT = Actor("command", "root")


@pytest.fixture
def serve(database_url: str) -> Serve:
    return lambda **settings: serving(database_url, **settings)


async def version(keyturn: Keyturn) -> int:
    async with keyturn.db.look() as connection:
        found: int | None = await connection.scalar(select(Pulse.policies))
    assert found is not None
    return found


async def changes(keyturn: Keyturn) -> list[tuple[str, str | None, str | None]]:
    found = await Events(keyturn.db).list(limit=100)
    return [(e["actor"], e["actor_id"], e["detail"]) for e in reversed(found) if e["event"] == "policy_changed"]


async def change(keyturn: Keyturn, **values: Any) -> None:
    """Changes the policy and reads it, as the pulse does within a second."""
    seconds = {n: v * SECOND if type(v) is int and n != "session_limit" else v for n, v in values.items()}
    await keyturn.policies.change("global", seconds, by=ROOT)
    await keyturn.policies.load()


# -- the table


async def test_a_change_writes_the_row_an_event_for_each_member_and_a_new_version(keyturn: Keyturn) -> None:
    before = await version(keyturn)
    values = {"access_lifetime": 300 * SECOND, "remember": False, "scopes": frozenset()}
    done = await keyturn.policies.change("global", values, by=ROOT)
    assert done.values == values
    assert done.in_force.access_lifetime == 300 * SECOND
    assert await changes(keyturn) == [
        ("command", "root", "access_lifetime=300"),
        ("command", "root", "remember=false"),
        ("command", "root", "scopes="),
    ]
    assert await version(keyturn) != before
    (row,) = await keyturn.policies.rows()
    assert row == done
    assert row.changed_at is not None
    # Members that the change does not name stay. None: the value of the settings.
    later = await keyturn.policies.change("global", {"remember": None, "retry_window": 30 * SECOND}, by=ROOT)
    assert set(later.values) == {"access_lifetime", "scopes", "retry_window"}
    assert (await changes(keyturn))[3:] == [
        ("command", "root", "retry_window=30"),
        ("command", "root", "remember unset"),
    ]


async def test_a_change_to_what_is_there_or_one_that_is_refused_leaves_nothing(keyturn: Keyturn) -> None:
    first = await keyturn.policies.change("global", {"access_lifetime": 300 * SECOND}, by=ROOT)
    before = await version(keyturn), await changes(keyturn)
    assert await keyturn.policies.change("global", {"access_lifetime": 300 * SECOND}, by=ROOT) == first
    with pytest.raises(InvalidRequest, match="laxer"):
        await keyturn.policies.change("global", {"idle_lifetime": 600 * SECOND, "retry_window": 61 * SECOND}, by=ROOT)
    for scope in ("client", "", "GLOBAL"):
        with pytest.raises(NotFound):
            await keyturn.policies.change(scope, {"remember": False}, by=ROOT)
        with pytest.raises(NotFound):
            await keyturn.policies.find(scope)
    assert (await version(keyturn), await changes(keyturn)) == before


async def test_of_two_changes_at_once_that_break_a_rule_together_one_is_refused(open_keyturn: Opener) -> None:
    async with open_keyturn() as one, open_keyturn() as two:
        for _ in range(5):
            await one.policies.change("global", {"access_lifetime": 900 * SECOND, "retry_window": 20 * SECOND}, by=ROOT)
            outcomes = await asyncio.gather(
                one.policies.change("global", {"access_lifetime": 60 * SECOND}, by=ROOT),
                two.policies.change("global", {"retry_window": 60 * SECOND}, by=ROOT),
                return_exceptions=True,
            )
            assert sorted(isinstance(each, InvalidRequest) for each in outcomes) == [False, True], outcomes
            assert not (await one.policies.find("global")).cut


async def test_the_detail_of_an_event_is_cut_to_what_its_column_takes(open_keyturn: Opener) -> None:
    scopes = " ".join(f"scope-number-{n}" for n in range(10))
    async with open_keyturn(scopes=f"{scopes} more") as keyturn:
        await keyturn.policies.change("global", {"scopes": frozenset(scopes.split())}, by=ROOT)
        ((_, _, detail),) = await changes(keyturn)
        assert detail is not None
        assert len(detail) == 64
        assert detail.startswith("scopes=scope-number-0 ")
        assert (await keyturn.policies.find("global")).in_force.scopes == frozenset(scopes.split())


# -- the pulse


async def test_a_change_is_in_force_on_each_instance_within_a_second(open_keyturn: Opener) -> None:
    async with open_keyturn() as one, open_keyturn() as two:
        for lifetime in (300, 600, 240):
            await one.policies.change("global", {"access_lifetime": lifetime * SECOND}, by=ROOT)
            for each in (one, two):
                await until(lambda: each.policies.in_force.access_lifetime == lifetime * SECOND, 1.5)  # noqa: B023  # called at once


@asynccontextmanager
async def away() -> AsyncIterator[AsyncConnection]:
    raise TemporarilyUnavailable("away")
    yield


async def test_an_instance_that_missed_the_pulse_has_the_policy_as_soon_as_the_database_is_back(
    open_keyturn: Opener,
) -> None:
    async with open_keyturn() as one, open_keyturn() as two:
        await until(two.revocations.fence.database_answers)
        working, two.db.watch_connection = two.db.watch_connection, away  # type: ignore[method-assign]  # an outage
        await until(lambda: not two.revocations.fence.database_answers())
        for lifetime in (300, 240):  # two changes, of which it sees the second alone
            await one.policies.change("global", {"access_lifetime": lifetime * SECOND}, by=ROOT)
        await until(lambda: one.policies.in_force.access_lifetime == 240 * SECOND)
        assert two.policies.in_force.access_lifetime == 900 * SECOND
        two.db.watch_connection = working  # type: ignore[method-assign]  # the outage is over
        await until(lambda: two.policies.in_force.access_lifetime == 240 * SECOND, READ_BY_ALL.total_seconds())


class Followed(Policies):
    """Counts the loads of the table, and lets them fail."""

    loads = 0
    fails: Exception | None = None

    async def load(self) -> None:
        self.loads += 1
        if self.fails:
            raise self.fails
        await super().load()


async def test_the_table_is_read_where_its_version_changed_and_now_and_then(keyturn: Keyturn) -> None:
    policies = Followed(keyturn.db, Policy.of(keyturn.settings))
    await policies.load()
    known = await version(keyturn)
    for _ in range(3):
        policies.follow(known, began=monotonic())
        await asyncio.sleep(0.01)
    policies.follow(known, began=monotonic() + 299)
    await asyncio.sleep(0.01)
    assert policies.loads == 1
    policies.follow(known, began=monotonic() + 301)  # a second line of defence
    await until(lambda: policies.loads == 2)
    await keyturn.policies.change("global", {"remember": False}, by=ROOT)
    policies.follow(await version(keyturn), began=monotonic())
    await until(lambda: not policies.in_force.remember)
    # An earlier version is followed too: the database came from a backup.
    policies.follow(known, began=monotonic())
    await until(lambda: policies.loads == 4)


async def test_an_instance_that_knows_that_its_policy_is_old_and_can_not_read_the_new_one_goes_by_none(
    keyturn: Keyturn, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[tuple[str, str]] = []
    monkeypatch.setattr("app.storage.copies._log.warning", lambda event, cause: lines.append((event, cause)))
    policies = Followed(keyturn.db, Policy.of(keyturn.settings))
    await policies.load()
    await keyturn.policies.change("global", {"access_lifetime": 300 * SECOND}, by=ROOT)
    newer = await version(keyturn)
    policies.fails = RuntimeError("the table can't be read")
    for n in range(3):
        policies.follow(newer, began=monotonic())
        await until(lambda: policies.loads == 2 + n)  # noqa: B023  # called at once
        await asyncio.sleep(0.01)
    assert policies.in_force.access_lifetime == 900 * SECOND
    assert lines == [("policies_not_read", "RuntimeError: the table can't be read")]
    policies.follow(newer, began=monotonic() + READ_BY_ALL.total_seconds() + 0.1)
    with pytest.raises(TemporarilyUnavailable):
        _ = policies.in_force
    policies.fails = None
    await asyncio.sleep(0.01)
    policies.follow(newer, began=monotonic())
    await until(lambda: policies._in_force is not None)
    assert policies.in_force.access_lifetime == 300 * SECOND


# -- the command


def test_the_command_sets_shows_and_unsets_and_says_where_each_value_comes_from(command: Command) -> None:  # noqa: F811
    command.environment["KEYTURN_SESSION_LIMIT"] = "9"
    done = command.ok("policies", "set", "global", "access_lifetime=600", "session_limit=3", "remember=false")
    assert done.out.splitlines() == [
        "global: access_lifetime is 600 (policy)",
        "global: session_limit is 3 (policy)",
        "global: remember is false (policy)",
    ]
    shown = command.ok("policies", "show", "global", "--json").json
    assert shown["values"] == {"access_lifetime": 600, "session_limit": 3, "remember": False}
    assert (shown["in_force"]["access_lifetime"], shown["most"]["access_lifetime"]) == (600, 900)
    assert shown["in_force"]["scopes"] == ""
    assert {n: s for n, s in shown["sources"].items() if s != "default"} == {
        "access_lifetime": "policy",
        "session_limit": "policy",
        "remember": "policy",
    }
    assert command.ok("policies", "list", "--json").json == [shown]
    assert "access_lifetime=600 session_limit=3 remember=false" in command.ok("policies", "list").out
    table = command.ok("policies", "show", "global").out.splitlines()
    assert table[1].split() == ["access_lifetime", "600", "policy", "600", "900"]
    command.ok("policies", "unset", "global", "session_limit", "remember")
    shown = command.ok("policies", "show", "global", "--json").json
    assert shown["values"] == {"access_lifetime": 600}
    assert (shown["in_force"]["session_limit"], shown["sources"]["session_limit"]) == (9, "settings")
    events = command.ok("events", "list", "--json").json
    assert [e["detail"] for e in events if e["event"] == "policy_changed"][:2] == [
        "remember unset",
        "session_limit unset",
    ]


@on_sqlite
def test_the_command_refuses_what_is_no_value_no_member_no_scope_or_laxer(command: Command) -> None:  # noqa: F811
    said = command.refused(1, "policies", "set", "global", "access_lifetime=901")
    assert "access_lifetime: must be 2 to 900 seconds (the setting), and not above idle_lifetime" in said
    assert "There is one: global" in command.refused(1, "policies", "set", "shop", "remember=false")
    assert "There is one: global" in command.refused(1, "policies", "show", "shop")
    for words, named in (
        (("set", "global", "access_lifetime=hunter2"), "access_lifetime: must be a whole number of seconds"),
        (("set", "global", "hunter2=1"), "must be NAME=VALUE"),
        (("set", "global", "remember"), "must be NAME=VALUE"),
        (("unset", "global", "hunter-2"), "invalid choice"),
        (("set", "global"), "required"),
    ):
        said = command.refused(2, "policies", *words)
        assert named in said
        assert "hunter" not in said.replace("hunter-2", "")


def test_the_doctor_says_where_each_value_comes_from_and_which_are_laxer_than_the_settings(command: Command) -> None:  # noqa: F811
    command.inside(lambda keyturn: asyncio.sleep(0))  # the first start makes the keys
    command.environment["KEYTURN_REMEMBER"] = "false"
    command.ok("policies", "set", "global", "access_lifetime=600")
    lines = command("doctor").out.splitlines()
    assert "ok  global policy, from its row: access_lifetime 600" in lines
    assert "ok  global policy, from the settings: remember false" in lines
    (defaults,) = [line for line in lines if line.startswith("ok  global policy, from Keyturn's defaults: ")]
    assert "session_limit any" in defaults
    command.environment["KEYTURN_ACCESS_TOKEN_LIFETIME"] = "300"
    lines = command("doctor").out.splitlines()
    (amiss,) = [line for line in lines if "access_lifetime:" in line]
    assert amiss.startswith(
        "!!  global policy: access_lifetime: it is set laxer than the settings allow, and counts as 300"
    )
    note = command.ok("policies", "show", "global").err
    assert note.startswith("access_lifetime: the row is laxer than the settings")


# -- /admin


async def an_administrator(api: Api) -> str:
    await api.keyturn.users.create("root@example.com", PASSWORD, "admin", by=SERVICE)
    return str((await api.login("root@example.com"))["access_token"])


async def put(api: Api, body: Any, bearer: str | None, scope: str = "global") -> Any:
    headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
    return await api.client.put(f"/admin/policies/{scope}", json=body, headers=headers)


async def test_an_administrator_sets_the_whole_policy_and_reads_it(serve: Serve) -> None:
    async with serve(scopes="read write") as api:
        root = await an_administrator(api)
        answer = await put(api, {"access_lifetime": 600, "mode": "split", "scopes": "read", "remember": None}, root)
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert body["values"] == {"access_lifetime": 600, "mode": "split", "scopes": "read"}
        assert (body["in_force"]["mode"], body["most"]["mode"]) == ("split", "bearer")
        assert (body["sources"]["scopes"], body["sources"]["remember"]) == ("policy", "default")
        listed = await api.get("/admin/policies", root)
        assert listed.json() == {"items": [body]}
        # The row is whole: what the next one leaves out has the value of the settings again.
        again = (await put(api, {"retry_window": 30}, root)).json()
        assert again["values"] == {"retry_window": 30}
        assert again["in_force"]["access_lifetime"] == 900
        assert {actor for actor, _, _ in await changes(api.keyturn)} == {"administrator"}
        assert json.loads((await api.client.get("/openapi.json")).text)["paths"]["/admin/policies/{scope}"]["put"]


@pytest.mark.parametrize(
    ("body", "member"),
    [
        ({"access_lifetime": 901}, "access_lifetime"),
        ({"access_lifetime": "600"}, "access_lifetime"),
        ({"access_lifetime": 600.5}, "access_lifetime"),
        ({"access_lifetime": True}, "access_lifetime"),
        ({"access_lifetime": 10**30}, "access_lifetime"),
        ({"mode": "Cookie"}, "mode"),
        ({"remember": "false"}, "remember"),
        ({"scopes": "other"}, "scopes"),
        ({"scopes": '"'}, "scopes"),
        ({"scopes": ["read"]}, "scopes"),
        ({"scope": "global"}, "scope"),
        ({"changed_at": None}, "changed_at"),
    ],
)
@on_sqlite
async def test_a_policy_that_is_laxer_or_malformed_is_refused_and_named(
    serve: Serve, body: dict[str, Any], member: str
) -> None:
    async with serve(scopes="read write") as api:
        root = await an_administrator(api)
        answer = await put(api, body, root)
        refused(answer, 400, "invalid_request")
        assert answer.json()["error_description"].startswith(f"{member}: ")
        assert await changes(api.keyturn) == []


async def test_only_an_administrator_with_a_fresh_sign_in_reads_or_changes_policies(serve: Serve) -> None:
    async with serve() as api:
        await api.keyturn.users.create(ADA, PASSWORD, by=SERVICE)
        user, root = (await api.login())["access_token"], await an_administrator(api)
        for bearer, status, error in ((None, 401, "invalid_token"), (user, 403, "access_denied")):
            for answer in (await api.get("/admin/policies", bearer), await put(api, {}, bearer)):
                assert (answer.status_code, answer.json()["error"]) == (status, error)
        for scope in ("shop", "GLOBAL", "global%20"):
            assert (await put(api, {}, root, scope)).status_code == 404
        async with api.keyturn.db.begin() as tx:
            column = "auth_time = auth_time - " + (
                "interval '901 seconds'" if api.keyturn.db.is_postgres else "901000000"
            )
            await tx.execute(text(f"UPDATE sessions SET {column}"))
        for answer in (await api.get("/admin/policies", root), await put(api, {}, root)):
            assert answer.json()["error"] == "insufficient_user_authentication"
            assert 'max_age="900"' in answer.headers["www-authenticate"]
        assert await changes(api.keyturn) == []


# -- every reader goes by the policy in force


async def test_a_shorter_lifetime_holds_at_once_for_a_session_that_lives_and_a_longer_one_lengthens_nothing(
    keyturn: Keyturn,
) -> None:
    proof = await a_user(keyturn)
    old = await keyturn.starting.start(proof, by=SERVICE)
    await change(keyturn, access_lifetime=300, idle_lifetime=3600, absolute_lifetime=7200)
    short = await keyturn.starting.start(proof, by=SERVICE)
    for tokens in (await keyturn.rotation.refresh(old.refresh_token, by=SERVICE), short):
        told = tokens.body()
        assert (told["expires_in"], told["refresh_expires_in"]) == (300, 3600)
        assert 7190 <= int(told["session_expires_in"]) <= 7200
    await change(keyturn, access_lifetime=None, idle_lifetime=None, absolute_lifetime=None)
    later = (await keyturn.rotation.refresh(short.refresh_token, by=SERVICE)).body()
    assert (later["expires_in"], later["refresh_expires_in"]) == (300, 3600)
    assert 7190 <= int(later["session_expires_in"]) <= 7200


@pytest.mark.parametrize(
    ("policy", "passed", "reason"),
    [
        ({"idle_lifetime": 900}, 901, "idle_timeout"),
        ({"idle_lifetime": 900, "absolute_lifetime": 1800}, 1801, "absolute_timeout"),
    ],
)
async def test_a_session_that_a_shorter_policy_ends_is_over_for_everyone_who_reads_it(
    keyturn: Keyturn, policy: dict[str, int], passed: int, reason: str
) -> None:
    proof = await a_user(keyturn)
    tokens = await keyturn.starting.start(proof, by=SERVICE)
    await time_passes(keyturn, passed * SECOND)
    if reason == "absolute_timeout":  # refreshed a moment ago, and so not idle
        tokens = await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE)
    await keyturn.reading.authorise(tokens.access_token)
    await change(keyturn, **policy)
    assert await keyturn.reading.living([tokens.session_id]) == set()
    assert (await keyturn.reading.list(Filter(user_id=proof.user_id), limit=9)).sessions == []
    assert (await keyturn.reading.find(tokens.session_id)).over() == reason
    for _ in range(2):
        with pytest.raises(InvalidGrant) as caught:
            await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE)
        assert caught.value.reason == reason
    assert await keyturn.ending.end({tokens.session_id}, "revoked_by_admin", by=SERVICE) == 0
    assert (await keyturn.reading.find(tokens.session_id)).end_reason == reason


async def test_a_shorter_retry_window_holds_at_once_and_a_longer_one_reopens_none(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    one, two = [await keyturn.starting.start(proof, by=SERVICE) for _ in range(2)]
    new = await keyturn.rotation.refresh(one.refresh_token, by=SERVICE)
    await time_passes(keyturn, 10 * SECOND)
    assert (await keyturn.rotation.refresh(one.refresh_token, by=SERVICE)).refresh_token == new.refresh_token
    await change(keyturn, retry_window=5)
    with pytest.raises(InvalidGrant) as caught:
        await keyturn.rotation.refresh(one.refresh_token, by=SERVICE)
    assert caught.value.reason == "reuse_detected"
    strict = await keyturn.starting.start(proof, by=SERVICE)
    await change(keyturn, retry_window=60)
    for tokens, reason in ((two, None), (strict, "reuse_detected")):
        await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE)
        await time_passes(keyturn, 10 * SECOND)
        if reason is None:
            await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE)
        else:
            with pytest.raises(InvalidGrant) as caught:
                await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE)
            assert caught.value.reason == reason


def of_tokens(answer: Any) -> list[str]:
    """The cookies of an answer that hold tokens, without the two about the device."""
    return [each for each in answer.headers.get_list("set-cookie") if not is_device(each.partition("=")[0])]


async def test_a_sign_in_that_names_no_mode_gets_the_one_of_the_policy_and_so_for_remember(serve: Serve) -> None:
    async with serve() as api:
        await api.keyturn.users.create(ADA, PASSWORD, by=SERVICE)
        login = {"email": ADA, "password": PASSWORD}
        own = {"Origin": "https://auth.example.com"}
        answer = await api.client.post("/auth/login", json=login, headers=own)
        assert "refresh_token" in answer.json()
        await change(api.keyturn, mode="cookie", remember=False)
        answer = await api.client.post("/auth/login", json=login, headers=own)
        assert answer.json().keys() & {"access_token", "refresh_token"} == set()
        cookies = of_tokens(answer)
        assert len(cookies) == 2
        assert not any("Max-Age" in each for each in cookies)
        refused(await api.client.post("/auth/login", json=login), 403, "cross_site")
        # A sign-in that says both is not bound by either: they are defaults.
        said = {"mode": "split", "remember": True}
        answer = await api.client.post("/auth/login", json=login | said, headers=own)
        (cookie,) = of_tokens(answer)
        assert "Max-Age" in cookie


async def test_the_age_of_a_sign_in_for_administration_is_the_policy_s(serve: Serve) -> None:
    async with serve() as api:
        root = await an_administrator(api)
        async with api.keyturn.db.begin() as tx:
            by = "interval '100 seconds'" if api.keyturn.db.is_postgres else "100000000"
            await tx.execute(text(f"UPDATE sessions SET auth_time = auth_time - {by}"))
        assert (await api.get("/admin/policies", root)).status_code == 200
        await change(api.keyturn, reauthentication_age=90)
        answer = await api.get("/admin/policies", root)
        assert 'max_age="90"' in answer.headers["www-authenticate"]
        await change(api.keyturn, reauthentication_age=None)
        assert (await api.get("/admin/policies", root)).status_code == 200


async def test_a_row_of_a_later_release_s_scope_is_listed_and_not_in_force(keyturn: Keyturn) -> None:
    async with keyturn.db.begin() as tx:
        await tx.execute(
            insert(Row).values(
                scope="client:shop",
                remember=False,
                changed_at=(await keyturn.policies.rows())[0].changed_at or await now(keyturn),
            )
        )
        await tx.execute(update(Pulse).values(policies=7))
    await keyturn.policies.load()
    assert keyturn.policies.in_force == Policy.of(keyturn.settings)
    assert [row.scope for row in await keyturn.policies.rows()] == ["global", "client:shop"]


async def now(keyturn: Keyturn) -> Any:
    async with keyturn.db.look() as connection:
        return await connection.scalar(select(keyturn.db.now()))


async def test_a_retry_gets_the_same_jittered_token_and_its_deadline_is_the_one_that_is_told(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    await change(keyturn, access_jitter=300)
    told = set()
    for _ in range(6):
        tokens = await keyturn.starting.start(proof, by=SERVICE)
        new, again = [await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE) for _ in range(2)]
        assert again.access_token == new.access_token
        for each in (tokens, new):
            claims = (await keyturn.reading.verify(each.access_token)).claims
            assert claims["exp"] - claims["iat"] == each.body()["expires_in"]
            told.add(int(each.body()["expires_in"]))
    assert len(told) > 3
    assert min(told) >= 600
    assert max(told) <= 900


# -- both directions, for what was given before the change


async def test_a_shorter_policy_holds_for_access_tokens_that_were_given_before_and_a_longer_one_gives_none_more_time(
    keyturn: Keyturn,
) -> None:
    proof = await a_user(keyturn)
    old = await keyturn.starting.start(proof, by=SERVICE)
    await change(keyturn, access_lifetime=60, retry_window=20)
    new = await keyturn.starting.start(proof, by=SERVICE)
    for tokens in (old, new):
        issued = (await keyturn.reading.verify(tokens.access_token)).claims["iat"]
        for seconds, lives in ((64, True), (66, False)):  # with the leeway of 5 seconds, as for `exp`
            keyturn.db.clock = lambda: datetime.fromtimestamp(issued + seconds, UTC)  # type: ignore[method-assign]  # noqa: B023  # called at once
            if lives:
                await keyturn.reading.verify(tokens.access_token)
            else:
                with pytest.raises(InvalidToken) as caught:
                    await keyturn.reading.verify(tokens.access_token)
                assert caught.value.reason == "token_expired"
        del keyturn.db.clock
    keyturn.db.clock = lambda: datetime.fromtimestamp(issued + 66, UTC)  # type: ignore[method-assign]
    await change(keyturn, access_lifetime=None, retry_window=None)
    await keyturn.reading.verify(old.access_token)
    with pytest.raises(InvalidToken):
        await keyturn.reading.verify(new.access_token)


async def test_the_last_access_token_of_a_session_that_a_shorter_policy_ends_is_refused_too(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    tokens = await keyturn.starting.start(proof, by=SERVICE)
    await change(keyturn, access_lifetime=60, retry_window=0, idle_lifetime=60, absolute_lifetime=60)
    at = datetime.fromtimestamp((tokens.session_id.int >> 80) / 1000, UTC)  # the moment in the session's id
    for seconds, lives in ((64, True), (66, False)):
        keyturn.db.clock = lambda: at + seconds * SECOND  # type: ignore[method-assign]  # noqa: B023  # called at once
        # A token that was issued a moment ago, as a refresh just before the change would have given it.
        recent, _ = keyturn.rotation._answers._access_tokens.sign(
            subject=proof.user_id,
            session_id=tokens.session_id,
            generation=1,
            role="user",
            client_id="first-party",
            issued_at=keyturn.db.clock(),
            session_expires_at=at + timedelta(days=1),
            auth_time=at,
            lifetime=60 * SECOND,
        )
        if lives:
            await keyturn.reading.verify(recent)
        else:
            with pytest.raises(InvalidToken):
                await keyturn.reading.verify(recent)


async def test_a_session_that_a_shorter_policy_ended_does_not_come_back_under_a_longer_one(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    over = [await keyturn.starting.start(proof, by=SERVICE) for _ in range(3)]
    await time_passes(keyturn, 2000 * SECOND)
    lives = await keyturn.starting.start(proof, by=SERVICE)
    await change(keyturn, idle_lifetime=1000)
    before = await version(keyturn)
    with pytest.raises(InvalidRequest):  # a refused change marks nothing
        await keyturn.policy_changes.change("global", {"idle_lifetime": 604801 * SECOND}, by=ROOT)
    assert (await keyturn.reading.find(over[0].session_id)).ended_at is None
    assert await version(keyturn) == before
    await keyturn.policy_changes.change("global", {"idle_lifetime": 5000 * SECOND}, by=ROOT)
    await keyturn.policies.load()
    for tokens in over:
        row = await keyturn.reading.find(tokens.session_id)
        assert (row.end_reason, row.ended_at) == ("idle_timeout", row.rotated_at + 1000 * SECOND)
        with pytest.raises(InvalidGrant) as caught:
            await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE)
        assert caught.value.reason == "idle_timeout"
    await keyturn.rotation.refresh(lives.refresh_token, by=SERVICE)


async def test_a_policy_that_grows_no_lifetime_marks_no_session(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    tokens = await keyturn.starting.start(proof, by=SERVICE)
    await time_passes(keyturn, 2000 * SECOND)
    for values in ({"idle_lifetime": 1000 * SECOND}, {"remember": False}, {"access_lifetime": 300 * SECOND}):
        await keyturn.policy_changes.change("global", values, by=ROOT)
    assert (await keyturn.reading.find(tokens.session_id)).ended_at is None
