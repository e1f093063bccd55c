"""The ``keyturn`` command: nouns, then verbs. Exit codes: 0 done, 1 refused, 2 wrong use, 3 something is away."""

from __future__ import annotations

import argparse
import asyncio
import errno
import getpass
import json
import os
import re
import secrets
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeAlias
from uuid import UUID

from .addresses import listen, url
from .errors import InvalidRequest, Refusal, TemporarilyUnavailable
from .keys import READ_BY_ALL
from .keyturn import Keyturn, opened, running
from .models import User
from .schema import end_at_sigterm, say
from .sessions import KEPT_FOR, State
from .settings import PREFIX, ConfigurationError, Settings, place_of_migrations, read
from .setup import ADMINISTRATOR, called, check_schema, first_administrator, prepare
from .setup import migrate as bring_to_head

Row: TypeAlias = Mapping[str, Any]
Act: TypeAlias = Callable[[Keyturn, argparse.Namespace], Awaitable[None]]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; its exit code."""
    arguments = _parser().parse_args(argv)
    end_at_sigterm()
    try:
        for name in ("config", "host", "port", "workers"):
            if (value := getattr(arguments, name, None)) is not None:
                # Into the environment, so that every worker process reads the same.
                os.environ[f"{PREFIX}{name.upper()}"] = str(value)
        code = int(arguments.run(arguments) or 0)
        print(end="", flush=True)
    except TemporarilyUnavailable as e:
        return _fail(3, f"not available: {e.cause}")
    except Refusal as e:
        return _fail(1, e.cause if e.description == e.sentence and e.cause else e.description)
    except ConfigurationError as e:
        return _fail(1, str(e))
    except (EOFError, KeyboardInterrupt):
        return 1
    except OSError as e:
        if e.errno not in {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}:
            raise
        # What could not be printed is kept, and the interpreter would try it again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1 if e.errno == errno.EPIPE else _fail(1, f"the output can't be written ({e.strerror})")
    return code


def _fail(code: int, line: str) -> int:
    print(f"keyturn: {line}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    """Repeats nothing that it does not know (a password on the command line), and takes no option for another."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        super().error(re.sub(r"(?s)(unrecognized arguments|ignored explicit argument).*", r"\1", message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="keyturn", description="A self-hosted token service.")
    parser.add_argument("--config", metavar="FILE", type=Path, help="TOML file with settings")
    nouns = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = nouns.add_parser("serve", help="start the service")
    serve.add_argument("--host")
    serve.add_argument("--port", type=int)
    serve.add_argument("--workers", type=int)
    serve.set_defaults(run=_serve)

    nouns.add_parser("migrate", help="bring the database to this release's schema").set_defaults(run=_migrate)

    doctor = nouns.add_parser("doctor", help="check the set-up and say what to do")
    doctor.add_argument("--json", action="store_true")
    doctor.set_defaults(run=_doctor)

    openapi = nouns.add_parser("openapi", help="print the OpenAPI document")
    openapi.set_defaults(run=_openapi)

    gc = nouns.add_parser("gc", help="delete sessions long over")
    gc.add_argument("--keep-days", type=_whole, default=KEPT_FOR.days, help="days to keep them (%(default)s)")
    gc.add_argument("--json", action="store_true")
    gc.set_defaults(run=_with_keyturn(_gc))

    users = nouns.add_parser("users", help="who may sign in").add_subparsers(required=True, metavar="VERB")
    verb = _verb(users, "create", _users_create, "make a user; asks for the password, or makes one", reading=False)
    verb.add_argument("email")
    verb.add_argument("--role", default="user")
    _password_options(verb)
    verb = _verb(users, "list", _users_list, "users by age", reading=True)
    verb.add_argument("--limit", type=_whole, default=100)
    verb.add_argument("--after", type=UUID, metavar="ID", help="users after this one")
    for name, act, line in (
        ("disable", _users_disable, "end all sessions and let no more begin"),
        ("enable", _users_enable, "let a user sign in again"),
        ("set-role", _users_set_role, "change the role; live sessions have it from their next refresh"),
        ("set-password", _users_set_password, "set a password; ends all sessions"),
    ):
        verb = _verb(users, name, act, line, reading=False)
        verb.add_argument("user", help="id or e-mail")
        if name == "set-role":
            verb.add_argument("role")
        if name == "set-password":
            _password_options(verb)

    sessions = nouns.add_parser("sessions", help="sign-ins").add_subparsers(required=True, metavar="VERB")
    verb = _verb(sessions, "list", _sessions_list, "the newest first", reading=True)
    verb.add_argument("--user", help="id or e-mail")
    verb.add_argument("--limit", type=_whole, default=100)
    verb.add_argument("--before", type=UUID, metavar="ID", help="sessions before this one")
    verb.add_argument("--live", action="store_true", help="leave out those that are over")
    verb = _verb(sessions, "show", _sessions_show, "one session", reading=True)
    verb.add_argument("session", type=UUID)
    verb = _verb(sessions, "end", _sessions_end, "end sessions, or all of a user", reading=False)
    verb.add_argument("session", type=UUID, nargs="*")
    verb.add_argument("--user", help="id or e-mail")

    keys = nouns.add_parser("keys", help="working keys").add_subparsers(required=True, metavar="VERB")
    verb = _verb(keys, "generate", _keys_generate, "make a key; it signs a minute later", reading=False)
    verb.add_argument("use", choices=["access", "refresh"])
    verb.add_argument("--algorithm", choices=["HS256", "ES256", "EdDSA"], help="of an access key")
    _verb(keys, "list", _keys_list, "all keys, without secrets", reading=True)
    verb = _verb(keys, "retire", _keys_retire, "refuse a key's tokens, end a refresh key's sessions", reading=False)
    verb.add_argument("kid")
    return parser


