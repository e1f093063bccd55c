"""`keyturn users` for users of other issuers, who may have neither an address nor a password."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import text

from app.keyturn import Keyturn
from tests.command_line import Command, command
from tests.conftest import PASSWORD
from tests.federated import exchanged, file_of, the_user
from tests.upstream.upstream import Upstream

pytestmark = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)


@pytest.fixture
def keyturn(
    database_url: str,
    upstream: Upstream,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    monkeypatch.chdir(tmp_path)
    return command(database_url, capsys, federation_file=file_of(upstream, tmp_path, trust_email=True))


def a_user_of(keyturn: Command, token: str) -> str:
    async def act(parts: Keyturn) -> UUID:
        user_id: UUID = (await the_user(parts, await exchanged(parts, token))).id
        return user_id

    return str(keyturn.inside(act))


def test_a_user_without_an_address_is_named_by_the_id(keyturn: Command, upstream: Upstream) -> None:
    user_id = a_user_of(keyturn, upstream.mint())
    [listed] = keyturn.ok("users", "list", "--json").json
    assert (listed["id"], listed["email"]) == (user_id, None)
    assert user_id in keyturn.ok("users", "list").out
    shown = keyturn.ok("users", "show", user_id, "--json").json
    assert (shown["email"], shown["password_set"], shown["email_verified_at"]) == (None, False, None)
    assert keyturn.ok("users", "set-role", user_id, "editor").out.startswith(f"{user_id} has the role editor")
    assert keyturn.ok("users", "disable", user_id).out.startswith(f"{user_id} is disabled; 1 session ended")
    assert keyturn.ok("users", "enable", user_id).out.startswith(f"{user_id} may sign in again")
    assert keyturn.ok("users", "set-claims", user_id, "--clear").out.startswith(f"{user_id} has no claims")
    [session] = keyturn.ok("sessions", "list", "--status", "all", "--json").json
    assert session["email"] is None
    assert user_id in keyturn.ok("sessions", "list", "--status", "all", "--wide").out
    assert user_id in keyturn.ok("events", "list", "--wide").out
    for words in (("reset-password",), ("set-password", "--password-stdin"), ("verify-email",)):
        said = keyturn.refused(1, "users", words[0], user_id, *words[1:], stdin=PASSWORD.encode())
        assert "no e-mail address" in said
    assert "erased" in keyturn.ok("users", "erase", user_id, "--yes-erase").out
    assert keyturn.ok("sessions", "list", "--status", "all").out.count("erased") == 1


def test_an_operator_vouches_for_an_address_and_takes_it_back(keyturn: Command) -> None:
    keyturn.ok("users", "create", "ada@example.com", stdin=PASSWORD.encode())
    assert keyturn.ok("users", "show", "ada@example.com", "--json").json["email_verified_at"] is None
    assert keyturn.ok("users", "verify-email", "ada@example.com").out == "ada@example.com counts as proved\n"
    assert keyturn.ok("users", "show", "ada@example.com", "--json").json["email_verified_at"]
    keyturn.ok("users", "verify-email", "ada@example.com", "--withdraw")
    assert keyturn.ok("users", "show", "ada@example.com", "--json").json["email_verified_at"] is None
    events = keyturn.ok("events", "list", "--event", "email_verified", "--json").json
    assert [event["detail"] for event in events] == ["withdrawn", None]
    assert {event["actor"] for event in events} == {"command"}


def test_identities_are_listed_and_taken_away_and_the_last_way_in_stays(keyturn: Command, upstream: Upstream) -> None:
    user_id = a_user_of(keyturn, upstream.mint("id_token"))
    [only] = keyturn.ok("users", "identities", user_id, "--json").json
    assert (only["issuer"], only["subject"]) == (upstream.url, upstream.subject.user_id)
    assert only["email"] == "ada@example.com"
    assert upstream.subject.user_id in keyturn.ok("users", "identities", "ada@example.com").out
    assert "last way in" in keyturn.refused(1, "users", "unlink", user_id, only["id"])
    keyturn.ok("users", "set-password", user_id, "--password-stdin", stdin=PASSWORD.encode())
    assert only["id"] in keyturn.ok("users", "unlink", user_id, only["id"]).out
    assert keyturn.ok("users", "identities", user_id, "--json").json == []
    keyturn.refused(1, "users", "unlink", user_id, only["id"])
    [event] = keyturn.ok("events", "list", "--event", "identity_unlinked", "--json").json
    assert (event["actor"], event["detail"]) == ("command", "acme")


def test_gc_says_what_it_forgot(keyturn: Command, upstream: Upstream) -> None:
    a_user_of(keyturn, upstream.mint())
    assert "forgotten" not in keyturn.ok("gc").out

    async def act(parts: Keyturn) -> None:
        async with parts.db.begin() as tx:
            await tx.execute(text("UPDATE taken_tokens SET expires_at = 1"))
            await tx.execute(text("DELETE FROM sessions"))

    keyturn.inside(act)
    assert "forgotten: 1 external tokens, 1 upstream sessions" in keyturn.ok("gc").out
    done = keyturn.ok("gc", "--json").json
    assert (done["taken_tokens"], done["upstream_sessions"]) == (0, 0)


def test_an_upstream_actor_is_named_in_the_list_of_events(keyturn: Command, upstream: Upstream) -> None:
    a_user_of(keyturn, upstream.mint())
    assert "upstream acme" in keyturn.ok("events", "list").out
    listed = keyturn.ok("events", "list", "--actor", "upstream", "--json").json
    assert {event["event"] for event in listed} == {"user_created", "identity_linked"}
