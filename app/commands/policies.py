"""`keyturn policies`: lifetimes and bounds of sign-ins, changed while the instances run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ..keyturn import Keyturn
from ..policies import Stored
from ..policies.members import SETTINGS, shown, value_of
from .acts import add_verb, by
from .arguments import Words, add_word
from .output import note, show, show_list
from .rows import Row


def add_to(words: Words) -> None:
    """Adds the noun and its verbs."""
    verbs = add_word(words, "policies", "lifetimes, without a restart").add_subparsers(required=True, metavar="VERB")
    add_verb(verbs, "list", _list, "the scopes, and what each sets", prints="table")
    verb = add_verb(verbs, "show", _show, "each value in force, and where it comes from", prints="table")
    _add_scope(verb)
    verb = add_verb(verbs, "set", _set, "set values, stricter than those of the settings")
    _add_scope(verb)
    verb.add_argument("values", nargs="+", type=_assignment, metavar="NAME=VALUE", help=", ".join(SETTINGS))
    verb = add_verb(verbs, "unset", _unset, "go back to the values of the settings")
    _add_scope(verb)
    verb.add_argument("names", nargs="+", choices=list(SETTINGS), metavar="NAME", help=", ".join(SETTINGS))


def _add_scope(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("scope", help="global: all sessions")


def _assignment(text: str) -> tuple[str, Any]:
    """A member and its value, as the type of an argument. An error repeats no value."""
    name, equals, given = text.partition("=")
    if not equals or name not in SETTINGS:
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, where NAME is one of {', '.join(SETTINGS)}")
    try:
        return name, value_of(name, given)
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"{name}: {e}") from None


async def _list(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    policies = await keyturn.policies.rows()
    short = [_in_short(policy) for policy in policies]
    show_list([policy.members() for policy in policies], arguments, short=short, cut=("sets",))


async def _show(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    policy = await keyturn.policies.find(arguments.scope)
    if arguments.json:
        show(policy.members(), arguments)
    else:
        show_list(_members(policy), arguments, cut=("in_force", "set", "bound"))
        _note_cuts(policy)


async def _set(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    await _change(keyturn, arguments.scope, dict(arguments.values))


async def _unset(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    await _change(keyturn, arguments.scope, dict.fromkeys(arguments.names))


async def _change(keyturn: Keyturn, scope: str, values: dict[str, Any]) -> None:
    policy = await keyturn.policy_changes.change(scope, values, by=by())
    for member in _members(policy):
        if member["member"] in values:
            print(f"{scope}: {member['member']} is {member['in_force']} ({member['from']})")
    note("in force on every instance within a second, also for sessions that live")


def _members(policy: Stored) -> Sequence[Row]:
    """A line for each member: its value in force, where the value comes from, and what row and settings have."""
    return [
        {
            "member": name,
            "in_force": _text(getattr(policy.in_force, name), none="any" if name == "session_limit" else ""),
            "from": policy.source(name),
            "set": _text(policy.values.get(name)),
            "bound": _text(getattr(policy.bounds.ceiling, name)),
        }
        for name in SETTINGS
    ]


def _text(value: Any, none: str = "") -> str:
    if value is None:
        return none
    return str(value).lower() if isinstance(value, bool) else str(shown(value))


def _in_short(policy: Stored) -> Row:
    values = " ".join(f"{name}={_text(value)}" for name, value in policy.values.items())
    return {"scope": policy.scope, "changed_at": policy.changed_at, "sets": values}


def _note_cuts(policy: Stored) -> None:
    for name in policy.cut:
        note(f"{name}: the row is laxer than the settings, and counts for as much as they allow")
