"""`keyturn users`: who may sign in."""

from __future__ import annotations

import argparse
import getpass
import re
import sys
from dataclasses import asdict
from datetime import timedelta
from typing import get_args

from ..command_name import called
from ..errors import InvalidRequest, NotFound
from ..keyturn import Keyturn
from ..storage.tables import User
from ..users.administrators import Administrators
from ..users.claims import read, stored
from ..users.lookup import Status
from ..users.made_passwords import LIFETIME, make
from .acts import add_verb, by
from .arguments import Words, add_word, identifier, whole
from .output import count_of_sessions, more, note, show, show_list
from .rows import Row

_LONGEST_CLAIMS = 64 * 1024  # characters that are read of standard input: white space may stand between members


def add_to(words: Words) -> None:
    """Adds the noun and its verbs."""
    verbs = add_word(words, "users", "who may sign in").add_subparsers(required=True, metavar="VERB")
    verb = add_verb(verbs, "create", _create, "make a user; asks for the password, or makes one")
    verb.add_argument("email", help="of the new user")
    verb.add_argument("--role", default="user", help="of the new user (default: %(default)s)")
    _add_password_options(verb)
    verb = add_verb(verbs, "list", _list, "users by age", prints="table")
    verb.add_argument("--limit", type=whole, default=100, metavar="N", help="how many (default: %(default)s)")
    verb.add_argument("--after", type=identifier, metavar="ID", help="users after this one (default: the first)")
    verb.add_argument("--email", help="of this address; or how it begins, with a * behind (default: any)")
    verb.add_argument("--role", help="of this role (default: any)")
    verb.add_argument("--status", choices=get_args(Status), help="only these (default: any)")
    verb = add_verb(verbs, "show", _show, "one user", prints="record")
    verb.add_argument("user", help="id or e-mail")
    for name, act, line in (
        ("disable", _disable, "end all sessions and let no more begin"),
        ("enable", _enable, "let a user sign in again"),
        ("set-role", _set_role, "change the role; live sessions have it from their next refresh"),
        ("set-claims", _set_claims, "set the claims of access tokens; live sessions have them from their next refresh"),
        ("set-password", _set_password, "set a password; ends all sessions"),
        ("reset-password", _reset_password, "make a password for a day and print it, once; ends all sessions"),
        ("verify-email", _verify_email, "note that the e-mail address was proved to be the user's"),
        ("identities", _identities, "who the user is at other issuers"),
        ("unlink", _unlink, "take an identity away from the user; never the last way in"),
        ("erase", _erase, "delete account, sessions and everything personal for good; events keep a pseudonym"),
    ):
        verb = add_verb(verbs, name, act, line, prints="table" if name == "identities" else "words")
        verb.add_argument("user", help="id or e-mail")
        if name == "unlink":
            verb.add_argument("identity", type=identifier, help="id, as `users identities` shows it")
        if name == "verify-email":
            verb.add_argument("--withdraw", action="store_true", help="note that it is not proved any more")
        if name == "set-role":
            verb.add_argument("role", help="the new one: `admin` may do everything")
        if name == "set-claims":
            which = verb.add_mutually_exclusive_group(required=True)
            which.add_argument("--json-stdin", action="store_true", help="read a JSON object from standard input")
            which.add_argument("--clear", action="store_true", help="remove all claims")
        if name == "set-password":
            _add_password_options(verb)
        if name == "erase":
            verb.add_argument("--yes-erase", action="store_true", required=True, help="must be given: there is no undo")


def _add_password_options(parser: argparse.ArgumentParser) -> None:
    # No option takes a password: every user of the machine can read command lines.
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--password-stdin", action="store_true", help="read it from standard input")
    which.add_argument("--generate", action="store_true", help="make one and print it, once")


