"""A token that Keyturn did not issue causes no statement and no command, and gets one answer (guarantee 4)."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import secrets
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis as redis_client

from app.sessions.answers import Tokens
from app.storage.migrating import migrate
from tests.conftest import settings_of, sync
from tests.servers import NotOursError, Postgres, Redis
from tests.service import Service
from tests.test_races import all_ready, at, logins, rows, serve, until

# A service sends these without any request: it reads the fence, the pulse and the marker twice a second, and all keys
# once in some minutes.
PERIODIC_STATEMENTS = ("FROM cache_fence", "FROM keys")
PERIODIC_COMMANDS = {"getex", "time", "get", "info", "hello", "select", "client|setinfo"}


@dataclass(frozen=True)
class Counted:
    """The service on servers that record all statements and commands."""

    service: Service
    postgres: Postgres
    redis: Redis
    database_url: str

    def statements(self) -> list[str]:
        """All SQL statements that reached Postgres, without the periodic ones."""
        entries = self.postgres._log().replace("\n\t", " ").splitlines()
        found = [entry for entry in entries if "LOG:  execute" in entry or "LOG:  statement" in entry]
        # The pool tests an idle connection with an empty SELECT. The task that takes the connection then sends its own.
        found = [entry for entry in found if not entry.endswith("statement: SELECT")]
        return [entry for entry in found if not any(known in entry for known in PERIODIC_STATEMENTS)]

    def commands(self) -> dict[str, int]:
        """The commands that reached Redis with their counts, without the periodic ones."""
        with redis_client.Redis.from_url(self.redis.url()) as client:
            stats = client.info("commandstats")
        names = {name.removeprefix("cmdstat_"): entry["calls"] for name, entry in stats.items()}
        return {name: calls for name, calls in names.items() if name not in PERIODIC_COMMANDS}


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Counted]:
    with counting(tmp_path_factory.mktemp("junk")) as counted:
        yield counted


@contextmanager
def counting(logs: Path, **settings: Any) -> Iterator[Counted]:
    """A service with these settings, on servers of its own."""
    try:
        postgres = Postgres.start(settings={"log_statement": "all"})
    except NotOursError as e:
        pytest.skip(str(e))
    with postgres, Redis.start() as redis:
        if not redis.ours:
            pytest.skip("TEST_REDIS_URL names the server, and others' commands would be counted")
        sync(postgres.create_database("junk"))
        url = postgres.url("junk")
        migrate(settings_of(url, None))
        with serve(url, logs, redis_url=redis.url(), **settings) as service:
            sync(until(lambda: all_ready([service])))
            yield Counted(service, postgres, redis, url)


# -- a client that compares every byte


@dataclass(frozen=True)
class Request:
    """A request that presents a token, as a bearer token or in the body."""

    method: str
    path: str
    bearer: str | None = None
    refresh_token: str | None = None
    fields: tuple[bytes, ...] = ()
    """Further lines of the head, byte by byte."""

    def encoded(self) -> bytes:
        head = f"{self.method} {self.path} HTTP/1.1\r\nHost: localhost\r\n"
        if self.bearer is not None:
            head += f"Authorization: Bearer {self.bearer}\r\n"
        further = b"".join(line + b"\r\n" for line in self.fields)
        if self.refresh_token is None:
            return head.encode() + further + b"\r\n"
        body = json.dumps({"refresh_token": self.refresh_token})
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        return head.encode() + further + f"\r\n{body}".encode()


Answer = tuple[int, tuple[str, ...], bytes]
"""Status, all header fields except date and request id, and body."""


def at_refresh(token: str) -> Request:
    return Request("POST", "/auth/refresh", refresh_token=token)


def at_verify(token: str) -> Request:
    return Request("GET", "/auth/verify", bearer=token)


def at_me(token: str) -> Request:
    return Request("GET", "/auth/me", bearer=token)


def at_logout(token: str) -> Request:
    return Request("POST", "/auth/logout", refresh_token=token)


def at_logout_as_bearer(token: str) -> Request:
    return Request("POST", "/auth/logout", bearer=token)


async def ask_all(
    service: Service, requests: list[Request], *, source: str = "127.0.0.1", connections: int = 8
) -> list[Answer]:
    """Sends the requests over eight connections from this address, and returns their answers in order."""
    answers: dict[int, Answer] = {}
    queue = iter(enumerate(requests))

    async def connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port, local_addr=(source, 0))
        for number, request in queue:
            writer.write(request.encoded())
            head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
            fields = [line for line in head[1:-1] if not line.lower().startswith(("date:", "x-request-id:"))]
            [length] = [int(line.split(":")[1]) for line in fields if line.lower().startswith("content-length:")]
            answers[number] = int(head[0].split()[1]), tuple(fields), await reader.readexactly(length)
        writer.close()
        await writer.wait_closed()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(connections):
            tasks.create_task(connection())
    return [answers[number] for number in range(len(requests))]


# -- junk


def flipped(raw: bytes, *bits: int) -> bytes:
    changed = bytearray(raw)
    for bit in bits:
        changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def raw_refresh(token: str) -> bytes:
    return base64.urlsafe_b64decode(token[4:])


def spelled(raw: bytes) -> str:
    return "ktr_" + base64.urlsafe_b64encode(raw).decode()


def junk_refresh_token(dice: random.Random, mine: str, other: str) -> str:
    raw = raw_refresh(mine)
    bits = dice.sample(range(len(raw) * 8), dice.randint(1, 3))
    return dice.choice(
        [
            spelled(flipped(raw, *bits)),
            spelled(flipped(raw, *bits)),
            spelled(dice.randbytes(63)),
            spelled(raw[:1] + dice.randbytes(62)),
            spelled(raw[:53] + bytes(10)),
            spelled(raw[:53] + raw_refresh(other)[53:]),
            spelled(raw[:17] + (1).to_bytes(4) + raw[21:]),
            spelled(bytes([dice.randrange(2, 256)]) + raw[1:]),
            mine[: dice.randrange(len(mine))],
            mine + dice.choice(["=", "\n", " ", "A", "\0"]),
            mine.swapcase(),
            secrets.token_urlsafe(dice.randrange(1, 200)),
            "".join(chr(dice.randrange(0x80, 0xD800)) for _ in range(88)),
        ]
    )


def part(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def parts(token: str) -> list[bytes]:
    return [base64.urlsafe_b64decode(p + "=" * (-len(p) % 4)) for p in token.split(".")]


def junk_access_token(dice: random.Random, mine: str, other: str) -> str:
    header, claims, signature = parts(mine)
    which = dice.randrange(3)
    changed = [header, claims, signature]
    changed[which] = flipped(changed[which], *dice.sample(range(len(changed[which]) * 8), dice.randint(1, 3)))
    position = dice.randrange(len(mine))
    return dice.choice(
        [
            ".".join(map(part, changed)),
            ".".join(map(part, changed)),
            ".".join([part(header), part(claims), part(dice.randbytes(32))]),
            ".".join([part(header), part(claims), other.split(".")[2]]),
            ".".join([part(b'{"alg":"none","typ":"at+jwt"}'), part(claims), ""]),
            ".".join(part(dice.randbytes(n)) for n in (30, 300, 32)),
            mine[:position],
            mine[:position] + dice.choice("!~_-.=") + mine[position:],
            secrets.token_urlsafe(dice.randrange(1, 600)),
        ]
    )


@pytest.fixture
async def pair(counted: Counted) -> tuple[Tokens, Tokens]:
    """Two live sessions."""
    async with at(counted.database_url) as keyturn:
        mine, other, *_ = await logins(keyturn, 4)
    return mine, other


async def unharmed(counted: Counted, sessions: tuple[Tokens, ...]) -> None:
    async with at(counted.database_url) as keyturn:
        found = await rows(keyturn, {tokens.session_id for tokens in sessions})
    assert {(row.generation, row.ended_at) for row in found.values()} == {(0, None)}
    answers = await ask_all(counted.service, [at_refresh(tokens.refresh_token) for tokens in sessions])
    assert {status for status, _, _ in answers} == {200}


async def test_ten_thousand_junk_tokens_reach_neither_database_nor_redis_and_get_one_answer(
    counted: Counted, pair: tuple[Tokens, Tokens]
) -> None:
    dice = random.Random(10)
    mine, other = pair
    places: list[tuple[int, Callable[[str], Request], Callable[[random.Random, str, str], str], str, str]] = [
        (3500, at_refresh, junk_refresh_token, mine.refresh_token, other.refresh_token),
        (1000, at_refresh, junk_access_token, mine.access_token, other.access_token),
        (2000, at_verify, junk_access_token, mine.access_token, other.access_token),
        (1000, at_me, junk_access_token, mine.access_token, other.access_token),
        (1000, at_logout, junk_refresh_token, mine.refresh_token, other.refresh_token),
        (1000, at_logout_as_bearer, junk_access_token, mine.access_token, other.access_token),
        (250, at_verify, lambda dice, mine, _: spelled(flipped(raw_refresh(mine), dice.randrange(504))), mine.refresh_token, ""),
        (250, at_me, lambda _, mine, __: mine, mine.refresh_token, ""),
    ]  # fmt: skip
    junk = [place(make(dice, a, b)) for count, place, make, a, b in places for _ in range(count)]
    assert len(junk) == 10_000
    dice.shuffle(junk)

    statements, commands = counted.statements(), counted.commands()
    answers = await ask_all(counted.service, junk)
    assert counted.statements()[len(statements) :] == []
    assert counted.commands() == commands

    kinds: dict[tuple[str, bool], set[Answer]] = defaultdict(set)
    for request, answer in zip(junk, answers, strict=True):
        kinds[request.path, request.bearer is None].add(answer)
    for kind, seen in kinds.items():
        assert len(seen) == 1, (kind, seen)
        [(status, fields, body)] = seen
        assert status == 401
        assert b"reason" not in body
        assert any(field.lower().startswith("www-authenticate: bearer") for field in fields)
        print(kind, status, body.decode())

    # Proof that the count works: it sees one genuine token among junk, at Postgres and at Redis.
    async with at(counted.database_url) as keyturn:
        [planted] = await logins(keyturn, 1)
    crowd = junk[:100]
    before = len(counted.statements())
    answers = await ask_all(counted.service, [*crowd, at_refresh(planted.refresh_token), *crowd])
    assert [status for status, _, _ in answers if status != 401] == [200]
    assert sum("token_digest = hit.new" in statement for statement in counted.statements()[before:]) == 1
    commands = counted.commands()
    answers = await ask_all(counted.service, [*crowd, at_verify(planted.access_token), *crowd])
    assert [status for status, _, _ in answers if status != 401] == [200]
    asked = {name: commands.get(name, 0) + 1 for name in ("eval", "exists")}  # one script, which looks for the key
    assert counted.commands() == commands | asked
    await unharmed(counted, pair)


async def test_a_refresh_token_with_any_single_bit_flipped_is_refused(
    counted: Counted, pair: tuple[Tokens, Tokens]
) -> None:
    token = pair[0].refresh_token
    raw = raw_refresh(token)
    bent = [spelled(flipped(raw, bit)) for bit in range(len(raw) * 8)]
    letters = token.encode()
    # The highest bit makes a character that is not ASCII, which JSON can carry too.
    bent += [flipped(letters, bit).decode("latin-1") for bit in range(len(letters) * 8)]
    assert token not in bent
    statements = counted.statements()
    answers = await ask_all(counted.service, [place(token) for token in bent for place in (at_refresh, at_logout)])
    assert len(answers) == 2 * (504 + 704)
    assert {status for status, _, _ in answers} == {401}
    assert len(set(answers)) == 1
    assert counted.statements() == statements
    await unharmed(counted, pair)


async def test_what_has_not_even_the_shape_of_a_request_is_400_and_costs_nothing(
    counted: Counted, pair: tuple[Tokens, Tokens]
) -> None:
    statements, commands = counted.statements(), counted.commands()
    answers = await ask_all(
        counted.service,
        [place(pair[0].refresh_token * n) for n in (12, 100) for place in (at_refresh, at_logout)],
    )
    assert {status for status, _, _ in answers} == {400}
    assert not any(pair[0].refresh_token.encode() in body for _, _, body in answers)
    assert counted.statements() == statements
    assert counted.commands() == commands
    await unharmed(counted, pair)


def a_key(dice: random.Random) -> bytes:
    """A line with a retry key, bare or quoted."""
    key = secrets.token_urlsafe(dice.randrange(12, 191)).encode()
    return dice.choice([b"Idempotency-Key: " + key, b'idempotency-key: "' + key + b'"'])


async def test_junk_with_a_retry_key_gets_the_answer_of_junk_and_costs_nothing(
    counted: Counted, pair: tuple[Tokens, Tokens]
) -> None:
    dice = random.Random(12)
    mine, other = pair
    junk = [junk_refresh_token(dice, mine.refresh_token, other.refresh_token) for _ in range(1500)]
    doors = ((), (b"X-Never-Heard-Of: x",))  # the second is FastAPI's
    keyed = [
        Request("POST", "/auth/refresh", refresh_token=token, fields=(a_key(dice), *dice.choice(doors)))
        for token in junk
    ]
    statements, commands = counted.statements(), counted.commands()
    answers = await ask_all(counted.service, [at_refresh(junk[0]), *keyed])
    assert len(set(answers)) == 1
    assert answers[0][0] == 401
    assert counted.statements() == statements
    assert counted.commands() == commands
    await unharmed(counted, pair)

    # A genuine token with a key costs one statement, as one without.
    async with at(counted.database_url) as keyturn:
        [planted] = await logins(keyturn, 1)
    before = len(counted.statements())
    genuine = Request("POST", "/auth/refresh", refresh_token=planted.refresh_token, fields=(a_key(dice),))
    assert [status for status, _, _ in await ask_all(counted.service, [genuine])] == [200]
    assert sum("token_digest = hit.new" in statement for statement in counted.statements()[before:]) == 1


HOSTILE = [
    b"", b" ", b"\t", b"x" * 15, b"x" * 256, b"x" * 4000, b'""', b'"', b'"' + b"x" * 15 + b'"', b'"' + b"x" * 256 + b'"',
    b'"' + b"x" * 20, b"x" * 20 + b'"', b'"' + b"x" * 20 + b'\\"', b'"' + b"x" * 20 + b'\\x"', b'"' + b"x" * 20 + b'";a=1',
    b'"' + b"x" * 20 + b'", "' + b"y" * 20 + b'"', b"x" * 20 + b"," + b"y" * 20, b"\xff" * 20, "ключ повторного запроса".encode(),
    b"x" * 20 + b"\t" + b"x" * 20, b"x" * 20 + b"\x80", b":" + b"eA==" * 5 + b":,", b'"' + b"\xc3\xa9" * 20 + b'"',
]  # fmt: skip
"""Values that spell no key."""
BROKEN = [b"x" * 20 + b"\x00", b"x" * 20 + b"\x7f", b"x" * 20 + b"\x01" + b"x" * 20, b'"' + b"x" * 20 + b'\x1b"']
"""Values that no header field may have (RFC 9110 section 5.5)."""


async def test_a_hostile_key_is_400_before_any_statement_beside_a_genuine_token_too(
    counted: Counted, pair: tuple[Tokens, Tokens]
) -> None:
    fields: list[tuple[bytes, ...]] = [(b"Idempotency-Key: " + value,) for value in (*HOSTILE, *BROKEN)]
    good = b"Idempotency-Key: " + b"x" * 20
    fields += [(good, good), (good, b"idempotency-key: " + b"y" * 20), (good, b"IDEMPOTENCY-KEY:")]
    statements, commands = counted.statements(), counted.commands()
    for lines in fields:
        for door in ((), (b"X-Never-Heard-Of: x",)):
            request = Request("POST", "/auth/refresh", refresh_token=pair[0].refresh_token, fields=(*lines, *door))
            reader, writer = await asyncio.open_connection("127.0.0.1", counted.service.port)
            writer.write(request.encoded())
            answer = await asyncio.wait_for(reader.read(65536), 30)
            writer.close()
            assert answer.startswith(b"HTTP/1.1 400 "), lines
            assert b'"invalid_request"' in answer
            assert b"xxxxxxxxxx" not in answer
    assert counted.statements() == statements
    assert counted.commands() == commands
    await unharmed(counted, pair)


async def test_the_service_logs_no_retry_key_good_or_bad(counted: Counted, pair: tuple[Tokens, Tokens]) -> None:
    dice = random.Random(13)
    key = secrets.token_urlsafe(24).encode()
    token = pair[0].refresh_token
    values = (key, b'"' + key + b'"', key + b"," + key, b'"' + key, key + b"\xff")
    named = b"X-Request-Id: with-a-retry-key"
    requests = [
        Request("POST", "/auth/refresh", refresh_token=presented, fields=(named, b"Idempotency-Key: " + value))
        for value in values
        for presented in (token, junk_refresh_token(dice, token, pair[1].refresh_token))
    ]
    answers = await ask_all(counted.service, requests)
    assert Counter(status for status, _, _ in answers) == {400: 6, 401: 2, 200: 2}
    log = counted.service.text_with('"with-a-retry-key"', len(requests))
    assert log.count('"with-a-retry-key"') >= len(requests)
    assert key.decode() not in log


async def test_the_service_logs_no_token_good_or_bad(counted: Counted, pair: tuple[Tokens, Tokens]) -> None:
    dice = random.Random(11)
    mine, other = pair
    start = len(counted.service.text())
    refreshes = [junk_refresh_token(dice, mine.refresh_token, other.refresh_token) for _ in range(100)]
    accesses = [junk_access_token(dice, mine.access_token, other.access_token) for _ in range(100)]
    await ask_all(counted.service, [at_logout(t) for t in refreshes] + [at_me(t) for t in accesses])
    await ask_all(counted.service, [at_me(mine.access_token), at_refresh(mine.refresh_token)])
    log = ""
    for _ in range(100):  # the service writes an access line after its answer
        log = counted.service.text()[start:]
        if log.count('"event": "request"') >= 202:
            break
        await asyncio.sleep(0.05)
    assert log.count('"/auth/logout"') == 100
    assert log.count('"/auth/me"') == 101
    for token in (*refreshes, *accesses, mine.access_token, mine.refresh_token):
        assert len(token) < 12 or token[:40] not in log
    assert "ktr_" not in log
    assert "eyJ" not in log