def _verb(verbs: Any, name: str, act: Act, line: str, *, reading: bool) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=line)
    if reading:
        parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_with_keyturn(act))
    return parser


def _password_options(parser: argparse.ArgumentParser) -> None:
    # Never on the command line: every user of the machine reads those.
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--password-stdin", action="store_true", help="read it from standard input")
    which.add_argument("--generate", action="store_true", help="make one and print it, once")


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 5:  # noqa: PLR2004  # digits: 99,999 days are 273 years
        raise argparse.ArgumentTypeError("must be a whole number")
    return int(text)


def _with_keyturn(act: Act) -> Callable[[argparse.Namespace], None]:
    async def run(arguments: argparse.Namespace) -> None:
        settings = read()
        async with opened(settings) as keyturn:
            await check_schema(keyturn.db)
            await keyturn.keys.load()
            await keyturn.revocations.read_fence()
            await act(keyturn, arguments)

    return lambda arguments: asyncio.run(run(arguments))


# -- serve, doctor, openapi


def _serve(_arguments: argparse.Namespace) -> int:
    import uvicorn  # noqa: PLC0415  # 30 ms that no other command needs
    from uvicorn.supervisors import Multiprocess  # noqa: PLC0415  # as above

    from . import log  # noqa: PLC0415  # as above
    from .http_protocol import KeyturnHttpProtocol  # noqa: PLC0415  # as above

    settings = read()
    # Before anything is made or printed. uvicorn's own sockets differ with the number of workers.
    sockets = listen(settings.host, settings.port)
    port = sockets[0].getsockname()[1]
    prepare(settings)
    password = asyncio.run(_check(settings))
    if not settings.production:
        print(_greeting(settings, url(settings.host, port) + settings.root_path, password), flush=True)
    log.configure(settings.log_level)
    # uvicorn raises the signal that ended it once more when all is closed: an end in good order is no failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    config = uvicorn.Config(
        f"{__package__}.main:served",
        factory=True,
        host=settings.host,
        port=port,
        workers=settings.workers,
        http=KeyturnHttpProtocol,
        ws="none",
        lifespan="on",
        log_config=log.logging_config(settings.log_level),
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies or "127.0.0.1",
        timeout_keep_alive=75,
        timeout_graceful_shutdown=10,
    )
    log.get_logger().info(f"Uvicorn running on {url(settings.host, port)} (Press CTRL+C to quit)")
    server = uvicorn.Server(config)
    with suppress(KeyboardInterrupt):
        if settings.workers > 1:
            Multiprocess(config, sockets=sockets).run()
        else:
            server.run(sockets)
    return 0 if server.started or settings.workers > 1 else 3


async def _check(settings: Settings) -> str | None:
    """Opens everything once, so that what is wrong stops the start with one line and not with a worker's traceback."""
    async with opened(settings) as keyturn, running(keyturn):
        return None if settings.production else await first_administrator(keyturn.db, keyturn.users)


def _greeting(settings: Settings, url: str, password: str | None) -> str:
    shown = password or "<password>"
    made = (
        f"Made an administrator. The password is shown this once:\n\n    {ADMINISTRATOR}   {password}\n\n"
        f"Change it: {called()} users set-password {ADMINISTRATOR}\n"
        if password
        else ""
    )
    post = f"curl -sS -H 'Content-Type: application/json' {url}/auth"
    keep = "-w '\\n' | tee -a /dev/stderr | grep -o 'ktr_[A-Za-z0-9_-]*')"
    held = '-d "{\\"refresh_token\\": \\"$RT\\"}"'
    named = "" if settings.iss == url else f"Access tokens name {settings.iss} as issuer; KEYTURN_ISSUER changes it.\n"
    return f"""Keyturn on {url}, data in {settings.data_dir.absolute()}
{named}{made}
Log in, refresh, log out:

    RT=$({post}/login -d '{{"email": "{ADMINISTRATOR}", "password": "{shown}"}}' {keep}
    RT=$({post}/refresh {held} {keep}
    {post}/logout {held} -w '%{{http_code}}\\n'
"""


def _migrate(_arguments: argparse.Namespace) -> None:
    place = place_of_migrations()
    say(place.sqlalchemy_url)
    bring_to_head(place)


