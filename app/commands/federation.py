"""`keyturn federation`: the issuers whose tokens are exchanged, added, listed and removed while the instances run."""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import Mapping
from typing import Any, get_args

from ..command_name import called
from ..errors import InvalidRequest, NotFound
from ..federation.issuer import Configured, Issuer, IssuerSecrets, Preset, issuer_of, secrets_of
from ..federation.issuer_members import value_of
from ..federation.issuer_rows import Listed
from ..keyturn import Keyturn
from . import federation_check, federation_sessions
from .acts import add_verb, by
from .arguments import Words, add_word
from .output import note, show_list
from .rows import Row

_LONGEST_LINE = 4096  # characters
_OPTIONS = {"preset": "preset", "issuer": "issuer", "client_id": "client-id"}
"""The members that have options of their own, because each issuer has them."""


def add_to(words: Words) -> None:
    """Adds the noun and its verbs."""
    verbs = add_word(words, "federation", "issuers whose tokens are exchanged").add_subparsers(
        required=True, metavar="VERB"
    )
    verb = add_verb(verbs, "add", _add, "add an issuer, or change the members that are given")
    verb.add_argument("name", help="your name for it: it stands in paths")
    verb.add_argument(
        "--preset", choices=get_args(Preset), help="the kind of issuer (default: as it is; a new issuer must have one)"
    )
    verb.add_argument(
        "--issuer",
        metavar="URL",
        help="the exact iss; Scalekit: the environment URL (default: as it is; a new issuer must have one)",
    )
    verb.add_argument("--client-id", metavar="ID", help="of Keyturn at the issuer (default: as it is, or none)")
    verb.add_argument(
        "--set",
        action="append",
        default=[],
        type=_assignment,
        dest="members",
        metavar="MEMBER=VALUE",
        help=f"{', '.join(name for name in Issuer.model_fields if name not in _OPTIONS)}; "
        "without a value: as Keyturn has it (default: as they are)",
    )
    for secret in IssuerSecrets.model_fields:
        option = secret.replace("_", "-")
        verb.add_argument(
            f"--{option}-stdin",
            action="store_true",
            help=f"read the {secret.replace('_', ' ')} from standard input, a line for each",
        )
    verb.add_argument(
        "--forget",
        action="append",
        default=[],
        choices=list(IssuerSecrets.model_fields),
        help="remove a secret (default: none)",
    )
    add_verb(verbs, "list", _list, "the issuers, without their secrets", prints="table")
    verb = add_verb(verbs, "remove", _remove, "take no more tokens of an issuer")
    verb.add_argument("name", help="as `federation list` shows it")
    federation_check.add_to(verbs)
    federation_sessions.add_to(verbs)


def _assignment(text: str) -> tuple[str, Any]:
    """A member and its value, as the type of an argument. No value: None. An error repeats nothing of the value."""
    name, equals, given = text.partition("=")
    if name in IssuerSecrets.model_fields:
        raise argparse.ArgumentTypeError(f"{name}: use --{name.replace('_', '-')}-stdin: every user may read this line")
    if not equals or name not in Issuer.model_fields:
        raise argparse.ArgumentTypeError(
            f"must be MEMBER=VALUE, where MEMBER is one of {', '.join(Issuer.model_fields)}"
        )
    try:
        return name, value_of(name, given) if given else None
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"{name}: {e}") from None


async def _add(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    name = arguments.name
    try:
        before = (await keyturn.issuers.find(name)).configured
    except NotFound:
        before = None
    members = _members(before, arguments)
    secrets = secrets_of(_secrets(arguments))
    put = await keyturn.issuer_changes.put(name, issuer_of(members), secrets, by=by(), seen=before)
    print(name, flush=True)
    note("in force on every instance within a second")
    if put.not_examined:
        note(f"it could not be examined: {put.not_examined}")
    for secret, words in put.configured.lacks():
        note(f"without {secret}, {words}: {called()} federation add {name} --{secret.replace('_', '-')}-stdin")


def _members(before: Configured | None, arguments: argparse.Namespace) -> Mapping[str, Any]:
    """The members after the change. Those that the command does not name stay as they are."""
    old = before.issuer.model_dump(exclude_defaults=True) if before else {}
    given = {member: getattr(arguments, member) for member in _OPTIONS if getattr(arguments, member) is not None}
    given |= dict(arguments.members)
    return {member: value for member, value in {**old, **given}.items() if value is not None}


def _secrets(arguments: argparse.Namespace) -> Mapping[str, str | None]:
    """The secrets that the command gives or removes."""
    secrets: dict[str, str | None] = dict.fromkeys(arguments.forget)
    for secret in IssuerSecrets.model_fields:
        if getattr(arguments, f"{secret}_stdin"):
            if secret in secrets:
                raise InvalidRequest("secret", description=f"{secret}: is given and forgotten.")
            secrets[secret] = _line(secret)
    return secrets


def _line(secret: str) -> str:
    """The next line of standard input. No option takes a secret: every user may read command lines."""
    prompt = f"{secret.replace('_', ' ').capitalize()}: "
    line = getpass.getpass(prompt) if sys.stdin.isatty() else sys.stdin.readline(_LONGEST_LINE).strip()
    if not line:
        raise InvalidRequest("secret", description=f"{secret}: standard input has no line for it.")
    return line


async def _list(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    issuers = await keyturn.issuers.rows()
    short = [_in_short(each) for each in issuers]
    show_list([each.members() for each in issuers], arguments, short=short, cut=("name", "issuer", "secrets"))


def _in_short(issuer: Listed) -> Row:
    of = issuer.configured
    lost = "lost" if issuer.secrets_are_lost else ""
    secrets = [name for name, secret in of.secrets if secret is not None] if of else []
    return {
        "name": issuer.name,
        "preset": of.issuer.preset if of else "",
        "issuer": of.issuer.issuer if of else "",
        "source": issuer.source,
        "status": issuer.status,
        "changed_at": issuer.changed_at,
        "secrets": lost or " ".join(secrets),
    }


async def _remove(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    await keyturn.issuer_changes.remove(arguments.name, by=by())
    print(f"{arguments.name} is removed; within a second its tokens are refused everywhere")
    note(f"sessions that began by its tokens go on: {called()} sessions end --issuer {arguments.name}")
