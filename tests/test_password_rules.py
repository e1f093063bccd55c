"""A new password is refused for its length, its commonness or its context, by one rule that can be said in a sentence.

NIST SP 800-63B-4, 3.1.1.2. No rule holds at a sign-in.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update

from app.actors import SERVICE
from app.errors import InvalidRequest
from app.keyturn import Keyturn
from app.storage.tables import User
from app.users.made_passwords import make
from app.users.password_forms import consists_of, first_run, forms, listed_form, repeated, runs
from tests.api import ADA, BOB, Api, Serve, api, refused, serve
from tests.command_line import Command, on_sqlite
from tests.command_line import keyturn as command
from tests.conftest import NEW_PASSWORD, PASSWORD, Opener
from tests.test_admin_users import Office, office

__all__ = ["api", "command", "office", "serve"]

SERVED_AS = {"issuer": "https://auth.acme-corp.example"}

LENGTH = "must have 15 characters or more, 1024 bytes at most and no NUL."
RUNS = "is only a few runs"
REPEATS = "only repeats a few characters"
COMMON = "is a common password, or nearly one"
CONTEXT = "is only the address of the account, or a name of this service"

REFUSED = {
    "": LENGTH,
    "x": LENGTH,
    "only 14 chars!": LENGTH,
    "é" * 14: LENGTH,
    "\U0001f511" * 14: LENGTH,
    "seven lamps under\0 a quiet roof": LENGTH,
    "seven lamps " + "é" * 510: LENGTH,
    "aaaaaaaaaaaaaaa": RUNS,
    "aaaaaaaaaaaaaaab": RUNS,
    "111111222222333333": RUNS,
    "123456789012345": RUNS,
    "987654321098765": RUNS,
    "abcdefghijklmno": RUNS,
    "qwertyuiopasdfghjkl": RUNS,
    "QWERTZUIOPÜÜÜÜÜ": RUNS,
    "!@#$%^&*()_+!!!!": RUNS,
    " " * 20: RUNS,
    "xkxkxkxkxkxkxkxk": REPEATS,
    "x7kqx7kqx7kqx7kqx7": REPEATS,
    "no no no no no no no": REPEATS,
    "passwordpassword": COMMON,
    "PasswordPassword!": COMMON,
    "password password": COMMON,
    "Password1234567": COMMON,
    "PASSWORD2024!!!!!": COMMON,
    "p-a-s-s-w-o-r-d-1": COMMON,
    "1234567password": COMMON,
    "pass!word-pass!word-pass!word-": COMMON,
    "qwertypassword12": COMMON,
    "password1password1": COMMON,
    "".join(chr(ord(each) + 0xFEE0) for each in "Password1234567"): COMMON,  # full width
    "correct horse battery staple": COMMON,
    "iloveyousomuch123": COMMON,
    "LovelaceLovelace": COMMON,
    "keyturnkeyturn1": CONTEXT,
    "Keyturn-Keyturn-2024": CONTEXT,
    "acme-corp-acme-corp": CONTEXT,
    "auth.acme-corp.example": CONTEXT,
    "Acme-Corp Keyturn": CONTEXT,
    "ada.lovelace@mail.example.org": CONTEXT,
    "ada.lovelace@mail": CONTEXT,
    "lovelace.ada.1815": CONTEXT,
    "lovelace-keyturn": CONTEXT,
}
"""Passwords of Ada Lovelace, whose address is ada.lovelace@mail.example.org, and the rule that refuses each."""

ACCEPTED = (
    PASSWORD,
    NEW_PASSWORD,
    "only 15 chars!!",
    "é" + "grüße ohne ende",
    "831029384710293",  # digits alone are no rule's business
    "%^{]~lOve$#!;@&",  # a common word among marks that are the strength
    "83!02$love&91*74+",
    "love83029174651",  # so are many digits
    "lovelace wrote the first program",
    "my keyturn password is long",
    "the password of the horse",
    "ada and byron and keyturn",
    "סיסמה ארוכה בעברית",
    "密码必须足够长才安全所以我写这句话",
    " \t leading blanks count too",
    PASSWORD + "x" * (1024 - len(PASSWORD)),
)


@pytest.fixture
async def here(open_keyturn: Opener) -> Any:
    async with open_keyturn(**SERVED_AS) as keyturn:
        yield keyturn


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("password", "sentence"), REFUSED.items())
async def test_a_refusal_says_which_rule_and_repeats_nothing(here: Keyturn, password: str, sentence: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await here.password_rules.accepted(password, "ada.lovelace@mail.example.org")
    said = caught.value.description
    assert said.startswith(f"password: {sentence}")
    assert len(password) < 4 or password not in f"{caught.value.cause}{said}"
    if sentence != LENGTH:
        assert "let a password manager make one" in said, "a refusal helps to choose better"


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
@pytest.mark.parametrize("password", ACCEPTED)
async def test_any_other_password_is_taken_as_it_is(here: Keyturn, password: str) -> None:
    assert await here.password_rules.accepted(password, "ada.lovelace@mail.example.org") == password.encode()
    assert await here.password_rules.accepted(password, None) == password.encode()


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_code_points_are_counted_and_bytes_only_bound_them(open_keyturn: Opener) -> None:
    async with open_keyturn(password_length=8) as keyturn:
        for password in ("ħ\U0001f511ŋ\u0301đ\U0001f98aþ¶", "k7!vQ2pz"):
            assert len(password) == 8
            assert await keyturn.password_rules.accepted(password, None)
            with pytest.raises(InvalidRequest, match="length"):
                await keyturn.password_rules.accepted(password[:7], None)


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_at_the_shortest_length_the_list_still_holds(open_keyturn: Opener) -> None:
    async with open_keyturn(password_length=8) as keyturn:
        for password in ("password", "Passw0rd!", "iloveyou", "sunshine1", "letmein!!", "love1974", "P@ssw0rd"):
            with pytest.raises(InvalidRequest, match="common"):
                await keyturn.password_rules.accepted(password, None)


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_what_keyturn_makes_breaks_no_rule(keyturn: Keyturn) -> None:
    for _ in range(200):
        await keyturn.password_rules.accepted(make(), ADA)


# -- where the rules hold


async def test_registration_change_and_administration_refuse_and_name_the_field(
    serve: Serve, database_url: str
) -> None:
    async with serve(registration="true") as api:
        await api.keyturn.users.create(ADA, PASSWORD, by=SERVICE)
        tokens = await api.login()
        answer = await api.post("/auth/register", {"email": BOB, "password": "passwordpassword"})
        refused(answer, 400, "invalid_request")
        assert answer.json()["error_description"].startswith(f"password: {COMMON}")
        answer = await api.post("/auth/register", {"email": BOB, "password": BOB + BOB})
        assert answer.json()["error_description"].startswith(f"password: {CONTEXT}")
        change = {"current_password": PASSWORD, "new_password": "passwordpassword"}
        answer = await api.post("/auth/password", change, tokens["access_token"])
        refused(answer, 400, "invalid_request")
        assert answer.json()["error_description"].startswith(f"new_password: {COMMON}")
        change["new_password"] = f"{ADA}1"
        answer = await api.post("/auth/password", change, tokens["access_token"])
        assert answer.json()["error_description"].startswith(f"new_password: {CONTEXT}")
        assert await api.is_live(tokens)
        assert await api.login()


async def test_an_administrator_s_choice_for_a_new_user_obeys_too(office: Office) -> None:
    answer = await office("POST", body={"email": BOB, "password": "Password1234567"})
    refused(answer, 400, "invalid_request")
    assert answer.json()["error_description"].startswith(f"password: {COMMON}")
    assert (await office("POST", body={"email": BOB, "password": NEW_PASSWORD})).status_code == 201


async def test_a_registration_that_tells_nothing_refuses_a_taken_address_as_a_free_one(serve: Serve) -> None:
    async with serve(registration="true", registration_tells="false") as api:
        await api.keyturn.users.create(ADA, PASSWORD, by=SERVICE)
        answers = [
            await api.post("/auth/register", {"email": email, "password": "passwordpassword"}) for email in (ADA, BOB)
        ]
        assert answers[0].text == answers[1].text
        assert [answer.status_code for answer in answers] == [400, 400]


@on_sqlite
def test_commands_refuse_too(command: Command) -> None:
    said = command.refused(1, "users", "create", ADA, "--password-stdin", stdin=b"passwordpassword\n")
    assert COMMON in said
    assert "passwordpassword" not in said
    command.ok("users", "create", ADA, "--password-stdin", stdin=PASSWORD.encode())
    assert CONTEXT in command.refused(1, "users", "set-password", ADA, "--password-stdin", stdin=f"{ADA}1\n".encode())
    command.ok("users", "set-password", ADA, "--password-stdin", stdin=NEW_PASSWORD.encode())
    assert command.login(ADA, NEW_PASSWORD)


async def test_no_rule_holds_at_a_sign_in(api: Api) -> None:
    """As with passwords from before the rules: short, common, and the user's own name."""
    for password in ("short", "password", "adaadaada", "x"):
        hashed = await api.keyturn.passwords.hash(password.encode())
        async with api.keyturn.db.begin() as tx:
            await tx.execute(update(User).values(password_hash=hashed))
        tokens = await api.login(ADA, password)
        body = {"password": password, "refresh_token": tokens["refresh_token"]}
        assert (await api.post("/auth/reauthenticate", body)).status_code == 200
    # The first change obeys. The current password may be what it is.
    change = {"current_password": "x", "new_password": "y" * 15}
    assert (await api.post("/auth/password", change, tokens["access_token"])).status_code == 400
    change["new_password"] = NEW_PASSWORD
    assert (await api.post("/auth/password", change, tokens["access_token"])).status_code == 204


