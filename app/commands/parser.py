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
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeAlias, get_args
from uuid import UUID

from ..actors import Actor
from ..errors import InvalidRequest, NotFound, Refusal, TemporarilyUnavailable
from ..http import open_files
from ..keyturn import Keyturn, opened, running
from ..revocation.lifetimes import LOOK_BACK
from ..sessions.rotation import KEPT_FOR, State
from ..settings import PREFIX, Algorithm, ConfigurationError, Settings, WrongSettings, place_of_migrations, read
from ..storage.migrating import end_at_sigterm, say
from ..storage.schema import ADMINISTRATOR, called, check_schema, first_administrator, prepare
from ..storage.schema import migrate as bring_to_head
from ..storage.tables import User
from ..tokens.keys import READ_BY_ALL
from ..tokens.primitives import RsaBits
from .addresses import listen, url

Row: TypeAlias = Mapping[str, Any]
Act: TypeAlias = Callable[[Keyturn, argparse.Namespace], Awaitable[None]]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; its exit code."""
    arguments, unknown = _parser().parse_known_args(argv)
    if unknown:
        arguments.parser.refuse(unknown)
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
        return _fail(2 if isinstance(e, WrongSettings) else 1, str(e))
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
    """Takes no option for another, and repeats only names: any other word may be a password or a token."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        # Before and after the verb. Without a default, so that the verb's parser does not undo what stood before it.
        self.add_argument(
            "--config", metavar="FILE", type=Path, default=argparse.SUPPRESS, help="TOML file with settings"
        )
        self.set_defaults(parser=self)

    def error(self, message: str) -> NoReturn:
        message = re.sub(
            r"(?s)(invalid (?:choice|\w+ value)): (.*?)(?= \(choose from [^()]*\)$|$)",
            lambda found: f"{found[1]}{_name(found[2].strip(chr(39)))}",
            message,
        )
        super().error(re.sub(r"(?s)(ignored explicit argument).*", r"\1", message))

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Says which options this command does not have, and how many other words it has no place for."""
        options = [word.partition("=")[0] for word in unknown if word.startswith("-")]
        names = [option for option in options if _PLAIN.fullmatch(option)]
        others = len(unknown) - len(names)
        told = [f"there is no {name}" for name in names]
        if others:
            told.append(f"{others} word{'s' * (others > 1)} too many (not repeated here, as it may be a secret)")
        super().error(f"unrecognized arguments: {'; '.join(told)}")


_PLAIN = re.compile(r"(?:--?)?[a-z]+(?:-[a-z]+)*(?<!.{33})", re.ASCII | re.IGNORECASE)
"""The form of an option's or a command's name: letters and hyphens, at most 32 characters."""


def _by() -> Actor:
    """The operating system's user who gave the command."""
    with suppress(OSError, KeyError, ImportError):  # a container may have no name for its user
        return Actor("command", getpass.getuser())
    return Actor("command")


