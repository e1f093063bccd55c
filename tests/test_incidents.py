"""The answers to leaks: each was tried as `keyturn incident` and docs/incidents.md say it.

`python -m tests.test_incidents` makes the page anew.
"""

from __future__ import annotations

import re
import shlex
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from app.commands.incidents import LEAKS, Leak
from app.errors import Refusal
from app.keyturn import Keyturn
from app.sessions.answers import Tokens
from tests.command_line import Command, command
from tests.conftest import PASSWORD, SECRET
from tests.test_restore import refreshed, verified

PAGE = Path(__file__).parent.parent / "docs" / "incidents.md"
NEW_SECRET = "Yx1Vj8mQ0s3Kd7Lw5Rt2Zb9Hc4Ng6Fp0Ae8Uo1Xq3Mi="
ADA = "ada@example.com"
BY_NAME = {leak.name: leak for leak in LEAKS}


def page() -> str:
    """The page, as the data of the command tells it."""
    parts = [
        "# Incidents\n",
        "Something leaked: find it, and type the commands in their order. `keyturn incident` prints the same, also where this",
        "page is not at hand. A test types the commands of each part, and checks that old tokens are refused. Words in",
        "capitals stand for yours: `USER` is an e-mail address or an id. [Commands on a",
        "server](production.md#commands-on-a-server) says how a command gets the settings of the service.\n",
        "| leaked | to users |\n|---|---|",
        *(f"| [{leak.title}](#{leak.name}) | {leak.users} |" for leak in LEAKS),
    ]
    for leak in LEAKS:
        parts += [f"\n## {leak.name}\n", f"{leak.title[0].upper()}{leak.title[1:]}.\n"]
        for number, step in enumerate(leak.steps, 1):
            parts.append(
                f"{number}. {step.does}"
                + (f"\n\n   ```sh\n   keyturn {step.command}\n   ```\n" if step.command else "")
            )
        parts.append(f"\nUsers notice: {leak.users[0].lower()}{leak.users[1:]}")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)) + "\n"


def test_the_page_is_made_from_the_answers() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()


@pytest.fixture
def engine() -> str:
    return "sqlite"  # the commands have tests of their own on both databases