# -- the length is a member of the policy


async def test_a_policy_may_ask_for_more_than_the_setting_and_never_for_less(open_keyturn: Opener) -> None:
    async with open_keyturn(password_length=10) as keyturn:
        await keyturn.users.create(ADA, "k7!vQ2pz+w", by=SERVICE)
        await keyturn.policy_changes.change("global", {"password_length": 20}, by=SERVICE)
        await keyturn.policies.load()
        assert keyturn.policies.in_force.password_length == 20
        with pytest.raises(InvalidRequest, match="length") as caught:
            await keyturn.users.create(BOB, "k7!vQ2pz+w" + "mR5#tY8&u", by=SERVICE)
        assert "20 characters or more" in caught.value.description
        await keyturn.users.create(BOB, "k7!vQ2pz+w" + "mR5#tY8&uB", by=SERVICE)
        await keyturn.sign_in.authenticate(ADA, "k7!vQ2pz+w")
        for wrong in (9, 65):
            with pytest.raises(InvalidRequest) as caught:
                await keyturn.policy_changes.change("global", {"password_length": wrong}, by=SERVICE)
            assert caught.value.description == "password_length: must be 10 (the setting) to 64."
    async with open_keyturn(password_length=30) as keyturn:
        await keyturn.policies.load()
        assert keyturn.policies.in_force.password_length == 30, "the settings are the floor of what a row has"


