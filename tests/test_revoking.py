"""The end of a local session revokes the upstream session, whatever happens to the process or to Scalekit meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any, get_args
from uuid import UUID, uuid4

import httpx2
import pytest
from sqlalchemy import delete, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.actors import SERVICE, Actor
from app.errors import NotFound, Reason
from app.federation.harvest import REASONS, Harvest
from app.federation.issuer import Configured
from app.federation.orders import LIFE, MOST_ATTEMPTS, Orders, pause_after
from app.federation.revoking import _Rest
from app.federation.scalekit import Outcome
from app.keyturn import Keyturn
from app.sessions.upkeep import KEPT_FOR
from app.storage.tables import Event, Identity, Session, UpstreamSession, uuid7
from app.users import erasing
from tests.conftest import CHEAP, SECRET, Opener
from tests.service import Service
from tests.upstream.upstream import Login, Upstream
from tests.without_exchange import NAME, a_user_id, becomes, federated, file_of_issuers, rows, without_tasks, write

OPERATOR = Actor("command", "an operator")


@pytest.fixture
def issuers(tmp_path: Path, upstream: Upstream) -> Path:
    return file_of_issuers(tmp_path, upstream)


async def status(upstream: Upstream, login: Login) -> str:
    return await asyncio.to_thread(upstream.status, login.session_id)


async def is_revoked(upstream: Upstream, login: Login) -> bool:
    return await status(upstream, login) == "revoked"


async def settled(keyturn: Keyturn, session_id: UUID) -> bool:
    return (await rows(keyturn))[session_id].settled_at is not None


async def events_of(keyturn: Keyturn, session_id: UUID) -> list[tuple[str, str, str | None]]:
    found = await keyturn.events.list(limit=100, session_id=session_id)
    return [(row["event"], row["actor"], row["detail"]) for row in reversed(found) if "upstream" in row["event"]]


def revocations(upstream: Upstream) -> list[str]:
    """The upstream sessions for which a revocation was asked, in the order of the requests."""
    paths = [request["path"] for request in upstream.requests("/api/v1/sessions/")]
    return [path.split("/")[4] for path in paths if path.endswith("/revoke")]


# -- which ends go up


async def test_a_local_logout_revokes_the_upstream_session(
    open_keyturn: Opener, issuers: Path, upstream: Upstream
) -> None:
    login = upstream.sign_in()
    async with open_keyturn(federation_file=issuers) as keyturn:
        tokens = await federated(keyturn, await a_user_id(keyturn), login.session_id)
        await keyturn.ending.logout([], [tokens.refresh_token], "this", by=Actor("user"))
        await becomes(is_revoked, upstream, login)
        await becomes(settled, keyturn, tokens.session_id)
        row = (await rows(keyturn))[tokens.session_id]
        assert (row.outcome, row.attempts, row.due_at, row.failure) == ("revoked", 1, None, None)
        assert await events_of(keyturn, tokens.session_id) == [("upstream_revoked", "service", NAME)]
        (event,) = await keyturn.events.list(limit=1, event="upstream_revoked")
        assert event["user_id"] is not None


async def test_each_reason_goes_up_or_stays_here_as_the_documentation_says(
    open_keyturn: Opener, issuers: Path, upstream: Upstream
) -> None:
    async with open_keyturn(federation_file=issuers) as keyturn:
        user = await a_user_id(keyturn)
        logins: dict[str, Login] = {}
        for reason in get_args(Reason):
            logins[reason] = await asyncio.to_thread(upstream.sign_in)
            tokens = await federated(keyturn, user, logins[reason].session_id)
            await keyturn.ending.end({tokens.session_id}, reason, by=SERVICE)
        last = await asyncio.to_thread(upstream.sign_in)
        tokens = await federated(keyturn, user, last.session_id)
        await keyturn.ending.end({tokens.session_id}, "logout", by=SERVICE)
        for login in (*(logins[reason] for reason in REASONS), last):
            await becomes(is_revoked, upstream, login)
        # The last one ended after all the others. So whatever should go up has gone up with it, or before.
        went_up = {reason for reason, login in logins.items() if await is_revoked(upstream, login)}
        assert went_up == {
            *("logout", "logout_all", "reuse_detected", "password_changed", "user_disabled"),
            *("revoked_by_admin", "user_erased"),
        }


async def test_each_act_that_ends_sessions_revokes_the_upstream_session(
    open_keyturn: Opener, issuers: Path, upstream: Upstream
) -> None:
    async with open_keyturn(federation_file=issuers) as keyturn:
        logins = [await asyncio.to_thread(upstream.sign_in, f"user{n}@example.com") for n in range(5)]
        users = [await a_user_id(keyturn, f"user{n}@example.com") for n in range(5)]
        tokens = [await federated(keyturn, user, login.session_id) for user, login in zip(users, logins, strict=True)]
        await keyturn.ending.logout([], [tokens[0].refresh_token], "all", by=Actor("user"))
        await keyturn.users.disable(users[1], by=OPERATOR)
        await keyturn.erasing.erase(users[2], by=OPERATOR)
        once = await keyturn.rotation.refresh(tokens[3].refresh_token, by=SERVICE)
        await keyturn.rotation.refresh(once.refresh_token, by=SERVICE)
        assert await keyturn.ending.end_for_reuse(tokens[3].session_id, 0, by=SERVICE) == "reuse_detected"
        await keyturn.ending.end({tokens[4].session_id}, "revoked_by_admin", by=OPERATOR)
        for login in logins:
            await becomes(is_revoked, upstream, login)


async def test_one_logout_is_a_logout_also_where_another_local_session_of_the_upstream_session_lives(
    open_keyturn: Opener, issuers: Path, upstream: Upstream
) -> None:
    login = upstream.sign_in()
    async with open_keyturn(federation_file=issuers) as keyturn:
        user = await a_user_id(keyturn)
        ended, lives = [await federated(keyturn, user, login.session_id) for _ in range(2)]
        await keyturn.ending.end({ended.session_id}, "logout", by=SERVICE)
        await becomes(is_revoked, upstream, login)
        assert (await rows(keyturn))[lives.session_id].due_at is None
        assert await keyturn.rotation.refresh(lives.refresh_token, by=SERVICE)
        # The other one ends here by the issuer's own logout, or by its own: both are harmless.
        await keyturn.ending.end({lives.session_id}, "logout", by=SERVICE)
        await becomes(settled, keyturn, lives.session_id)
        assert (await rows(keyturn))[lives.session_id].outcome == "gone"


async def test_sessions_without_an_upstream_session_or_of_other_issuers_ask_nobody(
    open_keyturn: Opener, issuers: Path, upstream: Upstream
) -> None:
    login, other = upstream.sign_in(), upstream.sign_in()
    async with open_keyturn(federation_file=issuers) as keyturn:
        user = await a_user_id(keyturn)
        without = await federated(keyturn, user, None)
        elsewhere = await federated(keyturn, user, other.session_id, issuer="another")
        for tokens in (without, elsewhere, await federated(keyturn, user, login.session_id)):
            await keyturn.ending.end({tokens.session_id}, "logout", by=SERVICE)
        await becomes(is_revoked, upstream, login)
        assert revocations(upstream) == [login.session_id]
        found = await rows(keyturn)
        assert found[without.session_id].ordered_at is None
        assert found[elsewhere.session_id].ordered_at is None


@pytest.mark.parametrize("changes", [{"revoke_sessions": False}, {"preset": "oidc", "jwks_uri": "https://127.0.0.1/"}])
async def test_an_issuer_that_does_not_revoke_costs_no_statement(
    open_keyturn: Opener,
    tmp_path: Path,
    upstream: Upstream,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, object],
) -> None:
    asked = []
    monkeypatch.setattr(Harvest, "quick", lambda *_: asked.append(1))
    turns = []
    async with open_keyturn(federation_file=file_of_issuers(tmp_path, upstream, **changes)) as keyturn:
        assert keyturn.issuers.in_force
        turn = keyturn.revoking._turn

        async def counted() -> None:
            await turn()
            turns.append(1)

        monkeypatch.setattr(keyturn.revoking, "_turn", counted)

        async def has_turned() -> bool:
            return len(turns) >= 2

        await becomes(has_turned)
    assert not asked


# -- the harvest


async def an_ending(keyturn: Keyturn, ended_at: datetime, reason: str = "logout", issuer: str = NAME) -> UUID:
    """The rows of a federated session that ended at a moment, as if its transaction had committed only now."""
    session_id = uuid7()
    tokens = await federated(keyturn, await a_user_id(keyturn, f"{session_id}@example.com"), "ses_1", issuer)
    async with keyturn.db.begin() as tx:
        ends = {"ended_at": ended_at, "end_reason": reason}
        await tx.execute(update(Session).where(Session.id == tokens.session_id).values(**ends))
    return tokens.session_id


async def database_now(keyturn: Keyturn) -> datetime:
    async with keyturn.db.look() as connection:
        now: datetime = (await connection.execute(select(keyturn.db.now()))).scalar_one()
        return now


async def test_an_ending_is_taken_down_once_by_any_number_of_looks(keyturn: Keyturn) -> None:
    session_id = await an_ending(keyturn, await database_now(keyturn))
    harvests = [Harvest(keyturn.db) for _ in range(4)]
    taken = await asyncio.gather(*(harvest.quick([NAME]) for harvest in harvests))
    assert sum(taken) == 1
    assert (await rows(keyturn))[session_id].due_at is not None
    ordered_at = (await rows(keyturn))[session_id].ordered_at
    for harvest in harvests:
        assert await harvest.quick([NAME]) == 0
        assert await harvest.thorough([NAME]) == 0
    assert (await rows(keyturn))[session_id].ordered_at == ordered_at


async def test_an_ending_that_was_committed_late_is_found_by_the_thorough_look(keyturn: Keyturn) -> None:
    harvest = Harvest(keyturn.db)
    assert await harvest.quick([NAME]) == 0
    late = await an_ending(keyturn, await database_now(keyturn) - timedelta(seconds=90))
    assert await harvest.quick([NAME]) == 0, "the quick look has been there before"
    assert await harvest.thorough([NAME]) == 1
    assert (await rows(keyturn))[late].due_at is not None


async def test_the_thorough_look_never_passes_what_a_transaction_may_still_add(keyturn: Keyturn) -> None:
    harvest = Harvest(keyturn.db)
    await harvest.quick([NAME])
    assert await harvest.thorough([NAME]) == 0
    assert harvest.is_through
    # Each statement of such a transaction may take 4 s, and each pause between two of them 6 s.
    late = await an_ending(keyturn, await database_now(keyturn) - timedelta(seconds=50))
    assert await harvest.thorough([NAME]) == 0
    assert (await rows(keyturn))[late].due_at is None
    async with keyturn.db.begin() as tx:  # 50 seconds pass
        moment = await database_now(keyturn) - timedelta(seconds=61)
        await tx.execute(update(Session).where(Session.id == late).values(ended_at=moment))
    assert harvest._thorough is not None
    harvest._thorough = harvest._thorough[0] - timedelta(seconds=11), harvest._thorough[1]
    assert await harvest.thorough([NAME]) == 1


async def test_the_first_look_of_a_process_reaches_a_day_back_and_no_further(keyturn: Keyturn) -> None:
    now = await database_now(keyturn)
    yesterday = await an_ending(keyturn, now - timedelta(hours=23))
    before = await an_ending(keyturn, now - timedelta(hours=25))
    harvest = Harvest(keyturn.db)
    assert await harvest.thorough([NAME]) == 1
    found = await rows(keyturn)
    assert found[yesterday].due_at is not None
    assert found[before].due_at is None


async def test_a_clock_that_goes_back_hides_no_ending(keyturn: Keyturn) -> None:
    harvest = Harvest(keyturn.db)
    now = await database_now(keyturn)
    harvest._quick = now + timedelta(hours=1)
    harvest._thorough = now + timedelta(hours=1), UUID(int=0)
    ended = await an_ending(keyturn, now)
    assert await harvest.quick([NAME]) == 1
    assert await harvest.thorough([NAME]) == 0
    assert harvest._thorough[0] <= await database_now(keyturn) - timedelta(seconds=60)
    assert (await rows(keyturn))[ended].due_at is not None


@pytest.mark.parametrize("which", ["quick", "thorough"])
async def test_more_endings_than_a_page_in_one_moment_are_all_found(
    keyturn: Keyturn, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    monkeypatch.setattr("app.federation.harvest._PAGE", 7)
    moment = await database_now(keyturn) - timedelta(seconds=0 if which == "quick" else 70)
    first = await an_ending(keyturn, moment)
    async with keyturn.db.begin() as tx:
        row = dict((await tx.execute(select(Session.__table__).where(Session.id == first))).mappings().one())
        ids = [uuid4() for _ in range(40)]  # in no order
        await tx.execute(insert(Session), [{**row, "id": session_id} for session_id in ids])
        upstream = {"issuer_name": NAME, "upstream_id": "ses_1", "created_at": moment}
        await tx.execute(insert(UpstreamSession), [{"session_id": session_id, **upstream} for session_id in ids])
    harvest = Harvest(keyturn.db)
    taken = await getattr(harvest, which)([NAME])
    assert taken == 41
    assert all(row.due_at is not None for row in (await rows(keyturn)).values())


async def test_a_backlog_is_worked_off_in_portions(keyturn: Keyturn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.federation.harvest._PAGE", 2)
    monkeypatch.setattr("app.federation.harvest._PAGES", 2)
    now = await database_now(keyturn)
    for minutes in range(2, 8):
        await an_ending(keyturn, now - timedelta(minutes=minutes))
    harvest, taken = Harvest(keyturn.db), []
    while not harvest.is_through:
        taken.append(await harvest.thorough([NAME]))
    assert sum(taken) == 6
    assert max(taken) <= 4


# -- orders


async def an_order(keyturn: Keyturn, upstream_id: str = "ses_1") -> UUID:
    session_id = await an_ending(keyturn, await database_now(keyturn))
    await write(keyturn, session_id, upstream_id=upstream_id)
    await Harvest(keyturn.db).quick([NAME])
    return session_id


async def test_instances_that_claim_at_once_share_the_orders(open_keyturn: Opener) -> None:
    async with open_keyturn() as one, open_keyturn() as other:
        expected = {await an_order(one) for _ in range(20)}
        orders = [Orders(each.db) for each in (one, other)]
        claimed = await asyncio.gather(*(orders[n % 2].claim(NAME, 3) for n in range(10)))
        ids = [order.session_id for batch in claimed for order in batch]
        assert len(ids) == len(set(ids)), "two instances have the same order"
        assert all(len(batch) <= 3 for batch in claimed)
        while more := await orders[0].claim(NAME, 3):
            ids += [order.session_id for order in more]
        assert sorted(ids) == sorted(expected)
        assert await orders[1].due() == set()


async def test_an_order_whose_process_died_is_due_again_after_the_lease(keyturn: Keyturn) -> None:
    session_id = await an_order(keyturn)
    orders = Orders(keyturn.db)
    (first,) = await orders.claim(NAME, 16)
    assert await orders.claim(NAME, 16) == []
    await write(keyturn, session_id, due_at=await database_now(keyturn))  # the lease is over
    (second,) = await orders.claim(NAME, 16)
    assert (first.attempts, second.attempts) == (1, 2)
    # The first process was only slow. Its failure is no longer its business, but a success counts.
    due_at = (await rows(keyturn))[session_id].due_at
    assert not await orders.failed(first, "late")
    assert (await rows(keyturn))[session_id].due_at == due_at
    await orders.done(first, "revoked")
    assert (await rows(keyturn))[session_id].outcome == "revoked"
    await orders.done(second, "gone")
    assert (await rows(keyturn))[session_id].outcome == "revoked"
    assert await events_of(keyturn, session_id) == [("upstream_revoked", "service", NAME)]


async def test_a_failure_is_tried_again_later_each_time_and_then_given_up(keyturn: Keyturn) -> None:
    session_id, orders = await an_order(keyturn), Orders(keyturn.db)
    for attempt in range(1, MOST_ATTEMPTS + 1):
        (order,) = await orders.claim(NAME, 16)
        assert order.attempts == attempt
        given_up = await orders.failed(order, "x" * 100)
        row = (await rows(keyturn))[session_id]
        assert row.failure == "x" * 64
        if attempt < MOST_ATTEMPTS:
            assert not given_up
            assert row.due_at > await database_now(keyturn) - timedelta(seconds=1)
            await write(keyturn, session_id, due_at=await database_now(keyturn))
    assert given_up
    assert (row.outcome, row.due_at) == ("given_up", None)
    assert await orders.claim(NAME, 16) == []
    assert await events_of(keyturn, session_id) == [("upstream_given_up", "service", NAME)]


async def test_an_order_that_is_a_day_old_is_given_up_whether_its_issuer_is_configured_or_not(keyturn: Keyturn) -> None:
    old, orders = await an_order(keyturn), Orders(keyturn.db)
    young = await an_order(keyturn)
    now = await database_now(keyturn)
    await write(keyturn, old, ordered_at=now - LIFE - timedelta(seconds=1), issuer_name="removed")
    await write(keyturn, young, ordered_at=now - LIFE + timedelta(minutes=5))
    assert await orders.give_up_old() == [old]
    assert await orders.give_up_old() == []
    found = await rows(keyturn)
    assert (found[old].outcome, found[young].outcome) == ("given_up", None)
    assert await events_of(keyturn, old) == [("upstream_given_up", "service", "removed")]


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
@pytest.mark.parametrize("act", ["done", "failed", "give_up_old", "renew"])
async def test_no_event_about_an_order_names_a_user_who_is_erased_meanwhile(
    keyturn: Keyturn, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    session_id, orders = await an_order(keyturn), Orders(keyturn.db)
    user_id, identity_id = (await keyturn.reading.find(session_id)).user_id, uuid7()
    now = await database_now(keyturn)
    async with keyturn.db.begin() as tx:  # the erasure deletes it, and writes to the row of the order then
        its = {"user_id": user_id, "issuer": "https://acme.example", "subject": "usr_1"}
        await tx.execute(insert(Identity).values(id=identity_id, created_at=now, last_used_at=now, **its))
    await write(keyturn, session_id, identity_id=identity_id, attempts=MOST_ATTEMPTS - 1)
    (order,) = await orders.claim(NAME, 1)
    if act == "renew":
        assert await orders.failed(order, "no connection")
    if act == "give_up_old":
        await write(keyturn, session_id, due_at=now, ordered_at=now - LIFE)
    acts: dict[str, Callable[[], Awaitable[object]]] = {
        "done": lambda: orders.done(order, "revoked"),
        "failed": lambda: orders.failed(order, "no connection"),
        "give_up_old": orders.give_up_old,
        "renew": lambda: keyturn.owed.renew(session_id, by=OPERATOR),
    }
    under_way: list[asyncio.Future[object]] = []
    take_from_events = erasing._take_from_events

    async def then_the_act(tx: AsyncConnection, *what: Any, **more: Any) -> None:
        await take_from_events(tx, *what, **more)
        under_way.append(asyncio.ensure_future(acts[act]()))
        waiting = text(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%session%'"
        )
        while not under_way[0].done() and not await tx.scalar(waiting):
            await tx.execute(text("SELECT pg_stat_clear_snapshot()"))

    monkeypatch.setattr(erasing, "_take_from_events", then_the_act)
    pseudonym = await keyturn.erasing.erase(user_id, by=OPERATOR)
    await under_way[0]
    events = await keyturn.events.list(limit=100, session_id=session_id)
    assert len([event for event in events if "upstream" in event["event"]]) == (2 if act == "renew" else 1)
    assert {event["user_id"] for event in events} == {pseudonym}


def test_the_pauses_double_up_to_an_hour_with_jitter() -> None:
    for attempts, longest in ((1, 1), (2, 2), (5, 16), (12, 2048), (13, 3600), (50, 3600)):
        pauses = {pause_after(attempts).total_seconds() for _ in range(50)}
        assert len(pauses) > 1
        assert longest / 2 <= min(pauses) <= max(pauses) <= longest


async def test_what_was_given_up_is_listed_and_may_be_tried_again(keyturn: Keyturn) -> None:
    session_id, orders = await an_order(keyturn, "ses_7"), Orders(keyturn.db)
    (waiting,) = await keyturn.owed.list()
    assert (waiting["session_id"], waiting["state"], waiting["issuer"]) == (session_id, "waiting", NAME)
    assert await keyturn.owed.list("given_up") == []
    with pytest.raises(NotFound):
        await keyturn.owed.renew(session_id, by=OPERATOR)
    await write(keyturn, session_id, attempts=MOST_ATTEMPTS - 1)
    (order,) = await orders.claim(NAME, 1)
    await orders.failed(order, "issuer acme: no connection")
    (dead,) = await keyturn.owed.list("given_up")
    assert (dead["upstream_session"], dead["state"], dead["attempts"]) == ("ses_7", "given_up", MOST_ATTEMPTS)
    assert dead["failure"] == "issuer acme: no connection"
    assert dead["given_up_at"] is not None
    await keyturn.owed.renew(session_id, by=OPERATOR)
    with pytest.raises(NotFound):
        await keyturn.owed.renew(session_id, by=OPERATOR)
    (order,) = await orders.claim(NAME, 1)
    assert order.attempts == 1
    assert await events_of(keyturn, session_id) == [
        ("upstream_given_up", "service", NAME),
        ("upstream_ordered_anew", "command", NAME),
    ]


async def test_what_was_given_up_for_an_erased_user_may_be_tried_again_for_as_long_as_any_other(
    keyturn: Keyturn,
) -> None:
    session_id, done, orders = await an_order(keyturn), await an_order(keyturn), Orders(keyturn.db)
    await write(keyturn, session_id, attempts=MOST_ATTEMPTS - 1)
    by_session = {order.session_id: order for order in await orders.claim(NAME, 2)}
    assert await orders.failed(by_session[session_id], "no connection")
    await orders.done(by_session[done], "revoked")
    async with keyturn.db.begin() as tx:
        await tx.execute(delete(Session))  # as `gc` does
    assert (await keyturn.forgetting.gc()).upstream_sessions == 1
    assert [row["session_id"] for row in await keyturn.owed.list("given_up")] == [session_id]
    await write(keyturn, session_id, settled_at=await database_now(keyturn) - KEPT_FOR + timedelta(minutes=5))
    assert (await keyturn.forgetting.gc()).upstream_sessions == 0
    await write(keyturn, session_id, settled_at=await database_now(keyturn) - KEPT_FOR)
    assert (await keyturn.forgetting.gc()).upstream_sessions == 1


async def test_the_list_of_revocations_has_pages_and_leaves_out_what_is_done(keyturn: Keyturn) -> None:
    ids = sorted([await an_order(keyturn) for _ in range(5)], reverse=True)
    (order,) = [each for each in await Orders(keyturn.db).claim(NAME, 16) if each.session_id == ids[2]]
    await Orders(keyturn.db).done(order, "gone")
    first = await keyturn.owed.list(limit=2)
    rest = await keyturn.owed.list(limit=10, after=first[-1]["session_id"])
    assert [row["session_id"] for row in (*first, *rest)] == [ids[0], ids[1], ids[3], ids[4]]
    assert await keyturn.owed.list("given_up") == []


async def test_an_issuer_that_is_removed_is_asked_for_nothing_more(
    keyturn: Keyturn, issuers: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(9):
        await an_order(keyturn, f"ses_{number}")
    async with without_tasks(database_url, federation_file=issuers) as parts:
        revoke, asked = parts.scalekit.revoke_session, list[str]()

        async def and_then_removed(of: Configured, session_id: str) -> Outcome:
            asked.append(session_id)
            monkeypatch.setattr(parts.issuers, "_in_force", {})
            return await revoke(of, session_id)

        monkeypatch.setattr(parts.scalekit, "revoke_session", and_then_removed)
        await parts.revoking._round(NAME, _Rest())
        assert len(asked) == 4, "those that were claimed before"
        assert sum(row.settled_at is not None for row in (await rows(parts)).values()) == 4


# -- Scalekit away


async def test_the_local_logout_stands_while_scalekit_is_away_and_goes_up_when_it_is_back(
    open_keyturn: Opener, issuers: Path, upstream: Upstream
) -> None:
    logins = [upstream.sign_in() for _ in range(3)]
    async with open_keyturn(federation_file=issuers) as keyturn:
        user = await a_user_id(keyturn)
        sessions = [await federated(keyturn, user, login.session_id) for login in logins]
        await asyncio.to_thread(upstream.refuse)
        for tokens in sessions:
            await keyturn.ending.logout([], [tokens.refresh_token], "this", by=Actor("user"))

        async def has_failed() -> bool:
            return any(row.failure for row in (await rows(keyturn)).values())

        await becomes(has_failed)
        failures = {row.failure for row in (await rows(keyturn)).values()} - {None}
        assert failures == {"issuer acme: no connection"}
        await asyncio.to_thread(upstream.heal)
        for login in logins:
            await becomes(is_revoked, upstream, login)
        for tokens in sessions:
            await becomes(settled, keyturn, tokens.session_id)


async def test_while_scalekit_is_away_few_orders_are_tried(
    open_keyturn: Opener, issuers: Path, upstream: Upstream
) -> None:
    """A thousand orders must cost neither the issuer nor the database a thousand attempts that fail."""
    upstream.refuse()
    async with open_keyturn(federation_file=issuers) as keyturn:
        first = await an_ending(keyturn, await database_now(keyturn) - timedelta(hours=2))
        moment = await database_now(keyturn) - timedelta(seconds=1)
        async with keyturn.db.begin() as tx:
            upstream_row = {"issuer_name": NAME, "upstream_id": "ses_1", "created_at": moment}
            due = {"ordered_at": moment, "due_at": moment}
            await tx.execute(
                insert(UpstreamSession), [{"session_id": uuid7(), **upstream_row, **due} for _ in range(1000)]
            )

        async def rests() -> bool:
            rest = keyturn.revoking._rests.get(NAME)
            return rest is not None and rest.failures >= 3 and monotonic() < rest.until

        await becomes(rests)
        attempts = sum(row.attempts for row in (await rows(keyturn)).values())
        assert attempts <= 4 + 5, first


async def test_fifty_failures_across_restarts_end_with_an_entry(
    open_keyturn: Opener, issuers: Path, upstream: Upstream
) -> None:
    login = upstream.sign_in()
    upstream.fault("/api", "status", status=503)
    async with open_keyturn(federation_file=issuers) as keyturn:
        tokens = await federated(keyturn, await a_user_id(keyturn), login.session_id)
        await keyturn.ending.logout([], [tokens.refresh_token], "this", by=Actor("user"))

        async def was_tried() -> bool:
            return (await rows(keyturn))[tokens.session_id].failure is not None

        await becomes(was_tried)
    async with open_keyturn(federation_file=issuers) as keyturn:
        await write(keyturn, tokens.session_id, attempts=MOST_ATTEMPTS - 1, due_at=await database_now(keyturn))
        await becomes(settled, keyturn, tokens.session_id)
        assert await events_of(keyturn, tokens.session_id) == [("upstream_given_up", "service", NAME)]
        (dead,) = await keyturn.owed.list("given_up")
        assert dead["failure"] == "issuer acme: its API answered 503"
        await asyncio.to_thread(upstream.heal)
        await keyturn.owed.renew(tokens.session_id, by=OPERATOR)
        await becomes(is_revoked, upstream, login)


# -- processes that die


def environment(database_url: str, issuers: Path) -> dict[str, str]:
    values = {
        "database_url": database_url,
        "redis_url": "none",
        "secret": SECRET,
        "issuer": "https://auth.example.com",
        "federation_file": str(issuers),
        **CHEAP,
    }
    return {f"KEYTURN_{name.upper()}": value for name, value in values.items()}


async def log_out(service: Service, refresh_token: str) -> None:
    async with httpx2.AsyncClient(base_url=service.url, trust_env=False, timeout=20) as client:
        answer = await client.post("/auth/logout", json={"refresh_token": refresh_token})
    assert answer.status_code == 200, answer.text
    assert answer.json().keys() == {"upstream_logout_url"}


@pytest.mark.deep
async def test_a_service_that_is_killed_between_any_two_steps_loses_no_revocation(
    database_url: str, issuers: Path, upstream: Upstream, logs: Path
) -> None:
    """It dies (1) after the logout, (2) after it took the order down, (3) while it asks, (4) before it writes the outcome."""
    logins = [upstream.sign_in() for _ in range(4)]
    async with without_tasks(database_url, federation_file=issuers) as keyturn:
        await keyturn.keys.make_first(by=SERVICE)
        await keyturn.keys.load()
        user = await a_user_id(keyturn)
        tokens = [await federated(keyturn, user, login.session_id) for login in logins]

        def start() -> Service:
            return Service.start(environment(database_url, issuers), logs=logs)

        async def is_claimed(which: int) -> bool:
            return (await rows(keyturn))[tokens[which].session_id].attempts > 0

        # 1. The process is killed at once. If it took the order down before, it has at least not carried it out.
        await asyncio.to_thread(upstream.refuse)
        service = await asyncio.to_thread(start)
        await log_out(service, tokens[0].refresh_token)
        await asyncio.to_thread(service.kill)
        service.close()
        assert await status_of(keyturn, tokens[0].session_id) == "logout"
        # 2. The order was taken down, and no process has claimed it.
        await keyturn.ending.end({tokens[1].session_id}, "logout", by=SERVICE)
        await Harvest(keyturn.db).quick([NAME])
        # 3. The service has claimed the order and asks: Scalekit does not answer.
        await asyncio.to_thread(upstream.heal)
        await asyncio.to_thread(upstream.fault, "/api", "hang")
        service = await asyncio.to_thread(start)
        await log_out(service, tokens[2].refresh_token)
        await becomes(is_claimed, 2)
        await asyncio.to_thread(service.kill)
        service.close()
        assert await status(upstream, logins[2]) == "active"
        # 4. Scalekit has revoked the session, and the service dies before it writes that down.
        await asyncio.to_thread(upstream.heal)
        await asyncio.to_thread(upstream.fault, f"/api/v1/sessions/{logins[3].session_id}/revoke", "lost")
        service = await asyncio.to_thread(start)
        await log_out(service, tokens[3].refresh_token)
        await becomes(is_revoked, upstream, logins[3])
        await asyncio.to_thread(service.kill)
        service.close()
        assert (await rows(keyturn))[tokens[3].session_id].settled_at is None
        # Time passes for the leases and pauses.
        for session_id in (each.session_id for each in tokens):
            if (await rows(keyturn))[session_id].due_at is not None:
                await write(keyturn, session_id, due_at=await database_now(keyturn))
        await asyncio.to_thread(upstream.heal)
        with await asyncio.to_thread(start):
            for login, each in zip(logins, tokens, strict=True):
                await becomes(is_revoked, upstream, login)
                await becomes(settled, keyturn, each.session_id)
        assert [(await rows(keyturn))[each.session_id].outcome for each in tokens[:1]] == ["revoked"]
        assert (await rows(keyturn))[tokens[3].session_id].outcome == "gone"


async def status_of(keyturn: Keyturn, session_id: UUID) -> str | None:
    return (await keyturn.reading.find(session_id)).over()


@pytest.mark.deep
async def test_two_services_share_the_revocations_and_ask_once_for_each(
    database_url: str, issuers: Path, upstream: Upstream, logs: Path
) -> None:
    logins = [upstream.sign_in() for _ in range(30)]
    async with without_tasks(database_url, federation_file=issuers) as keyturn:
        await keyturn.keys.make_first(by=SERVICE)
        await keyturn.keys.load()
        user = await a_user_id(keyturn)
        tokens = [await federated(keyturn, user, login.session_id) for login in logins]
        given = environment(database_url, issuers)
        with (
            await asyncio.to_thread(Service.start, given, logs=logs) as one,
            await asyncio.to_thread(Service.start, given, logs=logs) as other,
        ):
            services = (one, other)
            await asyncio.gather(*(log_out(services[n % 2], each.refresh_token) for n, each in enumerate(tokens)))
            for each in tokens:
                await becomes(settled, keyturn, each.session_id)
        assert sorted(revocations(upstream)) == sorted(login.session_id for login in logins)


async def test_a_refused_secret_is_retried_and_never_told(
    open_keyturn: Opener, tmp_path: Path, upstream: Upstream
) -> None:
    login = upstream.sign_in()
    path = tmp_path / "issuers.toml"
    path.write_text(upstream.toml(NAME).replace(upstream.client_secret, "a-wrong-secret"))
    path.chmod(0o600)
    async with open_keyturn(federation_file=path) as keyturn:
        tokens = await federated(keyturn, await a_user_id(keyturn), login.session_id)
        await keyturn.ending.end({tokens.session_id}, "logout", by=SERVICE)

        async def was_tried() -> bool:
            return (await rows(keyturn))[tokens.session_id].failure is not None

        await becomes(was_tried)
        (row,) = await keyturn.owed.list()
        assert row["failure"] == "issuer acme: it refuses the client's secret (401)"
        assert "a-wrong-secret" not in repr(row)


async def test_no_event_and_no_row_keeps_a_token_of_the_upstream(
    open_keyturn: Opener, issuers: Path, upstream: Upstream
) -> None:
    login = upstream.sign_in()
    async with open_keyturn(federation_file=issuers) as keyturn:
        tokens = await federated(keyturn, await a_user_id(keyturn), login.session_id)
        await keyturn.ending.end({tokens.session_id}, "logout", by=SERVICE)
        await becomes(settled, keyturn, tokens.session_id)
        async with keyturn.db.look() as connection:
            told = [tuple(row) for row in await connection.execute(select(Event.__table__))]
            told += [tuple(row) for row in await connection.execute(select(UpstreamSession.__table__))]
        assert upstream.client_secret not in repr(told)
        assert "eyJ" not in repr(told)
