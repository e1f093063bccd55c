"""`keyturn sessions`, `gc` and `stats`: what they list, end, delete and count."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import text

from app.keyturn import Keyturn
from app.storage.tables import uuid7
from tests.command_line import Command, keyturn, on_sqlite, user
from tests.conftest import time_passes

__all__ = ["keyturn"]  # fixtures


def test_sessions_are_listed_shown_and_ended(keyturn: Command) -> None:
    ada, bob = user(keyturn), user(keyturn, "bob@example.com")
    tokens = [keyturn.login(email) for email in ("ada@example.com", "ada@example.com", "bob@example.com")]
    ids = [str(token.session_id) for token in tokens]
    listed = keyturn.ok("sessions", "list", "--json").json
    assert [(s["id"], s["user_id"], s["status"]) for s in listed] == [
        (ids[2], bob, "live"),
        (ids[1], ada, "live"),
        (ids[0], ada, "live"),
    ]
    assert not {"token_digest", "refresh_token"} & set(listed[0])
    assert [s["id"] for s in keyturn.ok("sessions", "list", "--json", "--limit", "1").json] == [ids[2]]
    assert [s["id"] for s in keyturn.ok("sessions", "list", "--json", "--before", ids[1]).json] == [ids[0]]
    assert [s["id"] for s in keyturn.ok("sessions", "list", "--json", "--user", "bob@example.com").json] == [ids[2]]
    assert ids[0] in keyturn.ok("sessions", "list").out

    table = keyturn.ok("sessions", "list").out.splitlines()
    assert table[0].split() == ["id", "email", "status", "begun", "refreshed", "ends"]
    assert table[1].split()[:3] == [ids[2], "bob@example.com", "live"]
    assert max(map(len, table)) <= 100

    # If one of the ids is unknown, the command still ends the other sessions.
    unknown = str(uuid7())
    partly = keyturn("sessions", "end", ids[0], unknown, ids[2])
    assert (partly.code, partly.out) == (1, "2 sessions ended\n")
    assert f"no such session {unknown};" in partly.err
    assert ids[0] not in partly.err
    assert (
        keyturn.ok("sessions", "end", ids[0]).out == f"0 sessions ended\n{ids[0]} was over before (revoked_by_admin)\n"
    )
    assert [s["id"] for s in keyturn.ok("sessions", "list", "--json", "--status", "live").json] == [ids[1]]
    shown = keyturn.ok("sessions", "show", ids[0], "--json").json
    assert shown["status"] == "revoked_by_admin"
    assert shown["ended_at"]
    assert (shown["user_id"], shown["email"]) == (ada, "ada@example.com")
    lines = keyturn.ok("sessions", "show", ids[0]).out.splitlines()
    assert [line.split()[0] for line in lines] == list(shown)
    assert keyturn.ok("sessions", "end", "--user", ada).out == "1 session ended\n"
    assert keyturn.ok("sessions", "list", "--status", "live").out == ""
    assert keyturn.ok("sessions", "list", "--status", "live", "--json").json == []


def test_sessions_are_listed_previewed_and_ended_by_the_same_filters(keyturn: Command) -> None:
    ada, _ = user(keyturn), user(keyturn, "bob@example.com")
    mine = [str(keyturn.login("ada@example.com").session_id) for _ in range(2)]
    theirs = str(keyturn.login("bob@example.com").session_id)
    begun = keyturn.ok("sessions", "show", mine[1], "--json").json["created_at"]
    cases = [
        (("--user", "ada@example.com"), mine),
        (("--user", ada, "--created-after", "2020-01-01"), mine),
        (("--user", ada, "--created-before", begun), mine[:1]),
        (("--client", "first-party", "--user", ada, "--idle-since", begun), mine[:1]),
        (("--created-before", "2020-01-01"), []),
        (("--client", "shop"), []),
        (("--address", "192.0.2.1"), []),
        (("--device", "phone-1"), []),
        (("--issuer", "acme"), []),
    ]
    for words, wanted in cases:
        listed = keyturn.ok("sessions", "list", "--json", "--status", "live", *words).json
        assert [session["id"] for session in listed] == wanted[::-1], words
        number = f"{len(wanted)} session{'s' * (len(wanted) != 1)}"
        assert keyturn.ok("sessions", "end", *words, "--preview").out == f"{number} would end\n"
    assert keyturn.ok("sessions", "end", "--user", ada, "--created-before", begun).out == "1 session ended\n"
    assert keyturn.ok("sessions", "end", "--user", ada).out == "1 session ended\n"
    ended = keyturn.ok("sessions", "list", "--json", "--status", "ended").json
    assert [(session["id"], session["status"]) for session in ended] == [
        (each, "revoked_by_admin") for each in mine[::-1]
    ]
    assert [session["id"] for session in keyturn.ok("sessions", "list", "--json").json] == [theirs, *mine[::-1]]
    assert "there are more: --before" in keyturn.ok("sessions", "list", "--limit", "2").err
    assert "there are more" not in keyturn.ok("sessions", "list", "--limit", "3").err


@on_sqlite
def test_sessions_that_are_not_there_are_refused(keyturn: Command) -> None:
    assert "no such session" in keyturn.refused(1, "sessions", "show", str(uuid7()))
    assert "no such user" in keyturn.refused(1, "sessions", "list", "--user", "nobody@example.com")
    assert "no such user" in keyturn.refused(1, "sessions", "end", "--user", "nobody@example.com")
    gone = str(uuid7())
    assert f"no such session {gone};" in keyturn.refused(1, "sessions", "end", gone)
    assert "ids or a filter are required" in keyturn.refused(2, "sessions", "end")
    assert "not allowed with" in keyturn.refused(2, "sessions", "end", str(uuid7()), "--user", "x")
    assert "--preview needs a filter" in keyturn.refused(2, "sessions", "end", str(uuid7()), "--preview")
    for moment in ("yesterday", "2026-13-31", "0001-01-01T00:00:00+14:00"):
        assert "must be a moment" in keyturn.refused(2, "sessions", "end", "--idle-since", moment)
    assert "ktr_" not in keyturn.refused(2, "sessions", "show", "ktr_" + "x" * 84)


def test_gc_deletes_what_is_long_over_and_nothing_else(keyturn: Command) -> None:
    user(keyturn)
    old = str(keyturn.login("ada@example.com").session_id)
    keyturn.ok("sessions", "end", old)
    keyturn.inside(lambda k: time_passes(k, timedelta(days=10)))
    live = str(keyturn.login("ada@example.com").session_id)
    assert keyturn.ok("gc", "--keep-days", "11").out.startswith("0 sessions deleted; kept: ")
    assert keyturn.ok("gc", "--keep-days", "99999", "--json").json["deleted"] == 0
    assert keyturn.ok("gc", "--keep-days", "9", "--json").json == {
        "deleted": 1,
        "kept_for_seconds": 777_600,
        "taken_tokens": 0,
        "upstream_sessions": 0,
    }
    assert "90065 s is the least: " in keyturn.ok("gc", "--keep-days", "0").out
    assert [s["id"] for s in keyturn.ok("sessions", "list", "--json").json] == [live]


def test_stats_tell_users_and_live_sessions(keyturn: Command) -> None:
    ada = user(keyturn)
    user(keyturn, "bob@example.com")
    keyturn.login("bob@example.com")
    keyturn.ok("users", "disable", ada)
    assert keyturn.ok("stats", "--json").json == {
        "users": {"enabled": 1, "disabled": 1},
        "sessions": [{"client_id": "first-party", "live": 1}],
        "complete": True,
    }
    done = keyturn.ok("stats")
    assert [line.split("  ")[0] for line in done.out.splitlines()] == [
        "of", "users, enabled", "users, disabled", "live sessions of first-party"
    ]  # fmt: skip
    assert "GET /admin/stats" in done.err


def test_a_session_under_no_key_that_could_open_its_token_is_not_live(keyturn: Command) -> None:
    user(keyturn)
    old = str(keyturn.login("ada@example.com").session_id)

    async def all_keys_are_deleted(keyturn: Keyturn) -> None:
        async with keyturn.db.begin() as tx:
            await tx.execute(text("DELETE FROM keys"))

    keyturn.inside(all_keys_are_deleted)
    new = str(keyturn.login("ada@example.com").session_id)  # the new key has the same number as the deleted one
    assert [s["id"] for s in keyturn.ok("sessions", "list", "--status", "live", "--json").json] == [new]
    assert keyturn.ok("sessions", "show", old, "--json").json["status"] == "revoked_by_admin"


def test_a_session_over_by_a_policy_that_was_made_stricter_is_not_listed_as_live(keyturn: Command) -> None:
    user(keyturn)
    keyturn.login("ada@example.com")
    keyturn.inside(lambda k: time_passes(k, timedelta(hours=2)))
    assert len(keyturn.ok("sessions", "list", "--status", "live", "--json").json) == 1
    keyturn.environment["KEYTURN_REFRESH_TOKEN_LIFETIME"] = "3600"
    assert keyturn.ok("sessions", "list", "--json").json[0]["status"] == "idle_timeout"
    assert keyturn.ok("sessions", "list", "--status", "live", "--json").json == []
