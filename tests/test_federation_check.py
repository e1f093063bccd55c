"""`keyturn federation check` says in plain words how it stands with issuers and tokens, and never prints a token."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from app.actors import SERVICE
from tests.api import Api, serving
from tests.command_line import Command, Done, keyturn, on_sqlite
from tests.conftest import a_user
from tests.external_tokens import BAD, file_of_issuers, publish, write_file
from tests.upstream.upstream import Upstream

__all__ = ["keyturn"]  # the fixture
pytestmark = on_sqlite


@pytest.fixture
def command(keyturn: Command, upstream: Upstream, tmp_path: Path) -> Command:
    publish(upstream)
    write_file(tmp_path / "issuers.toml", file_of_issuers(upstream))
    keyturn.environment["KEYTURN_FEDERATION_FILE"] = str(tmp_path / "issuers.toml")
    return keyturn


def judged(command: Command, token: str, *words: str) -> Done:
    """The output of the check of a token, which it does not repeat."""
    done = command("federation", "check", *words, "--token-stdin", stdin=f"{token}\n".encode())
    for part in token.split("."):
        assert len(part) < 8 or part not in done.out + done.err
    return done


def test_an_issuer_that_answers_is_shown_with_its_keys(command: Command) -> None:
    done = command.ok("federation", "check", "scalekit")
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    assert lines[0] == "issuer key type bits condition"
    assert "scalekit snk_1 RSA 2048 verifies" in lines
    assert "scalekit snk_ec1 EC 256 verifies" in lines
    assert "scalekit snk_ed1 OKP 256 verifies" in lines
    assert "scalekit snk_weak left out: it has 1024 bits, and not 2048 to 8192" in lines


def test_all_issuers_are_shown_for_programs(command: Command, upstream: Upstream) -> None:
    found = command.ok("federation", "check", "--json").json
    assert found["token"] is None
    assert {each["name"] for each in found["issuers"]} == {"scalekit", "limited", "tenant", "plain"}
    scalekit = next(each for each in found["issuers"] if each["name"] == "scalekit")
    assert (scalekit["issuer"], scalekit["failure"]) == (upstream.url, "")
    assert {"kid": "snk_1", "kty": "RSA", "bits": 2048, "left_out": ""} in scalekit["keys"]
    for secret in upstream.secrets.values():
        assert secret not in str(found)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("refuse", "no connection"),
        ("certificate", "its certificate is not valid"),
        ("redirect", "its answer is a redirect"),
        ("status", "its key set answers 503"),
        ("empty", "its key set can't be used: it is empty"),
        ("private", "its key set can't be used: it has private or symmetric keys"),
    ],
)
def test_an_issuer_that_does_not_answer_is_shown_with_the_reason(
    command: Command, upstream: Upstream, fault: str, words: str
) -> None:
    match fault:
        case "refuse":
            upstream.refuse()
        case "certificate":
            upstream.call("certificate", name="stranger")
        case "empty":
            upstream.key_set({"keys": []})
        case "private":
            upstream.key_set({"keys": [upstream.keys.rsa(1).private_jwk]})
        case _:
            upstream.fault("/keys", fault, location="https://127.0.0.1/")
    done = command("federation", "check", "scalekit")
    assert done.code == 3
    assert words in done.out
    assert words in done.err


def test_an_api_that_refuses_the_clients_secret_is_shown_beside_the_keys(command: Command, upstream: Upstream) -> None:
    assert "API for sessions: may be called" in command.ok("federation", "check", "scalekit").out
    upstream.fault("/api/", "status", status=403)
    done = command("federation", "check", "scalekit")
    assert done.code == 3
    assert "snk_1" in done.out
    assert "API for sessions: issuer scalekit: its API answered 403" in done.out
    upstream.heal()
    upstream.fault("/oauth/token", "status", status=401)
    done = command("federation", "check", "scalekit", "--json")
    assert done.code == 3
    assert done.json["issuers"][0]["api"] == "issuer scalekit: it refuses the client's secret (401)"
    assert command.ok("federation", "check", "plain", "--json").json["issuers"][0]["api"] is None


def test_an_unknown_issuer_is_refused(command: Command) -> None:
    assert command("federation", "check", "nobody").code == 1


def test_a_good_token_is_called_acceptable(command: Command, upstream: Upstream) -> None:
    done = judged(command, upstream.mint())
    assert done.code == 0
    assert "the token: It is acceptable: an access token of a user." in done.err
    done = judged(command, upstream.mint("id_token"), "scalekit", "--json")
    assert done.json["token"] == {
        "acceptable": True, "word": None, "issuer": "scalekit", "sentence": "It is acceptable: an ID token of a user."
    }  # fmt: skip


@pytest.mark.parametrize(
    "word", ["signature", "audience", "expired", "malformed", "too_large", "machine_token", "weak_key"]
)
def test_a_bad_token_is_explained(command: Command, upstream: Upstream, word: str) -> None:
    case = next(
        case for case in BAD if case.word == word and "1 MiB" not in case.title and case.title != "an empty text"
    )
    done = judged(command, case.make(upstream), "--json")
    assert done.code == 1
    assert done.json["token"]["word"] == word
    assert done.json["token"]["acceptable"] is False
    assert f"the token is refused: {word}" in done.err


def test_a_token_of_another_issuer_than_the_one_asked_about_is_called_so(command: Command, upstream: Upstream) -> None:
    done = judged(command, upstream.mint(), "plain")
    assert done.code == 1
    assert "It is a token of the issuer scalekit, and not of plain." in done.err


def test_nothing_is_said_about_a_token_while_its_issuer_is_away(command: Command, upstream: Upstream) -> None:
    upstream.refuse()
    done = judged(command, upstream.mint())
    assert done.code == 3
    assert "the token: Nothing can be said about it" in done.err
    assert "is refused" not in done.err


@pytest.mark.parametrize("stdin", [b"", b"\n", b"\xff\xfe\n", b"x" * 100_000])
def test_no_token_at_all_is_a_bad_one(command: Command, stdin: bytes) -> None:
    assert command("federation", "check", "--token-stdin", stdin=stdin).code == 1


# -- the twin of the command


@pytest.fixture
async def api(database_url: str, upstream: Upstream) -> AsyncIterator[Api]:
    publish(upstream)
    async with serving(database_url) as api:
        await a_user(api.keyturn, "boss@example.com", "admin")
        of = upstream.configured("scalekit")
        await api.keyturn.issuers.put(of.name, of.issuer, of.secrets, by=SERVICE)
        await api.keyturn.issuers.load()
        yield api


async def checked(api: Api, body: Any, name: str = "scalekit") -> Any:
    bearer = (await api.login("boss@example.com"))["access_token"]
    path, headers = f"/admin/federation/{name}/check", {"Authorization": f"Bearer {bearer}"}
    answer = await api.client.post(path, json=body, headers=headers)
    return answer.json() if answer.status_code == 200 else answer.status_code


async def test_an_administrator_sees_how_an_issuer_answers(api: Api, upstream: Upstream) -> None:
    found = await checked(api, {})
    assert found["reachable"] is True
    assert {"kid": "snk_1", "kty": "RSA", "bits": 2048} in found["keys"]
    assert {"kid": "snk_weak", "left_out": "it has 1024 bits, and not 2048 to 8192"} in found["keys"]
    assert {"token", "api_failure"}.isdisjoint(found)
    upstream.refuse()
    found = await checked(api, {})
    away = "issuer scalekit: no connection"
    assert found == {"reachable": False, "failure": away, "keys": [], "api_failure": away}
    assert await checked(api, {}, "nobody") == 404


async def test_an_administrator_reads_the_verdict_on_a_token(api: Api, upstream: Upstream) -> None:
    found = await checked(api, {"token": upstream.mint()})
    assert found["token"] == {"acceptable": True, "sentence": "It is acceptable: an access token of a user."}
    found = await checked(api, {"token": upstream.mint(aud="skc_stranger")})
    assert (found["token"]["acceptable"], found["token"]["word"]) == (False, "audience")
    assert await checked(api, {"token": "x" * 16_385}) == 400
    assert await checked(api, {"token": "x", "more": 1}) == 400


async def test_a_verdict_is_missing_while_the_keys_are_away(api: Api, upstream: Upstream) -> None:
    upstream.refuse()
    found = await checked(api, {"token": upstream.mint()})
    assert found["reachable"] is False
    assert found["token"] == {"sentence": "Nothing can be said about it: the issuer's keys can't be had now."}
