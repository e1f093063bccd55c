"""Junk from one network, and a session in a loop, over real sockets: who is slowed down, and what it costs the stores."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator

import pytest

from app.actors import SERVICE
from app.sessions.answers import Tokens
from tests.test_junk import (
    Answer,
    Counted,
    Request,
    ask_all,
    at_logout,
    at_me,
    at_refresh,
    at_verify,
    counting,
    junk_access_token,
    junk_refresh_token,
    part,
)
from tests.test_races import at, logins

ELSEWHERE = "127.0.1.1"
"""An address of this machine that is in another /24."""


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Counted]:
    logs = tmp_path_factory.mktemp("limits")
    with counting(logs, limit_session="12/60", limit_junk="20/60", access_token_lifetime=900) as counted:
        yield counted


async def sessions(limited: Counted, number: int) -> list[Tokens]:
    async with at(limited.database_url) as keyturn:
        return await logins(keyturn, number)


def statuses(answers: list[Answer]) -> Counter[int]:
    return Counter(status for status, _, _ in answers)


def fields_of(answer: Answer) -> dict[str, str]:
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in answer[1])}


async def test_junk_of_one_network_is_429_beyond_its_limit_and_genuine_tokens_beside_it_are_never(
    limited: Counted,
) -> None:
    dice = random.Random(13)
    mine, other, ended, _ = await sessions(limited, 4)
    async with at(limited.database_url) as keyturn:
        await keyturn.ending.logout((), [ended.refresh_token], "this", by=SERVICE)
    junk = [at_verify(junk_access_token(dice, mine.access_token, other.access_token)) for _ in range(100)]
    junk += [at_refresh(junk_refresh_token(dice, mine.refresh_token, other.refresh_token)) for _ in range(100)]
    dice.shuffle(junk)
    statements, commands = limited.statements(), limited.commands()
    answers = await ask_all(limited.service, junk)
    assert limited.statements()[len(statements) :] == []
    assert limited.commands() == commands
    found = statuses(answers)
    assert found.keys() == {401, 429}
    assert 20 <= found[401] <= 100, "the limit, and what comes back of it during a slow run"
    slowed = next(answer for answer in answers if answer[0] == 429)
    assert json.loads(slowed[2]) == {
        "error": "slow_down",
        "error_description": "Too many attempts. Try again later.",
    }
    fields = fields_of(slowed)
    assert 1 <= int(fields["retry-after"]) <= 3
    assert fields["ratelimit-policy"] == '"junk";q=20;w=60'
    assert fields["ratelimit"].startswith('"junk";r=0;t=')
    assert "www-authenticate" not in fields
    # The same network, with genuine tokens, live and over; and with none.
    genuine = [at_verify(mine.access_token), at_refresh(mine.refresh_token), at_verify(ended.access_token)]
    genuine += [at_refresh(ended.refresh_token), Request("GET", "/auth/verify"), at_refresh(other.refresh_token)]
    answers = await ask_all(limited.service, [each for one in genuine for each in (junk[0], junk[1], one)])
    live, refreshed, revoked, over, without, further = answers[2::3]
    assert [live[0], refreshed[0], revoked[0], over[0], without[0], further[0]] == [200, 200, 401, 401, 401, 200]
    assert json.loads(revoked[2])["reason"] == json.loads(over[2])["reason"] == "logout"
    # Another network.
    assert statuses(await ask_all(limited.service, junk[:15], source=ELSEWHERE)) == {401: 15}
    # No other endpoint counts junk here.
    elsewhere = [at_me("junk"), at_logout("junk")]
    assert statuses(await ask_all(limited.service, elsewhere)) == {401: 2}
    log = limited.service.text_with('"limit_reached"')
    [line] = [json.loads(line) for line in log.splitlines() if '"limit_reached"' in line and '"junk"' in line]
    assert (line["level"], line["network"]) == ("warning", "127.0.0.0/24")


async def test_cookies_that_are_junk_are_refused_and_deleted_however_many_come(limited: Counted) -> None:
    names = ("__Host-Http-keyturn-access", "__Host-Http-keyturn-refresh")
    cookie = "; ".join(f"{name}={part(random.Random(14).randbytes(60))}" for name in names).encode()
    fields = (b"Cookie: " + cookie, b"Sec-Fetch-Site: same-origin", b"Origin: https://auth.example.com")
    requests = [Request("POST", "/auth/refresh", fields=fields), Request("GET", "/auth/verify", fields=fields)]
    answers = await ask_all(limited.service, [each for each in requests for _ in range(50)], source=ELSEWHERE)
    assert statuses(answers) == {401: 100}


async def test_a_session_in_a_loop_reaches_no_store_once_it_is_slowed_down_and_the_others_do(limited: Counted) -> None:
    [tokens] = await sessions(limited, 1)
    text, before = tokens.refresh_token, ""
    for _ in range(12):
        [answer] = await ask_all(limited.service, [at_refresh(text)], connections=1)
        assert answer[0] == 200
        before, text = text, json.loads(answer[2])["refresh_token"]
    [first] = await ask_all(limited.service, [at_refresh(text)], connections=1)
    while first[0] == 200:  # on a slow machine, parts of the budget came back meanwhile
        before, text = text, json.loads(first[2])["refresh_token"]
        [first] = await ask_all(limited.service, [at_refresh(text)], connections=1)
    assert first[0] == 429
    statements, commands = limited.statements(), limited.commands()
    answers = await ask_all(limited.service, [at_refresh(text)] * 200)
    after = limited.statements()[len(statements) :]
    let_through = statuses(answers)[200]
    assert statuses(answers).keys() <= {200, 429}
    assert statuses(answers)[429] >= 150
    rotations = [each for each in after if "token_digest = hit.new" in each]
    assert len(rotations) <= let_through
    if not let_through:
        assert after == []
        assert limited.commands() == commands
        # The last answer may have been lost: its token is still good, and its retry is never refused.
        [again] = await ask_all(limited.service, [at_refresh(before)])
        assert again[0] == 200
        assert json.loads(again[2])["refresh_token"] == text
    # Nobody else is slowed down, from the same address.
    others = await sessions(limited, 40)
    answers = await ask_all(limited.service, [at_refresh(each.refresh_token) for each in others])
    assert statuses(answers) == {200: 40}
    log = await asyncio.to_thread(limited.service.text_with, '"limit_reached"')
    lines = [json.loads(line) for line in log.splitlines() if '"limit_reached"' in line and '"session"' in line]
    assert [line["session_id"] for line in lines] == [str(tokens.session_id)], "one line for one storm"