@pytest.fixture
def keyturn(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    monkeypatch.chdir(tmp_path)
    # The waits of a minute and of some seconds, in which other instances learn of a key, have tests of their own.
    monkeypatch.setattr("app.sessions.key_changes.LAST_SIGN_IN", timedelta(0))
    monkeypatch.setattr("app.tokens.key_rotation.PUBLISHED_FOR", timedelta(0))
    keyturn = command(database_url, capsys)
    keyturn.ok("users", "create", ADA, "--role", "admin", stdin=PASSWORD.encode())
    return keyturn


def answer(keyturn: Command, name: str, **named: str) -> dict[str, str]:
    """Types the commands of an answer in their order, with these words for the placeholders. Returns the outputs."""
    outputs = {}
    for step in BY_NAME[name].steps:
        if "KEYTURN_SECRET " in step.does:
            keyturn.environment["KEYTURN_SECRET"] = NEW_SECRET
        if step.command:
            words = [named.get(word, word) for word in shlex.split(step.command)]
            assert not any(word.isupper() for word in words), words
            outputs[step.command] = keyturn.ok(*words, stdin=b"a-secret-of-the-issuer\n").out
    return outputs


def said(keyturn: Command, *tokens: Tokens) -> list[tuple[bool, bool]]:
    """Whether verify and refresh accept each of the tokens now."""

    async def ask(k: Keyturn) -> list[tuple[bool, bool]]:
        return [(await verified(k, each) == "accepted", await refreshed(k, each) == "accepted") for each in tokens]

    return keyturn.inside(ask)


def live(keyturn: Command) -> list[str]:
    return [session["id"] for session in keyturn.ok("sessions", "list", "--status", "live", "--json").json]


def kid(keyturn: Command, use: str) -> str:
    keys = keyturn.ok("keys", "list", "--json").json
    return next(key["kid"] for key in keys if key["use"] == use and key["status"] == "signs")


@pytest.mark.parametrize(
    ("name", "lost"), [("master-secret", "leaked"), ("master-secret", "lost"), ("server", "rows deleted")]
)
def test_after_the_master_secret_was_replaced_nothing_from_before_is_good(
    keyturn: Command, name: str, lost: str
) -> None:
    before = keyturn.login(ADA)
    if lost == "lost":
        keyturn.environment["KEYTURN_SECRET"] = "f" + SECRET[1:]
    if lost == "rows deleted":

        async def delete(k: Keyturn) -> None:
            async with k.db.begin() as tx:
                await tx.execute(text("DELETE FROM keys"))

        keyturn.inside(delete)
    outputs = answer(keyturn, name, USER=ADA)
    assert str(before.session_id) not in outputs["sessions list --status live"]
    assert said(keyturn, before) == [(False, False)]
    assert live(keyturn) == []
    if name == "server":
        password = outputs["users reset-password USER"].split()[-1]
        after = keyturn.login(ADA, password)
    else:
        after = keyturn.login(ADA)
    assert live(keyturn) == [str(after.session_id)]
    assert said(keyturn, after) == [(True, True)]


@pytest.mark.parametrize(
    ("name", "use", "expected"),
    [
        ("access-key", "access", (False, True)),
        ("refresh-key", "refresh", (False, False)),
        ("cookie-key", "cookie", (True, True)),
    ],
)
def test_after_a_key_leaked_nothing_that_it_made_is_good(
    keyturn: Command, name: str, use: str, expected: tuple[bool, bool]
) -> None:
    before = keyturn.login(ADA)
    leaked = kid(keyturn, use)
    answer(keyturn, name, KID=leaked)
    assert said(keyturn, before) == [expected]
    assert live(keyturn) == ([] if name == "refresh-key" else [str(before.session_id)])
    assert {key["kid"]: key["status"] for key in keyturn.ok("keys", "list", "--json").json}[leaked] == "retired"
    assert said(keyturn, keyturn.login(ADA)) == [(True, True)]


@pytest.mark.parametrize("name", ["password", "database-dump", "administrator"])
def test_after_a_password_leaked_neither_it_nor_a_session_is_good(keyturn: Command, name: str) -> None:
    before = keyturn.login(ADA)
    (user,) = keyturn.ok("users", "list", "--json").json
    outputs = answer(keyturn, name, USER=ADA, ID=user["id"])
    assert said(keyturn, before) == [(False, False)]
    assert live(keyturn) == []
    with pytest.raises(Refusal):
        keyturn.login(ADA)
    assert live(keyturn) == []
    keyturn.login(ADA, outputs["users reset-password USER"].split()[-1])


@pytest.mark.parametrize("name", ["refresh-token", "device"])
def test_after_a_session_leaked_it_alone_is_over(keyturn: Command, name: str) -> None:
    leaked, other = keyturn.login(ADA), keyturn.login(ADA)
    answer(keyturn, name, USER=ADA, SESSION=str(leaked.session_id))
    assert said(keyturn, leaked, other) == [(False, False), (True, True)]
    assert live(keyturn) == [str(other.session_id)]


def test_a_new_client_secret_takes_the_place_of_the_leaked_one(keyturn: Command) -> None:
    issuer = ("--preset", "oidc", "--issuer", "https://issuer.example.com", "--client-id", "app")
    keyturn.ok("federation", "add", "acme", *issuer, "--client-secret-stdin", stdin=b"the-old-secret\n")

    async def secret(k: Keyturn) -> str:
        (row,) = await k.issuers.rows()
        assert row.configured is not None
        assert row.configured.secrets.client_secret is not None
        return row.configured.secrets.client_secret.get_secret_value()

    assert keyturn.inside(secret) == "the-old-secret"
    answer(keyturn, "client-secret", NAME="acme")
    assert keyturn.inside(secret) == "a-secret-of-the-issuer"


@pytest.mark.parametrize("name", ["redis-dump", "logs"])
def test_where_nothing_is_to_be_ended_nothing_ends(keyturn: Command, name: str) -> None:
    before = keyturn.login(ADA)
    answer(keyturn, name)
    assert said(keyturn, before) == [(True, True)]


def test_each_answer_was_tried() -> None:
    source = Path(__file__).read_text(encoding="utf-8").partition("@pytest.fixture")[2]
    assert [name for name in BY_NAME if f'"{name}"' not in source] == []


@pytest.mark.parametrize("leak", LEAKS, ids=lambda leak: leak.name)
def test_the_command_prints_each_answer_without_any_set_up(
    leak: Leak, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    bare = Command({"KEYTURN_NO_SUCH_SETTING": "x"}, capsys)
    told = bare.ok("incident", leak.name).out
    for step in leak.steps:
        assert step.does in told
        assert step.command in told
    assert f"{leak.name} " in bare.ok("incident").out
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_leak_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert "invalid choice" in Command({}, capsys).refused(2, "incident", "nothing")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
