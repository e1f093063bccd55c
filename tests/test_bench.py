"""The benchmark measures what really happened: its driver counts right, and a run that went wrong is void."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.contenders import Keyturn
from bench.driver import REFRESH, Load, Result, drive
from bench.programs import NoCompilerError, compiled
from bench.report import Figures, Findings, Row, text
from bench.sessions import Books
from tests.servers import free_port

Answer = Callable[[str], Awaitable[tuple[int, str]]]
"""Gives the status and the next token for the presented token."""


@pytest.fixture(autouse=True)
def programs() -> None:
    try:
        compiled("driver")
        compiled("delay")
    except NoCompilerError as why:
        pytest.skip(str(why))


@asynccontextmanager
async def answering(answer: Answer) -> AsyncIterator[int]:
    """Runs a server of minimal HTTP, and gives its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            while head := await until_end(reader):
                length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
                body = await reader.readexactly(length)
                status, token = await answer(body.decode().rpartition(': "')[2].removesuffix('"}'))
                content = f'{{"token_type": "Bearer", "refresh_token": "{token}"}}'
                writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: {len(content)}\r\n\r\n{content}".encode())

    async def until_end(reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return b""

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def written(tmp_path: Path, count: int) -> Path:
    tokens = tmp_path / "tokens"
    tokens.write_text("".join(f"{chain}.0\n" for chain in range(count)))
    return tokens


def load(tokens: Path | None, **more: Any) -> Load:
    return Load(
        "/auth/refresh", **{"seconds": 0.5, "warm": 0.1, "body": REFRESH, "tokens": tokens, "out": tokens, **more}
    )


@pytest.mark.parametrize("use", ["chain", "draw", "cycle"])
async def test_every_request_presents_the_newest_token_of_its_chain_and_is_counted_once(
    tmp_path: Path, use: str
) -> None:
    generations = dict.fromkeys(range(8), 0)
    wrong: list[str] = []

    async def rotate(token: str) -> tuple[int, str]:
        chain, _, generation = token.partition(".")
        if int(generation) != generations[int(chain)]:
            wrong.append(token)
        generations[int(chain)] += 1
        return 200, f"{chain}.{generations[int(chain)]}"

    tokens = written(tmp_path, 8)
    async with answering(rotate) as port:
        result = await asyncio.to_thread(drive, load(tokens, connections=4, use=use), port)
    assert wrong == []
    assert result.total == sum(generations.values()) > 0
    assert result.statuses == {"200": result.total}
    assert result.errors == result.unanswered == 0
    assert result.fault() is None
    assert tokens.read_text().split() == [f"{chain}.{n}" for chain, n in generations.items()]


async def test_a_list_is_used_up_once_and_a_count_is_kept(tmp_path: Path) -> None:
    seen: list[str] = []

    async def note(token: str) -> tuple[int, str]:
        seen.append(token)
        return 204, ""

    tokens = written(tmp_path, 100)
    async with answering(note) as port:
        wanted = load(tokens, connections=4, use="once", expect=204, seconds=30, out=None)
        result = await asyncio.to_thread(drive, wanted, port)
        assert sorted(seen) == sorted(tokens.read_text().split())
        assert result.total == 100
        result = await asyncio.to_thread(drive, load(tokens, connections=4, use="cycle", seconds=30, count=250), port)
    assert result.issued == 250


async def test_a_header_field_more_is_sent_with_each_request() -> None:
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(asyncio.IncompleteReadError):
            while True:
                heads.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(b"HTTP/1.1 204 X\r\n\r\n")

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        wanted = Load("/", method="GET", connections=1, seconds=0.2, warm=0.1, expect=204, field="Cookie: a=b")
        result = await asyncio.to_thread(drive, wanted, port)
    assert result.fault(204) is None
    assert heads
    assert all(b"\r\nCookie: a=b\r\n" in head for head in heads)


async def test_the_cookies_of_an_answer_replace_those_of_its_request_and_are_sent_as_a_browser_sends_them(
    tmp_path: Path,
) -> None:
    sent: list[bytes] = []
    turn = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal turn
        with closing(writer), suppress(asyncio.IncompleteReadError):
            while True:
                sent.append(await reader.readuntil(b"\r\n\r\n"))
                turn += 1
                fields = f"set-cookie: a={turn}; Path=/; HttpOnly\r\nx: y\r\nSet-Cookie: b={2 * turn}\r\n"
                writer.write(f"HTTP/1.1 200 X\r\n{fields}content-length: 2\r\n\r\n{{}}".encode())

    tokens = tmp_path / "tokens"
    tokens.write_text("a=0; b=0\n", encoding="ascii")
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        wanted = load(tokens, connections=1, use="chain", body="", cookies=True, field="Origin: https://x")
        result = await asyncio.to_thread(drive, wanted, port)
    assert result.fault() is None
    assert result.total == len(sent) > 1
    for number, head in enumerate(sent):
        assert f"\r\nCookie: a={number}; b={2 * number}\r\n".encode() in head
        assert b"\r\nOrigin: https://x\r\nContent-Length: 0\r\n" in head
    assert tokens.read_text(encoding="ascii") == f"a={turn}; b={2 * turn}\n"


async def test_an_answer_without_a_cookie_is_an_error_where_one_was_expected(tmp_path: Path) -> None:
    async def rotate(token: str) -> tuple[int, str]:
        return 200, token

    async with answering(rotate) as port:
        wanted = load(written(tmp_path, 4), connections=4, use="chain", body="", cookies=True)
        result = await asyncio.to_thread(drive, wanted, port)
    assert result.errors > 0
    assert result.fault() is not None


async def test_in_an_open_loop_a_late_answer_counts_from_when_its_request_was_due(tmp_path: Path) -> None:
    begun = 0.0

    async def stall(_token: str) -> tuple[int, str]:
        nonlocal begun
        begun = begun or time.monotonic()
        if 0.4 < time.monotonic() - begun < 0.8:
            await asyncio.sleep(begun + 0.8 - time.monotonic())
        return 200, "x.0"

    async with answering(stall) as port:
        wanted = load(written(tmp_path, 4), connections=4, use="list", rate=200, seconds=1, warm=0.1, out=None)
        open_loop = await asyncio.to_thread(drive, wanted, port)
    # Two fifths of the requests were due while the server did not answer. If the driver counted from the sending, only
    # four answers (one on each connection) would be late.
    assert open_loop.latency["p50"] < open_loop.latency["p90"]
    assert open_loop.latency["p90"] > 150_000
    assert open_loop.issued > 100


async def test_an_answer_that_was_not_expected_makes_a_run_void(tmp_path: Path) -> None:
    async def refuse(token: str) -> tuple[int, str]:
        return (503 if token == "2.0" else 200), token

    async with answering(refuse) as port:
        result = await asyncio.to_thread(drive, load(written(tmp_path, 4), connections=4, use="chain"), port)
    assert "503" in str(result.fault())
    assert result.total == result.statuses["200"]


@pytest.mark.parametrize("planted", [None, "lost", "twice", "ended"])
async def test_a_run_whose_database_does_not_agree_is_void_and_the_report_says_so(
    tmp_path: Path, planted: str | None
) -> None:
    database = tmp_path / "keyturn.db"
    answered = 0
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE sessions (generation INTEGER, ended_at INTEGER)")
        connection.execute("INSERT INTO sessions VALUES (0, NULL)")

        async def rotate(token: str) -> tuple[int, str]:
            nonlocal answered
            answered += 1
            steps = {"lost": 0, "twice": 2}.get(planted or "", 1) if answered == 5 else 1
            ended = 1 if planted == "ended" and answered == 5 else None
            connection.execute(
                "UPDATE sessions SET generation = generation + ?, ended_at = coalesce(ended_at, ?)", (steps, ended)
            )
            return 200, token

        async with answering(rotate) as port:
            service: Any = SimpleNamespace(pid=1, port=port)
            contender = Keyturn("Keyturn", database, written(tmp_path, 4), service, {})
            run = await asyncio.to_thread(contender.run, load(None, connections=4, out=None))
    assert answered > 5
    row = Row("refresh", "pgbench", 0.6, 0.9, [2.0], void=[run.void] if run.void else [])
    report = text(Findings([row], [Figures("Keyturn", "refresh", [run])]))
    if planted is None:
        assert run.void is None
        assert row.verdict == "stretch"
        assert "VOID" not in report
    else:
        assert run.void is not None
        assert row.verdict == "void"
        assert f"VOID: Keyturn, refresh: {run.void}" in report


def test_only_what_was_sent_and_not_answered_is_left_open() -> None:
    def result(total: int, unanswered: int) -> Result:
        return Result(1, total, total, total, total, 0, unanswered, 0, {}, {}, 0, 0)

    before = Books(5, 1)
    assert before.fault(Books(15, 1), result(10, 0)) is None
    assert before.fault(Books(17, 1), result(10, 2)) is None
    assert before.fault(Books(18, 1), result(10, 2)) is not None
    assert before.fault(Books(14, 1), result(10, 2)) is not None
    assert before.fault(Books(15, 2), result(10, 0)) == "1 sessions ended"


async def test_the_delay_lengthens_a_round_trip_and_limits_nothing_else() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            while line := await reader.readline():
                writer.write(line)

    loop = asyncio.get_running_loop()
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = free_port()
    command = [str(compiled("delay")), str(port), str(server.sockets[0].getsockname()[1]), "30000"]
    proxy = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert proxy.stdout
        assert await proxy.stdout.readline() == b"listening\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        began = loop.time()
        writer.write(b"one\n")
        assert await reader.readline() == b"one\n"
        assert loop.time() - began >= 0.03
        began = loop.time()
        for number in range(1000):
            writer.write(b"%d\n" % number)
            await writer.drain()
        assert [int(await reader.readline()) for _ in range(1000)] == list(range(1000))
        assert loop.time() - began < 1000 * 0.03 / 3
        writer.close()
    finally:
        proxy.kill()
        await proxy.wait()
        server.close()
