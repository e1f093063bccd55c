"""`keyturn users`: who may sign in."""

from __future__ import annotations

import argparse
import getpass
import re
import secrets
import sys
from datetime import timedelta

from ..command_name import called
from ..errors import InvalidRequest, NotFound
from ..keyturn import Keyturn
from ..storage.tables import User
from .acts import add_verb, by
from .arguments import Words, identifier, whole
from .output import Row, count_of_sessions, more, show


def add_to(words: Words) -> None:
    """Adds the noun and its verbs."""
    verbs = words.add_parser("users", help="who may sign in").add_subparsers(required=True, metavar="VERB")
    verb = add_verb(verbs, "create", _create, "make a user; asks for the password, or makes one", reading=False)
    verb.add_argument("email")
    verb.add_argument("--role", default="user")
    _add_password_options(verb)
    verb = add_verb(verbs, "list", _list, "users by age", reading=True)
    verb.add_argument("--limit", type=whole, default=100)
    verb.add_argument("--after", type=identifier, metavar="ID", help="users after this one")
    for name, act, line in (
        ("disable", _disable, "end all sessions and let no more begin"),
        ("enable", _enable, "let a user sign in again"),
        ("set-role", _set_role, "change the role; live sessions have it from their next refresh"),
        ("set-password", _set_password, "set a password; ends all sessions"),
    ):
        verb = add_verb(verbs, name, act, line, reading=False)
        verb.add_argument("user", help="id or e-mail")
        if name == "set-role":
            verb.add_argument("role")
        if name == "set-password":
            _add_password_options(verb)


def _add_password_options(parser: argparse.ArgumentParser) -> None:
    # No option takes a password: every user of the machine can read command lines.
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--password-stdin", action="store_true", help="read it from standard input")
    which.add_argument("--generate", action="store_true", help="make one and print it, once")


async def _create(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    password = _password(arguments)
    user = await keyturn.users.create(arguments.email, password, arguments.role, by=by())
    print(user.id)
    if arguments.generate:
        print(password)


async def _list(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    users = await keyturn.users.list(limit=arguments.limit, after=arguments.after)
    show([_user(user) for user in users], arguments)
    if not arguments.json:
        more([user.id for user in users], arguments.limit, "--after")


async def _disable(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    user = await found(keyturn, arguments.user)
    ended = await keyturn.users.disable(user.id, by=by())
    change = "was disabled already" if user.disabled_at else "is disabled"
    print(f"{user.email} {change}; {count_of_sessions(ended)} ended")


async def _enable(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    user = await found(keyturn, arguments.user)
    await keyturn.users.enable(user.id, by=by())
    print(f"{user.email} {'may sign in again' if user.disabled_at else 'was enabled already'}")


async def _set_role(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    user = await found(keyturn, arguments.user)
    await keyturn.users.set_role(user.id, arguments.role, by=by())
    if user.role == arguments.role:
        print(f"{user.email} had the role {user.role} already")
        return
    seconds = keyturn.policies.in_force.access_lifetime // timedelta(seconds=1)
    print(f"{user.email} has the role {arguments.role} (before: {user.role})")
    print(
        f"access tokens say {user.role} until their session's next refresh, {seconds} s at most; "
        f"to end them now: {called()} sessions end --user {user.id}"
    )


async def _set_password(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    user = await found(keyturn, arguments.user)
    password = _password(arguments)
    ended = await keyturn.users.set_password(user.id, password, by=by())
    still = "; the user stays disabled" if user.disabled_at else ""
    print(f"{user.email} has a new password; {count_of_sessions(ended)} ended{still}")
    if arguments.generate:
        print(password)


async def found(keyturn: Keyturn, named: str) -> User:
    """The user of an id or e-mail address.

    Raises:
        NotFound: there is none. The message repeats the word only if it has the form of an id or an address, as any
            other word may be a password.
    """
    try:
        return await keyturn.users.find(named)
    except NotFound:
        shown = f" {named}" if re.fullmatch(r"[0-9a-fA-F-]{32,36}|[\w.+-]{1,64}@[\w.-]{1,190}", named) else ""
        raise NotFound(f"no such user{shown}; {called()} users list shows them") from None


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
