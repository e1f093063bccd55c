"""`keyturn why` tells all that rows and events know of a user or a session, and its verdicts are those of the doors."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import update

from app.actors import SERVICE, Actor
from app.errors import InvalidGrant, InvalidToken, NotFound, Refusal
from app.events.audit import Event, EventKind, record
from app.keyturn import Keyturn
from app.sessions.answers import Tokens
from app.sessions.start import Authenticated
from app.storage.tables import User, uuid7
from app.why.sentences import _SENTENCES, line_of
from app.why.telling import Telling
from tests.command_line import Command
from tests.command_line import keyturn as command  # noqa: F401  # a fixture
from tests.conftest import CHEAP, NEW_PASSWORD, PASSWORD, SECRET, Opener, a_user, time_passes
from tests.federated import exchanged, federated, the_user
from tests.service import Service
from tests.upstream.upstream import Upstream

ROOT = Actor("command", "root")
HERSELF = Actor("user", None, "192.0.2.7", "request-7")
THIEF = Actor("anonymous", None, "198.51.100.66", "request-66")
ALL = 1000


def said(telling: Telling) -> str:
    """The whole telling, a sentence a line."""
    return "\n".join(
        [*telling.facts, *(each.says for each in telling.verdicts), *(line.says for line in telling.lines)]
    )


def verdict(telling: Telling, of: str) -> tuple[int, str | None]:
    [found] = [(each.status, each.reason) for each in telling.verdicts if each.of == of]
    return found


async def answered(act: Callable[[], Awaitable[object]]) -> tuple[int, str | None]:
    """The status and reason that the door gives to a request which calls this."""
    try:
        await act()
    except Refusal as refusal:
        return refusal.status, refusal.reason
    return 200, None


# -- a session


async def test_the_telling_of_a_session_says_how_it_began_when_it_was_used_and_what_bounds_it(
    open_keyturn: Opener,
) -> None:
    async with open_keyturn(refresh_token_lifetime=86_400) as keyturn:
        proof = await a_user(keyturn)
        agent = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
        tokens = await keyturn.starting.start(proof, by=HERSELF, user_agent=agent, device_name="Ada's telephone")
        first = await keyturn.why.session(tokens.session_id, limit=ALL)
        assert "The session was never refreshed." in first.facts
        assert "Each refresh gives the session 1 day more, as promised at the sign-in." in first.facts
        for _ in range(3):
            tokens = await keyturn.rotation.refresh(tokens.refresh_token, by=HERSELF)
        await keyturn.policy_changes.change("global", {"idle_lifetime": timedelta(hours=1)}, by=ROOT)
        await keyturn.policies.load()
        telling = await keyturn.why.session(tokens.session_id, limit=ALL)
        text = said(telling)
        assert (telling.about, telling.id, telling.user_id, telling.status) == (
            "session",
            tokens.session_id,
            proof.user_id,
            "live",
        )
        assert "by a password." in text
        assert "from 192.0.2.7 on Ada's telephone with Firefox 128 on Linux, as at the sign-in" in text
        assert "The session was refreshed 3 times, last at " in text
        assert (
            "Each refresh gives the session 1 hour more, by the policy in force, which is stricter than the 1 day of the "
            "sign-in." in text
        )
        assert "The refresh token stands under the refresh key 1 (" in text
        assert [line.event for line in telling.lines] == ["session_started", "refreshed"]
        assert telling.lines[0].says == "The user signed in from 192.0.2.7."
        assert telling.lines[0].request_id == "request-7"


async def test_a_stricter_setting_is_told_from_a_policy(open_keyturn: Opener) -> None:
    async with open_keyturn() as keyturn:
        tokens = await keyturn.starting.start(await a_user(keyturn), by=HERSELF)
    async with open_keyturn(refresh_token_lifetime=7200) as stricter:
        text = said(await stricter.why.session(tokens.session_id, limit=ALL))
    assert "Each refresh gives the session 2 hours more, by the setting in force, which is stricter than" in text


async def _logout(keyturn: Keyturn, tokens: Tokens, _user: Authenticated) -> None:
    await keyturn.ending.logout((), [tokens.refresh_token], "this", by=HERSELF)


async def _log_out_all(keyturn: Keyturn, _tokens: Tokens, user: Authenticated) -> None:
    other = await keyturn.starting.start(user, by=HERSELF)
    await keyturn.ending.logout((), [other.refresh_token], "all", by=HERSELF)


async def _reuse(keyturn: Keyturn, tokens: Tokens, _user: Authenticated) -> None:
    newer = await keyturn.rotation.refresh(tokens.refresh_token, by=HERSELF)
    await keyturn.rotation.refresh(newer.refresh_token, by=HERSELF)
    with pytest.raises(InvalidGrant):
        await keyturn.rotation.refresh(tokens.refresh_token, by=THIEF)


async def _password(keyturn: Keyturn, _tokens: Tokens, user: Authenticated) -> None:
    await keyturn.users.set_password(user.user_id, NEW_PASSWORD, by=ROOT)


async def _disable(keyturn: Keyturn, _tokens: Tokens, user: Authenticated) -> None:
    await keyturn.users.disable(user.user_id, by=ROOT)


async def _revoke(keyturn: Keyturn, tokens: Tokens, _user: Authenticated) -> None:
    await keyturn.ending.end({tokens.session_id}, "revoked_by_admin", by=ROOT)


async def _everyone(keyturn: Keyturn, _tokens: Tokens, _user: Authenticated) -> None:
    await keyturn.key_changes.sign_everyone_out(by=ROOT)


async def _idle(keyturn: Keyturn, _tokens: Tokens, _user: Authenticated) -> None:
    await time_passes(keyturn, keyturn.settings.refresh_token_lifetime)


async def _absolute(keyturn: Keyturn, _tokens: Tokens, _user: Authenticated) -> None:
    hour = timedelta(hours=1)
    await keyturn.policy_changes.change("global", {"idle_lifetime": hour, "absolute_lifetime": hour}, by=ROOT)
    await keyturn.policies.load()
    await time_passes(keyturn, hour)


async def _nothing(_keyturn: Keyturn, _tokens: Tokens, _user: Authenticated) -> None:
    pass


@pytest.mark.parametrize(
    ("act", "status", "sentence"),
    [
        (_nothing, "live", "Verify accepts its newest access token until "),
        (_logout, "logout", "The session ended: the user logged out from 192.0.2.7."),
        (
            _log_out_all,
            "logout_all",
            "The session ended: the user logged out of several sessions at once from 192.0.2.7.",
        ),
        (
            _reuse,
            "reuse_detected",
            "somebody who had proved nothing presented an older refresh token from 198.51.100.66, so a copy of it exists.",
        ),
        (
            _password,
            "password_changed",
            "The session ended: the command line, run by root, changed the password elsewhere, or had it reset.",
        ),
        (_disable, "user_disabled", "The session ended: the command line, run by root, disabled the account."),
        (_revoke, "revoked_by_admin", "The session ended: the command line, run by root, ended it, or retired the key"),
        (_everyone, "signed_out_everywhere", "The command line, run by root, signed everyone out."),
        (_idle, "idle_timeout", "The session ended: nobody refreshed it before its idle deadline."),
        (_absolute, "absolute_timeout", "The session ended: it reached its absolute deadline."),
    ],
)
async def test_a_telling_names_the_end_and_its_actor_and_the_doors_answer_as_its_verdicts_say(
    keyturn: Keyturn, act: Callable[..., Awaitable[None]], status: str, sentence: str
) -> None:
    user = await a_user(keyturn)
    tokens = await keyturn.starting.start(user, by=HERSELF)
    await act(keyturn, tokens, user)
    telling = await keyturn.why.session(tokens.session_id, limit=ALL)
    assert telling.status == status
    assert sentence in said(telling)
    if status not in {
        "idle_timeout",
        "absolute_timeout",
    }:  # their access tokens are older than `time_passes` makes them
        assert verdict(telling, "verify") == await answered(lambda: keyturn.reading.verify(tokens.access_token))
    assert verdict(telling, "refresh") == await answered(
        lambda: keyturn.rotation.refresh(tokens.refresh_token, by=HERSELF)
    )


async def test_a_session_whose_newest_access_token_expired_is_told_so_while_it_lives(keyturn: Keyturn) -> None:
    first = await keyturn.starting.start(await a_user(keyturn), by=HERSELF)
    await keyturn.rotation.refresh(first.refresh_token, by=HERSELF, retry_key="k" * 32)
    await time_passes(keyturn, keyturn.settings.access_token_lifetime + timedelta(seconds=10))
    telling = await keyturn.why.session(first.session_id, limit=ALL)
    assert (telling.status, verdict(telling, "verify")) == ("live", (401, "token_expired"))
    # The retry key asks for the same answer again, so its access token was issued when the row says so.
    again = await keyturn.rotation.refresh(first.refresh_token, by=HERSELF, retry_key="k" * 32)
    with pytest.raises(InvalidToken) as refused:
        await keyturn.reading.verify(again.access_token)
    assert refused.value.reason == "token_expired"
    assert "The one before it ends the session, unless it comes with its retry key." in said(telling)


async def test_a_session_that_was_displaced_is_told_by_which_rule(keyturn: Keyturn) -> None:
    user = await a_user(keyturn)
    replaced = await keyturn.starting.start(user, by=HERSELF, device_id="telephone")
    oldest = await keyturn.starting.start(user, by=HERSELF, device_id="telephone")
    await keyturn.policy_changes.change("global", {"session_limit": 1}, by=ROOT)
    await keyturn.policies.load()
    await keyturn.starting.start(user, by=HERSELF, device_id="another")
    assert "signed in again on the same device" in said(await keyturn.why.session(replaced.session_id, limit=ALL))
    assert "than the policy's session_limit allows" in said(await keyturn.why.session(oldest.session_id, limit=ALL))


async def test_the_key_of_a_session_is_told_with_its_state(keyturn: Keyturn) -> None:
    tokens = await keyturn.starting.start(await a_user(keyturn), by=HERSELF)
    key = next(key for key in await keyturn.keys.list() if key["use"] == "refresh")
    assert f"The refresh token stands under the refresh key 1 ({key['kid']}), which signs." in said(
        await keyturn.why.session(tokens.session_id, limit=ALL)
    )
    await keyturn.key_changes.rotate("refresh", by=ROOT)
    text = said(await keyturn.why.session(tokens.session_id, limit=ALL))
    assert (
        f"The refresh token stands under the refresh key 1 ({key['kid']}), which signs and retires at " in text
    )  # for a minute still


async def test_a_session_without_a_row_is_told_by_its_events_until_nothing_has_its_id(keyturn: Keyturn) -> None:
    tokens = await keyturn.starting.start(await a_user(keyturn), by=HERSELF)
    await keyturn.ending.logout((), [tokens.refresh_token], "this", by=HERSELF)
    await time_passes(keyturn, timedelta(days=60))
    assert await keyturn.upkeep.gc(by=SERVICE) == 1
    telling = await keyturn.why.session(tokens.session_id, limit=ALL)
    assert telling.status == "deleted"
    assert [line.event for line in telling.lines] == ["session_started", "session_ended"]
    assert verdict(telling, "refresh") == await answered(
        lambda: keyturn.rotation.refresh(tokens.refresh_token, by=HERSELF)
    )
    with pytest.raises(NotFound):
        await keyturn.why.session(uuid7(), limit=ALL)


# -- a user


async def test_the_telling_of_a_user_has_account_sessions_and_changes_with_the_newest_last(keyturn: Keyturn) -> None:
    user = await a_user(keyturn)
    ended = await keyturn.starting.start(user, by=HERSELF)
    await keyturn.ending.logout((), [ended.refresh_token], "this", by=HERSELF)
    live = await keyturn.starting.start(user, by=HERSELF)
    await keyturn.rotation.refresh(live.refresh_token, by=HERSELF)
    await keyturn.users.set_role(user.user_id, "editor", by=ROOT)
    telling = await keyturn.why.user(user.user_id, limit=ALL)
    text = said(telling)
    assert (telling.about, telling.email, telling.status) == ("user", "ada@example.com", "enabled")
    assert "has the role editor." in text
    assert "A person chose the password, which never runs out." in text
    assert "A new password must have at least 15 characters." in text
    assert "The account has 1 live session." in text
    assert f"Session {live.session_id} lives since " in text
    assert f"Session {ended.session_id} ended at " in text
    assert [line.event for line in telling.lines] == [
        "user_created",
        "session_started",
        "session_ended",
        "session_started",
        "refreshed",
        "role_changed",
    ]
    assert telling.lines[-1].says == "The command line, run by root, gave the account the role editor."
    assert [line.at for line in telling.lines] == sorted(line.at for line in telling.lines)
    for line in telling.lines:
        assert (line.session_id is None) or str(line.session_id) in line.says


async def _run_out(keyturn: Keyturn, user_id: UUID) -> None:
    async with keyturn.db.begin() as tx:
        gone = keyturn.db.clock() - timedelta(hours=1)
        await tx.execute(update(User).where(User.id == user_id).values(password_expires_at=gone))


async def _made(keyturn: Keyturn, user_id: UUID) -> None:
    async with keyturn.db.begin() as tx:
        later = keyturn.db.clock() + timedelta(hours=1)
        await tx.execute(update(User).where(User.id == user_id).values(password_expires_at=later))


async def _disabled(keyturn: Keyturn, user_id: UUID) -> None:
    await keyturn.users.disable(user_id, by=ROOT)


async def _none(keyturn: Keyturn, user_id: UUID) -> None:
    async with keyturn.db.begin() as tx:
        await tx.execute(update(User).where(User.id == user_id).values(password_hash=None))


async def _as_it_is(_keyturn: Keyturn, _user_id: UUID) -> None:
    pass


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (_as_it_is, "A sign-in with the right password gives tokens."),
        (_made, "The answer asks for a new password."),
        (_run_out, "it lets nobody in."),
        (_disabled, "the account is disabled."),
        (_none, "No password is right for this account."),
    ],
)
async def test_a_sign_in_is_answered_as_the_telling_of_the_user_says(
    keyturn: Keyturn, act: Callable[..., Awaitable[None]], sentence: str
) -> None:
    user_id = (await a_user(keyturn)).user_id
    await act(keyturn, user_id)
    telling = await keyturn.why.user(user_id, limit=ALL)
    assert sentence in said(telling)
    assert verdict(telling, "sign_in") == await answered(
        lambda: keyturn.sign_in.authenticate("ada@example.com", PASSWORD)
    )


async def test_an_erased_user_is_told_by_the_pseudonym_and_without_anything_personal(keyturn: Keyturn) -> None:
    user = await a_user(keyturn)
    tokens = await keyturn.starting.start(user, by=HERSELF)
    pseudonym = await keyturn.erasing.erase(user.user_id, by=ROOT)
    telling = await keyturn.why.user(pseudonym, limit=ALL)
    assert telling.status == "erased"
    assert {line.event for line in telling.lines} == {"user_created", "session_started", "session_ended", "user_erased"}
    for text in (said(telling), said(await keyturn.why.session(tokens.session_id, limit=ALL))):
        assert not re.search(r"\bada\b", text, re.IGNORECASE)  # the digits of an id may spell it
        assert "192.0.2.7" not in text
        assert str(user.user_id) not in text
    with pytest.raises(NotFound):
        await keyturn.why.user(user.user_id, limit=ALL)


async def test_a_telling_has_an_address_only_where_the_noun_is_its_user_and_never_a_token_or_hash(
    keyturn: Keyturn,
) -> None:
    admin = await a_user(keyturn, "root@example.com", "admin")
    user = await a_user(keyturn)
    by_admin = Actor("administrator", str(admin.user_id), "192.0.2.1", "request-1")
    tokens = await keyturn.starting.start(user, by=HERSELF)
    await keyturn.users.set_role(user.user_id, "editor", by=by_admin)
    await keyturn.ending.end({tokens.session_id}, "revoked_by_admin", by=by_admin)
    of_session = await keyturn.why.session(tokens.session_id, limit=ALL)
    of_user = await keyturn.why.user(user.user_id, limit=ALL)
    assert f"administrator {admin.user_id} ended it" in said(of_session)
    assert "email" not in of_session.members()
    for telling in (of_session, of_user):
        text = repr(telling) + str(telling.members()["lines"]) + said(telling)
        for secret in ("@example.com", tokens.refresh_token, tokens.access_token, "argon2"):
            assert secret not in text


async def test_pages_walk_through_thousands_of_events_and_have_each_once(keyturn: Keyturn) -> None:
    user = await a_user(keyturn)
    async with keyturn.db.begin() as tx:
        now = keyturn.db.clock()
        for n in range(2500):
            at = now + timedelta(milliseconds=n // 3)  # some share a moment
            await record(tx, at, ROOT, [Event("role_changed", user.user_id, detail=str(n))])
    pages, before = list[Telling](), None
    while True:
        page = await keyturn.why.user(user.user_id, limit=100, before=before)
        assert len(page.lines) <= 100
        pages.append(page)
        before = page.before
        if before is None:
            break
    walked = [line.says for page in reversed(pages) for line in page.lines if line.event == "role_changed"]
    assert walked == [f"The command line, run by root, gave the account the role {n}." for n in range(2500)]
    assert len({line.id for page in pages for line in page.lines}) == 2501


async def test_a_line_of_a_row_that_is_older_than_the_page_is_left_to_no_page(keyturn: Keyturn) -> None:
    user = await a_user(keyturn)
    tokens = await keyturn.starting.start(user, by=HERSELF)
    await keyturn.rotation.refresh(tokens.refresh_token, by=HERSELF)
    for role in ("one", "two", "three"):
        await keyturn.users.set_role(user.user_id, role, by=ROOT)
    page = await keyturn.why.user(user.user_id, limit=2)
    assert [line.event for line in page.lines] == ["role_changed", "role_changed"]
    whole = await keyturn.why.user(user.user_id, limit=ALL)
    assert "refreshed" in {line.event for line in whole.lines}


# -- sentences


NOT_ABOUT_ONE = {
    "database_restored",
    "sessions_deleted",
    "policy_changed",
    "key_generated",
    "key_imported",
    "key_exported",
    "key_retired",
    "keys_rewrapped",
    "issuer_changed",
    "issuer_removed",
}
"""The kinds of events that are about no user and no session."""


def test_each_kind_of_event_about_a_user_or_a_session_has_its_own_sentence() -> None:
    assert {*get_args(EventKind)} - {*_SENTENCES} == NOT_ABOUT_ONE
    sentences = set[str]()
    for kind in _SENTENCES:
        event: dict[str, Any] = dict.fromkeys(("id", "session_id", "client_id", "request_id", "detail"))
        event |= {"event": kind, "at": None, "user_id": uuid7(), "reason": "logout", "address": "192.0.2.7"}
        says = line_of({**event, "actor": "service", "actor_id": None}, "session").says
        assert says.endswith(".")
        assert says.partition(" ")[0] in {"Keyturn", "The"}, says
        assert "keyturn" not in says
        sentences.add(says)
    assert len(sentences) == len(_SENTENCES)


# -- other issuers


async def test_a_session_of_an_issuer_is_told_with_issuer_identity_and_what_is_owed_there(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path) as keyturn:
        tokens = await exchanged(keyturn, upstream.mint())
        user = await the_user(keyturn, tokens)
        text = said(await keyturn.why.session(tokens.session_id, limit=ALL))
        assert "by a token of the issuer acme" in text
        of_user = await keyturn.why.user(user.id, limit=ALL)
        assert "The account has an identity at the issuer " in said(of_user)
        assert verdict(of_user, "sign_in") == (401, None)
        assert "A token of 1 issuer may still be exchanged." in said(of_user)
    async with open_keyturn() as without:  # the issuer is no longer configured
        text = said(await without.why.user(user.id, limit=ALL))
        assert "which is no longer configured, so it lets nobody in" in text


# -- the doors


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_the_command_finds_a_user_by_address_or_id_and_a_session_by_id(command: Command) -> None:  # noqa: F811
    user_id = command.ok("users", "create", "ada@example.com", stdin=PASSWORD.encode()).out.strip()
    tokens = command.login("ada@example.com")
    by_address = command.ok("why", "Ada@example.com").out
    assert by_address.startswith(f"User {user_id}, ada@example.com: enabled (at ")
    assert command.ok("why", user_id).out.splitlines()[2:] == by_address.splitlines()[2:]
    shown = command.ok("why", str(tokens.session_id)).out
    assert shown.startswith(f"Session {tokens.session_id}: live (at ")
    assert "ada@example.com" not in shown
    told = command.ok("why", str(tokens.session_id), "--json").json
    assert (told["about"], told["status"], told["before"]) == ("session", "live", None)
    assert [verdict["of"] for verdict in told["verdicts"]] == ["verify", "refresh"]
    assert [line["event"] for line in told["lines"]] == ["session_started"]
    short = command.ok("why", user_id, "--limit", "1")
    assert "there are older events: --before " in short.err
    older = short.err.split("--before ")[1].split(",")[0]
    assert "made the account" in command.ok("why", user_id, "--before", older).out


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_the_command_refuses_a_stranger_and_repeats_no_word_that_may_be_a_password(command: Command) -> None:  # noqa: F811
    assert "nobody@example.com" in command.refused(1, "why", "nobody@example.com")
    assert str(missing := uuid7()) in command.refused(1, "why", str(missing))
    assert PASSWORD not in command.refused(1, "why", PASSWORD)


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_the_command_prints_no_character_that_a_terminal_obeys(command: Command) -> None:  # noqa: F811
    command.ok("users", "create", "ada@example.com", stdin=PASSWORD.encode())

    async def signed_in(keyturn: Keyturn) -> UUID:
        proof = await keyturn.sign_in.authenticate("ada@example.com", PASSWORD)
        by = Actor("user", None, "\x1b]0;owned\x07", "\x1b[31m")
        return (await keyturn.starting.start(proof, by=by, device_name="\u202eevil")).session_id

    out = command.ok("why", str(command.inside(signed_in))).out
    assert "owned" in out
    assert all(line.isprintable() for line in out.splitlines())


async def test_administrators_read_the_same_over_http_in_pages(
    open_keyturn: Opener, database_url: str, logs: Path
) -> None:
    values = {"database_url": database_url, "redis_url": "none", "secret": SECRET, **CHEAP}
    environment = {f"KEYTURN_{name.upper()}": value for name, value in values.items()}
    environment["KEYTURN_ISSUER"] = "https://auth.example.com"
    async with open_keyturn() as keyturn:
        admin = await keyturn.starting.start(await a_user(keyturn, "root@example.com", "admin"), by=SERVICE)
        user = await a_user(keyturn)
        tokens = await keyturn.starting.start(user, by=HERSELF)
        await keyturn.ending.logout((), [tokens.refresh_token], "this", by=HERSELF)
        of_session = await keyturn.why.session(tokens.session_id, limit=20)
        with await asyncio.to_thread(Service.start, environment, logs=logs) as service:
            headers = {"Authorization": f"Bearer {admin.access_token}"}
            async with httpx2.AsyncClient(base_url=service.url, timeout=10, headers=headers) as client:
                answer = (await client.get(f"/admin/sessions/{tokens.session_id}/why")).json()
                assert answer["facts"] == list(of_session.facts)
                assert [line["says"] for line in answer["lines"]] == [line.says for line in of_session.lines]
                assert "email" not in answer
                assert "next_cursor" not in answer
                path = f"/admin/users/{user.user_id}/why"
                newest = (await client.get(path, params={"limit": 2})).json()
                assert newest["email"] == "ada@example.com"
                assert [line["event"] for line in newest["lines"]] == ["session_started", "session_ended"]
                older = (await client.get(path, params={"limit": 2, "cursor": newest["next_cursor"]})).json()
                assert [line["event"] for line in older["lines"]] == ["user_created"]
                missing = await client.get(f"/admin/users/{uuid7()}/why")
                assert missing.status_code == 404
                other = await client.get(
                    f"/admin/users/{admin.session_id}/why", params={"cursor": newest["next_cursor"]}
                )
                assert other.status_code == 400
