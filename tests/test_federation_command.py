"""`keyturn federation`: what an operator types and reads, and what the doctor says of the issuers."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import update

from app.federation.issuer import Configured
from app.keyturn import Keyturn
from app.storage.tables import Issuer as Row
from tests.command_line import Command, findings, keyturn, on_sqlite, user
from tests.conftest import SECRET
from tests.test_issuers import planted, secret_in
from tests.upstream.upstream import Upstream

__all__ = ["keyturn"]  # the fixture
OTHER = "b" + SECRET[1:]


def add(command: Command, upstream: Upstream, *more: str, name: str = "acme", stdin: bytes = b"") -> tuple[str, str]:
    done = command.ok(
        *("federation", "add", name, "--preset", "scalekit", "--issuer", upstream.url),
        *("--client-id", upstream.client_id, "--set", f"ca_file={upstream.ca_file}", "--set", "private_addresses=true"),
        *more,
        stdin=stdin,
    )
    return done.out, done.err


def held(command: Command, name: str = "acme") -> Configured:
    async def act(keyturn: Keyturn) -> Configured:
        return keyturn.issuers.named(name)

    return command.inside(act)


def test_an_issuer_is_added_changed_listed_and_removed(keyturn: Command, upstream: Upstream) -> None:
    user(keyturn, "root@example.com", "--role", "admin")
    keyturn.login("root@example.com")  # the first start made the keys
    assert "there are none" in keyturn.ok("federation", "list").err
    out, err = add(keyturn, upstream, "--client-secret-stdin", stdin=upstream.client_secret.encode() + b"\n")
    assert out == "acme\n"
    assert "within a second" in err
    assert "without webhook_secret, its webhooks are refused" in err
    assert "client_secret" not in err
    assert "examined" not in err
    listed = keyturn.ok("federation", "list").out
    assert [word in listed for word in ("acme", "scalekit", upstream.url, "in_force", "client_secret")] == [True] * 5
    # Members that a change does not name stay, and so do secrets.
    keyturn.ok("federation", "add", "acme", "--set", "roles=boss=editor,invoices:write=clerk", "--set", "audiences=a,b")
    both = keyturn.ok("federation", "add", "acme", "--webhook-secret-stdin", stdin=upstream.webhook_secret.encode())
    assert "webhook" not in both.err
    (row,) = keyturn.ok("federation", "list", "--json").json
    assert row["roles"] == {"boss": "editor", "invoices:write": "clerk"}
    assert row["audiences"] == ["a", "b"]
    assert (row["issuer"], row["private_addresses"]) == (upstream.url, True)
    assert (row["has_client_secret"], row["has_webhook_secret"]) == (True, True)
    of = held(keyturn)
    assert (secret_in(of), secret_in(of, "webhook_secret")) == (upstream.client_secret, upstream.webhook_secret)
    keyturn.ok("federation", "add", "acme", "--set", "audiences=", "--forget", "webhook_secret")
    (row,) = keyturn.ok("federation", "list", "--json").json
    assert (row["audiences"], row["has_client_secret"], row["has_webhook_secret"]) == ([], True, False)
    removed = keyturn.ok("federation", "remove", "acme")
    assert removed.out.startswith("acme is removed")
    assert "sessions end --issuer acme" in removed.err
    assert "acme" not in keyturn.ok("federation", "list").out
    assert "no such issuer" in keyturn.refused(1, "federation", "remove", "acme")
    events = {event["event"] for event in keyturn.ok("events", "list", "--json").json}
    assert events >= {"issuer_changed", "issuer_removed"}


@on_sqlite
def test_two_secrets_come_by_two_lines(keyturn: Command, upstream: Upstream) -> None:
    keyturn.inside(nothing)
    lines = f"{upstream.client_secret}\n{upstream.webhook_secret}\n".encode()
    add(keyturn, upstream, "--webhook-secret-stdin", "--client-secret-stdin", stdin=lines)
    of = held(keyturn)
    assert (secret_in(of), secret_in(of, "webhook_secret")) == (upstream.client_secret, upstream.webhook_secret)
    for lines in (b"", b"\n", b"   \n"):
        said = keyturn.refused(1, "federation", "add", "acme", "--client-secret-stdin", stdin=lines)
        assert "client_secret: standard input has no line for it" in said
    said = keyturn.refused(
        1, "federation", "add", "acme", "--client-secret-stdin", "--forget", "client_secret", stdin=b"x\n"
    )
    assert "is given and forgotten" in said
    assert secret_in(held(keyturn)) == upstream.client_secret


async def nothing(_: Keyturn) -> None:
    pass


@on_sqlite
def test_words_that_are_wrong_are_refused_and_no_value_is_repeated(keyturn: Command, upstream: Upstream) -> None:
    keyturn.inside(nothing)
    hunter = "hunter2"
    for code, words, said in (
        (2, ("--set", f"client_secret={hunter}"), "--client-secret-stdin"),
        (2, ("--set", f"nothing={hunter}"), "must be MEMBER=VALUE"),
        (2, ("--set", hunter), "must be MEMBER=VALUE"),
        (2, ("--set", f"roles={hunter}"), "roles: must be THEIRS=OURS"),
        (2, ("--set", f'roles={{"{hunter}"'), "roles: is not valid JSON"),
        (2, ("--preset", "saml"), "invalid choice"),
        (1, (), "preset: is missing"),
        (1, ("--preset", "oidc", "--issuer", "https://a.example"), "client_id: is missing"),
        (1, ("--preset", "oidc", "--issuer", f"http://{hunter}", "--client-id", "x"), "issuer: must be an https URL"),
        (1, ("--set", f"check_every={hunter}"), "preset: is missing"),
    ):
        refusal = keyturn.refused(code, "federation", "add", "acme", *words)
        assert said in refusal
        assert hunter not in refusal
    assert "name: must have" in keyturn.refused(
        1, "federation", "add", "Acme", "--preset", "scalekit", "--issuer", upstream.url, "--client-id", "x"
    )
    assert "there are none" in keyturn.ok("federation", "list").err
    assert upstream.requests() == []


@on_sqlite
def test_json_takes_values_that_hold_a_comma(keyturn: Command, upstream: Upstream) -> None:
    keyturn.inside(nothing)
    add(keyturn, upstream, "--set", 'roles={"a,b=c": "editor"}', "--set", 'audiences=["x,y"]')
    (row,) = keyturn.ok("federation", "list", "--json").json
    assert (row["roles"], row["audiences"]) == ({"a,b=c": "editor"}, ["x,y"])


@on_sqlite
def test_an_issuer_that_is_away_is_added_and_a_wrong_one_is_not(keyturn: Command, upstream: Upstream) -> None:
    keyturn.inside(nothing)
    upstream.fault("/.well-known", "answer", status=200, body='{"issuer": "https://evil.example"}')
    said = keyturn.refused(
        1,
        *("federation", "add", "acme", "--preset", "scalekit", "--issuer", upstream.url, "--client-id", "x"),
        *("--set", f"ca_file={upstream.ca_file}", "--set", "private_addresses=true"),
    )
    assert "names another issuer" in said
    assert "there are none" in keyturn.ok("federation", "list").err
    upstream.refuse()
    _, err = add(keyturn, upstream)
    assert "it could not be examined: issuer acme: no connection" in err


@on_sqlite
def test_the_doctor_says_which_issuers_there_are_and_which_secret_one_lacks_for_what_it_does(
    keyturn: Command, upstream: Upstream, tmp_path: Path
) -> None:
    keyturn.inside(nothing)
    assert not [check for check in findings(keyturn("doctor", "--json")) if "issuer" in check]
    add(keyturn, upstream)
    found = findings(keyturn("doctor", "--json"))
    line = f"issuer acme (table): scalekit, {upstream.url}, without webhook_secret: its webhooks are refused"
    assert found[line] == ""
    assert "local logouts do not end its sessions" in found["client_secret of the issuer acme"]
    assert "--client-secret-stdin" in found["client_secret of the issuer acme"]
    keyturn.ok("federation", "add", "acme", "--set", "check_sessions=open", "--set", "revoke_sessions=false")
    advice = findings(keyturn("doctor", "--json"))["client_secret of the issuer acme"]
    assert "refreshes do not ask" in advice
    assert "logouts" not in advice
    keyturn.ok("federation", "add", "acme", "--set", "check_sessions=")
    assert "client_secret of the issuer acme" not in findings(keyturn("doctor", "--json"))
    secrets = f"{upstream.client_secret}\n{upstream.webhook_secret}\n".encode()
    keyturn.ok("federation", "add", "acme", "--client-secret-stdin", "--webhook-secret-stdin", stdin=secrets)
    checked = f"issuer acme (table): scalekit, {upstream.url}"
    assert findings(keyturn("doctor", "--json"))[checked] == ""
    upstream.refuse()
    done = keyturn("doctor", "--json")
    assert done.code == 3
    assert "federation check acme" in findings(done)[checked]
    assert findings(done)[checked].startswith("away: issuer acme: no connection;")
    upstream.heal()

    async def spoil(keyturn: Keyturn) -> None:
        await planted(keyturn, "later", configuration="{}")
        async with keyturn.db.begin() as tx:
            await tx.execute(update(Row).where(Row.name == "acme").values(sealed=bytes(60)))

    keyturn.inside(spoil)
    file = tmp_path / "issuers.toml"
    file.write_text(f'[issuers.later]\npreset = "scalekit"\nissuer = "{upstream.url}/2"\nclient_id = "x"\n')
    found = findings(keyturn("doctor", "--json"))
    assert "does not open its secrets" in found["issuer acme (table)"]
    assert "can't read its row" in found["issuer later (table)"]
    keyturn.environment["KEYTURN_FEDERATION_FILE"] = str(file)
    found = findings(keyturn("doctor", "--json"))
    assert "set it in the file" in found["client_secret of the issuer later"]
    said = keyturn.refused(1, "federation", "add", "later", "--set", "trust_email=true")
    assert "stands in the file of KEYTURN_FEDERATION_FILE" in said


def test_the_master_secret_is_rotated_with_the_secrets_of_issuers(keyturn: Command, upstream: Upstream) -> None:
    keyturn.inside(nothing)
    add(keyturn, upstream, "--client-secret-stdin", stdin=upstream.client_secret.encode())
    keyturn.environment |= {"KEYTURN_SECRET": OTHER, "KEYTURN_SECRET_PREVIOUS": SECRET}
    assert "still under KEYTURN_SECRET_PREVIOUS: acme" in keyturn.ok("keys", "list").err
    found = findings(keyturn("doctor", "--json"))
    assert "keys rotate master" in found["keys under KEYTURN_SECRET_PREVIOUS (3), and secrets of issuers (1)"]
    assert keyturn.ok("keys", "rotate", "master").out.startswith("4 rows moved")
    assert keyturn.ok("keys", "list").err == ""
    assert "no longer needed" in findings(keyturn("doctor", "--json"))["keys under KEYTURN_SECRET_PREVIOUS (0)"]
    del keyturn.environment["KEYTURN_SECRET_PREVIOUS"]
    assert secret_in(held(keyturn)) == upstream.client_secret


@pytest.mark.parametrize("verb", ["add", "list", "remove"])
@on_sqlite
def test_each_verb_has_its_help(keyturn: Command, verb: str) -> None:
    done = keyturn("federation", verb, "--help")
    assert done.code == 0
    assert "usage: keyturn federation" in done.out
