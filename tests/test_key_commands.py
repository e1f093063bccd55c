"""`keyturn keys rotate`, `import`, `export` and `sign-everyone-out`: what an operator types and reads."""

from __future__ import annotations

import base64
import os
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from app.keyturn import Keyturn
from tests.command_line import Command, findings, keyturn, user
from tests.conftest import SECRET

__all__ = ["keyturn"]  # fixtures
OTHER = "b" + SECRET[1:]


async def a_minute_passes(keyturn: Keyturn) -> None:
    async with keyturn.db.begin() as tx:
        await tx.execute(text("UPDATE keys SET signs_from = created_at WHERE signs_from > created_at"))


def listed(keyturn: Command) -> dict[str, dict[str, str]]:
    return {key["kid"]: key for key in keyturn.ok("keys", "list", "--json").json}


def test_a_rotation_says_what_will_happen_when_and_the_list_shows_it(keyturn: Command) -> None:
    user(keyturn)
    keyturn.login("ada@example.com")
    done = keyturn.ok("keys", "rotate", "refresh", "--no-wait")
    assert done.out == "refresh-2\n"
    assert "refresh-1 (HMAC-SHA256) signs refresh tokens now; refresh-2 (HMAC-SHA256) is published" in done.err
    assert "refresh-1 (HMAC-SHA256) retires at 20" in done.err
    assert "waiting" not in done.err
    assert keyturn.ok("keys", "rotate", "refresh", "--no-wait").out == "refresh-2\n"
    keys = listed(keyturn)
    assert (keys["refresh-1"]["status"], keys["refresh-2"]["status"]) == ("signs", "published")
    assert keys["refresh-1"]["retires_at"] > keys["refresh-2"]["signs_from"]
    assert keys["refresh-1"]["retires_at"].replace("T", " ")[:19] in keyturn.ok("keys", "list").out.replace("T", " ")
    keyturn.inside(a_minute_passes)
    assert {kid: key["status"] for kid, key in listed(keyturn).items() if "refresh" in kid} == {
        "refresh-1": "retiring", "refresh-2": "signs",
    }  # fmt: skip
    output = keyturn.ok("keys", "rotate", "access", "--algorithm", "EdDSA", "--no-wait")
    assert listed(keyturn)[output.out.strip()]["algorithm"] == "EdDSA"
    assert "algorithm" in keyturn.refused(1, "keys", "rotate", "cookie", "--algorithm", "ES256")
    assert "algorithm" in keyturn.refused(1, "keys", "rotate", "master", "--bits", "2048")
    assert keyturn.refused(2, "keys", "rotate", "everything")


def test_a_new_key_keeps_the_algorithm_unless_option_or_setting_name_another_and_the_change_is_said(
    keyturn: Command,
) -> None:
    def algorithm(*words: str) -> tuple[str, str]:
        done = keyturn.ok("keys", *words)
        return listed(keyturn)[done.out.split()[0]]["algorithm"], done.err

    keyturn.inside(a_minute_passes)  # as a start that makes the first key
    rotate = "rotate", "access", "--no-wait"
    made, said = algorithm(*rotate, "--algorithm", "ES256")
    assert made == "ES256"
    assert "HS256 → ES256: services that verify by themselves must take ES256 by then" in said
    # Before the new key signs, and after: a shell without the setting changes nothing.
    assert algorithm("generate", "access")[0] == "ES256"
    for words in (rotate, ("generate", "access")):
        keyturn.inside(a_minute_passes)
        made, said = algorithm(*words)
        assert made == "ES256"
        assert "→" not in said
    keyturn.inside(a_minute_passes)
    keyturn.environment["KEYTURN_SIGNING_ALGORITHM"] = "RS256"
    made, said = algorithm(*rotate)
    assert made == "RS256"
    assert "ES256 → RS256: " in said
    made, said = algorithm(*rotate, "--algorithm", "HS256")
    assert made == "HS256"
    assert "ES256 → HS256: services that verify by themselves can't: let them ask /auth/verify" in said


def test_the_master_secret_is_rotated_and_the_doctor_says_which_step_comes_next(keyturn: Command) -> None:
    user(keyturn)
    keyturn.login("ada@example.com")
    assert not [check for check in findings(keyturn("doctor", "--json")) if "PREVIOUS" in check]
    assert keyturn.ok("keys", "rotate", "master").out.startswith("0 rows moved")
    assert "sealed_under" not in keyturn.ok("keys", "list").out
    keyturn.environment |= {"KEYTURN_SECRET": OTHER, "KEYTURN_SECRET_PREVIOUS": SECRET}
    assert "previous" in keyturn.ok("keys", "list").out
    assert "keys rotate master" in findings(keyturn("doctor", "--json"))["keys under KEYTURN_SECRET_PREVIOUS (3)"]
    done = keyturn.ok("keys", "rotate", "master")
    assert done.out.startswith("3 rows moved")
    assert "without KEYTURN_SECRET_PREVIOUS" in done.err
    assert {key["sealed_under"] for key in listed(keyturn).values()} == {"current"}
    assert "no longer needed" in findings(keyturn("doctor", "--json"))["keys under KEYTURN_SECRET_PREVIOUS (0)"]
    del keyturn.environment["KEYTURN_SECRET_PREVIOUS"]
    keyturn.login("ada@example.com")
    keyturn.environment["KEYTURN_SECRET"] = SECRET
    assert "can't be unsealed" in keyturn.refused(1, "keys", "list")