def _doctor(arguments: argparse.Namespace) -> int:
    from .doctor import examine  # noqa: PLC0415  # no other command needs it

    findings = asyncio.run(examine())
    if arguments.json:
        print(json.dumps([{"check": f.check, "ok": not f.advice, "advice": f.advice} for f in findings]))
    else:
        for check, advice in findings:
            print(f"{'!!' if advice else 'ok'}  {check}" + (f": {advice}" if advice else ""))
    if any(finding.away for finding in findings):
        return 3
    return 1 if any(finding.advice for finding in findings) else 0


def _openapi(_arguments: argparse.Namespace) -> None:
    from .main import create_app  # noqa: PLC0415  # FastAPI is not needed by other commands

    print(json.dumps(create_app(Settings()).openapi(), indent=2, ensure_ascii=False))


# -- users


async def _users_create(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    password = _password(arguments)
    user = await keyturn.users.create(arguments.email, password, arguments.role)
    print(user.id)
    if arguments.generate:
        print(password)


async def _users_list(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    _print([_user(u) for u in await keyturn.users.list(limit=arguments.limit, after=arguments.after)], arguments)


async def _users_disable(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    user = await keyturn.users.find(arguments.user)
    print(f"{await keyturn.users.disable(user.id)} sessions ended")


async def _users_enable(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    await keyturn.users.enable((await keyturn.users.find(arguments.user)).id)


async def _users_set_role(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    await keyturn.users.set_role((await keyturn.users.find(arguments.user)).id, arguments.role)


async def _users_set_password(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    user = await keyturn.users.find(arguments.user)
    password = _password(arguments)
    print(f"{await keyturn.users.set_password(user.id, password)} sessions ended")
    if arguments.generate:
        print(password)


def _password(arguments: argparse.Namespace) -> str:
    if arguments.generate:
        return secrets.token_urlsafe(15)
    if arguments.password_stdin or not sys.stdin.isatty():
        try:
            return sys.stdin.buffer.readline().decode().rstrip("\r\n")
        except UnicodeDecodeError:
            raise InvalidRequest("not UTF-8", description="The password must be UTF-8.") from None
    first = getpass.getpass("New password: ")
    if getpass.getpass("Again: ") != first:
        raise InvalidRequest("the two differ", description="The two passwords differ.")
    return first


def _user(user: User) -> Row:
    return {
        "id": user.id,
        "email": user.email,
        "role": user.role,
        "status": "disabled" if user.disabled_at else "enabled",
        "created_at": user.created_at,
    }


# -- sessions


async def _sessions_list(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    user_id = (await keyturn.users.find(arguments.user)).id if arguments.user else None
    states = await keyturn.sessions.list(
        user_id=user_id, limit=arguments.limit, before=arguments.before, live=arguments.live
    )
    _print([_session(state) for state in states], arguments)


async def _sessions_show(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    _print(_session(await keyturn.sessions.find(arguments.session)), arguments)


async def _sessions_end(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    if bool(arguments.session) == bool(arguments.user):
        raise InvalidRequest("which", description="Name sessions, or --user, and not both.")
    if arguments.user:
        user = await keyturn.users.find(arguments.user)
        ended = await keyturn.sessions.end_of_user(user.id, "revoked_by_admin")
    else:
        ended = await keyturn.sessions.end(set(arguments.session), "revoked_by_admin")
    print(f"{ended} sessions ended")


def _session(state: State) -> Row:
    return {
        "id": state.id,
        "user_id": state.user_id,
        "client_id": state.client_id,
        "status": state.over() or "live",
        "generation": state.generation,
        "created_at": state.created_at,
        "rotated_at": state.rotated_at,
        "idle_expires_at": state.idle_expires_at,
        "absolute_expires_at": state.absolute_expires_at,
        "ended_at": state.ended_at,
    }


# -- keys, gc


async def _keys_generate(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    if arguments.use == "refresh" and arguments.algorithm:
        raise InvalidRequest("algorithm", description="--algorithm is for access keys.")
    print(await keyturn.keys.generate(arguments.use, arguments.algorithm))


async def _keys_list(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    _print(await keyturn.keys.list(), arguments)


async def _keys_retire(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    number = await keyturn.keys.retire(arguments.kid)
    if number is None:
        return
    ended = await keyturn.sessions.end_under(number)
    seconds = READ_BY_ALL.total_seconds()
    print(f"{ended} sessions ended; waiting {seconds:.0f} s for instances that may still sign in under it", flush=True)
    await asyncio.sleep(seconds)
    print(f"{await keyturn.sessions.end_under(number)} more sessions ended")


async def _gc(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    deleted = await keyturn.sessions.gc(kept_for=timedelta(days=arguments.keep_days))
    print(json.dumps({"deleted": deleted}) if arguments.json else f"{deleted} sessions deleted")


# -- output


def _print(what: Row | Sequence[Row], arguments: argparse.Namespace) -> None:
    rows = [what] if isinstance(what, Mapping) else what
    if arguments.json:
        plain = [{k: _plain(v) for k, v in row.items()} for row in rows]
        print(json.dumps(plain[0] if isinstance(what, Mapping) else plain))
        return
    if not rows:
        return
    table = [list(rows[0])] + [["" if v is None else str(_plain(v)) for v in row.values()] for row in rows]
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return str(value) if isinstance(value, UUID) else value