@on_sqlite
def test_policies_and_doctor_say_what_is_in_force(command: Command) -> None:
    command.ok("policies", "set", "global", "password_length=18")
    rows = {row["scope"]: row for row in command.ok("policies", "list", "--json").json}
    assert rows["global"]["in_force"]["password_length"] == 18
    assert rows["global"]["sources"]["password_length"] == "policy"
    assert rows["global"]["most"]["password_length"] == 15
    [line] = [each for each in command.ok("policies", "show", "global").out.splitlines() if "password_length" in each]
    assert line.split() == ["password_length", "18", "policy", "18", "15"]
    assert command.ok("policies", "show", "global").out.split("\n")[0].split()[-1] == "bound"
    said = json.loads(command("doctor", "--json").out)
    [line] = [each for each in said if each["check"].startswith("new passwords:")]
    assert line["ok"]
    assert "18 characters or more, Keyturn's list of " in line["check"]
    assert "breached passwords is not asked" in line["check"]


# -- the operator's own list


async def test_a_list_of_the_operator_s_takes_the_place_of_keyturn_s(open_keyturn: Opener, tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("Seven Lamps under a quiet roof\r\nanother one of ours\n\n", encoding="utf-8-sig")
    async with open_keyturn(password_list_file=file) as keyturn:
        for password in ("seven lamps under a quiet roof", "Another-One-Of-Ours!"):
            with pytest.raises(InvalidRequest, match="common"):
                await keyturn.password_rules.accepted(password, None)
        assert await keyturn.password_rules.accepted("passwordpassword", None)
        assert "the list" in keyturn.password_rules.words
        assert "of 2 forms" in keyturn.password_rules.words


# -- the sentence, piece by piece


def test_case_repetition_ends_and_few_marks_count_for_nothing() -> None:
    for password in (
        "OpenSesame",
        "opensesameOPENSESAME",
        "opensesame12345678",
        "2024opensesame",
        "open-sesame",
        "öpenSesame!",
    ):
        assert ("opensesame" in forms(password)) == (password != "öpenSesame!"), password
    assert listed_form("Open-Sesame 12") == "opensesame12"
    assert forms("ab") == frozenset()


@given(st.text(min_size=4, max_size=80))
def test_a_listed_password_is_always_found_whatever_its_case_and_repetition(password: str) -> None:
    form = listed_form(password)
    if len(form) >= 4:
        assert form in forms(password)
        if repeated(form) == form and form.isalpha() and first_run(form[::-1]) < 4:
            assert form in forms(form + form)
            assert form in forms(f"{form}12345678")


@given(st.text(max_size=200))
def test_runs_and_repetitions_are_counted_for_any_text(text: str) -> None:
    assert (runs(text, 10**6) == 0) == (text == "")
    assert runs(text, 10**6) <= len(text)
    assert text.startswith(repeated(text))
    part = repeated(text)
    if part != text:
        assert (part * len(text)).startswith(text)
        assert 2 * len(part) <= len(text)


def test_no_password_of_the_largest_size_keeps_the_event_loop_busy_for_long() -> None:
    """The work grows with the length and not with its square. Steps are counted: a busy machine's clock says nothing."""
    import sys

    def lines(text: str) -> int:
        number = 0

        def trace(*_: Any) -> Any:
            nonlocal number
            number += 1
            return trace

        sys.settrace(trace)
        try:
            forms(text)
            runs(text, 3)
            consists_of(text, {"a", "aa", "aaa"})
        finally:
            sys.settrace(None)
        return number

    for unit in ("a", "ab", "aab", "aaaabbbb", "1234", "a1!b"):
        short, long = (unit * 256)[:256], (unit * 1024)[:1024]
        assert lines(long) < 8 * lines(short), unit  # four times the characters
    assert lines("\ufdfa" * 341) < 2 * lines("ab" * 512)  # 341 characters of three bytes, each of which becomes 18


def test_a_form_of_nothing_but_words_of_the_context_is_found() -> None:
    words = frozenset({"ada", "lovelace", "love"})
    assert consists_of("adalovelace", words)
    assert consists_of("lovelovelace", words)
    assert not consists_of("adalovelaces", words)
    assert not consists_of("", words)
    assert not consists_of("ada", frozenset())