def test_the_previous_secret_may_stand_in_a_file_that_nobody_else_reads(keyturn: Command, tmp_path: Path) -> None:
    user(keyturn)
    file = tmp_path / "previous"
    file.write_text(SECRET)
    keyturn.environment |= {"KEYTURN_SECRET": OTHER, "KEYTURN_SECRET_PREVIOUS_FILE": str(file)}
    file.chmod(0o644)
    assert "KEYTURN_SECRET_PREVIOUS_FILE: is open to everyone" in keyturn.refused(2, "keys", "list")
    file.chmod(0o600)
    keyturn.ok("keys", "list")
    keyturn.environment["KEYTURN_SECRET"] = SECRET
    assert "same secret" in keyturn.refused(2, "keys", "list")


@pytest.mark.parametrize("by_file", [False, True])
def test_a_key_is_imported_and_exported_and_both_say_what_that_means(
    keyturn: Command, tmp_path: Path, by_file: bool
) -> None:
    user(keyturn)
    keyturn.login("ada@example.com")
    secret = os.urandom(32)
    line = base64.b64encode(secret) + b"\n"
    file = tmp_path / "key"
    file.write_bytes(line)
    done = keyturn.ok("keys", "import", str(file)) if by_file else keyturn.ok("keys", "import", stdin=line)
    kid = done.out.strip()
    assert listed(keyturn)[kid]["status"] == "published"
    assert "can sign any access token" in done.err
    assert f"{kid} (HS256) is published and signs from" in done.err
    assert "--yes-export-this-secret" in keyturn.refused(2, "keys", "export", kid)
    given = keyturn.ok("keys", "export", kid, "--yes-export-this-secret")
    assert given.out == base64.urlsafe_b64encode(secret).decode().rstrip("=") + "\n"
    assert "for any user, with any role" in given.err
    assert {e["event"] for e in keyturn.ok("events", "list", "--json").json} >= {"key_imported", "key_exported"}
    assert "Only HS256" in keyturn.refused(1, "keys", "export", "refresh-1", "--yes-export-this-secret")
    assert "there already" in keyturn.refused(1, "keys", "import", stdin=line)
    assert "256 random bits" in keyturn.refused(2, "keys", "import", stdin=b"hunter2\n")
    assert "hunter2" not in keyturn.refused(2, "keys", "import", stdin=b"hunter2\n")
    assert "can't be read" in keyturn.refused(1, "keys", "import", str(tmp_path / "missing"))
    file.write_bytes(b"\xff\xfe")
    assert "can't be read" in keyturn.refused(1, "keys", "import", str(file))


def test_everyone_is_signed_out_by_one_command_and_listed_so(keyturn: Command) -> None:
    user(keyturn)
    old = [str(keyturn.login("ada@example.com").session_id) for _ in range(2)]
    output = keyturn.ok("keys", "sign-everyone-out").out
    assert output.startswith("everyone is signed out; within 2 s all tokens made so far are refused everywhere\n")
    assert "refresh-2" in output
    new = str(keyturn.login("ada@example.com").session_id)
    assert {s["id"]: s["status"] for s in keyturn.ok("sessions", "list", "--json").json} == {
        new: "live", **dict.fromkeys(old, "signed_out_everywhere"),
    }  # fmt: skip