def _name(word: str) -> str:
    return f" {word}" if _PLAIN.fullmatch(word) else ""


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from ..main import release  # noqa: PLC0415  # FastAPI is not needed by other commands

        print(f"keyturn {release()}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="keyturn", description="A self-hosted token service.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the release and exit")
    nouns = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = nouns.add_parser("serve", help="start the service")
    serve.add_argument("--host")
    serve.add_argument("--port", type=_whole)
    serve.add_argument("--workers", type=_whole)
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
    verb.add_argument("--after", type=_id, metavar="ID", help="users after this one")
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
    verb.add_argument("--before", type=_id, metavar="ID", help="sessions before this one")
    verb.add_argument("--live", action="store_true", help="leave out those that are over")
    verb = _verb(sessions, "show", _sessions_show, "one session", reading=True)
    verb.add_argument("session", type=_id)
    verb = _verb(sessions, "end", _sessions_end, "end sessions, or all of a user", reading=False)
    which = verb.add_mutually_exclusive_group(required=True)
    which.add_argument("session", type=_id, nargs="*", default=[])
    which.add_argument("--user", help="id or e-mail")

    _key_verbs(nouns)
    return parser


def _key_verbs(nouns: Any) -> None:
    keys = nouns.add_parser("keys", help="working keys").add_subparsers(required=True, metavar="VERB")
    verb = _verb(keys, "generate", _keys_generate, "make a key; it signs a minute later", reading=False)
    verb.add_argument("use", choices=["access", "refresh"])
    verb.add_argument("--algorithm", choices=get_args(Algorithm), help="of an access key")
    verb.add_argument("--bits", type=int, choices=get_args(RsaBits), help="of an RS256 key (2048)")
    _verb(keys, "list", _keys_list, "all keys, without secrets", reading=True)
    verb = _verb(keys, "retire", _keys_retire, "refuse a key's tokens, end a refresh key's sessions", reading=False)
    verb.add_argument("kid")
    verb = _verb(keys, "replace", _keys_replace, "where the master secret leaked or is lost: new keys", reading=False)
    verb.add_argument("--sign-everyone-out", action="store_true", required=True, help="must be given: it does")
    verb.set_defaults(run=_with_keyturn(_keys_replace, load=False))  # it may be unable to open the keys that are there


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
        raise argparse.ArgumentTypeError("must be a whole number from 0 to 99999")
    return int(text)


def _id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise argparse.ArgumentTypeError("must be an id (a UUID)") from None


def _with_keyturn(act: Act, *, load: bool = True) -> Callable[[argparse.Namespace], None]:
    async def run(arguments: argparse.Namespace) -> None:
        settings = read()
        async with opened(settings) as keyturn:
            await check_schema(keyturn.db)
            if load:
                await keyturn.keys.load()
            await keyturn.revocations.fence.read()
            await act(keyturn, arguments)

    return lambda arguments: asyncio.run(run(arguments))


# -- serve, doctor, openapi


def _serve(_arguments: argparse.Namespace) -> int:
    settings = read()
    open_files.raise_limit()
    # Before anything is made or printed. uvicorn's own sockets differ with the number of workers.
    sockets = listen(settings.host, settings.port)
    try:
        return _serve_on(sockets, settings)
    finally:
        for each in sockets:
            each.close()


def _serve_on(sockets: list[socket.socket], settings: Settings) -> int:
    import uvicorn  # noqa: PLC0415  # 30 ms that no other command needs
    from uvicorn.supervisors import Multiprocess  # noqa: PLC0415  # as above

    from .. import log  # noqa: PLC0415  # as above
    from ..http.protocol import KeyturnHttpProtocol  # noqa: PLC0415  # as above

    port = sockets[0].getsockname()[1]
    prepare(settings)
    password = asyncio.run(_check(settings))
    if not settings.production:
        print(_greeting(settings, url(settings.host, port) + settings.root_path, password), flush=True)
    log.configure(settings.log_level)
    # uvicorn raises the signal that ended it once more when all is closed: an end in good order is no failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    config = uvicorn.Config(
        f"{__package__.partition('.')[0]}.main:served",
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
    from ..main import create_app  # noqa: PLC0415  # FastAPI is not needed by other commands

    print(json.dumps(create_app(Settings()).openapi(), indent=2, ensure_ascii=False))


# -- users


async def _users_create(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    password = _password(arguments)
    user = await keyturn.users.create(arguments.email, password, arguments.role, by=_by())
    print(user.id)
    if arguments.generate:
        print(password)


async def _users_list(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    users = await keyturn.users.list(limit=arguments.limit, after=arguments.after)
    _print([_user(user) for user in users], arguments)
    if not arguments.json:
        _more(users, arguments.limit, "--after")


async def _users_disable(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    user = await _found(keyturn, arguments.user)
    ended = await keyturn.users.disable(user.id, by=_by())
    print(f"{user.email} {'was disabled already' if user.disabled_at else 'is disabled'}; {_count(ended)} ended")


async def _users_enable(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    user = await _found(keyturn, arguments.user)
    await keyturn.users.enable(user.id, by=_by())
    print(f"{user.email} {'may sign in again' if user.disabled_at else 'was enabled already'}")


async def _users_set_role(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    user = await _found(keyturn, arguments.user)
    await keyturn.users.set_role(user.id, arguments.role, by=_by())
    if user.role == arguments.role:
        print(f"{user.email} had the role {user.role} already")
        return
    seconds = keyturn.settings.access_token_lifetime // timedelta(seconds=1)
    print(f"{user.email} has the role {arguments.role} (before: {user.role})")
    print(
        f"access tokens say {user.role} until their session's next refresh, {seconds} s at most; "
        f"to end them now: {called()} sessions end --user {user.id}"
    )


async def _users_set_password(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    user = await _found(keyturn, arguments.user)
    password = _password(arguments)
    ended = await keyturn.users.set_password(user.id, password, by=_by())
    still = "; the user stays disabled" if user.disabled_at else ""
    print(f"{user.email} has a new password; {_count(ended)} ended{still}")
    if arguments.generate:
        print(password)


async def _found(keyturn: Keyturn, named: str) -> User:
    try:
        return await keyturn.users.find(named)
    except NotFound:
        # Repeated only where it has the form of an id or an address: another word may be a password.
        shown = f" {named}" if re.fullmatch(r"[0-9a-fA-F-]{32,36}|[\w.+-]{1,64}@[\w.-]{1,190}", named) else ""
        raise NotFound(f"no such user{shown}; {called()} users list shows them") from None


def _count(sessions: int) -> str:
    return f"{sessions} session{'s' * (sessions != 1)}"


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
    user_id = (await _found(keyturn, arguments.user)).id if arguments.user else None
    states = await keyturn.sessions.list(
        user_id=user_id, limit=arguments.limit, before=arguments.before, live=arguments.live
    )
    emails = await keyturn.users.emails({state.user_id for state in states})
    if arguments.json:
        _print([_session(state, emails) for state in states], arguments)
    else:
        _print([_session_in_short(state, emails) for state in states], arguments)
        _more(states, arguments.limit, "--before")


async def _sessions_show(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    state = await _session_of(keyturn, arguments.session)
    _print(_session(state, await keyturn.users.emails({state.user_id})), arguments)


async def _session_of(keyturn: Keyturn, session_id: UUID) -> State:
    try:
        return await keyturn.sessions.find(session_id)
    except NotFound:
        raise NotFound(f"no such session {session_id}; {called()} sessions list shows them") from None


async def _sessions_end(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    if arguments.user:
        user = await _found(keyturn, arguments.user)
        print(
            f"{_count(await keyturn.sessions.end_of_user(user.id, 'revoked_by_admin', by=_by()))} of {user.email} ended"
        )
        return
    there: dict[UUID, State] = {}
    missing: list[str] = []
    for session_id in dict.fromkeys(arguments.session):
        try:
            there[session_id] = await keyturn.sessions.find(session_id)
        except NotFound:
            missing.append(str(session_id))
    if there:
        ended = await keyturn.sessions.end(set(there), "revoked_by_admin", by=_by())
        print(f"{_count(ended)} ended", flush=True)
        for state in there.values():
            if over := state.over():
                print(f"{state.id} was over before ({over})", flush=True)
    if missing:
        raise NotFound(f"no such session {', '.join(missing)}; {called()} sessions list shows them")


def _session(state: State, emails: Mapping[UUID, str]) -> Row:
    return {
        "id": state.id,
        "user_id": state.user_id,
        "email": emails.get(state.user_id),
        "client_id": state.client_id,
        "status": state.over() or "live",
        "generation": state.generation,
        "created_at": state.created_at,
        "rotated_at": state.rotated_at,
        "idle_expires_at": state.idle_expires_at,
        "absolute_expires_at": state.absolute_expires_at,
        "ended_at": state.ended_at,
    }


def _session_in_short(state: State, emails: Mapping[UUID, str]) -> Row:
    email = emails.get(state.user_id, "")
    over = state.over()
    return {
        "id": state.id,
        "email": email if len(email) <= _LONGEST_EMAIL else f"{email[: _LONGEST_EMAIL - 1]}…",
        "status": over or "live",
        "begun": f"{_short(state.now - state.created_at)} ago",
        "refreshed": f"{_short(state.now - state.rotated_at)} ago" if state.generation else "never",
        "ends": "" if over else f"in {_short(state.idle_expires_at - state.now)}",
    }


_LONGEST_EMAIL = 32


def _short(duration: timedelta) -> str:
    """A duration in its largest unit: seconds, minutes, hours or days."""
    for unit, letter in ((timedelta(days=1), "d"), (timedelta(hours=1), "h"), (timedelta(minutes=1), "m")):
        if duration >= unit:
            return f"{duration // unit}{letter}"
    return f"{max(timedelta(0), duration) // timedelta(seconds=1)}s"


# -- keys, gc


async def _keys_generate(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    if arguments.use == "refresh" and (arguments.algorithm or arguments.bits):
        raise InvalidRequest("algorithm", description="--algorithm and --bits are for access keys.")
    if arguments.bits and (arguments.algorithm or keyturn.settings.signing_algorithm) != "RS256":
        raise InvalidRequest("bits", description="--bits is for RS256 keys.")
    kid = await keyturn.keys.generate(arguments.use, arguments.algorithm, arguments.bits or 2048, by=_by())
    print(kid, flush=True)
    _note(await _what_signs(keyturn, arguments.use))


async def _keys_list(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    keys: list[Row] = list(await keyturn.keys.list())
    if not arguments.json:
        columns = ("kid", "use", "algorithm", "status", "signs_from", "retired_at")
        keys = [{column: key[column] for column in columns} for key in keys]
    _print(keys, arguments)


async def _keys_retire(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    before = {key["kid"]: key for key in await keyturn.keys.list()}.get(arguments.kid)
    if before is None:
        raise NotFound(f"no such key; {called()} keys list shows them")
    number = await keyturn.keys.retire(arguments.kid, by=_by())
    seconds = READ_BY_ALL // timedelta(seconds=1)
    if before["retired_at"]:
        print(f"{arguments.kid} was retired already, at {_moment(before['retired_at'])}")
    else:
        print(f"{arguments.kid} is retired; within {seconds} s its tokens are refused everywhere")
    changed = " (until now: the retired key)" if before["status"] == "signs" else ""
    print(await _what_signs(keyturn, before["use"], changed), flush=True)
    if number is None:
        return
    ended = await keyturn.sessions.end_under(number, by=_by())
    print(
        f"{_count(ended)} ended; waiting {seconds} s for instances that may still sign in under it "
        "(if this breaks off, call it again)",
        flush=True,
    )
    await asyncio.sleep(READ_BY_ALL.total_seconds())
    print(f"{_count(await keyturn.sessions.end_under(number, by=_by()))} more ended")


async def _keys_replace(keyturn: Keyturn, _arguments: argparse.Namespace) -> None:
    *_, number = await keyturn.keys.replace(by=_by())
    print("all keys are retired, and new ones made")
    for use in ("access", "refresh"):
        print(await _what_signs(keyturn, use), flush=True)
    print(f"{_count(await keyturn.sessions.end_all_but_under(number, by=_by()))} ended; everyone has to sign in again")
    print("an instance that still runs has the old keys: restart it with the new master secret")


async def _what_signs(keyturn: Keyturn, use: str, now: str = "") -> str:
    """Which key of a use signs now, and which will from when on."""
    keys = [key for key in await keyturn.keys.list() if key["use"] == use]
    named = {key["kid"]: f"{key['kid']} ({key['algorithm']})" for key in keys}
    told = [f"{named[key['kid']]} signs {use} tokens now{now}" for key in keys if key["status"] == "signs"]
    told += [
        f"{named[key['kid']]} is published and signs from {_moment(key['signs_from'])} on"
        for key in keys
        if key["status"] == "published"
    ]
    return "; ".join(told)


async def _gc(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    wanted = timedelta(days=arguments.keep_days)
    kept = max(wanted, LOOK_BACK)
    deleted = await keyturn.sessions.gc(by=_by(), kept_for=wanted)
    if arguments.json:
        print(json.dumps({"deleted": deleted, "kept_for_seconds": kept // timedelta(seconds=1)}))
        return
    period = f"{arguments.keep_days} days" if kept == wanted else f"{kept // timedelta(seconds=1)} s"
    print(f"{_count(deleted)} deleted; kept: those that live, and those that were over for less than {period}")
    if kept > wanted:
        print(f"{period} is the least: while an access token of theirs could live, Redis may have to be told of them")


# -- output


def _print(what: Row | Sequence[Row], arguments: argparse.Namespace) -> None:
    rows = [what] if isinstance(what, Mapping) else what
    if arguments.json:
        plain = [{k: _plain(v) for k, v in row.items()} for row in rows]
        print(json.dumps(plain[0] if isinstance(what, Mapping) else plain))
        return
    if not rows:
        _note("there are none")
        return
    table = [list(rows[0])] + [[_moment(value) for value in row.values()] for row in rows]
    if isinstance(what, Mapping):  # one thing: a line for each member
        table = [list(line) for line in zip(*table, strict=True)]
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _more(rows: Sequence[User] | Sequence[State], limit: int, option: str) -> None:
    if rows and len(rows) == limit:
        _note(f"there may be more: {option} {rows[-1].id}, or a higher --limit")


def _note(line: str) -> None:
    """Tells the operator something beside the output, which may be read by a program."""
    sys.stdout.flush()
    print(line, file=sys.stderr)


def _moment(value: Any) -> str:
    """A value as a table shows it: a moment to the second."""
    if isinstance(value, datetime):
        value = value.replace(microsecond=0)
    return "" if value is None else str(_plain(value))


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return str(value) if isinstance(value, UUID) else value