async def _create(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    made: bool = arguments.generate
    password = make() if made else _typed_password(arguments)
    user = await keyturn.users.create(arguments.email, password, arguments.role, initial=made, by=by())
    print(user.id)
    if made:
        print(password)
        _note_lifetime()


async def _list(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    users = await keyturn.users.list(
        limit=arguments.limit,
        after=arguments.after,
        email=arguments.email,
        role=arguments.role,
        status=arguments.status,
    )
    show_list([_user(user) for user in users], arguments, cut=("email", "role"))
    if not arguments.json:
        more([user.id for user in users], arguments.limit, "--after")


async def _show(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    user = await found(keyturn, arguments.user)
    claims = stored(user.claims)
    shown = claims if arguments.json else user.claims
    more_of_it = {
        "disabled_at": user.disabled_at,
        "email_verified_at": user.email_verified_at,
        "password_set": user.password_hash is not None,
        "password_expires_at": user.password_expires_at,
    }
    show({**_user(user), **more_of_it, "claims": shown}, arguments)


async def _disable(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    user = await found(keyturn, arguments.user)
    ended = await keyturn.users.disable(user.id, by=by())
    change = "was disabled already" if user.disabled_at else "is disabled"
    print(f"{named(user)} {change}; {count_of_sessions(ended)} ended")


async def _enable(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    user = await found(keyturn, arguments.user)
    await keyturn.users.enable(user.id, by=by())
    print(f"{named(user)} {'may sign in again' if user.disabled_at else 'was enabled already'}")


async def _set_role(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    user = await found(keyturn, arguments.user)
    await keyturn.users.set_role(user.id, arguments.role, by=by())
    if user.role == arguments.role:
        print(f"{named(user)} had the role {user.role} already")
        return
    seconds = keyturn.policies.in_force.access_lifetime // timedelta(seconds=1)
    print(f"{named(user)} has the role {arguments.role} (before: {user.role})")
    print(
        f"access tokens say {user.role} until their session's next refresh, {seconds} s at most; "
        f"to end them now: {called()} sessions end --user {user.id}"
    )


async def _set_claims(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    user = await found(keyturn, arguments.user)
    claims = None if arguments.clear else read(_from_stdin(sys.stdin.buffer.read(_LONGEST_CLAIMS)))
    await keyturn.users.set_claims(user.id, claims, by=by())
    number = len(claims or {})
    print(f"{named(user)} has {number or 'no'} claim{'s' * (number != 1)}; live sessions from their next refresh on")


async def _set_password(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    if arguments.generate:
        return await _reset_password(keyturn, arguments)
    user = await found(keyturn, arguments.user)
    ended = await keyturn.users.set_password(user.id, _typed_password(arguments), by=by())
    return _say_renewed(user, ended)


async def _reset_password(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    user = await found(keyturn, arguments.user)
    reset = await keyturn.users.reset_password(user.id, by=by())
    _say_renewed(user, reset.ended)
    print(reset.password)
    _note_lifetime()


def _say_renewed(user: User, ended: int) -> None:
    still = "; the user stays disabled" if user.disabled_at else ""
    print(f"{named(user)} has a new password; {count_of_sessions(ended)} ended{still}")


def _note_lifetime() -> None:
    note(f"it is good for {LIFETIME // timedelta(hours=1)} hours, or until the user changes it")


async def _verify_email(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    user = await found(keyturn, arguments.user)
    await keyturn.users.set_email_verified(user.id, verified=not arguments.withdraw, by=by())
    print(f"{named(user)} counts as {'not ' if arguments.withdraw else ''}proved")


async def _identities(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    user = await found(keyturn, arguments.user)
    identities = [asdict(each) for each in await keyturn.identities.of_user(user.id)]
    short = [{name: each[name] for name in ("id", "issuer", "subject", "email")} for each in identities]
    show_list(identities, arguments, short=short, cut=("issuer", "subject", "email"))


async def _unlink(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    user = await found(keyturn, arguments.user)
    await keyturn.identities.unlink(user.id, arguments.identity, by=by())
    print(f"{named(user)} has no longer the identity {arguments.identity}")


async def _erase(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    user = await found(keyturn, arguments.user)
    pseudonym = await keyturn.erasing.erase(user.id, by=by())
    print(f"the user is erased; events name {pseudonym} in the place of {user.id}")


def named(user: User) -> str:
    """The user's e-mail address, or the id where there is none."""
    return user.email or str(user.id)


def ran_out(administrators: Administrators) -> str:
    """The commands for an operator if passwords that Keyturn made have run out. Empty if none has."""
    number, email = administrators.run_out, administrators.first_run_out
    if not number:
        return ""
    rest = f" (and {number - 1} more)" if number > 1 else ""
    return f"that of {email}{rest} has run out, so it lets nobody in: {called()} users reset-password {email}"


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


def _typed_password(arguments: argparse.Namespace) -> str:
    if arguments.password_stdin or not sys.stdin.isatty():
        return _from_stdin(sys.stdin.buffer.readline()).rstrip("\r\n")
    first = getpass.getpass("New password: ")
    if getpass.getpass("Again: ") != first:
        raise InvalidRequest("the two differ", description="The two passwords differ.")
    return first


def _from_stdin(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise InvalidRequest("not UTF-8", description="Standard input must be UTF-8.") from None


def _user(user: User) -> Row:
    return {
        "id": user.id,
        "email": user.email,
        "role": user.role,
        "status": "disabled" if user.disabled_at else "enabled",
        "created_at": user.created_at,
    }