def test_retiring_a_refresh_key_ends_the_sessions_under_it_and_says_how_many(
    keyturn: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.sessions.key_changes.LAST_SIGN_IN", timedelta(0))
    user(keyturn)
    sessions = [keyturn.login("ada@example.com").session_id for _ in range(2)]
    assert keyturn.ok("keys", "generate", "refresh").out.strip() == "refresh-2"
    assert "wait 60 seconds" in keyturn.refused(1, "keys", "retire", "refresh-1")

    async def a_minute_passes(keyturn: Keyturn) -> None:
        async with keyturn.db.begin() as tx:
            await tx.execute(text("UPDATE keys SET signs_from = created_at"))

    keyturn.inside(a_minute_passes)
    done = keyturn.ok("keys", "retire", "refresh-1").out.splitlines()
    assert done[0] == "refresh-1 is retired; within 2 s its tokens are refused everywhere"
    assert done[1] == "refresh-2 (HMAC-SHA256) signs refresh tokens now"
    assert [line.partition(" ended")[0] for line in done[2:]] == ["2 sessions", "0 sessions more"]
    for session in sessions:
        assert keyturn.ok("sessions", "show", str(session), "--json").json["status"] == "revoked_by_admin"
    # An operator may call the command again after it broke off.
    again = keyturn.ok("keys", "retire", "refresh-1").out.splitlines()
    assert again[0].startswith("refresh-1 was retired already, at ")
    assert again[2].startswith("0 sessions ended")


def test_keys_are_made_listed_and_retired(keyturn: Command) -> None:
    user(keyturn)
    keyturn.login("ada@example.com")  # makes the first keys, as a service does
    first = {key["use"]: key for key in keyturn.ok("keys", "list", "--json").json}
    assert {key["status"] for key in first.values()} == {"signs"}
    assert not {"sealed", "secret"} & set(first["access"])
    made = [
        keyturn.ok("keys", "generate", *words).out.strip()
        for words in (("access",), ("access", "--algorithm", "EdDSA"), ("refresh",))
    ]
    assert made[2] == "refresh-2"
    listed = {key["kid"]: key for key in keyturn.ok("keys", "list", "--json").json}
    assert [listed[kid]["status"] for kid in made] == ["published"] * 3
    assert [listed[kid]["algorithm"] for kid in made] == ["HS256", "EdDSA", "HMAC-SHA256"]
    assert made[1] in keyturn.ok("keys", "list").out
    cookie = keyturn.ok("keys", "generate", "cookie")
    assert cookie.err.startswith(
        f"{first['cookie']['kid']} (A256GCM) seals cookies now; {cookie.out.strip()} (A256GCM) is "
    )
    assert "is published and seals from " in cookie.err
    output = keyturn.ok("keys", "retire", cookie.out.strip()).out.splitlines()
    assert output == [
        f"{cookie.out.strip()} is retired; within 2 s its cookies are refused everywhere",
        f"{first['cookie']['kid']} (A256GCM) seals cookies now",
    ]
    only = keyturn.refused(1, "keys", "retire", first["cookie"]["kid"])
    assert "It is the only cookie key that can seal" in only
    output = keyturn.ok("keys", "retire", made[0]).out.splitlines()
    assert output[0] == f"{made[0]} is retired; within 2 s its tokens are refused everywhere"
    assert output[1].startswith(
        f"{first['access']['kid']} (HS256) signs access tokens now; {made[1]} (EdDSA) is published"
    )
    assert {k["kid"]: k["status"] for k in keyturn.ok("keys", "list", "--json").json}[made[0]] == "retired"
    assert "was retired already" in keyturn.ok("keys", "retire", made[0]).out
    assert "no such key" in keyturn.refused(1, "keys", "retire", "no-such-key")
    assert "It is the only access key that can sign" in keyturn.refused(1, "keys", "retire", first["access"]["kid"])
    wrong = keyturn.refused(1, "keys", "generate", "refresh", "--algorithm", "ES256")
    assert "algorithm and bits are for access keys" in wrong


def test_the_size_of_an_rsa_key_is_said_where_it_is_made(keyturn: Command) -> None:
    user(keyturn)
    keyturn.login("ada@example.com")
    # The newest key is of HS256, so the next one is too, and has no size to choose.
    assert "bits" in keyturn.refused(1, "keys", "generate", "access", "--bits", "3072")
    made = [
        keyturn.ok("keys", "generate", "access", "--algorithm", "RS256", *bits).out.strip()
        for bits in ((), ("--bits", "2048"), ("--bits", "3072"))
    ]
    listed = {key["kid"]: key["algorithm"] for key in keyturn.ok("keys", "list", "--json").json}
    assert {listed[kid] for kid in made} == {"RS256"}
    for words in (
        ("refresh", "--bits", "3072"),
        ("access", "--algorithm", "ES256", "--bits", "2048"),
    ):
        assert "bits" in keyturn.refused(1, "keys", "generate", *words)
    keyturn.refused(2, "keys", "generate", "access", "--algorithm", "RS256", "--bits", "1024")


def test_a_lost_master_secret_is_answered_by_new_keys_and_no_session_stays_live(
    keyturn: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.sessions.key_changes.LAST_SIGN_IN", timedelta(0))
    user(keyturn)
    sessions = [str(keyturn.login("ada@example.com").session_id) for _ in range(2)]
    keyturn.environment["KEYTURN_SECRET"] = "b" + SECRET[1:]
    assert "keys replace" in keyturn.refused(1, "sessions", "list")
    assert "--sign-everyone-out" in keyturn.refused(2, "keys", "replace")
    output = keyturn.ok("keys", "replace", "--sign-everyone-out").out
    assert "refresh-2 (HMAC-SHA256) signs refresh tokens now" in output
    assert "(A256GCM) seals cookies now" in output
    assert "2 sessions ended; everyone has to sign in again" in output
    assert keyturn.ok("sessions", "list", "--status", "live", "--json").json == []
    new = str(keyturn.login("ada@example.com").session_id)
    listed = {s["id"]: s["status"] for s in keyturn.ok("sessions", "list", "--json").json}
    assert listed == {new: "live", **dict.fromkeys(sessions, "revoked_by_admin")}
